"""Random calls of the public losses, as far as a program is compiled for them: the loss, shapes, types and options.

They are made from the tests' table of losses. A configuration follows from a seed and its number alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import divergences
import jaxloss
import losses
import oracles
from jaxloss import _spec
from jaxloss._ffi import call

FLOATS = losses.FLOATS
TRANSFORMS = ("eager", "jit", "grad", "vmap", "jvp", "hvp")
Draw = Callable[[np.random.Generator, int], Any]
"""An option, of a random generator and the number of classes."""


def _between(low: float, high: float) -> Draw:
    return lambda rng, classes: np.float32(rng.uniform(low, high))


def _either(*draws: Draw) -> Draw:
    return lambda rng, classes: draws[rng.integers(len(draws))](rng, classes)


def _exactly(*numbers: float) -> Draw:
    return lambda rng, classes: np.float32(rng.choice(numbers))


def _per_class(rng: np.random.Generator, classes: int) -> np.ndarray:
    return rng.choice([0.0, 0.5, 1.0, 3.0], classes, p=[0.1, 0.3, 0.3, 0.3]).astype(np.float32)


def _logarithmic(low: float, high: float) -> Draw:
    return lambda rng, classes: np.float32(np.exp(rng.uniform(np.log(low), np.log(high))))


OPTIONS: dict[str, Draw] = {
    "class_weights": _per_class,
    "label_smoothing": _either(_between(0, 1), _exactly(0, 1)),
    "z_loss": _either(_logarithmic(1e-5, 1), _exactly(0)),
    "softcap": _logarithmic(0.5, 100),
    "margin": _between(-3, 3),
    "temperature": _logarithmic(0.1, 10),
    "pos_weight": _logarithmic(0.1, 10),
    "focal_gamma": _either(_between(0, 5), _exactly(0, 1, 2)),
    "focal_alpha": _either(_between(0, 1), _exactly(0, 1)),
    "beta": _between(0.02, 0.98),
    "delta": _logarithmic(1e-2, 1e2),
    "q": _between(0.01, 0.99),
    "variance": _logarithmic(1e-2, 1e2),
}
"""What each option may be, within its range."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A public loss with a kind of target.

    Attributes:
        case: of the table of losses.
        elements: its oracle, which takes the options that are numbers by name.
        required: the options that it cannot do without.
        optional: the others.
        static: what else a call says.
    """

    case: losses.Case
    elements: Callable[..., oracles.Terms]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    static: tuple[tuple[str, Any], ...] = ()

    @property
    def function(self) -> Callable:
        return getattr(jaxloss, self.case.loss.name)


def _subjects():
    for loss in losses.ELEMENTWISE:
        names = tuple(name for name, _ in loss.parameters)
        yield Subject(losses.Case(loss, "numbers"), loss.elements, required=names)
    of_classes = ("class_weights", "pos_weight", "label_smoothing", "focal_gamma", "focal_alpha")
    for kind in ("probabilities", "booleans", "integers"):
        yield Subject(losses.Case(losses.BINARY, kind), oracles.binary_cross_entropy_with_options, optional=of_classes)
    for kind in ("indices", "probabilities"):
        names = tuple(
            name
            for name, option in _spec.OPTIONS.items()
            if name in OPTIONS and (kind == "indices" or option.changes != "label")
        )
        yield Subject(
            losses.Case(losses.CATEGORICAL, kind), oracles.categorical_cross_entropy_with_options, optional=names
        )
    for name, (function, _, elements, _) in divergences.KINDS.items():
        loss = dataclasses.replace(losses.DISTILLATION, name=function.__name__)
        for kind in ("logits", "probabilities"):
            yield Subject(
                losses.Case(loss, kind),
                functools.partial(elements, target_type=kind),
                optional=("temperature", "beta") if name == "js" else ("temperature",),
                static=(("target_type", kind),),
            )


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


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a program is compiled for.

    Attributes:
        subject: the loss.
        shape: of the prediction.
        axis: of the classes.
        dtype: of the prediction.
        target_dtype: of the target, None for that of its kind.
        static: options that are compiled.
        numbers: names of options that are operands.
        shapes: of `where` and `weights`, where there are any.
        with_normalizer: the normalizer is an operand.
        transform: one of `TRANSFORMS`.
        by_formula: small arrays take the formula, as they do by default, in place of a kernel.
    """

    subject: Subject
    shape: tuple[int, ...]
    axis: int
    dtype: str
    target_dtype: str | None
    static: Mapping[str, Any]
    numbers: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    with_normalizer: bool
    transform: str
    by_formula: bool

    @property
    def case(self) -> losses.Case:
        return self.subject.case

    @property
    def classes(self) -> int:
        """The size of the axis that options have a number for each index of."""
        return self.shape[self.axis] if self.shape else 1

    @property
    def of_64_bits(self) -> bool:
        return "float64" in (self.dtype, self.target_dtype)

    def __str__(self) -> str:
        options = {**self.static, **dict.fromkeys(self.numbers, "…"), **self.shapes}
        return f"{self.transform} of {self.case} {self.dtype}{list(self.shape)} {options}"


def configuration(seed: int, number: int) -> Configuration:
    """The one of that number."""
    rng = np.random.default_rng((seed, number))

    def chance(share: float) -> bool:
        return bool(rng.random() < share)

    def pick(values):
        return values[rng.integers(len(values))]

    subject = pick(SUBJECTS)
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
    static = dict(subject.static) | {"reduction": pick(losses.REDUCTIONS)}
    if by_rows and axis != -1:
        static["axis"] = axis
    if subject.case.loss.has_clip and chance(0.6):
        static["clip"] = pick((None, 1e-3, 1e-6))
    if kind in ("indices", "integers") and chance(0.3):
        static["ignore_index"] = pick((-1, 0, 1))
    if by_rows and subject.case.loss is losses.CATEGORICAL and shape[axis] > 2 and chance(0.15):
        static["num_classes"] = int(rng.integers(1, shape[axis]))
    numbers = [*subject.required, *(name for name in subject.optional if chance(0.3))]
    if not shape and "class_weights" in numbers:
        numbers.remove("class_weights")
    examples = tuple(size for i, size in enumerate(shape) if i != axis % len(shape)) if by_rows else shape[:1]
    shapes = {name: _of_examples(rng, shape, axis, examples, by_rows) for name in ("where", "weights") if chance(0.35)}
    return Configuration(
        subject=subject,
        shape=shape,
        axis=axis,
        dtype=dtype,
        target_dtype=target_dtype,
        static=static,
        numbers=tuple(sorted(numbers)),
        shapes=shapes,
        with_normalizer=static["reduction"] == "mean" and chance(0.25),
        transform=pick(TRANSFORMS),
        by_formula=number // BLOCK % 4 == 3,
    )


BLOCK = 32
"""So many configurations one after the other take the same path: at a change of it, what was traced is forgotten."""


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


DEFAULT_FALLBACK = call.FALLBACK_SIZE


def on_path(by_formula: bool) -> None:
    """Has what is traced from now on take formulas for few elements, or kernels."""
    size = DEFAULT_FALLBACK if by_formula else 0
    if size != call.FALLBACK_SIZE:
        call.FALLBACK_SIZE = size
        jax.clear_caches()
