"""Cross entropy of `hidden @ kernel` as a function that JAX may differentiate, batch and split.

Value and gradients of a reduced loss come out of one scan (`_linear_work`): the pair is a `custom_jvp` whose tangent is
⟨gradients, tangents⟩, as in `_pair`. Unreduced losses are differentiated by scans that make each chunk's logits again.
Those scans, and the derivatives of the first, which second order asks for, are plain JAX that saves no logits.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxloss import _examples, _linear_work, _pair
from jaxloss._calls import Array, manual_axes, varying, weighted
from jaxloss._examples import Examples
from jaxloss._linear_mesh import Roles, on_mesh
from jaxloss._linear_work import HIDDEN, KERNEL, LABELS, REST, WEIGHT, Plan, Wanted


@functools.partial(jax.jit, static_argnums=0, inline=True)
def value(plan: Plan, hidden: Array, kernel: Array, labels: Array, examples: Examples, *rest: Array) -> Array:
    """The reduced loss; `rest` are the bias, if there is one, and the parameters of the row loss."""
    rank, classes = plan.token_rank, kernel.shape[0 if plan.classes_first else 1]
    dtype = jnp.float64 if jnp.float64 in (hidden.dtype, kernel.dtype) else jnp.float32
    shape = (*hidden.shape[:-1], classes)
    weight = _examples.row_weight(examples, shape, dtype, example_rank=rank, row_rank=rank, full=True)
    reduced = weighted_rows if examples.reduction == "none" else weighted_sum
    return reduced(plan)(hidden, kernel, labels, weight, *rest)


def _roles(plan: Plan, operands) -> tuple[Roles, ...]:
    parameters = operands[REST + plan.has_bias :]
    return plan.roles(tuple(("v",) if parameter.ndim else () for parameter in parameters))


@functools.cache
def _losses_on_mesh(plan: Plan, roles: tuple[Roles, ...]):
    return on_mesh(functools.partial(_linear_work.losses, plan), roles, (plan.tokens,), plan.axes, by_partitioner=True)


@functools.cache
def _gradients_on_mesh(plan: Plan, wanted: Wanted, roles: tuple[Roles, ...], by_partitioner: bool):
    local = functools.partial(_linear_work.gradients, plan, wanted)
    return on_mesh(local, roles, (plan.tokens, *wanted.of(roles)), plan.axes, by_partitioner)


@functools.cache
def _tangents_on_mesh(plan: Plan, live: tuple[bool, ...], roles: tuple[Roles, ...]):
    local = functools.partial(_linear_work.tangents, plan, live)
    of_dots = tuple(of for of, is_live in zip(roles, live, strict=True) if is_live)
    return on_mesh(local, (*roles, *of_dots), (plan.tokens,), plan.axes, by_partitioner=False)


def _tangents(plan: Plan, operands, dots) -> Array:
    """The tangents of the losses of tokens; None stands for a tangent that is zero."""
    live = tuple(dot is not None for dot in dots)
    given = [dot for dot in dots if dot is not None]
    return _tangents_on_mesh(plan, live, _roles(plan, operands))(*operands, *given)[0]


@functools.cache
def losses(plan: Plan) -> Callable[..., Any]:
    """The losses of tokens, unweighted."""

    @custom_vmap
    def op(*operands):
        return _losses_on_mesh(plan, _roles(plan, operands))(*operands)

    @op.def_vmap
    def _(size, batched, *operands):
        return _batched(size, batched, operands, plan, losses)

    differentiable = jax.custom_jvp(op)

    def tangent(primals, tangents) -> Any:
        results, dots = op(*primals), tuple(map(_pair._or_none, tangents))
        others = tuple(None if place == WEIGHT else dot for place, dot in enumerate(dots))
        if all(dot is None for dot in others):
            return results, tuple(map(jnp.zeros_like, results))
        return results, (_tangents(plan, primals, others),)

    differentiable.defjvp(tangent, symbolic_zeros=True)
    return differentiable


@functools.cache
def gradients(plan: Plan, wanted: Wanted) -> Callable[..., Any]:
    """The losses of tokens, unweighted, and the wanted gradients of the weighted ones' sum."""

    def on(by_partitioner, *operands):
        return _gradients_on_mesh(plan, wanted, _roles(plan, operands), by_partitioner)(*operands)

    @custom_vmap
    def op(*operands):
        return on(True, *operands)

    @op.def_vmap
    def _(size, batched, *operands):
        sums = wanted.kernel or wanted.bias
        return _batched(size, batched, operands, plan, functools.partial(gradients, wanted=wanted), sums)

    differentiable = jax.custom_jvp(op)

    def tangent(primals, tangents) -> Any:
        of_live, live, live_dots = _pair._of_live(functools.partial(on, False), primals, tangents)
        return op(*primals), jax.jvp(of_live, live, live_dots)[1]

    differentiable.defjvp(tangent, symbolic_zeros=True)
    return differentiable


def _batched(size: int, batched, operands, plan: Plan, op_of: Callable, sums: bool = False):
    """The rule of `custom_vmap` for the op that `op_of` makes of a plan; `sums`: if it sums over tokens."""
    of_tokens = (HIDDEN, LABELS, WEIGHT)
    if sums or any(has_axis for place, has_axis in enumerate(batched) if place not in of_tokens):
        # One after the other: each is a scan over chunks as large as memory allows.
        op, several = op_of(plan), [operand for operand, has_axis in zip(operands, batched, strict=True) if has_axis]

        def one(several):
            now = iter(several)
            return op(*(next(now) if has_axis else o for o, has_axis in zip(operands, batched, strict=True)))

        results = jax.lax.map(one, several)
    else:  # a batch axis is one more axis of tokens
        wider = dataclasses.replace(plan, token_rank=plan.token_rank + 1)
        results = op_of(wider)(
            *(
                jnp.broadcast_to(operand, (size, *operand.shape)) if place in of_tokens and not has_axis else operand
                for place, (operand, has_axis) in enumerate(zip(operands, batched, strict=True))
            )
        )
    return results, tuple(True for _ in results)


def _own(plan: Plan, operands, dots):
    """Operands and tangents as one of this device's, in a `shard_map`: in reverse mode, gradients become sums there."""
    axes = [axis for axis in manual_axes(*operands) if axis not in plan.axes]
    return (
        tuple(varying(axes, operand) for operand in operands),
        tuple(None if dot is None else varying(axes, dot) for dot in dots),
    )


@functools.cache
def weighted_sum(plan: Plan) -> Callable[..., Array]:
    """The scalar Σ wᵢ ℓᵢ of tokens with weights w, from the operands."""

    @jax.custom_jvp
    def total(*operands):
        return _pair._contracted(operands[WEIGHT], losses(plan)(*operands)[0])

    def tangent(primals, tangents) -> Any:
        operands, dots = _own(plan, primals, map(_pair._or_none, tangents))
        weight, weight_dot = operands[WEIGHT], dots[WEIGHT]
        wanted = Wanted(dots[HIDDEN] is not None, dots[KERNEL] is not None, plan.has_bias and dots[REST] is not None)
        if wanted:
            of_tokens, *of_operands = gradients(plan, wanted)(*operands)
        else:
            (of_tokens,), of_operands = losses(plan)(*operands), []
        out = _pair._contracted(weight, of_tokens)
        terms = [_pair._total_product(g, dot) for g, dot in zip(of_operands, wanted.of(dots), strict=True)]
        if weight_dot is not None:
            terms.append(_pair._total_product(of_tokens, weight_dot))
        parameter_dots = dots[REST + plan.has_bias :]
        if any(dot is not None for dot in parameter_dots):
            nothing = (None,) * (REST + plan.has_bias)
            losses_dot = _tangents(plan, operands, (*nothing, *parameter_dots))
            counted = _pair._counted(weight, of_tokens)
            terms.append(jnp.sum(weight * jnp.where(counted, losses_dot, 0)))
        return out, sum(_pair.varying_like(out, term) for term in terms)

    total.defjvp(tangent, symbolic_zeros=True)
    return total


@functools.cache
def weighted_rows(plan: Plan) -> Callable[..., Array]:
    """The losses wᵢ ℓᵢ of tokens with weights w, from the operands."""

    @jax.custom_jvp
    def rows(*operands):
        return weighted(operands[WEIGHT], losses(plan)(*operands)[0])

    def tangent(primals, tangents) -> Any:
        operands, dots = _own(plan, primals, map(_pair._or_none, tangents))
        weight, weight_dot = operands[WEIGHT], dots[WEIGHT]
        others = tuple(None if place == WEIGHT else dot for place, dot in enumerate(dots))
        if [place for place, dot in enumerate(others) if dot is not None] == [HIDDEN]:
            # A token's loss depends on its own hidden state only, so its gradient needs no cotangent to be made.
            of_tokens, gradient = gradients(plan, Wanted(hidden=True))(*operands)
            dot = _pair.row_dot(gradient, dots[HIDDEN], plan.token_rank)
        else:
            (of_tokens,), dot = losses(plan)(*operands), 0
            if any(other is not None for other in others):
                losses_dot = _tangents(plan, operands, others)
                dot = weight * jnp.where(_pair._counted(weight, of_tokens), losses_dot, 0)
        if weight_dot is not None:
            dot = dot + of_tokens * weight_dot
        out = weighted(weight, of_tokens)
        return out, jnp.broadcast_to(dot, out.shape).astype(out.dtype)

    rows.defjvp(tangent, symbolic_zeros=True)
    return rows
