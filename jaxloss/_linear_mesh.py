"""Work on tokens and a kernel that lie on a mesh: automatic, explicit, or inside a `shard_map`."""

import functools
from collections.abc import Callable, Sequence

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding

from jaxloss._calls import Array
from jaxloss._linear_split import Roles, Split, is_sum, split_of
from jaxloss._rows import sharding_rule

Local = Callable[..., tuple[Array, ...]]


def on_mesh(
    local: Local,
    operand_roles: Sequence[Roles],
    result_roles: Sequence[Roles],
    axes: tuple[str, ...],
    direct: bool,
) -> Callable[..., tuple[Array, ...]]:
    """`local` on operands that devices may share.

    Args:
        local: the work of one device. It is given how devices split it, and whether they may have split the tokens
            without its knowledge; then operands.
        operand_roles: the roles of the operands' axes.
        result_roles: the roles of the results' axes.
        axes: the mesh axes that an enclosing `shard_map` has split the classes over.
        direct: whether this is not to be differentiated. Then automatic sharding asks `split_of`; if not, XLA splits
            the operations of `local` as it sees fit.
    """
    may_trade = direct and operand_roles[1] in result_roles

    def split_on(mesh, operands, specs) -> Split:
        return split_of(mesh, operand_roles, [operand.shape for operand in operands], specs, may_trade)

    # `custom_partitioning` takes no constants, and those of `local` are arrays under `jax.ensure_compile_time_eval`.
    with_constants = jax.jit(functools.partial(local, Split(), False))

    @custom_partitioning
    def automatic(*operands):
        return with_constants(*operands)

    def partition(mesh, operands, results):
        del results
        split = split_on(mesh, operands, [operand.sharding.spec for operand in operands])
        of_operands = tuple(NamedSharding(mesh, split.operand_spec(roles)) for roles in operand_roles)
        of_results = tuple(NamedSharding(mesh, split.spec(roles)) for roles in result_roles)
        return mesh, functools.partial(local, split, False), of_results, of_operands

    names = sorted({role for roles in (*operand_roles, *result_roles) for role in roles})
    numbered = [[[names.index(role) for role in roles] for roles in many] for many in (operand_roles, result_roles)]
    automatic.def_partition(partition=partition, sharding_rule=sharding_rule(*numbered))

    def placed(*operands):
        mesh = jax.typeof(operands[0]).sharding.mesh
        if mesh.manual_axes:  # inside a shard_map: the operands are what this device holds
            return local(Split({"v": axes}), False, *operands)
        if mesh.empty or not mesh.are_all_axes_explicit:
            return automatic(*operands) if direct else local(Split(), True, *operands)
        specs = [jax.typeof(operand).sharding.spec for operand in operands]
        split = split_on(mesh, operands, specs)
        in_specs = tuple(map(split.operand_spec, operand_roles))
        results = jax.shard_map(
            functools.partial(local, split, False),
            in_specs=in_specs,
            out_specs=tuple(map(split.spec, result_roles)),
            check_vma=not direct,  # it can not know that what all gathered is the same everywhere
        )(*map(jax.sharding.reshard, operands, in_specs))
        # A gradient is split like its operand.
        like = {roles: spec for roles, spec in zip(operand_roles, specs, strict=True) if is_sum(roles) or "e" in roles}
        return tuple(
            jax.sharding.reshard(result, like[roles]) if roles in like else result
            for roles, result in zip(result_roles, results, strict=True)
        )

    return placed
