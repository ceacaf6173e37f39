"""How one row-wise op behaves under `vmap` and on a mesh, whatever the types of its axes.

A row-wise op's first operand is `[rows..., features...]`, and the axes of every other operand and of every result are
the first axes of it: all of them, the rows', or fewer. So a batch axis is one more row axis, and a device that holds
some of the rows computes them alone. Where features are split, the op says what the devices must communicate
(`split`). An operand with a number for each feature of the last axis, the same for many rows, has that axis last.
One with some numbers for each row has a last axis of its own.

Each axis of a mesh is treated by its own type. What an enclosing `shard_map` has split is the caller's. Explicit axes
are in the operands' types, and become manual here. Automatic axes are XLA's: its partitioner asks when it knows.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec

from jaxloss._arrays import Array
from jaxloss._partitioning.meshes import (
    Entry,
    as_spec,
    entries_of,
    explicit_entries,
    mesh_axes,
    mesh_of,
    on_explicit_axes,
    splitting_entries,
)
from jaxloss._partitioning.partitioned import Call, Description, Op, Partition


@dataclasses.dataclass(frozen=True, eq=False)
class RowWise:
    """An op that JAX may batch and split.

    Attributes:
        description: that of its `Call`s, but for their last argument: a function of the others gives this op.
        local: the op on one device: operands to a tuple of results.
        split: the same where features are split over mesh axes, which it is given first, as two tuples of names: those
            that split the last axis come second.
        row_rank: how many of the first operand's axes are rows, given all operands.
        features: the positions of operands whose last axis is that of the first operand.
        listed: the positions of operands that have one more axis than the rows, which is none of the first operand's
            and which all of them share. It is not split.
    """

    description: Description
    local: Op
    split: Callable[..., tuple[Array, ...]]
    row_rank: Callable[..., int]
    features: tuple[int, ...] = ()
    listed: tuple[int, ...] = ()

    def __call__(self, *operands: Array) -> tuple[Array, ...]:
        """The results, wherever the operands lie."""
        return self._batched(*operands)

    @functools.cached_property
    def _batched(self) -> Op:
        op = custom_vmap(self._placed)

        @op.def_vmap
        def _(size, batched, *operands):
            operands = (
                operand if has_axis else jnp.broadcast_to(operand, (size, *operand.shape))
                for operand, has_axis in zip(operands, batched, strict=True)
            )
            results = self(*operands)
            return results, tuple(True for _ in results)

        return op

    def _placed(self, *operands: Array) -> tuple[Array, ...]:
        mesh = mesh_of(operands)
        if not mesh.explicit_axes:
            return self._on_automatic_axes(((),) * operands[0].ndim, *operands)
        entries = explicit_entries(operands[0])
        specs = [_spec(entries, axes) for axes in self._axes_of([o.ndim for o in operands])]
        results = jax.eval_shape(self.local, *(jax.ShapeDtypeStruct(o.shape, o.dtype) for o in operands))
        result_specs = [as_spec(entries[: result.ndim]) for result in results]
        body = functools.partial(self._on_automatic_axes, splitting_entries(mesh, entries))
        return on_explicit_axes(mesh, body, operands, specs, result_specs)

    def _on_automatic_axes(self, outer: tuple[Entry, ...], *operands: Array) -> tuple[Array, ...]:
        """The results of what explicit axes, now manual, have left of the operands."""
        mesh = mesh_of(operands)
        if mesh.empty or mesh.auto_axes:
            return self.call(outer)(*operands)
        return self._on_shards(outer, operands)(*operands)

    def _on_shards(self, entries: Sequence[Entry], operands: Sequence) -> Op:
        """What a device does whose part of each axis of the first operand these mesh axes say."""
        axes = mesh_axes(entries[self.row_rank(*operands) :])
        if not axes:
            return self.local
        last = mesh_axes(entries[-1:])
        return functools.partial(self.split, axes[: len(axes) - len(last)], last)

    def _axes_of(self, ranks: Sequence[int]) -> list[tuple[int, ...]]:
        """Which axis of the first operand each axis of each operand is, from the operands' ranks; one more if none."""

        def last(place: int, rank: int) -> int:
            return ranks[0] if place in self.listed else ranks[0] - 1 if place in self.features else rank - 1

        return [(*range(rank - 1), last(place, rank)) if rank else () for place, rank in enumerate(ranks)]

    @functools.cache  # noqa: B019, ops are made once and kept
    def call(self, outer: tuple[Entry, ...]) -> Call:
        """What the partitioner splits over automatic axes, where these axes have split the first operand before."""

        def whole(*operands):
            return self._on_shards(outer, operands)(*operands)

        def partition(mesh, operands, specs, result_ranks) -> Partition:
            axes = self._axes_of([len(operand.shape) for operand in operands])
            entries = common_entries(specs, axes)
            rank = self.row_rank(*operands)
            entries = entries[:rank] + evenly_split(mesh, operands[0].shape[rank:], entries[rank:])

            op = self._on_shards([a + b for a, b in zip(outer, entries, strict=True)], operands)
            results = [_spec(entries, range(rank)) for rank in result_ranks]
            return Partition(op, [_spec(entries, of) for of in axes], results)

        def rule(ranks, result_ranks) -> str:
            return sharding_rule(self._axes_of(ranks), [range(rank) for rank in result_ranks])

        module, arguments = self.description
        return Call((module, (*arguments, outer)), whole, partition, rule)


def common_entries(specs: Sequence[PartitionSpec], axes_of: Sequence[Sequence[int]]) -> tuple[Entry, ...]:
    """How to split each axis of the first operand: as it is split there, else as it is in an operand that shares it."""
    common: list[Entry] = [()] * len(axes_of[0])
    for spec, axes in zip(specs, axes_of, strict=True):
        for axis, entry in zip(axes, entries_of(spec, len(axes)), strict=True):
            if axis < len(common) and not common[axis] and not set(entry) & set(mesh_axes(common)):
                common[axis] = entry
    return tuple(common)


def _spec(entries: Sequence[Entry], axes: Sequence[int]) -> PartitionSpec:
    """Of an array with these axes of the first operand, from how that is split."""
    return as_spec([entries[axis] if axis < len(entries) else () for axis in axes])


def evenly_split(mesh, shape: Sequence[int], entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """How features are split: not at all where they do not divide among the devices.

    The partitioner pads what does not divide. A padded row is a row whose results nobody reads, but padded features
    would count in their row's sum.
    """

    def even(size, entry):
        return size % math.prod(mesh.shape[axis] for axis in entry) == 0

    return tuple(entry if even(size, entry) else () for size, entry in zip(shape, entries, strict=True))


def sharding_rule(operands: Sequence[Sequence[int]], results: Sequence[Sequence[int]]) -> str:
    """The rule that the partitioner propagates shardings by: equal axes of operands and results are split equally."""

    def written(arrays):
        return ", ".join(" ".join(f"i{axis}" for axis in axes) for axes in arrays)

    return f"{written(operands)} -> {written(results)}"
