"""The tests' oracle for many calls at once: `oracles.reduced` of calls whose arrays lie one behind the other.

Elements and rows are looked at once, for all calls together; what a call reduces, it reduces alone.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

import oracles

Array = np.ndarray
Pair = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Exact:
    """Results of calls, along a leading axis; each with the magnitude of its terms.

    Attributes:
        value: of the loss.
        gradients: by the name of the operand, of those that the oracle has one for; times the cotangent.
        terms: how many numbers a value is a sum of.
    """

    value: Pair
    gradients: dict[str, Pair]
    terms: int


def reduced(
    elements: Callable[[Array, Array, float | None], oracles.Terms],
    x: Array,
    a: Array,
    *,
    by_rows: bool,
    axis: int = -1,
    where: Array | None = None,
    ignore_index: int | None = None,
    weights: Array | None = None,
    clip: float | None = 1e-7,
    reduction: str = "mean",
    normalizer: Array | None = None,
    cotangent: Array,
) -> Exact:
    """The loss of each call with its options, and its gradients; every array has the axis of the calls before its own.

    What is no array is the same in all calls. `axis` is one of a call's own prediction.
    """
    calls, shape = len(x), x.shape[1:]
    axis %= max(1, len(shape))
    units = shape if not by_rows else shape[:axis] + shape[axis + 1 :]
    examples = units if by_rows else shape[:1]
    along = _Units(units, examples, axis if by_rows else None)

    counted = np.ones((calls, *units), bool) if where is None else along.spread(where)
    if ignore_index is not None:
        counted = counted & (a != ignore_index)
    if normalizer is not None:
        n = normalizer.astype(np.float64)
    elif where is None and ignore_index is None:
        n = np.full(calls, float(np.prod(examples)))
    else:
        of_examples = counted.any(tuple(range(1 + len(examples), 1 + len(units))))
        n = of_examples.sum(tuple(range(1, 1 + len(examples)))).astype(np.float64)
    with np.errstate(divide="ignore"):
        scale = np.where(n == 0, 0.0, 1 / n) if reduction == "mean" else np.ones(calls)
    scale = scale.reshape(calls, *(1,) * len(units))
    pulled = cotangent.astype(np.float64).reshape(calls, *(cotangent.shape[1:] or (1,) * len(units)))
    weight = np.ones((calls, *units)) if weights is None else along.spread(weights.astype(np.float64))

    each = oracles.reduced(
        elements,
        x,
        a,
        by_rows=by_rows,
        axis=axis + 1,
        where=counted,
        weights=weight * scale,
        clip=clip,
        reduction="none",
        cotangent=np.broadcast_to(pulled, (calls, *units)),
    )
    own = tuple(range(1, 1 + len(units)))
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN
        total = tuple(part.sum(own) for part in each.value)
    gradients = {"x": each.of_prediction, "a": each.of_target}
    if weights is not None:
        assert each.of_weights is not None
        with np.errstate(invalid="ignore"):
            gradients["weights"] = tuple(along.gathered(part * scale, weights.shape[1:]) for part in each.of_weights)
    if normalizer is not None:
        factor = (scale * pulled).reshape(calls)
        with np.errstate(invalid="ignore"):
            gradients["normalizer"] = total[0] * -factor, total[1] * abs(factor)
    value = each.value if reduction == "none" else total
    return Exact(value, gradients, max(1, int(np.prod(shape))))


@dataclasses.dataclass(frozen=True)
class _Units:
    """The losses of a call before they are reduced, and which of them a number of an option belongs to."""

    shape: tuple[int, ...]
    examples: tuple[int, ...]
    class_axis: int | None

    def spread(self, option: Array) -> Array:
        """An option of each call, for each of its losses."""
        calls, shape, rank = len(option), option.shape[1:], len(self.shape)
        if shape == self.examples:
            option = option.reshape(calls, *shape, *(1,) * (rank - len(shape)))
        elif self.class_axis is not None:
            option = option.reshape(calls, *(1,) * (rank + 1 - len(shape)), *shape)
            option = np.moveaxis(option, 1 + self.class_axis, -1)[..., 0]
        else:
            option = option.reshape(calls, *(1,) * (rank - len(shape)), *shape)
        return np.broadcast_to(option, (calls, *self.shape))

    def gathered(self, values: Array, shape: tuple[int, ...]) -> Array:
        """The transpose of `spread`: added up where they came from the same entry of an array of `shape`."""
        calls, size = len(values), int(np.prod(shape))
        places = self.spread(np.arange(calls * size).reshape(calls, *shape))
        summed = np.bincount(places.ravel(), weights=values.ravel(), minlength=calls * size)
        return summed.reshape(calls, *shape)
