"""Losses of predictions of numbers."""

import jax.numpy as jnp

from jaxloss import _arguments, _elementwise, _examples, formulas
from jaxloss._calls import Array

_SQUARED_ERROR = _elementwise.Elementwise(
    name="mse",
    value=formulas.squared_error,
    derivative=formulas.d_squared_error,
    target_derivative=lambda pred, target: -formulas.d_squared_error(pred, target),
)


def mse(pred, target, *, where=None, weights=None, reduction="mean", normalizer=None) -> Array:
    r"""Mean squared error.

    $$\mathrm{mse}(x, a) = \frac1n \sum \tfrac12 (x - a)^2, \qquad \frac{\partial}{\partial x} = \frac{x - a}{n}$$

    The sum is over all elements, $n$ is the batch size: the length of the first axis, not the number of elements.

    Args:
        pred: predictions $x$, `[n, ...]`, of any shape; float32, bfloat16, float16 or float64. Each element of a 1-D or
            0-D array is an example.
        target: $a$, of the same shape; any real type.
        where: booleans, false for what is left out: its loss and gradient are exactly 0, even where it holds NaN. Shape
            `[n]`, or one that broadcasts to `pred`. $n$ counts the examples of which any element is left in. Default:
            all count.
        weights: numbers that examples' losses are multiplied by, `[n]` or broadcasting to `pred`; $n$ stays. Default:
            1.
        reduction: `"mean"` divides the sum by $n$, `"sum"` does not, `"none"` returns the loss of each element.
        normalizer: a number or scalar array that replaces $n$ in `"mean"`.

    Returns:
        A scalar, or for `"none"` an array like `pred`; float64 for float64 predictions, else float32. The loss is
        differentiable with respect to `pred`, `target`, `weights` and `normalizer`; a mean over no example is 0.

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


def d_mse(pred, target, *, where=None, weights=None, reduction="mean", normalizer=None) -> Array:
    """The gradient of `mse` with respect to `pred`: $(x - a) / n$.

    Args:
        pred: as for `mse`.
        target: as for `mse`.
        where: as for `mse`; the gradient of what is left out is 0.
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
    return _elementwise.gradient(_SQUARED_ERROR, x, a, examples).astype(jnp.asarray(pred).dtype)


def _checked(pred, target, where, weights, reduction, normalizer):
    pred = _arguments.prediction("pred", pred)
    target, pred = _arguments.probabilities(target, "pred", pred)
    return pred, target, _examples.checked(where, weights, reduction, normalizer)
