"""How work on tokens and a kernel is split over devices, and what they tell each other.

Every axis of every operand and result has a role: `t0`, `t1` … for tokens, `v` for classes, `d` for the features of the
kernel and `e` for those of hidden states. Devices split the tokens as hidden states are split, and the classes as the
kernel is, over the mesh axes that remain. All else of the kernel is gathered, once. What is summed over tokens, and so
has no axis of them, is added up over devices once, and scattered where the kernel was split over the same axes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from jaxloss._calls import Array
from jaxloss._rows import mesh_axes, sharding_rule

Roles = tuple[str, ...]
Local = Callable[..., tuple[Array, ...]]


@dataclasses.dataclass(frozen=True)
class Split:
    """Which mesh axes split what; roles that are not named are not split.

    Attributes:
        operands: of each role, while the work is done.
        sums: of each role, of what is summed over tokens.
    """

    operands: dict[str, tuple[str, ...]]
    sums: dict[str, tuple[str, ...]]

    @property
    def tokens(self) -> tuple[str, ...]:
        """The mesh axes that split tokens."""
        return tuple(axis for role, axes in self.operands.items() if role != "v" for axis in axes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The mesh axes that split classes."""
        return self.operands.get("v", ())

    def spec(self, roles: Roles) -> PartitionSpec:
        """Of a result."""
        return _spec(self.sums if is_sum(roles) else self.operands, roles)

    def operand_spec(self, roles: Roles) -> PartitionSpec:
        """Of an operand, which may be the kernel, whose axes are also those of a sum."""
        return _spec(self.operands, roles)

    def added_up(self, roles: Roles, share: Array) -> Array:
        """A sum over all tokens, or this device's part of it, from the share of its tokens."""
        scattered = ()
        for place, role in enumerate(roles):
            if axes := tuple(axis for axis in self.sums.get(role, ()) if axis not in self.classes):
                share = jax.lax.psum_scatter(share, axes, scatter_dimension=place, tiled=True)
                scattered += axes
        rest = tuple(axis for axis in self.tokens if axis not in scattered)
        return jax.lax.psum(share, rest) if rest else share


def _spec(of: dict[str, tuple[str, ...]], roles: Roles) -> PartitionSpec:
    entries = (of.get(role, ()) for role in roles)
    return PartitionSpec(*(None if not axes else axes[0] if len(axes) == 1 else axes for axes in entries))


def is_sum(roles: Roles) -> bool:
    """Whether what has these axes has none of tokens."""
    return not any(role.startswith("t") for role in roles)


def split_of(mesh, roles: Sequence[Roles], shapes: Sequence[tuple[int, ...]], specs: Sequence[Sequence]) -> Split:
    """How to split the work, from how operands are split: the first are the hidden states and the kernel."""

    def even(axes, size):
        # The partitioner pads what does not divide, and padding would count in a sum.
        return size % math.prod(mesh.shape[axis] for axis in axes) == 0

    operands: dict[str, tuple[str, ...]] = {}

    def take(chosen):
        for names, shape, spec in zip(roles, shapes, specs, strict=True):
            for role, size, entry in zip(names, shape, spec, strict=False):
                if not chosen(role) or role in operands or entry is None:
                    continue
                used = {axis for axes in operands.values() for axis in axes}
                axes = tuple(axis for axis in mesh_axes([entry]) if axis not in used)
                if axes and even(axes, size):
                    operands[role] = axes

    take(lambda role: role.startswith("t"))
    tokens = {axis for axes in operands.values() for axis in axes}
    take(lambda role: role == "v")
    sums = {"v": operands["v"]} if "v" in operands else {}
    for role, size, entry in zip(roles[1], shapes[1], specs[1], strict=False):
        scattered = tuple(axis for axis in mesh_axes([entry]) if axis in tokens)
        if even(sums.get(role, ()) + scattered, size):
            sums[role] = sums.get(role, ()) + scattered
    return Split(operands, sums)


def on_mesh(
    local: Local,
    operand_roles: Sequence[Roles],
    result_roles: Sequence[Roles],
    axes: tuple[str, ...],
    direct: bool,
) -> Callable[..., tuple[Array, ...]]:
    """`local` on operands that devices may share.

    Args:
        local: the work on one device. It is given the mesh axes that split the classes, and whether devices may have
            split the tokens without its knowledge; then operands. What it sums, it sums over its own tokens.
        operand_roles: the roles of the operands' axes.
        result_roles: the roles of the results' axes.
        axes: the mesh axes that an enclosing `shard_map` has split the classes over.
        direct: whether this is not to be differentiated. Then automatic sharding asks `split_of`; if not, XLA splits
            the operations of `local` as it sees fit.
    """

    def on_device(split: Split, *operands):
        results = local(split.classes, False, *operands)
        return tuple(
            split.added_up(roles, result) if is_sum(roles) else result
            for roles, result in zip(result_roles, results, strict=True)
        )

    @custom_partitioning
    def automatic(*operands):
        return local((), False, *operands)

    def partition(mesh, operands, results):
        del results
        split = split_of(mesh, operand_roles, [o.shape for o in operands], [o.sharding.spec for o in operands])
        of_operands = tuple(NamedSharding(mesh, split.operand_spec(roles)) for roles in operand_roles)
        of_results = tuple(NamedSharding(mesh, split.spec(roles)) for roles in result_roles)
        return mesh, functools.partial(on_device, split), of_results, of_operands

    names = sorted({role for roles in (*operand_roles, *result_roles) for role in roles})
    numbered = [[[names.index(role) for role in roles] for roles in many] for many in (operand_roles, result_roles)]
    automatic.def_partition(partition=partition, sharding_rule=sharding_rule(*numbered))

    def placed(*operands):
        mesh = jax.typeof(operands[0]).sharding.mesh
        if mesh.manual_axes:  # inside a shard_map: the operands are what this device holds
            return local(axes, False, *operands)
        if mesh.empty or not mesh.are_all_axes_explicit:
            return automatic(*operands) if direct else local((), True, *operands)
        specs = [jax.typeof(operand).sharding.spec for operand in operands]
        split = split_of(mesh, operand_roles, [o.shape for o in operands], specs)
        in_specs = tuple(map(split.operand_spec, operand_roles))
        results = jax.shard_map(
            functools.partial(on_device, split),
            in_specs=in_specs,
            out_specs=tuple(map(split.spec, result_roles)),
        )(*map(jax.sharding.reshard, operands, in_specs))
        # A gradient is split like its operand.
        like = {roles: spec for roles, spec in zip(operand_roles, specs, strict=True) if is_sum(roles) or "e" in roles}
        return tuple(
            jax.sharding.reshard(result, like[roles]) if roles in like else result
            for roles, result in zip(result_roles, results, strict=True)
        )

    return placed
