"""Numbers that a loss itself is made with: what is known is checked, what a JAX array holds may be traced."""

import numbers
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxloss._arrays import Array, inlined
from jaxloss._checks.arrays import array, found
from jaxloss._types import Interval


def number(name: str, x: Any, interval: Interval, otherwise: str = "", *, scalar: bool = True) -> Array:
    """An option that is a number of the interval, `otherwise` says what else; of any shape if it need not be a scalar.

    A number of Python or NumPy is checked. What else an array holds, which may be traced, becomes NaN where it is not
    of the interval: the loss may look sound there.
    """
    expected = f"{interval.words}{otherwise}"
    is_number = isinstance(x, int | float | np.generic) and not isinstance(x, bool)
    if not is_number and not isinstance(x, np.ndarray | Array) and not hasattr(x, "__jax_array__"):
        raise TypeError(f"{name} {found(x)}: expected {expected}")
    array = real_array(name, x)
    if scalar and array.shape:
        raise ValueError(f"{name} has shape {array.shape}: expected a scalar, {expected}")
    if is_known(x) and not interval.contains(x):
        raise ValueError(f"{name} is {x}: expected {expected}")
    return array if is_known(x) else _nan_outside(interval, array)


def is_known(x: Any) -> bool:
    """Whether `x` is a number of Python or NumPy, which is checked before anything is traced."""
    return isinstance(x, int | float | np.generic) or (isinstance(x, np.ndarray) and not x.shape)


@inlined(static_argnums=0)
def _nan_outside(interval: Interval, x: Array) -> Array:
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
    return jnp.where(interval.contains(x), x, jnp.nan)


def integer(name: str, x: Any) -> int:
    """An option that counts something, which is compiled in."""
    if not isinstance(x, numbers.Integral) or isinstance(x, bool):
        raise wrong_type(name, x, "int")
    return int(x)


def choice(name: str, x: Any, words: Sequence[str]) -> None:
    """An option that is one of a few words."""
    expected = f"one of {', '.join(map(repr, words))}"
    if isinstance(x, Tracer):
        raise wrong_type(name, x, expected)
    if not isinstance(x, str) or x not in words:
        raise ValueError(f"{name} is {x!r}: expected {expected}")


def wrong_type(name: str, x: Any, expected: str) -> TypeError:
    """The error for an option that is compiled in."""
    hint = "; name it in static_argnames of jax.jit" if isinstance(x, Tracer) else ""
    return TypeError(f"{name} {found(x)}: expected {expected}{hint}")


def per_class(name: str, x: Any, logits: Array, otherwise: str = "") -> Array:
    """An option with one number for each index of the last axis of the logits, or `otherwise`."""
    x = real_array(name, x)
    if logits.ndim == 0:
        raise ValueError(f"{name} has shape {x.shape}, logits (): expected logits with an axis of classes")
    if x.shape != logits.shape[-1:]:
        raise ValueError(
            f"{name} has shape {x.shape}, logits {logits.shape}: expected {logits.shape[-1:]}, one number for each "
            f"index of the last axis{otherwise}"
        )
    return x


def real_array(name: str, x: Any, if_boolean: str = "") -> Array:
    """`x` as an array of a floating-point or integer type; an error for booleans ends with `if_boolean`."""
    if isinstance(x, np.ndarray | np.generic) and x.dtype.name in ("int64", "uint64"):
        x = x.astype(np.float64)  # a number, not an index: JAX may have 32 bits for integers only
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.integer):
        hint = if_boolean if x.dtype == jnp.bool_ else ""
        raise TypeError(f"{name} has dtype {x.dtype}: expected a floating-point or integer type{hint}")
    return x
