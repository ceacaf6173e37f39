"""What the options of the losses may be: random numbers within their range, and special ones."""

from collections.abc import Callable
from typing import Any

import numpy as np

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
    "soft_weight": _between(0, 2),
    "hard_weight": _between(0, 2),
}
"""What each option may be, within its range."""
