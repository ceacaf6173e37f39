"""The sigmoid loss of pairs of embeddings, a chunk of them at a time.

It is a linear loss: the embeddings of one kind are hidden states, those of the other are the kernel's classes, and the
label of each is the one that it belongs to. Scale and bias, `[2]`, are in the place of the bias.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss._arrays import Array, inlined
from jaxloss._autodiff import row_loss
from jaxloss._autodiff.row_loss import Operands
from jaxloss._linear import autodiff
from jaxloss._linear.local import Work, work_of
from jaxloss._linear.plan import LinearOperands, Plan
from jaxloss._linear.split import Split
from jaxloss._rows.contrastive import Contrastive
from jaxloss._rows.vocab_parallel import local_shard
from jaxloss._rows.weights import Examples


@dataclasses.dataclass(frozen=True)
class ContrastivePlan(Plan):
    """What such a loss is, beside its operands."""

    @property
    def roles(self) -> LinearOperands:
        return super().roles._replace(bias=("s",))


class ContrastiveWork(Work):
    """The operands on one device, and what is made of a chunk of them.

    What gradients are made of is a pair: the gradient of logits, and the products before scale and bias.
    """

    float16_cotangents = True

    def __init__(self, plan: Plan, split: Split, operands: LinearOperands, *, direct: bool = False):
        super().__init__(plan, split, operands, direct=direct)
        self.loss = Contrastive(self.axes)
        assert self.bias is not None
        self.scale, self.offset = self.bias

    @property
    def memory_of_token(self) -> tuple[int, int, int, int]:
        """The products and the gradient of the logits, which exist at once, take what logits take elsewhere."""
        classes, itemsize, memory, fewest = super().memory_of_token
        return classes, 2 * itemsize, memory, fewest

    def biased_logits(self, hidden: Array, weight: Array) -> Array:
        return self._logits_of(self.logits(hidden))

    def _logits_of(self, products: Array) -> Array:
        return (self.scale * products + self.offset).astype(products.dtype)

    def operands_of(self, logits: Array, *rows: Array) -> Operands:
        _, labels, weight = rows
        return Operands.of(local_shard(self.objective, self.axes, logits, labels, weight))

    def logits_tangent(self, hidden: Array, kernel: Array) -> Array:
        return self.scale * super().logits_tangent(hidden, kernel)

    def tangent_of_bias(self, tangent: Array, hidden: Array, logits: Array) -> Array:
        of_scale, of_offset = tangent
        return of_scale * self.logits(hidden) + of_offset

    def value_and_d_logits(self, rows: Sequence[Array]) -> tuple[Sequence[Array], Any]:
        products = self.logits(rows[0])
        operands = self.operands_of(self._logits_of(products), *rows)
        losses, d_logits = row_loss.value_and_grad(self.loss)(operands)
        return (losses,), (d_logits, products)

    def rounded(self, d_logits: tuple[Array, Array]) -> Array:
        return super().rounded(self.scale * d_logits[0])

    def of_bias(self, d_logits: tuple[Array, Array]) -> Array:
        gradient, products = d_logits
        return jnp.stack([jnp.sum(gradient * products), jnp.sum(gradient)])


@work_of.register
def _(plan: ContrastivePlan, split: Split, operands: LinearOperands, *, direct: bool = False) -> ContrastiveWork:
    return ContrastiveWork(plan, split, operands, direct=direct)


@inlined(static_argnums=(0, 1))
def value(
    plan: ContrastivePlan, axes: tuple[str, ...], a: Array, b: Array, numbers: Array, examples: Examples
) -> Array:
    """The reduced loss; an example is a row of `a`. `numbers` are scale and bias.

    Inside a `shard_map` whose axes have split the rows of both, it is that of all rows.
    """
    labels = jnp.arange(a.shape[0], dtype=jnp.int32)
    if not axes:
        return autodiff.value(plan, (a, b, labels), examples, numbers)[0]
    if examples.reduction == "mean" and examples.normalizer is None:
        n = jnp.asarray(a.shape[0] * jax.lax.axis_size(axes), plan.value_dtype)
        examples = dataclasses.replace(examples, normalizer=n)
    labels += a.shape[0] * jax.lax.axis_index(axes)
    loss = autodiff.value(plan, (a, jax.lax.all_gather(b, axes, tiled=True), labels), examples, numbers)[0]
    return loss if examples.reduction == "none" else jax.lax.psum(loss, axes)
