"""The types of public arguments."""

from typing import Literal

from jax.typing import ArrayLike

Reduction = Literal["mean", "sum", "none"]
TargetType = Literal["probabilities", "logits"]

AxisName = str | tuple[str, ...] | None
"""The mesh axes that the classes are split over."""

ClassTarget = ArrayLike | tuple[ArrayLike, ArrayLike, ArrayLike]
"""Class indices, probabilities, or two arrays of class indices and the share of the first."""

Normalizer = ArrayLike | Literal["weights"] | None
"""What replaces the batch size, of losses that may divide by the sum of the weights."""

Per = Literal["sequence", "token"]

TokenNormalizer = ArrayLike | Literal["tokens", "sequences", "groups"] | None
"""What a sum over tokens is divided by."""
