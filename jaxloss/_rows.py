"""How one row-wise op behaves under `vmap`, under automatic and explicit sharding and inside `shard_map`.

A row-wise op's first operand is `[rows..., features...]`, and the axes of every other operand and of every result are
the first axes of it: all of them, the rows', or fewer. So a batch axis is one more row axis, and a device that holds
some of the rows computes them alone. Where features are split, the op says what the devices must tell each other
(`split`). An operand with a number for each feature of the last axis, the same for many rows, has that axis last.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array
Op = Callable[..., tuple[Array, ...]]


def row_wise(
    local: Op,
    split: Callable[..., tuple[Array, ...]],
    row_rank: Callable[..., int],
    features: Sequence[int] = (),
    tells_last: bool = False,
) -> Op:
    """`local` as an op that JAX may batch and split.

    Args:
        local: the op on one device: operands to a tuple of results.
        split: the same where features are split over mesh axes, which it is given first, as a tuple of names.
        row_rank: how many of the first operand's axes are rows, given all operands.
        features: the positions of operands whose last axis is that of the first operand.
        tells_last: whether `split` is given those mesh axes apart that the last axis is split over, as a second tuple.
    """

    def axes_of(operands: Sequence) -> list[tuple[int, ...]]:
        """Which axis of the first operand each axis of each operand is."""
        last = len(operands[0].shape) - 1
        ranks = [len(operand.shape) for operand in operands]
        return [
            (*range(rank - 1), last) if place in features else tuple(range(rank)) for place, rank in enumerate(ranks)
        ]

    def on_one_device(spec: Sequence, operands: Sequence) -> Op:
        axes = mesh_axes(spec[row_rank(*operands) :])
        if not axes:
            return local
        last = mesh_axes(spec[-1:])
        told = (axes[: len(axes) - len(last)], last) if tells_last else (axes,)
        return functools.partial(split, *told)

    # `custom_partitioning` takes no constants, and those of `local` are arrays under `jax.ensure_compile_time_eval`.
    with_constants = jax.jit(local)

    @custom_partitioning
    def automatic(*operands):
        return with_constants(*operands)

    def partition(mesh, operands, results):
        spec = common_spec(operands, axes_of(operands))
        rank = row_rank(*operands)
        spec = spec[:rank] + evenly_split(mesh, operands[0].shape[rank:], spec[rank:])

        def sharding(axes):
            return NamedSharding(mesh, PartitionSpec(*(spec[axis] for axis in axes)))

        shardings = tuple(map(sharding, axes_of(operands)))
        of_results = jax.tree.map(lambda result: sharding(range(len(result.shape))), results)
        return mesh, on_one_device(spec, operands), of_results, shardings

    def rule(mesh, operands, results):
        del mesh
        return sharding_rule(axes_of(operands), [range(len(result.shape)) for result in results])

    automatic.def_partition(partition=partition, sharding_rule=rule)

    def placed(*operands):
        mesh = jax.typeof(operands[0]).sharding.mesh
        if mesh.manual_axes:  # inside a shard_map: the operands are what this device holds
            return local(*operands)
        if mesh.empty or not mesh.are_all_axes_explicit:
            return automatic(*operands)
        spec = tuple(jax.typeof(operands[0]).sharding.spec)

        specs = tuple(PartitionSpec(*(spec[axis] for axis in axes)) for axes in axes_of(operands))
        operands = tuple(map(jax.sharding.reshard, operands, specs))
        results = jax.eval_shape(local, *(jax.ShapeDtypeStruct(o.shape, o.dtype) for o in operands))
        of_results = jax.tree.map(lambda result: PartitionSpec(*spec[: result.ndim]), results)
        body = on_one_device(spec, operands)
        return jax.shard_map(body, in_specs=specs, out_specs=of_results)(*operands)

    @custom_vmap
    def op(*operands):
        return placed(*operands)

    @op.def_vmap
    def _(size, batched, *operands):
        operands = (
            operand if has_axis else jnp.broadcast_to(operand, (size, *operand.shape))
            for operand, has_axis in zip(operands, batched, strict=True)
        )
        results = op(*operands)
        return results, tuple(True for _ in results)

    return op


def rank_of_weight(x, target, row_weight, *_) -> int:
    """The rows of an op that sums all that has one weight."""
    del x, target
    return len(row_weight.shape)


def mesh_axes(spec: Sequence) -> tuple[str, ...]:
    """All mesh axes that occur in a partition spec."""
    entries = (entry if isinstance(entry, tuple) else (entry,) for entry in spec if entry is not None)
    return tuple(axis for entry in entries for axis in entry)


def common_spec(operands: Sequence, axes_of: Sequence[Sequence[int]]) -> tuple:
    """How to split each axis of the first operand: as it is split there, else as it is in an operand that shares it."""
    spec: list = [None] * len(operands[0].shape)
    for operand, axes in zip(operands, axes_of, strict=True):
        for axis, entry in zip(axes, operand.sharding.spec, strict=False):
            if spec[axis] is None and entry is not None and not set(mesh_axes([entry])) & set(mesh_axes(spec)):
                spec[axis] = entry
    return tuple(spec)


def evenly_split(mesh, shape: Sequence[int], spec: Sequence) -> tuple:
    """The spec of features, unsplit where they do not divide among the devices.

    The partitioner pads what does not divide. A padded row is a row whose results nobody reads, but padded features
    would count in their row's sum.
    """

    def even(size, entry):
        return size % math.prod(mesh.shape[axis] for axis in mesh_axes([entry])) == 0

    return tuple(entry if even(size, entry) else None for size, entry in zip(shape, spec, strict=True))


def sharding_rule(operands: Sequence[Sequence[int]], results: Sequence[Sequence[int]]) -> str:
    """The rule that the partitioner propagates shardings by: equal axes of operands and results are split equally."""

    def written(arrays):
        return ", ".join(" ".join(f"i{axis}" for axis in axes) for axes in arrays)

    return f"{written(operands)} -> {written(results)}"
