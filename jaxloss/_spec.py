"""What is compiled into a cross entropy: which options it has, and over which devices its classes are split."""

import dataclasses
from collections.abc import Sequence

import jax

from jaxloss._arrays import Array

RESULTS = ("losses", "maximum", "log_sum", "nll", "entropy", "predicted", "rank", "gradient")
"""All that a call can give of rows, in this order: losses, statistics and gradient."""

STATS, DETAILS = RESULTS[1:3], RESULTS[3:7]

PARAMETERS = (
    "second_label",
    "mix",
    "class_weights",
    "label_smoothing",
    "z_loss",
    "softcap",
    "temperature",
    "num_classes",
)
"""What a call may be given besides, in this order (as in `cuda/handlers/cross_entropy_options.h`)."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is compiled into a cross entropy.

    Attributes:
        clip: 0 for none.
        parameters: the names of the options that are on, a subset of `PARAMETERS` in its order. Without any, and
            without details, the kernels are those without options.
        classes: how many classes a row has, padding apart. None for as many as its logits, where only the call of an
            exported program knows how many these are.
        details: whether statistics are asked for.
        axes: the mesh axes that an enclosing `shard_map` has split the classes over: logits, a target of probabilities
            and class weights are the slice of this device, losses and statistics are the whole row's.
        in_place: a gradient may overwrite the logits, which whoever made them needs no more.
    """

    clip: float
    parameters: tuple[str, ...]
    classes: int | None
    details: bool = False
    axes: tuple[str, ...] = ()
    in_place: bool = False

    @property
    def stats(self) -> tuple[str, ...]:
        """The names of the statistics of a row."""
        return (*STATS, *DETAILS) if self.details else STATS

    def classes_of(self, width: int) -> int:
        """How many classes a row has of which this device holds so many."""
        if self.classes is not None:
            return self.classes
        return width * (jax.lax.axis_size(self.axes) if self.axes else 1)

    def options(self, parameters: Sequence[Array]) -> dict[str, Array]:
        """The parameters by name."""
        return dict(zip(self.parameters, parameters, strict=True))
