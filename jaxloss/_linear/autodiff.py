"""Cross entropy of `hidden @ kernel` as a function that JAX may differentiate, batch and split.

Value and gradients of a reduced loss come out of one scan (`local`), in a `custom_jvp` whose tangent is ⟨gradients,
tangents⟩. Unreduced losses and statistics are differentiated by scans that make each chunk's logits again. Those scans,
and the derivatives of the first, which second order asks for, are plain JAX that saves no logits.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxloss._arrays import Array, inlined, manual_axes, varying, weighted
from jaxloss._autodiff.tangents import (
    BOUNDED,
    contracted,
    counted,
    or_none,
    row_dot,
    scale_beyond,
    times,
    total_product,
    varying_like,
    with_nonzero_tangents,
    zero_tangent,
)
from jaxloss._linear import local as _linear_work
from jaxloss._linear.local import HIDDEN, KERNEL, LABELS, REST, WEIGHT, GradientRequest, Plan
from jaxloss._linear.sharding import OnMesh
from jaxloss._linear.split import Split
from jaxloss._partitioning.partitioned import Call
from jaxloss._rows.weights import Examples, row_weight

Op = Callable[..., Any]


@inlined(static_argnums=0)
def value(plan: Plan, operands: tuple[Array, Array, Array], examples: Examples, *rest: Array) -> tuple[Array, ...]:
    """The reduced loss, and the statistics of tokens that are asked for.

    Operands are hidden states, kernel and labels; `rest` are the bias, if there is one, and the parameters.
    """
    hidden, kernel, labels = operands
    shape = (*hidden.shape[:-1], kernel.shape[0 if plan.classes_first else 1])
    dtype = jnp.float64 if jnp.float64 in (hidden.dtype, kernel.dtype) else jnp.float32
    rank = plan.token_rank
    weight = row_weight(examples, shape, dtype, example_rank=rank, row_rank=rank, full=True)
    return _reduced(plan, examples.reduction == "none")(hidden, kernel, labels, weight, *rest)


# ---- the work on a mesh, batched -------------------------------------------------------------------------------------


@functools.cache
def _losses_on_mesh(plan: Plan) -> OnMesh:
    results = (plan.tokens,) * (1 + len(plan.stats))
    local = functools.partial(_linear_work.losses, plan, True)
    return OnMesh((__name__, (plan, None)), local, plan.roles, results, plan.axes, direct=True)


@functools.cache
def _gradients_on_mesh(plan: Plan, wanted: GradientRequest, direct: bool) -> OnMesh:
    local = functools.partial(_linear_work.gradients, plan, wanted, direct)
    results = ((plan.tokens,) * (1 + len(plan.stats)), wanted.of(plan.roles))
    return OnMesh((__name__, (plan, wanted)), local, plan.roles, results[0] + results[1], plan.axes, direct)


@functools.cache
def _tangents_on_mesh(plan: Plan, nonzero: tuple[bool, ...]) -> OnMesh:
    local = functools.partial(_linear_work.tangents, plan, nonzero)
    of_tangents = tuple(roles for roles, is_live in zip(plan.roles, nonzero, strict=True) if is_live)
    moving = [name for name in plan.stats if name not in ("predicted", "rank")]
    results = (plan.tokens,) * (1 + len(moving))
    return OnMesh(None, local, (*plan.roles, *of_tangents), results, plan.axes, direct=False)


def partitioned(plan: Plan, wanted: GradientRequest | None, outer: Split) -> Call:
    """The call of that description."""
    return (_losses_on_mesh(plan) if wanted is None else _gradients_on_mesh(plan, wanted, direct=True)).call(outer)


def _batched(size: int, batched, operands, plan: Plan, op_of: Callable[[Plan], Op], sums: bool):
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


# ---- with derivatives ------------------------------------------------------------------------------------------------


@functools.cache
def losses(plan: Plan) -> Op:
    """The losses of tokens, unweighted, and the statistics that are asked for."""

    @custom_vmap
    def op(*operands):
        return _losses_on_mesh(plan)(*operands)

    @op.def_vmap
    def _(size, batched, *operands):
        return _batched(size, batched, operands, plan, losses, sums=False)

    differentiable = jax.custom_jvp(op)

    def tangent(primals, tangents) -> Any:
        results = differentiable(*primals)  # not op: third order comes here
        return results, _tangents(plan, primals, tuple(map(or_none, tangents)), results)

    differentiable.defjvp(tangent, symbolic_zeros=True)
    return differentiable


@functools.cache
def gradients(plan: Plan, wanted: GradientRequest) -> Op:
    """The same, and the wanted gradients of the weighted losses' sum."""

    @custom_vmap
    def op(*operands):
        return _gradients_on_mesh(plan, wanted, direct=True)(*operands)

    @op.def_vmap
    def _(size, batched, *operands):
        op_of = functools.partial(gradients, wanted=wanted)
        return _batched(size, batched, operands, plan, op_of, sums=wanted.kernel or wanted.bias)

    differentiable = jax.custom_jvp(op)

    def tangent(primals, tangents) -> Any:
        plain = _gradients_on_mesh(plan, wanted, direct=False)
        of_nonzero, nonzero, nonzero_tangents = with_nonzero_tangents(plain, primals, tangents)
        return differentiable(*primals), jax.jvp(of_nonzero, nonzero, nonzero_tangents)[1]

    differentiable.defjvp(tangent, symbolic_zeros=True)
    return differentiable


def _tangents(plan: Plan, operands, tangents, results) -> tuple:
    """The tangents of `losses`, which gave these results; None stands for a tangent that is zero."""
    tangents = tuple(None if place == WEIGHT else tangent for place, tangent in enumerate(tangents))
    nonzero = tuple(tangent is not None for tangent in tangents)
    if not any(nonzero):
        return tuple(map(zero_tangent, results))
    moving = _tangents_on_mesh(plan, nonzero)(*operands, *(tangent for tangent in tangents if tangent is not None))
    return *moving, *map(zero_tangent, results[len(moving) :])


def _of_this_device(plan: Plan, operands, tangents) -> tuple[tuple, tuple]:
    """Operands and tangents that each device of a `shard_map` has its own of: in reverse mode, its gradients add up."""
    axes = [axis for axis in manual_axes(*operands) if axis not in plan.axes]
    return (
        tuple(varying(axes, operand) for operand in operands),
        tuple(None if tangent is None else varying(axes, tangent) for tangent in tangents),
    )


def _reduced(plan: Plan, unreduced: bool) -> Op:
    return (weighted_rows if unreduced else weighted_sum)(plan)


@functools.cache
def weighted_sum(plan: Plan) -> Op:
    """The scalar Σ wᵢ ℓᵢ of tokens with weights w, from the operands, and the statistics that are asked for."""

    @jax.custom_jvp
    def total(*operands):
        of_tokens, *stats = losses(plan)(*operands)
        return contracted(operands[WEIGHT], of_tokens), *stats

    def tangent(primals, tangents) -> Any:
        operands, tangents = _of_this_device(plan, primals, map(or_none, tangents))
        weight, weight_tangent = operands[WEIGHT], tangents[WEIGHT]
        wanted = GradientRequest(
            tangents[HIDDEN] is not None, tangents[KERNEL] is not None, plan.has_bias and tangents[REST] is not None
        )
        scale, weighed = None, operands
        if wanted and jnp.float16 in (operands[HIDDEN].dtype, operands[KERNEL].dtype) and not plan.sums_in_float16:
            scale = scale_beyond(weight, BOUNDED)
            weighed = (*operands[:WEIGHT], weight / scale, *operands[WEIGHT + 1 :])
        results = gradients(plan, wanted)(*weighed) if wanted else losses(plan)(*operands)
        (of_tokens, *stats), of_operands = results[: 1 + len(plan.stats)], results[1 + len(plan.stats) :]
        out = contracted(weight, of_tokens)
        terms = [
            times(total_product(g, tangent), scale) for g, tangent in zip(of_operands, wanted.of(tangents), strict=True)
        ]
        if weight_tangent is not None:
            terms.append(total_product(of_tokens, weight_tangent))
        parameter_tangents = (*(None,) * (REST + plan.has_bias), *tangents[REST + plan.has_bias :])
        if any(tangent is not None for tangent in parameter_tangents):
            losses_tangent = _tangents(plan, operands, parameter_tangents, (of_tokens, *stats))[0]
            terms.append(jnp.sum(weight * jnp.where(counted(weight, of_tokens), losses_tangent, 0)))
        tangent = sum(varying_like(out, term) for term in terms)
        stats_tangents = _tangents(plan, operands, tangents, (of_tokens, *stats))[1:] if stats else ()
        return (out, *stats), (tangent, *stats_tangents)

    total.defjvp(tangent, symbolic_zeros=True)
    return total


@functools.cache
def weighted_rows(plan: Plan) -> Op:
    """The losses wᵢ ℓᵢ of tokens with weights w, from the operands, and the statistics that are asked for."""

    @jax.custom_jvp
    def rows(*operands):
        of_tokens, *stats = losses(plan)(*operands)
        return weighted(operands[WEIGHT], of_tokens), *stats

    def tangent(primals, tangents) -> Any:
        operands, tangents = _of_this_device(plan, primals, map(or_none, tangents))
        weight, weight_tangent = operands[WEIGHT], tangents[WEIGHT]
        nonzero = [place for place, tangent in enumerate(tangents) if tangent is not None and place != WEIGHT]
        if nonzero == [HIDDEN] and not plan.stats:
            # A token's loss depends on its own hidden state only, so its gradient needs no cotangent to be made.
            of_tokens, gradient = gradients(plan, GradientRequest(hidden=True))(*operands)
            stats, stats_tangents = (), ()
            tangent = row_dot(gradient, tangents[HIDDEN], plan.token_rank)
        else:
            of_tokens, *stats = losses(plan)(*operands)
            losses_tangent, *stats_tangents = _tangents(plan, operands, tangents, (of_tokens, *stats))
            tangent = weight * jnp.where(counted(weight, of_tokens), losses_tangent, 0)
        if weight_tangent is not None:
            tangent = tangent + of_tokens * weight_tangent
        return (weighted(weight, of_tokens), *stats), (tangent, *stats_tangents)

    rows.defjvp(tangent, symbolic_zeros=True)
    return rows
