"""Which examples count and what they weigh, folded into one weight a row: all that a kernel needs to know of it."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloss._arrays import MASKED, Array, unmasked


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("where", "weights", "normalizer", "share"),
    meta_fields=("reduction", "by_weights"),
)
@dataclasses.dataclass(frozen=True)
class Examples:
    """The options that all losses share.

    Attributes:
        where: booleans, or None for all true.
        weights: numbers, or None for all 1.
        reduction: one of `REDUCTIONS`.
        normalizer: what replaces the number of examples, or None.
        by_weights: "mean" divides by the sum of what the examples that count weigh, not by their number.
        share: what each row weighs in that sum besides its weight, or None for 1.
    """

    where: Array | None
    weights: Array | None
    reduction: str
    normalizer: Array | None
    by_weights: bool = False
    share: Array | None = None


class Described(NamedTuple):
    """What an error calls the array that others are about.

    Attributes:
        name: as the caller knows it.
        shape: its shape; None for that which it stands for.
        last: what its last axis is.
        unmasked: what to do to mask classes.
    """

    name: str = "the prediction"
    shape: tuple[int, ...] | None = None
    last: str = "classes"
    unmasked: str = "give them a logit of -Inf"


PREDICTION = Described()


def leading(name: str, x: Array, shape: tuple[int, ...], example_rank: int, row_rank: int, written: str = "") -> Array:
    """`x` with the first axes of `shape` and no others, as far as it varies along them.

    Axes are never aligned to the right, as NumPy aligns them: an array of fewer axes than the prediction has would be
    about examples or about features, as their numbers happen to be.

    Args:
        name: the argument's name.
        x: an array of the shape of the examples (the first `example_rank` axes of `shape`); or one of as many axes as
            `shape`, each as long or 1, and 1 beyond the first `row_rank`; or a scalar.
        shape: the prediction's.
        example_rank: how many axes the examples have.
        row_rank: how many axes may be told apart.
        written: what an error calls the argument in the expression that it advises, if that is not its name.
    """
    check_leading(name, x, shape, example_rank, row_rank, written)
    if x.shape == shape[:example_rank]:
        return x
    rank = max((axis + 1 for axis, size in enumerate(x.shape) if size != 1), default=0)
    return jnp.broadcast_to(x.reshape(x.shape[:rank]), shape[:rank])


def check_leading(
    name: str,
    x: Array,
    shape: tuple[int, ...],
    example_rank: int,
    row_rank: int,
    written: str = "",
    of: Described = PREDICTION,
) -> None:
    """That `x` is what `leading` takes, of an array that an error describes so."""
    if x.shape == shape[:example_rank] or not x.ndim or _broadcasts(x.shape, shape, row_rank):
        return
    raise _shape_error(name, x, shape, example_rank, row_rank, written or name, of)


def _broadcasts(found: tuple[int, ...], shape: tuple[int, ...], row_rank: int) -> bool:
    """Whether an array of this shape has every axis of the prediction, each as long or 1, and 1 beyond the rows."""
    return len(found) == len(shape) and all(
        have == 1 or (have == want and axis < row_rank)
        for axis, (have, want) in enumerate(zip(found, shape, strict=True))
    )


def _shape_error(
    name: str, x: Array, shape: tuple[int, ...], example_rank: int, row_rank: int, written: str, of: Described
) -> ValueError:
    """The error, which says what to write where missing axes are all that is wrong."""
    missing = len(shape) - x.ndim
    advice = []
    for index, axes in (
        (", ".join(["...", *["None"] * missing]), ("first", x.shape + (1,) * missing)),
        (", ".join(["None"] * missing), ("last", (1,) * missing + x.shape)),
    ):
        which, whole = axes
        if missing > 0 and _broadcasts(whole, shape, row_rank):
            advice.append(f"{written}[{index}] if its axes are {of.name}'s {which}")
    if x.shape == (*shape[:example_rank], 1):
        advice.append(f"{written}[..., 0]")
    of_classes = (
        name == "where" and row_rank < len(shape) and x.shape in (shape, shape[-1:], (*(1,) * row_rank, shape[-1]))
    )
    return ValueError(
        f"{name} has shape {x.shape}, {of.name} {of.shape or shape}: expected the shape of the examples "
        f"{shape[:example_rank]}, or an axis for each of {of.name}'s, as long or 1"
        + (f" and 1 along the {of.last}" if row_rank < len(shape) else "")
        + (f"; write {', or '.join(advice)}" if advice else "")
        + (f"; to mask classes, {of.unmasked}" if of_classes and not advice else "")
    )


def along_rows(x: Array, rows: tuple[int, ...]) -> Array:
    """An array of the first axes of rows, for each of them."""
    return jnp.broadcast_to(jax.lax.expand_dims(x, range(x.ndim, len(rows))), rows)


def row_weight(
    examples: Examples, shape: tuple[int, ...], dtype, *, example_rank: int, row_rank: int, least_rank: int = 0
) -> Array:
    """The weight of each row: 1/n, `weights`, and `MASKED` where `where` is false.

    It has as many of the prediction's first axes as the options vary along, none if all rows weigh the same; at least
    `least_rank` of them, and at most `row_rank`.
    """
    where, weights = (
        None if x is None else leading(name, x, shape, example_rank, row_rank)
        for name, x in (("where", examples.where), ("weights", examples.weights))
    )
    rank = max(least_rank, *(0 if x is None else x.ndim for x in (where, weights)))
    if where is not None and weights is not None and where.ndim <= weights.ndim:
        # What a masked row weighs may be NaN, and in the derivative of what a mean divides by it would stay one.
        rows = shape[: weights.ndim]
        weights = jnp.where(along_rows(where, rows), along_rows(weights, rows), 0)

    weight = jnp.ones((), dtype)
    if weights is not None:
        weight = weights.astype(dtype)
    if examples.reduction == "mean":
        by_weights = examples.by_weights
        n = (_weight_sum if by_weights else _count)(examples, where, weights, shape, example_rank, dtype)
        share = inverse(n)
        # What weighs 0 has no part in the derivative with respect to n either, whatever its loss is.
        weight = weight * jnp.where(weight == 0, jax.lax.stop_gradient(share), share)
    weight = along_rows(unmasked(weight), shape[:rank])
    return weight if where is None else jnp.where(along_rows(where, shape[:rank]), weight, MASKED)


def _weight_sum(examples: Examples, where, weights, shape: tuple[int, ...], example_rank: int, dtype) -> Array:
    """What "mean" divides by where `by_weights`: the sum of what the rows that count weigh."""
    rows = shape[:example_rank]
    weight = jnp.ones(rows, dtype) if examples.share is None else examples.share.astype(dtype)
    if weights is not None:
        weight = weight * along_rows(weights.astype(dtype), rows)
    if where is not None:
        weight = jnp.where(along_rows(where, rows), weight, 0)
    return weight.sum()


def _count(examples: Examples, where, weights, shape: tuple[int, ...], example_rank: int, dtype) -> Array:
    """What "mean" divides by: the number of examples of which any element counts."""
    del weights
    if examples.normalizer is not None:
        return examples.normalizer.astype(dtype)
    if where is None:
        return jnp.asarray(math.prod(shape[:example_rank]), dtype)
    if where.ndim > example_rank:
        where = where.any(tuple(range(example_rank, where.ndim)))
    repeats = math.prod(shape[where.ndim : example_rank])
    return where.sum(dtype=dtype) * repeats


def inverse(n: Array) -> Array:
    """1 / n, and 0 for n = 0: a mean over nothing is 0."""
    return jnp.where(n == 0, 0, 1 / jnp.where(n == 0, 1, n))
