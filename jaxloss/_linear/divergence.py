"""Divergences of a student from a teacher, both of hidden states and a kernel, chunk by chunk of tokens.

All that a linear loss is comes from `autodiff`, `local` and `gradients`. The teacher's hidden states are in the place
of labels, and its kernel and bias follow the numbers among the parameters. A chunk has the logits of both; the cross
entropy of labels may be added to the divergence, from the same ones of the student.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, inlined, is_masked, promoted
from jaxloss._autodiff import row_loss
from jaxloss._autodiff.row_loss import Operands
from jaxloss._autodiff.tangents import tangent_of
from jaxloss._linear import autodiff
from jaxloss._linear.chunks import Result, Stages
from jaxloss._linear.local import Work, with_bias, work_of
from jaxloss._linear.plan import LinearOperands, Plan
from jaxloss._linear.split import Split
from jaxloss._rows.cross_entropy import CrossEntropy
from jaxloss._rows.distillation import Distillation
from jaxloss._rows.divergence import Divergence
from jaxloss._rows.vocab_parallel import local_shard
from jaxloss._rows.weights import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class DivergencePlan(Plan):
    """What such a loss is, beside its operands. Its objective is that of the labels, if there are any.

    The parameters are numbers, the softcap if there is one, the teacher's kernel, its bias and softcap if it has them,
    and the labels if there are any.

    Attributes:
        divergence: of rows of logits.
        numbers: how many of the parameters are numbers: soft and hard weight if there are labels, and the divergence's.
        teacher_classes_first: whether the teacher's kernel is `[V, D]`.
        has_teacher_bias: whether the teacher has a bias.
        has_softcap, has_teacher_softcap: whether the logits of student and teacher are bounded.
        has_labels: whether there are labels, whose cross entropy is added.
        padded: whether there are logits beyond the number of classes.
    """

    divergence: Divergence
    numbers: int
    teacher_classes_first: bool
    has_teacher_bias: bool
    has_softcap: bool
    has_teacher_softcap: bool
    has_labels: bool
    padded: bool

    @property
    def widens(self) -> bool:
        return not self.has_labels

    @property
    def roles(self) -> LinearOperands:
        # The teacher's features have roles of their own: whoever works on its classes has them whole.
        of_teacher = (
            ("v", "k") if self.teacher_classes_first else ("k", "v"),
            *((("v",),) if self.has_teacher_bias else ()),
            *(((),) if self.has_teacher_softcap else ()),
        )
        labels = (self.tokens,) if self.has_labels else ()
        parameters = (*((),) * (self.numbers + self.has_softcap), *of_teacher, *labels)
        return super().roles._replace(labels=(*self.tokens, "h"), parameters=parameters)


class DivergenceWork(Work):
    """The operands on one device, and what is made of a chunk of their tokens."""

    plan: DivergencePlan

    def __init__(self, plan: DivergencePlan, split: Split, operands: LinearOperands, *, direct: bool = False):
        super().__init__(plan, split, operands, direct=direct)
        rest = [*self.parameters[plan.numbers :]]
        self.softcap = rest.pop(0) if plan.has_softcap else None
        kernel = rest.pop(0)
        self.teacher_bias = rest.pop(0) if plan.has_teacher_bias else None
        self.teacher_softcap = rest.pop(0) if plan.has_teacher_softcap else None
        self.labels = [self.flat(labels) for labels in rest]
        self.teacher_dtype = promoted(self.rows[1].dtype, kernel.dtype)
        self.teacher_kernel = kernel.astype(self.teacher_dtype)
        self.numbers = self.parameters[: plan.numbers]
        self.loss = dataclasses.replace(plan.divergence, axes=self.axes, in_place=True)
        if plan.has_labels:
            self.loss = Distillation(self.loss, CrossEntropy(self.objective))

    @property
    def teacher_logits_dtype(self):
        """That of the student's, or float32 beside 16 bits: the pairs of types that there are kernels for."""
        dtype = jnp.dtype(self.plan.logits_dtype)
        return dtype if self.teacher_dtype == dtype else promoted(dtype, jnp.float32)

    @property
    def memory_of_token(self) -> tuple[int, int, int, int]:
        """The logits of both take what those of one take elsewhere, if a chunk has tokens enough then."""
        classes, _, memory, fewest = super().memory_of_token
        types = self.plan.logits_dtype, self.teacher_logits_dtype
        return classes, sum(jnp.dtype(dtype).itemsize for dtype in types), memory, fewest

    def scan(self, strided: bool, stages: Stages, sums: list[Array], results: list[Result], *rows: Array):
        return super().scan(strided, stages, sums, results, *rows, *self.labels)

    def of_row_loss(self, parameters: tuple) -> tuple:
        labels = (None,) if self.plan.has_labels else ()
        return *labels, *parameters[: self.plan.numbers]

    def operands_of(self, logits: Array, *rows: Array) -> Operands:
        *labels, _, teacher_hidden, weight = rows
        axis, dtype = 0 if self.plan.teacher_classes_first else 1, self.teacher_logits_dtype
        # No product of narrower operands has results of float64.
        of_operands = dtype if dtype == jnp.float64 else self.teacher_dtype
        teacher_hidden, teacher_kernel = (x.astype(of_operands) for x in (teacher_hidden, self.teacher_kernel))
        teacher = self._product(teacher_hidden, teacher_kernel, (1, 1 - axis), dtype)
        teacher = self._bounded(with_bias(teacher, self.teacher_bias), self.teacher_softcap)
        student = self._bounded(logits, self.softcap)
        labels = [local_shard(self.objective, self.axes, student, of, weight)[1] for of in labels]
        return Operands(student, teacher, weight, (*labels, *self.numbers))

    def tangents_of(self, logits: Array, logits_tangent: Array | None, operands: Operands, parameters) -> Operands:
        if self.softcap is not None:
            tangents = logits_tangent, parameters[self.plan.numbers]
            if any(tangent is not None for tangent in tangents):
                logits_tangent = tangent_of(self._bounded, (logits, self.softcap), tangents)
        return super().tangents_of(logits, logits_tangent, operands, parameters)

    def value_and_d_logits(self, rows: Sequence[Array]) -> tuple[Sequence[Array], Any]:
        if self.softcap is None:
            return super().value_and_d_logits(rows)
        hidden, _, weight = rows[-3:]
        logits = self._with_padding(self.biased_logits(hidden, weight), 0)
        losses, *_, gradient = row_loss.value_and_grad(self.loss)(self.operands_of(logits, *rows))
        slopes = formulas.logit_slopes(logits, {"softcap": self.softcap})
        d_logits = jnp.where(is_masked(weight)[:, None], 0, gradient * slopes)
        return (losses,), d_logits.astype(gradient.dtype)

    def _bounded(self, logits: Array, softcap: Array | None) -> Array:
        """Logits as the losses take them: bounded by the softcap, if there is one, and -Inf beyond the classes."""
        if softcap is not None:
            logits = self._with_padding(logits, 0)  # which may be NaN, and so would its slope
            logits = formulas.scaled_logits(logits, None, {"softcap": softcap}).astype(logits.dtype)
        return self._with_padding(logits, -jnp.inf)

    def _with_padding(self, logits: Array, number: float) -> Array:
        """Logits that are this number beyond the number of classes."""
        classes, width = self.objective.classes, logits.shape[-1]
        if classes is None or not self.plan.padded:
            return logits
        if not self.axes:  # nothing else is written
            return logits.at[:, classes:].set(number)
        here = jnp.int32(classes) - jax.lax.axis_index(self.axes) * width
        return jnp.where(formulas.counted_classes(logits, {"num_classes": here}), logits, number)


@work_of.register
def _(plan: DivergencePlan, split: Split, operands: LinearOperands, *, direct: bool = False) -> DivergenceWork:
    return DivergenceWork(plan, split, operands, direct=direct)


@inlined(static_argnums=0)
def value(
    plan: DivergencePlan, operands: tuple[Array, Array, Array], examples: Examples, *rest: Array
) -> tuple[Array, ...]:
    """The reduced divergence, as `autodiff.value` has it. Gradients stop at the teacher."""
    hidden, kernel, teacher_hidden = operands
    own = plan.has_bias + plan.numbers + plan.has_softcap
    operands = hidden, kernel, jax.lax.stop_gradient(teacher_hidden)
    return autodiff.value(plan, operands, examples, *rest[:own], *map(jax.lax.stop_gradient, rest[own:]))
