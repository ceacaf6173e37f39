"""Ball arithmetic: exact numbers, each with how far a computed one may be from it, and functions of them."""

import dataclasses
from collections.abc import Callable

import numpy as np

Array = np.ndarray

MOST = 1e100
"""A size that bounds nothing, of which sums and products are finite."""


@dataclasses.dataclass(frozen=True)
class Ball:
    """Numbers that are somewhere within `unit` times `size` of `at`.

    Attributes:
        at: the exact numbers.
        size: at least their magnitude, by which an operation rounds them.
        unit: by what a number of size 1 is off.
    """

    at: Array
    size: Array
    unit: float

    def __neg__(self) -> "Ball":
        return dataclasses.replace(self, at=-self.at)

    def __add__(self, other: "Ball | Array | float") -> "Ball":
        other = other if isinstance(other, Ball) else Ball(np.asarray(other), abs(np.asarray(other)), self.unit)
        return Ball(self.at + other.at, self.size + other.size, self.unit)

    def __sub__(self, other: "Ball | Array | float") -> "Ball":
        return self + -other

    def __mul__(self, other: "Ball | Array | float") -> "Ball":
        if not isinstance(other, Ball):
            return Ball(self.at * other, self.size * abs(other), self.unit)
        size = abs(self.at) * other.size + self.size * abs(other.at) + self.unit * self.size * other.size
        return Ball(self.at * other.at, np.minimum(size, MOST), self.unit)

    def __getitem__(self, index) -> "Ball":
        return Ball(self.at[index], self.size[index], self.unit)

    def sum(self, axis) -> "Ball":
        return Ball(self.at.sum(axis), self.size.sum(axis), self.unit)

    def of(self, function: Callable[[Array], Array], *kinks: float) -> "Ball":
        """A function of the numbers that is monotone between the kinks, at which it may jump.

        Where a number is within its own error of a kink, the result may be any of either side. What the function
        rounds, an exponential by a share of itself, is as if its argument were off by one unit more.
        """
        off = self.unit * (self.size + 1)
        low, high = self.at - off, self.at + off
        sides = [np.clip(np.nextafter(kink, side), low, high) for kink in kinks for side in (-np.inf, np.inf)]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            at, *others = (function(x) for x in (self.at, low, high, *sides))
            furthest = np.max([abs(other - at) for other in others], axis=0)
            size = np.max(np.abs([at, *others]), axis=0) + furthest / self.unit
        return Ball(at, np.where(size < MOST, size, MOST), self.unit)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What an objective is a function of, `[..., sequences, T]`; 0 at masked tokens.

    Attributes:
        log_prob: of the labels.
        entropy: of what predicts them.
        mask: which tokens count.
        stopped: the log-probabilities again, as far as no derivative follows them.
    """

    log_prob: Ball
    entropy: Ball
    mask: Array
    stopped: Ball

    def each(self, data: Array) -> Array:
        """Data of tokens, or of their sequences, for each token; 0 at masked ones."""
        return np.where(self.mask, data if data.ndim == self.mask.ndim else data[..., None], 0)

    def like(self, data: Array, of_tokens: Ball) -> Ball:
        """The transpose: the derivative with respect to data, of that with respect to each token's."""
        of_tokens = of_tokens * self.mask
        return of_tokens if data.ndim == self.mask.ndim else of_tokens.sum(-1)

    @property
    def there(self) -> Array:
        """The sequences that have a token."""
        return self.mask.any(-1)

    @property
    def share(self) -> Array:
        """What a token has of the mean over its sequence."""
        return self.mask / np.maximum(self.mask.sum(-1, keepdims=True), 1)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The value of an objective, which is summed over all that it has axes for, and its derivatives.

    Attributes:
        value: of tokens, sequences or pairs.
        of_log_prob, of_entropy: with respect to what each token has; a number is exact, and of all tokens.
        of_data: with respect to the arrays of data, by name.
        of_numbers: with respect to its numbers, summed like the value.
    """

    value: Ball
    of_log_prob: Ball
    of_entropy: Array | float
    of_data: dict[str, Ball]
    of_numbers: dict[str, Ball]
