"""A loss paired with its hand-derived gradient, in reverse and in forward mode.

`weighted_sum(loss)` is Σ wᵢ ℓᵢ of rows i. Its value and its gradient with respect to `x` come out of one custom call,
joined by `jax.custom_vjp`; a `custom_jvp` around that gives it forward mode. Derivatives with respect to other
operands, and those of the custom calls themselves, which second and higher orders ask for, are plain formulas.

Operands are always `(x, target, row_weight, *parameters)`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss._arrays import MASKED, Array, along, is_masked, manual_axes, varying, weighted
from jaxloss._autodiff.row_product import row_product
from jaxloss._autodiff.tangents import (
    contracted,
    counted,
    losses_of_weights,
    or_none,
    scale_beyond,
    times,
    total_product,
    varying_like,
    with_nonzero_tangents,
    zero_tangent,
)
from jaxloss._partitioning.partitioned import Op


@dataclasses.dataclass(frozen=True)
class RowLoss:
    """A loss of rows: its row-wise ops on `(x, target, row_weight, *parameters)`, and their derivatives as formulas.

    Losses are those of the rows, unweighted; gradients are times the row's weight.

    Attributes:
        row_rank: how many axes of `x` are rows, from the operands.
        value: to `(losses,)`.
        value_and_stats: to `(losses, *stats)`, where the statistics are what the formulas below need of a row.
        value_and_grad: to `(losses, gradient)`, or to `(losses, *stats, gradient)`.
        derivative: the derivative of a row's loss with respect to `x`, from operands and statistics.
        tangents: the tangents of losses and statistics, from operands, losses, statistics and the operands' tangents
            (None for zero; that of `row_weight` is always None). None in the result stands for zeros too.
        grad_gives_stats: whether `value_and_grad` gives the statistics.
        grad: operands and statistics to `(gradient,)`; None where the derivative's formula is as fast.
        stats: how many statistics `grad` is given.
        sums: whether, of these operands with one weight for all rows, the weighted losses are rather summed where they
            are computed; its first argument is whether the gradient is wanted too.
        total: to `(total,)`, that sum; for each weight, where there are several.
        total_and_grad: to `(total, gradient)`.
        features: the positions of the operands whose last axis is that of `x`, and not its first ones'.
        split_axes: the mesh axes that an enclosing `shard_map` has split the features over.
        float16_weight: a row weight that makes a gradient so large that float16 holds its small elements, too, and so
            small that it holds the large ones.
    """

    row_rank: Callable[..., int]
    value: Op
    value_and_stats: Op
    value_and_grad: Op
    derivative: Callable[[tuple, tuple], Array]
    tangents: Callable[[tuple, Array, tuple, tuple], tuple]
    grad_gives_stats: bool = False
    grad: Op | None = None
    stats: int = 0
    sums: Callable[..., bool] = lambda *_: False
    total: Op | None = None
    total_and_grad: Op | None = None
    features: tuple[int, ...] = ()
    split_axes: tuple[str, ...] = ()
    float16_weight: float = 0.5


def _kept(keep: Array, *arrays: Array, otherwise: float = 0) -> tuple[Array, ...]:
    """The arrays with other numbers in the rows that are not kept, so that what is there can reach no derivative."""
    return tuple(
        jnp.where(along(keep, a), a, otherwise) if jnp.issubdtype(a.dtype, jnp.floating) and a.ndim >= keep.ndim else a
        for a in arrays
    )


def _kept_operands(loss: RowLoss, keep: Array, operands, *, parameters: float = 1) -> tuple:
    """The operands of rows so, but for the weights; parameters become 1, a number that none is undefined at."""

    def kept(place, operand):
        if operand is None or place == 2 or place in loss.features:
            return operand
        return _kept(keep, operand, otherwise=0 if place < 2 else parameters)[0]

    return tuple(kept(place, operand) for place, operand in enumerate(operands))


def _tangents(loss: RowLoss, keep: Array, operands, losses: Array, stats, tangents) -> tuple:
    """The tangents of the losses and statistics of rows, 0 for those that are not kept."""
    # Rematerialised, a scan saves its logits and not a float32 softmax. No barriers against common subexpressions: they
    # would keep XLA from folding a cotangent of 1, and from fusing.
    rule = jax.checkpoint(loss.tangents, prevent_cse=False)
    tangents = _kept_operands(loss, keep, (*tangents[:2], None, *tangents[3:]), parameters=0)
    results = rule(_kept_operands(loss, keep, operands), losses, _kept(keep, *stats), tangents)
    return tuple(
        zero_tangent(of) if tangent is None else tangent for of, tangent in zip((losses, *stats), results, strict=True)
    )


@functools.cache
def value_and_stats(loss: RowLoss) -> Op:
    """The op of that name, with its derivative."""
    op = jax.custom_jvp(loss.value_and_stats)

    def tangent(primals, tangents) -> Any:
        results = losses, *stats = op(*primals)
        tangents = tuple(map(or_none, tangents))
        if all(tangent is None for place, tangent in enumerate(tangents) if place != 2):
            return results, tuple(map(zero_tangent, results))
        return results, _tangents(loss, ~is_masked(primals[2]), primals, losses, stats, tangents)

    op.defjvp(tangent, symbolic_zeros=True)
    return op


@functools.cache
def value(loss: RowLoss) -> Op:
    """The op of that name, with its derivative: that of `value_and_stats`."""
    op = jax.custom_jvp(loss.value)

    def tangent(primals, tangents) -> Any:
        of_nonzero, nonzero, nonzero_tangents = with_nonzero_tangents(value_and_stats(loss), primals, tangents)
        (losses, *_), (losses_tangent, *_) = jax.jvp(of_nonzero, nonzero, nonzero_tangents)
        return (losses,), (losses_tangent,)

    op.defjvp(tangent, symbolic_zeros=True)
    return op


def _losses(loss: RowLoss, with_stats: bool) -> Op:
    """The op that gives the losses of rows, and their statistics if these are asked for."""
    return (value_and_stats if with_stats else value)(loss)


def _with_derivative_of(formula: Op, op: Op) -> Op:
    """`op`, whose derivative is that of the same results as a formula."""
    op = jax.custom_jvp(op)

    def tangent(primals, tangents) -> Any:
        of_nonzero, nonzero, nonzero_tangents = with_nonzero_tangents(formula, primals, tangents)
        return op(*primals), jax.jvp(of_nonzero, nonzero, nonzero_tangents)[1]

    op.defjvp(tangent, symbolic_zeros=True)
    return op


@functools.cache
def value_and_grad(loss: RowLoss) -> Op:
    """The op of that name, with its derivative."""

    def formula(*operands):
        losses, *stats = value_and_stats(loss)(*operands)
        gradient = _gradient(loss, operands, stats).astype(operands[0].dtype)
        return (losses, *stats, gradient) if loss.grad_gives_stats else (losses, gradient)

    return _with_derivative_of(formula, loss.value_and_grad)


@functools.cache
def total_and_grad(loss: RowLoss) -> Op:
    """The op of that name, with its derivative."""
    assert loss.total_and_grad is not None

    def formula(*operands):
        losses, *stats = value_and_stats(loss)(*operands)
        return contracted(operands[2], losses), _gradient(loss, operands, stats).astype(operands[0].dtype)

    return _with_derivative_of(formula, loss.total_and_grad)


def _gradient(loss: RowLoss, operands, stats) -> Array:
    """As a formula."""
    keep = ~is_masked(operands[2])
    derivative = loss.derivative(_kept_operands(loss, keep, operands), _kept(keep, *stats))
    return weighted(operands[2], _kept(keep, derivative)[0])


@functools.cache
def _grad_and_formula(loss: RowLoss) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """The gradient alone, of operands and statistics: the op of that name, with its derivative, and the formula."""
    assert loss.grad is not None

    def formula(*arrays):
        of_stats = len(arrays) - loss.stats
        return _gradient(loss, arrays[:of_stats], arrays[of_stats:])

    def rounded(*arrays):
        return (formula(*arrays).astype(arrays[0].dtype),)

    op = _with_derivative_of(rounded, loss.grad)
    return lambda *arrays: op(*arrays)[0], formula


@functools.cache
def pair(loss: RowLoss, with_stats: bool, in_kernel: bool) -> Callable[..., tuple[Array, ...]]:
    """Σ wᵢ ℓᵢ of rows, its forward pass joined with the hand-derived gradient with respect to `x` by `jax.custom_vjp`.

    The result is `(total, losses, *stats)`, or with `in_kernel`, where the losses are summed as they are computed,
    `(total,)`. Only the total is differentiated, and only with respect to `x`; `weighted_sum` does the rest.
    """

    @jax.custom_vjp
    def paired(*operands):
        if in_kernel:
            assert loss.total is not None
            return loss.total(*operands)
        losses, *stats = _losses(loss, with_stats)(*operands)
        return contracted(operands[2], losses), losses, *stats

    def forward(*operands):
        if in_kernel:
            total, gradient = total_and_grad(loss)(*operands)
            return (total,), (gradient, operands[1:])
        losses, *stats, gradient = value_and_grad(loss)(*operands)
        if with_stats and not loss.grad_gives_stats:
            losses, *stats = value_and_stats(loss)(*operands)
        return (contracted(operands[2], losses), losses, *stats), (gradient, operands[1:])

    def backward(residuals, cotangents):
        gradient, others = residuals
        return cotangents[0].astype(gradient.dtype) * gradient, *(None for _ in others)

    paired.defvjp(forward, backward)
    return paired


def _with_gradient(paired: Callable[..., tuple[Array, ...]], x: Array, *others: Array):
    """The pair's results and the gradient of its total."""

    def wrt_x(x):
        total, *rest = paired(x, *others)
        return total, rest

    total, pull, rest = jax.vjp(wrt_x, x, has_aux=True)
    return total, rest, pull(jnp.ones_like(total))[0]


@functools.cache
def weighted_sum(loss: RowLoss, with_stats: bool = False) -> Callable[..., Any]:
    """The scalar Σ wᵢ ℓᵢ of rows with weights w, from the operands; `with_stats`, that and the statistics.

    It is the `pair` in a shell that gives it forward mode, ⟨gradient, tangent⟩, which JAX transposes back to reverse
    mode, and the derivatives with respect to the other operands as formulas.
    """

    def in_kernel(with_grad: bool, operands) -> bool:
        return not with_stats and operands[2].ndim == 0 and loss.sums(with_grad, *operands)

    def primal(*operands):
        total, *rest = pair(loss, with_stats, in_kernel(False, operands))(*operands)
        return total, *rest[1:]

    def tangent(primals, tangents) -> Any:
        # In a shard_map, an operand that every device holds may meet one that differs: this cast gives each device a
        # gradient of its own, and in reverse mode becomes their sum.
        axes = [axis for axis in manual_axes(*primals) if axis not in loss.split_axes]
        operands = tuple(varying(axes, operand) for operand in primals)
        tangents = tuple(None if tangent is None else varying(axes, tangent) for tangent in map(or_none, tangents))
        x_tangent, target_tangent, weight_tangent, *parameter_tangents = tangents
        others = (None, target_tangent, None, *parameter_tangents)
        wrt_others = any(tangent is not None for tangent in others)
        row_weight, scale, terms = operands[2], None, []
        if x_tangent is None:
            losses, *stats = _losses(loss, wrt_others or with_stats)(*operands)
            total = contracted(row_weight, losses)
        else:
            weighed = operands
            if operands[0].dtype == jnp.float16:
                scale = scale_beyond(row_weight, loss.float16_weight)
                weighed = (*operands[:2], row_weight / scale, *operands[3:])
            whole = not wrt_others and weight_tangent is None and in_kernel(True, operands)
            total, rest, gradient = _with_gradient(pair(loss, wrt_others or with_stats, whole), *weighed)
            total = times(total, scale)
            terms.append(times(total_product(gradient, x_tangent), scale))
            losses, *stats = rest or (total,)  # of a whole sum nothing else is asked
        if wrt_others:
            losses_tangent = _tangents(loss, counted(row_weight, losses), operands, losses, stats, others)[0]
            terms.append(jnp.sum(along(row_weight, losses) * losses_tangent))
        if weight_tangent is not None:
            terms.append(total_product(losses_of_weights(row_weight, losses), weight_tangent))
        tangent = sum(varying_like(total, term) for term in terms)
        if not with_stats:
            return (total,), (tangent,)
        _, *stats_tangents = _tangents(loss, ~is_masked(row_weight), operands, losses, stats, (x_tangent, *others[1:]))
        return (total, *stats), (tangent, *stats_tangents)

    total = jax.custom_jvp(primal)
    total.defjvp(tangent, symbolic_zeros=True)
    return total if with_stats else lambda *operands: total(*operands)[0]


@functools.cache
def weighted_rows(loss: RowLoss, with_stats: bool = False) -> Callable[..., Any]:
    """The losses wᵢ ℓᵢ of rows with weights w, from the operands; `with_stats`, those and the statistics.

    Their derivative is made from the statistics that the forward call leaves: in reverse mode by the kernel of the
    gradient, if there is one, else by a plain formula, which XLA fuses into one pass over `x`.
    """

    def primal(*operands):
        losses, *stats = _losses(loss, with_stats)(*operands)
        return weighted(operands[2], losses), *stats

    def tangent(primals, tangents) -> Any:
        tangents = tuple(map(or_none, tangents))
        row_weight, weight_tangent = primals[2], tangents[2]
        losses, *stats = value_and_stats(loss)(*primals)
        tangent, stats_tangents = jnp.zeros_like(losses), tuple(map(zero_tangent, stats))
        if any(tangent is not None for place, tangent in enumerate(tangents) if place != 2):
            keep, by_formula = counted(row_weight, losses), tangents
            if loss.grad is not None and tangents[0] is not None:
                weight = jnp.where(keep, along(row_weight, losses), MASKED)
                residuals = (*primals[:2], weight, *primals[3:], *stats)
                wrt_x = row_product(*_grad_and_formula(loss), residuals, tangents[0])
                tangent, by_formula = varying_like(losses, wrt_x), (None, *tangents[1:])
            losses_tangent = _tangents(loss, keep, primals, losses, stats, by_formula)[0]
            tangent = tangent + along(row_weight, losses) * losses_tangent
            _, *stats_tangents = _tangents(loss, ~is_masked(row_weight), primals, losses, stats, tangents)
        if weight_tangent is not None:
            tangent = tangent + losses * along(weight_tangent, losses)
        out = weighted(row_weight, losses)
        return ((out, *stats), (tangent, *stats_tangents)) if with_stats else ((out,), (tangent,))

    rows = jax.custom_jvp(primal)
    rows.defjvp(tangent, symbolic_zeros=True)
    return rows if with_stats else lambda *operands: rows(*operands)[0]
