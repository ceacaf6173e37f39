"""Checks of what only numbers tell, at run time and opt-in: labels in range, probabilities that sum to 1, NaN.

Only one number a row of logits goes to the host; the arrays of elementwise losses go there whole. What is wrong is
found there, so that a check adds no operation that shardings could refuse.
"""

import contextlib
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxloss._checks import arguments, keywords
from jaxloss._checks import linear as _linear_arguments
from jaxloss._checks import sparse as _sparse
from jaxloss._checks.arrays import array
from jaxloss._checks.parameters import is_known
from jaxloss._spec import OPTIONS
from jaxloss._types import BETWEEN_0_AND_1, FINITE, FROM_0_TO_1, NOT_NEGATIVE, POSITIVE, Interval

# Part of the key of every cache of jax.jit: what was traced without checks is traced again with them.
_checking = jax.make_user_context(False)

_NUMBERS = {option.name: option.interval for option in OPTIONS.values() if option.is_argument and option.interval} | {
    "pos_weight": NOT_NEGATIVE,
    "focal_gamma": NOT_NEGATIVE,
    "focal_alpha": FROM_0_TO_1,
    "beta": BETWEEN_0_AND_1,
    "soft_weight": FINITE,
    "hard_weight": FINITE,
}
_SUM_TOLERANCE = 1e-3

# What the running contexts have found, each once: a callback does not know in which of them its program runs.
_found: dict[str, None] = {}
_log = logging.getLogger("jaxloss")

Function = TypeVar("Function", bound=Callable[..., Any])


def debug_checks(enabled: bool = True) -> contextlib.AbstractContextManager[None]:
    """A context in which every loss checks its numbers as it runs, and that ends with an error if one is wrong.

    The error names function, argument, row, value and range: a label that is no class, a binary target beyond [0, 1],
    probabilities that are negative or do not sum to 1, a normalizer of 0, a traced option out of its range, and NaN in
    logits, predictions, targets and weights. What `where` and `ignore_index` mask is not looked at. The functions
    of `jaxloss.optax` are not checked.

    It works under `jax.jit`, `jax.grad`, `jax.vmap` and on meshes. What counts is the thread and the time of the call
    of a jitted function: one that was traced outside is traced again within, and outside runs without checks. A program
    that was compiled ahead of time or exported stays as it was made. Outside, a call costs nothing.

    An eager call raises at once. Of a traced one, the error is logged at once, by the logger `jaxloss`, and raised when
    the context ends, which waits for all that runs: a callback that raised would leave the other devices of a mesh
    waiting for its own. Around one training step, the context stops at the step. Under `jax.shard_map` rows are counted
    from the first of the device's own, under `jax.vmap` from that of each batch.

    Args:
        enabled: False for a part of such a context that is not checked.

    Raises:
        TypeError: if `enabled` is no boolean, such as a function: it is `@jaxloss.debug_checks()` that decorates one.
        ValueError: at its end, with all that is wrong, one a line.

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> with jaxloss.debug_checks():
    ...     jaxloss.categorical_cross_entropy(jnp.zeros((2, 3)), jnp.array([0, 3]))
    Traceback (most recent call last):
        ...
    ValueError: jaxloss.categorical_cross_entropy: target of row 1 is 3: expected a class index from 0 to 2
    """
    if not isinstance(enabled, bool):  # pyright: ignore[reportUnnecessaryIsInstance], callers may not check their types
        hint = "; write @jaxloss.debug_checks()" if callable(enabled) else ""
        raise TypeError(f"enabled has type {type(enabled).__name__}: expected True or False{hint}")
    return _debug_checks(enabled)


@contextlib.contextmanager
def _debug_checks(enabled: bool) -> Iterator[None]:
    if not enabled:
        with _checking(False):
            yield
        return
    try:
        with _checking(True):
            yield
        jax.effects_barrier()
        messages = "\n".join(_found)
    finally:
        _found.clear()
    if messages:
        raise ValueError(messages)


@dataclasses.dataclass
class _Watch:
    """What a call is to check.

    Attributes:
        ranges: of numbers that only this function takes, by name.
        masks: arrays of booleans, from that of an array's row count to how it is aligned; false for what is left out.
        checks: of each, what an error calls it, what is expected, where it is wrong, and whether masks apply.
        arrays: of each check, the array.
    """

    ranges: dict[str, Interval] = dataclasses.field(default_factory=dict)
    masks: list = dataclasses.field(default_factory=list)
    checks: list = dataclasses.field(default_factory=list)
    arrays: list = dataclasses.field(default_factory=list)

    def add(self, what: str, x, expected: str, is_right: Callable, unit: str = "") -> None:
        """`is_right` is of NumPy's arrays; the `unit`, row or element, is what masks leave out, if it is given."""
        self.checks.append((what, expected, is_right, unit))
        self.arrays.append(x)

    def not_nan(self, what: str, x, unit: str = "") -> None:
        self.add(what, x, "a number", _is_number, unit)

    def options(self, given: dict[str, Any]) -> None:
        """The options of all losses, but masks."""
        for name, interval in (_NUMBERS | self.ranges).items():
            value = given.get(name)
            if value is not None and not is_known(value):
                x = array(name, value)
                of_rows = x.ndim > 0 and name in OPTIONS  # others that have axes are parameters of a model
                is_right = interval.contains if x.ndim == 0 or of_rows else _is_number
                self.add(name, x, interval.words, is_right, "row" if of_rows else "")
        for name in ("weights", "class_weights", "bias", "teacher_bias"):
            if given.get(name) is not None:
                self.not_nan(name, array(name, given[name]))
        normalizer = given.get("normalizer")
        if normalizer is not None and not isinstance(normalizer, str):
            self.add("normalizer", array("normalizer", normalizer), "a number other than 0", _is_divisor)

    def labels(self, what: str, labels, classes, ignore_index: int | None) -> None:
        """Class indices of rows; those to be ignored are left out of all checks."""
        if not isinstance(classes, int):
            return  # only the call of an exported program knows how many
        if ignore_index is not None:
            self.masks.append(arguments.differs(labels, ignore_index))
        self.add(what, labels, f"a class index from 0 to {classes - 1}", lambda x: (x >= 0) & (x < classes), "row")

    def listed(self, what: str, target, classes, axis: int) -> None:
        """Some classes of each row, and their probabilities; the index of one of probability 0 may be any."""
        indices, probabilities = (jnp.moveaxis(array(what, x), axis, -1) for x in target)
        if isinstance(classes, int):
            counted = jnp.where(probabilities == 0, 0, indices)
            expected = f"a class index from 0 to {classes - 1}"
            self.add(f"{what}[0]", counted, expected, lambda x: (x >= 0) & (x < classes), "row")
        self.add(f"the least of {what}[1]", probabilities.min(-1), "a number of at least 0", lambda x: x >= 0, "row")
        total = probabilities.sum(-1, dtype=jnp.promote_types(probabilities.dtype, "float32"))
        self.add(f"the sum of {what}[1]", total, "at most 1", lambda x: x <= 1 + _SUM_TOLERANCE, "row")

    def rows(self, what: str, x, axis: int, axes: tuple[str, ...] = ()) -> None:
        """Logits: one number a row tells whether there is a softmax."""
        largest = jnp.max(jax.lax.stop_gradient(x), axis, initial=-jnp.inf)
        largest = jax.lax.pmax(largest, axes) if axes else largest
        self.add(f"the largest of {what}", largest, "a finite number", np.isfinite, "row")

    def distributions(self, what: str, x, axis: int, axes: tuple[str, ...], if_logits: str) -> None:
        """Probabilities; `if_logits` says what to do where they are logits, most of which are negative somewhere."""
        x = jax.lax.stop_gradient(x)
        least, total = jnp.min(x, axis, initial=jnp.inf), jnp.sum(x, axis, dtype=jnp.promote_types(x.dtype, "float32"))
        if axes:
            least, total = jax.lax.pmin(least, axes), jax.lax.psum(total, axes)
        tolerance = _SUM_TOLERANCE + float(jnp.finfo(x.dtype).eps if jnp.issubdtype(x.dtype, jnp.floating) else 0)
        self.add(f"the least of {what}", least, f"a number of at least 0; {if_logits}", lambda x: x >= 0, "row")
        self.add(f"the sum of {what}", total, "1", lambda x: abs(x - 1) <= tolerance, "row")

    def emit(self, function: str, axis: int | None) -> None:
        """The callback that looks at all of it."""
        masks = [mask for mask in self.masks if mask is not None]
        look = functools.partial(_look, function, axis, len(masks), tuple(self.checks))
        operands = (*masks, *self.arrays)
        if any(isinstance(x, Tracer) for x in operands):
            jax.debug.callback(lambda *operands: _report(look(*operands)), *operands)
        elif errors := look(*operands):
            raise ValueError("\n".join(errors))


def watched(
    watch: Callable[[dict[str, Any], _Watch], int | None], **ranges: Interval
) -> Callable[[Function], Function]:
    """A public function whose numbers are checked in `debug_checks`, and whose options are keywords.

    `watch` says what to check of its arguments, and which axis of a mask is that of classes; `ranges` are those of
    numbers that only this function takes.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        operands = sum(x.kind is x.POSITIONAL_OR_KEYWORD for x in signature.parameters.values())
        names = signature.parameters.keys()
        variadic = any(x.kind is x.VAR_POSITIONAL for x in signature.parameters.values())

        @functools.wraps(function)
        def called(*args, **kwargs):
            if len(args) > operands and not variadic:
                raise keywords.positional_options(function.__name__, tuple(names), operands, args)
            if not kwargs.keys() <= names:
                unknown = next(name for name in kwargs if name not in names)
                raise keywords.unknown_argument(function.__name__, tuple(names), operands, unknown)
            if not _checking.value:
                return function(*args, **kwargs)
            with _checking(False):  # one public function may call another
                result = function(*args, **kwargs)
                given = signature.bind(*args, **kwargs)
                given.apply_defaults()
                found = _Watch(ranges)
                axis = watch(given.arguments, found)
                found.emit(function.__name__, axis)
            return result

        return cast(Function, called)

    return decorate


def regression(given: dict[str, Any], watch: _Watch) -> None:
    """Predictions and targets."""
    _where(given, watch)
    for name in ("pred", "target"):
        watch.not_nan(name, array(name, given[name]), "element")
    watch.options(given)


def gaussian(given: dict[str, Any], watch: _Watch) -> None:
    """Means, targets and variances."""
    _where(given, watch)
    for name in ("mean", "target"):
        watch.not_nan(name, array(name, given[name]), "element")
    variance = array("variance", given["variance"])
    if variance.ndim:
        variance = jnp.broadcast_to(variance, jnp.shape(given["mean"]))
    watch.add("variance", variance, POSITIVE.words, POSITIVE.contains, "element" if variance.ndim else "")
    watch.options(given)


def counts(given: dict[str, Any], watch: _Watch) -> None:
    """Logarithms of rates, and counts."""
    _where(given, watch)
    watch.not_nan("log_rate", array("log_rate", given["log_rate"]), "element")
    watch.add("target", array("target", given["target"]), NOT_NEGATIVE.words, NOT_NEGATIVE.contains, "element")
    watch.options(given)


def binary(given: dict[str, Any], watch: _Watch) -> None:
    """Logits, and targets from 0 to 1."""
    _where(given, watch)
    target, counted = arguments.elements("target", given["target"], given["ignore_index"])
    watch.masks.append(counted)
    watch.not_nan("logits", array("logits", given["logits"]), "element")
    watch.add("target", target, FROM_0_TO_1.words, FROM_0_TO_1.contains, "element")
    watch.options(given)


def categorical(given: dict[str, Any], watch: _Watch) -> int:
    """Logits of classes and, of the functions that have them, labels or probabilities."""
    logits, axis, axes = _logits("logits", given)
    _where(given, watch)
    name = "labels" if "labels" in given else "target"
    target = given.get(name)
    sparse = _sparse.is_sparse(target)
    width = given["num_classes"] or logits.shape[axis] * (jax.lax.axis_size(axes) if axes else 1)
    if sparse:
        watch.listed("target", cast(tuple, target), width, axis)
    for x in () if target is None or sparse else target[:2] if isinstance(target, tuple) else (target,):
        x, ignored = arguments.indices(name, x, given.get("ignore_index"))
        if jnp.issubdtype(x.dtype, jnp.integer):
            watch.labels(name, x, width, ignored)
        else:
            watch.distributions(name, x, axis, axes, f"if these are logits, are logits and {name} swapped?")
    if isinstance(target, tuple) and not sparse:
        watch.add("the share of target", array("share", target[2]), FROM_0_TO_1.words, FROM_0_TO_1.contains)
    watch.rows("logits", logits, axis, axes)
    watch.options(given)
    return axis


def divergence(given: dict[str, Any], watch: _Watch) -> int:
    """Student's logits and teacher."""
    student, teacher = ("logits", "target") if "logits" in given else ("student_logits", "teacher_logits")
    logits, axis, axes = _logits(student, given)
    _where(given, watch)
    watch.rows(student, logits, axis, axes)
    if given["target_type"] == "logits":
        watch.rows(teacher, array(teacher, given[teacher]), axis, axes)
    elif _sparse.is_sparse(given[teacher]):
        watch.listed(teacher, given[teacher], logits.shape[axis] * (jax.lax.axis_size(axes) if axes else 1), axis)
    else:
        if_logits = "write target_type='logits' if these are logits"
        watch.distributions(teacher, array(teacher, given[teacher]), axis, axes, if_logits)
    watch.options(given)
    return axis


def linear(given: dict[str, Any], watch: _Watch) -> int:
    """Hidden states, kernel and labels."""
    _where(given, watch)
    _labels_of_tokens(given, watch)
    _output_layer("", given, watch)
    watch.options(given)
    return -1


def linear_divergence(given: dict[str, Any], watch: _Watch) -> int:
    """Hidden states and kernels of student and teacher, and labels if there are any."""
    _where(given, watch)
    if given["labels"] is not None:
        _labels_of_tokens(given, watch)
    for of in ("", "teacher_"):
        _output_layer(of, given, watch)
    watch.options(given)
    return -1


def contrastive(given: dict[str, Any], watch: _Watch) -> None:
    """Embeddings of pairs."""
    for name in ("a", "b"):
        watch.rows(name, array(name, given[name]), -1)
    watch.options(given)


def _labels_of_tokens(given: dict[str, Any], watch: _Watch) -> None:
    kernel = array("kernel", given["kernel"])
    axes = arguments.mesh_axes(given["axis_name"], kernel, "kernel")
    size = kernel.shape[given["kernel_axis"] % 2]
    width = given["num_classes"] or size * (jax.lax.axis_size(axes) if axes else 1)
    if _sparse.is_sparse(given["labels"]):
        _listed_of_tokens(given, watch, width)
        return
    labels, ignored = arguments.indices("labels", given["labels"], given["ignore_index"])
    labels, labelled = _linear_arguments.shifted(labels, given["shift"])
    if labelled is not None:
        watch.masks.append(jnp.broadcast_to(labelled, labels.shape))
    watch.labels("labels", labels, width, ignored)


def _listed_of_tokens(given: dict[str, Any], watch: _Watch, width) -> None:
    indices, probabilities = (array("labels", x) for x in given["labels"])
    (indices, labelled), (probabilities, _) = (
        _linear_arguments.shifted(jnp.moveaxis(x, -1, 0), given["shift"]) for x in (indices, probabilities)
    )
    if labelled is not None:
        watch.masks.append(jnp.broadcast_to(labelled, indices.shape[1:]))
    watch.listed("labels", (indices, probabilities), width, 0)


def _output_layer(of: str, given: dict[str, Any], watch: _Watch) -> None:
    """Hidden states and kernel, whose arguments' names begin with `of`, `teacher_` or nothing."""
    watch.rows(f"{of}hidden", array(f"{of}hidden", given[f"{of}hidden"]), -1)
    kernel, of_features = array(f"{of}kernel", given[f"{of}kernel"]), 1 - given[f"{of}kernel_axis"] % 2
    watch.not_nan(f"the largest of {of}kernel of a class", jnp.max(kernel, of_features, initial=-jnp.inf))


def _logits(name: str, given: dict[str, Any]) -> tuple[jax.Array, int, tuple[str, ...]]:
    logits = array(name, given[name])
    axis = arguments.axis_index(given["axis"], logits.ndim)
    return logits, axis, arguments.mesh_axes(given["axis_name"], logits)


def _where(given: dict[str, Any], watch: _Watch) -> None:
    if given.get("where") is not None:
        watch.masks.append(array("where", given["where"]))


def _is_number(x: np.ndarray) -> np.ndarray:
    return ~np.isnan(x)


def _is_divisor(x: np.ndarray) -> np.ndarray:
    return _is_number(x) & (x != 0)


def _report(errors: list[str]) -> None:
    for error in errors:
        if error not in _found:
            _found[error] = None
            _log.error(error)


def _look(function: str, axis: int | None, masks: int, checks: tuple, *arrays) -> list[str]:
    """On the host: what is wrong."""
    arrays = tuple(map(np.asarray, arrays))
    errors = []
    for (what, expected, is_right, unit), x in zip(checks, arrays[masks:], strict=True):
        # In a type that NumPy knows: float64 holds all others'.
        x = x if x.dtype.kind in "iub" else x.astype(np.float64)
        wrong = ~np.asarray(is_right(x))
        for mask in arrays[:masks] if unit else ():
            wrong &= _aligned(mask, wrong.shape, axis)
        if wrong.any():
            place = np.unravel_index(wrong.argmax(), wrong.shape)
            at = f" of {unit or 'index'} {', '.join(map(str, place))}" if place else ""
            more = f" ({wrong.sum() - 1} more)" if wrong.sum() > 1 else ""
            errors.append(f"jaxloss.{function}: {what}{at} is {x[place]}: expected {expected}{more}")
    return errors


def _aligned(mask: np.ndarray, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    """A mask in the shape of rows or elements; one that has an axis of classes too has 1 there."""
    if axis is not None and mask.ndim == len(shape) + 1:
        mask = np.squeeze(mask, axis)
    return np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)
