"""Cross entropy as row-wise ops: a row is all classes of an example, and they may be split over devices."""

import functools

import jax
import jax.numpy as jnp

from jaxloss import _calls, _pair, formulas
from jaxloss._calls import Array, along, taken_out
from jaxloss._examples import Examples, row_weight
from jaxloss._pair import RowLoss, row_dot, varying_like
from jaxloss._rows import row_wise


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def value(axes: tuple[str, ...], clip: float, logits: Array, target: Array, examples: Examples) -> Array:
    """The reduced loss of logits `[..., V]`; an example is a row. For `axes` see `row_loss`."""
    reduced = _pair.weighted_rows if examples.reduction == "none" else _pair.weighted_sum
    return reduced(row_loss(clip, axes))(logits, target_of_slice(axes, logits, target), _weight(logits, examples))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def gradient(axes: tuple[str, ...], logits: Array, target: Array, examples: Examples) -> Array:
    """The gradient of the reduced loss with respect to the logits, which no clip changes."""
    loss = row_loss(0.0, axes)
    return _pair.value_and_grad(loss)(logits, target_of_slice(axes, logits, target), _weight(logits, examples))[1]


def _weight(logits: Array, examples: Examples) -> Array:
    rank = logits.ndim - 1
    return row_weight(examples, logits.shape, formulas.real(logits).dtype, example_rank=rank, row_rank=rank)


def _row_rank(logits, *_) -> int:
    return len(logits.shape) - 1


@functools.cache
def row_loss(clip: float, axes: tuple[str, ...] = (), *, in_place: bool = False) -> RowLoss:
    """The cross entropy of rows of logits with class indices or probabilities; `clip` is 0 for none.

    `in_place` lets a gradient overwrite the logits, for a caller who has made them and needs them no more.

    The statistics of a row are its `formulas.softmax_stats`. With `axes`, an enclosing `shard_map` has split the
    classes over these mesh axes: logits and target are the slice of this device, losses and statistics are the whole
    row's.
    """

    def value(logits, target, row_weight):
        return _calls.cross_entropy_value(logits, target, row_weight, clip=clip)

    def value_and_stats(logits, target, row_weight):
        return _calls.cross_entropy_value_and_stats(logits, target, row_weight, clip=clip)

    def value_and_grad(logits, target, row_weight):
        return _calls.cross_entropy_value_and_grad(logits, target, row_weight, clip=clip, in_place=in_place)

    def slice_value_and_stats(axes, logits, target, row_weight):
        return _whole_rows(axes, clip, logits, target, row_weight)[:3]

    def slice_value(axes, *operands):
        return slice_value_and_stats(axes, *operands)[:1]

    def slice_value_and_grad(axes, logits, target, row_weight):
        losses, maximum, log_sum, total = _whole_rows(axes, clip, logits, target, row_weight)
        gradient = _calls.cross_entropy_grad(
            logits, target, row_weight, maximum, log_sum, total, in_place=in_place
        )
        return losses, gradient

    def op(whole, of_slice):
        if axes:
            whole = functools.partial(of_slice, axes)

        def split(split_axes, logits, target, row_weight):
            return of_slice(split_axes, logits, target_of_slice(split_axes, logits, target), row_weight)

        return row_wise(whole, split, _row_rank)

    return RowLoss(
        row_rank=_row_rank,
        value=op(value, slice_value),
        value_and_stats=op(value_and_stats, slice_value_and_stats),
        value_and_grad=op(value_and_grad, slice_value_and_grad),
        derivative=functools.partial(_derivative, axes),
        tangents=functools.partial(_tangents, axes),
        split_axes=axes,
    )


def target_of_slice(axes: tuple[str, ...], logits: Array, target: Array) -> Array:
    """The target of this device's slice of the classes: an index within the slice, -1 for one that is elsewhere."""
    if not axes or not jnp.issubdtype(target.dtype, jnp.integer):
        return target
    shifted = target - jax.lax.axis_index(axes) * logits.shape[-1]
    return jnp.where(formulas.in_range(shifted, logits.shape[-1]), shifted, -1)


def _whole_rows(axes: tuple[str, ...], clip: float, logits: Array, target: Array, row_weight: Array):
    """Losses and statistics of whole rows from this device's slice of the classes, and the sum of the whole target.

    Only numbers of one a row are exchanged.
    """
    _, local_maximum, local_log_sum = _calls.cross_entropy_value_and_stats(logits, target, row_weight, clip=clip)
    maximum = jax.lax.pmax(local_maximum, axes)
    log_sum = jnp.log(jax.lax.psum(jnp.exp(local_maximum - maximum + local_log_sum), axes))
    total = jax.lax.psum(formulas.target_sum(logits, target), axes)
    if jnp.issubdtype(target.dtype, jnp.integer):
        here = formulas.in_range(target, logits.shape[-1])
        at_target = jnp.take_along_axis(logits, jnp.where(here, target, 0)[..., None], -1)
        losses = jnp.where(here, formulas.nll(formulas.real(at_target)[..., 0] - maximum, log_sum, clip), 0)
        losses = jnp.where(total == 0, jnp.nan, jax.lax.psum(losses, axes))
    else:
        losses = jax.lax.psum(formulas.cross_entropy_of_stats(logits, target, maximum, log_sum, clip), axes)
    out = along(taken_out(row_weight), losses)
    losses, maximum, log_sum = (jnp.where(out, 0, rows) for rows in (losses, maximum, log_sum))
    return losses, maximum, log_sum, total


def _derivative(axes, operands, stats):
    logits, target, _ = operands
    total = formulas.target_sum(logits, target)
    if axes:
        total = jax.lax.psum(total, axes)
    maximum, log_sum = stats
    return formulas.d_cross_entropy_of_stats(logits, target, maximum, log_sum, total)


def _tangents(axes, operands, losses, stats, dots):
    (logits, *_), (maximum, log_sum), (logits_dot, target_dot, _) = operands, stats, dots
    rank, terms, log_sum_dot = losses.ndim, [], None
    if logits_dot is not None:
        terms.append(row_dot(_derivative(axes, operands, stats), logits_dot, rank))
        softmax = formulas.softmax_of_stats(logits, maximum, log_sum)
        # All of the log-sum-exp's tangent is given to one of its two terms: only their sum has a meaning.
        log_sum_dot = varying_like(log_sum, row_dot(softmax, logits_dot, rank))
    if target_dot is not None:
        nll = log_sum[..., None] - (formulas.real(logits) - maximum[..., None])
        terms.append(row_dot(nll, target_dot, rank))
    return varying_like(losses, sum(terms[1:], start=terms[0])), None, log_sum_dot
