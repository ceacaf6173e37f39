"""Checks of a student, its teacher and the numbers of a divergence, before anything is traced."""

import dataclasses
from typing import Any, TypedDict, Unpack, get_args

import numpy as np
from jax.typing import ArrayLike

from jaxloss._arrays import Array, inlined
from jaxloss._checks import arguments
from jaxloss._checks import examples as _examples
from jaxloss._checks import sparse as _sparse
from jaxloss._checks.arrays import axis_moved, of_dtype, real_dtype
from jaxloss._checks.parameters import choice, number
from jaxloss._rows import weights as row_weights
from jaxloss._types import BETWEEN_0_AND_1, POSITIVE, AxisName, Reduction, Remainder, TargetType

TYPES = get_args(TargetType)


class Arguments(TypedDict):
    """What every divergence takes besides student and teacher."""

    axis: int
    where: ArrayLike | None
    weights: ArrayLike | None
    temperature: ArrayLike
    reduction: Reduction
    normalizer: ArrayLike | None
    axis_name: AxisName


@dataclasses.dataclass(frozen=True)
class Operands:
    """Student and teacher with the classes last, the examples, and the scale, 1 over the temperature."""

    axes: tuple[str, ...]
    student: Array
    teacher: Array
    examples: row_weights.Examples
    scale: Array
    axis: int
    dtype: np.dtype

    @property
    def all(self) -> tuple[tuple[str, ...], Array, Array, row_weights.Examples, Array]:
        return self.axes, self.student, self.teacher, self.examples, self.scale

    def like_logits(self, gradient: Array) -> Array:
        return of_dtype(axis_moved(gradient, -1, self.axis), self.dtype)


def checked(
    name: str,
    logits: ArrayLike,
    target_name: str,
    target: ArrayLike,
    target_type: TargetType,
    **given: Unpack[Arguments],
) -> Operands:
    """The arguments of a divergence, whose student and teacher go by names of their own."""
    x = arguments.prediction(name, logits, target_name, target)
    choice("target_type", target_type, TYPES)
    axis = arguments.axis_index(given["axis"], x.ndim)
    axes = arguments.mesh_axes(given["axis_name"], x)
    examples = _examples.checked(given["where"], given["weights"], given["reduction"], given["normalizer"])
    teacher, student = arguments.probabilities(target, name, x, target_name)
    scale = scale_array(given["temperature"], real_dtype(student))
    return Operands(
        axes=axes,
        student=axis_moved(student, axis, -1),
        teacher=axis_moved(teacher, axis, -1),
        examples=_examples.classes_last(examples, axis, x.ndim),
        scale=scale,
        axis=axis,
        dtype=x.dtype,
    )


def probabilities_of_classes(target: Any, target_type: TargetType, normalizer: Any, remainder: Remainder) -> None:
    """That a target of some classes of each row is one of probabilities."""
    choice("target_type", target_type, TYPES)
    _sparse.spreads(remainder, target)
    if not _sparse.is_sparse(target):
        raise ValueError(f"target is a tuple of {len(target)}: expected an array, or (indices, probabilities)")
    if target_type != "probabilities":
        raise ValueError(
            f"target_type is {target_type!r}, target lists classes: expected 'probabilities', for the logits of the "
            f"other classes are not known"
        )
    _examples.checked(None, None, "mean", normalizer)


def beta_array(
    beta: ArrayLike,
    dtype: np.dtype,
    forward: str = 'kl_divergence(student_logits, teacher_logits, target_type="logits")',
    reverse: str = 'kl_divergence(teacher_logits, student_logits, target_type="logits")',
) -> Array:
    """The teacher's share of the mixture as an array; an error advises a call for each limit."""
    if isinstance(beta, int | float | np.generic) and not isinstance(beta, bool) and beta in (0, 1):
        way, advised = ("reverse", reverse) if beta == 1 else ("forward", forward)
        raise ValueError(
            f"beta is {beta!r}: expected a number between 0 and 1, at which the divergence is 0; for the {way} "
            f"divergence, which others return there, call {advised}"
        )
    return number("beta", beta, BETWEEN_0_AND_1).astype(dtype)


def scale_array(temperature: ArrayLike, dtype: np.dtype) -> Array:
    """1 over the temperature."""
    return _reciprocal(number("temperature", temperature, POSITIVE).astype(dtype))


@inlined()
def _reciprocal(x: Array) -> Array:
    return 1 / x
