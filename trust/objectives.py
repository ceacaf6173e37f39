"""Random calls of `linear_objective` with the objectives of `jaxloss.objectives`.

What an objective makes of tokens is a function of numbers that err: its slopes err with them, and with these every
gradient.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

import losses
from trust import calls, policy_objectives, statistics
from trust.balls import Ball, Tokens
from trust.calls import TRANSFORMS, Drawn
from trust.exact import Exact
from trust.linear_losses import CHANGED, CLASSES, FEATURES, LinearConfiguration, Subject
from trust.named_objectives import OBJECTIVES, Named

Array = np.ndarray

BOOLEAN = "desirable"
"""The data that is no number."""

SEQUENCES = ((0, 3), (1, 1), (2, 3), (3, 5), (4, 1), (4, 9), (6, 2), (7,), (2, 2, 3), (3, 0))
SUBJECT = Subject("linear_objective", statistics.log_prob, CHANGED, unreduced=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfiguration(LinearConfiguration):
    """A call with one of them.

    Attributes:
        named: the objective.
        compiled: those of its numbers, and its flags, that are compiled.
        traced: those of its numbers that are operands.
        of_sequences: the data that there is one of for each sequence; of the other there is one for each token.
        data_dtype: of the data that are numbers.
    """

    of_examples: ClassVar = (
        *LinearConfiguration.of_examples,
        *dict.fromkeys(name for of in OBJECTIVES for name in of.data),
    )

    named: Named
    compiled: Mapping[str, Any]
    traced: tuple[str, ...]
    of_sequences: tuple[str, ...]
    data_dtype: str

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("x", "kernel", "labels", *self.named.data, *self.traced)

    @property
    def places(self) -> tuple[str, ...]:
        hidden, kernel, labels, *data = (f"operands[{name!r}]" for name in ("x", "kernel", "labels", *self.named.data))
        numbers = [f"{name}={number!r}" for name, number in self.compiled.items()]
        numbers += [f"{name}=operands[{name!r}]" for name in self.traced]
        return hidden, kernel, labels, f"jaxloss.objectives.{self.named.name}({', '.join(numbers)})", *data

    def __str__(self) -> str:
        numbers = {**self.compiled, **dict.fromkeys(self.traced, "…")}
        data = {name: "sequences" if name in self.of_sequences else "tokens" for name in self.named.data}
        return f"{super().__str__()} {self.named.name} {numbers} {data} {self.data_dtype}"

    @property
    def is_objective(self) -> bool:
        return True

    @property
    def examples(self) -> int:  # of half as many, pairs and groups are not whole
        whole = not self.named.pairs and "group" not in self.static and len(self.tokens) > 1
        return self.tokens[0] if whole else 0

    @property
    def moved(self) -> tuple[str, ...]:
        return *super().moved, *self.named.data, *self.traced

    @property
    def rounded_to(self) -> np.dtype:
        types = (super().rounded_to, *([jnp.dtype(self.data_dtype)] if self.named.data else []))
        return max(types, key=calls.spacing)

    # ---- operands ----------------------------------------------------------------------------------------------------

    def drawn_data(self, rng: np.random.Generator, count: int, pattern: str, operands: dict) -> dict[str, Array]:
        """Advantages, some of them 0, and log-probabilities of policies that are near, or as near as a clip allows."""
        mask = self._mask(operands)
        log_prob = self.log_prob(operands)
        found: dict[str, Array] = {}
        for name in self.named.data:
            whole = name in self.of_sequences
            shape = (count, *(self.tokens[:-1] if whole else self.tokens))
            x = rng.standard_normal(shape)
            if name == BOOLEAN:
                found[name] = x > 0
                continue
            if name == "advantages":
                x = np.where(rng.random(shape) < 0.15, 0, x)
            elif name == "divergence":
                x = abs(x)
            else:
                x = (log_prob.sum(-1) if whole else log_prob) + x * rng.choice(self.named.near)
            if name == "old_log_prob" and pattern == "wide":
                x = x - 200 * self._beyond(rng, found["advantages"].astype(np.float64), shape)
            if pattern == "masked tokens":  # at which nothing looks
                x = np.where(self._blocks(mask) if whole else mask, x, np.nan)
            found[name] = x.astype(self.data_dtype)
        for name in self.traced:
            found[name] = calls.repeated(np.float32(rng.choice(self.named.numbers[name])), count)
        return found

    def _beyond(self, rng: np.random.Generator, advantages: Array, shape: tuple[int, ...]) -> Array:
        """The sides of the clip on which it holds, of some tokens, or of some sequences whose tokens have one ratio."""
        if self.named.equation is policy_objectives.gspo or advantages.ndim < len(shape):
            advantages = advantages[..., None]
        return np.nan_to_num(np.sign(advantages)) * (rng.random(advantages.shape) < 0.1)

    def _mask(self, given: dict[str, Array]) -> Array:
        """The tokens that count."""
        where, labels = self._targets(given, None)
        mask = np.ones(labels.shape, bool) if where is None else np.broadcast_to(where, labels.shape)
        return mask & (labels != self.static.get("ignore_index", -1))

    # ---- the oracle --------------------------------------------------------------------------------------------------

    def with_objective(self, of_rows: Callable[..., Exact], draw: Drawn, off: Array) -> Exact:
        given, mask = draw.operands, self._mask(draw.operands)
        terms = max(1, math.prod(self.tokens) * self.classes)
        tokens = self._tokens(of_rows, draw, off, terms)
        units = tokens.log_prob.unit / self._unit(terms, self.computed)
        data = {name: self._data(name, given[name], mask) for name in self.named.data}
        numbers = {**self.compiled, **{name: float(given[name][0]) for name in self.traced}}
        found = self.named.equation(tokens, data, **numbers)
        n = given["normalizer"].astype(np.float64) if "normalizer" in given else self._counted(mask)
        factor = np.where(n == 0, 0, 1 / np.where(n == 0, 1, n))
        times = factor * draw.cotangent

        of_entropy = np.broadcast_to(found.of_entropy, mask.shape)
        slopes = {
            statistics.log_prob: self._rounded(found.of_log_prob.at, units * found.of_log_prob.size, self.computed),
            statistics.entropy: (of_entropy, abs(of_entropy)),
        }
        of_token = factor.reshape(len(mask), *(1,) * len(self.tokens))
        of_logits = [
            [of_rows(elements, weights=x * of_token).gradients["x"] for x in slope]
            for elements, slope in slopes.items()
        ]
        gradients = {"x": (sum(at[0] for at, _ in of_logits), sum(size[1] for _, size in of_logits))}
        for name, ball in found.of_data.items():
            along = times.reshape(len(times), *(1,) * (ball.at.ndim - 1))
            at, size = self._rounded(ball.at, units * ball.size, given[name].dtype)
            gradients[name] = along * at, abs(along) * size
        for name in self.traced:
            of_number = _total(found.of_numbers[name])
            gradients[name] = times * of_number.at, units * abs(times) * of_number.size
        value = _total(found.value)
        if "normalizer" in given:
            gradients["normalizer"] = -value.at * factor * times, units * value.size * abs(factor * times)
        return Exact((value.at * factor, units * value.size * abs(factor)), gradients, terms)

    def _data(self, name: str, x: Array, mask: Array) -> Array:
        """Data, as equations take it: 0 of what does not count."""
        if name == BOOLEAN:
            return x
        return np.where(self._blocks(mask) if name in self.of_sequences else mask, x, 0).astype(np.float64)

    def _blocks(self, mask: Array) -> Array:
        """The sequences that have a token, or whose pair has one."""
        there = mask.any(-1)
        if not self.named.pairs:
            return there
        either = there[..., 0::2] | there[..., 1::2]
        return np.repeat(either, 2, -1)

    def _rounded(self, at: Array, size: Array, dtype) -> tuple[Array, Array]:
        """What is computed of statistics, when it is rounded to 16 bits: wherever in the ball it is."""
        if dtype.itemsize == 2:
            size = size * (1 + calls.spacing(dtype)) + (abs(at) if dtype == self.computed else 0)
        return at, size

    def _unit(self, terms: int, dtype) -> float:
        """By what the fuzz lets a result of magnitude 1 be off that is computed in that type."""
        operations, counted = self.counted(terms)
        return (operations + math.sqrt(counted)) * calls.spacing(dtype)

    def _tokens(self, of_rows: Callable[..., Exact], draw: Drawn, off: Array, terms: int) -> Tokens:
        """The statistics of tokens, of logits that err by `off`: a log-probability by at most twice as much.

        Logits of 16 bits are rounded to them twice, with a bias. All else is computed in float32.
        """
        unit, mask = self._unit(terms, np.result_type(np.float32, self.computed)), self._mask(draw.operands)
        if self.computed.itemsize == 2:
            off = off * (1 + calls.spacing(self.computed) / unit)

        def ball(elements, moves: float) -> Ball:
            at, size = of_rows(elements, reduction="none", cotangent=np.ones(mask.shape)).value
            return Ball(at, size + moves * off * mask, unit)

        log_prob, entropy = ball(statistics.log_prob, 2.0), Ball(np.zeros(mask.shape), np.zeros(mask.shape), unit)
        if "entropy_bonus" in self.named.numbers:
            entropy = ball(statistics.entropy, 0.0)
            entropy = dataclasses.replace(entropy, size=entropy.size + 2 * entropy.at * off * mask)
        stopped = dataclasses.replace(log_prob, at=self.log_prob(draw.operands)) if self.named.stops else log_prob
        return Tokens(log_prob, entropy, mask, stopped)

    def _counted(self, mask: Array) -> Array:
        """What the sum is divided by: 1, or how many there are that have a token."""
        own = tuple(range(1, mask.ndim))
        match self.static.get("normalizer"):
            case "tokens":
                return mask.sum(own)
            case "sequences":
                return mask.any(-1).sum(own[:-1])
            case "groups":
                there = mask.any(-1)
                group = self.static.get("group", 2 if self.named.pairs else 1)
                return there.reshape(len(mask), -1, group).any(-1).sum(-1)
        return np.ones(len(mask))

    def _moved(self, draw: Drawn, size: Array, own) -> Array:
        """The value has in its own bound by what it errs as logits do."""
        del draw, size, own
        return np.zeros(1)


def _total(ball: Ball) -> Ball:
    """Of each call."""
    return ball.sum(tuple(range(1, ball.at.ndim)))


def of_objectives(
    rng: np.random.Generator, by_formula: bool, objectives: Sequence[Named] = OBJECTIVES
) -> ObjectiveConfiguration:
    """A random one."""
    chance, pick = calls.choices(rng)
    named, dtype = pick(objectives), pick(losses.FLOATS)
    tokens = pick([shape for shape in SEQUENCES if not named.pairs or (len(shape) > 1 and shape[-2] % 2 == 0)])
    static = {"kernel_axis": pick((-1, 0)), "chunk_size": pick((None, 1, 4, 8)), "precision": "highest"}
    if chance(0.3):
        static["ignore_index"] = pick((-1, 0, 1))
    if chance(0.3):
        static["shift"] = 1
    numbers = [name for name in named.numbers if name in named.required or chance(0.6)]
    traced = tuple(sorted(name for name in numbers if chance(0.4)))
    compiled = {name: pick(named.numbers[name]) for name in numbers if name not in traced}
    if named.equation is policy_objectives.grpo and chance(0.5):
        compiled["length_normalized"] = False
    single = (named.single or compiled.get("length_normalized") is False) and chance(0.25)
    normalizers = ["tokens"] if single else ["tokens", "sequences", "groups"]
    if single:
        static["per"] = "token"
    elif not named.pairs and len(tokens) > 1 and tokens[-2] % 2 == 0 and chance(0.25):
        static["group"] = 2
    with_normalizer = chance(0.2)
    if not with_normalizer and chance(0.7):
        static["normalizer"] = pick(normalizers)
    kinds = {name: [kind for kind in of if kind == "tokens" or not single] for name, of in named.data.items()}
    return ObjectiveConfiguration(
        named=named,
        compiled=compiled,
        traced=traced,
        of_sequences=tuple(name for name, of in kinds.items() if pick(of) == "sequences"),
        data_dtype=dtype if chance(0.3) else "float32",
        function=SUBJECT.name,
        subject=SUBJECT,
        shape=(*tokens, pick(FEATURES)),
        classes=pick(CLASSES),
        dtype=dtype,
        kernel_dtype=pick(losses.FLOATS) if chance(0.25) else dtype,
        with_bias=chance(0.4),
        teacher_features=0,
        static=static,
        numbers=tuple(sorted(name for name in SUBJECT.optional if chance(0.3))),
        required=(),
        shapes={"where": tokens} if chance(0.4) else {},
        with_normalizer=with_normalizer,
        transform=pick(TRANSFORMS),
        by_formula=by_formula,
    )
