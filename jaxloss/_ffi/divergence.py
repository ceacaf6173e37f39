"""The custom call targets of divergences, and the formulas that stand in for them."""

from collections.abc import Callable

import jax

from jaxloss._arrays import Array, like, weighted, without_masked
from jaxloss._ffi.call import call


def divergence_value(name: str, stats: int, formula: Callable[..., tuple[Array, ...]], *operands: Array):
    """The divergence of each row, and its statistics, so many; the operands are those of the formula of both."""
    x, _, row_weight, *_ = operands

    def plain(*operands):
        return without_masked(operands[2], formula(*operands))

    rows = jax.ShapeDtypeStruct(x.shape[:-1], row_weight.dtype)
    return call(f"{name}_value", (rows,) * (1 + stats), plain, *operands)


def divergence_value_and_grad(
    name: str,
    stats: int,
    formula: Callable[..., tuple[Array, ...]],
    derivative: Callable[[tuple, tuple], Array],
    *operands: Array,
    in_place: bool = False,
):
    """The same, and the gradient with respect to `x` times the row's weight.

    `in_place`: it may overwrite `x`, which a CPU's kernel does not do: the last elements of a row are read twice there.
    """
    x, _, row_weight, *_ = operands

    def plain(*operands):
        losses, *stats = formula(*operands)
        gradient = weighted(operands[2], derivative(operands, tuple(stats)))
        losses, *stats = without_masked(operands[2], (losses, *stats))
        return losses, gradient, *stats

    rows = jax.ShapeDtypeStruct(x.shape[:-1], row_weight.dtype)
    results = (rows, like(x), *(rows,) * stats)
    losses, gradient, *of_rows = call(
        f"{name}_value_and_grad",
        results,
        plain,
        *operands,
        aliases={0: 1} if in_place else None,
        platforms_in_place=("cuda",),
    )
    return losses, *of_rows, gradient
