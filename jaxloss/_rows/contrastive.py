"""The sigmoid loss of pairs as a loss of rows: a row has the logits of one embedding with all of another kind."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, along, is_masked
from jaxloss._autodiff.row_loss import Operands, Outputs, RowLoss
from jaxloss._autodiff.tangents import BOUNDED, row_dot, varying_like
from jaxloss._rows.vocab_parallel import local_shard
from jaxloss._spec import Objective


@dataclasses.dataclass(frozen=True)
class Contrastive(RowLoss):
    """The sum of the binary cross entropies of a row, of which the label alone belongs to it.

    It is a formula: an array of targets, which a kernel reads beside the logits, would be as large as they are, and XLA
    makes value and gradient in one pass over them.

    Attributes:
        axes: the mesh axes that an enclosing `shard_map` has split the features over; a label that is elsewhere is -1.
    """

    axes: tuple[str, ...] = ()

    float16_weight = BOUNDED

    @property
    def split_axes(self) -> tuple[str, ...]:
        return self.axes

    def row_rank(self, outputs: Outputs, operands: Operands) -> int:
        return len(operands.x.shape) - 1

    def forward(self, outputs: Outputs, operands: Operands) -> tuple[Array, ...]:
        losses = formulas.sigmoid_contrastive(operands.x, operands.target)
        losses = jax.lax.psum(losses, self.axes) if self.axes else losses
        out = is_masked(along(operands.row_weight, losses))
        return self.from_stats(outputs, operands, jnp.where(out, 0, losses))

    def partition(self, outputs: Outputs, axes, last_axes, operands: Operands) -> tuple[Array, ...]:
        axes += last_axes
        local = local_shard(Objective(0.0, (), None), axes, *operands.flat)
        return Contrastive(self.axes + axes).forward(outputs, Operands.of(local))

    def derivative(self, operands: Operands, stats: Sequence[Array]) -> Array:
        return formulas.d_sigmoid_contrastive(operands.x, operands.target)

    def jvp(self, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands):
        if tangents.x is None:
            return (None,)
        return (varying_like(losses, row_dot(self.derivative(operands, stats), tangents.x, losses.ndim)),)
