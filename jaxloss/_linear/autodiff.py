"""Cross entropy of `hidden @ kernel` as a function that JAX may differentiate, batch and split.

Value and gradients of a reduced loss come out of one scan (`gradients`), which `pair` joins with a backward pass.
Unreduced losses and statistics are differentiated by scans that make each chunk's logits again. Those scans, and the
derivatives of the first, which second order asks for, are plain JAX that saves no logits.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxloss._arrays import Array, inlined
from jaxloss._autodiff.pair import Loss, of_each_device, weighted_rows, weighted_sum
from jaxloss._autodiff.tangents import BOUNDED, counted, or_none, row_dot, with_derivative_of, zero_tangent
from jaxloss._linear import local
from jaxloss._linear.alignment import where_faster
from jaxloss._linear.gradients import gradients as gradients_of_device
from jaxloss._linear.plan import LinearOperands, Plan
from jaxloss._linear.sharding import OnMesh
from jaxloss._linear.split import Split
from jaxloss._partitioning.partitioned import Call
from jaxloss._rows.weights import Examples, row_weight

Op = Callable[[LinearOperands], tuple[Array, ...]]


@inlined(static_argnums=0)
def value(plan: Plan, operands: tuple[Array, Array, Array], examples: Examples, *rest: Array) -> tuple[Array, ...]:
    """The reduced loss, and the statistics of tokens that are asked for.

    Operands are hidden states, kernel and labels; `rest` are the bias, if there is one, and the parameters.
    """
    hidden, kernel, labels = operands
    shape = (*hidden.shape[:-1], kernel.shape[0 if plan.classes_first else 1])
    rank = plan.token_rank
    weight = row_weight(examples, shape, plan.value_dtype, example_rank=rank, row_rank=rank, least_rank=rank)
    reduced = weighted_rows if examples.reduction == "none" else weighted_sum
    return reduced(Linear(plan), bool(plan.stats))(plan.operands((hidden, kernel, labels, weight, *rest)))


@dataclasses.dataclass(frozen=True)
class Linear(Loss):
    """The loss of tokens, which are the rows; statistics are those that the plan asks for."""

    plan: Plan

    wrt = ("hidden", "kernel", "bias")
    float16_weight = BOUNDED

    @property
    def split_axes(self) -> tuple[str, ...]:
        return self.plan.axes

    def rounds_to_float16(self, operands: LinearOperands) -> bool:
        types = (operands.hidden.dtype, operands.kernel.dtype)
        return jnp.float16 in types and not self.plan.sums_in_float16

    def losses(self, operands: LinearOperands, with_stats: bool) -> tuple[Array, ...]:
        return losses(self.plan)(operands)

    def losses_and_gradients(self, wrt: tuple[str, ...], operands: LinearOperands, with_stats: bool):
        losses, *rest = gradients(self.plan, wrt)(operands)
        stats = len(self.plan.stats)
        return losses, rest[:stats], dict(zip(wrt, rest[stats:], strict=True))

    def tangents(self, keep: Array, operands: LinearOperands, losses: Array, stats, tangents: LinearOperands):
        losses_tangent, *stats_tangents = _tangents(self.plan, operands, (losses, *stats), tangents)
        return jnp.where(keep, losses_tangent, 0), *stats_tangents

    def rows_and_tangents(self, operands: LinearOperands, tangents: LinearOperands):
        operands, tangents = of_each_device(self, operands, tangents)
        if tangents.hidden is not None and not jax.tree.leaves(tangents._replace(hidden=None)) and not self.plan.stats:
            # A token's loss depends on its own hidden state only, so its gradient needs no cotangent to be made.
            of_tokens, gradient = gradients(self.plan, ("hidden",))(operands)
            tangent = row_dot(gradient, tangents.hidden, self.plan.token_rank)
            return of_tokens, [], tangent.astype(of_tokens.dtype), []
        of_tokens, *stats = losses(self.plan)(operands)
        keep = counted(operands.row_weight, of_tokens)
        losses_tangent, *stats_tangents = self.tangents(keep, operands, of_tokens, stats, tangents)
        return of_tokens, stats, operands.row_weight * losses_tangent, stats_tangents


# ---- the work on a mesh, batched -------------------------------------------------------------------------------------


@functools.cache
def _losses_on_mesh(plan: Plan) -> OnMesh:
    results = (plan.tokens,) * (1 + len(plan.stats))
    of_device = where_faster(plan, lambda plan: functools.partial(local.losses, plan, True))
    roles, gradient_of = plan.flat(plan.roles), [None] * len(results)
    return OnMesh((__name__, (plan, ())), of_device, roles, results, plan.axes, direct=True, gradient_of=gradient_of)


@functools.cache
def _gradients_on_mesh(plan: Plan, wrt: tuple[str, ...], direct: bool) -> OnMesh:
    of_device = where_faster(plan, lambda plan: functools.partial(gradients_of_device, plan, wrt, direct))
    of_tokens = (plan.tokens,) * (1 + len(plan.stats))
    results = (*of_tokens, *(getattr(plan.roles, name) for name in wrt))
    gradient_of = [*([None] * len(of_tokens)), *(plan.places[name] for name in wrt)]
    roles = plan.flat(plan.roles)
    return OnMesh((__name__, (plan, wrt)), of_device, roles, results, plan.axes, direct, gradient_of)


@functools.cache
def _tangents_on_mesh(plan: Plan, nonzero: tuple[bool, ...]) -> OnMesh:
    of_device = where_faster(plan, lambda plan: functools.partial(local.tangents, plan, nonzero))
    roles = plan.flat(plan.roles)
    of_tangents = tuple(roles for roles, has_one in zip(roles, nonzero, strict=True) if has_one)
    differentiable = [name for name in plan.stats if name not in ("predicted", "rank")]
    results = (plan.tokens,) * (1 + len(differentiable))
    gradient_of = [None] * len(results)
    return OnMesh(None, of_device, (*roles, *of_tangents), results, plan.axes, direct=False, gradient_of=gradient_of)


def partitioned(plan: Plan, wrt: tuple[str, ...], outer: Split) -> Call:
    """The call of that description."""
    return (_gradients_on_mesh(plan, wrt, direct=True) if wrt else _losses_on_mesh(plan)).call(outer)


def _batched(
    size: int, batched: LinearOperands, operands: LinearOperands, plan: Plan, op_of: Callable[[Plan], Op], *, sums: bool
):
    """The rule of `custom_vmap` for the op that `op_of` makes of a plan; `sums`: if it sums over tokens."""
    of_tokens = ("hidden", "labels", "row_weight")
    if sums or not plan.widens or any(jax.tree.leaves(batched._replace(**dict.fromkeys(of_tokens)))):
        results = one_after_the_other(op_of(plan), batched, operands)
    else:  # a batch axis is one more axis of tokens
        wider = dataclasses.replace(plan, token_rank=plan.token_rank + 1)
        with_axis = {
            name: array if getattr(batched, name) else jnp.broadcast_to(array, (size, *array.shape))
            for name, array in ((name, getattr(operands, name)) for name in of_tokens)
        }
        results = op_of(wider)(operands._replace(**with_axis))
    return results, tuple(True for _ in results)


def one_after_the_other(op: Callable[[Any], tuple[Array, ...]], batched, operands) -> tuple[Array, ...]:
    """An op of a tree of operands, some of which have a batch axis: each is a scan over chunks as memory allows."""
    arrays, structure = jax.tree.flatten(operands)
    has_axis = jax.tree.leaves(batched)

    def one(several):
        own = iter(several)
        return op(structure.unflatten(next(own) if has else a for a, has in zip(arrays, has_axis, strict=True)))

    return jax.lax.map(one, [a for a, has in zip(arrays, has_axis, strict=True) if has])


# ---- with derivatives ------------------------------------------------------------------------------------------------


@functools.cache
def losses(plan: Plan) -> Op:
    """The losses of tokens, unweighted, and the statistics that are asked for."""

    @custom_vmap
    def op(operands):
        return _losses_on_mesh(plan)(*plan.flat(operands))

    @op.def_vmap
    def _(size, batched, operands):
        return _batched(size, batched[0], operands, plan, losses, sums=False)

    differentiable = jax.custom_jvp(op)

    def tangent(primals, tangents) -> Any:
        results = differentiable(*primals)  # not op: third order comes here
        tangents = jax.tree.map(or_none, *tangents)._replace(row_weight=None)
        return results, _tangents(plan, primals[0], results, tangents)

    differentiable.defjvp(tangent, symbolic_zeros=True)
    return differentiable


@functools.cache
def gradients(plan: Plan, wrt: tuple[str, ...]) -> Op:
    """The same, and the gradients of the weighted losses' sum with respect to the operands that `wrt` names."""

    @custom_vmap
    def op(operands):
        return _gradients_on_mesh(plan, wrt, direct=True)(*plan.flat(operands))

    @op.def_vmap
    def _(size, batched, operands):
        return _batched(
            size, batched[0], operands, plan, functools.partial(gradients, wrt=wrt), sums=wrt != ("hidden",)
        )

    def plain(operands):
        return _gradients_on_mesh(plan, wrt, direct=False)(*plan.flat(operands))

    return with_derivative_of(plain, op)


def _tangents(plan: Plan, operands: LinearOperands, results: Sequence[Array], tangents: LinearOperands) -> tuple:
    """The tangents of `losses`, which gave these results; None stands for a tangent that is zero."""
    flat = plan.flat(tangents)
    nonzero = tuple(tangent is not None for tangent in flat)
    if not any(nonzero):
        return tuple(map(zero_tangent, results))
    given = (tangent for tangent in flat if tangent is not None)
    differentiable = _tangents_on_mesh(plan, nonzero)(*plan.flat(operands), *given)
    return *differentiable, *map(zero_tangent, results[len(differentiable) :])
