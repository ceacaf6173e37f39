"""What the types of operands say of the mesh that they lie on, with or without a mesh in context."""

from collections.abc import Callable, Iterable, Sequence

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxloss._calls import Array

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
    return entries_of(jax.typeof(x).sharding.spec, x.ndim)


def resharded(mesh: AbstractMesh, x: Array, spec: PartitionSpec) -> Array:
    """`x`, its explicit axes split so."""
    on_mesh = not jax.typeof(x).sharding.mesh.empty
    if not mesh.explicit_axes or (on_mesh and explicit_entries(x) == entries_of(spec, x.ndim)):
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))


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
    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=tuple(specs),
        out_specs=tuple(result_specs),
        axis_names=set(mesh.explicit_axes),
        check_vma=check,
    )
    return mapped(*(resharded(mesh, operand, spec) for operand, spec in zip(operands, specs, strict=True)))
