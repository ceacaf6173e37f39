"""Numbers that a loss itself is made with: Python numbers are checked, arrays are operands that may be traced."""

import math

import jax.numpy as jnp

from jaxloss._calls import Array


def number(name: str, x, expected: str, valid) -> Array:
    """A scalar option; `valid` tells of a Python number whether it is `expected`."""
    if x is None:
        raise TypeError(f"{name} is None: expected {expected}")
    if isinstance(x, int | float) and not isinstance(x, bool) and (not math.isfinite(x) or not valid(x)):
        raise ValueError(f"{name} is {x!r}: expected {expected}")
    x = real_array(name, x)
    if x.shape:
        raise ValueError(f"{name} has shape {x.shape}: expected a scalar, {expected}")
    return x


def per_class(name: str, x, logits: Array, otherwise: str = "") -> Array:
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


def real_array(name: str, x) -> Array:
    """`x` as an array of a floating-point or integer type."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {x.dtype}: expected a floating-point or integer type")
    return x
