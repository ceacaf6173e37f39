"""Logits beside labels and a mask that broadcast, as rows of classes: what the kernels take."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._arrays import Array
from jaxloss.optax._operands import broadcast, listed, mask, of_array, wide

Axis = int | tuple[int, ...] | None

_MARGIN = 1000.0
"""How far below the largest logit a class has probability 0 in every type."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Logits `[..., V]`, and what is known of their rows.

    Attributes:
        logits: `[..., V]`.
        labels: `[...]` indices, or `[..., V]` probabilities.
        where: `[...]`, which rows count, or None for all.
        included: `[..., V]`, which classes of a row there are, or None for all.
    """

    logits: Array
    labels: Array
    where: Array | None
    included: Array | None


def of_probabilities(logits: Array, labels: Array, axis: Axis, where: ArrayLike | None) -> Rows:
    """Rows of logits and of probabilities that broadcast with them."""
    axes = of_array(axis, "logits has", logits.ndim)
    if labels.ndim > logits.ndim and axis is not None and any(one >= 0 for one in listed(axis)):
        raise ValueError(
            f"axis is {axis}, labels has {labels.ndim} axes and logits {logits.ndim}: expected an axis counted from "
            "the end, which is the same of both"
        )
    where = _where(logits, axis, axes, where)
    shape = _broadcast(logits, labels, where, axes)
    rows, included = _masks(where, shape, axes)
    return Rows(_flat(logits, shape, axes), _flat(labels, shape, axes), rows, included)


def of_indices(logits: Array, labels: Array, axis: Axis, where: ArrayLike | None) -> Rows:
    """Rows of logits and their class indices; indices of several axes count along them in the order of `axis`."""
    axes = of_array(axis, "logits has", logits.ndim)
    if labels.ndim != logits.ndim - len(axes):
        raise _labels_shape_error(logits, labels, axes)
    beside = jnp.expand_dims(labels, axes)
    where = _where(logits, axis, axes, where)
    shape = _broadcast(logits, beside, where, axes)
    rows, included = _masks(where, shape, axes)
    return Rows(_flat(logits, shape, axes), _along_rows(beside, shape, axes), rows, included)


def _labels_shape_error(logits: Array, labels: Array, axes: tuple[int, ...]) -> ValueError:
    """The error, which says what to write where labels are those of another loss."""
    rows = tuple(logits.shape[one] for one in _row_axes(logits.shape, axes))
    hint = ""
    if labels.shape == logits.shape:
        hint = "; softmax_cross_entropy takes one-hot labels"
    elif labels.shape == (*rows, 1):
        hint = "; write labels[..., 0]"
    return ValueError(f"labels has shape {labels.shape}, logits {logits.shape}: expected {rows}{hint}")


def masked(rows: Rows, *, finite: bool) -> Array:
    """The logits, with probability 0 for classes that are not included.

    These have logit -Inf, or `finite` ones, so that no tangent of a label, which is 0 there, meets an infinite
    derivative.
    """
    if rows.included is None:
        return rows.logits
    logits = jnp.where(rows.included, rows.logits, -jnp.inf)
    if not finite:
        return logits
    largest = wide(jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True, initial=-jnp.inf)))
    below = largest - jnp.abs(largest) - _MARGIN
    return jnp.where(rows.included, rows.logits, below.astype(logits.dtype))


def _where(logits: Array, axis: Axis, axes: tuple[int, ...], where: ArrayLike | None) -> Array | None:
    """The mask with an axis for each of the logits', or fewer; one of rows gets axes of 1 for the classes."""
    if where is None:
        return None
    where = mask(where)
    beside = jnp.expand_dims(where, axes if axis is None else axis) if where.ndim != logits.ndim else where
    if beside.ndim > logits.ndim:
        raise ValueError(
            f"where has shape {where.shape}, logits {logits.shape}: expected as many axes, or "
            f"{logits.ndim - len(axes)} for one that is about rows"
        )
    return beside


def _broadcast(logits: Array, labels: Array, where: Array | None, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of all three, which has no more classes than the logits: one logit is no softmax of several."""
    shape = broadcast(logits=logits, labels=labels, where=where)
    if any(logits.shape[one] != shape[one] for one in axes):
        raise ValueError(
            f"logits has shape {logits.shape}, labels and where broadcast with it to {shape}: expected logits of all "
            f"classes, which are along the axes {axes}"
        )
    return shape


def _masks(where: Array | None, shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Array | None, Array | None]:
    """Which rows count, and which of their classes, where that differs."""
    if where is None:
        return None, None
    where = where.reshape((1,) * (len(shape) - where.ndim) + where.shape)
    if all(where.shape[one] == 1 for one in axes):
        return _along_rows(where, shape, axes), None
    included = _flat(where, shape, axes)
    return included.any(-1), included


def _flat(x: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """`x` broadcast to `shape`, with its axes of classes last and as one."""
    rows = _row_axes(shape, axes)
    classes = tuple(one % len(shape) for one in axes)
    x = jnp.broadcast_to(x, shape).transpose(rows + classes)
    return x.reshape((*(shape[one] for one in rows), math.prod(shape[one] for one in classes)))


def _along_rows(x: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """`x`, which has an axis of 1 for each of the classes', without them and broadcast along the others."""
    x = x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
    return jnp.broadcast_to(jnp.squeeze(x, axes), [shape[one] for one in _row_axes(shape, axes)])


def _row_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(one for one in range(len(shape)) if one - len(shape) not in axes)
