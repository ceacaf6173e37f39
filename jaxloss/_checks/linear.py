"""The arguments of the linear losses, checked and brought into the form that `_linear.autodiff` takes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxloss import formulas
from jaxloss._arrays import Array, inlined, promoted
from jaxloss._checks import arguments
from jaxloss._checks import classes as _class_arguments
from jaxloss._checks import examples as _examples
from jaxloss._checks import sparse as _sparse
from jaxloss._checks.arrays import of_dtype, real_dtype
from jaxloss._checks.classes import Options
from jaxloss._checks.parameters import integer, wrong_type
from jaxloss._linear import alignment
from jaxloss._linear.plan import Plan
from jaxloss._linear.sparse import SparsePlan
from jaxloss._partitioning.meshes import rolled, taken
from jaxloss._rows.weights import Described, Examples, along_rows, check_leading, leading
from jaxloss._spec import Objective
from jaxloss._types import AxisName, Normalizer, Reduction, Remainder, TokenLabels


def checked(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: TokenLabels,
    options: Options,
    *,
    bias: ArrayLike | None,
    kernel_axis: int,
    where: ArrayLike | None,
    ignore_index: int | None,
    weights: ArrayLike | None,
    clip: float | None,
    reduction: Reduction,
    normalizer: Normalizer,
    shift: int,
    chunk_size: int | None,
    accumulate_dtype: DTypeLike,
    logits_dtype: DTypeLike | None,
    precision: jax.lax.PrecisionLike,
    axis_name: AxisName,
    details: bool = False,
    remainder: Remainder | None = None,
):
    """The plan, its operands (hidden states, kernel, labels), the examples, and further operands.

    With a `remainder`, labels may be some classes of each token: the first of the further operands that are not a bias
    is then their probabilities.
    """
    is_sparse = _is_sparse(labels, remainder, ignore_index, details)
    hidden = arguments.prediction("hidden", hidden, "labels", labels)
    kernel = arguments.prediction("kernel", kernel, "labels", labels)
    classes_first, bias = output_layer(hidden, kernel, bias, kernel_axis)
    axes = arguments.mesh_axes(axis_name, kernel, "kernel")
    classes = kernel.shape[0 if classes_first else 1]
    tokens, rank = hidden.shape[:-1], hidden.ndim - 1
    of_logits = dtype_of_logits(logits_dtype, promoted(hidden.dtype, kernel.dtype))
    logits: Any = jax.ShapeDtypeStruct((*tokens, classes), of_logits)
    if is_sparse:
        labels, listed, masks = _listed_labels(labels, hidden, logits, axes, shift)
    else:
        labels, masks = token_labels(labels, hidden, logits, axes, ignore_index, shift)
        listed = None
    by_weights = _class_arguments.divides_by_weights(normalizer, reduction)
    examples = _examples.checked(where, weights, reduction, None if by_weights else normalizer)
    parameters, num_classes = _class_arguments.parameters_of(options, logits, axes)
    examples = masked_too(examples, masks, logits, hidden)
    if by_weights:
        class_weights = parameters.get("class_weights")
        if listed is None:
            share = _class_share(labels, class_weights, axes)
        else:
            share = _sparse.share(labels, listed, class_weights, remainder == "spread", axes)
        examples = dataclasses.replace(examples, by_weights=True, share=share)
    kind = Plan
    if listed is not None:
        _class_arguments.check_options_of_sparse(parameters, remainder == "spread", "labels")
        kind = functools.partial(SparsePlan, spread=remainder == "spread")
    plan = kind(
        objective=Objective(arguments.clip_value(clip, 1.0), tuple(parameters), num_classes, details, axes),
        token_rank=rank,
        classes_first=classes_first,
        has_bias=bias is not None,
        masked=examples.where is not None,
        weighted=weights is not None,
        logits_dtype=of_logits,
        aligned=alignment.forced,
        **how(chunk_size, accumulate_dtype, precision),
    )
    own, more = (() if x is None else (x,) for x in (bias, None if listed is None else jax.lax.stop_gradient(listed)))
    return plan, (hidden, kernel, labels), examples, (*own, *more, *parameters.values())


def class_indices_alone(labels: Any) -> None:
    """That the labels are not some classes of each token."""
    if isinstance(labels, tuple):
        raise TypeError(f"labels is a tuple of {len(labels)}: expected an array of class indices")


def _is_sparse(labels: Any, remainder: Remainder | None, ignore_index: int | None, details: bool) -> bool:
    """Whether the labels are some classes of each token and their probabilities."""
    if not isinstance(labels, tuple):
        if remainder is not None:
            _sparse.spreads(remainder, labels, "labels")
        return False
    if remainder is None or details:
        class_indices_alone(labels)
    assert remainder is not None
    _sparse.spreads(remainder, labels, "labels")
    if not _sparse.is_sparse(labels):
        raise ValueError(
            f"labels is a tuple of {len(labels)}: expected an array of class indices, or (indices, probabilities)"
        )
    if ignore_index is not None:
        raise ValueError(
            f"ignore_index is {ignore_index}, labels list classes: expected None; leave tokens out by where="
        )
    return True


def _listed_labels(
    labels: Any, hidden: Array, logits: Any, axes: tuple[str, ...], shift: int
) -> tuple[Array, Array, list[Array]]:
    """The classes that each token is to predict, their probabilities, and a mask of the tokens that have them."""
    width = _class_arguments.whole_width(logits, axes)
    indices = _sparse.class_ids("labels[0]", labels[0], logits.shape, f"hidden {hidden.shape}", width)
    given = _sparse.probabilities("labels[1]", labels[1], "labels[0]", indices)
    if integer("shift", shift) and indices.ndim < 2:
        raise ValueError(
            f"shift is {shift}, labels[0] has shape {indices.shape}: expected an axis of tokens to shift along"
        )
    (indices, labelled), (given, _) = (shifted(jnp.moveaxis(x, -1, 0), shift) for x in (indices, given))
    masks = [] if labelled is None else [jnp.broadcast_to(labelled, hidden.shape[:-1])]
    return jnp.moveaxis(indices, 0, -1), of_dtype(jnp.moveaxis(given, 0, -1), real_dtype(logits)), masks


def token_labels(
    labels: TokenLabels, hidden: Array, logits: Any, axes: tuple[str, ...], ignore_index: int | None, shift: int
) -> tuple[Array, list[Array]]:
    """The label that each token is to predict, and masks of those with one. Of logits, type and shape are asked."""
    rank, tokens = hidden.ndim - 1, hidden.shape[:-1]
    labels, ignore_index = arguments.indices("labels", labels, ignore_index)
    labels = arguments.class_indices("labels", labels, rank)
    if labels.shape != tokens:
        raise _labels_shape_error(labels, hidden, logits.shape[-1])
    labels, labelled = shifted(labels, integer("shift", shift))
    width = _class_arguments.whole_width(logits, axes)
    labels, _, not_ignored = arguments.class_target(labels, logits, width, ignore_index, "labels", of="kernel")
    return labels, [jnp.broadcast_to(mask, tokens) for mask in (labelled, not_ignored) if mask is not None]


def masked_too(examples: Examples, masks: list[Array], logits: Any, hidden: Array) -> Examples:
    """The same where these masks are true, too; or the error that says what is wrong with their shapes."""
    *tokens, _ = logits.shape
    of = Described("hidden", hidden.shape, "features", "give them a bias of -Inf")
    for name, x in (("where", examples.where), ("weights", examples.weights)):
        if x is not None:
            check_leading(name, x, logits.shape, len(tokens), len(tokens), of=of)
    if examples.where is not None:
        given = leading("where", examples.where, logits.shape, len(tokens), len(tokens))
        masks = [*masks, along_rows(given, tuple(tokens))]
    return dataclasses.replace(examples, where=functools.reduce(jnp.logical_and, masks)) if masks else examples


def output_layer(
    hidden: Array, kernel: Array, bias: ArrayLike | None, kernel_axis: int, of: str = ""
) -> tuple[bool, Array | None]:
    """Whether the kernel's classes come first, and the bias, which errors call `of` bias, `teacher_` or nothing."""
    classes_first = _classes_first(kernel_axis, kernel, hidden, of)
    if hidden.ndim == 0 or hidden.shape[-1] != kernel.shape[1 if classes_first else 0]:
        raise _kernel_shape_error(hidden, kernel, classes_first, of)
    if bias is None:
        return classes_first, None
    bias, classes = arguments.prediction(f"{of}bias", bias), kernel.shape[0 if classes_first else 1]
    if bias.shape != (classes,):
        raise ValueError(f"{of}bias has shape {bias.shape}, {of}kernel {kernel.shape}: expected ({classes},)")
    return classes_first, bias


def how(chunk_size: int | None, accumulate_dtype: DTypeLike, precision: jax.lax.PrecisionLike) -> dict[str, Any]:
    """What a plan has of how the work is done."""
    if chunk_size is not None and integer("chunk_size", chunk_size) < 1:
        raise ValueError(f"chunk_size is {chunk_size}: expected at least 1, or None")
    return {
        "chunk": chunk_size,
        "accumulate_dtype": _accumulate_dtype(accumulate_dtype),
        "precision": _precision(precision),
    }


def _classes_first(kernel_axis: int, kernel: Array, hidden: Array, of: str) -> bool:
    if kernel.ndim != 2:
        swapped = hidden.ndim == 2 < kernel.ndim and kernel.shape[-1] in hidden.shape
        hint = f"; are {of}hidden and {of}kernel swapped?" if swapped else ""
        raise ValueError(f"{of}kernel has shape {kernel.shape}: expected two axes, of features and of classes{hint}")
    if integer(f"{of}kernel_axis", kernel_axis) not in (-2, -1, 0, 1):
        raise ValueError(f"{of}kernel_axis is {kernel_axis}, {of}kernel has 2 axes: expected one from -2 to 1")
    return kernel_axis % 2 == 0


def _kernel_shape_error(hidden: Array, kernel: Array, classes_first: bool, of: str) -> ValueError:
    """The error, which says what to write where the kernel is transposed."""
    expected = f"[V, D] with {of}kernel_axis=0" if classes_first else "[D, V]"
    hint = ""
    if hidden.ndim and hidden.shape[-1] == kernel.shape[0 if classes_first else 1]:
        hint = f"; write {of}kernel_axis={-1 if classes_first else 0} for {'[D, V]' if classes_first else '[V, D]'}"
    elif hidden.ndim == 2 and hidden.shape[0] == kernel.shape[1]:
        hint = "; are the two swapped?"
    return ValueError(
        f"{of}kernel has shape {kernel.shape}, {of}hidden {hidden.shape}: expected {expected} for [..., D]{hint}"
    )


def _labels_shape_error(labels: Array, hidden: Array, classes: int) -> ValueError:
    """The error, which says what to write where labels are those of other libraries."""
    tokens, hint = hidden.shape[:-1], ""
    if labels.shape == (*tokens, classes):
        hint = "; write labels.argmax(-1) if they are one-hot"
    elif labels.shape == (*tokens, 1):
        hint = "; write labels[..., 0]"
    elif tokens and labels.shape == (*tokens[:-1], tokens[-1] - 1):
        hint = "; write hidden[..., :-1, :] if the labels are shifted, or give all labels and shift=1"
    elif tokens and labels.shape == (*tokens[:-1], tokens[-1] + 1):
        hint = "; give all hidden states and shift=1, or write labels[..., 1:] and no shift if the last one is left out"
    return ValueError(f"labels has shape {labels.shape}, hidden {hidden.shape}: expected {tokens}{hint}")


def shifted(labels: Array, shift: int) -> tuple[Array, Array | None]:
    """The label that each token is to predict, and which tokens have one (None for all)."""
    if shift < 0:
        raise ValueError(f"shift is {shift}: expected 0 or more")
    if shift == 0:
        return labels, None
    if labels.ndim == 0:
        raise ValueError(
            f"shift is {shift}, labels has shape (): expected an axis along which labels follow each other"
        )
    return _next_labels(labels, shift)


@inlined(static_argnums=1)
def _next_labels(labels: Array, shift: int) -> tuple[Array, Array]:
    length = labels.shape[-1]
    return rolled(labels, -shift), jnp.arange(length) < length - shift


@inlined(static_argnums=2)
def _class_share(labels: Array, class_weights: Array | None, axes: tuple[str, ...]) -> Array | None:
    """What a token counts in the sum of the weights: the weight of its label; None for 1."""
    if class_weights is None:
        return None
    width = class_weights.shape[0]
    here = labels - jax.lax.axis_index(axes) * width if axes else labels
    inside = formulas.in_range(here, width)
    share = jnp.where(inside, taken(class_weights, jnp.where(inside, here, 0)), 0)
    return jax.lax.psum(share, axes) if axes else share


FLOATING = ("bfloat16", "float16", "float32", "float64")


def _accumulate_dtype(dtype: Any):
    expected = f"a floating-point type ({_one_of(FLOATING)})"
    found = _dtype("accumulate_dtype", dtype, expected)
    if getattr(found, "name", None) not in FLOATING:
        raise TypeError(f"accumulate_dtype is {found}: expected {expected}")
    return found


def dtype_of_logits(dtype: Any, product: np.dtype) -> np.dtype:
    """The type of the logits, by default that of the product."""
    known = [name for name in FLOATING if jax.dtypes.canonicalize_dtype(name) == name]  # float64 if it is enabled
    wider = [name for name in known if np.can_cast(product, jnp.dtype(name))]
    expected = _one_of(("None", *wider))
    found = product if dtype is None else _dtype("logits_dtype", dtype, expected)
    if getattr(found, "name", None) not in wider:
        raise TypeError(f"logits_dtype is {found}, hidden @ kernel has dtype {product}: expected {expected}")
    return found


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _dtype(name: str, dtype: Any, expected: str) -> Any:
    """The type that is meant, or what is none as it is given."""
    if isinstance(dtype, Array | np.ndarray):
        raise wrong_type(name, dtype, expected)
    try:
        return None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        return dtype


def _precision(precision: Any):
    """In a form that can be hashed."""
    if precision is None or isinstance(precision, jax.lax.DotAlgorithm | jax.lax.DotAlgorithmPreset):
        return precision
    if _is_precision(precision) or (isinstance(precision, str) and precision in jax.lax.DotAlgorithmPreset.__members__):
        return precision
    if isinstance(precision, tuple | list) and len(precision) == 2 and all(map(_is_precision, precision)):
        return tuple(precision)
    expected = (
        "what jax.lax.dot_general takes: None, 'default', 'high', 'highest', two of the last three, a "
        "jax.lax.DotAlgorithm or one of its presets"
    )
    if isinstance(precision, str | tuple | list):
        raise ValueError(f"precision is {precision!r}: expected {expected}")
    raise wrong_type("precision", precision, expected)


def _is_precision(precision: Any) -> bool:
    """Whether this is the precision of an operand, or its name."""
    try:
        return isinstance(precision, str | jax.lax.Precision) and bool(jax.lax.Precision(precision).name)
    except ValueError:
        return False
