"""A caller's objective of tokens as a function that JAX may differentiate, batch and split.

Its value and all gradients come out of one scan (`blocks`), which `joined` joins with a backward pass that scales them.
The derivatives of that scan, which second order asks for, are plain JAX that saves no logits.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxloss._arrays import Array, inlined, manual_axes, varying
from jaxloss._autodiff.pair import joined
from jaxloss._autodiff.tangents import (
    or_none,
    total_product,
    varying_like,
    with_derivative_of,
    with_nonzero_tangents,
    zero_tangent,
)
from jaxloss._linear import blocks
from jaxloss._linear.alignment import where_faster
from jaxloss._linear.autodiff import one_after_the_other
from jaxloss._linear.blocks import BlockPlan
from jaxloss._linear.plan import Plan
from jaxloss._linear.sharding import OnMesh

Op = Callable[[tuple[Array, ...]], tuple[Array, ...]]


@inlined(static_argnums=0)
def value(plan: BlockPlan, operands: tuple[Array, ...]) -> tuple[Array, ...]:
    """The sum of the objective over all blocks, and the sums beside it."""
    if plan.plan.whole_rank and not operands[2].shape[-1]:  # sequences without tokens
        return tuple(jnp.zeros(of.shape, of.dtype) for of in (operands[3].sum(), *plan.objective.sums))
    return _differentiable(plan)(operands)


def _differentiable(plan: BlockPlan) -> Op:
    """The same, in a shell that gives the pair forward mode, and that JAX transposes back to reverse mode."""

    @jax.custom_jvp
    def summed(operands):
        return _pair(plan, ())(operands)

    def tangent(primals, tangents) -> Any:
        tangents = tuple(map(or_none, *tangents))
        wrt = tuple(place for place, tangent in enumerate(tangents) if tangent is not None)
        operands, tangents = _of_each_device(plan, primals[0], tangents)
        if not wrt:
            results = summed(operands)
            return results, tuple(map(zero_tangent, results))

        def paired(*operands):
            total, *sums = _pair(plan, wrt)(operands)
            return total, sums

        of_nonzero, nonzero, nonzero_tangents = with_nonzero_tangents(paired, operands, tangents)
        total, pull, sums = jax.vjp(of_nonzero, *nonzero, has_aux=True)
        products = map(total_product, pull(jnp.ones_like(total)), nonzero_tangents)
        tangent = sum(varying_like(total, product).astype(total.dtype) for product in products)
        return (total, *sums), (tangent, *map(zero_tangent, sums))

    summed.defjvp(tangent, symbolic_zeros=True)
    return summed


def _of_each_device(
    plan: BlockPlan, operands: Sequence[Array], tangents: Sequence[Array | None]
) -> tuple[tuple, tuple]:
    """Operands and tangents that every device of a `shard_map` has its own of.

    The objective was traced with what it closes over as it is: the types of that can not change any more.
    """
    cast = len(operands) - len(plan.closed_over_ranks)
    axes = [axis for axis in manual_axes(*operands) if axis not in plan.plan.axes]
    for array, tangent in zip(operands[cast:], tangents[cast:], strict=True):
        if tangent is not None and (missing := [axis for axis in axes if axis not in manual_axes(array)]):
            raise ValueError(
                f"objective closes over an array of shape {array.shape} that is differentiated, and that does not vary "
                f"over the mesh axes {missing} of an enclosing shard_map as the tokens do: expected one that does; "
                f"jax.lax.pcast(array, {tuple(missing)}, to='varying') gives it"
            )

    def own(arrays):
        return (*(None if array is None else varying(axes, array) for array in arrays[:cast]), *arrays[cast:])

    return own(operands), own(tangents)


def _pair(plan: BlockPlan, wrt: tuple[int, ...]) -> Op:
    """Value and sums, joined with the gradients of the value with respect to the operands at these places."""

    def value_and_gradients(operands):
        results = _gradients(plan, wrt)(operands)
        gradients: list[Array | None] = [None] * len(operands)
        for place, gradient in zip(wrt, results[1 + len(plan.objective.sums) :], strict=True):
            gradients[place] = gradient
        return results[: 1 + len(plan.objective.sums)], tuple(gradients)

    return joined(_values(plan), value_and_gradients)


def _values(plan: BlockPlan) -> Op:
    return _batchable(_on_mesh(plan, functools.partial(blocks.values, direct=True), (), direct=True))


def _gradients(plan: BlockPlan, wrt: tuple[int, ...]) -> Op:
    def op(direct: bool) -> Op:
        of_device = functools.partial(blocks.gradients, wrt=wrt, direct=direct)
        return _on_mesh(plan, of_device, wrt, direct)

    return with_derivative_of(op(direct=False), _batchable(op(direct=True)))


def _on_mesh(plan: BlockPlan, of_device: Callable, wrt: tuple[int, ...], direct: bool) -> Op:
    """The work on devices that may share it. A call that holds a caller's function has no description."""
    roles = plan.roles
    sums = [tuple(f"s{place}.{axis}" for axis in range(len(of.shape))) for place, of in enumerate(plan.objective.sums)]
    results = ((), *sums, *(roles[place] for place in wrt))
    gradient_of = [None] * (1 + len(sums)) + list(wrt)

    def of_plan(of_tokens: Plan):
        return functools.partial(of_device, dataclasses.replace(plan, plan=of_tokens))

    work = OnMesh(None, where_faster(plan.plan, of_plan), roles, results, plan.plan.axes, direct, gradient_of)
    return lambda operands: work(*operands)


def _batchable(op: Op) -> Op:
    batchable = custom_vmap(op)

    @batchable.def_vmap
    def _(size, batched, operands):
        del size
        results = one_after_the_other(batchable, batched[0], operands)
        return results, tuple(True for _ in results)

    return batchable
