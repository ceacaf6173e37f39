"""The options of cross entropy as tests give them: an entry for each of the table in `jaxloss/_spec.py`.

What tests need to know besides the values (whether an option may be traced, which numbers are out of its range, which kind
of target it is for) follows from that table.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxloss._spec import OPTIONS

TARGETS = ("indices", "probabilities", "mixed")


@dataclasses.dataclass(frozen=True)
class Sample:
    """What an option is in tests.

    Attributes:
        on: a number that every floating-point type holds, or something else where the option is no number.
        neutral: what changes nothing in a formula that has the option.
    """

    on: Any
    neutral: Any


SAMPLES = {
    "class_weights": Sample(lambda classes: np.linspace(0.5, 2, classes, dtype=np.float32), np.ones),
    "label_smoothing": Sample(0.125, 0.0),
    "z_loss": Sample(0.0625, 0.0),
    "softcap": Sample(4.0, 1e9),
    "margin": Sample(0.75, 0.0),
    "temperature": Sample(1.5, 1.0),
    "num_classes": Sample(lambda classes: max(1, classes - 7), lambda classes: classes),
}
ARGUMENTS = tuple(name for name in OPTIONS if name in SAMPLES)
"""What losses have arguments for; what has no sample is missed by `test_option_table.py` alone."""

NUMBERS = tuple(name for name in ARGUMENTS if OPTIONS[name].interval)
"""Those that are numbers, which may be traced."""
TRACED = tuple(name for name in ARGUMENTS if OPTIONS[name].interval or OPTIONS[name].per_class)


def _of(value: Any, classes: int) -> Any:
    return value(classes) if callable(value) else value


def applies(name: str, kind: str) -> bool:
    """Whether an option is for that kind of target."""
    return kind == "indices" or name not in OPTIONS or OPTIONS[name].changes != "label"


def on(names, classes: int, kind: str = "indices") -> dict[str, Any]:
    """Those of the options that are for that kind of target, on; numbers as float32 has them."""
    values = {name: _of(SAMPLES[name].on, classes) for name in names if applies(name, kind)}
    return {name: np.float32(value) if name in NUMBERS else value for name, value in values.items()}


def numbers(kind: str = "indices") -> dict[str, float]:
    """The options that are numbers and for that kind of target, on, as Python's numbers."""
    return {name: SAMPLES[name].on for name in NUMBERS if applies(name, kind)}


def neutral(classes: int) -> dict[str, Any]:
    """All options with values that change nothing."""
    return {name: _of(sample.neutral, classes) for name, sample in SAMPLES.items()}


def outside(name: str) -> list[float]:
    """Numbers that an option may not be."""
    interval = OPTIONS[name].interval
    found = [math.nan, math.inf]
    if math.isfinite(interval.least):
        found += [interval.least - 1] if interval.has_ends else [interval.least - 1, interval.least]
    else:
        found += [-math.inf]
    if math.isfinite(interval.most):
        found += [interval.most + 0.5] if interval.has_ends else [interval.most, interval.most + 0.5]
    return found
