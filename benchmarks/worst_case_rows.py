"""Rows drawn to find trouble: small and large numbers, offsets, a class far ahead, ties, close distributions."""

import dataclasses
from collections.abc import Callable

import numpy as np

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Rows of several kinds, each with the size that it was drawn with."""

    numbers: Array
    names: tuple[str, ...]
    kind: Array
    size: Array

    def words(self, row: int) -> str:
        name, size = self.names[self.kind[row]], self.size[row]
        return name if np.isnan(size) else f"{name} {size:.2g}"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Predictions and targets in their types, and how both were drawn."""

    x: Array
    a: Array | None
    mixtures: tuple[Mixture, ...]

    def words(self, row: int) -> str:
        return ", ".join(mixture.words(row) for mixture in self.mixtures)


def log_uniform(random, low: float, high: float, count: int) -> Array:
    """From 10^low to 10^high."""
    return 10 ** random.uniform(low, high, count)


Kinds = dict[str, tuple[float, Callable[[Array], tuple[Array, Array | float]]]]


def mixture(random, count: int, kinds: Kinds) -> Mixture:
    """Rows of kinds by their shares; each kind makes those at some indices, and says their sizes."""
    shares = np.array([share for share, _ in kinds.values()])
    kind = random.choice(len(kinds), count, p=shares / shares.sum())
    made = []
    for i, (_, rows_of) in enumerate(kinds.values()):
        at = np.flatnonzero(kind == i)
        made.append((at, *rows_of(at)))
    numbers, sizes = np.empty((count, *made[0][1].shape[1:]), made[0][1].dtype), np.full(count, np.nan)
    for at, rows, size in made:
        numbers[at], sizes[at] = rows, size
    return Mixture(numbers, tuple(kinds), kind, sizes)


def stored(numbers: Array, dtype: str) -> Array:
    """In that type; 0 for what is below the smallest normal number of float32, which some processors take for 0."""
    narrow = numbers.astype(np.float32).astype(dtype)
    narrow[np.abs(narrow.astype(np.float32)) < np.finfo(np.float32).smallest_normal] = 0
    return narrow


def wide(numbers: Array) -> Array:
    return numbers.astype(np.float64)


# ---- predictions -----------------------------------------------------------------------------------------------------


def logits(random, count: int, width: int) -> Mixture:
    def normal(at):
        return random.standard_normal((len(at), width))

    def spread(at):
        size = log_uniform(random, -4, 2, len(at))
        return size[:, None] * normal(at), size

    def offset(at):
        size = log_uniform(random, 0, 4, len(at)) * random.choice([-1, 1], len(at))
        return size[:, None] + log_uniform(random, -1, 1, len(at))[:, None] * normal(at), size

    def lead(at):
        """Of others within 3 of each other."""
        size = np.where(
            random.random(len(at)) < 0.7, random.uniform(0, 80, len(at)), log_uniform(random, -4, 1, len(at))
        )
        rows = random.uniform(-3, 0, (len(at), width)) * random.integers(0, 2, (len(at), 1))
        rows[np.arange(len(at)), random.integers(0, width, len(at))] = size
        return rows, size

    def ties(at):
        size = log_uniform(random, -2, 1, len(at))
        return size[:, None] * np.round(normal(at) * random.integers(0, 3, (len(at), 1))), size

    def near_ties(at):
        """Of the two largest."""
        size = log_uniform(random, -7, -1, len(at))
        rows = log_uniform(random, -1, 1, len(at))[:, None] * normal(at)
        row, largest = np.arange(len(at)), rows.argmax(1)
        rows[row, (largest + random.integers(1, width, len(at))) % width] = rows[row, largest] * (1 - size)
        return rows, size

    kinds = {
        "spread": (3, spread),
        "offset": (2, offset),
        "lead": (4, lead),
        "ties": (1, ties),
        "near tie": (1, near_ties),
    }
    return mixture(random, count, kinds)


def numbers(random, count: int, width: int) -> Mixture:
    def spread(at):
        size = log_uniform(random, -4, 2, len(at))
        return size[:, None] * random.standard_normal((len(at), width)), size

    def offset(at):
        size = log_uniform(random, 0, 4, len(at)) * random.choice([-1, 1], len(at))
        return size[:, None] + 3 * random.standard_normal((len(at), width)), size

    return mixture(random, count, {"spread": (3, spread), "offset": (1, offset)})


def binary_logits(random, count: int, width: int) -> Mixture:
    def spread(at):
        size = log_uniform(random, -4, 2, len(at))
        return size[:, None] * random.standard_normal((len(at), width)), size

    def even(at):
        return random.uniform(-100, 100, (len(at), width)), np.nan

    return mixture(random, count, {"spread": (1, spread), "−100 to 100": (1, even)})


# ---- targets, of predictions as they are stored ----------------------------------------------------------------------


def near_numbers(random, x: Array) -> Mixture:
    def normal(at):
        return random.standard_normal((len(at), x.shape[1]))

    def distance(at):
        size = log_uniform(random, -6, 2, len(at))
        return x[at] + size[:, None] * normal(at), size

    def relative(at):
        size = log_uniform(random, -7, 0, len(at))
        return x[at] * (1 + size[:, None] * normal(at)), size

    def any_number(at):
        size = log_uniform(random, -4, 2, len(at))
        return size[:, None] * normal(at), size

    def equal(at):
        return x[at], np.nan

    kinds = {
        "distance": (5, distance),
        "relative distance": (3, relative),
        "target": (2, any_number),
        "equal": (0.1, equal),
    }
    return mixture(random, len(x), kinds)


def hard_shares(random, x: Array) -> Mixture:
    return mixture(random, len(x), {"": (1, lambda at: (random.integers(0, 2, x[at].shape).astype(float), np.nan))})


def shares(random, x: Array) -> Mixture:
    def even(at):
        return random.random(x[at].shape), np.nan

    def near_0(at):
        size = log_uniform(random, -9, 0, len(at))
        return size[:, None] * random.random(x[at].shape), size

    def near_1(at):
        rows, size = near_0(at)
        return 1 - rows, size

    def near_prediction(at):
        size = log_uniform(random, -7, -1, len(at))
        sigmoid = 1 / (1 + np.exp(-x[at]))
        return np.clip(sigmoid * (1 + size[:, None] * random.standard_normal(x[at].shape)), 0, 1), size

    kinds = {
        "any target": (1, even),
        "target near 0": (1, near_0),
        "target near 1": (1, near_1),
        "target near σ(x)": (1, near_prediction),
    }
    return mixture(random, len(x), kinds)


def labels(random, x: Array) -> Mixture:
    kinds = {
        "the largest's": (6, lambda at: (x[at].argmax(1).astype(np.int32), np.nan)),
        "any label": (3, lambda at: (random.integers(0, x.shape[1], len(at), np.int32), np.nan)),
        "the smallest's": (1, lambda at: (x[at].argmin(1).astype(np.int32), np.nan)),
    }
    return mixture(random, len(x), kinds)


def _softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def probabilities(random, x: Array) -> Mixture:
    classes = x.shape[1]

    def one_of(at):
        """The largest logit's class, or any."""
        return np.where(random.random(len(at)) < 0.8, x[at].argmax(1), random.integers(0, classes, len(at)))

    def even(at):
        rows = random.random(x[at].shape)
        return rows / rows.sum(1, keepdims=True), np.nan

    def one_hot(at):
        return np.eye(classes)[one_of(at)] if classes < 999 else _one_hot(one_of(at), classes), np.nan

    def smoothed(at):
        size = log_uniform(random, -9, -1, len(at))
        rows = np.broadcast_to(size[:, None] / (classes - 1), x[at].shape).copy()
        rows[np.arange(len(at)), one_of(at)] = 1 - size
        return rows, size

    def close(at):
        size = log_uniform(random, -6, 0, len(at))
        return _softmax(x[at] + size[:, None] * random.standard_normal(x[at].shape)), size

    def sparse(at):
        rows = np.exp(3 * random.standard_normal(x[at].shape)) * random.integers(0, 2, x[at].shape)
        return rows / np.maximum(rows.sum(1, keepdims=True), 1e-9), np.nan

    kinds = {
        "any target": (1, even),
        "one-hot": (2, one_hot),
        "smoothed by": (2, smoothed),
        "distance": (3, close),
        "sparse": (1, sparse),
    }
    return mixture(random, len(x), kinds)


def _one_hot(index: Array, classes: int) -> Array:
    rows = np.zeros((len(index), classes))
    rows[np.arange(len(index)), index] = 1
    return rows


def teacher_logits(random, x: Array) -> Mixture:
    def moved(at, size):
        return x[at] + size[:, None] * random.standard_normal(x[at].shape)

    def distance(at):
        size = log_uniform(random, -6, 0, len(at))
        return moved(at, size), size

    def shifted(at):
        size = log_uniform(random, -6, 0, len(at))
        by = log_uniform(random, -2, 3, len(at)) * random.choice([-1, 1], len(at))
        return moved(at, size) + by[:, None], size

    def any_logits(at):
        return logits(random, len(at), x.shape[1]).numbers, np.nan

    kinds = {"distance": (5, distance), "shifted, distance": (1, shifted), "any teacher": (2, any_logits)}
    return mixture(random, len(x), kinds)


def drawn(random, count: int, width: int, dtype: str, predictions: Callable, targets: Callable | None) -> Drawn:
    """Rows of that type; class indices keep theirs."""
    of_x = predictions(random, count, width)
    x = stored(of_x.numbers, dtype)
    if targets is None:
        return Drawn(x, None, (of_x,))
    of_a = targets(random, wide(x))
    a = of_a.numbers if of_a.numbers.dtype == np.int32 else stored(of_a.numbers, dtype)
    return Drawn(x, a, (of_x, of_a))
