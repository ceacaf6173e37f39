"""Checks of a target that lists a few classes of each row with their probabilities."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._arrays import Array, inlined
from jaxloss._checks import arguments
from jaxloss._checks.arrays import array, axis_moved, of_dtype, real_dtype
from jaxloss._checks.parameters import choice
from jaxloss._rows.few_classes import class_weights_at
from jaxloss._types import Remainder

REMAINDERS = get_args(Remainder)


def is_sparse(target: Any) -> bool:
    """Whether it is such a target: a pair of indices and probabilities."""
    return isinstance(target, tuple) and len(target) == 2


def are_labels(target: Any, rank: int) -> bool:
    """Whether a pair is rather labels and other labels, one of each row, whose share of the target is missing."""
    return is_sparse(target) and all(
        isinstance(part, np.ndarray | jax.Array) and part.ndim == rank and jnp.issubdtype(part.dtype, jnp.integer)
        for part in target
    )


def spreads(remainder: Remainder, target: Any, name: str = "target") -> bool:
    """Whether what the probabilities lack of 1 is spread over the other classes."""
    choice("remainder", remainder, REMAINDERS)
    if remainder != "drop" and not is_sparse(target):
        raise ValueError(
            f"remainder is {remainder!r}: expected 'drop', for the {name} is no pair of class indices and probabilities"
        )
    return remainder == "spread"


def class_ids(name: str, indices: Any, shape: tuple[int, ...], of: str, classes: int, axis: int = -1) -> Array:
    """Class indices of some classes of each row, with these last; `shape` is that of the `of`, classes last."""
    indices, _ = arguments.indices(name, indices, None)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {indices.dtype}: expected an integer type, of class indices")
    rows = tuple(size for place, size in enumerate(indices.shape) if place != axis % max(1, indices.ndim))
    if indices.ndim != len(shape) or rows != shape[:-1] or not indices.shape[axis]:
        written = [*map(str, shape[:-1])]
        written.insert(axis % len(shape), "K")
        raise ValueError(
            f"{name} has shape {indices.shape}, {of}: expected ({', '.join(written)}{',' * (len(shape) == 1)}) class "
            f"indices, of one or more classes K"
        )
    indices = axis_moved(indices, axis, -1)
    if jnp.iinfo(indices.dtype).bits >= 32 and indices.dtype != jnp.int32:
        indices = arguments.out_of_range_marked(indices, classes)
    return of_dtype(indices, jnp.int32)


def probabilities(name: str, given: Any, indices_name: str, indices: Array, axis: int = -1) -> Array:
    """Their probabilities, with these last, too, and of no type narrower than float32."""
    given = array(name, given)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {given.dtype}: expected a floating-point type, of probabilities")
    given = axis_moved(given, axis, -1) if given.ndim == indices.ndim else given
    if given.shape != indices.shape:
        raise ValueError(
            f"{name} has shape {given.shape}, {indices_name} {indices.shape}: expected equal shapes, a probability for "
            f"each index"
        )
    return of_dtype(given, real_dtype(given))


def listed(target: tuple[Any, Any], logits: Array, classes: int, axis: int) -> tuple[Array, Array, Array]:
    """Logits, indices and probabilities with the classes last, from a target of logits that have them there already."""
    shape = list(logits.shape[:-1])
    shape.insert(axis, logits.shape[-1])
    indices = class_ids("target[0]", target[0], logits.shape, f"logits {tuple(shape)}", classes, axis)
    given = probabilities("target[1]", target[1], "target[0]", indices, axis)
    if given.dtype == jnp.float64:
        logits = of_dtype(logits, jnp.float64)
    return logits, indices, of_dtype(given, real_dtype(logits))


@inlined(static_argnums=(3, 4))
def share(indices: Array, given: Array, class_weights: Array | None, spread: bool, axes: tuple[str, ...]) -> Array:
    """What a row counts in the sum of the weights: its probabilities times the weights of their classes."""
    if class_weights is None:
        total = jnp.sum(given, -1)
        return jnp.maximum(total, 1) if spread else total
    width = class_weights.shape[0]
    here = indices - jax.lax.axis_index(axes) * width if axes else indices
    inside = (here >= 0) & (here < width)
    weights = class_weights_at(class_weights, here, inside)
    total = jnp.sum(jnp.where(inside, given * weights, 0), -1)
    return jax.lax.psum(total, axes) if axes else total
