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
import jax.numpy as jnp
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
        traded: of the roles of tokens, those that split tokens as they are given, and classes while the work is done.
    """

    operands: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    sums: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    traded: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The mesh axes that split tokens, while the work is done."""
        return tuple(axis for role, axes in self.operands.items() if role != "v" for axis in axes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The mesh axes that split classes, while the work is done."""
        return self.operands.get("v", ())

    @property
    def tells_sums(self) -> bool:
        """Whether devices tell each other anything of what is summed over tokens."""
        return bool(self.tokens or self.traded)

    def spec(self, roles: Roles) -> PartitionSpec:
        """Of a result."""
        return _spec(self.sums if is_sum(roles) else self.operands | self.traded, roles)

    def operand_spec(self, roles: Roles) -> PartitionSpec:
        """Of an operand, which may be the kernel, whose axes are also those of a sum."""
        return _spec(self.operands, roles)

    def summed(self, roles: Roles, share: Array, dtype) -> tuple[Array, Callable[[Array], Array]]:
        """What devices tell each other of a sum over all tokens, and the result that is made of it, or a part of that.

        `share` is of this device's tokens, or of its classes; `dtype` is what the result ends as.
        """
        kept, sent = share.dtype, sent_as(dtype, share.dtype)
        if traded := mesh_axes(self.traded.values()):
            return self._shared_out(roles, traded, share.astype(sent), kept)
        scattered = ()
        for place, role in enumerate(roles):
            if axes := tuple(axis for axis in self.sums.get(role, ()) if axis not in self.classes):
                share = jax.lax.psum_scatter(share, axes, scatter_dimension=place, tiled=True)
                scattered += axes
        rest = tuple(axis for axis in self.tokens if axis not in scattered)
        if not rest:
            return share, lambda told: told
        devices = jax.lax.axis_size(rest)
        whole = [place for place, size in enumerate(share.shape) if size % devices == 0]
        if sent == kept or not whole:
            return jax.lax.psum(share, rest), lambda told: told
        part = jax.lax.psum_scatter(share, rest, scatter_dimension=whole[0], tiled=True)
        told = jax.lax.all_gather(part.astype(sent), rest, axis=whole[0], tiled=True)
        return told, lambda told: told.astype(kept)

    def _shared_out(self, roles: Roles, traded: tuple[str, ...], part: Array, kept):
        """The same of the part of this device's classes."""
        v = roles.index("v")
        split_by_traded = [place for place, role in enumerate(roles) if {*traded} <= {*self.sums.get(role, ())}]
        if split_by_traded == [v]:
            return part, lambda told: told.astype(kept)
        if split_by_traded:
            told = jax.lax.all_to_all(part, traded, split_by_traded[0], v, tiled=True)
            return told, lambda told: told.astype(kept)

        def joined(told):  # gathered along an axis of their own: XLA would transpose what is gathered along the last
            parts = jnp.moveaxis(told, 0, v)
            return parts.reshape(*part.shape[:v], -1, *part.shape[v + 1 :]).astype(kept)

        return jax.lax.all_gather(part, traded), joined

    def of_tokens(self, roles: Roles, share: Array, dtype) -> Array:
        """A result of tokens, from this device's share of it; `dtype` is what it ends as."""
        is_share = "e" in roles  # else all devices that share classes have the same
        for place, role in enumerate(roles):
            if axes := self.traded.get(role, ()):
                if is_share:
                    share = jax.lax.psum_scatter(share, axes, scatter_dimension=place, tiled=True)
                else:
                    share = _own(share, axes, place)
        if not is_share:
            return share
        traded = mesh_axes(self.traded.values())
        rest = tuple(axis for axis in self.classes if axis not in traded)
        share = share.astype(dtype) if traded else share
        return (jax.lax.psum(share, rest) if rest else share).astype(dtype)


def sent_as(dtype, kept):
    """What devices tell each other a complete sum in, which ends as `dtype`: that, if it has the range of the sum's."""
    return dtype if (dtype, kept) == (jnp.bfloat16, jnp.float32) else kept


def _own(array: Array, axes: tuple[str, ...], place: int) -> Array:
    """This device's part of what all have the whole of."""
    size = array.shape[place] // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(axes) * size, size, place)


def _spec(of: dict[str, tuple[str, ...]], roles: Roles) -> PartitionSpec:
    entries = (of.get(role, ()) for role in roles)
    return PartitionSpec(*(None if not axes else axes[0] if len(axes) == 1 else axes for axes in entries))


def is_sum(roles: Roles) -> bool:
    """Whether what has these axes has none of tokens."""
    return not any(role.startswith("t") for role in roles)


def split_of(
    mesh, roles: Sequence[Roles], shapes: Sequence[tuple[int, ...]], specs: Sequence[Sequence], trade: bool
) -> Split:
    """How to split the work, from how operands are split: the first are the hidden states and the kernel.

    `trade`: whether axes that split tokens may split classes instead, if that is less to tell.
    """

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
    split = Split(operands, sums)
    if not trade or not split.tokens:
        return split

    # Devices that share tokens tell each other a sum as large as the kernel, and maybe the kernel. If they share classes,
    # they tell each other hidden states and their gradient.
    axes = split.tokens
    wider = split.classes + axes
    count, classes = math.prod(shapes[0][:-1]), shapes[1][roles[1].index("v")]
    places = [own for own in (of[len(split.classes) if role == "v" else 0 :] for role, of in sums.items()) if own]
    if not even(wider, classes) or places not in ([], [axes]):
        return split
    if 3 * count > 2 * classes // math.prod(mesh.shape[axis] for axis in split.classes):
        return split
    return Split({"v": wider}, sums, {role: axes for role, axes in operands.items() if role != "v"})


def on_mesh(
    local: Local,
    operand_roles: Sequence[Roles],
    result_roles: Sequence[Roles],
    axes: tuple[str, ...],
    direct: bool,
) -> Callable[..., tuple[Array, ...]]:
    """`local` on operands that devices may share.

    Args:
        local: the work on one device. It is given how devices split it, and whether they may have split the tokens
            without its knowledge; then operands. What it sums, it sums over its own tokens and classes.
        operand_roles: the roles of the operands' axes.
        result_roles: the roles of the results' axes.
        axes: the mesh axes that an enclosing `shard_map` has split the classes over.
        direct: whether this is not to be differentiated. Then automatic sharding asks `split_of`; if not, XLA splits
            the operations of `local` as it sees fit.
    """

    sums_kernel = operand_roles[1] in result_roles

    def on_device(split: Split, strided: bool, *operands):
        results = local(split, strided, *operands)
        dtypes = dict(zip(reversed(operand_roles), (operand.dtype for operand in reversed(operands)), strict=True))
        of_tokens = [pair for pair in zip(result_roles, results, strict=True) if not is_sum(pair[0])]
        sums = [pair for pair in zip(result_roles, results, strict=True) if is_sum(pair[0])]
        told = [split.summed(roles, share, dtypes[roles] if direct else share.dtype) for roles, share in sums]
        arrays, arranged = [array for array, _ in told], [arrange for _, arrange in told]
        shares = [share for _, share in of_tokens]
        if direct and split.traded:
            # XLA would have the hidden states' gradient reduced first, and tell sums after it: nothing would hide that.
            arrays, shares = jax.lax.optimization_barrier((arrays, shares))
        return (
            *(
                split.of_tokens(roles, share, dtypes.get(roles, share.dtype) if "e" in roles else share.dtype)
                for (roles, _), share in zip(of_tokens, shares, strict=True)
            ),
            *(arrange(array) for arrange, array in zip(arranged, arrays, strict=True)),
        )

    def split_on(mesh, operands, specs) -> Split:
        import os

        trade = direct and sums_kernel and "notrade" not in os.environ.get("JAXLOSS_TRY", "")
        return split_of(mesh, operand_roles, [o.shape for o in operands], specs, trade=trade)

    @custom_partitioning
    def automatic(*operands):
        return on_device(Split(), False, *operands)

    def partition(mesh, operands, results):
        del results
        split = split_on(mesh, operands, [operand.sharding.spec for operand in operands])
        of_operands = tuple(NamedSharding(mesh, split.operand_spec(roles)) for roles in operand_roles)
        of_results = tuple(NamedSharding(mesh, split.spec(roles)) for roles in result_roles)
        return mesh, functools.partial(on_device, split, False), of_results, of_operands

    names = sorted({role for roles in (*operand_roles, *result_roles) for role in roles})
    numbered = [[[names.index(role) for role in roles] for roles in many] for many in (operand_roles, result_roles)]
    automatic.def_partition(partition=partition, sharding_rule=sharding_rule(*numbered))

    def placed(*operands):
        mesh = jax.typeof(operands[0]).sharding.mesh
        if mesh.manual_axes:  # inside a shard_map: the operands are what this device holds
            return on_device(Split({"v": axes}), False, *operands)
        if mesh.empty or not mesh.are_all_axes_explicit:
            return automatic(*operands) if direct else on_device(Split(), True, *operands)
        specs = [jax.typeof(operand).sharding.spec for operand in operands]
        split = split_on(mesh, operands, specs)
        in_specs = tuple(map(split.operand_spec, operand_roles))
        results = jax.shard_map(
            functools.partial(on_device, split, False),
            in_specs=in_specs,
            out_specs=tuple(map(split.spec, result_roles)),
            check_vma=not direct,  # it does not know that all have the same of what was gathered
        )(*map(jax.sharding.reshard, operands, in_specs))
        # A gradient is split like its operand.
        like = {roles: spec for roles, spec in zip(operand_roles, specs, strict=True) if is_sum(roles) or "e" in roles}
        return tuple(
            jax.sharding.reshard(result, like[roles]) if roles in like else result
            for roles, result in zip(result_roles, results, strict=True)
        )

    return placed
