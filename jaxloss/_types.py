"""What public arguments may be: their types, and the intervals of those that are numbers."""

import dataclasses
import math
from typing import Any, Literal

from jax.typing import ArrayLike

Reduction = Literal["mean", "sum", "none"]
TargetType = Literal["probabilities", "logits"]

AxisName = str | tuple[str, ...] | None
"""The mesh axes that the classes are split over."""

ClassTarget = ArrayLike | tuple[ArrayLike, ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike]
"""Class indices, probabilities, two arrays of class indices and the share of the first, or some classes of each row and
their probabilities."""

SoftTarget = ArrayLike | tuple[ArrayLike, ArrayLike]
"""Probabilities or logits of all classes, or some classes of each row and their probabilities."""

TokenLabels = ArrayLike | tuple[ArrayLike, ArrayLike]
"""Class indices, or some classes of each token and their probabilities."""

Remainder = Literal["drop", "spread"]
"""What becomes of the probability that the listed classes of a row lack."""

Normalizer = ArrayLike | Literal["weights"] | None
"""What replaces the batch size, of losses that may divide by the sum of the weights."""

Direction = Literal["forward", "reverse"]
"""Of a divergence that is not symmetric: from the teacher to the student, as losses of targets go, or the other way."""

Per = Literal["sequence", "token"]

TokenNormalizer = ArrayLike | Literal["tokens", "sequences", "groups"] | None
"""What a sum over tokens is divided by."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """The finite numbers that an option may be.

    Attributes:
        words: what an error calls them.
        least: the lower end.
        most: the upper end.
        has_ends: whether the ends belong to it, infinity apart.
    """

    words: str
    least: float
    most: float = math.inf
    has_ends: bool = False

    def contains(self, x: Any) -> Any:
        """Whether `x`, a number or each of an array, is one of them."""
        if self.has_ends:
            return (x >= self.least) & (x <= self.most) & (x < math.inf)
        return (x > self.least) & (x < self.most)


FINITE = Interval("a finite number", -math.inf)
POSITIVE = Interval("a finite number greater than 0", 0)
NOT_NEGATIVE = Interval("a finite number of at least 0", 0, has_ends=True)
BETWEEN_0_AND_1 = Interval("a number between 0 and 1", 0, 1)
FROM_0_TO_1 = Interval("a number from 0 to 1", 0, 1, has_ends=True)
