"""Few rows of millions of classes, of which each slice is a row to the kernels: one row alone keeps no processor busy.

The gradient's kernel cuts rows by itself.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, along, sizes_known, without_masked
from jaxloss._ffi import cross_entropy as calls
from jaxloss._rows.labels import Totals, logits_at
from jaxloss._rows.vocab_parallel import known_gradient
from jaxloss._spec import STATS, Objective

FEW_ROWS = 256
"""From so many on, a row is work enough for what a GPU gives it."""

LONG_ROW = 2**22
"""The bytes that a row has at least. A shorter one does not take a block long enough."""

SLICE = 2**16
"""The bytes that a slice has at least."""

ENOUGH = 4096
"""From so many slices on, no more are made."""


def slices(logits: Array) -> int:
    """How many equal slices each row is best cut into, 1 where that is none: a power of two."""
    *rows, classes = logits.shape
    if not sizes_known(logits):
        return 1
    count, bytes_a_row = math.prod(rows), classes * logits.dtype.itemsize
    if not 0 < count < FEW_ROWS or bytes_a_row < LONG_ROW:
        return 1
    each = 1
    while classes % (2 * each) == 0 and count * each < ENOUGH and bytes_a_row >= 2 * each * SLICE:
        each *= 2
    return each


def results(
    objective: Objective, names: Sequence[str], each: int, logits: Array, labels: Array, row_weight: Array
) -> tuple[Array, ...]:
    """The results that are named, of `losses`, `maximum`, `log_sum` and `gradient`, of rows cut into `each` slices."""
    parts = logits.reshape(*labels.shape, each, -1)
    # Of slices without the label, losses that nobody reads. Of the one with it, a log_sum that is right however small.
    own_labels = labels[..., None] - parts.shape[-1] * jnp.arange(each, dtype=labels.dtype)
    own_labels = jnp.where(formulas.in_range(own_labels, parts.shape[-1]), own_labels, 0)
    weight = jnp.broadcast_to(along(row_weight, own_labels), own_labels.shape)
    _, maxima, log_sums = calls.cross_entropy(("losses", *STATS), parts, own_labels, weight, clip=0.0)

    maximum = maxima.max(-1)
    of_slices = formulas.sums_of_slice(maximum[..., None], maxima, jnp.expm1(log_sums))
    log_sum = formulas.log_of_sums(*(x.sum(-1) for x in of_slices))
    at_label, valid = logits_at(logits, labels, {}, is_label=True)
    losses = jnp.where(valid, formulas.nll(at_label - maximum, log_sum, objective.clip), jnp.nan)
    of_rows: dict[str, Array] = dict(
        zip(("losses", *STATS), without_masked(row_weight, (losses, maximum, log_sum)), strict=True)
    )
    if "gradient" in names:
        known = (maximum, log_sum, Totals(valid, (), jnp.ones_like(maximum)))
        of_rows["gradient"] = known_gradient(objective, {}, logits, labels, row_weight, *known)
    return tuple(of_rows[name] for name in names)
