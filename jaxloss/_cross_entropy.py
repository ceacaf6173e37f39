"""Cross entropy as row-wise ops: a row is all classes of an example, and they may be split over devices."""

import functools

import jax
import jax.numpy as jnp

from jaxloss import _calls, _pair, formulas
from jaxloss._calls import Array, along, taken_out
from jaxloss._examples import Examples, row_weight
from jaxloss._pair import RowLoss, row_dot
from jaxloss._rows import row_wise


@functools.partial(jax.jit, static_argnums=0, inline=True)
def value(clip: float, logits: Array, target: Array, examples: Examples) -> Array:
    """The reduced loss of logits `[..., V]`; an example is a row."""
    reduced = _pair.weighted_rows if examples.reduction == "none" else _pair.weighted_sum
    return reduced(row_loss(clip))(logits, target, _weight(logits, examples))


@functools.partial(jax.jit, inline=True)
def gradient(logits: Array, target: Array, examples: Examples) -> Array:
    """The gradient of the reduced loss with respect to the logits, which no clip changes."""
    return _pair.value_and_grad(row_loss(0.0))(logits, target, _weight(logits, examples))[1]


def _weight(logits: Array, examples: Examples) -> Array:
    rank = logits.ndim - 1
    return row_weight(examples, logits.shape, formulas.real(logits).dtype, example_rank=rank, row_rank=rank)


def _row_rank(logits, *_) -> int:
    return len(logits.shape) - 1


@functools.cache
def row_loss(clip: float) -> RowLoss:
    """The cross entropy of rows of logits with class indices or probabilities; `clip` is 0 for none.

    The statistics of a row are its `formulas.softmax_stats`.
    """
    value = functools.partial(_calls.cross_entropy_value, clip=clip)
    value_and_stats = functools.partial(_calls.cross_entropy_value_and_stats, clip=clip)
    value_and_grad = functools.partial(_calls.cross_entropy_value_and_grad, clip=clip)

    def split_value_and_stats(axes, logits, target, row_weight):
        return _whole_rows(axes, clip, logits, target, row_weight)[:3]

    def split_value(axes, *operands):
        return split_value_and_stats(axes, *operands)[:1]

    def split_value_and_grad(axes, logits, target, row_weight):
        losses, maximum, log_sum, target, total = _whole_rows(axes, clip, logits, target, row_weight)
        return losses, _calls.cross_entropy_grad(logits, target, row_weight, maximum, log_sum, total)

    return RowLoss(
        row_rank=_row_rank,
        value=row_wise(value, split_value, _row_rank),
        value_and_stats=row_wise(value_and_stats, split_value_and_stats, _row_rank),
        value_and_grad=row_wise(value_and_grad, split_value_and_grad, _row_rank),
        derivative=_derivative,
        target_derivative=_target_derivative,
        stats_tangent=_stats_tangent,
    )


def _whole_rows(axes: tuple[str, ...], clip: float, logits: Array, target: Array, row_weight: Array):
    """Losses and statistics of whole rows, where this device holds a slice of the classes.

    Only numbers of one a row are exchanged. Returns losses, the two statistics, the target of this slice, and the sum
    of the whole target.
    """
    if jnp.issubdtype(target.dtype, jnp.integer):
        # The index within this slice, or one that is out of range: the index is another device's, or nobody's.
        shifted = target - jax.lax.axis_index(axes) * logits.shape[-1]
        target = jnp.where(formulas.in_range(shifted, logits.shape[-1]), shifted, -1)
    _, local_maximum, local_log_sum = _calls.cross_entropy_value_and_stats(logits, target, row_weight, clip=clip)
    maximum = jax.lax.pmax(local_maximum, axes)
    log_sum = jnp.log(jax.lax.psum(jnp.exp(local_maximum - maximum + local_log_sum), axes))
    total = jax.lax.psum(formulas.target_sum(logits, target), axes)
    losses = formulas.cross_entropy_of_stats(logits, target, maximum, log_sum, clip)
    if jnp.issubdtype(target.dtype, jnp.integer):
        of_slice = jnp.where(formulas.in_range(target, logits.shape[-1]), losses, 0)
        losses = jnp.where(total == 0, jnp.nan, jax.lax.psum(of_slice, axes))
    else:
        losses = jax.lax.psum(losses, axes)
    out = along(taken_out(row_weight), losses)
    losses, maximum, log_sum = (jnp.where(out, 0, rows) for rows in (losses, maximum, log_sum))
    return losses, maximum, log_sum, target, total


def _derivative(logits, target, maximum, log_sum):
    total = formulas.target_sum(logits, target)
    return formulas.d_cross_entropy_of_stats(logits, target, maximum, log_sum, total)


def _target_derivative(logits, target, maximum, log_sum):
    del target
    return log_sum[..., None] - (formulas.real(logits) - maximum[..., None])


def _stats_tangent(logits, maximum, log_sum, logits_dot):
    softmax = formulas.softmax_of_stats(logits, maximum, log_sum)
    # All of the log-sum-exp's tangent is given to one of its two terms: only their sum has a meaning.
    return jnp.zeros_like(maximum), row_dot(softmax, logits_dot, maximum.ndim)
