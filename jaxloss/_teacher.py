"""Checks of a student, its teacher and the numbers of a divergence, before anything is traced."""

import dataclasses
import functools

import jax
import numpy as np

from jaxloss import _arguments, _examples
from jaxloss._arrays import axis_moved, of_dtype, real_dtype
from jaxloss._calls import Array
from jaxloss._parameters import BETWEEN_0_AND_1, POSITIVE, choice, number

TYPES = ("probabilities", "logits")


@dataclasses.dataclass(frozen=True)
class Operands:
    """Student and teacher with the classes last, the examples, and the scale, 1 over the temperature."""

    axes: tuple[str, ...]
    student: Array
    teacher: Array
    examples: _examples.Examples
    scale: Array
    axis: int
    dtype: np.dtype

    @property
    def all(self) -> tuple:
        return self.axes, self.student, self.teacher, self.examples, self.scale

    def like_logits(self, gradient: Array) -> Array:
        return of_dtype(axis_moved(gradient, -1, self.axis), self.dtype)


def checked(
    name: str,
    logits,
    target_name: str,
    target,
    target_type: str,
    axis: int,
    where,
    weights,
    temperature,
    reduction,
    normalizer,
    axis_name,
) -> Operands:
    """The arguments that both divergences have; two of them go by different names."""
    logits = _arguments.prediction(name, logits, target_name, target)
    choice("target_type", target_type, TYPES)
    axis = _arguments.axis_index(axis, logits.ndim)
    axes = _arguments.mesh_axes(axis_name, logits)
    examples = _examples.checked(where, weights, reduction, normalizer)
    teacher, student = _arguments.probabilities(target, name, logits, target_name)
    temperature = number("temperature", temperature, POSITIVE).astype(real_dtype(student))
    return Operands(
        axes=axes,
        student=axis_moved(student, axis, -1),
        teacher=axis_moved(teacher, axis, -1),
        examples=_examples.classes_last(examples, axis, logits.ndim),
        scale=_reciprocal(temperature),
        axis=axis,
        dtype=logits.dtype,
    )


def beta_array(beta, dtype) -> Array:
    """The teacher's share of the mixture as an array."""
    if isinstance(beta, int | float | np.generic) and not isinstance(beta, bool) and beta in (0, 1):
        way, student, teacher = "forward", "student_logits", "teacher_logits"
        if beta == 1:
            way, student, teacher = "reverse", teacher, student
        raise ValueError(
            f"beta is {beta!r}: expected a number between 0 and 1, at which the divergence is 0; for the {way} "
            f'divergence, which others return there, call kl_divergence({student}, {teacher}, target_type="logits")'
        )
    return number("beta", beta, BETWEEN_0_AND_1).astype(dtype)


@functools.partial(jax.jit, inline=True)
def _reciprocal(x: Array) -> Array:
    return 1 / x
