"""Numbers of a few classes of each row, read from those of all classes and written among them."""

import math

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, sizes_known
from jaxloss._partitioning.meshes import mesh_of


def at_classes(of_classes: Array, indices: Array, here: Array) -> Array:
    """The numbers `[..., V]` of the classes with these indices `[..., K]`, of any class for those that are not here."""
    if mesh_of([of_classes, indices]).explicit_axes:  # a gather would need its output sharding
        is_entry = formulas.one_hot(indices, of_classes.shape[-1])
        return jnp.sum(jnp.where(is_entry, of_classes[..., None, :], 0), -1)
    return jnp.take_along_axis(of_classes, jnp.where(here, indices, 0), -1)


def class_weights_at(class_weights: Array, indices: Array, here: Array) -> Array:
    """The weights of those classes, of which rows may have their own."""
    of_rows = jax.lax.expand_dims(class_weights, range(class_weights.ndim - 1, indices.ndim - 1))
    return at_classes(of_rows, indices, here)


def written(array: Array, indices: Array, here: Array, values: Array) -> Array:
    """The array `[..., V]` with values `[..., K]` at the classes that are here, in place."""
    index, values = jnp.where(here, indices, array.shape[-1]), values.astype(array.dtype)
    if array.dtype.itemsize > 2:
        return _scattered(array, index, values)
    on_cpu = _selected if index.shape[-1] <= 2 else _scattered_as_integers
    return jax.lax.platform_dependent(array, index, values, cpu=on_cpu, default=_scattered)


def _selected(array: Array, index: Array, values: Array) -> Array:
    """The same of 16-bit floats: XLA's scatter on a CPU would widen the array, all of it, or need it twice."""
    for place in range(index.shape[-1]):
        is_class = formulas.one_hot(index[..., place], array.shape[-1])
        array = jnp.where(is_class, values[..., place, None], array)
    return array


def _scattered_as_integers(array: Array, index: Array, values: Array) -> Array:
    """The same of many classes, of which each would be one more comparison of all."""
    array_bits, value_bits = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (array, values))
    return jax.lax.bitcast_convert_type(_scattered(array_bits, index, value_bits), array.dtype)


def _scattered(array: Array, index: Array, values: Array) -> Array:
    """An index beyond the last axis is not written."""
    rows, width, count = math.prod(array.shape[:-1]), array.shape[-1], index.shape[-1]
    index, values = index.reshape(rows, count), values.reshape(rows, count)
    if sizes_known(array) and array.size <= jnp.iinfo(jnp.int32).max:
        # Along one axis a CPU writes faster.
        place = width * jnp.arange(rows, dtype=jnp.int32)[:, None] + index
        place = jnp.where(index < width, place, array.size)
        return array.reshape(-1).at[place.ravel()].set(values.ravel(), mode="drop").reshape(array.shape)
    written = array.reshape(rows, width).at[jnp.arange(rows)[:, None], index].set(values, mode="drop")
    return written.reshape(array.shape)
