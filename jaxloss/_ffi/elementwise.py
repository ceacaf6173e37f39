"""The custom call targets of elementwise losses, and the formulas that stand in for them."""

import math
from collections.abc import Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxloss._arrays import Array, Formula, along, is_masked, like, weighted
from jaxloss._ffi.call import EVERYWHERE, call

_PART_BYTES = 16384
"""Of a row, that are summed together: as much as a block of a GPU has in flight."""

_PART_BYTES_OF = {("binary_cross_entropy", 2): 32768}
"""By the loss and the bytes of a number: what a block does once is much, where memory leaves little time for it."""


def _parts(name: str, x: Array, row_rank: int) -> int:
    """In how many pieces a row, whose width may be symbolic, is summed."""
    row_bytes = math.prod(x.shape[row_rank:]) * x.dtype.itemsize
    part_bytes = _PART_BYTES_OF.get((name, x.dtype.itemsize), _PART_BYTES)
    return jax.core.max_dim(1, (row_bytes + part_bytes - 1) // part_bytes)


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
    parts = _parts(name, x, row_weight.ndim)
    result = jax.ShapeDtypeStruct((*row_weight.shape, parts), row_weight.dtype)

    def plain(x, target, row_weight, *parameters):
        parameters = parameters_of_elements(_without_last_axis(parameters, features), features, x)
        values = value(x, target, *parameters)
        return (_in_one_part(_sum_of_features(values, row_weight), parts),)

    operands = (x, target, row_weight, *_with_last_axis(parameters, features))
    (losses,) = call(
        *(f"{name}_value", (result,), plain, *operands), fallback_platforms=EVERYWHERE, constants=_attribute(constants)
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
    parts = _parts(name, x, row_weight.ndim)
    result = jax.ShapeDtypeStruct((*row_weight.shape, parts), row_weight.dtype)

    def plain(x, target, row_weight, *parameters):
        parameters = parameters_of_elements(_without_last_axis(parameters, features), features, x)
        losses = _in_one_part(_sum_of_features(value(x, target, *parameters), row_weight), parts)
        return losses, weighted(row_weight, derivative(x, target, *parameters))

    operands = (x, target, row_weight, *_with_last_axis(parameters, features))
    losses, gradient = call(
        *(f"{name}_value_and_grad", (result, like(x)), plain, *operands),
        fallback_platforms=EVERYWHERE,
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


def _sum_of_features(values: Array, row_weight: Array) -> Array:
    total = values.sum(tuple(range(row_weight.ndim, values.ndim)))
    return jnp.where(is_masked(row_weight), 0, total)
