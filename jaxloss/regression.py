"""Regression losses."""

from jax.typing import ArrayLike

from jaxloss import formulas
from jaxloss._arrays import Array, Formula
from jaxloss._checks import arguments as _arguments
from jaxloss._checks import debug as _debug
from jaxloss._checks import examples as _examples
from jaxloss._checks import parameters as _parameters
from jaxloss._checks.arrays import array, of_dtype
from jaxloss._checks.debug import watched
from jaxloss._intervals import BETWEEN_0_AND_1, POSITIVE
from jaxloss._rows import elementwise as _elementwise
from jaxloss._rows import weights as _weights
from jaxloss._types import Reduction


def _of_error(name: str, value: Formula, derivative: Formula) -> _elementwise.Elementwise:
    """A loss of the difference between prediction and target."""
    return _elementwise.Elementwise(
        name=name, value=value, derivative=derivative, target_derivative=lambda *operands: -derivative(*operands)
    )


def _minus_log_rate(log_rate: Array, target: Array) -> Array:
    del target
    return -formulas.real(log_rate)


_SQUARED_ERROR = _of_error("mse", formulas.squared_error, formulas.d_squared_error)
_ABSOLUTE_ERROR = _of_error("mae", formulas.absolute_error, formulas.d_absolute_error)
_HUBER = _of_error("huber", formulas.huber, formulas.d_huber)
_LOG_COSH = _of_error("log_cosh", formulas.log_cosh, formulas.d_log_cosh)
_QUANTILE = _of_error("quantile", formulas.quantile, formulas.d_quantile)
_POISSON_NLL = _elementwise.Elementwise(
    name="poisson_nll",
    value=formulas.poisson_nll,
    derivative=formulas.d_poisson_nll,
    target_derivative=_minus_log_rate,
)


@watched(_debug.regression)
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

    The sum is over all elements, $n$ is the batch size: the length of the first axis, not the number of elements.

    Args:
        pred: predictions $x$, `[n, ...]`, of any shape; float32, bfloat16, float16 or float64. Each element of a 1-D or
            0-D array is an example.
        target: $a$, of the same shape; any real type.
        where: a boolean mask, false for what is masked: its loss and gradient are exactly 0, even where it holds NaN.
            Shape `[n]`, or an axis for each of `pred`, as long or 1, or `()`; nothing else broadcasts. $n$ counts the
            examples of which any element is unmasked. Default: all count.
        weights: numbers that examples' losses are multiplied by, of the shapes that `where` may have; $n$ stays.
            Default: 1.
        reduction: `"mean"` divides the sum by $n$, `"sum"` does not, `"none"` returns the loss of each element.
        normalizer: a number or scalar array that replaces $n$ in `"mean"`.

    Returns:
        A scalar, or for `"none"` an array like `pred`; float64 where predictions or target are, else float32. The loss
        is differentiable with respect to `pred`, `target`, `weights` and `normalizer`; a mean over no example is 0.

    Raises:
        TypeError: `pred` is not floating-point, or another argument is of the wrong kind.
        ValueError: shapes do not match, or an option has no such value.

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

    Args:
        pred: as for `mse`.
        target: as for `mse`.
        where: as for `mse`; the gradient of what is masked is 0.
        weights: as for `mse`.
        reduction: as for `mse`; `"none"` gives the derivative of each element's own loss, as does `"sum"`.
        normalizer: as for `mse`.

    Returns:
        An array like `pred`.

    Raises:
        TypeError: as `mse`.
        ValueError: as `mse`.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_mse(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0])))
    [-0.5  1. ]
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    return of_dtype(_elementwise.gradient(_SQUARED_ERROR, x, a, examples), array("pred", pred).dtype)


@watched(_debug.regression)
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

    The sum is over all elements, $n$ is the batch size: the length of the first axis, not the number of elements.

    Args:
        pred: predictions $x$, `[n, ...]`, of any shape; float32, bfloat16, float16 or float64. Each element of a 1-D or
            0-D array is an example.
        target: $a$, of the same shape; any real type.
        where: a boolean mask, false for what is masked: its loss and gradient are exactly 0, even where it holds NaN.
            Shape `[n]`, or an axis for each of `pred`, as long or 1, or `()`; nothing else broadcasts. $n$ counts the
            examples of which any element is unmasked. Default: all count.
        weights: numbers that examples' losses are multiplied by, of the shapes that `where` may have; $n$ stays.
            Default: 1.
        reduction: `"mean"` divides the sum by $n$, `"sum"` does not, `"none"` returns the loss of each element.
        normalizer: a number or scalar array that replaces $n$ in `"mean"`.

    Returns:
        A scalar, or for `"none"` an array like `pred`; float64 where predictions or target are, else float32. The loss
        is differentiable with respect to `pred`, `target`, `weights` and `normalizer`; a mean over no example is 0.

    Raises:
        TypeError: `pred` is not floating-point, or another argument is of the wrong kind.
        ValueError: shapes do not match, or an option has no such value.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.mae(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0])))
    1.5

    Source: C. J. Willmott and K. Matsuura, *Advantages of the mean absolute error* (2005), Climate Research 30.
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    return _elementwise.value(_ABSOLUTE_ERROR, x, a, examples)


@watched(_debug.regression)
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

    Args:
        pred: as for `mae`.
        target: as for `mae`.
        where: as for `mae`; the gradient of what is masked is 0.
        weights: as for `mae`.
        reduction: as for `mae`; `"none"` gives the derivative of each element's own loss, as does `"sum"`.
        normalizer: as for `mae`.

    Returns:
        An array like `pred`.

    Raises:
        TypeError: as `mae`.
        ValueError: as `mae`.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_mae(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0])))
    [-0.5  0.5]
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    return of_dtype(_elementwise.gradient(_ABSOLUTE_ERROR, x, a, examples), array("pred", pred).dtype)


@watched(_debug.regression)
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

    The sum is over all elements, $n$ is the batch size: the length of the first axis, not the number of elements.

    Args:
        pred: predictions $x$, `[n, ...]`, of any shape; float32, bfloat16, float16 or float64. Each element of a 1-D or
            0-D array is an example.
        target: $a$, of the same shape; any real type.
        delta: a number $\delta > 0$, the error beyond which the loss is linear; it may be traced.
        where: a boolean mask, false for what is masked: its loss and gradient are exactly 0, even where it holds NaN.
            Shape `[n]`, or an axis for each of `pred`, as long or 1, or `()`; nothing else broadcasts. $n$ counts the
            examples of which any element is unmasked. Default: all count.
        weights: numbers that examples' losses are multiplied by, of the shapes that `where` may have; $n$ stays.
            Default: 1.
        reduction: `"mean"` divides the sum by $n$, `"sum"` does not, `"none"` returns the loss of each element.
        normalizer: a number or scalar array that replaces $n$ in `"mean"`.

    Returns:
        A scalar, or for `"none"` an array like `pred`; float64 where predictions or target are, else float32. The loss
        is differentiable with respect to `pred`, `target`, `delta`, `weights` and `normalizer`; a mean over no example
        is 0.

    Raises:
        TypeError: `pred` is not floating-point, or another argument is of the wrong kind.
        ValueError: shapes do not match, or an option has no such value.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.huber(jnp.array([1.0, 4.0]), jnp.array([1.5, 2.0])))
    0.8125

    Source: P. J. Huber, *Robust Estimation of a Location Parameter* (1964).
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    examples, delta = _with_number(examples, delta, _delta(delta))
    return _elementwise.value(_HUBER, x, a, examples, (delta,))


@watched(_debug.regression)
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

    Args:
        pred: as for `huber`.
        target: as for `huber`.
        delta: as for `huber`.
        where: as for `huber`; the gradient of what is masked is 0.
        weights: as for `huber`.
        reduction: as for `huber`; `"none"` gives the derivative of each element's own loss, as does `"sum"`.
        normalizer: as for `huber`.

    Returns:
        An array like `pred`.

    Raises:
        TypeError: as `huber`.
        ValueError: as `huber`.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_huber(jnp.array([1.0, 4.0]), jnp.array([1.5, 2.0])))
    [-0.25  0.5 ]
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    examples, delta = _with_number(examples, delta, _delta(delta))
    return of_dtype(_elementwise.gradient(_HUBER, x, a, examples, (delta,)), array("pred", pred).dtype)


@watched(_debug.regression)
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

    The sum is over all elements, $n$ is the batch size: the length of the first axis, not the number of elements.

    Args:
        pred: predictions $x$, `[n, ...]`, of any shape; float32, bfloat16, float16 or float64. Each element of a 1-D or
            0-D array is an example.
        target: $a$, of the same shape; any real type.
        where: a boolean mask, false for what is masked: its loss and gradient are exactly 0, even where it holds NaN.
            Shape `[n]`, or an axis for each of `pred`, as long or 1, or `()`; nothing else broadcasts. $n$ counts the
            examples of which any element is unmasked. Default: all count.
        weights: numbers that examples' losses are multiplied by, of the shapes that `where` may have; $n$ stays.
            Default: 1.
        reduction: `"mean"` divides the sum by $n$, `"sum"` does not, `"none"` returns the loss of each element.
        normalizer: a number or scalar array that replaces $n$ in `"mean"`.

    Returns:
        A scalar, or for `"none"` an array like `pred`; float64 where predictions or target are, else float32. The loss
        is differentiable with respect to `pred`, `target`, `weights` and `normalizer`; a mean over no example is 0.

    Raises:
        TypeError: `pred` is not floating-point, or another argument is of the wrong kind.
        ValueError: shapes do not match, or an option has no such value.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.log_cosh(jnp.array([1.0, 4.0]), jnp.array([1.5, 2.0])))
    0.72256

    Source: P. Chen, G. Chen and S. Zhang, *Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder* (2018).
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    return _elementwise.value(_LOG_COSH, x, a, examples)


@watched(_debug.regression)
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

    Args:
        pred: as for `log_cosh`.
        target: as for `log_cosh`.
        where: as for `log_cosh`; the gradient of what is masked is 0.
        weights: as for `log_cosh`.
        reduction: as for `log_cosh`; `"none"` gives the derivative of each element's own loss, as does `"sum"`.
        normalizer: as for `log_cosh`.

    Returns:
        An array like `pred`.

    Raises:
        TypeError: as `log_cosh`.
        ValueError: as `log_cosh`.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> [round(float(d), 5) for d in jaxloss.d_log_cosh(jnp.array([1.0, 4.0]), jnp.array([1.5, 2.0]))]
    [-0.23106, 0.48201]
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    return of_dtype(_elementwise.gradient(_LOG_COSH, x, a, examples), array("pred", pred).dtype)


@watched(_debug.regression)
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

    The sum is over all elements, $n$ is the batch size: the length of the first axis, not the number of elements.

    Args:
        pred: predictions $x$, `[n, ...]`, of any shape; float32, bfloat16, float16 or float64. Each element of a 1-D or
            0-D array is an example.
        target: $a$, of the same shape; any real type.
        q: a number between 0 and 1, the quantile to predict; ½ for the median. It may be traced.
        where: a boolean mask, false for what is masked: its loss and gradient are exactly 0, even where it holds NaN.
            Shape `[n]`, or an axis for each of `pred`, as long or 1, or `()`; nothing else broadcasts. $n$ counts the
            examples of which any element is unmasked. Default: all count.
        weights: numbers that examples' losses are multiplied by, of the shapes that `where` may have; $n$ stays.
            Default: 1.
        reduction: `"mean"` divides the sum by $n$, `"sum"` does not, `"none"` returns the loss of each element.
        normalizer: a number or scalar array that replaces $n$ in `"mean"`.

    Returns:
        A scalar, or for `"none"` an array like `pred`; float64 where predictions or target are, else float32. The loss
        is differentiable with respect to `pred`, `target`, `q`, `weights` and `normalizer`; a mean over no example is
        0.

    Raises:
        TypeError: `pred` is not floating-point, or another argument is of the wrong kind.
        ValueError: shapes do not match, or an option has no such value.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.quantile(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0]), q=0.75))
    0.625

    Source: R. Koenker and G. Bassett, *Regression Quantiles* (1978), Econometrica 46.
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    examples, q = _with_number(examples, q, _q(q))
    return _elementwise.value(_QUANTILE, x, a, examples, (q,))


@watched(_debug.regression)
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

    Where prediction and target are equal it is 0.

    Args:
        pred: as for `quantile`.
        target: as for `quantile`.
        q: as for `quantile`.
        where: as for `quantile`; the gradient of what is masked is 0.
        weights: as for `quantile`.
        reduction: as for `quantile`; `"none"` gives the derivative of each element's own loss, as does `"sum"`.
        normalizer: as for `quantile`.

    Returns:
        An array like `pred`.

    Raises:
        TypeError: as `quantile`.
        ValueError: as `quantile`.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_quantile(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0]), q=0.75))
    [-0.375  0.125]
    """
    x, a, examples = _checked(pred, target, where, weights, reduction, normalizer)
    examples, q = _with_number(examples, q, _q(q))
    return of_dtype(_elementwise.gradient(_QUANTILE, x, a, examples, (q,)), array("pred", pred).dtype)


@watched(_debug.counts)
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

    $x$ is the logarithm of the predicted rate, which is positive then, whatever $x$ is. The constant that is left out,
    $\log a!$, changes no gradient with respect to $x$; add `jax.scipy.special.gammaln(target + 1)` for the whole
    likelihood.

    The sum is over all elements, $n$ is the batch size: the length of the first axis, not the number of elements.

    Args:
        log_rate: logarithms $x$ of rates, `[n, ...]`, of any shape; float32, bfloat16, float16 or float64. Each element
            of a 1-D or 0-D array is an example.
        target: counts $a$, of the same shape; any real type, not negative.
        where: a boolean mask, false for what is masked: its loss and gradient are exactly 0, even where it holds NaN.
            Shape `[n]`, or an axis for each of `log_rate`, as long or 1, or `()`; nothing else broadcasts. $n$ counts
            the examples of which any element is unmasked. Default: all count.
        weights: numbers that examples' losses are multiplied by, of the shapes that `where` may have; $n$ stays.
            Default: 1.
        reduction: `"mean"` divides the sum by $n$, `"sum"` does not, `"none"` returns the loss of each element.
        normalizer: a number or scalar array that replaces $n$ in `"mean"`.

    Returns:
        A scalar, or for `"none"` an array like `log_rate`; float64 where rates or target are, else float32. The loss is
        differentiable with respect to `log_rate`, `target`, `weights` and `normalizer`; a mean over no example is 0.

    Raises:
        TypeError: `log_rate` is not floating-point, or another argument is of the wrong kind.
        ValueError: shapes do not match, or an option has no such value.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.poisson_nll(jnp.array([0.0, 1.0]), jnp.array([1, 3])))
    0.35914

    Source: A. C. Cameron and P. K. Trivedi, *Regression Analysis of Count Data* (1998), section 3.2.
    """
    x, a, examples = _checked(log_rate, target, where, weights, reduction, normalizer, "log_rate")
    return _elementwise.value(_POISSON_NLL, x, a, examples)


@watched(_debug.counts)
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

    Args:
        log_rate: as for `poisson_nll`.
        target: as for `poisson_nll`.
        where: as for `poisson_nll`; the gradient of what is masked is 0.
        weights: as for `poisson_nll`.
        reduction: as for `poisson_nll`; `"none"` gives the derivative of each element's own loss, as does `"sum"`.
        normalizer: as for `poisson_nll`.

    Returns:
        An array like `log_rate`.

    Raises:
        TypeError: as `poisson_nll`.
        ValueError: as `poisson_nll`.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_poisson_nll(jnp.array([0.0, 0.0]), jnp.array([1, 3])))
    [ 0. -1.]
    """
    x, a, examples = _checked(log_rate, target, where, weights, reduction, normalizer, "log_rate")
    return of_dtype(_elementwise.gradient(_POISSON_NLL, x, a, examples), array("log_rate", log_rate).dtype)


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
