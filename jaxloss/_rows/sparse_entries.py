"""The few classes of each row that a sparse target lists: their logits and targets, and the losses made of them."""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import MASKED, Array, along, is_masked, unmasked, weighted
from jaxloss._autodiff.row_loss import Operands
from jaxloss._rows.few_classes import at_classes, class_weights_at, written
from jaxloss._rows.labels import z_loss_total

if TYPE_CHECKING:
    from jaxloss._rows.sparse import SparseCrossEntropy

LEAST = 1e-20
"""What the target of a row sums to at least, where something is divided by it: a row of probabilities 0."""


class Entries:
    """The listed classes of rows.

    Attributes:
        options: of the objective, by name.
        here: whether an entry's class is one of this device's, `[rows..., K]`; and so of all others.
        known: whether it is a class.
        first: whether no earlier entry is of the same class.
        index: of its class, among all of the row's.
        given: the probability of its class, that of all entries of the class.
        valid: whether all entries of a row are of classes, or of probability 0.
    """

    def __init__(self, loss: "SparseCrossEntropy", operands: Operands):
        self.loss, self.objective = loss, loss.objective
        self.x, self.indices, self.row_weight, (given, *parameters) = operands
        self.options = loss.objective.options(parameters)
        self.width = self.x.shape[-1]
        self.classes = loss.objective.classes_of(self.width)
        self.axes = loss.objective.axes
        count = along(self.options["num_classes"], self.indices) if "num_classes" in self.options else self.width
        self.here = formulas.in_range(self.indices, count)
        self.known = self._whole(self.here.astype(jnp.int32)) > 0
        self.valid = (self.known | (given == 0)).all(-1)
        given = jnp.where(self.known, given, 0)
        begin = self.width * jax.lax.axis_index(self.axes) if self.axes else 0
        index = self._whole(self.indices + begin)
        self.index = index
        same = (index[..., :, None] == index[..., None, :]) & self.known[..., :, None] & self.known[..., None, :]
        entry, other = (jax.lax.broadcasted_iota(jnp.int32, same.shape, same.ndim - axis) for axis in (2, 1))
        self.first = self.known & ~(same & (other < entry)).any(-1)
        self.given = jnp.sum(jnp.where(same, given[..., None, :], 0), -1)
        self.begin = begin

    @functools.cached_property
    def x_of_entries(self) -> Array:
        """The logits of the entries, of any class for those that are not here."""
        return at_classes(self.x, self.indices, self.here)

    @functools.cached_property
    def z(self) -> Array:
        """Their scaled logits, from the devices that have them."""
        of_logits = formulas.only(self.options, "softcap", "temperature")
        return self._whole(formulas.scaled_logits(self.x_of_entries, None, of_logits))

    @property
    def weighted(self) -> Array:
        """The probability of each entry's class times the weight of the class."""
        if "class_weights" not in self.options:
            return self.given
        weights = class_weights_at(self.options["class_weights"], self.indices, self.here)
        return self.given * self._whole(weights).astype(self.given.dtype)

    def _whole(self, of_entries: Array) -> Array:
        """Numbers of entries from the devices that have their classes."""
        if not self.axes:
            return of_entries
        return jax.lax.psum(jnp.where(self.here, of_entries, 0), self.axes)

    # ---- the target: one number for each listed class, and one for all others ------------------------------------

    @functools.cached_property
    def rest(self) -> Array:
        """What each class that is not listed is given, `[rows...]`."""
        if not self.loss.spread:
            return jnp.zeros_like(self.given[..., 0])
        missing = jnp.maximum(1 - self._of_listed(self.given), 0)
        others = self._others
        return jnp.where(others > 0, missing / jnp.maximum(others, 1), 0)

    @functools.cached_property
    def _others(self) -> Array:
        """How many classes are not listed."""
        return self._classes - self._of_listed(jnp.ones_like(self.given))

    @functools.cached_property
    def _masked_classes(self) -> Array:
        """How many classes of a row have a logit of -Inf: one more pass over the logits."""
        if "softcap" in self.options:  # which bounds what is masked, too
            return jnp.zeros_like(self.given[..., 0])
        masked = (self.x == -jnp.inf) & formulas.counted_classes(self.x, self.options)
        count = jnp.sum(masked, -1, dtype=jnp.int32)
        return (jax.lax.psum(count, self.axes) if self.axes else count).astype(self.given.dtype)

    @functools.cached_property
    def _masked_listed(self) -> Array:
        """How many of them are listed."""
        return self._of_listed(self.masked.astype(self.given.dtype))

    @functools.cached_property
    def _classes(self) -> Array:
        """How many classes there are, as a number to compute with."""
        return jnp.asarray(self.classes, self.given.dtype)

    def _of_listed(self, numbers: Array) -> Array:
        """The sum over the classes that are listed."""
        return jnp.sum(jnp.where(self.first, numbers, 0), -1)

    @functools.cached_property
    def of_others(self) -> Array:
        """The target of each class that is not listed, with smoothing; masked ones have none."""
        if "label_smoothing" not in self.options:
            return self.rest
        smoothing = along(self.options["label_smoothing"], self.rest)
        return (1 - smoothing) * self.rest + smoothing / self._classes

    @functools.cached_property
    def target(self) -> Array:
        """The target of each entry's class, with smoothing or class weights."""
        if "label_smoothing" not in self.options:
            return self.weighted
        smoothing = along(self.options["label_smoothing"], self.given)
        share = jnp.where(self.masked, 0, smoothing / self._classes)
        return (1 - smoothing) * self.given + share

    @property
    def masked(self) -> Array:
        """Whether an entry's class is masked by its logit."""
        return jnp.isneginf(self.z)

    @functools.cached_property
    def weight(self) -> Array:
        """What a row's weight is multiplied by in the loss of its label, so that the softmax has the right factor."""
        total = self._of_listed(self.target)
        if self.loss.flat:
            total = total + self.of_others * (self._others + self._masked_listed)
        return jnp.where(jnp.abs(total) < LEAST, LEAST, total) if self.loss.asks_for_stats else total

    @functools.cached_property
    def total(self) -> Array:
        """What the target of a row sums to, of which masked classes have no part."""
        return self.weight - self.of_others * self._masked_classes if self.loss.flat else self.weight

    # ---- by the loss of one label --------------------------------------------------------------------------------

    @functools.cached_property
    def _label(self) -> Array:
        """Which entry has the largest logit of its row: no loss of the others is then a small difference."""
        return jnp.argmax(jnp.where(self.known, self.z, -jnp.inf), -1, keepdims=True)

    def _of_label(self, of_entries: Array) -> Array:
        return jnp.take_along_axis(of_entries, self._label, -1)[..., 0]

    @property
    def label(self) -> Array:
        """That class of each row, 0 where none is listed, and -1 where it is another device's."""
        label = self._of_label(jnp.where(self.here, self.indices, -1))
        return jnp.where(self._of_label(self.known), label, jnp.where(self.begin == 0, 0, -1))

    @property
    def less_than_label(self) -> Array:
        """By how much the logits of the listed classes are less than the label's."""
        of_label = self._of_label(self.z)
        z = formulas.with_maximum(self.z, of_label, self.options)
        return jnp.where(self.masked, jnp.inf, of_label[..., None] - z)

    @functools.cached_property
    def of_label(self) -> Operands:
        """Operands of the loss of the label of each row."""
        row_weight = along(self.row_weight, self.weight)
        row_weight = jnp.where(is_masked(row_weight) | ~self.valid, MASKED, unmasked(row_weight * self.weight))
        options = {name: option for name, option in self.options.items() if name != "class_weights"}
        if self.loss.flat:
            options["label_smoothing"] = self.of_others * self._classes / self.weight
        if "z_loss" in options:
            options["z_loss"] = along(options["z_loss"], self.weight) / self.weight
        parameters = tuple(options[name] for name in self.loss.base().objective.parameters)
        if self.loss.flat and self.objective.in_place:
            # Counted before the gradient takes the place of the logits: a kernel waits for what it is given.
            row_weight = jnp.where(self._masked_classes < 0, jnp.nan, row_weight)
        return Operands(self.x, self.label, row_weight, parameters)

    def nll(self, of_label: Array | None, stats: Sequence[Array]) -> Array:
        """The unclipped losses of the listed classes, from that of the label or from statistics of rows."""
        if stats:
            maximum, log_sum = stats
            z = formulas.with_maximum(self.z, maximum, self.options)
            return log_sum[..., None] - (z - maximum[..., None])
        assert of_label is not None
        return of_label[..., None] + self.less_than_label

    def losses(self, of_label: Array, stats: Sequence[Array]) -> Array:
        """The losses of rows, from those of their labels."""
        nll = self.nll(of_label, stats)
        clip = self.objective.clip

        def clipped(nll: Array) -> Array:
            return jnp.minimum(nll, -math.log(clip)) if clip else nll

        target = self.target
        if self.loss.asks_for_stats:
            # That of the label has the z-loss, and of each unmasked class what those that are not listed are given.
            label_nll = clipped(self._of_label(nll))
            share = self.weight - self.of_others * self._classes
            losses = self.weight * of_label - formulas.product(share, label_nll)
            losses = jnp.where(jnp.isposinf(label_nll), jnp.inf, losses)
            target = target - jnp.where(self.masked, 0, self.of_others[..., None])
        else:
            losses = jnp.zeros_like(of_label)
        losses = losses + self._of_listed(formulas.product(target, clipped(nll)))
        if self.loss.divergence:
            losses = losses + self.negative_entropy
        losses = jnp.where(self.valid & formulas.has_softmax(of_label), losses, jnp.nan)
        return jnp.where(is_masked(along(self.row_weight, losses)), 0, losses)

    @property
    def negative_entropy(self) -> Array:
        """The sum of each target times its logarithm."""
        listed = self._of_listed(times_logarithm(self.given))
        if not self.loss.spread:
            return listed
        others = self._others - (self._masked_classes - self._masked_listed)
        return listed + others * times_logarithm(self.rest)

    def listed_written(self, gradient: Array, nll: Array, stats: Sequence[Array]) -> Array:
        """The gradient of the loss of labels with that of the listed classes written into it."""
        total, others = self.total[..., None], self._of_other_classes
        if stats and "z_loss" in self.options:
            of_z = z_loss_total(self.options, *stats)[..., None]
            total, others = total + of_z, others + of_z
        derivative = formulas.label_derivative(nll, total, self.target, others)
        derivative = derivative * formulas.logit_slopes(self.x_of_entries, self.options)
        weight = along(self.row_weight, self.valid)
        values = weighted(jnp.where(self.valid, weight, 0), derivative)
        return written(gradient, self.indices, self.here, values)

    @property
    def _of_other_classes(self) -> Array:
        """What the target of a row sums to without that of each entry's class: of the largest one, by a sum of others.

        It may be all of the target but for little, which the difference from the total would lose.
        """
        targets = jnp.where(self.first, self.target, 0)
        largest = jnp.argmax(jnp.abs(targets), -1, keepdims=True)
        is_largest = self.known & (self.index == jnp.take_along_axis(self.index, largest, -1))
        listed = jnp.sum(targets, -1, keepdims=True)
        others = jnp.where(
            is_largest, jnp.sum(jnp.where(is_largest, 0, targets), -1, keepdims=True), listed - self.target
        )
        if self.loss.flat:
            unlisted = self._others + self._masked_listed - self._masked_classes
            others = others + (self.of_others * unlisted)[..., None]
        return others

    # ---- as probabilities of all classes, for derivatives of derivatives -----------------------------------------

    @property
    def dense_targets(self) -> Array:
        """The target of each class, without smoothing."""
        is_entry = formulas.one_hot(jnp.where(self.here, self.indices, -1), self.width) & self.first[..., None]
        targets = jnp.sum(jnp.where(is_entry, self.given[..., None], 0), -2)
        if not self.loss.spread:
            return targets
        z = formulas.scaled_logits(self.x, None, self.options)
        others = ~is_entry.any(-2) & ~jnp.isneginf(z)
        return targets + jnp.where(others, self.rest[..., None], 0)

    @property
    def dense(self) -> Operands:
        """Operands of a cross entropy with these targets."""
        return Operands(self.x, self.dense_targets, self.row_weight, tuple(self.options.values()))


def times_logarithm(target: Array) -> Array:
    return target * jnp.log(jnp.where(target > 0, target, 1))
