"""Cross entropy with a few classes of each row and their probabilities, and the divergence from them, of rows.

The kernels of class indices compute both. Of a row, the listed class with the largest logit is the label there; from
its loss and the logits of the others come the losses of all that are listed. The gradient is that of the label, with
the row weighed by what the target sums to: it is right at all classes that are not listed, and written anew at others.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, along, inlined, is_masked
from jaxloss._autodiff.pair import weighted_rows, weighted_sum
from jaxloss._autodiff.row_loss import Operands, Outputs, RowLoss, value_and_grad
from jaxloss._autodiff.tangents import BOUNDED, tangent_of, varying_like
from jaxloss._rows.cross_entropy import CrossEntropy
from jaxloss._rows.sparse_entries import Entries, times_logarithm
from jaxloss._rows.vocab_parallel import local_shard
from jaxloss._rows.weights import Examples, row_weight
from jaxloss._spec import OPTIONS, Objective


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
        entries = Entries(self, operands)
        with_gradient = outputs is Outputs.VALUE_AND_GRAD
        with_stats = outputs is Outputs.VALUE_AND_STATS or self.asks_for_stats
        base = self.base(details=with_gradient and with_stats)
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
        entries = Entries(loss, loss.local(axes, operands))
        gradient = loss.base().vjp((), entries.of_label, stats)
        return entries.listed_written(gradient, entries.nll(None, stats), stats)

    def derivative(self, operands: Operands, stats: Sequence[Array]) -> Array:
        entries = Entries(self, operands)
        derivative = CrossEntropy(self.objective).derivative(entries.dense, stats)
        return jnp.where(entries.valid[..., None], derivative, 0)

    def jvp(self, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands):
        given_tangent, *parameter_tangents = tangents.parameters
        entries, (maximum, log_sum) = Entries(self, operands), stats
        of_dense = tangents._replace(target=None, parameters=tuple(parameter_tangents))
        losses_tangent, *stats_tangents = CrossEntropy(self.objective).jvp(entries.dense, losses, stats, of_dense)
        if given_tangent is not None:
            # Not by the rule of the other: in the loss, which is linear in the target, 0 · Inf is 0.
            z = formulas.scaled_logits(operands.x, None, entries.options)
            z = formulas.with_maximum(z, maximum, entries.options)
            nll = log_sum[..., None] - (z - maximum[..., None])
            nll = jnp.where((entries.dense_targets == 0) & (jnp.isinf(nll) | self.divergence), 0, nll)

            def of_target(given: Array) -> tuple[Array, ...]:
                entries = Entries(self, operands._replace(parameters=(given, *operands.parameters[1:])))
                targets = formulas.class_targets(z, entries.dense_targets, entries.options, entries.classes)
                entropy = jnp.sum(times_logarithm(entries.dense_targets), -1)
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
    def asks_for_stats(self) -> bool:
        """Whether the loss of a label does not tell its log-sum-exp."""
        return self.flat or "z_loss" in self.objective.parameters

    def base(self, details: bool = False) -> CrossEntropy:
        """The loss of one label of each row, without what is made here of the listed classes."""
        names = {*self.objective.parameters} - {"class_weights"} | ({"label_smoothing"} if self.flat else set())
        return CrossEntropy(
            dataclasses.replace(
                self.objective,
                clip=self.objective.clip if self.asks_for_stats else 0.0,
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
    entries = Entries(loss, operands)
    of_label = operands._replace(target=entries.label, parameters=operands.parameters[1:])
    nll = weighted_rows(CrossEntropy(objective))(of_label)[0][..., None]
    known = jnp.where(entries.known, 0 - (nll + entries.less_than_label), jnp.nan)
    return jnp.where(is_masked(along(operands.row_weight, nll)), 0, known)


def _operands(loss: SparseCrossEntropy, given: Given, examples: Examples) -> Operands:
    logits, indices, parameters = given
    rank = logits.ndim - 1
    weight = row_weight(examples, logits.shape, formulas.real(logits).dtype, example_rank=rank, row_rank=rank)
    return loss.local(loss.objective.axes, Operands(logits, indices, weight, parameters))
