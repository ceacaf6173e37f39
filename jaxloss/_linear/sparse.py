"""Cross entropy of tokens whose labels are a few classes with their probabilities, chunk by chunk of tokens.

All that a linear loss is comes from `autodiff`, `local` and `gradients`. The labels are the indices of the classes, and
the first of the parameters their probabilities.
"""

import dataclasses

from jaxloss._arrays import Array
from jaxloss._autodiff.row_loss import Operands
from jaxloss._linear.chunks import Result, Stages
from jaxloss._linear.local import Work, work_of
from jaxloss._linear.plan import LinearOperands, Plan
from jaxloss._linear.split import Split
from jaxloss._rows.sparse import SparseCrossEntropy
from jaxloss._rows.vocab_parallel import local_shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsePlan(Plan):
    """What such a loss is, beside its operands.

    Attributes:
        spread: whether what the probabilities lack of 1 is spread over the other classes.
    """

    spread: bool

    @property
    def widens(self) -> bool:
        return False

    @property
    def roles(self) -> LinearOperands:
        roles, listed = super().roles, (*self.tokens, "k")
        return roles._replace(labels=listed, parameters=(listed, *roles.parameters))


class SparseWork(Work):
    """The operands on one device, and what is made of a chunk of their tokens."""

    def __init__(self, plan: SparsePlan, split: Split, operands: LinearOperands, *, direct: bool = False):
        super().__init__(plan, split, operands, direct=direct)
        self.probabilities = self.flat(self.parameters[0])
        self.loss = SparseCrossEntropy(self.objective, plan.spread)

    def scan(self, strided: bool, stages: Stages, sums: list[Array], results: list[Result], *rows: Array):
        return super().scan(strided, stages, sums, results, *rows, self.probabilities)

    def of_row_loss(self, parameters: tuple) -> tuple:
        return (None, *parameters[1:])

    def operands_of(self, logits: Array, *rows: Array) -> Operands:
        probabilities, _, indices, weight = rows
        parameters = self.parameters[1:]
        local = local_shard(self.objective, self.axes, logits, indices, weight, *parameters, width=self.classes)
        operands = Operands.of(local)
        return operands._replace(parameters=(probabilities, *operands.parameters))


@work_of.register
def _(plan: SparsePlan, split: Split, operands: LinearOperands, *, direct: bool = False) -> SparseWork:
    return SparseWork(plan, split, operands, direct=direct)
