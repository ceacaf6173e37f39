"""What callers pass as arrays, as arrays: or at once an error that names the argument."""

import numbers
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from jaxloss._partitioning.meshes import without_reduced

_PROTOCOLS = ("__jax_array__", "__array__", "__array_interface__", "__cuda_array_interface__", "__dlpack__")


def array(name: str, x: Any) -> jax.Array:
    """`x` as an array; a JAX array as it is, for a conversion to its own type is a program where nothing is traced.

    What JAX would take for a sequence, or convert in minutes, is an error: a sparse array, a string, None.
    """
    if isinstance(x, jax.Array) and not jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return without_reduced(name, x)
    if not _may_be_array(x):
        raise TypeError(f"{name} {found(x)}: expected an array")
    if is_wide(x):
        x = narrowed(x)
    try:
        # A number is put on the device as such, which a transfer guard allows.
        return jax.device_put(x) if isinstance(x, numbers.Number) else jnp.asarray(x)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(x, list | tuple) and _shape(x) is None:
            raise TypeError(f"{name} has type {_type_of(x)}, of unequal lengths: expected an array") from error
        reason = str(error).partition("\n")[0]
        reason = f" ({reason})" if len(reason) <= 200 else ""
        raise TypeError(f"{name} has type {_type_of(x)}, which is no array{reason}: expected an array") from error


def is_wide(x: Any) -> TypeGuard[np.ndarray]:
    """Whether these are integers of 64 bits outside JAX, which has 32 for them."""
    return (
        isinstance(x, np.ndarray | np.generic)
        and x.dtype.kind in "iu"
        and jax.dtypes.canonicalize_dtype(x.dtype).itemsize < x.dtype.itemsize
    )


def narrowed(x: np.ndarray) -> np.ndarray:
    """Wide integers in the type that JAX has for them; what does not fit becomes the nearest.

    JAX itself drops the upper half, and the index 2³² + 3 would be class 3.
    """
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    info = np.iinfo(dtype)
    return np.clip(x, info.min, info.max).astype(dtype)


def of_dtype(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`x` in that type; as it is if that is its own, for the same reason."""
    return x if x.dtype == dtype else x.astype(dtype)


def real_dtype(x: jax.Array) -> np.dtype:
    """The type that losses of `x` are computed in."""
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def axis_moved(x: jax.Array, axis: int, to: int) -> jax.Array:
    """`jnp.moveaxis`; `x` as it is if its axis is there already, for the same reason."""
    return x if axis % x.ndim == to % x.ndim else jnp.moveaxis(x, axis, to)


def found(x: Any) -> str:
    """What an error says of a value that is of the wrong type."""
    if x is None:
        return "is None"
    return "is traced" if isinstance(x, Tracer) else f"has type {_type_of(x)}"


def _type_of(x: Any) -> str:
    if isinstance(x, list | tuple) and (odd := [part for part in x if not _may_be_array(part)]):
        odd = odd[0]
        while isinstance(odd, list | tuple):
            odd = next(part for part in odd if not _may_be_array(part))
        return f"{type(x).__name__} with one of type {_type_of(odd)} in it"
    dtype = f" of dtype {x.dtype}" if isinstance(x, jax.Array | np.ndarray | np.generic) else ""
    return f"{'Array' if isinstance(x, jax.Array) else type(x).__name__}{dtype}"


def _shape(x: Any) -> tuple[int, ...] | None:
    """The shape of nested lists; None if there is none."""
    if not isinstance(x, list | tuple):
        return np.shape(x)
    first, *others = {_shape(part) for part in x} or {()}
    return None if first is None or others else (len(x), *first)


def _may_be_array(x: Any) -> bool:
    if isinstance(x, list | tuple):
        return all(map(_may_be_array, x))
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        return not jnp.issubdtype(x.dtype, jax.dtypes.extended) and x.dtype.kind not in "OSUMm"
    if isinstance(x, type):
        return False
    return isinstance(x, numbers.Number) or any(hasattr(x, protocol) for protocol in _PROTOCOLS)
