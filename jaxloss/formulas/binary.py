"""Losses of two classes, and their derivatives."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from jaxloss.formulas.arithmetic import Array, product, real


def binary_cross_entropy(logits: Array, target: Array, clip: float | None = 1e-7) -> Array:
    r"""$-a \log t - (1 - a) \log(1 - t)$ with $t = \sigma(x)$ clipped to $[\mathrm{clip}, 1 - \mathrm{clip}]$."""
    agreeing, other = _by_side(logits, *_both(target))
    likely, unlikely = _sides(logits, clip)
    return product(agreeing, likely) + product(other, unlikely)


def d_binary_cross_entropy(logits: Array, target: Array) -> Array:
    r"""The derivative with respect to the logits, $\sigma(x) - a$."""
    return _derivative(logits, _missing(logits), _by_side(logits, *_both(target))[1])


# A logit speaks for one of the two classes, with a probability of at least ½: for class 1 from 0 on, for class 0 up to
# −0. The formulas are in terms of these two, and so the same to the bit for x and target a, and for −x and 1 − a.


def _both(target: Array) -> tuple[Array, Array]:
    a = real(target)
    return a, 1 - a


def _by_side(logits: Array, one: Array | float, zero: Array | float) -> tuple[Array, Array]:
    """Of what classes 1 and 0 have, what the class has that a logit speaks for, and what the other one has."""
    negative = jnp.signbit(logits)
    return jnp.where(negative, zero, one), jnp.where(negative, one, zero)


def _size(logits: Array) -> Array:
    """Not abs, whose derivative at 0 is neither side's."""
    x = real(logits)
    return jnp.where(jnp.signbit(x), -x, x)


def _sides(logits: Array, clip: float | None = None) -> tuple[Array, Array]:
    r"""$-\log$ of the probability of the class that a logit speaks for, clipped, and of the other one's.

    They are $\log(1 + e^{-|x|})$ and $|x|$ more, so that nothing underflows before its logarithm is taken.
    """
    size = _size(logits)
    likely = jnp.log1p(jnp.exp(-size))
    unlikely = size + likely
    if clip:
        floor, ceiling = -math.log1p(-clip), -math.log(clip)
        likely, unlikely = jnp.clip(likely, floor, ceiling), jnp.clip(unlikely, floor, ceiling)
    return likely, unlikely


def _missing(logits: Array) -> Array:
    r"""The smaller of the probabilities, $\sigma(-|x|)$."""
    decay = jnp.exp(-_size(logits))
    return decay / (1 + decay)


def _derivative(logits: Array, missing: Array, other: Array) -> Array:
    """What is missing from the likely class less the other class's target, towards that class.

    Nothing but these two is subtracted: the larger probability less a target would lose the digits of a small rest.
    """
    towards = missing - other
    return jnp.where(jnp.signbit(logits), towards, -towards)


def binary_nll(logits: Array, clip: float | None = None) -> tuple[Array, Array]:
    r"""$-\log t$ and $-\log(1 - t)$ with $t = \sigma(x)$ clipped to $[\mathrm{clip}, 1 - \mathrm{clip}]$."""
    return _by_side(logits, *_sides(logits, clip))


def smoothed(target: Array, label_smoothing: Array | float) -> tuple[Array, Array]:
    r"""The smoothed target $a' = a (1 - \epsilon) + \epsilon / 2$, and $1 - a'$."""
    one, zero = (share + label_smoothing * (0.5 - share) for share in _both(target))
    return one, zero


def _weighted(
    logits: Array, target: Array, if_one: Array | float, if_zero: Array | float, label_smoothing: Array | float
) -> tuple[Array, Array]:
    """The weighted target of the class that a logit speaks for, and of the other one."""
    shares = _by_side(logits, *smoothed(target, label_smoothing))
    agreeing, other = (w * share for w, share in zip(_by_side(logits, if_one, if_zero), shares, strict=True))
    return agreeing, other


def d_binary_cross_entropy_of_target(logits: Array, target: Array) -> Array:
    """The derivative of the unclipped loss with respect to the target, $-x$."""
    del target
    return -real(logits)


def weighted_binary_cross_entropy(
    logits: Array,
    target: Array,
    if_one: Array | float = 1.0,
    if_zero: Array | float = 1.0,
    label_smoothing: Array | float = 0.0,
    clip: float | None = 1e-7,
) -> Array:
    r"""$-u a' \log t - v (1 - a') \log(1 - t)$ with weights $u$ `if_one` and $v$ `if_zero`, and $t$ clipped."""
    agreeing, other = _weighted(logits, target, if_one, if_zero, label_smoothing)
    likely, unlikely = _sides(logits, clip)
    return product(agreeing, likely) + product(other, unlikely)


def d_weighted_binary_cross_entropy(
    logits: Array,
    target: Array,
    if_one: Array | float = 1.0,
    if_zero: Array | float = 1.0,
    label_smoothing: Array | float = 0.0,
) -> Array:
    r"""The derivative with respect to the logits, $v (1 - a') t - u a' (1 - t)$."""
    agreeing, other = _weighted(logits, target, if_one, if_zero, label_smoothing)
    return _derivative(logits, product(agreeing + other, _missing(logits)), other)


def d_weighted_binary_cross_entropy_of_target(
    logits: Array,
    target: Array,
    if_one: Array | float = 1.0,
    if_zero: Array | float = 1.0,
    label_smoothing: Array | float = 0.0,
) -> Array:
    r"""The derivative with respect to the target, $(1 - \epsilon)(v \log(1 - t) - u \log t)$.

    What $-\log t$ and $-\log(1 - t)$ have in common is multiplied by $u - v$: equal weights leave $-u x$.
    """
    del target
    x = real(logits)
    common = jnp.log1p(jnp.exp(-jnp.abs(x))) * (if_one - if_zero)
    apart = product(if_one, jnp.maximum(-x, 0)) - product(if_zero, jnp.maximum(x, 0))
    return (1 - label_smoothing) * (common + apart)


def focal_binary_cross_entropy(
    logits: Array,
    target: Array,
    if_one: Array | float = 1.0,
    if_zero: Array | float = 1.0,
    label_smoothing: Array | float = 0.0,
    gamma: Array | float = 2.0,
    alpha_if_one: Array | float = 1.0,
    alpha_if_zero: Array | float = 1.0,
    clip: float | None = 1e-7,
) -> Array:
    r"""The weighted binary cross entropy times $\alpha q^\gamma$, with $q = a' (1 - t) + (1 - a') t$.

    $q$ is the probability that is missing, and $\alpha = \alpha_1 a' + \alpha_0 (1 - a')$. The clip is of the cross
    entropy alone.
    """
    a, zero = smoothed(target, label_smoothing)
    scale = (alpha_if_one * a + alpha_if_zero * zero) * jnp.exp(product(gamma, _focus(logits, a, zero)[0]))
    scale = _taken_out(scale, logits, target, if_one, if_zero, label_smoothing)
    return product(scale, weighted_binary_cross_entropy(logits, target, if_one, if_zero, label_smoothing, clip))


def _taken_out(factor: Array, *weighted: Any) -> Array:
    """A factor, 0 where it is no number and the class weighs nothing: then no logit has a part in the loss."""
    agreeing, other = _weighted(*weighted)
    return jnp.where((agreeing + other == 0) & ~jnp.isfinite(factor), 0, factor)


def d_focal_binary_cross_entropy(
    logits: Array,
    target: Array,
    if_one: Array | float = 1.0,
    if_zero: Array | float = 1.0,
    label_smoothing: Array | float = 0.0,
    gamma: Array | float = 2.0,
    alpha_if_one: Array | float = 1.0,
    alpha_if_zero: Array | float = 1.0,
) -> Array:
    r"""The derivative with respect to the logits: $\alpha q^\gamma (\gamma q' \ell / q + \ell')$, $\ell$ weighted."""
    weighted = (logits, target, if_one, if_zero, label_smoothing)
    a, zero = smoothed(target, label_smoothing)
    log_q, slope = _focus(logits, a, zero)
    scale = (alpha_if_one * a + alpha_if_zero * zero) * jnp.exp(product(gamma, log_q))
    scale, slope = _taken_out(scale, *weighted), _taken_out(slope, *weighted)
    focused = product(gamma * slope, weighted_binary_cross_entropy(*weighted, clip=None))
    return product(scale, focused + d_weighted_binary_cross_entropy(*weighted))


def _focus(logits: Array, a: Array, zero: Array) -> tuple[Array, Array]:
    """Log q of the focal loss, and its derivative with respect to the logits.

    With b the target's share of the class that a logit speaks for, q = (1 - b + b r) / (1 + r), r = e^-|x|. Where b is
    1, q is r / (1 + r), which must not underflow before its logarithm is taken, and r cancels in the derivative. JAX
    differentiates this once more, also with respect to b, so no branch of it may forget that it depends on b.
    """
    negative, size = jnp.signbit(logits), _size(logits)
    share, other = _by_side(logits, a, zero)
    certain = other == 0
    r = jnp.exp(-size)
    most = jnp.minimum(size, 700.0 if size.dtype == jnp.float64 else 80.0)  # so that e^size is a number
    log_q = jnp.log(other + share * jnp.exp(-most)) + jnp.where(certain, most - size, 0) - jnp.log1p(r)
    of_certain = 1 / (share + other * jnp.exp(most))
    relative = jnp.where(certain, of_certain, r / jnp.where(certain, 1, other + share * r)) / (1 + r)
    # As good as -Inf, but a number: times 0 it is 0.
    return jnp.maximum(log_q, -1e9), jnp.where(negative, share - other, other - share) * relative
