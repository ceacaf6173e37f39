"""What the types of operands say of the mesh that they lie on, with or without a mesh in context."""

import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

Array = jax.Array

Entry = tuple[str, ...]
"""The mesh axes that split one axis of an array."""


def mesh_axes(entries: Sequence[Entry]) -> Entry:
    """All mesh axes that occur."""
    return tuple(axis for entry in entries for axis in entry)


def entries_of(spec: Iterable, rank: int) -> tuple[Entry, ...]:
    """The mesh axes that split each of so many axes."""
    given = tuple(() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in spec)
    return given + ((),) * (rank - len(given))


def as_spec(entries: Sequence[Entry]) -> PartitionSpec:
    """The reverse."""
    return PartitionSpec(*(None if not entry else entry[0] if len(entry) == 1 else entry for entry in entries))


def mesh_of(operands: Sequence[Array]) -> AbstractMesh:
    """The mesh of the operands' types, empty if none has one."""
    meshes = [jax.typeof(operand).sharding.mesh for operand in operands]
    return next((mesh for mesh in meshes if not mesh.empty), meshes[0])


def explicit_entries(x: Array) -> tuple[Entry, ...]:
    """The explicit mesh axes that split each axis of an array: of others, its type does not know."""
    return entries_of(jax.typeof(x).sharding.spec.partitions, x.ndim)


def splitting_entries(mesh: AbstractMesh, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The same without mesh axes of one device: XLA refuses collectives over such ones beside automatic axes."""
    return tuple(tuple(axis for axis in entry if mesh.shape[axis] > 1) for entry in entries)


def resharded(mesh: AbstractMesh, x: Array, spec: PartitionSpec) -> Array:
    """`x`, its explicit axes split so."""
    on_mesh = not jax.typeof(x).sharding.mesh.empty
    if not mesh.explicit_axes or (on_mesh and explicit_entries(x) == entries_of(spec, x.ndim)):
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))


def rolled(x: Array, shift: int) -> Array:
    """`jnp.roll` along the last axis, which explicit mesh axes may split: `x` is gathered along it, and split again."""
    entries = explicit_entries(x)
    if not entries[-1]:
        return jnp.roll(x, shift, -1)
    mesh = mesh_of([x])
    whole = resharded(mesh, x, as_spec((*entries[:-1], ())))
    return resharded(mesh, jnp.roll(whole, shift, -1), as_spec(entries))


def axis_split(x: Array, axis: int, size: int) -> Array:
    """`x` with an axis made two, the second of this size. Explicit mesh axes split the first as they did the axis."""
    shape = (*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    mesh = mesh_of([x])
    if not mesh.explicit_axes:
        return x.reshape(shape)
    entries = [*explicit_entries(x)]
    devices = math.prod(mesh.shape[name] for name in entries[axis])
    if shape[axis] % devices:
        entries[axis] = ()
        x = resharded(mesh, x, as_spec(entries))
    entries.insert(axis + 1, ())
    return jnp.reshape(x, shape, out_sharding=NamedSharding(mesh, as_spec(entries)))


def taken(numbers: Array, index: Array) -> Array:
    """`numbers[index]` of a list of numbers, which explicit mesh axes may split; the result is split like `index`."""
    mesh = mesh_of([numbers, index])
    if not mesh.explicit_axes:
        return numbers[index]
    spec = as_spec(explicit_entries(index))
    whole = resharded(mesh, numbers, PartitionSpec(None))
    return whole.at[resharded(mesh, index, spec)].get(out_sharding=NamedSharding(mesh, spec))


def without_reduced(name: str, x: Array) -> Array:
    """`x` as an ordinary replicated array where its type is `reduced` over mesh axes, whose gradient is unreduced."""
    sharding = jax.typeof(x).sharding
    if sharding.spec.unreduced:
        axes = ", ".join(map(repr, sorted(sharding.spec.unreduced)))
        raise ValueError(
            f"{name} is unreduced over the mesh axes {axes}: expected what it sums to; jax.sharding.reshard gives it"
        )
    if not sharding.spec.reduced:
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec.partitions)))


def on_explicit_axes(
    mesh: AbstractMesh,
    body: Callable[..., tuple[Array, ...]],
    operands: Sequence[Array],
    specs: Sequence[PartitionSpec],
    result_specs: Sequence[PartitionSpec],
    check: bool = True,
) -> tuple[Array, ...]:
    """`body` of what a device holds of the operands, the explicit axes of the mesh being manual in it.

    Args:
        mesh: of the operands' types; which axes an enclosing `shard_map` has made manual, it says too.
        body: what each device does.
        operands: the whole operands.
        specs: how they are to be split over explicit axes.
        result_specs: how the results then are split.
        check: whether JAX checks what the results vary over.
    """

    def splitting(spec: PartitionSpec) -> PartitionSpec:
        return as_spec(splitting_entries(mesh, entries_of(spec, len(spec))))

    in_specs, out_specs = (tuple(map(splitting, of)) for of in (specs, result_specs))
    axes = set(mesh.explicit_axes)
    mapped = jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=check)
    results = mapped(*(resharded(mesh, operand, spec) for operand, spec in zip(operands, in_specs, strict=True)))
    return tuple(resharded(mesh, result, spec) for result, spec in zip(results, result_specs, strict=True))
