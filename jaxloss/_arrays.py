"""What every layer says of arrays: one value a row, rows that are masked, the mesh axes that a type varies over.

Everywhere: `x` is `[rows..., features...]`; `row_weight` has the first axes of `x`; losses and statistics have the
rows' axes. A row weight of `MASKED` marks a row of which nothing is read and for which zeros are written.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Formula = Callable[..., Array]
Function = TypeVar("Function", bound=Callable[..., Any])
Tree = TypeVar("Tree")

MASKED = -0.0
"""The weight of a masked row: an ordinary weight of 0 still wants its row's loss, for its own gradient."""


def inlined(static_argnums: int | tuple[int, ...] = ()) -> Callable[[Function], Function]:
    """Makes a function one program where it is called eagerly, and part of its caller's where that is traced."""
    return cast(Any, functools.partial(jax.jit, static_argnums=static_argnums, inline=True))


def is_masked(row_weight: Array) -> Array:
    """Whether each row is masked."""
    return (row_weight == 0) & jnp.signbit(row_weight)


def unmasked(row_weight: Array) -> Array:
    """The weights, of which a zero is not `MASKED`, whatever its sign was; its derivative stays 1."""
    return row_weight - jax.lax.stop_gradient(jnp.where(is_masked(row_weight), row_weight, 0))


def as_stored(operands: Tree) -> Tree:
    """The arrays of a tree, those of 16 bits as a kernel reads them: for formulas beside what a kernel has given.

    A compiler may take numbers that it has rounded to 16 bits, the logits of a product, as they were before in a
    formula, to which the maximum of their row and the sum relative to it then do not belong.
    """

    def stored(x):
        is_narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize == 2
        return jax.lax.optimization_barrier(x) if is_narrow else x

    return jax.tree.map(stored, operands)


def along(row_values: Array, x: Array) -> Array:
    """One value a row, to be broadcast along the other axes of `x`."""
    return jax.lax.expand_dims(row_values, range(row_values.ndim, x.ndim))


def sizes_known(x: Array) -> bool:
    """Whether none of them is known to the call of an exported program alone."""
    return all(isinstance(size, int) for size in x.shape)


def manual_axes(*operands: Array) -> tuple[str, ...]:
    """The mesh axes of an enclosing `shard_map` that any of the operands varies over."""
    return tuple(sorted(set().union(*(jax.typeof(operand).manual_axis_type.varying for operand in operands))))


def varying(axes: Sequence[str], x: Array) -> Array:
    """`x` with a type that varies over `axes`, as it may already over some."""
    missing = tuple(axis for axis in axes if axis not in jax.typeof(x).manual_axis_type.varying)
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def promoted(*operands: Any) -> np.dtype:
    """The type that the operands, arrays or types, promote to: on purpose, so also under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*operands)


def like(x: Array, dtype=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)


def weighted(row_weight: Array, values: Array) -> Array:
    """Values of rows times the rows' weights; a weight of 0 masks even what is not finite."""
    weight = along(row_weight, values)
    return jnp.where((weight == 0) & ~jnp.isfinite(values), 0, weight * values)


def without_masked(row_weight: Array, rows: Sequence[Array]) -> tuple[Array, ...]:
    """Numbers of rows, 0 for the masked rows."""
    return tuple(jnp.where(is_masked(along(row_weight, of_rows)), 0, of_rows) for of_rows in rows)
