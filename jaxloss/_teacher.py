"""Checks of a student, its teacher and the numbers of a divergence, before anything is traced."""

import dataclasses
import math
from typing import TypeGuard

import jax.numpy as jnp
import numpy as np

from jaxloss import _arguments, _examples, formulas
from jaxloss._calls import Array

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
        return jnp.moveaxis(gradient, -1, self.axis).astype(self.dtype)


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
    logits = _arguments.prediction(name, logits)
    if target_type not in TYPES:
        raise ValueError(f"target_type is {target_type!r}: expected one of {', '.join(map(repr, TYPES))}")
    axis = _arguments.axis_index(axis, logits.ndim)
    axes = _arguments.mesh_axes(axis_name, logits)
    examples = _examples.checked(where, weights, reduction, normalizer)
    teacher, student = _arguments.probabilities(target, name, logits, target_name)
    temperature = _number("temperature", temperature, 0, math.inf, formulas.real(student).dtype)

    def classes_last(x):
        return x if x is None or x.ndim != logits.ndim else jnp.moveaxis(x, axis, -1)

    where, weights = classes_last(examples.where), classes_last(examples.weights)
    return Operands(
        axes=axes,
        student=classes_last(student),
        teacher=classes_last(teacher),
        examples=dataclasses.replace(examples, where=where, weights=weights),
        scale=1 / temperature,
        axis=axis,
        dtype=logits.dtype,
    )


def beta_array(beta, dtype) -> Array:
    """The teacher's share of the mixture as an array."""
    if _is_number(beta) and beta in (0, 1):
        way, student, teacher = "forward", "student_logits", "teacher_logits"
        if beta == 1:
            way, student, teacher = "reverse", teacher, student
        raise ValueError(
            f"beta is {beta!r}: expected a number between 0 and 1, at which the divergence is 0; for the {way} "
            f'divergence, which others return there, call kl_divergence({student}, {teacher}, target_type="logits")'
        )
    return _number("beta", beta, 0, 1, dtype)


def _is_number(x) -> TypeGuard[float]:
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def _number(name: str, x, lower: float, upper: float, dtype) -> Array:
    """`x` as a scalar array; a number that is not between the bounds is an error, in an array it is NaN."""
    interval = f"greater than {lower}" if upper == math.inf else f"between {lower} and {upper}"
    if not _is_number(x) and not isinstance(x, np.generic | np.ndarray | Array):
        raise TypeError(f"{name} has type {type(x).__name__}: expected a number or a scalar array")
    if _is_number(x) and not lower < x < upper:
        raise ValueError(f"{name} is {x!r}: expected a finite number {interval}")
    x = jnp.asarray(x)
    if x.shape:
        raise ValueError(f"{name} has shape {x.shape}: expected a scalar")
    if not jnp.issubdtype(x.dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {x.dtype}: expected a floating-point or integer type")
    x = x.astype(dtype)
    return jnp.where((x > lower) & (x < upper), x, jnp.nan)
