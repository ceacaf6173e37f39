"""The arguments of the linear divergences, checked and brought into the form that `_linear.divergence` takes."""

import dataclasses
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxloss._arrays import Array, promoted
from jaxloss._checks import arguments, teacher
from jaxloss._checks import classes as _class_arguments
from jaxloss._checks import examples as _examples
from jaxloss._checks.arrays import of_dtype, real_dtype
from jaxloss._checks.linear import dtype_of_logits, how, masked_too, output_layer, token_labels
from jaxloss._checks.parameters import choice, number
from jaxloss._linear.divergence import DivergencePlan
from jaxloss._rows.divergence import JENSEN_SHANNON, KL, REVERSE_KL, Divergence
from jaxloss._spec import Objective
from jaxloss._types import FINITE, POSITIVE, AxisName, Direction, Normalizer, Reduction


def kullback_leibler(direction: Direction) -> Divergence:
    """Of that direction."""
    choice("direction", direction, get_args(Direction))
    return KL if direction == "forward" else REVERSE_KL


def checked(
    divergence: Divergence,
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    beta: ArrayLike = 0.5,
    bias: ArrayLike | None,
    teacher_bias: ArrayLike | None,
    kernel_axis: int,
    teacher_kernel_axis: int,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    softcap: ArrayLike | None,
    teacher_softcap: ArrayLike | None,
    temperature: ArrayLike,
    labels: ArrayLike | None,
    ignore_index: int | None,
    shift: int,
    soft_weight: ArrayLike | None,
    hard_weight: ArrayLike | None,
    num_classes: int | None,
    reduction: Reduction,
    normalizer: Normalizer,
    chunk_size: int | None,
    accumulate_dtype: DTypeLike,
    logits_dtype: DTypeLike | None,
    precision: jax.lax.PrecisionLike,
    axis_name: AxisName,
):
    """The plan, its operands (hidden states, kernel, the teacher's hidden states), examples, and further operands."""
    hidden, kernel = arguments.prediction("hidden", hidden), arguments.prediction("kernel", kernel)
    teacher_hidden = arguments.prediction("teacher_hidden", teacher_hidden)
    teacher_kernel = arguments.prediction("teacher_kernel", teacher_kernel)
    classes_first, bias = output_layer(hidden, kernel, bias, kernel_axis)
    teacher_classes_first, teacher_bias = output_layer(
        teacher_hidden, teacher_kernel, teacher_bias, teacher_kernel_axis, "teacher_"
    )
    axes = arguments.mesh_axes(axis_name, kernel, "kernel")
    arguments.mesh_axes(axis_name, teacher_kernel, "teacher_kernel")
    classes = _number_of_classes(kernel, classes_first, teacher_kernel, teacher_classes_first)
    tokens = hidden.shape[:-1]
    if teacher_hidden.shape[:-1] != tokens:
        raise ValueError(
            f"teacher_hidden has shape {teacher_hidden.shape}, hidden {hidden.shape}: expected equal shapes but for "
            f"the last axis, of features"
        )
    if jnp.float64 in (teacher_hidden.dtype, teacher_kernel.dtype):
        hidden = of_dtype(hidden, jnp.float64)

    of_logits = dtype_of_logits(logits_dtype, promoted(hidden.dtype, kernel.dtype))
    logits: Any = jax.ShapeDtypeStruct((*tokens, classes), of_logits)
    by_weights = _class_arguments.divides_by_weights(normalizer, reduction)
    examples = _examples.checked(where, weights, reduction, None if by_weights else normalizer)
    examples = dataclasses.replace(examples, by_weights=by_weights)
    _, num_classes = _class_arguments.parameters_of({"num_classes": num_classes}, logits, axes)
    padded = num_classes is not None and num_classes != _class_arguments.whole_width(logits, axes)
    dtype = real_dtype(logits)
    numbers = [teacher.scale_array(temperature, dtype)]
    if divergence is JENSEN_SHANNON:
        call = "linear_kl_divergence with direction="
        numbers.append(teacher.beta_array(beta, dtype, f"{call}'forward'", f"{call}'reverse'"))
    caps = {"softcap": softcap, "teacher_softcap": teacher_softcap}
    own_cap, cap_of_teacher = (
        [] if x is None else [number(name, x, POSITIVE, ", or None for none").astype(dtype)] for name, x in caps.items()
    )
    target: list[Array] = []
    if labels is None:
        _without_labels(
            ignore_index=ignore_index, shift=shift or None, soft_weight=soft_weight, hard_weight=hard_weight
        )
        examples = masked_too(examples, [], logits, hidden)
    else:
        labels, masks = token_labels(labels, hidden, logits, axes, ignore_index, shift)
        examples = masked_too(examples, masks, logits, hidden)
        target = [labels if num_classes is None else arguments.out_of_range_marked(labels, num_classes)]
        given = {"soft_weight": soft_weight, "hard_weight": hard_weight}
        weights_of_both = (number(name, 1.0 if x is None else x, FINITE).astype(dtype) for name, x in given.items())
        numbers = [*weights_of_both, *numbers]
    plan = DivergencePlan(
        objective=Objective(0.0, (), num_classes, axes=axes),
        token_rank=len(tokens),
        classes_first=classes_first,
        has_bias=bias is not None,
        masked=examples.where is not None,
        weighted=weights is not None,
        divergence=divergence,
        numbers=len(numbers),
        teacher_classes_first=teacher_classes_first,
        has_teacher_bias=teacher_bias is not None,
        has_softcap=softcap is not None,
        has_teacher_softcap=teacher_softcap is not None,
        has_labels=labels is not None,
        padded=padded,
        logits_dtype=logits.dtype,
        aligned=False,
        **how(chunk_size, accumulate_dtype, precision),
    )
    own, of_teacher = ([] if each is None else [each] for each in (bias, teacher_bias))
    of_teacher = (teacher_kernel, *of_teacher, *cap_of_teacher)
    return plan, (hidden, kernel, teacher_hidden), examples, (*own, *numbers, *own_cap, *of_teacher, *target)


def _without_labels(**given: Any) -> None:
    for name, x in given.items():
        if x is not None:
            raise ValueError(f"{name} is given, labels is None: expected labels, whose cross entropy is added")


def _number_of_classes(kernel: Array, classes_first: bool, teacher_kernel: Array, teacher_classes_first: bool) -> int:
    """That of both kernels, or the error that says what to write where one is padded."""
    classes, of_teacher = (
        x.shape[0 if first else 1] for x, first in ((kernel, classes_first), (teacher_kernel, teacher_classes_first))
    )
    if classes != of_teacher:
        name, first = ("kernel", classes_first) if classes > of_teacher else ("teacher_kernel", teacher_classes_first)
        cut = f":{min(classes, of_teacher)}"
        raise ValueError(
            f"teacher_kernel has shape {teacher_kernel.shape}, of {of_teacher} classes, kernel {kernel.shape}, of "
            f"{classes}: expected equally many; write {name}[{cut if first else f':, {cut}'}] if those beyond are "
            f"padding"
        )
    return classes
