"""Regression losses, and their derivatives."""

from __future__ import annotations

import math

import jax.numpy as jnp

from jaxloss.formulas.arithmetic import Array, product, real


def squared_error(pred: Array, target: Array) -> Array:
    r"""$\frac12 (x - a)^2$."""
    difference = d_squared_error(pred, target)
    return 0.5 * difference * difference


def d_squared_error(pred: Array, target: Array) -> Array:
    r"""The derivative with respect to the prediction, $x - a$."""
    return real(pred) - real(target)


def absolute_error(pred: Array, target: Array) -> Array:
    r"""$|x - a|$."""
    return jnp.abs(d_squared_error(pred, target))


def d_absolute_error(pred: Array, target: Array) -> Array:
    r"""The derivative with respect to the prediction, the sign of $x - a$: 0 where they are equal."""
    return jnp.sign(d_squared_error(pred, target))


def huber(pred: Array, target: Array, delta: Array | float = 1.0) -> Array:
    r"""$\frac12 e^2$ up to $|e| = \delta$, then $\delta (|e| - \frac12 \delta)$, of $e = x - a$."""
    magnitude = absolute_error(pred, target)
    quadratic = jnp.minimum(magnitude, delta)
    return quadratic * (magnitude - 0.5 * quadratic)


def d_huber(pred: Array, target: Array, delta: Array | float = 1.0) -> Array:
    r"""The derivative with respect to the prediction, $e$ within $[-\delta, \delta]$."""
    error = d_squared_error(pred, target)
    return jnp.where(jnp.abs(error) <= delta, error, jnp.sign(error) * delta)


def log_cosh(pred: Array, target: Array) -> Array:
    r"""$\log \cosh(x - a)$.

    Computed as $\log(1 + (\cosh e - 1))$ of a small error, and as $|e| + \log(1 + e^{-2|e|}) - \log 2$ of a large one.
    """
    magnitude = absolute_error(pred, target)
    small = magnitude < 1
    of_small = jnp.log1p(_cosh_minus_one(jnp.where(small, magnitude, 0)))
    return jnp.where(small, of_small, magnitude + jnp.log1p(jnp.exp(-2 * magnitude)) - math.log(2))


def _cosh_minus_one(x: Array) -> Array:
    r"""$\cosh x - 1$ of $|x| \le 1$ by its series, which is nearer to it than what is made of XLA's `expm1`."""
    square = x * x
    others: Array | float = 0.0  # over the first term
    for k in (20, 18, 16, 14, 12, 10, 8, 6, 4) if x.dtype == jnp.float64 else (12, 10, 8, 6, 4):
        others = square / (k * (k - 1)) * (1 + others)
    return square / 2 + square / 2 * others


def d_log_cosh(pred: Array, target: Array) -> Array:
    r"""The derivative with respect to the prediction, $\tanh(x - a)$."""
    return jnp.tanh(d_squared_error(pred, target))


def quantile(pred: Array, target: Array, q: Array | float = 0.5) -> Array:
    r"""The pinball loss: $q (a - x)$ of a prediction below its target, $(1 - q)(x - a)$ of one above."""
    error = d_squared_error(pred, target)
    return jnp.where(error < 0, -q, 1 - q) * error


def d_quantile(pred: Array, target: Array, q: Array | float = 0.5) -> Array:
    r"""The derivative with respect to the prediction, $-q$ below the target, $1 - q$ above, 0 where they are equal."""
    error = d_squared_error(pred, target)
    return jnp.where(error < 0, q, 1 - q) * jnp.sign(error)


def poisson_nll(log_rate: Array, target: Array) -> Array:
    r"""$e^x - a x$ of the logarithm $x$ of a rate and a count $a$; a count of 0 leaves the rate alone."""
    x = real(log_rate)
    return jnp.exp(x) - product(real(target), x)


def d_poisson_nll(log_rate: Array, target: Array) -> Array:
    r"""The derivative with respect to the logarithm of the rate, $e^x - a$."""
    return jnp.exp(real(log_rate)) - real(target)


def d_poisson_nll_of_target(log_rate: Array, target: Array) -> Array:
    """The derivative with respect to the count, $-x$, at a count of 0 too."""
    del target
    return -real(log_rate)


def gaussian_nll(mean: Array, target: Array, variance: Array | float) -> Array:
    r"""$\frac12 (\log v + (x - a)^2 / v)$ of a mean $x$, a target $a$ and a variance $v$; NaN where $v \le 0$."""
    error, variance = d_squared_error(mean, target), _positive(variance)
    return 0.5 * (jnp.log(variance) + error * (error / variance))


def d_gaussian_nll(mean: Array, target: Array, variance: Array | float) -> Array:
    r"""The derivative with respect to the mean, $(x - a) / v$."""
    return d_squared_error(mean, target) / _positive(variance)


def _positive(variance: Array | float) -> Array:
    return jnp.where(jnp.greater(variance, 0), variance, jnp.nan)
