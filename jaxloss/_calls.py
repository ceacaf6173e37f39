"""One typed function for each custom call target, and the formula that stands in where a platform has no kernel.

Everywhere: `x` is `[rows..., features...]`; `row_weight` has the first axes of `x`; losses and statistics have the
rows' axes. A row weight of `TAKEN_OUT` marks a row of which nothing is read and for which zeros are written.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxloss import _library

Array = jax.Array
Formula = Callable[..., Array]
Function = TypeVar("Function", bound=Callable[..., Any])

FEW = 4096
"""Of so few elements, a formula that XLA fuses with what is around it takes less time than starting a kernel."""

EVERYWHERE = ("cpu", "cuda")
"""The platforms that may have kernels."""

TAKEN_OUT = -0.0
"""The weight of a row that is taken out: an ordinary weight of 0 still wants its row's loss, for its own gradient."""


def inlined(static_argnums: int | tuple[int, ...] = ()) -> Callable[[Function], Function]:
    """Makes a function one program where it is called eagerly, and part of its caller's where that is traced."""
    return cast(Any, functools.partial(jax.jit, static_argnums=static_argnums, inline=True))


def taken_out(row_weight: Array) -> Array:
    """Whether each row is taken out."""
    return (row_weight == 0) & jnp.signbit(row_weight)


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


def call(
    name: str,
    results: Sequence[jax.ShapeDtypeStruct],
    formula: Callable,
    *operands: Array,
    aliases: dict[int, int] | None = None,
    few_by_formula: Sequence[str] = (),
    platforms: Sequence[str] = EVERYWHERE,
    **attributes,
) -> Any:
    """The kernel `name` where the platform has it, else the formula. Both give the tuple of results.

    `aliases` says which operand's memory the kernel may write a result to; XLA copies what is still needed.
    `few_by_formula`: the platforms on which the formula is taken where the first operand's elements are at most `FEW`.
    `platforms`: those that may have this kernel.
    """
    # ffi_call forgets which axes of a shard_map its results vary over, and the kernel's types must be the formula's.
    axes = manual_axes(*operands)
    operands = tuple(varying(axes, operand) for operand in operands)

    def kernel(*operands):
        target = jax.ffi.ffi_call(_library.target_name(name), tuple(results), input_output_aliases=aliases)
        outputs = target(*operands, **attributes)
        return tuple(varying(axes, output) for output in outputs)

    def plain(*operands):
        outputs = formula(*operands)
        return tuple(
            varying(axes, output.astype(result.dtype)) for output, result in zip(outputs, results, strict=True)
        )

    few = sizes_known(operands[0]) and operands[0].size <= FEW
    without = few_by_formula if few else ()
    branches = {name: kernel for name in _library.PLATFORMS if name in platforms and name not in without}
    if not branches:
        return plain(*operands)
    return jax.lax.platform_dependent(*operands, default=plain, **branches)


def like(x: Array, dtype=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)


def _sum_of_features(values: Array, row_weight: Array) -> Array:
    total = values.sum(tuple(range(row_weight.ndim, values.ndim)))
    return jnp.where(taken_out(row_weight), 0, total)


def weighted(row_weight: Array, values: Array) -> Array:
    """Values of rows times the rows' weights; a weight of 0 takes out even what is not finite."""
    weight = along(row_weight, values)
    return jnp.where((weight == 0) & ~jnp.isfinite(values), 0, weight * values)


# ---- elementwise losses ---------------------------------------------------------------------------------------------


_PART_BYTES = 16384


def _parts(x: Array, row_rank: int) -> int:
    """In how many pieces a row, whose width may be symbolic, is summed: as much as a block of a GPU has in flight."""
    row_bytes = math.prod(x.shape[row_rank:]) * x.dtype.itemsize
    return jax.core.max_dim(1, (row_bytes + _PART_BYTES - 1) // _PART_BYTES)


def elementwise_value(
    name: str,
    constants: tuple[float, ...],
    features: Sequence[int],
    value: Formula,
    x: Array,
    target: Array,
    row_weight: Array,
    *parameters: Array,
    weighed: bool = False,
) -> tuple[Array]:
    """The sum of the losses of each row's elements; times the row's weight if `weighed`.

    A parameter has the first axes of the rows, and then, if its position is among `features`, the last axis of `x`. The
    formula is given it with the axes that broadcast to `x`.
    """
    parts = _parts(x, row_weight.ndim)
    result = jax.ShapeDtypeStruct((*row_weight.shape, parts), row_weight.dtype)

    def plain(x, target, row_weight, *parameters):
        parameters = parameters_of_elements(_without_last_axis(parameters, features), features, x)
        values = value(x, target, *parameters)
        return (_in_one_part(_sum_of_features(values, row_weight), parts),)

    operands = (x, target, row_weight, *_with_last_axis(parameters, features))
    (losses,) = call(
        *(f"{name}_value", (result,), plain, *operands), few_by_formula=EVERYWHERE, constants=_attribute(constants)
    )
    return (_of_all_parts(losses, row_weight, weighed),)


def elementwise_value_and_grad(
    name: str,
    constants: tuple[float, ...],
    features: Sequence[int],
    value: Formula,
    derivative: Formula,
    x: Array,
    target: Array,
    row_weight: Array,
    *parameters: Array,
    weighed: bool = False,
) -> tuple[Array, Array]:
    """The same, and the gradient with respect to `x` times the row's weight."""
    parts = _parts(x, row_weight.ndim)
    result = jax.ShapeDtypeStruct((*row_weight.shape, parts), row_weight.dtype)

    def plain(x, target, row_weight, *parameters):
        parameters = parameters_of_elements(_without_last_axis(parameters, features), features, x)
        losses = _in_one_part(_sum_of_features(value(x, target, *parameters), row_weight), parts)
        return losses, weighted(row_weight, derivative(x, target, *parameters))

    operands = (x, target, row_weight, *_with_last_axis(parameters, features))
    losses, gradient = call(
        *(f"{name}_value_and_grad", (result, like(x)), plain, *operands),
        few_by_formula=EVERYWHERE,
        constants=_attribute(constants),
    )
    return _of_all_parts(losses, row_weight, weighed), gradient


def parameters_of_elements(parameters: Sequence[Array], features: Sequence[int], x: Array) -> tuple[Array, ...]:
    """The parameters of an elementwise loss of `x`, with axes that broadcast to it."""
    return tuple(
        jax.lax.expand_dims(parameter, range(parameter.ndim - 1, x.ndim - 1))
        if place in features
        else along(parameter, x)
        for place, parameter in enumerate(parameters)
    )


def _with_last_axis(parameters: Sequence[Array], features: Sequence[int]) -> tuple[Array, ...]:
    """As the kernels take them: all with an axis beside those of the rows, of 1 where there are no features."""
    return tuple(parameter if place in features else parameter[..., None] for place, parameter in enumerate(parameters))


def _without_last_axis(parameters: Sequence[Array], features: Sequence[int]) -> tuple[Array, ...]:
    return tuple(parameter if place in features else parameter[..., 0] for place, parameter in enumerate(parameters))


def _attribute(constants: tuple[float, ...]) -> np.ndarray:
    return np.asarray(constants, np.float64)


def _of_all_parts(losses: Array, row_weight: Array, weighed: bool) -> Array:
    # Weighed before, not after: XLA makes a kernel of its own of what follows a sum.
    return (weighted(row_weight, losses) if weighed else losses).sum(-1)


def _in_one_part(losses: Array, parts: int) -> Array:
    return jnp.pad(losses[..., None], [(0, 0)] * losses.ndim + [(0, parts - 1)])


# ---- divergences ----------------------------------------------------------------------------------------------------


def divergence_value(name: str, stats: int, formula: Callable[..., tuple[Array, ...]], *operands: Array):
    """The divergence of each row, and its statistics, so many; the operands are those of the formula of both."""
    x, _, row_weight, *_ = operands

    def plain(*operands):
        return without_taken_out(operands[2], formula(*operands))

    rows = jax.ShapeDtypeStruct(x.shape[:-1], row_weight.dtype)
    return call(f"{name}_value", (rows,) * (1 + stats), plain, *operands)


def divergence_value_and_grad(
    name: str,
    stats: int,
    formula: Callable[..., tuple[Array, ...]],
    derivative: Callable[[tuple, tuple], Array],
    *operands: Array,
):
    """The same, and the gradient with respect to `x` times the row's weight."""
    x, _, row_weight, *_ = operands

    def plain(*operands):
        losses, *stats = formula(*operands)
        gradient = weighted(operands[2], derivative(operands, tuple(stats)))
        losses, *stats = without_taken_out(operands[2], (losses, *stats))
        return losses, gradient, *stats

    rows = jax.ShapeDtypeStruct(x.shape[:-1], row_weight.dtype)
    results = (rows, like(x), *(rows,) * stats)
    losses, gradient, *of_rows = call(f"{name}_value_and_grad", results, plain, *operands)
    return losses, *of_rows, gradient


def without_taken_out(row_weight: Array, rows: Sequence[Array]) -> tuple[Array, ...]:
    """Numbers of rows, 0 for the rows that are taken out."""
    return tuple(jnp.where(taken_out(along(row_weight, of_rows)), 0, of_rows) for of_rows in rows)
