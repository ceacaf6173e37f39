"""How work on tokens and a kernel is split over devices, and what they communicate.

Every axis of every operand and result has a role: `t0`, `t1` … for tokens, `v` for classes, `d` for the features of the
kernel and `e` for those of hidden states; what has another role is never split. Devices split the tokens as hidden
states are split, and the classes as the kernel is, over the mesh axes that remain. All else of the kernel is gathered,
once. What is summed over tokens, and so has no axis of them, is added up over devices once, and scattered where the
kernel was split over the same axes.

Devices that share tokens communicate sums as large as the kernel, and maybe the kernel. Where the tokens are few beside
the classes, they re-shard: each works on all their tokens and its part of the classes. Then they communicate the hidden
states, their gradient chunk by chunk, and of the kernel and its gradient only what somebody else keeps.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxloss._arrays import Array
from jaxloss._partitioning.meshes import as_spec, entries_of

Roles = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """Which mesh axes split what; roles that are not named are not split.

    Attributes:
        operands: of each role, as the operands are when the work begins.
        sums: of each role, of what is summed over tokens.
        resharded: those that split tokens and, while the work is done, classes instead: the last of those that do.
    """

    operands: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    sums: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    resharded: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """The mesh axes that split tokens while the work is done."""
        of_tokens = (axis for role, axes in self.operands.items() if role != "v" for axis in axes)
        return tuple(axis for axis in of_tokens if axis not in self.resharded)

    @property
    def classes(self) -> tuple[str, ...]:
        """The mesh axes that split classes while the work is done."""
        return self.operands.get("v", ())

    @property
    def scattered(self) -> frozenset[str]:
        """The roles of which devices that have them whole keep a part of a sum each."""
        return frozenset(role for role, axes in self.sums.items() if {*axes} - {*self.classes})

    def spec(self, roles: Roles) -> PartitionSpec:
        """Of a result."""
        return _spec(self.sums if is_sum(roles) else self.operands, roles)

    def operand_spec(self, roles: Roles) -> PartitionSpec:
        """Of an operand, which may be the kernel, whose axes are also those of a sum."""
        return _spec(self.operands, roles)

    # ---- communication -----------------------------------------------------------------------------------------------

    def gathered(self, rows: Array) -> Array:
        """The rows of all devices that re-shard, from those of this one, along a new first axis."""
        return jax.lax.all_gather(rows, self.resharded) if self.resharded else rows[None]

    def own(self, of_rows: Array) -> Array:
        """What all devices that re-shard have of all their rows: this one's rows."""
        if not self.resharded:
            return of_rows
        count = of_rows.shape[0] // jax.lax.axis_size(self.resharded)
        return jax.lax.dynamic_slice_in_dim(of_rows, jax.lax.axis_index(self.resharded) * count, count)

    def own_sum(self, shares: Array) -> Array:
        """The same of shares that are to be added up."""
        return jax.lax.psum_scatter(shares, self.resharded, tiled=True) if self.resharded else shares

    def anywhere(self, condition: Array) -> Array:
        """Whether it holds on any device that re-shards."""
        return jax.lax.pmax(condition.astype(jnp.int32), self.resharded) > 0 if self.resharded else condition

    def over_classes(self, shares: Array) -> Array:
        """The sum of the shares of all classes, where `own_sum` has not added them up."""
        axes = tuple(axis for axis in self.classes if axis not in self.resharded)
        return jax.lax.psum(shares, axes) if axes else shares

    @property
    def communicates_sums(self) -> bool:
        """Whether devices communicate anything that is summed over tokens."""
        axes = self.tokens + self.resharded
        return bool(axes) and jax.lax.axis_size(axes) > 1

    def over_tokens(self, roles: Roles, share: Array, sent) -> Array:
        """The communication of a sum over all tokens: the sum, or this device's part of it, once it is `arranged`.

        `share` is of this device's tokens, or of its classes. What is complete is sent as numbers of the type `sent`.
        """
        if self.resharded:
            return self._shared_out(roles, share.astype(sent))
        scattered = ()
        for place, role in enumerate(roles):
            if axes := tuple(axis for axis in self.sums.get(role, ()) if axis not in self.classes):
                share = jax.lax.psum_scatter(share, axes, scatter_dimension=place, tiled=True)
                scattered += axes
        rest = tuple(axis for axis in self.tokens if axis not in scattered)
        if not rest:
            return share
        if sent == share.dtype or share.shape[0] % jax.lax.axis_size(rest) != 0:
            return jax.lax.psum(share, rest)
        part = jax.lax.psum_scatter(share, rest, tiled=True)
        return jax.lax.all_gather(part.astype(sent), rest, tiled=True)

    def _shared_out(self, roles: Roles, part: Array) -> Array:
        """A sum of this device's part of the classes, as the kernel is kept; parts of others along a first axis."""
        if "v" not in roles:  # all devices have made it of all tokens
            return part
        place = self._place_of_resharded(roles)
        if place is None:
            return jax.lax.all_gather(part, self.resharded)
        if place == roles.index("v"):
            return part
        devices = jax.lax.axis_size(self.resharded)
        shape = (*part.shape[:place], devices, part.shape[place] // devices, *part.shape[place + 1 :])
        return jax.lax.all_to_all(jnp.moveaxis(part.reshape(shape), place, 0), self.resharded, 0, 0, tiled=True)

    def arranged(self, roles: Roles, communicated: Array) -> Array:
        """A result, from what `over_tokens` gives.

        Where tokens were resharded, parts of the classes had an axis of their own until then: XLA transposes what it
        gathers along another, before and after.
        """
        if not self.resharded or "v" not in roles or self._place_of_resharded(roles) == roles.index("v"):
            return communicated
        classes = roles.index("v")
        parts = jnp.moveaxis(communicated, 0, classes)
        return parts.reshape(*parts.shape[:classes], -1, *parts.shape[classes + 2 :])

    def _place_of_resharded(self, roles: Roles) -> int | None:
        """The axis of a sum that the mesh axes that are resharded split in the end."""
        places = (place for place, role in enumerate(roles) if {*self.resharded} <= {*self.sums.get(role, ())})
        return next(places, None)


def _spec(of: dict[str, tuple[str, ...]], roles: Roles) -> PartitionSpec:
    return as_spec([of.get(role, ()) for role in roles])


def within(outer: Split, inner: Split) -> Split:
    """Both at once: `inner` splits what `outer` has left of each axis."""
    if not outer.operands:
        return inner

    def both(a, b):
        return {role: a.get(role, ()) + b.get(role, ()) for role in {**a, **b}}

    return Split(both(outer.operands, inner.operands), both(outer.sums, inner.sums), outer.resharded + inner.resharded)


def is_sum(roles: Roles) -> bool:
    """Whether what has these axes has none of tokens."""
    return not any(role.startswith("t") for role in roles)


def split_of(
    mesh,
    roles: Sequence[Roles],
    shapes: Sequence[tuple[int, ...]],
    specs: Sequence[PartitionSpec],
    may_reshard: bool,
    whole: frozenset[str] = frozenset(),
) -> Split:
    """How to split the work, from how operands are split: the first are the hidden states and the kernel.

    What has a role that is to stay `whole` is not split.
    """
    entries = [entries_of(spec, len(names)) for spec, names in zip(specs, roles, strict=True)]

    def even(axes, size):
        # The partitioner pads what does not divide, and padding would count in a sum.
        return size % math.prod(mesh.shape[axis] for axis in axes) == 0

    operands: dict[str, tuple[str, ...]] = {}

    def take(chosen):
        for names, shape, of_axes in zip(roles, shapes, entries, strict=True):
            for role, size, entry in zip(names, shape, of_axes, strict=True):
                if not chosen(role) or role in operands or role in whole:
                    continue
                used = {axis for axes in operands.values() for axis in axes}
                axes = tuple(axis for axis in entry if axis not in used)
                if axes and even(axes, size):
                    operands[role] = axes

    take(lambda role: role.startswith("t"))
    tokens = {axis for axes in operands.values() for axis in axes}
    take(lambda role: role == "v")
    sums = {"v": operands["v"]} if "v" in operands else {}
    for role, size, entry in zip(roles[1], shapes[1], entries[1], strict=True):
        scattered = tuple(axis for axis in entry if axis in tokens and role not in whole)
        if even(sums.get(role, ()) + scattered, size):
            sums[role] = sums.get(role, ()) + scattered
    split = Split(operands, sums)
    wider = split.classes + split.tokens
    if may_reshard and even(wider, shapes[1][roles[1].index("v")]) and _communicates_less(mesh, split, roles, shapes):
        return Split({**operands, "v": wider}, sums, split.tokens)
    return split


def _communicates_less(mesh, split: Split, roles: Sequence[Roles], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether devices that share tokens should re-shard.

    If they do, each of n sends (n - 1) / n of the hidden states of all, 2 bytes a number, and of their gradient, 4. If
    they do not, as much of the kernel's gradient, 4 bytes a number. 2 bytes a number of the kernel are sent anyway.
    """
    tokens, classes = math.prod(shapes[0][:-1]), shapes[1][roles[1].index("v")]
    scattered = [own for role, of in split.sums.items() if (own := of[len(split.classes) if role == "v" else 0 :])]
    if scattered not in ([], [split.tokens]) or not isinstance(tokens, int):
        return False
    devices, others = (math.prod(mesh.shape[axis] for axis in axes) for axes in (split.tokens, split.classes))
    return devices > 1 and 3 * tokens * others <= 2 * classes
