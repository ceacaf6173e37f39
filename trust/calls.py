"""What every random call of the fuzz has, whichever function it is of."""

import abc
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

import jaxloss
import tolerance
from trust.exact import Exact

TRANSFORMS = ("eager", "jit", "grad", "vmap", "jvp", "hvp")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The operands of many calls of one program, along a leading axis.

    Options have the same numbers in all of them, so that the oracle is asked once.

    Attributes:
        pattern: the kind of numbers that prediction and target are.
        operands: by name, in the order of the alphabet, which is how a dictionary comes out of `jit`.
        tangents: a direction for floating-point operands.
        cotangent: of the shape of the value.
    """

    pattern: str
    operands: dict[str, np.ndarray]
    tangents: dict[str, np.ndarray]
    cotangent: np.ndarray

    def __len__(self) -> int:
        return len(self.cotangent)

    def of(self, i: int) -> "Drawn":
        """One of the calls."""
        operands, tangents = ({name: x[i : i + 1] for name, x in d.items()} for d in (self.operands, self.tangents))
        return Drawn(self.pattern, operands, tangents, self.cotangent[i : i + 1])

    def without(self, name: str) -> "Drawn":
        operands, tangents = (
            {other: x for other, x in d.items() if other != name} for d in (self.operands, self.tangents)
        )
        return dataclasses.replace(self, operands=operands, tangents=tangents)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration(abc.ABC):
    """What a program is compiled for.

    Attributes:
        function: the name of the public function.
        shape: of the first operand.
        dtype: of that.
        static: options that are compiled.
        numbers: names of options that are operands; `required` are those that it cannot do without.
        shapes: of `where` and `weights`, where there are any.
        with_normalizer: the normalizer is an operand.
        transform: one of `TRANSFORMS`.
        by_formula: small arrays take the formula, as they do by default, in place of a kernel.
        accessor: what is taken of the function's result, as it is written behind the call.
        objective: what the function is given after three operands, if anything.
    """

    function: str
    shape: tuple[int, ...]
    dtype: str
    static: Mapping[str, Any]
    numbers: tuple[str, ...]
    required: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    with_normalizer: bool
    transform: str
    by_formula: bool
    accessor: str = ""
    objective: Callable | None = None

    @property
    @abc.abstractmethod
    def arguments(self) -> tuple[str, ...]:
        """The operands that the function is given by their place."""

    @property
    @abc.abstractmethod
    def of_64_bits(self) -> bool:
        """Whether it takes JAX's 64-bit mode."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many numbers a call is about: the oracle takes as long."""

    @abc.abstractmethod
    def drawn(self, rng: np.random.Generator, count: int) -> Drawn:
        """The operands of so many calls."""

    @abc.abstractmethod
    def exact(self, draw: Drawn, x: np.ndarray | None = None) -> Exact:
        """The oracle's results of these calls; with `x` in place of their first operand."""

    @property
    @abc.abstractmethod
    def examples(self) -> int:
        """How many examples operands begin with, which may be fewer; 0 if not."""

    of_examples: ClassVar[tuple[str, ...]]
    """The operands that have an entry for each of them."""

    @abc.abstractmethod
    def is_held(self, what: str, draw: Drawn) -> bool:
        """Whether something is promised of that result of such numbers."""

    def terms(self, what: str, exact: Exact) -> int:
        """How many numbers that result is a sum of."""
        del what
        return exact.terms

    def counted(self, terms: int) -> tuple[int, int]:
        """Operations, and terms of a sum, that a result's bound counts: the oracle of 64 bits errs as much as it."""
        operations = 2 * tolerance.OPERATIONS
        return (2 * operations, 4 * terms) if self.of_64_bits else (operations, terms)

    # ---- what most have alike --------------------------------------------------------------------------------------

    @property
    def computed(self) -> np.dtype:
        """The type that it is computed in."""
        return tolerance.arithmetic(np.float64 if self.of_64_bits else self.dtype)

    @property
    def rounded_to(self) -> np.dtype:
        """The narrowest type of a gradient, of which a derivative along tangents is made."""
        return np.dtype(self.dtype) if self.dtype in ("bfloat16", "float16") else self.computed

    @property
    def places(self) -> tuple[str, ...]:
        """What the function is given by its place, as it is written."""
        return tuple(f"operands[{name!r}]" for name in self.arguments)

    @property
    def source(self) -> str:
        """The call, as a function of operands by name."""
        places = list(self.places)
        before = inspect.getsource(self.objective) if self.objective else ""
        if self.objective:
            places.insert(3, self.objective.__name__)
        names = f"name not in {self.arguments!r}"
        return (
            f"{before}def loss(operands):\n    options = {{name: x for name, x in operands.items() if {names}}}\n"
            f"    return jaxloss.{self.function}({', '.join(places)}, **options, **{self.static!r}){self.accessor}\n"
        )

    @functools.cached_property
    def loss(self) -> Callable:
        """The call, of what a find's program is given too."""
        namespace: dict[str, Any] = {"jaxloss": jaxloss}
        exec(self.source, namespace)
        return namespace["loss"]

    def halves(self, draw: Drawn) -> Iterator[tuple["Configuration", Drawn]]:
        """The same with fewer examples."""
        count = self.examples
        if count < 2:
            return
        for half in (slice(0, count // 2), slice(count // 2, count)):

            def cut(name, x, half=half):
                return x[:, half] if name in self.of_examples and x.ndim > 1 and x.shape[1] == count else x

            operands = {name: cut(name, x) for name, x in draw.operands.items()}
            tangents = {name: cut(name, x) for name, x in draw.tangents.items()}
            cotangent = draw.cotangent[:, half] if draw.cotangent.ndim > 1 else draw.cotangent
            shapes = {name: operands[name].shape[1:] for name in self.shapes}
            fewer = dataclasses.replace(self, shape=operands["x"].shape[1:], shapes=shapes)
            yield fewer, Drawn(draw.pattern, operands, tangents, cotangent)

    def simpler(self, draw: Drawn) -> Iterator[tuple["Configuration", Drawn]]:
        """Calls with an option less, or fewer examples."""
        for name in self.numbers:
            if name not in self.required:
                fewer = tuple(other for other in self.numbers if other != name)
                yield dataclasses.replace(self, numbers=fewer), draw.without(name)
        for name in self.shapes:
            if name == "where" and draw.pattern == "masked tokens":  # of which the oracle says nothing without it
                continue
            fewer = {other: shape for other, shape in self.shapes.items() if other != name}
            yield dataclasses.replace(self, shapes=fewer), draw.without(name)
        if self.with_normalizer:
            yield dataclasses.replace(self, with_normalizer=False), draw.without("normalizer")
        for name in ("clip", "ignore_index"):
            if name in self.static:
                fewer = {other: x for other, x in self.static.items() if other != name}
                yield dataclasses.replace(self, static=fewer), draw
        yield from self.halves(draw)


def choices(rng: np.random.Generator) -> tuple[Callable[[float], bool], Callable[[Sequence], Any]]:
    """Whether something of so much probability is so, and one of some values."""

    def chance(share: float) -> bool:
        return bool(rng.random() < share)

    def pick(values: Sequence) -> Any:
        return values[rng.integers(len(values))]

    return chance, pick


def spacing(dtype) -> float:
    """How far numbers of that type are apart."""
    return float(ml_dtypes.finfo(dtype).eps)


def is_real(array: np.ndarray) -> bool:
    """Whether it has a floating-point type."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def repeated(number, count: int) -> np.ndarray:
    """An option of that many calls."""
    return np.repeat(np.asarray(number)[None], count, 0)


def exact_number(option: np.ndarray):
    """An option of one call, as oracles take it."""
    return option.astype(np.float64) if option.ndim else float(option)


def drawn_multipliers(
    configuration: Configuration, rng: np.random.Generator, count: int, pattern: str
) -> dict[str, np.ndarray]:
    """Masks, weights and normalizers of calls."""
    found = {}
    if "where" in configuration.shapes:
        shape = configuration.shapes["where"]
        share = rng.choice([0.0, 0.5, 0.8, 1.0], (count, *(1,) * len(shape)))
        found["where"] = rng.random((count, *shape)) < share
    if "weights" in configuration.shapes:
        # 0 × ∞ is nothing that the losses promise anything about.
        zeros = [0.0, -0.0] if pattern in ("ordinary", "tiny", "ties") else []
        numbers = [*zeros, 0.5, 1.0, 3.0, *([-2.0] if pattern != "ends" else [])]
        found["weights"] = rng.choice(numbers, (count, *configuration.shapes["weights"])).astype("float32")
    if configuration.with_normalizer:
        found["normalizer"] = rng.uniform(0.5, 20, count).astype(np.float32)
    return found


def drawn(
    rng: np.random.Generator, pattern: str, operands: dict[str, np.ndarray], moved: tuple[str, ...], units
) -> Drawn:
    """With tangents of the operands that are `moved`, and a cotangent for each of `units`."""
    operands = {name: np.asarray(operands[name]) for name in sorted(operands)}
    tangents = {
        name: rng.standard_normal(operand.shape).astype(operand.dtype)
        for name, operand in operands.items()
        if is_real(operand) and name in moved
    }
    # Powers of two: what was rounded to 16 bits is multiplied by them exactly.
    cotangent = rng.choice([0.5, 1.0, -1.0, 2.0], (len(operands["x"]), *units)).astype(np.float32)
    return Drawn(pattern, operands, tangents, cotangent)


def patterned(pattern: str, rng: np.random.Generator, x: np.ndarray, dtype: str, infinite: bool = True) -> np.ndarray:
    """The numbers of calls, along the leading axis, as the pattern makes them."""
    finfo = ml_dtypes.finfo(dtype)
    # Of float64 those of which the oracle, in the same type, has squares; of the others those that options do not take
    # beyond the end.
    most, least = (
        min(float(finfo.max) / (1 if dtype == "float16" else 1e4), 1e100),
        max(float(finfo.smallest_normal), 1e-100),
    )
    of_call = (len(x), *(1,) * (x.ndim - 1))
    match pattern:
        case "wide":
            return np.clip(x * 10 ** rng.uniform(0, 1.5 if dtype == "float16" else 3.5, of_call), -most, most)
        case "tiny":  # so that differences are not flushed to zero
            return x * np.maximum(1e4 * least, 10 ** rng.uniform(-40, -1, of_call))
        case "ties":
            return np.round(x)
        case "special":
            numbers = [np.nan, np.inf, -np.inf, 0.0, -0.0, 4 * least, 87.0, -104.0, 50.0 if dtype == "float16" else 1e4]
            if not infinite:
                numbers.remove(np.inf)
            return np.where(rng.random(x.shape) < 0.1, rng.choice(numbers, x.shape), x)
        case "masked classes":
            return np.where(rng.random(x.shape) < 0.3, -np.inf, x)
        case "ends":
            return np.where(rng.random(x.shape) < 0.3, rng.choice([most, -most, most / 2], x.shape), x)
    raise ValueError(pattern)


def scaled(pattern: str, rng: np.random.Generator, x: np.ndarray, dtype: str) -> np.ndarray:
    """The factors of a product as the pattern makes them, in their type: all of them larger or smaller, or rounded."""
    match pattern:
        case "wide":
            x = x * 10 ** rng.uniform(0, 0.5 if dtype == "float16" else 1.5)
        case "tiny":
            x = x * 10 ** rng.uniform(-3, -1)
        case "ties":
            x = np.round(x)
    return x.astype(dtype)
