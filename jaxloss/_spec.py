"""What is compiled into a cross entropy: which options it has, and over which devices its classes are split."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax

from jaxloss._arrays import Array
from jaxloss._types import FINITE, FROM_0_TO_1, NOT_NEGATIVE, POSITIVE, Interval

RESULTS = ("losses", "maximum", "log_sum", "nll", "entropy", "predicted", "rank", "gradient")
"""All that a call can give of rows, in this order: losses, statistics and gradient."""

STATS, DETAILS = RESULTS[1:3], RESULTS[3:7]


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of cross entropy, and the operand of a call that it becomes where it is on.

    All that is about options and not about one of them follows from these attributes: what a call is given, which
    numbers are refused, which operands are split with the classes, and which tests are run. What an option means is in
    `formulas/categorical.py` and `cuda/maths/cross_entropy_options.h`.

    Attributes:
        name: of the argument and of the operand.
        changes: what it is a part of: the "target", the "weights" of the target's classes, the "logits", the logit of
            the "label" alone, the "loss", or which "classes" there are.
        interval: the numbers it may be; None if it is no number.
        off: the argument that asks for nothing.
        otherwise: what the argument may be besides a number, as an error says it.
        per_row: it may be one scalar per row; else it is one for all.
        per_class: it has one number per class.
    """

    name: str
    changes: Literal["target", "weights", "logits", "label", "loss", "classes"]
    interval: Interval | None = None
    off: float | None = None
    otherwise: str = ""
    per_row: bool = False
    per_class: bool = False

    @property
    def is_argument(self) -> bool:
        """Whether losses have an argument of that name; if not, it is a part of the target that they are given."""
        return self.changes != "target"

    @property
    def of_distribution(self) -> bool:
        """Whether it says what the softmax is, with no label known: then `log_prob` and `entropy` have it, too."""
        return self.changes in ("logits", "classes")


OPTIONS = {
    option.name: option
    for option in (
        Option("second_label", "target", per_row=True),
        Option("mix", "target", FROM_0_TO_1, per_row=True),
        Option("class_weights", "weights", per_class=True),
        Option("label_smoothing", "weights", FROM_0_TO_1, off=0.0),
        Option("z_loss", "loss", NOT_NEGATIVE, off=0.0),
        Option("softcap", "logits", POSITIVE, otherwise=", or None for none"),
        Option("margin", "label", FINITE, off=0.0, per_row=True),
        Option("temperature", "logits", POSITIVE, off=1.0),
        Option("num_classes", "classes"),
    )
}
"""The options by name, in the order in which a call is given them and of their bits in its attribute `given`.

`CrossEntropyOptionRows` in `cuda/rows.h` has the same list.
"""

PARAMETERS = tuple(OPTIONS)
"""Their names."""


def options_that_change(*what: str) -> tuple[str, ...]:
    """The names of those options."""
    return tuple(name for name, option in OPTIONS.items() if option.changes in what)


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
