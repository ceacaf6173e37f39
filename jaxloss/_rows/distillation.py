"""A divergence from a teacher and the cross entropy of labels, both of the same rows of logits."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, along, as_stored
from jaxloss._autodiff.row_loss import Operands, Outputs, RowLoss
from jaxloss._autodiff.tangents import BOUNDED
from jaxloss._rows.cross_entropy import CrossEntropy
from jaxloss._rows.divergence import Divergence
from jaxloss._rows.vocab_parallel import local_shard


@dataclasses.dataclass(frozen=True)
class Distillation(RowLoss):
    """The soft weight times the divergence, and the hard weight times the cross entropy.

    Operands are those of the divergence, before whose parameters are labels, soft weight and hard weight. Statistics
    are those of the divergence, those of the cross entropy, and the loss of each. The gradient is a formula of them: it
    is rounded once, and may take the place of the logits.
    """

    divergence: Divergence
    cross_entropy: CrossEntropy

    float16_weight = BOUNDED

    @property
    def split_axes(self) -> tuple[str, ...]:
        return self.divergence.axes

    @property
    def stats(self) -> int:
        return self.divergence.stats + self.cross_entropy.stats + 2

    @property
    def gives_stats_with_gradient(self) -> bool:
        return True

    def row_rank(self, outputs: Outputs, operands: Operands) -> int:
        return self.divergence.row_rank(outputs, operands)

    def forward(self, outputs: Outputs, operands: Operands) -> tuple[Array, ...]:
        operands = as_stored(operands)
        each = Outputs.VALUE if outputs is Outputs.VALUE else Outputs.VALUE_AND_STATS
        of_teacher, of_labels = _separated(operands)
        soft, *soft_stats = self.divergence.forward(each, of_teacher)
        hard, *hard_stats = self.cross_entropy.forward(each, of_labels)
        soft_weight, hard_weight = _weights(operands, soft)
        losses = soft_weight * soft + hard_weight * hard
        return self.from_stats(outputs, operands, losses, *soft_stats, *hard_stats, soft, hard)

    def partition(self, outputs: Outputs, axes, last_axes, operands: Operands) -> tuple[Array, ...]:
        axes += last_axes
        labels, *parameters = operands.parameters
        _, labels, *_ = local_shard(self.cross_entropy.objective, axes, operands.x, labels, operands.row_weight)
        divergence = dataclasses.replace(self.divergence, axes=self.divergence.axes + axes)
        on_axes = Distillation(divergence, self.cross_entropy.on(axes))
        return on_axes.forward(outputs, operands._replace(parameters=(labels, *parameters)))

    def derivative(self, operands: Operands, stats: Sequence[Array]) -> Array:
        of_teacher, of_labels = _separated(operands)
        soft_stats, (maximum, log_sum), _, hard = self._separated_stats(stats)
        soft_weight, hard_weight = _weights(operands, operands.x)
        # Not the derivative of the cross entropy alone, which would ask other devices again which labels are classes:
        # the losses of the others are NaN.
        x, labels = formulas.real(operands.x), of_labels.target
        one_hot = formulas.one_hot(labels, x.shape[-1]).astype(x.dtype)
        difference = formulas.softmax_minus_target(x, maximum, log_sum, jnp.ones_like(maximum), one_hot)
        of_hard = jnp.where(jnp.isnan(hard)[..., None], 0, difference)
        return soft_weight * self.divergence.derivative(of_teacher, soft_stats) + hard_weight * of_hard

    def jvp(self, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands):
        of_teacher, of_labels = _separated(operands)
        tangents_of_teacher, tangents_of_labels = _separated(tangents)
        soft_stats, hard_stats, soft, hard = self._separated_stats(stats)
        soft_tangent, *of_soft = self.divergence.jvp(of_teacher, soft, soft_stats, tangents_of_teacher)
        hard_tangent, *of_hard = self.cross_entropy.jvp(of_labels, hard, hard_stats, tangents_of_labels)
        soft_weight, hard_weight = _weights(operands, losses)
        of_soft_weight, of_hard_weight = _weights(tangents, losses)
        products = (
            (soft_weight, soft_tangent),
            (hard_weight, hard_tangent),
            (of_soft_weight, soft),
            (of_hard_weight, hard),
        )
        terms = [a * b for a, b in products if a is not None and b is not None]
        losses_tangent = functools.reduce(jnp.add, terms) if terms else None
        return losses_tangent, *of_soft, *of_hard, soft_tangent, hard_tangent

    def _separated_stats(self, stats: Sequence[Array]) -> tuple[Sequence[Array], Sequence[Array], Array, Array]:
        """Of the divergence and of the cross entropy, and the loss of each."""
        own = self.divergence.stats
        return stats[:own], stats[own:-2], stats[-2], stats[-1]


def _separated(operands: Operands) -> tuple[Operands, Operands]:
    """The operands of the divergence and of the cross entropy, or what belongs to them."""
    labels, _, _, *parameters = operands.parameters
    of_teacher = operands._replace(parameters=tuple(parameters))
    return of_teacher, operands._replace(target=labels, parameters=())


def _weights(operands: Operands, like: Array) -> tuple[Any, Any]:
    """The soft and the hard weight, along rows or logits, or what belongs to them."""
    soft, hard = (None if weight is None else along(weight, like) for weight in operands.parameters[1:3])
    return soft, hard
