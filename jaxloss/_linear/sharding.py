"""Work on tokens and a kernel that lie on a mesh, each axis of it treated by its own type.

What an enclosing `shard_map` has split is the caller's. Explicit axes are in the operands' types, and become manual
here. Of automatic axes XLA's partitioner asks, or it splits the operations of the work as it sees fit.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from jax.sharding import AbstractMesh, PartitionSpec

from jaxloss._arrays import Array, manual_axes, varying
from jaxloss._linear.split import Roles, Split, split_of, within
from jaxloss._partitioning.meshes import (
    as_spec,
    explicit_entries,
    mesh_of,
    on_explicit_axes,
    resharded,
    splitting_entries,
)
from jaxloss._partitioning.partitioned import Call, Description, Partition
from jaxloss._partitioning.row_wise import sharding_rule

Local = Callable[..., tuple[Array, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class OnMesh:
    """Work on operands that devices may share.

    Attributes:
        description: that of its `Call`s, but for their last argument; None where they have none.
        local: the work of one device. It is given how devices split it, and whether they may have split the tokens
            without its knowledge; then operands.
        operand_roles: the roles of the operands' axes.
        result_roles: the roles of the results' axes.
        axes: the mesh axes that an enclosing `shard_map` has split the classes over.
        direct: whether this is not to be differentiated. Then automatic sharding asks `split_of`; if not, XLA splits
            the operations of `local` as it sees fit.
        gradient_of: of each result, the place of the operand that it is the gradient of, or None.
    """

    description: Description | None
    local: Local
    operand_roles: Sequence[Roles]
    result_roles: Sequence[Roles]
    axes: tuple[str, ...]
    direct: bool
    gradient_of: Sequence[int | None]

    def __call__(self, *operands: Array) -> tuple[Array, ...]:
        """The results, wherever the operands lie."""
        mesh, own = mesh_of(operands), Split({"v": self.axes} if self.axes else {})
        if not mesh.explicit_axes:
            return self._on_automatic_axes(own, *operands)
        specs = [as_spec(explicit_entries(operand)) for operand in operands]
        shapes = [operand.shape for operand in operands]
        splitting = [as_spec(splitting_entries(mesh, explicit_entries(operand))) for operand in operands]
        split = split_of(mesh, self.operand_roles, shapes, splitting, self._may_reshard and not mesh.auto_axes)
        results = on_explicit_axes(
            mesh,
            functools.partial(self._on_automatic_axes, within(own, split)),
            operands,
            list(map(split.operand_spec, self.operand_roles)),
            list(map(split.spec, self.result_roles)),
            check=not self.direct,  # it can not know that what all gathered is the same everywhere
        )
        # What is not checked has lost what it varies over of an enclosing `shard_map`.
        others = [axis for axis in manual_axes(*operands) if axis not in self.axes]
        results = [
            varying((*others, *(self.axes if "v" in roles else ())), result)
            for roles, result in zip(self.result_roles, results, strict=True)
        ]
        # A gradient is split like its operand.
        return tuple(
            resharded(mesh, result, self._named(mesh, operands, roles, result) if place is None else specs[place])
            for roles, place, result in zip(self.result_roles, self.gradient_of, results, strict=True)
        )

    def _named(self, mesh: AbstractMesh, operands: Sequence[Array], roles: Roles, result: Array) -> PartitionSpec:
        """How a result is split, by the names that weights, labels or hidden states of the same axes have for that.

        They may name mesh axes of one device, which split nothing, and JAX wants the same names beside each other.
        """
        entries = explicit_entries(result)
        for place in (3, 2, 0):
            own = explicit_entries(operands[place])[: len(roles)]
            if self.operand_roles[place][: len(roles)] == roles and splitting_entries(mesh, own) == entries:
                return as_spec(own)
        return as_spec(entries)

    @property
    def _may_reshard(self) -> bool:
        return self.direct and self.operand_roles[1] in self.result_roles

    def _on_automatic_axes(self, outer: Split, *operands: Array) -> tuple[Array, ...]:
        """The results of what explicit axes, now manual, and those of the caller have left of the operands."""
        mesh = mesh_of(operands)
        if not mesh.empty and not mesh.auto_axes:
            return self.local(outer, False, *operands)
        return self.call(outer)(*operands) if self.direct else self.local(outer, True, *operands)

    def call(self, outer: Split) -> Call:
        """What the partitioner splits over automatic axes, where devices have split the work so before."""

        def whole(*operands):
            return self.local(outer, False, *operands)

        def partition(mesh, operands, specs, result_ranks) -> Partition:
            del result_ranks
            may_reshard = self._may_reshard and not outer.operands
            shapes = [operand.shape for operand in operands]
            split = split_of(mesh, self.operand_roles, shapes, specs, may_reshard, whole=outer.scattered)
            return Partition(
                functools.partial(self.local, within(outer, split), False),
                list(map(split.operand_spec, self.operand_roles)),
                list(map(split.spec, self.result_roles)),
            )

        names = sorted({role for roles in (*self.operand_roles, *self.result_roles) for role in roles})
        numbered = [
            [[names.index(role) for role in roles] for roles in many]
            for many in (self.operand_roles, self.result_roles)
        ]
        description = None
        if self.description is not None:
            module, arguments = self.description
            description = module, (*arguments, outer)
        return Call(description, whole, partition, lambda *_: sharding_rule(*numbered))
