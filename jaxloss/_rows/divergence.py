"""Divergences as row-wise ops: a row is all classes of an example, and they may be split over devices."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, along, inlined, is_masked, weighted
from jaxloss._autodiff import pair
from jaxloss._autodiff.pair import RowLoss
from jaxloss._autodiff.tangents import BOUNDED, row_dot, varying_like
from jaxloss._ffi import divergence as calls
from jaxloss._partitioning.meshes import Entry
from jaxloss._partitioning.partitioned import Call, Op
from jaxloss._partitioning.row_wise import RowWise
from jaxloss._rows.weights import Examples, row_weight
from jaxloss.formulas import real


@dataclasses.dataclass(frozen=True)
class Divergence:
    """A divergence of the student's distribution from the teacher's.

    Attributes:
        name: its functor in `cuda/maths/divergence.h`.
        terms: that functor as a formula.
        of_logits: whether the teacher is given as logits, not as probabilities.
    """

    name: str
    terms: Callable[..., tuple[Array, Array]]
    of_logits: bool

    @property
    def call(self) -> str:
        return f"{self.name}_{'of_logits' if self.of_logits else 'of_probabilities'}"

    @property
    def stats(self) -> int:
        return 5 if self.of_logits else 3


@inlined(static_argnums=(0, 1))
def value(
    divergence: Divergence, axes: tuple[str, ...], logits: Array, target: Array, examples: Examples, *numbers: Array
) -> Array:
    """The reduced divergence of logits `[..., V]`; an example is a row. For `axes` and `numbers` see `row_loss`."""
    reduced = pair.weighted_rows if examples.reduction == "none" else pair.weighted_sum
    return reduced(row_loss(divergence, axes))(logits, target, _weight(logits, examples), *numbers)


@inlined(static_argnums=(0, 1))
def gradient(
    divergence: Divergence, axes: tuple[str, ...], logits: Array, target: Array, examples: Examples, *numbers: Array
) -> Array:
    """The gradient of the reduced divergence with respect to the student's logits."""
    loss = row_loss(divergence, axes)
    return pair.value_and_grad(loss)(logits, target, _weight(logits, examples), *numbers)[-1]


def _weight(logits: Array, examples: Examples) -> Array:
    rank = logits.ndim - 1
    return row_weight(examples, logits.shape, real(logits).dtype, example_rank=rank, row_rank=rank)


def _row_rank(logits, *_) -> int:
    return len(logits.shape) - 1


@functools.cache
def row_loss(divergence: Divergence, axes: tuple[str, ...] = ()) -> RowLoss:
    """The divergence of rows of logits from a teacher.

    Operands are logits, teacher, row weight, scale (1 over the temperature) and the divergence's parameters. The
    statistics of a row are its `formulas.divergence_stats` and the sum of its classes' second terms, the total. With
    `axes`, an enclosing `shard_map` has split the classes over these mesh axes: logits and teacher are the slice of
    this device, losses and statistics are the whole row's.
    """
    formula = functools.partial(_losses_and_stats, divergence)
    derivative = functools.partial(_derivative, divergence)

    def value_and_stats(*operands):
        return calls.divergence_value(divergence.call, divergence.stats, functools.partial(formula, ()), *operands)

    def value_and_grad(*operands):
        of_row = functools.partial(formula, ())
        return calls.divergence_value_and_grad(divergence.call, divergence.stats, of_row, derivative, *operands)

    def slice_value_and_grad(axes, *operands):
        losses, *stats = formula(axes, *operands)
        gradient = weighted(operands[2], derivative(operands, tuple(stats))).astype(operands[0].dtype)
        return losses, *stats, gradient

    def op(attribute: str, whole: Op, local_shard: Op) -> RowWise:
        def split(more_axes, *operands):
            return local_shard(axes + more_axes, *operands)

        local = functools.partial(split, ()) if axes else whole
        return RowWise((__name__, (divergence, axes, attribute)), local, split, _row_rank)

    return RowLoss(
        row_rank=_row_rank,
        value=op("value", lambda *operands: value_and_stats(*operands)[:1], lambda *operands: formula(*operands)[:1]),
        value_and_stats=op("value_and_stats", value_and_stats, formula),
        value_and_grad=op("value_and_grad", value_and_grad, slice_value_and_grad),
        derivative=derivative,
        tangents=functools.partial(_tangents, divergence),
        grad_gives_stats=True,
        split_axes=axes,
        float16_weight=BOUNDED,
    )


def partitioned(divergence: Divergence, axes: tuple[str, ...], attribute: str, outer: tuple[Entry, ...]) -> Call:
    """The call of that description."""
    return getattr(row_loss(divergence, axes), attribute).call(outer)


def _losses_and_stats(divergence: Divergence, axes: tuple[str, ...], logits, target, row_weight, scale, *parameters):
    """Losses and statistics of whole rows, from this device's slice of the classes where they are split over `axes`.

    Only numbers of one a row are exchanged.
    """

    def of_rows(maximum, log_sum):
        if not axes:
            return maximum, log_sum
        whole = jax.lax.pmax(maximum, axes)
        sums = formulas.sums_of_slice(whole, maximum, log_sum, along(scale, maximum))
        return whole, formulas.log_of_sums(*jax.lax.psum(sums, axes))

    of_classes = along(scale, logits)
    stats = of_rows(*formulas.tempered_softmax_stats(logits, of_classes))
    if divergence.of_logits:
        stats += of_rows(*formulas.tempered_softmax_stats(target, of_classes))
    of_class = formulas.divergence_terms(
        divergence.terms, logits, target, stats, of_classes, *(along(parameter, logits) for parameter in parameters)
    )
    losses, total = (terms.sum(-1) for terms in of_class)
    if axes:
        losses, total = jax.lax.psum((losses, total), axes)
    out = along(is_masked(row_weight), losses)
    return tuple(jnp.where(out, 0, rows) for rows in (losses, *stats, total))


def _derivative(divergence: Divergence, operands, stats):
    logits, target, _, *numbers = operands
    *stats, total = stats
    scale, *parameters = (along(number, logits) for number in numbers)
    return formulas.d_divergence(divergence.terms, logits, target, stats, total, scale, *parameters)


def _tangents(divergence: Divergence, operands, losses, stats, tangents):
    logits, target, _, *numbers = operands
    logits_tangent, target_tangent, _, *number_tangents = tangents
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
        of_class = _jvp(lambda *operands: terms(*operands)[which], primals, tangents)
        return row_dot(of_class, jnp.ones_like(of_class), rank)

    # Of the student's logits by the derivative itself: its transpose is then one pass over them.
    of_student = None
    if student_tangent is not None:
        derivative = terms(log_p, teacher, *parameters)[1] - jnp.exp(log_p) * total[..., None]
        of_student = row_dot(derivative, student_tangent, rank)
    losses_tangent = sum_of(of_student, summed_tangent(0, None))
    total_tangent = summed_tangent(1, log_p_tangent(student_tangent, student_sum_tangent))

    def of_rows(result, tangent):
        return None if tangent is None else varying_like(result, tangent)

    return of_rows(losses, losses_tangent), None, student_sum_tangent, *sum_tangents, of_rows(total, total_tangent)


def _jvp(function: Callable[..., Array], primals, tangents) -> Array:
    """The tangent of its result; None is the tangent of what has none."""
    nonzero = [place for place, tangent in enumerate(tangents) if tangent is not None]

    def of_nonzero(*operands):
        all_operands = list(primals)
        for place, operand in zip(nonzero, operands, strict=True):
            all_operands[place] = operand
        return function(*all_operands)

    values = tuple(primals[place] for place in nonzero)
    return jax.jvp(of_nonzero, values, tuple(tangents[place] for place in nonzero))[1]
