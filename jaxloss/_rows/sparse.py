"""Cross entropy with a few classes of each row and their probabilities, and the divergence from them, of rows.

The kernels of class indices compute both. Of a row, the listed class with the largest logit is the label there; from
its loss and the logits of the others come the losses of all that are listed. The gradient is that of the label, with
the row weighed by what the target sums to: it is right at all classes that are not listed, and written anew at others.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import MASKED, Array, along, inlined, is_masked, sizes_known, weighted
from jaxloss._autodiff.pair import weighted_rows, weighted_sum
from jaxloss._autodiff.row_loss import Operands, Outputs, RowLoss, value_and_grad
from jaxloss._autodiff.tangents import BOUNDED, tangent_of, varying_like
from jaxloss._partitioning.meshes import mesh_of
from jaxloss._rows.cross_entropy import CrossEntropy
from jaxloss._rows.vocab_parallel import local_shard, with_z_loss
from jaxloss._rows.weights import Examples, row_weight
from jaxloss._spec import OPTIONS, Objective

LEAST = 1e-20
"""What the target of a row sums to at least, where something is divided by it: a row of probabilities 0."""


@dataclasses.dataclass(frozen=True)
class SparseCrossEntropy(RowLoss):
    """That loss, of operands whose target is class indices `[rows..., K]` and whose first parameter is probabilities.

    An index that is elsewhere, where the classes are split over devices, is -1. Statistics are those of the softmax.

    Attributes:
        objective: its parameters are those that follow the probabilities.
        spread: whether what the probabilities lack of 1 is spread evenly over the other classes.
        divergence: whether the entropy of the target is taken off.
    """

    objective: Objective
    spread: bool
    divergence: bool = False

    has_vjp = True
    float16_weight = BOUNDED

    @property
    def split_axes(self) -> tuple[str, ...]:
        return self.objective.axes

    @property
    def stats(self) -> int:
        return 2

    @property
    def features(self) -> tuple[int, ...]:
        return tuple(1 + place for place, name in enumerate(self.objective.parameters) if OPTIONS[name].per_class)

    @property
    def listed(self) -> tuple[int, ...]:
        return (1, 3)

    def row_rank(self, outputs: Outputs, operands: Operands) -> int:
        return len(operands.x.shape) - 1

    def forward(self, outputs: Outputs, operands: Operands) -> tuple[Array, ...]:
        entries = _Entries(self, operands)
        with_gradient = outputs is Outputs.VALUE_AND_GRAD
        with_stats = outputs is Outputs.VALUE_AND_STATS or self._asks_for_stats
        base = self._base(details=with_gradient and with_stats)
        if not with_gradient:
            results = base.forward(Outputs.VALUE_AND_STATS if with_stats else Outputs.VALUE, entries.of_label)
        else:
            results = base.forward(Outputs.VALUE_AND_GRAD, entries.of_label)
        stats = results[1:3] if with_stats else ()
        losses = entries.losses(results[0], stats)
        if not with_gradient:
            return (losses, *stats) if outputs is Outputs.VALUE_AND_STATS else (losses,)
        return losses, entries.listed_written(results[-1], entries.nll(results[0], stats), stats)

    def partition(self, outputs: Outputs, axes, last_axes, operands: Operands) -> tuple[Array, ...]:
        return self._on(axes + last_axes).forward(outputs, self.local(axes + last_axes, operands))

    def vjp(self, axes: tuple[str, ...], operands: Operands, stats: Sequence[Array]) -> Array:
        loss = self._on(axes)
        entries = _Entries(loss, loss.local(axes, operands))
        gradient = loss._base().vjp((), entries.of_label, stats)
        return entries.listed_written(gradient, entries.nll(None, stats), stats)

    def derivative(self, operands: Operands, stats: Sequence[Array]) -> Array:
        entries = _Entries(self, operands)
        derivative = CrossEntropy(self.objective).derivative(entries.dense, stats)
        return jnp.where(entries.valid[..., None], derivative, 0)

    def jvp(self, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands):
        given_tangent, *parameter_tangents = tangents.parameters
        entries, (maximum, log_sum) = _Entries(self, operands), stats
        of_dense = tangents._replace(target=None, parameters=tuple(parameter_tangents))
        losses_tangent, *stats_tangents = CrossEntropy(self.objective).jvp(entries.dense, losses, stats, of_dense)
        if given_tangent is not None:
            # Not by the rule of the other: in the loss, which is linear in the target, 0 · Inf is 0.
            z = formulas.scaled_logits(operands.x, None, entries.options)
            nll = log_sum[..., None] - (z - maximum[..., None])
            nll = jnp.where((entries.dense_targets == 0) & (jnp.isinf(nll) | self.divergence), 0, nll)

            def of_target(given: Array) -> tuple[Array, ...]:
                entries = _Entries(self, operands._replace(parameters=(given, *operands.parameters[1:])))
                targets = formulas.class_targets(z, entries.dense_targets, entries.options, entries.classes)
                entropy = jnp.sum(_times_logarithm(entries.dense_targets), -1)
                return targets, *([entropy] if self.divergence else [])

            of_classes, *of_rows = tangent_of(of_target, operands.parameters[:1], (given_tangent,))
            tangent = jnp.sum(of_classes * nll, -1)
            losses_tangent = sum(of_rows, start=losses_tangent + varying_like(losses, tangent))
        losses_tangent = jnp.where(entries.valid, losses_tangent, 0)
        return losses_tangent, *stats_tangents

    @property
    def flat(self) -> bool:
        """Whether every class has a part of the target."""
        return self.spread or "label_smoothing" in self.objective.parameters

    @property
    def _asks_for_stats(self) -> bool:
        """Whether the loss of a label does not tell its log-sum-exp."""
        return self.flat or "z_loss" in self.objective.parameters

    def _base(self, details: bool = False) -> CrossEntropy:
        """The loss of one label of each row, without what is made here of the listed classes."""
        names = {*self.objective.parameters} - {"class_weights"} | ({"label_smoothing"} if self.flat else set())
        return CrossEntropy(
            dataclasses.replace(
                self.objective,
                clip=self.objective.clip if self.flat else 0.0,
                parameters=tuple(name for name in OPTIONS if name in names),
                details=details,
            )
        )

    def _on(self, axes: tuple[str, ...]) -> "SparseCrossEntropy":
        """The loss where these axes, too, have split the classes, within what its own have left of them."""
        objective = dataclasses.replace(self.objective, axes=self.objective.axes + axes)
        return dataclasses.replace(self, objective=objective)

    def local(self, axes: tuple[str, ...], operands: Operands) -> Operands:
        """The operands of this device, whose classes are those that these axes have left it."""
        probabilities, *parameters = operands.parameters
        x, target, row_weight, *parameters = local_shard(self.objective, axes, *operands[:3], *parameters)
        return Operands(x, target, row_weight, (probabilities, *parameters))


Given = tuple[Array, Array, tuple[Array, ...]]
"""Logits `[..., V]`, class indices `[..., K]`, and parameters, of which the first are the probabilities."""


@inlined(static_argnums=0)
def value(loss: SparseCrossEntropy, given: Given, examples: Examples) -> Array:
    """The reduced loss; an example is a row."""
    reduced = weighted_rows if examples.reduction == "none" else weighted_sum
    return reduced(loss)(_operands(loss, given, examples))[0]


@inlined(static_argnums=0)
def gradient(loss: SparseCrossEntropy, given: Given, examples: Examples) -> Array:
    """The gradient of the reduced loss with respect to the logits, which no clip changes."""
    return value_and_grad(loss)(_operands(loss, given, examples))[-1]


@inlined(static_argnums=0)
def log_prob(objective: Objective, given: Given, examples: Examples) -> Array:
    """The log-probability of each listed class, `[..., K]`; NaN for one that is no class, and 0 in masked rows."""
    logits, indices, parameters = given
    loss = SparseCrossEntropy(objective, spread=False)
    ones = jnp.ones(indices.shape, formulas.real(logits).dtype)
    operands = _operands(loss, (logits, indices, (ones, *parameters)), examples)
    entries = _Entries(loss, operands)
    of_label = operands._replace(target=entries.label, parameters=operands.parameters[1:])
    nll = weighted_rows(CrossEntropy(objective))(of_label)[0][..., None]
    known = jnp.where(entries.known, 0 - (nll + entries.less_than_label), jnp.nan)
    return jnp.where(is_masked(along(operands.row_weight, nll)), 0, known)


def _operands(loss: SparseCrossEntropy, given: Given, examples: Examples) -> Operands:
    logits, indices, parameters = given
    rank = logits.ndim - 1
    weight = row_weight(examples, logits.shape, formulas.real(logits).dtype, example_rank=rank, row_rank=rank)
    return loss.local(loss.objective.axes, Operands(logits, indices, weight, parameters))


class _Entries:
    """The listed classes of rows.

    Attributes:
        options: of the objective, by name.
        here: whether an entry's class is one of this device's, `[rows..., K]`; and so of all others.
        known: whether it is a class.
        first: whether no earlier entry is of the same class.
        given: the probability of its class, that of all entries of the class.
        valid: whether all entries of a row are of classes, or of probability 0.
    """

    def __init__(self, loss: SparseCrossEntropy, operands: Operands):
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
        same = (index[..., :, None] == index[..., None, :]) & self.known[..., :, None] & self.known[..., None, :]
        entry, other = (jax.lax.broadcasted_iota(jnp.int32, same.shape, same.ndim - axis) for axis in (2, 1))
        self.first = self.known & ~(same & (other < entry)).any(-1)
        self.given = jnp.sum(jnp.where(same, given[..., None, :], 0), -1)
        self.begin = begin

    @functools.cached_property
    def x_of_entries(self) -> Array:
        """The logits of the entries, of any class for those that are not here."""
        return self._taken(self.x)

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
        weights = self.options["class_weights"]
        of_rows = jax.lax.expand_dims(weights, range(weights.ndim - 1, self.x.ndim - 1))
        return self.given * self._whole(self._taken(of_rows)).astype(self.given.dtype)

    def _whole(self, of_entries: Array) -> Array:
        """Numbers of entries from the devices that have their classes."""
        if not self.axes:
            return of_entries
        return jax.lax.psum(jnp.where(self.here, of_entries, 0), self.axes)

    def _taken(self, of_classes: Array) -> Array:
        """The numbers `[..., V]` of the entries' classes, of any class for those that are not here."""
        if mesh_of([of_classes]).explicit_axes:  # a gather would have to be told what becomes of split classes
            is_entry = formulas.one_hot(self.indices, self.width)
            return jnp.sum(jnp.where(is_entry, of_classes[..., None, :], 0), -1)
        return jnp.take_along_axis(of_classes, jnp.where(self.here, self.indices, 0), -1)

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
        return jnp.where(jnp.abs(total) < LEAST, LEAST, total) if self.loss._asks_for_stats else total

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
        return jnp.where(self.masked, jnp.inf, self._of_label(self.z)[..., None] - self.z)

    @functools.cached_property
    def of_label(self) -> Operands:
        """Operands of the loss of the label of each row."""
        row_weight = along(self.row_weight, self.weight)
        row_weight = jnp.where(is_masked(row_weight) | ~self.valid, MASKED, row_weight * self.weight)
        options = {name: option for name, option in self.options.items() if name != "class_weights"}
        if self.loss.flat:
            options["label_smoothing"] = self.of_others * self._classes / self.weight
        if "z_loss" in options:
            options["z_loss"] = along(options["z_loss"], self.weight) / self.weight
        parameters = tuple(options[name] for name in self.loss._base().objective.parameters)
        x = self.x
        if self.loss.flat and self.objective.in_place:  # read before it is written over
            x, _ = jax.lax.optimization_barrier((x, self._masked_classes))
        return Operands(x, self.label, row_weight, parameters)

    def nll(self, of_label: Array | None, stats: Sequence[Array]) -> Array:
        """The unclipped losses of the listed classes, from that of the label or from statistics of rows."""
        if stats:
            maximum, log_sum = (of_rows[..., None] for of_rows in stats)
            return log_sum - (self.z - maximum)
        assert of_label is not None
        return of_label[..., None] + self.less_than_label

    def losses(self, of_label: Array, stats: Sequence[Array]) -> Array:
        """The losses of rows, from those of their labels."""
        nll = self.nll(of_label, stats)
        clip = self.objective.clip

        def clipped(nll: Array) -> Array:
            return jnp.minimum(nll, -math.log(clip)) if clip else nll

        target = self.target
        if self.loss._asks_for_stats:
            # That of the label has the z-loss, and of each unmasked class what those that are not listed are given.
            maximum, log_sum = stats
            label_nll = clipped(log_sum - (self._of_label(self.z) - maximum))
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
        listed = self._of_listed(_times_logarithm(self.given))
        if not self.loss.spread:
            return listed
        others = self._others - (self._masked_classes - self._masked_listed)
        return listed + others * _times_logarithm(self.rest)

    def listed_written(self, gradient: Array, nll: Array, stats: Sequence[Array]) -> Array:
        """The gradient of the loss of labels with that of the listed classes written into it."""
        total = self.total
        if stats:
            total = with_z_loss(total, self.options, *stats)
        total = total[..., None]
        # As `softmax_minus_target` has it: near 1, a probability is 1 less what it lacks.
        of_largest = total * jnp.expm1(-nll) + (total - self.target)
        derivative = jnp.where(nll < math.log(2), of_largest, total * jnp.exp(-nll) - self.target)
        derivative = derivative * formulas.logit_slopes(self.x_of_entries, self.options)
        weight = along(self.row_weight, self.valid)
        values = weighted(jnp.where(self.valid, weight, 0), derivative).astype(gradient.dtype)
        index = jnp.where(self.here, self.indices, self.width)  # what is no class here is not written
        return _written(gradient, index, values)

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


def _times_logarithm(target: Array) -> Array:
    return target * jnp.log(jnp.where(target > 0, target, 1))


def _written(array: Array, index: Array, values: Array) -> Array:
    """The array with values at these indices of its last axis, in place; an index beyond it is not written."""
    if array.dtype.itemsize > 2:
        return _scattered(array, index, values)
    return jax.lax.platform_dependent(array, index, values, cpu=_scattered_as_integers, default=_scattered)


def _scattered_as_integers(array: Array, index: Array, values: Array) -> Array:
    """The same of 16-bit floats: XLA's scatter on a CPU would widen the array, all of it."""
    array_bits, value_bits = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (array, values))
    return jax.lax.bitcast_convert_type(_scattered(array_bits, index, value_bits), array.dtype)


def _scattered(array: Array, index: Array, values: Array) -> Array:
    rows, width = math.prod(array.shape[:-1]), array.shape[-1]
    if sizes_known(array) and array.size <= jnp.iinfo(jnp.int32).max:
        # Along one axis a CPU writes faster.
        place = width * jnp.arange(rows, dtype=jnp.int32)[:, None] + index.reshape(rows, -1)
        place = jnp.where(index.reshape(rows, -1) < width, place, array.size)
        return array.reshape(-1).at[place.ravel()].set(values.ravel(), mode="drop").reshape(array.shape)
    place, index = jnp.arange(rows)[:, None], index.reshape(rows, -1)
    written = array.reshape(rows, width).at[place, index].set(values.reshape(rows, -1), mode="drop")
    return written.reshape(array.shape)
