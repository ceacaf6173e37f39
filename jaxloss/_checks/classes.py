"""The arguments that every loss of classes has, checked and brought into the form that `_rows.cross_entropy` takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss import formulas
from jaxloss._arrays import Array, inlined
from jaxloss._checks import arguments
from jaxloss._checks import examples as _examples
from jaxloss._checks import sparse as _sparse
from jaxloss._checks.arrays import axis_moved, real_dtype
from jaxloss._checks.parameters import integer, is_known, number, real_array
from jaxloss._rows import cross_entropy as _cross_entropy
from jaxloss._rows import sparse as _sparse_rows
from jaxloss._rows.cross_entropy import Given
from jaxloss._rows.weights import Examples, along_rows, leading
from jaxloss._spec import OPTIONS, PARAMETERS, Objective
from jaxloss._types import FROM_0_TO_1, AxisName, ClassTarget, Normalizer, Reduction, Remainder

Options = Mapping[str, ArrayLike | None]
"""The options of a cross entropy as its caller gives them, by name; one that is missing is off."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """Checked arguments.

    Attributes:
        objective: what is compiled in.
        operands: logits with the classes last, target and parameters.
        examples: which rows count, and what for.
        axis: the axis of classes, counted from the front.
        sparse: the loss of a target that lists some classes of each row, else None.
    """

    objective: Objective
    operands: Given
    examples: Examples
    axis: int
    sparse: _sparse_rows.SparseCrossEntropy | None = None

    @property
    def value(self) -> Array:
        """The reduced loss."""
        if self.sparse is not None:
            return _sparse_rows.value(self.sparse, self.operands, self.examples)
        return _cross_entropy.value(self.objective, self.operands, self.examples)

    @property
    def gradient(self) -> Array:
        """Its gradient with respect to the logits, with the classes last."""
        if self.sparse is not None:
            return _sparse_rows.gradient(self.sparse, self.operands, self.examples)
        return _cross_entropy.gradient(self.objective, self.operands, self.examples)


def checked(
    logits: ArrayLike,
    target: ClassTarget,
    options: Options,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    weights: ArrayLike | None = None,
    clip: float | None = None,
    reduction: Reduction = "mean",
    normalizer: Normalizer = None,
    axis_name: AxisName = None,
    details: bool = False,
    target_name: str = "target",
    remainder: Remainder = "drop",
    divergence: bool = False,
) -> Classes:
    """All of it, or the error that says what is wrong; `divergence`: of that from a target of some classes."""
    logits = arguments.prediction("logits", logits, target_name, target)
    axis = arguments.axis_index(axis, logits.ndim)
    axes = arguments.mesh_axes(axis_name, logits)
    by_weights = divides_by_weights(normalizer, reduction)
    examples = _examples.checked(where, weights, reduction, None if by_weights else normalizer)
    spread, sparse = _sparse.spreads(remainder, target), _sparse.is_sparse(target)
    if isinstance(target, tuple) and (len(target) not in (2, 3) or _sparse.are_labels(target, logits.ndim - 1)):
        raise ValueError(
            f"target is a tuple of {len(target)}: expected (labels, other labels, share of the first) or (indices, "
            f"probabilities); write jnp.asarray(target) if it is an array"
        )
    if sparse:
        if ignore_index is not None:
            raise ValueError(
                f"ignore_index is {ignore_index}, target lists classes: expected None; leave rows out by where="
            )
        if details:
            raise ValueError(
                "target lists classes, of which there are no statistics: expected class indices or probabilities"
            )
        logits = axis_moved(logits, axis, -1)
        logits, indices, listed = _sparse.listed(cast(Any, target), logits, whole_width(logits, axes), axis)
        given, classes = parameters_of(options, logits, axes, axis)
        check_options_of_sparse(given, spread)
        examples = _of_rows(examples, logits, axis, None)
        if by_weights:
            share = _sparse.share(indices, listed, given.get("class_weights"), spread, axes)
            examples = dataclasses.replace(examples, by_weights=True, share=share)
        objective = Objective(arguments.clip_value(clip, 1.0), tuple(given), classes, details, axes)
        loss = _sparse_rows.SparseCrossEntropy(objective, spread, divergence)
        return Classes(objective, (logits, indices, (listed, *given.values())), examples, axis, loss)
    mixed = isinstance(target, tuple)
    if _is_mixed_list(target):
        raise TypeError("target has type list: expected an array or a tuple; write tuple(target) to mix labels")
    if mixed and ignore_index is not None:
        raise ValueError(f"ignore_index is {ignore_index}, target is mixed: expected None; leave rows out by where=")
    first, second, mix = cast(Any, target) if mixed else (target, None, None)

    if mixed:
        target_name = "target[0]"
    first, ignore_index = arguments.indices(target_name, first, ignore_index)
    shape = logits.shape
    if first.shape == shape and not jnp.issubdtype(first.dtype, jnp.integer):
        if mixed:
            raise ValueError(f"target mixes arrays of dtype {first.dtype}: expected class indices; mix probabilities")
        first = axis_moved(first, axis, -1)
        logits = axis_moved(logits, axis, -1)
    else:
        logits = axis_moved(logits, axis, -1)
        if first.shape == logits.shape and jnp.issubdtype(first.dtype, jnp.floating):
            raise arguments.class_shape_error(target_name, first, logits, axis)
    width = whole_width(logits, axes)
    first, logits, counted = arguments.class_target(first, logits, width, ignore_index, target_name, axis)
    given, classes = parameters_of(options, logits, axes, axis)
    for name in given:
        if OPTIONS[name].changes == "label" and (mixed or not jnp.issubdtype(first.dtype, jnp.integer)):
            found = "is mixed" if mixed else f"has dtype {first.dtype}"
            raise ValueError(f"{name} changes the logit of one label, target {found}: expected class indices")
    dtype = real_dtype(logits)

    parameters: dict[str, Array] = {}
    if mixed:
        second, _ = arguments.indices("target[1]", second, None)
        if not jnp.issubdtype(second.dtype, jnp.integer):
            raise TypeError(f"target mixes labels with an array of dtype {second.dtype}: expected class indices")
        parameters["second_label"] = arguments.class_target(second, logits, width, None, "target[1]", axis)[0]
        parameters["mix"] = _share(mix, logits, axis, dtype)
    parameters |= given

    examples = _of_rows(examples, logits, axis, counted)
    if by_weights:
        share = _class_share(first, logits, parameters, axes)
        examples = dataclasses.replace(examples, by_weights=True, share=share)
    objective = Objective(arguments.clip_value(clip, 1.0), tuple(parameters), classes, details, axes)
    return Classes(objective, (logits, first, tuple(parameters.values())), examples, axis)


def checked_ids(
    logits: Array,
    ids: ArrayLike,
    options: Options,
    *,
    axis: int,
    where: ArrayLike | None,
    axis_name: AxisName,
) -> Classes:
    """The same of some classes of each row, without a loss."""
    axis = arguments.axis_index(axis, logits.ndim)
    axes = arguments.mesh_axes(axis_name, logits)
    examples = _examples.checked(where, None, "none", None)
    shape, logits = logits.shape, axis_moved(logits, axis, -1)
    ids = _sparse.class_ids("labels", ids, logits.shape, f"logits {shape}", whole_width(logits, axes), axis)
    given, classes = parameters_of(options, logits, axes, axis)
    objective = Objective(0.0, tuple(given), classes, axes=axes)
    return Classes(objective, (logits, ids, tuple(given.values())), _of_rows(examples, logits, axis, None), axis)


def check_options_of_sparse(given: Mapping[str, Array], spread: bool, target: str = "target") -> None:
    """That these options go together with a target that lists classes."""
    for name in given:
        if OPTIONS[name].changes == "label":
            raise ValueError(f"{name} changes the logit of one label, {target} lists classes: expected class indices")
    if "class_weights" in given and (spread or "label_smoothing" in given):
        why = "remainder is 'spread'" if spread else "label_smoothing is on"
        raise ValueError(f"class_weights is given, {why}: expected no class weights where all classes have a target")


def _is_mixed_list(target: object) -> bool:
    """Whether this is a list of two arrays and a share, which is not a tuple."""
    if not isinstance(target, list) or len(target) != 3:  # pyright: ignore[reportUnknownArgumentType]
        return False
    *labels, share = (getattr(part, "shape", None) for part in target)  # pyright: ignore[reportUnknownVariableType]
    return all(labels) and labels[0] == labels[1] and not share


def divides_by_weights(normalizer: Normalizer, reduction: Reduction) -> bool:
    """Whether the normalizer is the sum of the weights, and no number."""
    if not isinstance(normalizer, str):
        return False
    if normalizer != "weights":
        raise ValueError(f"normalizer is {normalizer!r}: expected a number or 'weights'")
    if reduction != "mean":
        raise ValueError(f"normalizer replaces the batch size of reduction='mean': found reduction={reduction!r}")
    return True


def whole_width(logits, axes: tuple[str, ...]) -> int:
    """How many classes a row of logits has, of which a device holds a slice where `axes` split them."""
    return logits.shape[-1] * (jax.lax.axis_size(axes) if axes else 1)


def parameters_of(
    options: Options, logits: Any, axes: tuple[str, ...], axis: int | None = None
) -> tuple[dict[str, Array], int | None]:
    """The parameters of the options that are on, and how many classes count (None as in `Objective`).

    Of logits, type and shape are asked; `axis` is that of classes as the caller has them. Without it, no option may be
    one scalar per row.
    """
    width, of = whole_width(logits, axes), "kernel" if axis is None else "logits"
    num_classes = _number_of_classes(cast(int | None, options.get("num_classes")), width, of)
    parameters = _numbers(options, logits, axis)
    class_weights = options.get("class_weights")
    if class_weights is not None:
        class_weights = _class_weights(class_weights, logits, num_classes, axes, of)
        parameters["class_weights"] = class_weights.astype(real_dtype(logits))
    if num_classes is not None and num_classes != width:
        parameters["num_classes"] = jax.device_put(np.int32(num_classes))
    in_order = {name: parameters[name] for name in PARAMETERS if name in parameters}
    if num_classes is None:
        num_classes = width if isinstance(width, int) else None
    return in_order, num_classes


def _of_rows(examples: Examples, logits: Array, axis: int, counted: Array | None) -> Examples:
    """The same with the classes last, and without the rows that do not count."""
    examples = _examples.classes_last(examples, axis, logits.ndim)
    if counted is None:
        return examples
    if examples.where is not None:
        rank = logits.ndim - 1
        where = leading("where", examples.where, logits.shape, rank, rank)
        counted = counted & along_rows(where, logits.shape[:-1])
    return dataclasses.replace(examples, where=counted)


def _number_of_classes(num_classes: int | None, width: int, of: str) -> int | None:
    if num_classes is None:
        return None
    if not isinstance(width, int) and not _is_known(num_classes, width):
        raise ValueError(
            f"num_classes is {num_classes}, {of} has {width} classes: expected so many that it is known to be from 1 "
            f"to {width}; give jax.export.symbolic_shape constraints=('{width} >= {num_classes}',)"
        )
    if not 1 <= integer("num_classes", num_classes) <= width:
        raise ValueError(f"num_classes is {num_classes}, {of} has {width} classes: expected from 1 to {width}")
    return int(num_classes)


def _is_known(num_classes: int, width) -> bool:
    """Whether it is known that so many are no more than a width that only the call of an exported program knows."""
    try:
        return bool(integer("num_classes", num_classes) <= width)
    except jax.errors.InconclusiveDimensionOperation:
        return False


def _share(mix, logits: Array, axis: int, dtype) -> Array:
    """The share of the first of two labels, of all rows or of each."""
    name, rank = "the share of the first label in target", logits.ndim - 1
    mix = arguments.classes_last(number(name, mix, FROM_0_TO_1, scalar=False), axis, logits.ndim)
    return leading(name, mix, logits.shape, rank, rank, "share").astype(dtype)


def _class_weights(class_weights, logits: Array, num_classes: int | None, axes: tuple[str, ...], of: str) -> Array:
    class_weights, width = real_array("class_weights", class_weights), logits.shape[-1]
    if num_classes is not None and not axes and class_weights.shape == (num_classes,):
        class_weights = _padded(class_weights, width - num_classes)
    if class_weights.shape != (width,):
        of_rows, unit = class_weights.shape == logits.shape[:-1], "token" if of == "kernel" else "row"
        expected = f"({width},)" if num_classes in (None, width) or axes else f"({num_classes},) or ({width},)"
        raise ValueError(
            f"class_weights has shape {class_weights.shape}, {of} has {width} classes: expected {expected}, "
            f"one number per class{f'; weights= takes one per {unit}' if of_rows else ''}"
        )
    return class_weights


@inlined(static_argnums=1)
def _padded(class_weights: Array, padding: int) -> Array:
    return jnp.pad(class_weights, (0, padding))


def _numbers(options: Options, logits: Any, axis: int | None) -> dict[str, Array]:
    """The options that are numbers and on. A number of Python or NumPy that is the default is off."""
    found: dict[str, Array] = {}
    for name, value in options.items():
        option, rank = OPTIONS[name], len(logits.shape) - 1
        if option.interval is None or (value is None and option.off is None):
            continue
        scalar = not option.per_row or axis is None
        x = number(name, value, option.interval, option.otherwise, scalar=scalar)
        if option.per_row and axis is not None:
            x = leading(name, arguments.classes_last(x, axis, rank + 1), logits.shape, rank, rank)
        if not is_known(value) or value != option.off:
            found[name] = x.astype(real_dtype(logits))
    return found


@inlined(static_argnums=3)
def _class_share(target: Array, logits: Array, parameters: dict[str, Array], axes: tuple[str, ...]) -> Array | None:
    """What a row counts in the sum of the weights: its target's classes' weights; None for 1."""
    by_index = jnp.issubdtype(target.dtype, jnp.integer)
    if by_index and "class_weights" not in parameters:
        return None
    given = {name: value for name, value in parameters.items() if name in ("second_label", "mix", "num_classes")}
    if axes:
        begin = jax.lax.axis_index(axes) * logits.shape[-1]
        target = target - begin if by_index else target
        given |= {name: given[name] - begin for name in ("second_label", "num_classes") if name in given}
    share = formulas.given_targets(logits, target, given)
    if "class_weights" in parameters:
        share = share * jax.lax.expand_dims(parameters["class_weights"], range(share.ndim - 1))
    share = jnp.sum(share, axis=-1)
    return jax.lax.psum(share, axes) if axes else share
