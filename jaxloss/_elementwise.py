"""The elementwise losses as row-wise ops: sums over a row's elements, each with a value and a derivative."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxloss import _calls, _pair
from jaxloss._calls import Array, Formula
from jaxloss._examples import Examples, row_weight
from jaxloss._pair import RowLoss, row_dot, varying_like
from jaxloss._rows import row_wise
from jaxloss.formulas import real


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """What an elementwise loss is.

    Attributes:
        name: its functor in `cuda/maths/elementwise.h`.
        value: its formula, of prediction and target.
        derivative: the derivative with respect to the prediction.
        target_derivative: the derivative with respect to the target.
        parameters: what the functor is made with.
    """

    name: str
    value: Formula
    derivative: Formula
    target_derivative: Formula
    parameters: tuple[float, ...] = ()


@functools.partial(jax.jit, static_argnums=0, inline=True)
def value(loss: Elementwise, x: Array, target: Array, examples: Examples) -> Array:
    """The reduced loss; an example is one index of the first axis."""
    if examples.reduction == "none":
        weight = _weight(x, examples, full=True)
        return _pair.weighted_rows(unreduced(loss))(x, target, weight)
    return _pair.weighted_sum(row_loss(loss))(x, target, _weight(x, examples))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def gradient(loss: Elementwise, x: Array, target: Array, examples: Examples) -> Array:
    """The gradient of the reduced loss with respect to `x`."""
    return _pair.value_and_grad(row_loss(loss))(x, target, _weight(x, examples))[1]


def _weight(x: Array, examples: Examples, *, full: bool = False) -> Array:
    return row_weight(examples, x.shape, real(x).dtype, example_rank=min(1, x.ndim), row_rank=x.ndim, full=full)


def _row_rank(x, target, row_weight) -> int:
    del x, target
    return len(row_weight.shape)


@functools.cache
def row_loss(loss: Elementwise) -> RowLoss:
    """The sum of the losses of a row's elements; `row_weight` has as many axes as are rows."""
    value = functools.partial(_calls.elementwise_value, loss.name, loss.parameters, loss.value)
    value_and_grad = functools.partial(
        _calls.elementwise_value_and_grad, loss.name, loss.parameters, loss.value, loss.derivative
    )

    def split_value(axes, *operands):
        return (jax.lax.psum(value(*operands)[0], axes),)

    def split_value_and_grad(axes, *operands):
        losses, gradient = value_and_grad(*operands)
        return jax.lax.psum(losses, axes), gradient

    value_op = row_wise(value, split_value, _row_rank)
    return RowLoss(
        row_rank=_row_rank,
        value=value_op,
        value_and_stats=value_op,
        value_and_grad=row_wise(value_and_grad, split_value_and_grad, _row_rank),
        derivative=lambda operands, _: loss.derivative(*operands[:2]),
        tangents=functools.partial(_tangents, loss),
    )


def _tangents(loss: Elementwise, operands, losses, stats, dots):
    (x, target, _), (x_dot, target_dot, _) = operands, dots
    terms = [
        row_dot(derivative(x, target), dot, losses.ndim)
        for dot, derivative in ((x_dot, loss.derivative), (target_dot, loss.target_derivative))
        if dot is not None
    ]
    return (varying_like(losses, sum(terms[1:], start=terms[0])),)


@functools.cache
def unreduced(loss: Elementwise) -> RowLoss:
    """Every element a row of its own, by formula: nothing is summed, so XLA fuses it with whatever comes next."""

    def value(x, target, row_weight):
        return (jnp.where(_calls.taken_out(row_weight), 0, loss.value(x, target)),)

    def value_and_grad(x, target, row_weight):
        derivative = row_weight * loss.derivative(x, target)
        return *value(x, target, row_weight), jnp.where(row_weight == 0, 0, derivative).astype(x.dtype)

    return dataclasses.replace(
        row_loss(loss), value=value, value_and_stats=value, value_and_grad=value_and_grad, row_rank=_rank_of_x
    )


def _rank_of_x(x: Array, *_) -> int:
    return x.ndim
