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

    def op(attribute: str, whole: Op, of_slice: Op) -> RowWise:
        def split(more_axes, *operands):
            return of_slice(axes + more_axes, *operands)

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


def _tangents(divergence: Divergence, operands, losses, stats, dots):
    logits, target, _, *numbers = operands
    logits_dot, target_dot, _, *number_dots = dots
    maximum, log_sum, *of_teacher, total = stats
    rank = losses.ndim
    scale, *parameters = (along(number, logits) for number in numbers)
    scale_dot, *parameter_dots = (None if dot is None else along(dot, logits) for dot in number_dots)

    def sum_of(*terms):
        terms = [term for term in terms if term is not None]
        return sum(terms[1:], start=terms[0]) if terms else None

    def tempered_dot(x, x_dot, maximum):
        """The tangent of the tempered logits, but for what their maximum adds to all of a row."""
        return sum_of(
            None if x_dot is None else scale * real(x_dot),
            None if scale_dot is None else scale_dot * formulas.above_maximum(x, maximum),
        )

    def log_sum_dot(log_p, of_tempered, log_sum):
        if of_tempered is None:
            return None
        return varying_like(log_sum, row_dot(jnp.exp(log_p), of_tempered, rank))

    def log_p_dot(of_tempered, of_log_sum):
        return None if of_tempered is None else of_tempered - of_log_sum[..., None]

    log_p = formulas.log_probabilities(logits, maximum, log_sum, scale)
    student_dot = tempered_dot(logits, logits_dot, maximum)
    student_sum_dot = log_sum_dot(log_p, student_dot, log_sum)
    if divergence.of_logits:
        teacher = formulas.log_probabilities(target, of_teacher[0], of_teacher[1], scale)
        of_target = tempered_dot(target, target_dot, of_teacher[0])
        teacher_sum_dot = log_sum_dot(teacher, of_target, of_teacher[1])
        teacher_dot, sum_dots = log_p_dot(of_target, teacher_sum_dot), (None, teacher_sum_dot)
    else:
        teacher, sum_dots = real(target), ()
        teacher_dot = None if target_dot is None else real(target_dot)

    def terms(log_p, teacher, *parameters):
        if divergence.of_logits:
            return divergence.terms(log_p, teacher, jnp.exp(teacher), *parameters)
        return divergence.terms(log_p, formulas.log_of_probabilities(teacher), teacher, *parameters)

    def summed_dot(which, log_p_dot):
        """The tangent of the sum of the terms; that of `log_p` counts only if it is given."""
        primals = (log_p, teacher, *parameters)
        dots = (log_p_dot, teacher_dot, *parameter_dots)
        if all(dot is None for dot in dots):
            return None
        of_class = _jvp(lambda *operands: terms(*operands)[which], primals, dots)
        return row_dot(of_class, jnp.ones_like(of_class), rank)

    # Of the student's logits by the derivative itself: its transpose is then one pass over them.
    of_student = None
    if student_dot is not None:
        derivative = terms(log_p, teacher, *parameters)[1] - jnp.exp(log_p) * total[..., None]
        of_student = row_dot(derivative, student_dot, rank)
    losses_dot = sum_of(of_student, summed_dot(0, None))
    total_dot = summed_dot(1, log_p_dot(student_dot, student_sum_dot))

    def of_rows(result, dot):
        return None if dot is None else varying_like(result, dot)

    return of_rows(losses, losses_dot), None, student_sum_dot, *sum_dots, of_rows(total, total_dot)


def _jvp(function: Callable[..., Array], primals, dots) -> Array:
    """The tangent of its result; None is the tangent of what has none."""
    live = [place for place, dot in enumerate(dots) if dot is not None]

    def of_live(*operands):
        all_operands = list(primals)
        for place, operand in zip(live, operands, strict=True):
            all_operands[place] = operand
        return function(*all_operands)

    values = tuple(primals[place] for place in live)
    return jax.jvp(of_live, values, tuple(dots[place] for place in live))[1]
