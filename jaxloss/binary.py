"""Losses of two classes, or of many that do not exclude each other."""

import functools

import jax.numpy as jnp

from jaxloss import _arguments, _elementwise, _examples, formulas
from jaxloss._calls import Array


@functools.cache
def _cross_entropy(clip: float) -> _elementwise.Elementwise:
    return _elementwise.Elementwise(
        name="binary_cross_entropy",
        value=functools.partial(formulas.binary_cross_entropy, clip=clip),
        derivative=formulas.d_binary_cross_entropy,
        target_derivative=lambda logits, target: -formulas.real(logits),
        parameters=(clip,),
    )


def binary_cross_entropy(
    logits, target, *, where=None, weights=None, clip: float | None = 1e-7, reduction="mean", normalizer=None
) -> Array:
    r"""Binary cross entropy, with the sigmoid inside.

    $$\frac1n \sum -a \log t - (1 - a) \log(1 - t), \quad t = \sigma(x),
      \qquad \frac{\partial}{\partial x} = \frac{t - a}{n}$$

    The sum is over all elements, $n$ is the batch size: the length of the first axis, not the number of elements.

    Args:
        logits: $x$, `[n, ...]`, of any shape; float32, bfloat16, float16 or float64. Each element of a 1-D or 0-D array
            is an example. Infinite logits that agree with the target are fine.
        target: probabilities $a$, of the same shape; integers and booleans are probabilities 0 and 1.
        where: booleans, false for what is left out: its loss and gradient are exactly 0, even where it holds NaN. Shape
            `[n]`, or one that broadcasts to `logits`. $n$ counts the examples of which any element is left in. Default:
            all count.
        weights: numbers that examples' losses are multiplied by, `[n]` or broadcasting to `logits`; $n$ stays. Default:
            1.
        clip: the value is that of $t$ clipped to `[clip, 1 - clip]`. The gradient is never clipped, so that a saturated
            prediction still learns. None for the exact value.
        reduction: `"mean"` divides the sum by $n$, `"sum"` does not, `"none"` returns the loss of each element.
        normalizer: a number or scalar array that replaces $n$ in `"mean"`.

    Returns:
        A scalar, or for `"none"` an array like `logits`; float64 for float64 logits, else float32. The loss is
        differentiable with respect to `logits`, `target`, `weights` and `normalizer`; a mean over no example is 0.

    Raises:
        TypeError: `logits` is not floating-point, or another argument is of the wrong kind.
        ValueError: shapes do not match, or an option has no such value.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> logits, target = jnp.array([0.0, 2.0]), jnp.array([1, 0])
    >>> print(jaxloss.binary_cross_entropy(logits, target))
    1.41004
    >>> print(jax.grad(jaxloss.binary_cross_entropy)(logits, target))
    [-0.25    0.44040]

    Source: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.3.2.
    """
    x, a, examples = _checked(logits, target, where, weights, reduction, normalizer)
    return _elementwise.value(_cross_entropy(_arguments.clip_value(clip, 0.5)), x, a, examples)


def d_binary_cross_entropy(
    logits, target, *, where=None, weights=None, clip: float | None = 1e-7, reduction="mean", normalizer=None
) -> Array:
    r"""The gradient of `binary_cross_entropy` with respect to `logits`: $(\sigma(x) - a) / n$.

    Args:
        logits: as for `binary_cross_entropy`.
        target: as for `binary_cross_entropy`.
        where: as for `binary_cross_entropy`; the gradient of what is left out is 0.
        weights: as for `binary_cross_entropy`.
        clip: as for `binary_cross_entropy`; it does not change the gradient.
        reduction: as for `binary_cross_entropy`; `"none"` gives the derivative of each element's own loss, as does
            `"sum"`.
        normalizer: as for `binary_cross_entropy`.

    Returns:
        An array like `logits`.

    Raises:
        TypeError: as `binary_cross_entropy`.
        ValueError: as `binary_cross_entropy`.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_binary_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([1, 0])))
    [-0.25  0.25]
    """
    x, a, examples = _checked(logits, target, where, weights, reduction, normalizer)
    loss = _cross_entropy(_arguments.clip_value(clip, 0.5))
    return _elementwise.gradient(loss, x, a, examples).astype(jnp.asarray(logits).dtype)


def _checked(logits, target, where, weights, reduction, normalizer):
    logits = _arguments.prediction("logits", logits)
    target, logits = _arguments.probabilities(target, "logits", logits)
    return logits, target, _examples.checked(where, weights, reduction, normalizer)
