"""Random calls of `linear_objective` with objectives of pairs of sequences: functions of by how much one is preferred.

Of a pair, that is the margin m: a sum of log-probabilities times a constant, less what a reference has of them. An
error of it is one of the slope, and so of every gradient, as large as the second derivative says.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

import losses
from trust import calls
from trust.calls import TRANSFORMS
from trust.exact import Exact
from trust.linear_losses import CHANGED, CLASSES, FEATURES, LinearConfiguration, Subject
from trust.statistics import log_prob

Array = np.ndarray


def _logistic(smoothing: float) -> Callable[[Array], tuple[Array, Array, Array]]:
    """−(1 − ε) log σ(m) − ε log σ(−m), and its first two derivatives."""

    def of_margin(m: Array) -> tuple[Array, Array, Array]:
        with np.errstate(over="ignore"):
            falling, rising = 1 / (1 + np.exp(m)), 1 / (1 + np.exp(-m))
        value = (1 - smoothing) * np.logaddexp(0, -m) + smoothing * np.logaddexp(0, m)
        return value, smoothing * rising - (1 - smoothing) * falling, rising * falling

    return of_margin


def _square(m: Array) -> tuple[Array, Array, Array]:
    return m**2, 2 * m, np.full_like(m, 2)


@dataclasses.dataclass(frozen=True)
class Preference:
    """An objective of `jaxloss.objectives`.

    Attributes:
        text: how it is made.
        of_margin: its value for a margin, and the first two derivatives.
        scale: of the log-probabilities in the margin.
        less: what is subtracted from it.
        of_means: log-probabilities are averaged over a sequence and not summed, and there is no reference.
    """

    text: str
    of_margin: Callable[[Array], tuple[Array, Array, Array]]
    scale: float = 1.0
    less: float = 0.0
    of_means: bool = False


PREFERENCES = (
    Preference("dpo(beta=0.5)", _logistic(0.0), 0.5),
    Preference("dpo(beta=0.1, smoothing=0.25)", _logistic(0.25), 0.1),
    Preference("ipo(tau=0.5)", _square, less=1.0),
    Preference("simpo(beta=2.0, gamma=0.5)", _logistic(0.0), 2.0, 0.5, of_means=True),
)
PAIRS = ((2, 3), (4, 1), (4, 9), (6, 2))
SUBJECT = Subject("linear_objective", log_prob, CHANGED, unreduced=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfiguration(LinearConfiguration):
    """A call with one of them; the chosen sequence comes before the rejected one."""

    preference: Preference

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("x", "kernel", "labels", *(() if self.preference.of_means else ("data",)))

    @property
    def places(self) -> tuple[str, ...]:
        hidden, kernel, labels, *data = super(LinearConfiguration, self).places
        return hidden, kernel, labels, f"jaxloss.objectives.{self.preference.text}", *data

    @property
    def is_objective(self) -> bool:
        return True

    @property
    def examples(self) -> int:  # of half as many, pairs are not pairs
        return 0

    def with_objective(
        self, rest: Exact, of_label: Callable[..., Exact], given: dict[str, Array], off: Array, cotangent: Array
    ) -> Exact:
        of_tokens, size = of_label(reduction="none", cotangent=np.ones(off.shape)).value
        counted = size > 0
        sign = np.where(np.arange(off.shape[1]) % 2, -1, 1)[:, None]
        factor = self.preference.scale * sign * np.ones(counted.shape)
        if self.preference.of_means:
            factor = factor / np.maximum(counted.sum(-1, keepdims=True), 1)
        margin, of_margin = (factor * of_tokens).sum(-1), (abs(factor) * size * (1 + off)).sum(-1)
        if "data" in given:
            reference = given["data"].astype(np.float64) * self.preference.scale
            margin, of_margin = margin - sign[:, 0] * reference, of_margin + abs(reference)

        def of_pairs(x: Array) -> Array:
            return x[:, 0::2] + x[:, 1::2]

        def of_sequences(x: Array) -> Array:
            return np.repeat(x, 2, 1)

        there = of_pairs(counted.any(-1))
        less = self.preference.less
        margin, of_margin = of_pairs(margin) - less, of_pairs(of_margin) + abs(less)
        value, slope, curvature = (np.where(there, part, 0) for part in self.preference.of_margin(margin))
        wrong = abs(slope) + curvature * of_margin  # by what the slope errs
        pulled = of_label(weights=of_sequences(slope)[..., None] * factor).gradients["x"]
        gradients = {
            "a": rest.gradients["a"],
            "x": (pulled[0], of_label(weights=of_sequences(wrong)[..., None] * abs(factor)).gradients["x"][1]),
        }
        if "data" in given:
            times = self.preference.scale * cotangent.astype(np.float64)[:, None]
            gradients["data"] = -times * sign[:, 0] * of_sequences(slope), abs(times) * of_sequences(wrong)
        return Exact((value.sum(1), (value + abs(slope) * of_margin).sum(1)), gradients, rest.terms)


def of_preferences(rng: np.random.Generator, by_formula: bool) -> PreferenceConfiguration:
    """A random one."""
    chance, pick = calls.choices(rng)
    dtype = pick(losses.FLOATS)
    tokens = pick(PAIRS)
    static = {"kernel_axis": pick((-1, 0)), "chunk_size": pick((None, 1, 4, 8)), "precision": "highest"}
    if chance(0.3):
        static["ignore_index"] = pick((-1, 0, 1))
    if chance(0.3):
        static["shift"] = 1
    return PreferenceConfiguration(
        preference=pick(PREFERENCES),
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
        shapes={"where": tokens} if chance(0.35) else {},
        with_normalizer=False,
        transform=pick(TRANSFORMS),
        by_formula=by_formula,
    )
