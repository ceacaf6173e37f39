"""A loss paired with its hand-derived gradient, in reverse and in forward mode.

`weighted_sum(loss)(x, target, row_weight)` is Σ wᵢ ℓᵢ. Its value and its gradient come out of one custom call; that
pair is a `custom_vjp`. A `custom_vjp` alone refuses forward mode, so it sits in a `custom_jvp` whose tangent is
⟨gradient, tangent⟩. Derivatives of the custom calls themselves, which second and higher orders ask for, are plain
formulas.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from jaxloss._calls import along, manual_axes, taken_out, varying, weighted
from jaxloss._rows import Op
from jaxloss.formulas import real

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RowLoss:
    """A loss of rows: its row-wise ops on `(x, target, row_weight)`, and their derivatives as plain formulas.

    Losses are those of the rows, unweighted; gradients are times the row's weight.

    Attributes:
        row_rank: how many axes of `x` are rows, from `(x, target, row_weight)`.
        value: to `(losses,)`.
        value_and_stats: to `(losses, *stats)`, where the statistics are what the formulas below need of a row.
        value_and_grad: to `(losses, gradient)`.
        derivative: the derivative of a row's loss with respect to `x`, from `(x, target, *stats)`.
        target_derivative: the same with respect to the target.
        stats_tangent: the tangents of the statistics, from `(x, *stats, tangent of x)`.
        split_axes: the mesh axes that an enclosing `shard_map` has split the features over.
    """

    row_rank: Callable[..., int]
    value: Op
    value_and_stats: Op
    value_and_grad: Op
    derivative: Callable[..., Array]
    target_derivative: Callable[..., Array]
    stats_tangent: Callable[..., tuple[Array, ...]]
    split_axes: tuple[str, ...] = ()


def row_dot(a: Array, b: Array, rank: int) -> Array:
    """The sum of `a * b` over all axes but the first `rank`."""
    rows, features = tuple(range(rank)), tuple(range(rank, a.ndim))
    sharding = jax.typeof(a).sharding
    # Where shardings are part of the types, split features must be told what becomes of them: they are summed.
    out_sharding = PartitionSpec(*sharding.spec[:rank]) if sharding.mesh.explicit_axes else None
    # Not sum(a * b), which jaxlib 0.10.2's CPU compiler gets wrong under vmap.
    return jax.lax.dot_general(
        real(a),
        real(b),
        ((features, features), (rows, rows)),
        precision=jax.lax.Precision.HIGHEST,
        out_sharding=out_sharding,
    )


def varying_like(result: Array, x: Array) -> Array:
    """`x`, summed over the mesh axes of a `shard_map` that it varies over and `result` does not.

    Those are axes that the features are split over: a row's tangent is the sum of what its slices contribute.
    """
    axes = tuple(axis for axis in manual_axes(x) if axis not in manual_axes(result))
    return jax.lax.psum(x, axes) if axes else x


def _is_zero(tangent) -> bool:
    return isinstance(tangent, SymbolicZero)


def _or_none(tangent):
    return None if _is_zero(tangent) else tangent


def _of_live(function: Callable, primals, tangents):
    """`function` of those operands that have a tangent, and these operands and tangents."""
    places = [i for i, tangent in enumerate(tangents) if not _is_zero(tangent)]

    def of_live(*live):
        operands = list(primals)
        for place, operand in zip(places, live, strict=True):
            operands[place] = operand
        return function(*operands)

    return of_live, tuple(primals[i] for i in places), tuple(tangents[i] for i in places)


def _kept(keep: Array, *arrays: Array) -> tuple[Array, ...]:
    """The arrays with zeros in the rows that are not kept, so that what such a row holds can reach no derivative."""
    return tuple(jnp.where(along(keep, a), a, 0) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in arrays)


# Rematerialised, a scan saves its logits and not a float32 softmax. No barriers against common subexpressions: they
# would keep XLA from folding a cotangent of 1, and from fusing.
@functools.partial(jax.checkpoint, static_argnums=0, prevent_cse=False)
def _losses_tangent(loss: RowLoss, keep: Array, operands, losses, stats, x_dot, target_dot) -> Array:
    """The tangent of the losses of rows, 0 for those that are not kept."""
    rank = loss.row_rank(*operands)
    x, target, *stats = _kept(keep, *operands[:2], *stats)
    terms = [
        row_dot(derivative(x, target, *stats), _kept(keep, dot)[0], rank)
        for dot, derivative in ((x_dot, loss.derivative), (target_dot, loss.target_derivative))
        if dot is not None
    ]
    return varying_like(losses, sum(terms[1:], start=terms[0]))


@functools.cache
def value_and_stats(loss: RowLoss) -> Op:
    """The op of that name, with its derivative."""
    op = jax.custom_jvp(loss.value_and_stats)

    def tangent(primals, tangents):
        x_dot, target_dot = map(_or_none, tangents[:2])
        results = losses, *stats = op(*primals)
        losses_dot, stats_dot = jnp.zeros_like(losses), tuple(map(jnp.zeros_like, stats))
        if x_dot is not None or target_dot is not None:
            losses_dot = _losses_tangent(loss, ~taken_out(primals[2]), primals, losses, stats, x_dot, target_dot)
        if x_dot is not None and stats:
            stats_dot = loss.stats_tangent(*_kept(~taken_out(primals[2]), primals[0], *stats, x_dot))
        return results, (losses_dot, *stats_dot)

    op.defjvp(tangent, symbolic_zeros=True)
    return op


@functools.cache
def value(loss: RowLoss) -> Op:
    """The op of that name, with its derivative: that of `value_and_stats`."""
    op = jax.custom_jvp(loss.value)

    def tangent(primals, tangents):
        of_live, live, live_dots = _of_live(value_and_stats(loss), primals, tangents)
        (losses, *_), (losses_dot, *_) = jax.jvp(of_live, live, live_dots)
        return (losses,), (losses_dot,)

    op.defjvp(tangent, symbolic_zeros=True)
    return op


@functools.cache
def value_and_grad(loss: RowLoss) -> Op:
    """The op of that name, with its derivative: that of the same results as a formula."""
    op = jax.custom_jvp(loss.value_and_grad)

    def formula(x, target, row_weight):
        keep = ~taken_out(row_weight)
        losses, *stats = value_and_stats(loss)(x, target, row_weight)
        (derivative,) = _kept(keep, loss.derivative(*_kept(keep, x, target, *stats)))
        return losses, weighted(row_weight, derivative).astype(x.dtype)

    def tangent(primals, tangents):
        of_live, live, live_dots = _of_live(formula, primals, tangents)
        return op(*primals), jax.jvp(of_live, live, live_dots)[1]

    op.defjvp(tangent, symbolic_zeros=True)
    return op


@functools.partial(jax.checkpoint, prevent_cse=False)  # a scan saves the 16-bit gradient, not what it is widened to
def _total_product(a: Array, b: Array) -> Array:
    # Not vdot: its reshape makes XLA gather an operand whose features are split over devices.
    return jnp.sum(real(a) * real(b))


def _contracted(row_weight: Array, losses: Array) -> Array:
    """Σ wᵢ ℓᵢ; a weight of 0 takes a loss out even if that is NaN."""
    if row_weight.ndim < losses.ndim:  # fewer weights than rows: the rows of a weight first
        losses = losses.sum(tuple(range(row_weight.ndim, losses.ndim)))
    return weighted(row_weight, losses).sum()


@functools.cache
def weighted_sum(loss: RowLoss) -> Callable[..., Any]:
    """The scalar Σ wᵢ ℓᵢ of rows with weights w, as a function of `(x, target, row_weight)`."""

    # `live` says which operands the gradient is wanted for: what nobody asked for is not computed.
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def pair(live, x, target, row_weight):
        return _contracted(row_weight, value(loss)(x, target, row_weight)[0])

    def forward(live, x, target, row_weight):
        of_x, of_target, of_weight = live
        gradient = stats = losses = None
        if of_x:
            losses, gradient = value_and_grad(loss)(x, target, row_weight)
        if of_target:
            losses, *stats = value_and_stats(loss)(x, target, row_weight)
        if losses is None:
            (losses,) = value(loss)(x, target, row_weight)
        saved_for_target = (x, target, stats, row_weight) if of_target else None
        saved_for_weight = (losses, row_weight) if of_weight else None
        return _contracted(row_weight, losses), (gradient, saved_for_target, saved_for_weight)

    def backward(live, saved, cotangent):
        gradient, saved_for_target, saved_for_weight = saved
        of_x = None if gradient is None else (real(gradient) * cotangent).astype(gradient.dtype)
        of_target = of_weight = None
        if saved_for_target:
            x, target, stats, row_weight = saved_for_target
            derivative = loss.target_derivative(*_kept(~taken_out(row_weight), x, target, *stats))
            of_target = (weighted(row_weight, derivative) * cotangent).astype(target.dtype)
        if saved_for_weight:
            losses, row_weight = saved_for_weight
            of_weight = losses.sum(tuple(range(row_weight.ndim, losses.ndim))) * cotangent
        return of_x, of_target, of_weight

    pair.defvjp(forward, backward)

    @jax.custom_jvp
    def total(x, target, row_weight):
        return pair((False, False, False), x, target, row_weight)

    def tangent(primals, tangents):
        live = tuple(not _is_zero(tangent) for tangent in tangents)
        # In a shard_map, an operand that every device holds may meet one that differs: this cast gives each device a
        # gradient of its own, and in reverse mode becomes their sum.
        axes = [axis for axis in manual_axes(*primals) if axis not in loss.split_axes]
        primals = tuple(varying(axes, operand) for operand in primals)
        of_live, operands, dots = _of_live(functools.partial(pair, live), primals, tangents)
        dots = tuple(varying(axes, dot) for dot in dots)
        out, pull = jax.vjp(of_live, *operands)
        gradients = pull(jnp.ones_like(out))
        terms = (_total_product(g, dot) for g, dot in zip(gradients, dots, strict=True))
        return out, sum(varying_like(out, term) for term in terms)

    total.defjvp(tangent, symbolic_zeros=True)
    return total


@functools.cache
def weighted_rows(loss: RowLoss) -> Callable[..., Any]:
    """The losses wᵢ ℓᵢ of rows with weights w, as a function of `(x, target, row_weight)`.

    Their derivative is a plain formula from the statistics that the forward call leaves: XLA fuses it, and its
    transpose, into one pass over `x`, so a kernel for it would gain nothing.
    """

    @jax.custom_jvp
    def rows(x, target, row_weight):
        return weighted(row_weight, value(loss)(x, target, row_weight)[0])

    def tangent(primals, tangents):
        (x, target, row_weight), (x_dot, target_dot, weight_dot) = primals, map(_or_none, tangents)
        losses, *stats = value_and_stats(loss)(x, target, row_weight)
        dot = jnp.zeros_like(losses)
        if x_dot is not None or target_dot is not None:
            weight = along(row_weight, losses)
            keep = ~(taken_out(weight) | ((weight == 0) & ~jnp.isfinite(losses)))
            dot = weight * _losses_tangent(loss, keep, primals, losses, stats, x_dot, target_dot)
        if weight_dot is not None:
            dot = dot + losses * along(weight_dot, losses)
        return weighted(row_weight, losses), dot

    rows.defjvp(tangent, symbolic_zeros=True)
    return rows
