"""The table of public calls: every public function, with every option that it takes. Tests of what holds for all of them use it."""

import dataclasses
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import cross_entropy_options as samples
import jaxloss
from jaxloss import _spec
from jaxloss import optax as drop_ins
from losses import ELEMENTWISE


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a public function by keywords.

    Attributes:
        name: of the call.
        function: what is called.
        required: the arrays that it must be given.
        optional: other arrays, and numbers that may be traced.
        static: everything else.
        differentiable: whether there is a derivative with respect to the first argument.
    """

    name: str
    function: Callable
    required: dict
    optional: dict = dataclasses.field(default_factory=dict)
    static: dict = dataclasses.field(default_factory=dict)
    differentiable: bool = True

    @property
    def operands(self) -> dict:
        """All that is an array or a number."""
        return self.required | self.optional

    def __call__(self, operands: dict):
        return self.function(**operands, **self.static)


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).uniform(0.125, 0.875, shape).astype(np.float32)


ROWS, CLASSES, WIDTH = 4, 6, 3
X, A, LABELS, MASK = (
    _numbers(ROWS, CLASSES),
    _numbers(ROWS, CLASSES)[::-1].copy(),
    np.arange(ROWS, dtype=np.int32),
    np.arange(ROWS) > 0,
)
INDICES, PROBABILITIES = np.stack([LABELS, 3 - LABELS], -1), 0.5 * _numbers(ROWS, 2)
WEIGHTS, OF_CLASSES = _numbers(ROWS), _numbers(CLASSES)
HIDDEN, KERNEL = _numbers(ROWS, WIDTH), _numbers(WIDTH, CLASSES)
TEACHER_HIDDEN, TEACHER_KERNEL = _numbers(ROWS, WIDTH + 2) - 0.5, 2 * _numbers(WIDTH + 2, CLASSES)
EXAMPLES = {"where": MASK, "weights": WEIGHTS, "normalizer": 3.0}
OPTIONS = {"class_weights": OF_CLASSES, **samples.numbers()}
OF_PROBABILITIES = {"class_weights": OF_CLASSES, **samples.numbers("probabilities")}
SCALES = {name: number for name, number in samples.numbers().items() if _spec.OPTIONS[name].of_distribution}
BINARY = {
    "class_weights": OF_CLASSES,
    "pos_weight": 1.5,
    "label_smoothing": 0.125,
    "focal_gamma": 1.5,
    "focal_alpha": 0.25,
}
BY_WEIGHTS = {"normalizer": "weights"}
UNREDUCED = {"reduction": "none"}


def _calls():
    for loss in ELEMENTWISE:
        name, parameters = loss.name, dict(loss.parameters)
        has_default = {
            name for name, x in inspect.signature(getattr(jaxloss, name)).parameters.items() if x.default is not x.empty
        }
        more = {name: A + 1 if name == "variance" else 0.5 for name in parameters}
        required = {loss.prediction: X, "target": A}
        required |= {name: number for name, number in parameters.items() if name not in has_default}
        for prefix in ("", "d_"):
            function = getattr(jaxloss, prefix + name)
            yield Call(f"{prefix}{name}", function, required)
            yield Call(f"{prefix}{name}, options", function, required, EXAMPLES | more)
        yield Call(f"{name}, none", getattr(jaxloss, name), required, static=UNREDUCED)
    for prefix in ("", "d_"):
        function, required = getattr(jaxloss, f"{prefix}binary_cross_entropy"), {"logits": X, "target": A}
        yield Call(f"{prefix}binary", function, required)
        yield Call(f"{prefix}binary, options", function, required, BINARY | EXAMPLES)
        yield Call(
            f"{prefix}binary, weights", function, required, {"class_weights": OF_CLASSES, "pos_weight": OF_CLASSES}
        )
        yield Call(f"{prefix}binary, smoothing", function, required, {"label_smoothing": 0.125}, UNREDUCED)
        yield Call(
            f"{prefix}binary, ignore_index",
            *(function, {"logits": X, "target": np.ones_like(X, np.int32)}, EXAMPLES, {"ignore_index": -1}),
        )
    labels, probabilities = {"logits": X, "target": LABELS}, {"logits": X, "target": A}
    for name in ("categorical_cross_entropy", "d_categorical_cross_entropy", "categorical_cross_entropy_with_stats"):
        function = getattr(jaxloss, name)
        yield Call(f"{name}, labels", function, labels)
        yield Call(
            f"{name}, labels, options", function, labels, OPTIONS | EXAMPLES, {"num_classes": 4, "ignore_index": 2}
        )
        yield Call(f"{name}, labels, none", function, labels, OPTIONS, UNREDUCED)
        yield Call(f"{name}, unreduced", function, labels, {}, UNREDUCED)
        yield Call(f"{name}, wide labels", function, {"logits": X, "target": LABELS.astype(np.uint32)})
        yield Call(f"{name}, probabilities", function, probabilities, EXAMPLES)
        yield Call(f"{name}, probabilities, options", function, probabilities, OF_PROBABILITIES, BY_WEIGHTS)
        yield Call(
            f"{name}, by weights",
            function,
            labels,
            {"class_weights": OF_CLASSES, "weights": WEIGHTS, "where": MASK},
            BY_WEIGHTS,
        )
        yield Call(f"{name}, axis", function, {"logits": X.T.copy(), "target": LABELS}, {"where": MASK}, {"axis": 0})
    yield Call(
        "mixed",
        lambda other, share, target, **rest: jaxloss.categorical_cross_entropy(target=(target, other, share), **rest),
        {**labels, "other": LABELS[::-1].copy(), "share": 0.25},
        OF_PROBABILITIES,
        BY_WEIGHTS,
    )
    listed = {"logits": X, "indices": INDICES, "probabilities": PROBABILITIES}
    for prefix in ("", "d_"):
        function = _of_some_classes(getattr(jaxloss, f"{prefix}categorical_cross_entropy"))
        yield Call(f"{prefix}some classes", function, listed, {"class_weights": OF_CLASSES}, BY_WEIGHTS)
        options = {name: number for name, number in OF_PROBABILITIES.items() if name != "class_weights"} | EXAMPLES
        static = {"num_classes": 4, "remainder": "spread"}
        yield Call(f"{prefix}some classes, options", function, listed, options, static)
        function = _of_some_classes(getattr(jaxloss, f"{prefix}kl_divergence"))
        yield Call(
            f"{prefix}kl, some classes", function, listed, {"temperature": 1.5, **EXAMPLES}, {"remainder": "spread"}
        )
    ids = {"logits": X, "labels": INDICES}
    yield Call("log_prob, some classes", jaxloss.log_prob, ids, {"where": MASK, **SCALES}, {"num_classes": 4})
    yield Call(
        "linear, some classes",
        _of_some_classes(jaxloss.linear_cross_entropy, "labels"),
        {"hidden": HIDDEN, "kernel": KERNEL, "indices": INDICES, "probabilities": PROBABILITIES},
        {"bias": OF_CLASSES, **SCALES, **EXAMPLES},
        {"chunk_size": 2, "num_classes": 4, "remainder": "spread"},
    )
    yield Call(
        "log_prob", jaxloss.log_prob, {"logits": X, "labels": LABELS}, {"where": MASK, **SCALES}, {"num_classes": 4}
    )
    yield Call("entropy", jaxloss.entropy, {"logits": X}, {"where": MASK, **SCALES}, {"num_classes": 4})
    for prefix in ("", "d_"):
        for target_type in ("probabilities", "logits"):
            static, options = {"target_type": target_type}, {"temperature": 1.5, **EXAMPLES}
            function = getattr(jaxloss, f"{prefix}kl_divergence")
            yield Call(f"{prefix}kl, {target_type}", function, probabilities, options, static)
            function, required = getattr(jaxloss, f"{prefix}jensen_shannon"), {"student_logits": X, "teacher_logits": A}
            yield Call(f"{prefix}js, {target_type}", function, required, {"beta": 0.25, **options}, static)
            yield Call(f"{prefix}js, {target_type}, none", function, required, {}, static | UNREDUCED)
    required = {"hidden": HIDDEN, "kernel": KERNEL, "labels": LABELS}
    for name in ("linear_cross_entropy", "linear_cross_entropy_with_stats"):
        function = getattr(jaxloss, name)
        yield Call(name, function, required)
        yield Call(
            f"{name}, options",
            function,
            required,
            {"bias": OF_CLASSES, **OPTIONS, **EXAMPLES},
            {"chunk_size": 2, "ignore_index": 1, "num_classes": 4, "logits_dtype": "float32"},
        )
        yield Call(f"{name}, by weights", function, required, {"class_weights": OF_CLASSES}, {"shift": 1, **BY_WEIGHTS})
        yield Call(f"{name}, none", function, required, {"bias": OF_CLASSES}, {"chunk_size": 2, **UNREDUCED})
    yield Call(
        "linear_log_prob",
        *(jaxloss.linear_log_prob, required, {"bias": OF_CLASSES, "where": MASK, **SCALES}),
        {"logits_dtype": "float32"},
    )
    yield Call(
        "linear_objective",
        *(jaxloss.linear_objective, required, {"bias": OF_CLASSES, "where": MASK, "normalizer": 3.0, **SCALES}),
        {
            "objective": _policy_gradient,
            "per": "token",
            "chunk_size": 2,
            "ignore_index": 1,
            "num_classes": 4,
            "logits_dtype": "float32",
        },
    )
    required = {"hidden": HIDDEN, "kernel": KERNEL, "teacher_hidden": TEACHER_HIDDEN, "teacher_kernel": TEACHER_KERNEL}
    biases = {"bias": OF_CLASSES, "teacher_bias": OF_CLASSES[::-1].copy()}
    of_labels = {"labels": LABELS, "soft_weight": 0.5, "hard_weight": 0.25}
    for name, of_name in (("linear_kl_divergence", {}), ("linear_jensen_shannon", {"beta": 0.25})):
        function = getattr(jaxloss, name)
        options = {"temperature": 1.5, **biases, **EXAMPLES, **of_name}
        yield Call(name, function, required)
        yield Call(
            f"{name}, options",
            *(function, required, options, {"chunk_size": 2, "num_classes": 4, "logits_dtype": "float32"}),
        )
        static = {"chunk_size": 2, "ignore_index": 1, "shift": 1, "num_classes": 4}
        yield Call(f"{name}, labels", function, required, options | of_labels, static)
        yield Call(f"{name}, by weights", function, required, {"weights": WEIGHTS}, BY_WEIGHTS)
        yield Call(f"{name}, none", function, required, biases | of_name, {"chunk_size": 2, **UNREDUCED})
    yield Call("linear_kl_divergence, reverse", jaxloss.linear_kl_divergence, required, static={"direction": "reverse"})
    pairs = {"a": X, "b": A, "scale": 1.5, "bias": -0.5}
    yield Call("sigmoid_contrastive", jaxloss.sigmoid_contrastive, pairs, {"normalizer": 3.0}, {"chunk_size": 2})
    yield Call("sigmoid_contrastive, none", jaxloss.sigmoid_contrastive, pairs, static=UNREDUCED)
    yield from _drop_ins()


def _of_some_classes(function: Callable, target: str = "target") -> Callable:
    """The function whose target is given as two arrays."""

    def called(indices, probabilities, **rest):
        return function(**{target: (indices, probabilities)}, **rest)

    if hasattr(function, "__wrapped__"):
        called.__wrapped__ = _of_some_classes(function.__wrapped__, target)
    return called


def _policy_gradient(tokens):
    return -(tokens.log_prob + 0.1 * tokens.entropy).sum()


def _drop_ins():
    whole = {"where": X > 0.25}
    for name in ("softmax_cross_entropy", "poly_loss_cross_entropy", "ranking_softmax_loss"):
        function = getattr(drop_ins, name)
        yield Call(f"optax {name}", function, {"logits": X, "labels": A})
        yield Call(f"optax {name}, where", function, {"logits": X, "labels": A}, whole)
    yield Call("optax safe", drop_ins.safe_softmax_cross_entropy, {"logits": X, "labels": A})
    yield Call(
        "optax ranking, weights", drop_ins.ranking_softmax_loss, {"logits": X, "labels": A}, {"weights": A, **whole}
    )
    function = drop_ins.softmax_cross_entropy_with_integer_labels
    yield Call("optax labels", function, {"logits": X, "labels": LABELS})
    yield Call("optax labels, where", function, {"logits": X, "labels": LABELS}, whole)
    for name in ("sigmoid_binary_cross_entropy", "sigmoid_focal_loss", "sparsemax_loss"):
        options = {"alpha": 0.25, "gamma": 1.5} if "focal" in name else {}
        labels = np.float32(A > 0.5) if name == "sparsemax_loss" else A
        yield Call(f"optax {name}", getattr(drop_ins, name), {"logits": X, "labels": labels}, options)
    for name in ("hinge_loss", "perceptron_loss"):
        yield Call(f"optax {name}", getattr(drop_ins, name), {"predictor_outputs": X, "targets": A})
    for name in ("squared_error", "l2_loss", "log_cosh", "huber_loss"):
        optional = {"targets": A} | ({"delta": 0.5} if name == "huber_loss" else {})
        yield Call(f"optax {name}", getattr(drop_ins, name), {"predictions": X}, optional)
    for name in ("kl_divergence", "generalized_kl_divergence"):
        yield Call(f"optax {name}", getattr(drop_ins, name), {"log_predictions": X, "targets": A}, whole)
    function = drop_ins.kl_divergence_with_log_targets
    yield Call("optax kl of logs", function, {"log_predictions": X, "log_targets": A}, whole)
    yield Call("optax smooth_labels", drop_ins.smooth_labels, {"labels": A, "alpha": 0.25}, whole)


CALLS = tuple(_calls())
IDS = tuple(call.name for call in CALLS)


def total(results) -> jax.Array:
    """A scalar of all floating-point results."""
    leaves = [leaf for leaf in jax.tree.leaves(results) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum((leaf.sum() for leaf in leaves[1:]), start=leaves[0].sum())


def split_operands(operands: dict) -> tuple[dict, dict]:
    """Those that are floating-point, and the others."""
    real = {name: x for name, x in operands.items() if jnp.issubdtype(jnp.result_type(x), jnp.floating)}
    return real, {name: x for name, x in operands.items() if name not in real}
