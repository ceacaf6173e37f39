"""optax's smoothing of labels."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._arrays import Array
from jaxloss._docs.described import described
from jaxloss.optax._docs import SOFTMAXES
from jaxloss.optax._operands import broadcast, floating, number, of_array, of_type, one_program, wide


@one_program
@described(SOFTMAXES)
def smooth_labels(
    labels: ArrayLike, alpha: ArrayLike, *, axis: int | tuple[int, ...] | None = -1, where: ArrayLike | None = None
) -> Array:
    r"""Labels of which a part $\alpha$ is spread evenly over the classes, $(1 - \alpha) a_i + \alpha / V$.

    Args:
        labels: $a$, probabilities of classes, of a floating-point type.
        alpha: $\alpha$, the part that is spread; broadcasts with `labels`.
        where: booleans, false for elements that are none of the $V$ classes: they get 0. Broadcasts with `labels`.

    Returns:
        An array like `labels`, of the type that `labels` and `alpha` promote to.

    Raises:
        TypeError: `labels` is not floating-point.
        ValueError: shapes do not broadcast, or `axis` is none of `labels`.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.smooth_labels(jnp.array([0.0, 1.0]), 0.2))
    [0.1 0.9]

    Source: C. Szegedy et al., *Rethinking the Inception Architecture for Computer Vision* (2016), section 7.
    """
    a, rate = floating("labels", labels), wide(number("alpha", alpha))
    if where is None:
        broadcast(labels=a, alpha=rate)
        return of_type((1 - rate) * wide(a) + rate / jnp.size(a, _axes(axis, a)), labels, alpha)
    included = number("where", where).astype(bool)
    included = jnp.broadcast_to(included, broadcast(labels=a, where=included))
    broadcast(labels=included, alpha=rate)
    classes = jnp.maximum(jnp.sum(included, _axes(axis, included), dtype=wide(a).dtype, keepdims=True), 1)
    return of_type(jnp.where(included, (1 - rate) * wide(a) + rate / classes, 0), labels, alpha)


def _axes(axis: int | tuple[int, ...] | None, x: Array) -> tuple[int, ...] | None:
    return None if axis is None else of_array(axis, "labels has", x.ndim)
