"""What the named objectives are given, checked: numbers as they are made, data as a block of them is traced."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss._arrays import Array
from jaxloss._checks.parameters import is_known, number
from jaxloss._linear.traced import Tokens
from jaxloss._types import Interval

EITHER = ("tokens", "sequences")
"""Which numbers data may have: one a token, or one a sequence."""


def number_of_objective(name: str, x: ArrayLike, interval: Interval) -> float | Array:
    """A number of the interval, a Python float if it is known; a traced one becomes NaN beside it."""
    if isinstance(x, Tokens):
        expected = f"{interval.words}; linear_objective is given what this function makes, as in objectives.dpo()"
        raise TypeError(f"{name} has type Tokens: expected {expected}")
    checked = number(name, x, interval)
    return float(np.asarray(x)) if is_known(x) else checked


def as_wide(tokens: Tokens, x: float | Array) -> float | Array:
    """A number or data in the type of the tokens' statistics, where its own is narrower; a known number as it is.

    For what is computed of it alone, such as 1 − ε or a sum, which would be rounded to its own type.
    """
    return widened(tokens, x) if isinstance(x, Array) else x


def widened(tokens: Tokens, x: Array) -> Array:
    """The same of an array."""
    return x.astype(jnp.promote_types(x.dtype, tokens.log_prob.dtype))


def require_sequences(tokens: Tokens, why: str) -> None:
    """Raises an error where a block is a single token."""
    if tokens.mask.ndim == 1:
        raise ValueError(f"per is 'token': expected per='sequence', for {why}")


def is_of_sequences(name: str, tokens: Tokens, x: Array, kinds: tuple[str, ...] = EITHER) -> bool:
    """Whether data has one number a sequence, and not one a token; `kinds`: which of these it may have."""
    shapes = {"tokens": tokens.mask.shape, "sequences": tokens.mask.shape[:1] if tokens.mask.ndim > 1 else None}
    for kind in kinds:
        if x.shape == shapes[kind]:
            return kind == "sequences"
    raise _shape_error(name, tokens, x, kinds)


def _shape_error(name: str, tokens: Tokens, x: Array, kinds: tuple[str, ...]) -> ValueError:
    further = map(str, x.shape[1:])
    if tokens.mask.ndim == 1:
        expected = "one number a token" if "tokens" in kinds else "per='sequence', for it has one number a sequence"
        return ValueError(f"{name} has shape [{', '.join(['tokens', *further])}]: expected {expected}")
    length = tokens.mask.shape[1]
    words = {
        "sequences": "[sequences], one number a sequence",
        "tokens": f"[sequences, {length}], one number a token",
    }
    expected = " or ".join(words[kind] for kind in words if kind in kinds)
    if "tokens" in kinds and x.shape[1:] == (length - 1,):
        expected += "; of tokens that a shift leaves out any will do: write jnp.pad(x, ((0, 0), (0, 1)))"
    return ValueError(f"{name} has shape [{', '.join(['sequences', *further])}]: expected {expected}")


def of_tokens(name: str, tokens: Tokens, x: Array, kinds: tuple[str, ...] = EITHER) -> Array:
    """Data for each token; 0 for masked ones. Its gradient is a sum over tokens, which is not made in a narrow type."""
    whole = is_of_sequences(name, tokens, x, kinds)
    x = widened(tokens, x)
    return jnp.where(tokens.mask, x[:, None] if whole else x, 0)


def of_sequences(name: str, tokens: Tokens, x: Array) -> Array:
    """Data that there is one of for each sequence."""
    is_of_sequences(name, tokens, x, ("sequences",))
    return x
