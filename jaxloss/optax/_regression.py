"""optax's regression losses."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._arrays import Array
from jaxloss._checks.arrays import array
from jaxloss._docs.described import described
from jaxloss.optax._docs import ERRORS, ERRORS_OF_ONE_SHAPE
from jaxloss.optax._operands import broadcast, floating, number, of_type, one_program, wide, with_derivatives


@one_program
@described(ERRORS_OF_ONE_SHAPE)
def squared_error(predictions: ArrayLike, targets: ArrayLike | None = None) -> Array:
    r"""The square of each error, $(x - a)^2$.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.squared_error(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0])))
    [1. 4.]
    """
    errors = _equal_shapes(predictions, targets)
    return of_type(errors * errors, *_operands(predictions, targets))


@one_program
@described(ERRORS_OF_ONE_SHAPE)
def l2_loss(predictions: ArrayLike, targets: ArrayLike | None = None) -> Array:
    r"""Half the square of each error, $\frac12 (x - a)^2$.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.l2_loss(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0])))
    [0.5 2. ]

    Source: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 1.1, for the factor ½.
    """
    errors = _equal_shapes(predictions, targets)
    return of_type(0.5 * errors * errors, *_operands(predictions, targets))


@one_program
@described(ERRORS)
def huber_loss(predictions: ArrayLike, targets: ArrayLike | None = None, *, delta: ArrayLike = 1.0) -> Array:
    r"""The Huber loss of each error: $\frac12 e^2$ up to $\delta$, $\delta (|e| - \frac12 \delta)$ beyond.

    Args:
        delta: $\delta$, a number or an array that broadcasts with the errors; the loss is differentiable in it too.

    Raises:
        ValueError: shapes do not broadcast, or `delta` is a negative number.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.huber_loss(jnp.array([0.5, 3.0])))
    [0.125 2.5  ]

    Source: P. J. Huber, *Robust Estimation of a Location Parameter* (1964).
    """
    if isinstance(delta, int | float) and not delta >= 0:
        raise ValueError(f"delta is {delta}: expected a number that is not negative")
    errors, operands = _errors(predictions, targets), (*_operands(predictions, targets), delta)
    delta = wide(number("delta", delta))
    broadcast(errors=errors, delta=delta)
    return of_type(_huber(errors, delta), *operands)


@one_program
@described(ERRORS)
def log_cosh(predictions: ArrayLike, targets: ArrayLike | None = None) -> Array:
    r"""The logarithm of the hyperbolic cosine of each error, $\log \cosh(x - a)$.

    Args:
        targets: $a$; broadcasts with `predictions`. Default: 0.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.log_cosh(jnp.array([1.0, 100.0])))
    [ 0.43378 99.30685 ]

    Source: P. Chen, G. Chen and S. Zhang, *Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder* (2018).
    """
    return of_type(_log_cosh(_errors(predictions, targets)), *_operands(predictions, targets))


def _operands(predictions: ArrayLike, targets: ArrayLike | None) -> tuple[ArrayLike, ...]:
    return (predictions,) if targets is None else (predictions, targets)


def _equal_shapes(predictions: ArrayLike, targets: ArrayLike | None) -> Array:
    if targets is not None:
        found, expected = array("targets", targets).shape, array("predictions", predictions).shape
        if found != expected:
            raise ValueError(f"targets has shape {found}, predictions {expected}: expected equal shapes")
    return _errors(predictions, targets)


def _errors(predictions: ArrayLike, targets: ArrayLike | None) -> Array:
    x = floating("predictions", predictions)
    if targets is None:
        return wide(x)
    a = number("targets", targets)
    broadcast(predictions=x, targets=a)
    return wide(x) - wide(a)


def _huber_value(errors: Array, delta: Array) -> Array:
    size = jnp.abs(errors)
    return jnp.where(size <= delta, 0.5 * errors * errors, delta * (size - 0.5 * delta))


def _huber_by_error(errors: Array, delta: Array) -> Array:
    return jnp.clip(errors, -delta, delta)


def _huber_by_delta(errors: Array, delta: Array) -> Array:
    return jnp.maximum(jnp.abs(errors) - delta, 0)


_huber = with_derivatives(_huber_value, _huber_by_error, _huber_by_delta)


def _log_cosh_value(errors: Array) -> Array:
    size = jnp.abs(errors)
    near = jnp.log1p(2 * jnp.square(jnp.sinh(0.5 * jnp.minimum(size, 1))))  # no digits cancel where the loss is small
    return jnp.where(size < 1, near, size + jnp.log1p(jnp.exp(-2 * size)) - jnp.log(2.0).astype(size.dtype))


_log_cosh = with_derivatives(_log_cosh_value, jnp.tanh)
