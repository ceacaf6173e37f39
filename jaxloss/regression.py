"""Regression losses."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss import formulas
from jaxloss._arrays import Array
from jaxloss._checks import arguments as _arguments
from jaxloss._checks import debug as _debug
from jaxloss._checks import examples as _examples
from jaxloss._checks import parameters as _parameters
from jaxloss._checks.arrays import array, of_dtype
from jaxloss._checks.debug import watched
from jaxloss._docs.described import described
from jaxloss._docs.losses import ELEMENTS, GRADIENT
from jaxloss._rows import elementwise as _elementwise
from jaxloss._rows import weights as _weights
from jaxloss._types import BETWEEN_0_AND_1, POSITIVE, Reduction

_SQUARED_ERROR = _elementwise.Elementwise("mse", formulas.squared_error, formulas.d_squared_error, of_difference=True)
_ABSOLUTE_ERROR = _elementwise.Elementwise(
    "mae", formulas.absolute_error, formulas.d_absolute_error, of_difference=True
)
_HUBER = _elementwise.Elementwise("huber", formulas.huber, formulas.d_huber, of_difference=True)
_LOG_COSH = _elementwise.Elementwise("log_cosh", formulas.log_cosh, formulas.d_log_cosh, of_difference=True)
_QUANTILE = _elementwise.Elementwise("quantile", formulas.quantile, formulas.d_quantile, of_difference=True)
_POISSON_NLL = _elementwise.Elementwise(
    "poisson_nll", formulas.poisson_nll, formulas.d_poisson_nll, d_value_of_target=formulas.d_poisson_nll_of_target
)


@functools.cache
def _gaussian_nll(per_element: bool) -> _elementwise.Elementwise:
    return _elementwise.Elementwise(
        "gaussian_nll",
        formulas.gaussian_nll,
        formulas.d_gaussian_nll,
        of_difference=True,
        per_feature=(0,) if per_element else (),
    )


@watched(_debug.regression)
@described(ELEMENTS)
def mse(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""Mean squared error.

    $$\mathrm{mse}(x, a) = \frac1n \sum \tfrac12 (x - a)^2, \qquad \frac{\partial}{\partial x} = \frac{x - a}{n}$$

    The sum is over all elements. <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> pred, target = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, 1.0], [1.0, 4.0]])
    >>> print(jaxloss.mse(pred, target))
    1.25
    >>> print(jaxloss.mse(pred, target, where=jnp.array([True, False])))
    0.5

    Source: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 1.1, for the factor ½.
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    return _elementwise.value(_SQUARED_ERROR, x, a, examples)


@watched(_debug.regression)
@described(GRADIENT, of=mse)
def d_mse(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    """The gradient of `mse` with respect to `pred`: $(x - a) / n$.

    <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_mse(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0])))
    [-0.5  1. ]
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    return of_dtype(_elementwise.gradient(_SQUARED_ERROR, x, a, examples), array("pred", pred).dtype)


@watched(_debug.regression)
@described(ELEMENTS)
def mae(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""Mean absolute error.

    $$\mathrm{mae}(x, a) = \frac1n \sum |x - a|,
      \qquad \frac{\partial}{\partial x} = \frac{\mathrm{sign}(x - a)}{n}$$

    The sum is over all elements. <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.mae(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0])))
    1.5

    Source: C. J. Willmott and K. Matsuura, *Advantages of the mean absolute error* (2005), Climate Research 30.
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    return _elementwise.value(_ABSOLUTE_ERROR, x, a, examples)


@watched(_debug.regression)
@described(GRADIENT, of=mae)
def d_mae(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The gradient of `mae` with respect to `pred`: $\mathrm{sign}(x - a) / n$, where the sign of 0 is 0.

    <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_mae(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0])))
    [-0.5  0.5]
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    return of_dtype(_elementwise.gradient(_ABSOLUTE_ERROR, x, a, examples), array("pred", pred).dtype)


@watched(_debug.regression, delta=POSITIVE)
@described(ELEMENTS)
def huber(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    delta: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The Huber loss: a squared error near the target, an absolute error far from it.

    $$\mathrm{huber}(x, a) = \frac1n \sum \begin{cases} \frac12 e^2 & |e| \le \delta \\
      \delta \left(|e| - \frac12 \delta\right) & |e| > \delta \end{cases}, \quad e = x - a,
      \qquad \frac{\partial}{\partial x} = \frac{\max(-\delta, \min(e, \delta))}{n}$$

    The sum is over all elements. <batch size>

    Args:
        delta: a number $\delta > 0$, the error beyond which the loss is linear; it may be traced.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.huber(jnp.array([1.0, 4.0]), jnp.array([1.5, 2.0])))
    0.8125

    Source: P. J. Huber, *Robust Estimation of a Location Parameter* (1964).
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    examples, delta = _with_number(examples, delta, _delta(delta))
    return _elementwise.value(_HUBER, x, a, examples, (delta,))


@watched(_debug.regression, delta=POSITIVE)
@described(GRADIENT, of=huber)
def d_huber(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    delta: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The gradient of `huber` with respect to `pred`: $\max(-\delta, \min(x - a, \delta)) / n$.

    <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_huber(jnp.array([1.0, 4.0]), jnp.array([1.5, 2.0])))
    [-0.25  0.5 ]
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    examples, delta = _with_number(examples, delta, _delta(delta))
    return of_dtype(_elementwise.gradient(_HUBER, x, a, examples, (delta,)), array("pred", pred).dtype)


@watched(_debug.regression)
@described(ELEMENTS)
def log_cosh(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The logarithm of the hyperbolic cosine of the error: a Huber loss without a corner.

    $$\mathrm{log\_cosh}(x, a) = \frac1n \sum \log \cosh(x - a),
      \qquad \frac{\partial}{\partial x} = \frac{\tanh(x - a)}{n}$$

    The sum is over all elements. <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.log_cosh(jnp.array([1.0, 4.0]), jnp.array([1.5, 2.0])))
    0.72256

    Source: P. Chen, G. Chen and S. Zhang, *Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder* (2018).
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    return _elementwise.value(_LOG_COSH, x, a, examples)


@watched(_debug.regression)
@described(GRADIENT, of=log_cosh)
def d_log_cosh(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The gradient of `log_cosh` with respect to `pred`: $\tanh(x - a) / n$.

    <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> [round(float(d), 5) for d in jaxloss.d_log_cosh(jnp.array([1.0, 4.0]), jnp.array([1.5, 2.0]))]
    [-0.23106, 0.48201]
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    return of_dtype(_elementwise.gradient(_LOG_COSH, x, a, examples), array("pred", pred).dtype)


@watched(_debug.regression, q=BETWEEN_0_AND_1)
@described(ELEMENTS)
def quantile(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    q: ArrayLike,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The pinball loss, which a quantile of the target minimizes.

    $$\mathrm{quantile}(x, a) = \frac1n \sum \begin{cases} q\, (a - x) & x < a \\
      (1 - q)(x - a) & x \ge a \end{cases},
      \qquad \frac{\partial}{\partial x} = \frac1n \begin{cases} -q & x < a \\ 1 - q & x > a \end{cases}$$

    The sum is over all elements. <batch size>

    Args:
        q: a number between 0 and 1, the quantile to predict; ½ for the median. It may be traced.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.quantile(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0]), q=0.75))
    0.625

    Source: R. Koenker and G. Bassett, *Regression Quantiles* (1978), Econometrica 46.
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    examples, q = _with_number(examples, q, _q(q))
    return _elementwise.value(_QUANTILE, x, a, examples, (q,))


@watched(_debug.regression, q=BETWEEN_0_AND_1)
@described(GRADIENT, of=quantile)
def d_quantile(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    q: ArrayLike,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The gradient of `quantile` with respect to `pred`: $-q / n$ below the target, $(1 - q) / n$ above it.

    Where prediction and target are equal it is 0. <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_quantile(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0]), q=0.75))
    [-0.375  0.125]
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    examples, q = _with_number(examples, q, _q(q))
    return of_dtype(_elementwise.gradient(_QUANTILE, x, a, examples, (q,)), array("pred", pred).dtype)


@watched(_debug.counts)
@described(ELEMENTS)
def poisson_nll(
    log_rate: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The negative log-likelihood of counts under a Poisson distribution, up to a constant of the counts.

    $$\mathrm{poisson\_nll}(x, a) = \frac1n \sum (e^x - a x),
      \qquad \frac{\partial}{\partial x} = \frac{e^x - a}{n}$$

    $x$ is the logarithm of the predicted rate, so the rate is positive whatever $x$ is. The constant that is left out,
    $\log a!$, changes no gradient with respect to $x$; add `jax.scipy.special.gammaln(target + 1)` for the whole
    likelihood.

    The sum is over all elements. <batch size>

    Args:
        log_rate: logarithms $x$ of rates, <elements>
        target: counts $a$, of the same shape; any real type, not negative.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.poisson_nll(jnp.array([0.0, 1.0]), jnp.array([1, 3])))
    0.35914

    Source: A. C. Cameron and P. K. Trivedi, *Regression Analysis of Count Data* (1998), section 3.2.
    """
    x, a, examples = _checked(log_rate, target, where, weights, reduction, normalizer, "log_rate")
    return _elementwise.value(_POISSON_NLL, x, a, examples)


@watched(_debug.counts)
@described(GRADIENT, of=poisson_nll)
def d_poisson_nll(
    log_rate: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The gradient of `poisson_nll` with respect to `log_rate`: $(e^x - a) / n$.

    <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_poisson_nll(jnp.array([0.0, 0.0]), jnp.array([1, 3])))
    [ 0. -1.]
    """
    x, a, examples = _checked(log_rate, target, where, weights, reduction, normalizer, "log_rate")
    return of_dtype(_elementwise.gradient(_POISSON_NLL, x, a, examples), array("log_rate", log_rate).dtype)


@watched(_debug.gaussian)
@described(ELEMENTS)
def gaussian_nll(
    mean: ArrayLike,
    target: ArrayLike,
    variance: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The negative log-likelihood of targets under Gaussians of predicted mean and variance, up to a constant.

    $$\mathrm{gaussian\_nll}(x, a, v) = \frac1n \sum \tfrac12 \left(\log v + \frac{(x - a)^2}{v}\right),
      \qquad \frac{\partial}{\partial x} = \frac{x - a}{n\, v},
      \qquad \frac{\partial}{\partial v} = \frac{1}{2 n\, v} \left(1 - \frac{(x - a)^2}{v}\right)$$

    The constant that is left out is $\frac12 \log 2 \pi$ an element. A variance near 0 makes loss and gradient very
    large: bound it from below where it is made, as in `jax.nn.softplus(s) + 1e-6`. The sum is over all elements.
    <batch size>

    Args:
        mean: predictions $x$, <elements>
        variance: $v$, greater than 0: a number or scalar array; or an array with as many axes as `mean`, each as long
            or of length 1. Where it is not greater than 0, the loss is NaN.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> mean, target, variance = jnp.array([0.0, 1.0]), jnp.array([1.0, 3.0]), jnp.array([1.0, 4.0])
    >>> print(jaxloss.gaussian_nll(mean, target, variance))
    0.84657

    Source: D. A. Nix and A. S. Weigend, *Estimating the mean and variance of the target probability distribution*
    (1994).
    """
    x, a, examples = _checked(mean, target, where, weights, reduction, normalizer, "mean")
    examples, variance = _with_variance(examples, variance, x)
    return _elementwise.value(_gaussian_nll(variance.ndim > 0), x, a, examples, (variance,))


@watched(_debug.gaussian)
@described(GRADIENT, of=gaussian_nll)
def d_gaussian_nll(
    mean: ArrayLike,
    target: ArrayLike,
    variance: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The gradient of `gaussian_nll` with respect to `mean`: $(x - a) / (n\, v)$.

    `jax.grad` gives that with respect to `variance`. <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_gaussian_nll(jnp.array([0.0, 1.0]), jnp.array([1.0, 3.0]), jnp.array([1.0, 4.0])))
    [-0.5  -0.25]
    """
    x, a, examples = _checked(mean, target, where, weights, reduction, normalizer, "mean")
    examples, variance = _with_variance(examples, variance, x)
    gradient = _elementwise.gradient(_gaussian_nll(variance.ndim > 0), x, a, examples, (variance,))
    return of_dtype(gradient, array("mean", mean).dtype)


def _checked(
    pred: ArrayLike,
    target: ArrayLike,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    reduction: Reduction,
    normalizer: ArrayLike | None,
    name: str = "pred",
) -> tuple[Array, Array, _weights.Examples]:
    x = _arguments.prediction(name, pred, "target", target)
    a, x = _arguments.probabilities(target, name, x)
    return x, a, _examples.checked(where, weights, reduction, normalizer)


def _with_number(examples: _weights.Examples, given: ArrayLike, number: Array) -> tuple[_weights.Examples, Array]:
    """Examples and number; where the number is out of range, also those that do not depend on it are NaN."""
    return examples if _parameters.is_known(given) else _examples.undefined_with(examples, number), number


def _delta(delta: ArrayLike) -> Array:
    return _parameters.number("delta", delta, POSITIVE, " (mse has no limit)")


def _q(q: ArrayLike) -> Array:
    return _parameters.number("q", q, BETWEEN_0_AND_1)


def _with_variance(examples: _weights.Examples, variance: ArrayLike, mean: Array) -> tuple[_weights.Examples, Array]:
    """Examples, and the variance as a scalar or of each element."""
    if not isinstance(variance, list | tuple) and getattr(variance, "ndim", 0) == 0:
        number = _parameters.number("variance", variance, POSITIVE, ", or an array of the shape of mean")
        return _with_number(examples, variance, number)
    found = _parameters.real_array("variance", variance)
    if len(found.shape) != mean.ndim or any(v not in (1, x) for v, x in zip(found.shape, mean.shape, strict=True)):
        raise ValueError(
            f"variance has shape {found.shape}, mean {mean.shape}: expected a scalar, or as many axes as mean, each as "
            "long or of length 1"
        )
    return examples, jnp.broadcast_to(found, mean.shape)
