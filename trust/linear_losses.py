"""Random calls of the linear losses: of few tokens, features and classes, with options, in chunks of few tokens.

The oracle makes whole logits in float64, and is then that of the same loss of logits; what is derived from their
gradient is a matrix product. A logit errs like the sum that made it, and its row's softmax with it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

import losses
import oracles
from trust import calls, statistics
from trust.calls import TRANSFORMS, Configuration, Drawn
from trust.exact import Exact, reduced
from trust.linear_products import Product
from trust.options import OPTIONS


@dataclasses.dataclass(frozen=True)
class Subject:
    """A linear loss.

    Attributes:
        name: of the function.
        elements: the oracle of the same of logits; of those of two models where there is a teacher.
        optional: options that are numbers.
        accessor: what is taken of the result.
        takes_labels, has_teacher: what it is given besides hidden states and kernel.
        unreduced: it is one number a token, and takes no weights.
        direction: of a divergence.
        objective: what `linear_objective` is given.
    """

    name: str
    elements: Callable[..., oracles.Terms]
    optional: tuple[str, ...]
    accessor: str = ""
    takes_labels: bool = True
    has_teacher: bool = False
    unreduced: bool = False
    direction: str = ""
    objective: Callable | None = None


def _reverse(x, a, clip, **options) -> oracles.Terms:
    terms = oracles.kl_divergence(a, x, clip, target_type="logits", **options)
    return oracles.Terms(terms.loss, terms.of_target, terms.of_prediction)


def objective(tokens, data):
    """Of a sequence: everything that tokens have."""
    return (data[:, None] * tokens.log_prob + 0.5 * tokens.entropy + 0.25 * tokens.lse).sum()


def _of_objective(x, a, clip, **options) -> oracles.Terms:
    """What is not multiplied by data."""
    parts = {
        functools.partial(statistics.entropy, **options): 0.5,
        functools.partial(statistics.lse, **options): 0.25,
    }
    return oracles.weighted_sum_of(parts)(x, a, clip)


CHANGED = ("softcap", "temperature")
OF_CROSS_ENTROPY = ("class_weights", "label_smoothing", "z_loss", "margin", *CHANGED)
CROSS_ENTROPY = oracles.categorical_cross_entropy_with_options
WITH_STATS = "linear_cross_entropy_with_stats"
SUBJECTS = (
    *(Subject("linear_cross_entropy", CROSS_ENTROPY, OF_CROSS_ENTROPY),) * 4,
    Subject("linear_log_prob", statistics.log_prob, CHANGED, unreduced=True),
    Subject(WITH_STATS, CROSS_ENTROPY, OF_CROSS_ENTROPY, "[0]"),
    *(
        Subject(WITH_STATS, elements, (*CHANGED, "margin"), f"[1].{name}", unreduced=True)
        for name, elements in statistics.OF_ROWS.items()
    ),
    Subject("linear_objective", _of_objective, CHANGED, unreduced=True, objective=objective),
    *(
        Subject(
            "linear_kl_divergence",
            elements,
            ("temperature",),
            takes_labels=False,
            has_teacher=True,
            direction=direction,
        )
        for direction, elements in (
            ("forward", functools.partial(oracles.kl_divergence, target_type="logits")),
            ("reverse", _reverse),
        )
    ),
    Subject(
        "linear_jensen_shannon",
        functools.partial(oracles.jensen_shannon, target_type="logits"),
        ("temperature", "beta"),
        takes_labels=False,
        has_teacher=True,
    ),
)

TOKENS = ((0,), (1,), (2,), (5,), (16,), (37,), (2, 3), (4, 9))
FEATURES = (1, 2, 3, 8, 16, 17)
CLASSES = (1, 2, 3, 5, 8, 31, 64, 129)
PATTERNS = ("ordinary", "ordinary", "wide", "tiny", "ties", "masked tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConfiguration(Configuration):
    """A call of a linear loss; its shape is that of the hidden states.

    Attributes:
        subject: the loss.
        classes: how many.
        kernel_dtype: of the kernel, and the teacher's.
        with_bias: there is one, of float32 or what is wider; and the teacher has one.
        teacher_features: of the teacher's hidden states.
    """

    of_examples: ClassVar = ("x", "labels", "where", "weights", "data", "teacher_hidden")

    subject: Subject
    classes: int
    kernel_dtype: str
    with_bias: bool
    teacher_features: int

    @property
    def arguments(self) -> tuple[str, ...]:
        if self.subject.has_teacher:
            return "x", "kernel", "teacher_hidden", "teacher_kernel"
        return ("x", "kernel", "labels", *(("data",) if self.objective else ()))

    @property
    def of_64_bits(self) -> bool:
        return "float64" in (self.dtype, self.kernel_dtype)

    @property
    def computed(self) -> np.dtype:
        """Logits and their gradients have this type, but for the sums that they are made of."""
        if self.of_64_bits:
            return np.dtype(np.float64)
        return jnp.promote_types(self.dtype, self.kernel_dtype)

    @property
    def rounded_to(self) -> np.dtype:
        types = (self.dtype, self.kernel_dtype, "float32" if self.with_bias or self.is_objective else "float64")
        return max((jnp.dtype(name) for name in types), key=calls.spacing)

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.shape[:-1]

    @property
    def size(self) -> int:
        return int(np.prod(self.tokens)) * (self.classes + self.shape[-1] + self.teacher_features)

    def __str__(self) -> str:
        options = {**self.static, **dict.fromkeys(self.numbers, "…"), **self.shapes, "bias": self.with_bias}
        types = f"{self.dtype}{list(self.shape)} {self.kernel_dtype}[{self.classes} classes]"
        return f"{self.transform} of {self.function}{self.accessor} {types} {options}"

    @property
    def is_objective(self) -> bool:
        """Whether it is a function of all tokens, which a function that is given makes."""
        return bool(self.objective)

    def with_objective(self, of_rows: Callable[..., Exact], draw: Drawn, off: np.ndarray) -> Exact:
        """The objective, of a function that gives the sum over tokens of what elements say of logits and labels.

        `off` is by what the logits of each token err.
        """
        return _with_data(of_rows, self.subject.elements, draw.operands["data"], off.shape)

    def drawn_data(self, rng: np.random.Generator, count: int, pattern: str, operands: dict) -> dict[str, np.ndarray]:
        """What the objective takes besides, of calls with these operands."""
        del pattern, operands
        return {"data": rng.standard_normal((count, *self.tokens[:-1])).astype(np.float32)}

    @property
    def moved(self) -> tuple[str, ...]:
        """The operands that have tangents."""
        return "x", "kernel", "bias", "weights", "normalizer", *(("data",) if self.is_objective else ())

    @property
    def _class_axis(self) -> int:
        return self.static["kernel_axis"]

    def drawn(self, rng: np.random.Generator, count: int) -> Drawn:
        pattern = str(rng.choice(PATTERNS))
        if pattern == "masked tokens" and "where" not in self.shapes:
            pattern = "ordinary"
        operands: dict[str, np.ndarray] = {"x": self._states(rng, count, pattern, self.shape[-1])}
        operands["kernel"] = self._kernel(rng, count, pattern, self.shape[-1])
        if self.subject.has_teacher:
            operands["teacher_hidden"] = self._states(rng, count, pattern, self.teacher_features)
            operands["teacher_kernel"] = self._kernel(rng, count, pattern, self.teacher_features)
        if self.with_bias:
            for name in ("bias", *(("teacher_bias",) if self.subject.has_teacher else ())):
                operands[name] = rng.standard_normal((count, self.classes)).astype(np.float32)
        if self.subject.takes_labels:
            labels = rng.integers(0, self.classes, (count, *self.tokens))
            if not self.is_objective and rng.random() < 0.3:
                strangers = rng.choice([-1, self.classes, 100, -128], labels.shape)
                labels = np.where(rng.random(labels.shape) < 0.2, strangers, labels)
            operands["labels"] = labels.astype(np.int32)
        for name in self.numbers:
            operands[name] = calls.repeated(OPTIONS[name](rng, self.classes), count)
        operands |= calls.drawn_multipliers(self, rng, count, pattern)
        if self.is_objective:
            operands |= self.drawn_data(rng, count, pattern, operands)
        if pattern == "masked tokens":  # at which nothing looks
            keep = np.broadcast_to(operands["where"], (count, *self.tokens))[..., None]
            for name in {"x", "teacher_hidden"} & set(operands):
                operands[name] = np.where(keep, operands[name], np.asarray(np.nan, operands[name].dtype))
        units = self.tokens if self._reduction == "none" and not self.is_objective else ()
        return calls.drawn(rng, pattern, operands, self.moved, units)

    def _states(self, rng, count: int, pattern: str, features: int) -> np.ndarray:
        x = 1.5 * rng.standard_normal((count, *self.tokens, features))
        return calls.scaled(pattern, rng, x, self.dtype)

    def _kernel(self, rng, count: int, pattern: str, features: int) -> np.ndarray:
        kernel = rng.standard_normal((count, features, self.classes)) / np.sqrt(features)
        kernel = calls.scaled(pattern, rng, kernel, self.kernel_dtype)
        return kernel if self._class_axis else np.ascontiguousarray(np.moveaxis(kernel, 1, 2))

    @property
    def _reduction(self) -> str:
        return "none" if self.subject.unreduced else self.static["reduction"]

    def exact(self, draw: Drawn, x: np.ndarray | None = None) -> Exact:
        given = draw.operands
        student, teacher = self._products(given, given["x"] if x is None else x)
        of_rows = self._of_rows(given, student, teacher, draw.cotangent)
        if self.is_objective:
            of_logits = self.with_objective(of_rows, draw, self._steepness(given) * student.largest[..., 0])
        else:
            multipliers = {name: given[name] for name in ("weights", "normalizer") if name in given}
            of_logits = of_rows(self.subject.elements, **multipliers)
        # What the logits are off by, of student and teacher.
        off = student.largest if teacher is None else student.largest + teacher.largest
        steepness = self._steepness(given)
        derivative, size = of_logits.gradients["x"]
        with np.errstate(all="ignore"):
            size = size * (1 + steepness * off)
            own = tuple(range(1, size.ndim)) if of_logits.value[0].ndim == 1 else -1
            value = of_logits.value[0], of_logits.value[1] + self._moved(draw, size, own)
        gradients = {**of_logits.gradients, **student.pulled(derivative, size)}
        for name in () if self.is_objective else ("weights", "normalizer"):
            if name in gradients:
                gradients[name] = gradients[name][0], gradients[name][1] * (1 + steepness * off.max(initial=0))
        gradients.pop("a", None)
        frozen = ("teacher_hidden", "teacher_kernel", "teacher_bias")
        gradients |= {name: (np.zeros(given[name].shape),) * 2 for name in frozen if name in given}
        return Exact(value, gradients, max(1, int(np.prod(self.tokens)) * self.classes))

    def log_prob(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """Of the labels; 0 at masked tokens."""
        student, _ = self._products(given, given["x"])
        of_rows = self._of_rows(given, student, None, np.ones(given["labels"].shape))
        return of_rows(statistics.log_prob, reduction="none").value[0]

    def _products(self, given, x: np.ndarray) -> tuple[Product, Product | None]:
        """The logits of the student and, if there is one, of the teacher."""
        masked = given.get("where")
        student = Product.of(x, given["kernel"], given.get("bias"), self._class_axis, masked)
        if not self.subject.has_teacher:
            return student, None
        names = ("teacher_hidden", "teacher_kernel", "teacher_bias")
        return student, Product.of(*(given.get(name) for name in names), self._class_axis, masked)

    def _options(self, given) -> dict:
        """Of a row of logits."""
        options = {name: calls.exact_number(given[name][0]) for name in self.numbers}
        return options | ({"num_classes": self.static["num_classes"]} if "num_classes" in self.static else {})

    def _steepness(self, given) -> float:
        """By how much more than a logit of the product that of the loss may err."""
        options = self._options(given)
        return (1 + 2 / options.get("softcap", np.inf)) / min(1.0, options.get("temperature", 1.0))

    def _of_rows(self, given, student: Product, teacher: Product | None, cotangent: np.ndarray):
        """A function of what elements say of a row, and of what else `reduced` takes."""
        where, target = self._targets(given, teacher)
        options = self._options(given)

        def of_rows(elements: Callable[..., oracles.Terms], **rest) -> Exact:
            return reduced(
                functools.partial(elements, **options),
                student.logits,
                target,
                by_rows=True,
                clip=self.static.get("clip"),
                where=where,
                ignore_index=self.static.get("ignore_index"),
                **{"reduction": "sum" if self.is_objective else self._reduction, "cotangent": cotangent, **rest},
            )

        return of_rows

    def _moved(self, draw: Drawn, size: np.ndarray, own) -> np.ndarray:
        """By what the value errs as its logits do; gradients are times the cotangent, and values are not."""
        cotangent = abs(draw.cotangent.astype(np.float64))
        cotangent = cotangent.reshape(*cotangent.shape, *(1,) * (size.ndim - cotangent.ndim))
        return (size / cotangent).sum(own)

    def _targets(self, given, teacher) -> tuple[np.ndarray | None, np.ndarray]:
        """The tokens that count, and their labels, or the teacher's logits."""
        where = given.get("where")
        if teacher is not None:
            return where, teacher.logits
        labels, shift = given["labels"], self.static.get("shift", 0)
        if not shift:
            return where, labels
        counted = np.ones(labels.shape, bool) if where is None else np.broadcast_to(where, labels.shape).copy()
        counted[..., max(0, labels.shape[-1] - shift) :] = False
        return counted, np.roll(labels, -shift, -1)

    def is_held(self, what: str, draw: Drawn) -> bool:
        narrow = self.computed.itemsize == 2
        return what != "hessian along" or (draw.pattern == "ordinary" and not narrow)

    @property
    def examples(self) -> int:
        return self.tokens[0]


def _with_data(of_rows: Callable[..., Exact], elements, data: np.ndarray, shape: tuple[int, ...]) -> Exact:
    """The objective: with the log-probabilities, times the data of their sequence."""
    rest, multiplied = of_rows(elements), of_rows(statistics.log_prob, weights=np.broadcast_to(data[..., None], shape))
    of_token = multiplied.gradients["weights"]

    def added(first, second):
        return first[0] + second[0], first[1] + second[1]

    gradients = {"x": added(rest.gradients["x"], multiplied.gradients["x"])}
    gradients["data"] = tuple(part.sum(-1) for part in of_token)
    return Exact(added(rest.value, multiplied.value), gradients, rest.terms)


def of_linear(rng: np.random.Generator, by_formula: bool) -> LinearConfiguration:
    """A random one."""
    chance, pick = calls.choices(rng)
    subject = pick(SUBJECTS)
    tokens, features, classes = pick(TOKENS), pick(FEATURES), pick(CLASSES)
    dtype = pick(losses.FLOATS)
    kernel_dtype = pick(losses.FLOATS) if chance(0.25) else dtype
    static: dict = {"kernel_axis": pick((-1, -1, 0)), "chunk_size": pick((None, 1, 4, 8))}
    if not subject.unreduced:
        static["reduction"] = pick(losses.REDUCTIONS)
    if subject.direction:
        static["direction"] = subject.direction
    if subject.elements is CROSS_ENTROPY and not subject.unreduced and chance(0.3):
        static["clip"] = pick((1e-3, 1e-7))
    if subject.takes_labels and chance(0.3):
        static["ignore_index"] = pick((-1, 0, 1))
    if subject.takes_labels and chance(0.3):
        static["shift"] = 1
    if subject.has_teacher:
        static["teacher_kernel_axis"] = static["kernel_axis"]
    elif classes > 2 and chance(0.15):
        static["num_classes"] = int(rng.integers(1, classes))
    static["precision"] = "highest"  # a GPU's products of float32 are of fewer bits by default
    numbers = tuple(sorted(name for name in subject.optional if chance(0.3)))
    names = ("where",) if subject.unreduced else ("where", "weights")
    shapes = {name: tokens for name in names if chance(0.35)}
    return LinearConfiguration(
        function=subject.name,
        accessor=subject.accessor,
        objective=subject.objective,
        subject=subject,
        shape=(*tokens, features),
        classes=classes,
        dtype=dtype,
        kernel_dtype=kernel_dtype,
        with_bias=chance(0.4),
        teacher_features=pick(FEATURES) if subject.has_teacher else 0,
        static=static,
        numbers=numbers,
        required=(),
        shapes=shapes,
        with_normalizer=static.get("reduction") == "mean" and chance(0.25),
        transform=pick(TRANSFORMS),
        by_formula=by_formula,
    )
