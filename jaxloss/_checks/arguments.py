"""Checks of predictions and targets, before anything is traced."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._arrays import Array, inlined, manual_axes
from jaxloss._checks.arrays import array, axis_moved, is_wide, of_dtype
from jaxloss._checks.parameters import integer, wrong_type
from jaxloss._types import AxisName

_FLOATS = ("bfloat16", "float16", "float32", "float64")


def prediction(name: str, x: Any, target_name: str = "", target: Any = None) -> Array:
    """`x` as an array of one of the floating-point types that have kernels.

    An error says if it is the target that has one.
    """
    x = array(name, x)
    if x.dtype.name not in _FLOATS:
        dtype = getattr(target, "dtype", None)
        is_target = jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.bool_
        swapped = is_target and getattr(dtype, "name", None) in _FLOATS and jnp.ndim(target) - x.ndim in (0, 1)
        hint = f"; {target_name} has dtype {dtype}: are the two swapped?" if swapped else ""
        raise TypeError(f"{name} has dtype {x.dtype}: expected one of {', '.join(_FLOATS)}{hint}")
    return x


def class_indices(name: str, labels: Array, row_rank: int, axis: int = -1) -> Array:
    """`labels`, of an integer type, for logits that have so many axes besides the `axis` of classes."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        hint = ""
        if not jnp.issubdtype(labels.dtype, jnp.complexfloating) and labels.ndim == row_rank:
            hint = f"; write {name}.astype(int) if these are class indices"
        elif jnp.issubdtype(labels.dtype, jnp.floating) and labels.ndim == row_rank + 1 and labels.shape[-1] == 1:
            hint = f"; write {name}[..., 0].astype(int) if these are class indices"
        elif not jnp.issubdtype(labels.dtype, jnp.complexfloating) and labels.ndim == row_rank + 1:
            hint = f"; write {name}.argmax({integer('axis', axis)}) if it is one-hot"
        raise TypeError(f"{name} has dtype {labels.dtype}: expected an integer type, of class indices{hint}")
    return labels


def probabilities(target: Any, name: str, x: Array, target_name: str = "target") -> tuple[Array, Array]:
    """A target with the shape of the prediction `x`, and `x`, in a pair of types that has kernels.

    The target keeps its type, or is widened, never narrowed.
    """
    target = array(target_name, target)
    if jnp.issubdtype(target.dtype, jnp.complexfloating):
        raise TypeError(f"{target_name} has dtype {target.dtype}: expected a real type")
    if target.shape != x.shape:
        hint = _equal_shape_hint(target_name, target, x)
        raise ValueError(f"{target_name} has shape {target.shape}, {name} {x.shape}: expected equal shapes{hint}")
    if target.dtype == jnp.float64 and x.dtype != jnp.float64:
        x = x.astype(jnp.float64)
    elif target.dtype == jnp.bool_ or x.dtype in (jnp.float32, jnp.float64):
        target = of_dtype(target, x.dtype)
    elif target.dtype not in (x.dtype, jnp.float32):
        target = target.astype(jnp.float32)
    return target, x


def _equal_shape_hint(name: str, target: Array, x: Array) -> str:
    if x.shape == (*target.shape, 1):
        return f"; write {name}[..., None] if its last axis is missing"
    if target.shape == (*x.shape, 1):
        return f"; write {name}[..., 0]"
    if name == "target" and jnp.issubdtype(target.dtype, jnp.integer) and target.shape == x.shape[:-1]:
        return f"; write jax.nn.one_hot({name}, {x.shape[-1]}) if these are class indices"
    return ""


def class_target(
    target: Array,
    logits: Array,
    classes: int,
    ignore_index: int | None,
    name: str = "target",
    axis: int = -1,
    of: str = "logits",
) -> tuple[Array, Array, Array | None]:
    """A target of class indices or of probabilities for logits `[..., V]`, all or a slice of `classes`.

    An error calls it `name`, says where its caller's logits have the `axis` of classes, and what the classes are `of`.

    Returns the target, the logits, and where an index is not `ignore_index` (None without one).
    """
    if target.dtype == jnp.bool_:
        one_hot = target.shape == logits.shape
        hint = (
            f"write {name}.argmax({axis}) if it is one-hot"
            if one_hot
            else f"write {name}.astype(int) if these are classes"
        )
        raise TypeError(
            f"{name} has dtype bool: expected an integer type for class indices or a floating-point type for "
            f"probabilities; {hint}"
        )
    if not jnp.issubdtype(target.dtype, jnp.integer):
        if ignore_index is not None:
            raise ValueError(f"ignore_index is {ignore_index}, target has dtype {target.dtype}: expected class indices")
        if target.shape != logits.shape:
            raise class_shape_error(name, target, logits, axis)
        target, logits = probabilities(target, "logits", logits)
        return target, logits, None
    if target.shape != logits.shape[:-1]:
        raise class_shape_error(name, target, logits, axis)
    if isinstance(classes, int) and classes > jnp.iinfo(jnp.int32).max:
        raise ValueError(f"{of} has {classes} classes: expected at most {jnp.iinfo(jnp.int32).max}")
    counted = None if ignore_index is None else differs(target, ignore_index)
    if jnp.iinfo(target.dtype).bits >= 32 and target.dtype != jnp.int32:
        # Narrowed only when in range: 2³² + 3 must not become class 3.
        target = out_of_range_marked(target, classes)
    return of_dtype(target, jnp.int32), logits, counted


@inlined(static_argnums=1)
def out_of_range_marked(target: Array, classes: int) -> Array:
    """Class indices, -1 in the place of those that are none."""
    return jnp.where((target >= 0) & (target < classes), target, -1)


def indices(name: str, x: Any, ignore_index: int | None) -> tuple[Array, int | None]:
    """`x` as an array, and the index to ignore in it: in 32 bits what they are in 64, the same or not.

    An index that does not fit is outside all classes, as is what takes its place here: int32's minimum if it is the
    one to ignore, else another.
    """
    _check_ignored(ignore_index)
    if not is_wide(x):
        return array(name, x), ignore_index
    info = np.iinfo(np.int32)
    fits = (x > info.min) & (x <= info.max)
    if ignore_index is None:
        return array(name, np.where(fits, x.astype(np.int32), np.int32(-1))), None
    held = int(ignore_index) if info.min < ignore_index <= info.max else int(info.min)
    others = np.where(fits, x.astype(np.int32), np.int32(-2 if held == -1 else -1))
    return array(name, np.where(x == int(ignore_index), np.int32(held), others)), held


def differs(target: Array, ignore_index: int) -> Array | None:
    index, info = int(ignore_index), jnp.iinfo(target.dtype)
    if not info.min <= index <= info.max:
        return None  # an index that the labels' type cannot hold marks nothing
    return _is_not(target, index)


@inlined(static_argnums=1)
def _is_not(target: Array, index: int) -> Array:
    return target != np.asarray(index, target.dtype)


def elements(name: str, x: Any, ignore_index: int | None) -> tuple[Array, Array | None]:
    """A target of 0, 1 and `ignore_index` as an array, and where it is not the latter; None without one."""
    target = array(name, x)
    if ignore_index is None:
        return target, None
    _check_ignored(ignore_index)
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise ValueError(
            f"ignore_index is {ignore_index}, {name} has dtype {target.dtype}: expected an integer type (where= leaves "
            f"elements of other targets out)"
        )
    return target, array(name, np.asarray(x != int(ignore_index))) if is_wide(x) else differs(target, ignore_index)


def _check_ignored(ignore_index: int | None) -> None:
    if ignore_index is not None:
        integer("ignore_index", ignore_index)


def class_shape_error(name: str, target: Array, logits: Array, axis: int) -> ValueError:
    """The error, which says what to write where the target is one that other libraries take."""
    *rows, classes = logits.shape
    shape = list(rows)
    shape.insert(axis % logits.ndim, classes)
    rows, shape = tuple(rows), tuple(shape)
    return ValueError(
        f"{name} has shape {target.shape} and dtype {target.dtype}, logits {shape}: expected {rows} class indices (an "
        f"integer type)"
        + (f" or {shape} probabilities (a floating-point type)" if name == "target" else "")
        + _class_shape_hint(name, target, rows, shape, axis)
    )


def _class_shape_hint(name: str, target: Array, rows: tuple[int, ...], shape: tuple[int, ...], axis: int) -> str:
    if not jnp.issubdtype(target.dtype, jnp.integer):
        if target.shape == (*rows, shape[axis]):
            return f"; write jnp.moveaxis({name}, -1, {axis}) if its classes are last"
        if target.shape in (rows, (*rows, 1)):
            column = "[..., 0]" if target.shape != rows else ""
            return f"; write {name}{column}.astype(int) if these are class indices"
        return ""
    if target.shape == shape:
        elements = ", or call binary_cross_entropy if each logit is an example" if len(shape) == 1 else ""
        return f"; write {name}.argmax({axis}) if it is one-hot{elements}"
    if target.shape == (*rows, 1):
        return f"; write {name}[..., 0]"
    for other, classes in enumerate(shape):
        if target.shape == shape[:other] + shape[other + 1 :]:
            return f"; write axis={other} if there are {classes} classes"
    return ""


def clip_value(clip: float | None, upper: float) -> float:
    """The clip as the kernels take it: 0 for none."""
    if clip is None:
        return 0.0
    if isinstance(clip, jax.Array):
        raise wrong_type("clip", clip, f"a number between 0 and {upper:g}, or None")
    if not isinstance(clip, numbers.Real) or isinstance(clip, bool) or not math.isfinite(clip) or not 0 < clip < upper:
        raise ValueError(f"clip is {clip!r}: expected a number between 0 and {upper:g}, or None")
    return float(clip)


def axis_index(axis: int, ndim: int) -> int:
    """`axis` counted from the front."""
    axis = integer("axis", axis)
    if ndim == 0:
        raise ValueError("logits has shape (): expected at least one axis, of classes")
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis is {axis}, logits has {ndim} axes: expected one from {-ndim} to {ndim - 1}")
    return axis % ndim


def classes_last(x: Array, axis: int, ndim: int) -> Array:
    """`x` with the axis of classes of `ndim` axes last; as it is, if it has another number of axes: those of rows."""
    return axis_moved(x, axis, -1) if x.ndim == ndim else x


def mesh_axes(axis_name: AxisName, x: Array, name: str = "logits", split: str = "classes") -> tuple[str, ...]:
    """The mesh axes that the classes of `x`, or what else is `split`, are split over, none without `axis_name`."""
    if axis_name is None:
        return ()
    if not isinstance(axis_name, str | tuple | list):
        raise wrong_type("axis_name", axis_name, "str or a tuple of them, or None")
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    for axis in axes:
        if not isinstance(axis, str):
            raise wrong_type("axis_name", axis, "str or a tuple of them, or None")
    varying = manual_axes(x)
    if missing := [axis for axis in axes if axis not in varying]:
        raise ValueError(
            f"axis_name is {axis_name!r}, but {name} does not vary over {', '.join(map(repr, missing))}: expected an "
            f"axis of an enclosing shard_map with check_vma=True that splits the {split} (found {varying or 'none'})"
        )
    return axes
