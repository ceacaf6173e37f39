r"""Cross entropy of rows whose classes are split, made of logits that are read once.

The gradient of a slice of a row is w (s p − y), where w is the row's weight, p the softmax of the slice by itself, s
the share that the slice has of the whole row's exponentials, and y 1 at the label. Nobody knows s before all devices
have told their sums, and to read the slice again then costs half as much again. The kernel that overwrites the logits
does not need s: it makes p. Then the number at the label is put right, to p − y / s, and w s is a factor for each row,
which the matrix products of a linear layer take elsewhere: on rows of their other operand, or of their result.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxloss import _cross_entropy, _pair, formulas
from jaxloss._calls import TAKEN_OUT, Array, taken_out
from jaxloss._objective import Objective
from jaxloss.formulas import real

SMALLEST_SHARE = 2.0**-60
"""What a share that is smaller is taken for: its inverse is a number, and so small a probability is as good as 0."""


def losses_and_slopes(
    objective: Objective, axes: tuple[str, ...], logits: Array, labels: Array, row_weight: Array
) -> tuple[Array, Array, Array]:
    """The losses of whole rows, the gradient of this device's slice of them without its factors, and all factors.

    Args:
        objective: without options and statistics.
        axes: the mesh axes that the classes are split over.
        logits: `[rows, V]`, this slice's, which may be overwritten.
        labels: `[rows]`, -1 where it is in another slice.
        row_weight: `[rows]`; no ordinary weight is 0.

    Returns:
        `[rows]`; `[rows, V]`; and for each of the devices along `axes` the factors of its rows, `[devices, rows]`.
    """
    out, here = taken_out(row_weight), labels >= 0
    label = jnp.where(here, labels, 0)
    # Read once, here: what overwrites the logits waits for it, and XLA does not read them again where it is needed.
    at_label = jax.lax.optimization_barrier(real(jnp.take_along_axis(logits, label[:, None], -1)[:, 0]))
    own_weight = jnp.where(out | jnp.isnan(at_label), TAKEN_OUT, jnp.ones_like(row_weight))
    alone = dataclasses.replace(objective, clip=0.0, axes=())
    losses, slopes = _pair.value_and_grad(_cross_entropy.row_loss(alone))(logits, label, own_weight)
    lse = jnp.where(out, 0, losses + at_label)

    device, devices = jax.lax.axis_index(axes), jnp.arange(jax.lax.axis_size(axes))[:, None]
    told = jnp.where(devices == device, lse, 0), *(jnp.where(here, x, 0) for x in (losses, at_label, device + 1.0))
    each_lse, own_loss, at_label_of_all, of_label = jax.lax.psum(told, axes)
    # All log-sum-exps less the logit of the label, that of its own slice as it was found: a loss next to 0, and a share
    # next to 1, would be lost in the difference of large numbers.
    has_label = devices + 1 == of_label
    relative = jnp.where(has_label, own_loss, each_lse - at_label_of_all)
    others = jax.nn.logsumexp(jnp.where(has_label, -jnp.inf, relative), 0)
    whole = jnp.logaddexp(own_loss, others)
    known = of_label > 0
    loss = jnp.where(known, formulas.nll(-whole, jnp.zeros_like(whole), objective.clip), jnp.nan)

    shares = jnp.maximum(jnp.exp(relative - whole), SMALLEST_SHARE)
    slope = jnp.where(out, 0, jnp.exp(-losses) - jnp.where(here, 1 / shares[device], 0))
    slopes = slopes.at[jnp.arange(len(label)), label].set(
        slope.astype(slopes.dtype), mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True
    )
    return jnp.where(out, 0, loss), slopes, jnp.where(out | ~known, 0, row_weight * shares)
