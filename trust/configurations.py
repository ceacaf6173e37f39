"""Random calls of the losses of predictions: of the tests' table of losses, with statistics of rows."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

import divergences
import losses
import oracles
from jaxloss import _spec
from trust import calls, statistics
from trust.calls import TRANSFORMS, Configuration, Drawn
from trust.exact import Exact, reduced
from trust.options import OPTIONS

FLOATS = losses.FLOATS
MULTIPLIERS = ("where", "weights")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A public loss with a kind of target.

    Attributes:
        case: of the table of losses.
        elements: its oracle, which takes the options that are numbers by name.
        required: the options that it cannot do without.
        optional: the others.
        static: what else a call says.
        function: its name, if that is not the loss's.
        accessor: what is taken of its result.
        unreduced: it is one number a row, and takes no weights.
        has_target: it takes one.
        bare: besides operands it takes the axis of the classes, and no mask.
    """

    case: losses.Case
    elements: Callable[..., oracles.Terms]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    static: tuple[tuple[str, Any], ...] = ()
    function: str = ""
    accessor: str = ""
    unreduced: bool = False
    has_target: bool = True
    bare: bool = False


def _subjects() -> Iterator[Subject]:
    for loss in losses.ELEMENTWISE:
        names = tuple(name for name, _ in loss.parameters)
        yield Subject(losses.Case(loss, "numbers"), loss.elements, required=names)
    of_classes = ("class_weights", "pos_weight", "label_smoothing", "focal_gamma", "focal_alpha")
    for kind in ("probabilities", "booleans", "integers"):
        yield Subject(losses.Case(losses.BINARY, kind), oracles.binary_cross_entropy_with_options, optional=of_classes)
    with_stats = "categorical_cross_entropy_with_stats"
    for kind in ("indices", "probabilities"):
        names = tuple(
            name
            for name, option in _spec.OPTIONS.items()
            if name in OPTIONS and (kind == "indices" or option.changes != "label")
        )
        case, elements = losses.Case(losses.CATEGORICAL, kind), oracles.categorical_cross_entropy_with_options
        yield Subject(case, elements, optional=names)
        yield Subject(case, elements, optional=names, function=with_stats, accessor="[0]")
    for name, (function, _, elements, _) in divergences.KINDS.items():
        loss = dataclasses.replace(losses.DISTILLATION, name=function.__name__)
        for kind in ("logits", "probabilities"):
            yield Subject(
                losses.Case(loss, kind),
                functools.partial(elements, target_type=kind),
                optional=("temperature", "beta") if name == "js" else ("temperature",),
                static=(("target_type", kind),),
            )
    of_indices, changed = losses.Case(losses.CATEGORICAL, "indices"), ("softcap", "temperature")
    for name, elements in statistics.OF_ROWS.items():
        options = (*changed, "margin")
        yield Subject(of_indices, elements, (), options, (), with_stats, f"[1].{name}", unreduced=True)
    yield Subject(of_indices, statistics.log_prob, (), changed, (), "log_prob", unreduced=True)
    entropy = statistics.OF_ROWS["entropy"]
    yield Subject(of_indices, entropy, (), changed, (), "entropy", unreduced=True, has_target=False)


SUBJECTS = tuple(_subjects())

ROWS = ((), (0,), (1,), (2,), (3,), (5,), (8,), (17,), (40,), (2, 3), (3, 1, 2), (130,))
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 129, 257, 1000, 1025, 2500)
OF_ELEMENTS = (
    (),
    (0,),
    (1,),
    (7,),
    (0, 3),
    (3, 0),
    (1, 1),
    (5, 17),
    (33, 8),
    (2, 3, 5),
    (1, 1000),
    (1000, 1),
    (64, 65),
)
LARGEST = 6000
"""The most elements of a prediction, but for one row."""

PATTERNS = ("ordinary", "ordinary", "wide", "tiny", "ties", "special", "masked classes", "ends")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfiguration(Configuration):
    """A call of a loss of predictions.

    Attributes:
        subject: the loss.
        axis: of the classes.
        target_dtype: of the target, None for that of its kind.
    """

    of_examples: ClassVar = ("x", "a", *MULTIPLIERS)

    subject: Subject
    axis: int
    target_dtype: str | None

    @property
    def case(self) -> losses.Case:
        return self.subject.case

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("x", "a") if self.subject.has_target else ("x",)

    @property
    def classes(self) -> int:
        """The size of the axis that options have a number for each index of."""
        return self.shape[self.axis] if self.shape else 1

    @property
    def of_64_bits(self) -> bool:
        return "float64" in (self.dtype, self.target_dtype)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def reduction(self) -> str:
        return "none" if self.subject.unreduced else self.static["reduction"]

    def __str__(self) -> str:
        options = {**self.static, **dict.fromkeys(self.numbers, "…"), **self.shapes}
        of = f"{self.function}{self.accessor}-{self.kind}"
        return f"{self.transform} of {of} {self.dtype}{list(self.shape)} {options}"

    @property
    def kind(self) -> str:
        """Of the target."""
        return self.case.target

    @property
    def units(self) -> tuple[int, ...]:
        """The shape of unreduced losses."""
        if not self.case.loss.by_rows:
            return self.shape
        axis = self.axis % len(self.shape)
        return tuple(size for i, size in enumerate(self.shape) if i != axis)

    def drawn(self, rng: np.random.Generator, count: int) -> Drawn:
        pattern = self._pattern(rng)
        case, shape = self.case, self.shape
        axis = self.axis % max(1, len(shape)) + 1
        x, a = case.sample(
            (count, *shape), "float64", axis=axis, seed=int(rng.integers(2**31)), target_dtype=self._drawn_target
        )
        infinite = case.loss is not losses.POISSON
        if pattern != "ordinary":
            # An infinite rate less a product is -Inf in what XLA makes of it: findings/overflow_of_exp_in_a_fusion.sh.
            x = calls.patterned(pattern, rng, x, self.dtype, infinite)
        if pattern in ("wide", "tiny", "ties", "special") and case.target in ("numbers", "logits"):
            a = calls.patterned(pattern, rng, a, self.target_dtype or self.dtype, infinite)
        if (
            case.target == "logits"
        ):  # of a class that the student has masked the teacher has no share that float32 holds
            a = np.where(np.isneginf(x), -np.inf, a)
        if pattern == "ties" and case.target == "numbers":
            a = np.where(rng.random(a.shape) < 0.5, x, a)
        if case.target == "probabilities":
            a = np.where(rng.random(a.shape) < 0.2, rng.choice([0.0, 1.0], a.shape), a)
        # Of a NaN beside a label that is no class, a statistic's gradient is NaN with a softcap: mended.toml.
        broken = pattern == "special" and self.accessor.startswith("[1]") and "softcap" in self.numbers
        if broken and case.target == "indices":
            a = np.minimum(a, self.static.get("num_classes", self.classes) - 1)
        if case.target == "indices" and not self.subject.bare and not broken and rng.random() < 0.3:
            strangers = rng.choice([-1, self.classes, 100, -128], a.shape)
            a = np.where(rng.random(a.shape) < 0.2, strangers, a)
        if case.loss is losses.POISSON:  # so that no rate is beyond the end of float16
            x = np.where(x > 8, 8, x)
        with np.errstate(all="ignore"):
            x = x.astype(self.dtype)
            a = a.astype(self._stored_target)
        operands = {"a": a, "x": x} if self.subject.has_target else {"x": x}
        numbers = {name: OPTIONS[name](rng, self.classes) for name in self.numbers}
        if "focal_alpha" in numbers and pattern == "special":  # whether it removes a NaN nobody has said
            numbers["focal_alpha"] = np.clip(numbers["focal_alpha"], np.float32(0.1), np.float32(0.9))
        if "label_smoothing" in numbers:  # which a masked class does not take: a rule that the oracle has not
            operands["x"] = np.where(np.isneginf(x), np.asarray(0, x.dtype), x)
        operands |= {name: calls.repeated(number, count) for name, number in numbers.items()}
        operands |= calls.drawn_multipliers(self, rng, count, pattern)
        units = self.units if self.reduction == "none" else ()
        return calls.drawn(rng, pattern, operands, ("x", "a", "weights", "normalizer"), units)

    def _pattern(self, rng: np.random.Generator) -> str:
        pattern = str(rng.choice(PATTERNS))
        # A sum beyond the largest number is infinite, though the mean is not; so is a rate, less a product.
        if pattern == "ends" and (self.reduction == "mean" or self.case.loss is losses.POISSON):
            return "wide"
        # A logit over a temperature is rounded, and the largest of a row apart from it: by more than exp holds.
        if pattern == "ends" and self.accessor in ("[1].lse", "[1].entropy") and "temperature" in self.numbers:
            return "wide"
        # The derivative of a z-loss is beyond the largest float16 there, before a cotangent makes it smaller.
        if pattern == "ends" and "z_loss" in self.numbers and self.dtype == "float16":
            return "wide"
        # A masked class takes no smoothing, and the margin of a masked label is nothing: rules that the oracle has not.
        rules = {"label_smoothing", "margin"} & set(self.numbers)
        if pattern == "masked classes" and (not self.case.loss.by_rows or self.case.target != "indices" or rules):
            return "ordinary"
        return pattern

    @property
    def _stored_target(self):
        """The type of the target."""
        kinds = {"indices": "int32", "integers": "int32", "booleans": "bool"}
        return self.target_dtype or kinds.get(self.case.target, self.dtype)

    @property
    def _drawn_target(self):
        """The type that a target is drawn in."""
        kinds = {"indices": "int64", "integers": "int64", "booleans": "bool"}
        return kinds.get(self.case.target, "float64")

    def exact(self, draw: Drawn, x: np.ndarray | None = None) -> Exact:
        given, static = draw.operands, self.static
        options = {name: calls.exact_number(given[name][0]) for name in self.numbers}
        if "num_classes" in static:
            options["num_classes"] = static["num_classes"]
        x = given["x"] if x is None else x
        return reduced(
            functools.partial(self.subject.elements, **options),
            x,
            given.get("a", np.zeros((len(x), *self.units), np.int64)),
            by_rows=self.case.loss.by_rows,
            axis=self.axis,
            clip=static.get("clip", 1e-7) if self.case.loss.has_clip and not self.subject.unreduced else None,
            ignore_index=static.get("ignore_index"),
            reduction=self.reduction,
            cotangent=draw.cotangent,
            **{name: given[name] for name in (*MULTIPLIERS, "normalizer") if name in given},
        )

    def terms(self, what: str, exact: Exact) -> int:
        if what.endswith((" x", " a")):
            return self.classes if self.case.loss.by_rows else 1
        return exact.terms

    def is_held(self, what: str, draw: Drawn) -> bool:
        # Nothing is promised of a target's gradient of a loss that is infinite or NaN, and of the focal loss where a
        # probability is flushed to zero, for one over it is a factor of that gradient.
        beyond = ("special", "ends", *(("wide",) if "focal_gamma" in self.numbers else ()))
        if what == "gradient of a":
            return draw.pattern not in beyond
        if what == "along":  # where gradients are finite in their own type
            wide = ("wide",) if self.dtype in ("float32", "float64") else ()
            return draw.pattern in ("ordinary", "tiny", "ties", *wide) and draw.pattern not in beyond
        return what != "hessian along" or draw.pattern == "ordinary"

    @property
    def examples(self) -> int:
        of_classes = self.case.loss.by_rows and self.axis % max(1, len(self.shape)) == 0
        return self.shape[0] if self.shape and not of_classes else 0


def of_losses(rng: np.random.Generator, by_formula: bool, subjects: Sequence[Subject] = SUBJECTS) -> LossConfiguration:
    """A random one."""
    chance, pick = calls.choices(rng)
    subject = pick(subjects)
    by_rows, kind = subject.case.loss.by_rows, subject.case.target
    axis = -1
    while True:
        rows, width = pick(ROWS), pick(WIDTHS)
        shape = (*rows, width) if by_rows else pick(OF_ELEMENTS)
        if np.prod(shape) <= LARGEST:
            break
    if by_rows and chance(0.2):
        axis = int(rng.integers(len(shape)))
        shape = (*shape[:-1][:axis], shape[-1], *shape[:-1][axis:])
    dtype = pick(FLOATS)
    target_dtype = None
    if subject.case.of_target and dtype in ("bfloat16", "float16") and chance(0.5):
        target_dtype = "float32"
    if kind in ("indices", "integers") and chance(0.3):
        target_dtype = pick(("int8", "uint8", "int16", "uint32"))
    static = dict(subject.static)
    if not subject.unreduced:
        static["reduction"] = pick(losses.REDUCTIONS)
    if by_rows and axis != -1:
        static["axis"] = axis
    if subject.case.loss.has_clip and not subject.unreduced and chance(0.6):
        static["clip"] = pick((None, 1e-3, 1e-6))
    ignores = subject.function not in ("log_prob", "entropy") and not subject.bare
    if kind in ("indices", "integers") and ignores and chance(0.3):
        static["ignore_index"] = pick((-1, 0, 1))
    if subject.case.loss is losses.CATEGORICAL and not subject.bare and shape[axis] > 2 and chance(0.15):
        static["num_classes"] = int(rng.integers(1, shape[axis]))
    numbers = [*subject.required, *(name for name in subject.optional if chance(0.3))]
    if not shape and "class_weights" in numbers:
        numbers.remove("class_weights")
    examples = tuple(size for i, size in enumerate(shape) if i != axis % len(shape)) if by_rows else shape[:1]
    multipliers = () if subject.bare else ("where",) if subject.unreduced else MULTIPLIERS
    shapes = {name: _of_examples(rng, shape, axis, examples, by_rows) for name in multipliers if chance(0.35)}
    return LossConfiguration(
        function=subject.function or subject.case.loss.name,
        accessor=subject.accessor,
        subject=subject,
        shape=shape,
        axis=axis,
        dtype=dtype,
        target_dtype=target_dtype,
        static=static,
        numbers=tuple(sorted(numbers)),
        required=subject.required,
        shapes=shapes,
        with_normalizer=static.get("reduction") == "mean" and chance(0.25),
        transform=pick(TRANSFORMS),
        by_formula=by_formula,
    )


def _of_examples(rng, shape, axis, examples, by_rows) -> tuple[int, ...]:
    """One of the shapes that a mask or weights may have."""
    match rng.integers(4):
        case 0 if shape:
            ones = tuple(1 if rng.random() < 0.5 else size for size in shape)
            if by_rows:
                ones = tuple(1 if i == axis % len(shape) else size for i, size in enumerate(ones))
            return ones
        case 1:
            return ()
        case _:
            return examples
