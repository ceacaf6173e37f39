"""The options that all losses share: `where`, `weights`, `reduction`, `normalizer`."""

import dataclasses
from typing import get_args

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._arrays import Array, inlined
from jaxloss._checks import arguments
from jaxloss._checks.arrays import array
from jaxloss._checks.parameters import choice, real_array
from jaxloss._rows.weights import Examples
from jaxloss._types import Normalizer, Reduction
from jaxloss.formulas import real

REDUCTIONS = get_args(Reduction)


def checked(
    where: ArrayLike | None, weights: ArrayLike | None, reduction: Reduction, normalizer: Normalizer
) -> Examples:
    """The options as arrays of the right kinds."""
    choice("reduction", reduction, REDUCTIONS)
    if where is not None:
        where = array("where", where)
        if where.dtype != jnp.bool_:
            hint = "" if jnp.issubdtype(where.dtype, jnp.complexfloating) else "; write where != 0"
            raise TypeError(f"where has dtype {where.dtype}: expected bool{hint}")
    if weights is not None:
        weights = real_array("weights", weights, "; where= takes booleans")
    if normalizer is not None:
        if reduction != "mean":
            raise ValueError(f"normalizer replaces the batch size of reduction='mean': found reduction={reduction!r}")
        if isinstance(normalizer, str):
            raise TypeError(f"normalizer is {normalizer!r}: expected a number or a scalar array")
        normalizer = real_array("normalizer", normalizer)
        if normalizer.shape:
            raise ValueError(f"normalizer has shape {normalizer.shape}: expected a scalar")
    return Examples(where, weights, reduction, normalizer)


def undefined_with(examples: Examples, number: Array) -> Examples:
    """The same whose weights are NaN if `number`, an option of the loss, is: for losses that may not depend on it."""
    return dataclasses.replace(examples, weights=_nan_with(number, examples.weights))


@inlined()
def _nan_with(number: Array, weights: Array | None) -> Array:
    weights = jnp.ones((), number.dtype) if weights is None else weights
    return jnp.where(jnp.isnan(number), jnp.nan, weights if weights.dtype == number.dtype else real(weights))


def classes_last(examples: Examples, axis: int, ndim: int) -> Examples:
    """The same for a prediction of `ndim` axes whose axis of classes went last."""
    where, weights = (
        None if x is None else arguments.classes_last(x, axis, ndim) for x in (examples.where, examples.weights)
    )
    return dataclasses.replace(examples, where=where, weights=weights)
