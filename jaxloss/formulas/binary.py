"""Losses of two classes, and their derivatives."""

import math

import jax
import jax.numpy as jnp

from jaxloss.formulas.arithmetic import Array, product, real


def binary_cross_entropy(logits: Array, target: Array, clip: float | None = 1e-7) -> Array:
    r"""$-a \log t - (1 - a) \log(1 - t)$ with $t = \sigma(x)$ clipped to $[\mathrm{clip}, 1 - \mathrm{clip}]$.

    Computed as $-\log\sigma(x) = \max(-x, 0) + \log(1 + e^{-|x|})$, so that nothing underflows before its logarithm.
    """
    a = real(target)
    if_one, if_zero = binary_nll(logits, clip)
    return product(a, if_one) + product(1 - a, if_zero)


def d_binary_cross_entropy(logits: Array, target: Array) -> Array:
    r"""The derivative with respect to the logits, $\sigma(x) - a$."""
    return jax.nn.sigmoid(real(logits)) - real(target)


def binary_nll(logits: Array, clip: float | None = None) -> tuple[Array, Array]:
    r"""$-\log t$ and $-\log(1 - t)$ with $t = \sigma(x)$ clipped to $[\mathrm{clip}, 1 - \mathrm{clip}]$."""
    x = real(logits)
    softplus = jnp.log1p(jnp.exp(-jnp.abs(x)))
    if_one, if_zero = jnp.maximum(-x, 0) + softplus, jnp.maximum(x, 0) + softplus
    if clip:
        floor, ceiling = -math.log1p(-clip), -math.log(clip)
        if_one, if_zero = jnp.clip(if_one, floor, ceiling), jnp.clip(if_zero, floor, ceiling)
    return if_one, if_zero


def smoothed(target: Array, label_smoothing: Array | float) -> Array:
    r"""The smoothed target $a' = a (1 - \epsilon) + \epsilon / 2$."""
    a = real(target)
    return a + label_smoothing * (0.5 - a)


def weighted_binary_cross_entropy(
    logits: Array,
    target: Array,
    if_one: Array | float = 1.0,
    if_zero: Array | float = 1.0,
    label_smoothing: Array | float = 0.0,
    clip: float | None = 1e-7,
) -> Array:
    r"""$-u a' \log t - v (1 - a') \log(1 - t)$ with weights $u$ `if_one` and $v$ `if_zero`, and $t$ clipped."""
    a = smoothed(target, label_smoothing)
    nll_if_one, nll_if_zero = binary_nll(logits, clip)
    return product(if_one, product(a, nll_if_one)) + product(if_zero, product(1 - a, nll_if_zero))


def d_weighted_binary_cross_entropy(
    logits: Array,
    target: Array,
    if_one: Array | float = 1.0,
    if_zero: Array | float = 1.0,
    label_smoothing: Array | float = 0.0,
) -> Array:
    r"""The derivative with respect to the logits, $v (1 - a') t - u a' (1 - t)$."""
    a, x = smoothed(target, label_smoothing), real(logits)
    return if_zero * (1 - a) * jax.nn.sigmoid(x) - if_one * a * jax.nn.sigmoid(-x)


def d_weighted_binary_cross_entropy_of_target(
    logits: Array,
    target: Array,
    if_one: Array | float = 1.0,
    if_zero: Array | float = 1.0,
    label_smoothing: Array | float = 0.0,
) -> Array:
    r"""The derivative with respect to the target, $(1 - \epsilon)(v \log(1 - t) - u \log t)$."""
    del target
    nll_if_one, nll_if_zero = binary_nll(logits)
    return (1 - label_smoothing) * (product(if_one, nll_if_one) - product(if_zero, nll_if_zero))


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
    a = smoothed(target, label_smoothing)
    scale = (alpha_if_one * a + alpha_if_zero * (1 - a)) * jnp.exp(product(gamma, _focus(logits, a)[0]))
    return product(scale, weighted_binary_cross_entropy(logits, target, if_one, if_zero, label_smoothing, clip))


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
    a = smoothed(target, label_smoothing)
    log_q, slope = _focus(logits, a)
    scale = (alpha_if_one * a + alpha_if_zero * (1 - a)) * jnp.exp(product(gamma, log_q))
    focused = product(gamma * slope, weighted_binary_cross_entropy(*weighted, clip=None))
    return scale * (focused + d_weighted_binary_cross_entropy(*weighted))


def _focus(logits: Array, a: Array) -> tuple[Array, Array]:
    """Log q of the focal loss, and its derivative with respect to the logits.

    With b the target's share of the class that a logit speaks for, q = (1 - b + b r) / (1 + r), r = e^-|x|. Where b is
    1, q is r / (1 + r), which must not underflow before its logarithm is taken, and r cancels in the derivative. JAX
    differentiates this once more, also with respect to b, so no branch of it may forget that it depends on b.
    """
    x = real(logits)
    negative = x < 0
    size = jnp.where(negative, -x, x)  # not abs, whose derivative at 0 is neither side's
    share, other = jnp.where(negative, 1 - a, a), jnp.where(negative, a, 1 - a)
    certain = other == 0
    r = jnp.exp(-size)
    most = jnp.minimum(size, 700.0 if x.dtype == jnp.float64 else 80.0)  # so that e^size is a number
    log_q = jnp.log(other + share * jnp.exp(-most)) + jnp.where(certain, most - size, 0) - jnp.log1p(r)
    of_certain = 1 / (share + other * jnp.exp(most))
    relative = jnp.where(certain, of_certain, r / jnp.where(certain, 1, other + share * r)) / (1 + r)
    # As good as -Inf, but a number: times 0 it is 0.
    return jnp.maximum(log_q, -1e9), jnp.where(negative, share - other, other - share) * relative
