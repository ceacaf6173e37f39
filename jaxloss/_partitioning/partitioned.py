"""A call that XLA's partitioner splits over the automatic axes of a mesh, in the way that the call itself says."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.sharding import NamedSharding, PartitionSpec

from jaxloss._arrays import Array

Op = Callable[..., tuple[Array, ...]]

Description = tuple[str, tuple]
"""A module, and the arguments of a function there, `partitioned`, that makes a call; `descriptions` says of what."""


@dataclasses.dataclass(frozen=True)
class Partition:
    """How a call is split over devices.

    Attributes:
        op: what each device does with its shards of the operands.
        operands: how the operands are to be split.
        results: how the results then are.
    """

    op: Op
    operands: Sequence[PartitionSpec]
    results: Sequence[PartitionSpec]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What is to be partitioned.

    Attributes:
        description: what makes the same call in another process. None for a call that holds a caller's function: a
            program of several devices with one is compiled anew in every process, and not exported.
        whole: the op where nothing is split.
        partition: from a mesh of the automatic axes, the operands' shapes and specs, and the results' ranks.
        rule: from the ranks of operands and results, which axes of them are split alike, as
            `jax.experimental.custom_partitioning` has it.
    """

    description: Description | None
    whole: Op
    partition: Callable[[Any, Sequence[jax.ShapeDtypeStruct], Sequence[PartitionSpec], Sequence[int]], Partition]
    rule: Callable[[Sequence[int], Sequence[int]], str]

    def __call__(self, *operands: Array) -> tuple[Array, ...]:
        """The call on operands that the partitioner may have split."""
        if not NAMED:
            return _with_custom_partitioning(self)(*operands)
        jaxpr = jax.make_jaxpr(self.whole)(*operands)
        return tuple(primitive.bind(*operands, call=self, jaxpr=jaxpr, platform=None))

    def placed(self, mesh, operands, results) -> tuple[Op, tuple[NamedSharding, ...], tuple[NamedSharding, ...]]:
        """What each device does, and the shardings of operands and results, from how the operands are sharded."""
        specs, ranks = [operand.sharding.spec for operand in operands], [len(result.shape) for result in results]
        split = self.partition(mesh, operands, specs, ranks)
        of_operands, of_results = (
            tuple(NamedSharding(mesh, spec) for spec in specs) for specs in (split.operands, split.results)
        )
        return split.op, of_operands, of_results


primitive = Primitive("jaxloss_partitioned")
primitive.multiple_results = True
primitive.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals)


@primitive.def_impl
def _evaluated(*operands: Array, call: Call, jaxpr, platform):
    del platform
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return jaxpr_as_fun(jaxpr)(*operands)  # what is not compiled nobody partitions
    return _compiled(call)(*operands)


@functools.cache
def _compiled(call: Call) -> Op:
    """For eager calls."""
    return jax.jit(call)


def _with_custom_partitioning(call: Call) -> Op:
    """The call by what is public of JAX: a compiled program that no cache finds again and that is not exported."""

    @custom_partitioning
    def automatic(*operands):
        return call.whole(*operands)

    def partition(mesh, operands, results):
        op, of_operands, of_results = call.placed(mesh, operands, results)
        return mesh, op, of_results, of_operands

    def rule(mesh, operands, results):
        del mesh
        return call.rule(*([len(array.shape) for array in arrays] for arrays in (operands, results)))

    automatic.def_partition(partition=partition, sharding_rule=rule)
    return automatic


try:
    from jaxloss._partitioning import partitioner

    NAMED = partitioner.registered()
    """Whether this version of JAX has the internals that naming a callback takes."""
except (ImportError, AttributeError, TypeError):
    NAMED = False
