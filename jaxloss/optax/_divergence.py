"""optax's divergences of a predicted distribution, given by its logarithm, from a target.

A target of 0 contributes 0 whatever the prediction: 0 log 0 is the constant 0.
"""

from __future__ import annotations

import warnings

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._arrays import Array
from jaxloss._docs.described import described
from jaxloss.optax._docs import DIVERGENCES
from jaxloss.optax._operands import broadcast, floating, mask, of_array, of_type, one_program, wide


@one_program
@described(DIVERGENCES)
def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""The Kullback-Leibler divergence $\sum_i a_i (\log a_i - \log p_i)$.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.kl_divergence(jnp.log(jnp.array([0.25, 0.75])), jnp.array([0.0, 1.0])))
    0.28768

    Source: S. Kullback and R. A. Leibler, *On Information and Sufficiency* (1951).
    """
    log_p, a = _operands(log_predictions, where, targets=targets)
    return of_type(_sum(_terms(log_p, a), axis), log_predictions, targets)


@one_program
@described(DIVERGENCES)
def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""The Kullback-Leibler divergence $\sum_i a_i (\log a_i - \log p_i)$ from $\log a$.

    Args:
        log_targets: $\log a$, of a floating-point type; broadcasts with `log_predictions`.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.kl_divergence_with_log_targets(jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))))
    0.14384
    """
    log_p, log_a = _operands(log_predictions, where, log_targets=log_targets)
    none = jnp.isneginf(log_a)
    log_p, log_a = jnp.where(none, 0, log_p), jnp.where(none, 0, log_a)
    terms = jnp.where(none, 0, jnp.exp(log_a) * (log_a - log_p))
    return of_type(_sum(terms, axis), log_predictions, log_targets)


@one_program
@described(DIVERGENCES)
def generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""The Kullback-Leibler divergence of unnormalized distributions, $\sum_i a_i (\log a_i - \log p_i) + p_i - a_i$.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.generalized_kl_divergence(jnp.log(jnp.array([1.0, 2.0])), jnp.array([1.0, 1.0])))
    0.30685

    Source: S. Boyd and L. Vandenberghe, *Convex Optimization* (2004), page 90.
    """
    log_p, a = _operands(log_predictions, where, targets=targets)
    return of_type(_sum(_terms(log_p, a) + (jnp.exp(log_p) - a), axis), log_predictions, targets)


@described(DIVERGENCES)
def convex_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    """`generalized_kl_divergence` by the name that it once had; warns as optax does."""
    warnings.warn(
        "convex_kl_divergence is deprecated: call generalized_kl_divergence", DeprecationWarning, stacklevel=2
    )
    return generalized_kl_divergence(log_predictions, targets, axis, where)


def _operands(log_predictions: ArrayLike, where: ArrayLike | None, **targets: ArrayLike) -> tuple[Array, Array]:
    """Both operands in the type that is computed in; what `where` leaves out is a prediction and a target of 0."""
    ((name, target),) = targets.items()
    log_p, target = floating("log_predictions", log_predictions), floating(name, target)
    rank = max(log_p.ndim, target.ndim)
    where = None if where is None else mask(where)
    if where is not None and where.ndim > rank:
        raise ValueError(f"where has shape {where.shape}, the operands {rank} axes: expected no more axes")
    shape = broadcast(log_predictions=log_p, **{name: target}, where=where)
    log_p, target = (jnp.broadcast_to(wide(x), shape) for x in (log_p, target))
    if where is not None:
        log_p, target = (
            jnp.where(where, log_p, -jnp.inf),
            jnp.where(where, target, 0 if name == "targets" else -jnp.inf),
        )
    return log_p, target


def _terms(log_p: Array, a: Array) -> Array:
    """`a (log a - log p)`, in such a way that no derivative is NaN where `a` is 0."""
    none = a == 0
    log_a = jnp.log(jnp.where(none, 1, a))
    return a * (log_a - jnp.where(none & jnp.isneginf(log_p), 0, log_p))


def _sum(terms: Array, axis: int | tuple[int, ...] | None) -> Array:
    return jnp.sum(terms, None if axis is None else of_array(axis, "the operands have", terms.ndim))
