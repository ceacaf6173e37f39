"""How work on tokens and a kernel is split over devices, and what they tell each other.

Every axis of every operand and result has a role: `t0`, `t1` … for tokens, `v` for classes, `d` for the features of the
kernel and `e` for those of hidden states. Devices split the tokens as hidden states are split, and the classes as the
kernel is, over the mesh axes that remain. All else of the kernel is gathered, once. What is summed over tokens, and so
has no axis of them, is added up over devices once, and scattered where the kernel was split over the same axes.

Devices that share tokens tell each other sums as large as the kernel, and maybe the kernel. Where the tokens are few
beside the classes, they trade: each works on all their tokens and its part of the classes. Then they tell each other
the hidden states of a chunk and their gradient, and of the kernel and its gradient only what somebody else keeps.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxloss._calls import Array
from jaxloss._rows import mesh_axes

Roles = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """Which mesh axes split what; roles that are not named are not split.

    Attributes:
        operands: of each role, as the operands are when the work begins.
        sums: of each role, of what is summed over tokens.
        traded: those that split tokens and, while the work is done, classes instead: the last of those that do.
    """

    operands: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    sums: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    traded: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """The mesh axes that split tokens while the work is done."""
        of_tokens = (axis for role, axes in self.operands.items() if role != "v" for axis in axes)
        return tuple(axis for axis in of_tokens if axis not in self.traded)

    @property
    def classes(self) -> tuple[str, ...]:
        """The mesh axes that split classes while the work is done."""
        return self.operands.get("v", ())

    def spec(self, roles: Roles) -> PartitionSpec:
        """Of a result."""
        return _spec(self.sums if is_sum(roles) else self.operands, roles)

    def operand_spec(self, roles: Roles) -> PartitionSpec:
        """Of an operand, which may be the kernel, whose axes are also those of a sum."""
        return _spec(self.operands, roles)

    # ---- what devices tell each other --------------------------------------------------------------------------------

    def gathered(self, rows: Array) -> Array:
        """The rows of all devices that trade, from those of this one."""
        return jax.lax.all_gather(rows, self.traded, tiled=True) if self.traded else rows

    def own(self, of_rows: Array) -> Array:
        """What all devices that trade have of all their rows: this one's rows."""
        if not self.traded:
            return of_rows
        count = of_rows.shape[0] // jax.lax.axis_size(self.traded)
        return jax.lax.dynamic_slice_in_dim(of_rows, jax.lax.axis_index(self.traded) * count, count)

    def own_sum(self, shares: Array) -> Array:
        """The same of shares that are to be added up."""
        return jax.lax.psum_scatter(shares, self.traded, tiled=True) if self.traded else shares

    def anywhere(self, condition: Array) -> Array:
        """Whether it holds on any device that trades."""
        return jax.lax.pmax(condition.astype(jnp.int32), self.traded) > 0 if self.traded else condition

    def over_classes(self, shares: Array) -> Array:
        """The sum of the shares of all classes, where `own_sum` has not added them up."""
        axes = tuple(axis for axis in self.classes if axis not in self.traded)
        return jax.lax.psum(shares, axes) if axes else shares

    def over_tokens(self, roles: Roles, share: Array, ends_as) -> tuple[Array, Callable[[Array], Array]]:
        """What devices tell each other of a sum over all tokens, and how the result, or their part of it, is made of that.

        `share` is of this device's tokens, or of its classes; `ends_as` is the type that its caller is going to cast to.
        """
        kept, sent = share.dtype, sent_as(ends_as, share.dtype)
        if self.traded:
            return self._shared_out(roles, share.astype(sent), kept)
        scattered = ()
        for place, role in enumerate(roles):
            if axes := tuple(axis for axis in self.sums.get(role, ()) if axis not in self.classes):
                share = jax.lax.psum_scatter(share, axes, scatter_dimension=place, tiled=True)
                scattered += axes
        rest = tuple(axis for axis in self.tokens if axis not in scattered)
        if not rest:
            return share, _as(kept)
        devices = math.prod(map(jax.lax.axis_size, rest))
        if sent == kept or share.shape[0] % devices != 0:
            return jax.lax.psum(share, rest), _as(kept)
        part = jax.lax.psum_scatter(share, rest, tiled=True)
        return jax.lax.all_gather(part.astype(sent), rest, tiled=True), _as(kept)

    def _shared_out(self, roles: Roles, part: Array, kept) -> tuple[Array, Callable[[Array], Array]]:
        """The same of the sum of this device's part of the classes."""
        classes = roles.index("v")
        places = [place for place, role in enumerate(roles) if {*self.traded} <= {*self.sums.get(role, ())}]
        if places == [classes]:
            return part, _as(kept)

        # Each device's classes along an axis of their own, until all are here: XLA would transpose before and after.
        def joined(told):
            parts = jnp.moveaxis(told, 0, classes)
            shape = list(parts.shape)
            shape[classes : classes + 2] = [shape[classes] * shape[classes + 1]]
            return parts.reshape(shape).astype(kept)

        if not places:
            return jax.lax.all_gather(part, self.traded), joined
        (split,), devices = places, jax.lax.axis_size(self.traded)
        shape = (*part.shape[:split], devices, part.shape[split] // devices, *part.shape[split + 1 :])
        return jax.lax.all_to_all(jnp.moveaxis(part.reshape(shape), split, 0), self.traded, 0, 0, tiled=True), joined


def _as(dtype) -> Callable[[Array], Array]:
    return lambda told: told.astype(dtype)


def sent_as(ends_as, kept):
    """What devices tell each other a complete sum in: what it ends as, if that has the same range."""
    return ends_as if (ends_as, kept) == (jnp.bfloat16, jnp.float32) else kept


def _spec(of: dict[str, tuple[str, ...]], roles: Roles) -> PartitionSpec:
    entries = (of.get(role, ()) for role in roles)
    return PartitionSpec(*(None if not axes else axes[0] if len(axes) == 1 else axes for axes in entries))


def is_sum(roles: Roles) -> bool:
    """Whether what has these axes has none of tokens."""
    return not any(role.startswith("t") for role in roles)


def split_of(
    mesh, roles: Sequence[Roles], shapes: Sequence[tuple[int, ...]], specs: Sequence[Sequence], may_trade: bool
) -> Split:
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
    split = Split(operands, sums)
    classes = shapes[1][roles[1].index("v")]
    wider = split.classes + split.tokens
    if (
        "notrade" not in os.environ.get("JAXLOSS_TRY", "")
        and may_trade
        and even(wider, classes)
        and _is_less_to_tell(mesh, split, math.prod(shapes[0][:-1]), classes)
    ):
        return Split({**operands, "v": wider}, sums, split.tokens)
    return split


def _is_less_to_tell(mesh, split: Split, tokens: int, classes: int) -> bool:
    """Whether devices that share tokens should trade.

    Beside the kernel, of n devices each tells (n - 1) / n times the hidden states of all in 2 bytes and their gradient
    in 4 if they trade, and if not as much of the kernel's gradient: 4 bytes, and 2 or 4 where all keep all of it.
    """
    scattered = [own for role, of in split.sums.items() if (own := of[len(split.classes) if role == "v" else 0 :])]
    if not split.tokens or scattered not in ([], [split.tokens]):
        return False
    return 3 * tokens * math.prod(mesh.shape[axis] for axis in split.classes) <= 2 * classes
