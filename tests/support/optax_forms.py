"""Forms of calls of `jaxloss.optax`: every type, axis, mask and way to broadcast, without the values, which are drawn.

A form is compiled once. Values of which optax gets the derivatives wrong are left out.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st


def sixteenths(low: int, high: int) -> st.SearchStrategy[float]:
    """Numbers that every type holds."""
    return st.integers(16 * low, 16 * high).map(lambda i: i / 16)


NUMBERS = sixteenths(-25, 25)
LARGE = st.one_of(NUMBERS, st.sampled_from([0.0, 1e4, -1e4, 320.0]))  # drawn for some calls in place of NUMBERS
SMALL = sixteenths(-2, 2)
MODERATE = sixteenths(-8, 8)
LOG_PROBABILITIES = sixteenths(-8, 0)
PROBABILITIES = st.integers(1, 15).map(lambda i: i / 16)
BITS = st.integers(0, 1)
BOOLEANS = st.booleans()


@dataclasses.dataclass(frozen=True)
class Operand:
    """What an operand of a form is, but for its values."""

    shape: tuple[int, ...]
    dtype: str
    elements: st.SearchStrategy


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """Calls that differ in values alone: they are compiled once.

    Attributes:
        name: of the function.
        operands: all arrays that it is given, by name, masks among them.
        options: everything else.
        differentiated: the operands that optax's derivatives are right for.
    """

    name: str
    operands: dict[str, Operand]
    options: dict
    differentiated: tuple[str, ...]

    def __str__(self) -> str:
        arrays = (f"{name}:{o.dtype}{list(o.shape)}" for name, o in self.operands.items())
        options = (f"{name}={getattr(value, '__name__', value)}" for name, value in self.options.items())
        return f"{self.name}({', '.join([*arrays, *options])})".replace(" ", "")


def elementwise(name, x, a, elements, targets, options=(), of_target=True, equal=False):
    """Forms with two operands called `x` and `a`: every type of either, and every way to broadcast."""
    one, two = ((3, 5), (3, 5)), ((2,), (2,))
    shapes = [one, two, one, two] if equal else [one, ((5,), (3, 1)), ((3, 5), ()), ((), ())]
    types = [("float32", "float32"), ("bfloat16", "float32"), ("float16", "int32"), ("float64", "bool")]
    for place, ((shape, target_shape), (dtype, target_dtype)) in enumerate(zip(shapes, types, strict=True)):
        is_float = target_dtype.startswith("float")
        operands = {
            x: Operand(shape, dtype, elements),
            a: Operand(target_shape, target_dtype, targets if is_float else BITS),
        }
        extra = dict(options[place % len(options)]) if options else {}
        parameters = {k: v for k, v in extra.items() if isinstance(v, Operand)}
        rest = {k: v for k, v in extra.items() if not isinstance(v, Operand)}
        differentiated = (x, a, *parameters) if of_target and is_float else (x, *parameters)
        yield Form(name, operands | parameters, rest, differentiated)


def of_rows(name, labels: str, options=({},)):
    """Forms of logits with `labels` of kind "indices" or "probabilities": every form of axis and of mask."""
    table = [
        # shape, axis, shape of where, shape of probabilities, type of logits, of probabilities, of indices
        ((3, 5), -1, None, (3, 5), "float32", "float32", "int32"),
        ((3, 5), -1, (3,), (5,), "bfloat16", "float32", "uint8"),
        ((3, 5), 0, (3, 5), (3, 5), "float16", "float16", "int32"),
        ((5,), 0, (5,), (), "float32", "int32", "int32"),
        ((2, 3, 4), 1, (2, 1, 4), (2, 1, 4), "bfloat16", "bfloat16", "int32"),
        ((2, 3, 4), (2, -2), (1, 3, 4), (2, 3, 4), "float64", "float32", "int64"),
        ((2, 3, 4), (0, 2), None, (1, 3, 1), "bfloat16", "float16", "int32"),
        ((2, 3, 4), (-2, -1), (2,), (2, 3, 4), "float32", "bool", "int32"),
        ((3, 5), None, (3, 5), (3, 5), "float32", "float32", None),
        ((5,), -1, None, (3, 5), "float32", "bfloat16", "int32"),
    ]
    for place, (shape, axis, where, probabilities, dtype, label_dtype, index_dtype) in enumerate(table):
        if labels == "indices" and axis is None:
            continue
        if name == "poly_loss_cross_entropy" and label_dtype in ("int32", "bool"):
            label_dtype = "float32"
        if name == "poly_loss_cross_entropy" and where is not None and len(where) != len(shape):
            where = tuple(size if at < len(where) else 1 for at, size in enumerate(shape))  # all that it takes
        operands = {"logits": Operand(shape, dtype, NUMBERS)}
        if labels == "indices":
            rows, classes = split(shape, axis)
            operands["labels"] = Operand(rows, index_dtype, st.integers(0, math.prod(classes) - 1))
        else:
            is_float = label_dtype not in ("int32", "bool")
            operands["labels"] = Operand(probabilities, label_dtype, PROBABILITIES if is_float else BITS)
        if where is not None:
            operands["where"] = Operand(where, "bool", BOOLEANS)
        of_labels = labels == "probabilities" and where is None
        differentiated = ("logits", "labels") if of_labels else ("logits",)
        yield Form(name, operands, {"axis": axis} | options[place % len(options)], differentiated)


def split(shape, axis) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of the axes of rows, and of those of classes in their order."""
    axes = [one % len(shape) for one in (axis if isinstance(axis, tuple) else (axis,))]
    return tuple(size for at, size in enumerate(shape) if at not in axes), tuple(shape[one] for one in axes)


def divergences(name, target: str):
    elements = LOG_PROBABILITIES if target == "log_targets" else PROBABILITIES
    table = [
        ((3, 5), (3, 5), None, -1, "float32", "float32"),
        ((5,), (3, 5), (5,), 0, "bfloat16", "float32"),
        ((2, 3, 4), (4,), (2, 3, 4), (-1, 0), "float16", "float16"),
        ((3, 5), (3, 1), (), None, "float64", "bfloat16"),
        ((3, 5), (3, 5), (3, 1), (), "bfloat16", "bfloat16"),
    ]
    for shape, target_shape, where, axis, dtype, target_dtype in table:
        operands = {
            "log_predictions": Operand(shape, dtype, LOG_PROBABILITIES),
            target: Operand(target_shape, target_dtype, elements),
        }
        differentiated = tuple(operands)
        if where is not None:
            operands["where"] = Operand(where, "bool", BOOLEANS)
        yield Form(name, operands, {"axis": axis}, differentiated)


def smoothings(name):
    for shape, axis, dtype, alpha in (
        ((3, 5), -1, "float32", 0.1),
        ((5,), 0, "bfloat16", 0.5),
        ((2, 3), None, "float16", np.float32(0.25)),
    ):
        yield Form(name, {"labels": Operand(shape, dtype, PROBABILITIES)}, {"alpha": alpha, "axis": axis}, ("labels",))


def rankings(name):
    reductions = (jnp.mean, jnp.sum, None, jnp.mean)
    for place, (shape, dtype, label_dtype, where, weights) in enumerate(
        [
            ((3, 5), "float32", "float32", None, None),
            ((3, 5), "bfloat16", "float32", (3, 5), None),
            ((5,), "float16", "int32", None, "float32"),
            ((3, 5), "float32", "bfloat16", (3, 5), "bfloat16"),
        ]
    ):
        operands = {
            "logits": Operand(shape, dtype, NUMBERS),
            "labels": Operand(shape, label_dtype, PROBABILITIES if "float" in label_dtype else BITS),
        }
        if where is not None:
            operands["where"] = Operand(where, "bool", BOOLEANS)
        if weights is not None:
            operands["weights"] = Operand(shape, weights, PROBABILITIES)
        yield Form(name, operands, {"reduce_fn": reductions[place]}, ("logits",))


ERRORS_OF = ("predictions", "targets")
DELTAS = [{"delta": 0.5}, {"delta": Operand((3, 1), "float32", PROBABILITIES)}, {}, {"delta": np.float32(2)}]
FOCAL = [
    {},
    {"alpha": np.float32(0.25)},
    {"gamma": 0.5},
    {"alpha": 0.75, "gamma": Operand((), "float32", PROBABILITIES)},
]
EPSILONS = [{}, {"epsilon": -1.0}, {"epsilon": np.float32(0.5)}]
OUTPUTS = ("predictor_outputs", "targets")
LOGITS = ("logits", "labels")

FORMS = [
    *list(elementwise("squared_error", *ERRORS_OF, NUMBERS, NUMBERS, equal=True))[1:3],
    *elementwise("l2_loss", *ERRORS_OF, NUMBERS, NUMBERS, equal=True),
    *elementwise("huber_loss", *ERRORS_OF, NUMBERS, NUMBERS, options=DELTAS),
    *list(elementwise("log_cosh", *ERRORS_OF, NUMBERS, NUMBERS))[1:3],
    *elementwise("sigmoid_binary_cross_entropy", *LOGITS, NUMBERS, PROBABILITIES),
    *elementwise("sigmoid_focal_loss", *LOGITS, MODERATE, PROBABILITIES, options=FOCAL),
    *list(elementwise("hinge_loss", *OUTPUTS, SMALL, SMALL))[1:3],
    *list(elementwise("perceptron_loss", *OUTPUTS, SMALL, SMALL, equal=True))[1:3],
    *list(elementwise("sparsemax_loss", *LOGITS, SMALL, PROBABILITIES, of_target=False))[1:3],
    *of_rows("softmax_cross_entropy", "probabilities"),
    *of_rows("softmax_cross_entropy_with_integer_labels", "indices"),
    *(
        dataclasses.replace(form, options={})
        for form in of_rows("safe_softmax_cross_entropy", "probabilities")
        if "where" not in form.operands and form.options == {"axis": -1}
    ),
    *list(of_rows("poly_loss_cross_entropy", "probabilities", EPSILONS))[::3],
    *divergences("kl_divergence", "targets"),
    *list(divergences("kl_divergence_with_log_targets", "log_targets"))[1:4],
    *list(divergences("generalized_kl_divergence", "targets"))[1:3],
    *list(divergences("convex_kl_divergence", "targets"))[:1],
    *smoothings("smooth_labels"),
    *rankings("ranking_softmax_loss"),
]
