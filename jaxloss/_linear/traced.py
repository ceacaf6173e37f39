"""A caller's objective of tokens as a traced function, which is compared by what it does."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import (
    ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage], a second name of Jaxpr from jax 0.12 on
    Jaxpr,
    Literal,
    jaxpr_as_fun,
)

from jaxloss._arrays import Array


class Tokens(NamedTuple):
    """The statistics of a block's tokens, which an objective is called on: arrays `[group, T]`, or `[1]` of one token.

    Attributes:
        log_prob: the logarithm of the probability of each token's label.
        entropy: that of the distribution that predicts it.
        lse: the log-sum-exp of its logits.
        mask: whether it counts. The others are 0 where it does not, and their gradients go nowhere.
    """

    log_prob: jax.Array
    entropy: jax.Array
    lse: jax.Array
    mask: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """A caller's function of one block, traced. Two that do the same are equal, so that a program is found again.

    Attributes:
        function: from tokens and data to the value and a flat list of sums.
        jaxpr: the same, of what it closes over too; None to trace the function wherever it is called.
        uses: which of the statistics of tokens it depends on, at most.
        sums: type and shape of each of the list.
    """

    function: Callable[..., tuple[Array, list[Array]]]
    jaxpr: Any
    uses: tuple[bool, bool, bool]
    sums: tuple[jax.ShapeDtypeStruct, ...]

    def __call__(self, tokens: Tokens, data: Sequence[Array], closed_over: Sequence[Array]) -> tuple[Array, list]:
        """Value and sums of a block."""
        if self.jaxpr is None:
            return self.function(tokens, *data)
        value, *sums = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, list(closed_over)))(*tokens, *data)
        return value, sums

    @functools.cached_property
    def _key(self):
        if self.jaxpr is None:
            return self.function
        return str(self.jaxpr), tuple(_not_shown(self.jaxpr))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Objective) and (self is other or self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)


def _not_shown(x: Any) -> Iterator[Hashable]:
    """What the text of a jaxpr, or of a parameter in one, may leave out: numbers of arrays, and functions."""
    match x:
        case Jaxpr() | ClosedJaxpr():
            yield from _not_shown(tuple(getattr(x, "consts", ())))
            for equation in x.eqns:
                yield from _not_shown(tuple(of.val for of in equation.invars if isinstance(of, Literal)))
                yield from _not_shown(equation.params)
        case tuple() | list():
            for each in x:
                yield from _not_shown(each)
        case dict():
            yield from _not_shown(tuple(x.values()))
        case np.ndarray() | np.generic():
            yield x.tobytes()
        case Hashable():
            yield x
        case _:  # compared by its identity; the jaxpr keeps it, so no other has that
            yield id(x)
