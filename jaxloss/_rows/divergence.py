"""Divergences as losses of rows: a row is all classes of an example, and they may be split over devices."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, along, as_stored, inlined, is_masked, promoted
from jaxloss._autodiff.pair import weighted_rows, weighted_sum
from jaxloss._autodiff.row_loss import Operands, Outputs, RowLoss, value_and_grad
from jaxloss._autodiff.tangents import BOUNDED, row_dot, tangent_of, varying_like
from jaxloss._ffi import divergence as calls
from jaxloss._rows.weights import Examples, row_weight
from jaxloss.formulas import real


@dataclasses.dataclass(frozen=True)
class Divergence(RowLoss):
    """A divergence of the distribution of rows of logits, the student's, from the teacher's.

    Operands are logits, teacher, row weight, and as parameters the scale (1 over the temperature) and the divergence's
    own. The statistics of a row are its `formulas.divergence_stats` and the sum of its classes' second terms, `total`.

    Attributes:
        name: its functor in `cuda/maths/divergence.h`.
        terms: that functor as a formula.
        of_logits: whether the teacher is given as logits, not as probabilities.
        axes: the mesh axes that an enclosing `shard_map` has split the classes over: logits and teacher are the slice
            of this device, losses and statistics are the whole row's.
        in_place: a gradient may overwrite the logits, which whoever made them needs no more.
    """

    name: str
    terms: Callable[..., tuple[Array, Array]]
    of_logits: bool
    axes: tuple[str, ...] = ()
    in_place: bool = False

    float16_weight = BOUNDED

    @property
    def call(self) -> str:
        return f"{self.name}_{'of_logits' if self.of_logits else 'of_probabilities'}"

    @property
    def stats(self) -> int:
        return 5 if self.of_logits else 3

    @property
    def gives_stats_with_gradient(self) -> bool:
        return True

    @property
    def split_axes(self) -> tuple[str, ...]:
        return self.axes

    def row_rank(self, outputs: Outputs, operands: Operands) -> int:
        return len(operands.x.shape) - 1

    def forward(self, outputs: Outputs, operands: Operands) -> tuple[Array, ...]:
        if self.axes:
            return self._by_formula(outputs, (), operands)

        def of_row(*operands):
            return _losses_and_stats(self, (), *operands)

        def derivative(operands, stats):
            return self.derivative(Operands.of(operands), stats)

        if outputs is Outputs.VALUE_AND_GRAD:
            return calls.divergence_value_and_grad(
                self.call, self.stats, of_row, derivative, *operands.flat, in_place=self.in_place
            )
        results = calls.divergence_value(self.call, self.stats, of_row, *operands.flat)
        return results[:1] if outputs is Outputs.VALUE else results

    def partition(self, outputs: Outputs, axes, last_axes, operands: Operands) -> tuple[Array, ...]:
        return self._by_formula(outputs, axes + last_axes, operands)

    def _by_formula(self, outputs: Outputs, axes: tuple[str, ...], operands: Operands) -> tuple[Array, ...]:
        """The outputs from the slices of the classes that these axes, too, have left."""
        return self.from_stats(outputs, operands, *_losses_and_stats(self, self.axes + axes, *operands.flat))

    def derivative(self, operands: Operands, stats: Sequence[Array]) -> Array:
        logits, target, _, numbers = operands
        *stats, total = stats
        scale, *parameters = (along(number, logits) for number in numbers)
        return scale * formulas.d_divergence_of_tempered(self.terms, logits, target, stats, total, scale, *parameters)

    def jvp(self, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands):
        return _tangents(self, operands, losses, stats, tangents)


KL = Divergence("kl_divergence", formulas.kl_terms, of_logits=True)
"""From a teacher's logits."""


class ReverseKL(Divergence):
    """That of the teacher from the student: the kernel of `KL` with the two swapped, and the gradient as a formula."""

    def forward(self, outputs: Outputs, operands: Operands) -> tuple[Array, ...]:
        if self.axes:
            return self._by_formula(outputs, (), operands)
        operands = as_stored(operands)
        # The kernel's second operand has the first one's type, if that is not one of 16 bits.
        student = operands.x.astype(promoted(operands.x.dtype, operands.target.dtype))
        swapped = operands._replace(x=operands.target, target=student)
        if outputs is Outputs.VALUE:
            return KL.forward(outputs, swapped)
        losses, *of_teacher, maximum, log_sum, _ = KL.forward(Outputs.VALUE_AND_STATS, swapped)
        return self.from_stats(outputs, operands, losses, maximum, log_sum, *of_teacher, losses)


REVERSE_KL = ReverseKL("kl_divergence", formulas.reverse_kl_terms, of_logits=True)
"""To a teacher's logits."""

JENSEN_SHANNON = Divergence("jensen_shannon", formulas.js_terms, of_logits=True)
"""Of a teacher's logits."""


@inlined(static_argnums=(0, 1))
def value(
    divergence: Divergence, axes: tuple[str, ...], logits: Array, target: Array, examples: Examples, *numbers: Array
) -> Array:
    """The reduced divergence of logits `[..., V]`; an example is a row. For `axes` and `numbers` see `Divergence`."""
    loss = dataclasses.replace(divergence, axes=axes)
    reduced = weighted_rows if examples.reduction == "none" else weighted_sum
    return reduced(loss)(_operands(logits, target, examples, numbers))[0]


@inlined(static_argnums=(0, 1))
def gradient(
    divergence: Divergence, axes: tuple[str, ...], logits: Array, target: Array, examples: Examples, *numbers: Array
) -> Array:
    """The gradient of the reduced divergence with respect to the student's logits."""
    loss = dataclasses.replace(divergence, axes=axes)
    return value_and_grad(loss)(_operands(logits, target, examples, numbers))[-1]


def _operands(logits: Array, target: Array, examples: Examples, numbers: tuple[Array, ...]) -> Operands:
    rank = logits.ndim - 1
    weight = row_weight(examples, logits.shape, real(logits).dtype, example_rank=rank, row_rank=rank)
    return Operands(logits, target, weight, numbers)


def _losses_and_stats(divergence: Divergence, axes: tuple[str, ...], logits, target, row_weight, scale, *parameters):
    """Losses and statistics of whole rows, from this device's slice of the classes where they are split over `axes`.

    Only numbers of one a row are exchanged.
    """
    of_classes = along(scale, logits)

    def sums_of(logits):
        maximum, rest = formulas.tempered_softmax_sums(logits, of_classes)
        if not axes:
            return maximum, rest
        whole = jax.lax.pmax(maximum, axes)
        sums = formulas.sums_of_slice(whole, maximum, rest, along(scale, maximum))
        return whole, formulas.rest_of_sums(*jax.lax.psum(sums, axes))

    stats, shift = formulas.stats_of_sums(sums_of(logits), sums_of(target) if divergence.of_logits else None)
    of_parameters = (along(parameter, logits) for parameter in parameters)
    of_class = formulas.divergence_terms(
        divergence.terms, logits, target, stats, of_classes, *of_parameters, shift=shift
    )
    losses, total = (terms.sum(-1) for terms in of_class)
    if axes:
        losses, total = jax.lax.psum((losses, total), axes)
    out = along(is_masked(row_weight), losses)
    return tuple(jnp.where(out, 0, rows) for rows in (losses, *stats, total))


def _tangents(divergence: Divergence, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands):
    logits, target, _, numbers = operands
    logits_tangent, target_tangent, _, number_tangents = tangents
    maximum, log_sum, *of_teacher, total = stats
    rank = losses.ndim
    scale, *parameters = (along(number, logits) for number in numbers)
    scale_tangent, *parameter_tangents = (
        None if tangent is None else along(tangent, logits) for tangent in number_tangents
    )

    def sum_of(*terms):
        terms = [term for term in terms if term is not None]
        return sum(terms[1:], start=terms[0]) if terms else None

    def tempered_tangent(x, x_tangent, maximum):
        """The tangent of the tempered logits, but for what their maximum adds to all of a row."""
        return sum_of(
            None if x_tangent is None else scale * real(x_tangent),
            None if scale_tangent is None else scale_tangent * formulas.above_maximum(x, maximum),
        )

    def log_sum_tangent(log_p, of_tempered, log_sum):
        if of_tempered is None:
            return None
        return varying_like(log_sum, row_dot(jnp.exp(log_p), of_tempered, rank))

    def log_p_tangent(of_tempered, of_log_sum):
        return None if of_tempered is None else of_tempered - of_log_sum[..., None]

    log_p = formulas.log_probabilities(logits, maximum, log_sum, scale)
    student_tangent = tempered_tangent(logits, logits_tangent, maximum)
    student_sum_tangent = log_sum_tangent(log_p, student_tangent, log_sum)
    if divergence.of_logits:
        teacher = formulas.log_probabilities(target, of_teacher[0], of_teacher[1], scale)
        of_target = tempered_tangent(target, target_tangent, of_teacher[0])
        teacher_sum_tangent = log_sum_tangent(teacher, of_target, of_teacher[1])
        teacher_tangent, sum_tangents = log_p_tangent(of_target, teacher_sum_tangent), (None, teacher_sum_tangent)
    else:
        teacher, sum_tangents = real(target), ()
        teacher_tangent = None if target_tangent is None else real(target_tangent)

    def terms(log_p, teacher, *parameters):
        if divergence.of_logits:
            return divergence.terms(log_p, teacher, jnp.exp(teacher), *parameters)
        return divergence.terms(log_p, formulas.log_of_probabilities(teacher), teacher, *parameters)

    def summed_tangent(which, log_p_tangent):
        """The tangent of the sum of the terms; that of `log_p` counts only if it is given."""
        primals = (log_p, teacher, *parameters)
        tangents = (log_p_tangent, teacher_tangent, *parameter_tangents)
        if all(tangent is None for tangent in tangents):
            return None
        of_class = tangent_of(lambda *operands: terms(*operands)[which], primals, tangents)
        return row_dot(of_class, jnp.ones_like(of_class), rank)

    # Of the student's logits by the derivative itself: its transpose is then one pass over them.
    of_student = None
    if student_tangent is not None:
        derivative = formulas.d_divergence_of_tempered(
            divergence.terms, logits, target, (maximum, log_sum, *of_teacher), total, scale, *parameters
        )
        of_student = row_dot(derivative, student_tangent, rank)
    losses_tangent = sum_of(of_student, summed_tangent(0, None))
    total_tangent = summed_tangent(1, log_p_tangent(student_tangent, student_sum_tangent))

    def of_rows(result, tangent):
        return None if tangent is None else varying_like(result, tangent)

    return of_rows(losses, losses_tangent), None, student_sum_tangent, *sum_tangents, of_rows(total, total_tangent)
