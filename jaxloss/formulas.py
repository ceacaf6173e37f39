r"""Every loss as a plain formula in `jax.numpy`, unreduced: what the documentation states and what the kernels compute.

The formulas run wherever JAX does, and are what jaxloss runs on a platform that it has no kernel for. Arithmetic is in
float32 at least. `x` is a prediction or logits, `a` a target; an elementwise loss keeps the shape of its operands, a
cross entropy gives one loss a row, the last axis being the classes.

A clip limits the value only. The functions that begin with `d_` are the derivatives of the losses without it.
"""

import math

import jax
import jax.numpy as jnp

Array = jax.Array


def real(x: Array) -> Array:
    """`x` in the type that its loss is computed in: float64 for float64, float32 for everything else."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


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
    h = jnp.expm1(-jnp.where(small, magnitude, 1))
    of_small = jnp.log1p(0.5 * h * h / (1 + h))
    return jnp.where(small, of_small, magnitude + jnp.log1p(jnp.exp(-2 * magnitude)) - math.log(2))


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


def binary_cross_entropy(logits: Array, target: Array, clip: float | None = 1e-7) -> Array:
    r"""$-a \log t - (1 - a) \log(1 - t)$ with $t = \sigma(x)$ clipped to $[\mathrm{clip}, 1 - \mathrm{clip}]$."""
    a = real(target)
    if_one, if_zero = binary_nll(logits, clip)
    return _product(a, if_one) + _product(1 - a, if_zero)


def d_binary_cross_entropy(logits: Array, target: Array) -> Array:
    r"""The derivative with respect to the logits, $\sigma(x) - a$."""
    return jax.nn.sigmoid(real(logits)) - real(target)


def binary_nll(logits: Array, clip: float | None = None) -> tuple[Array, Array]:
    r"""$-\log t$ and $-\log(1 - t)$ with $t = \sigma(x)$ clipped to $[\mathrm{clip}, 1 - \mathrm{clip}]$.

    Computed as $-\log\sigma(x) = \max(-x, 0) + \log(1 + e^{-|x|})$, so that nothing underflows before its logarithm.
    """
    x = real(logits)
    negative = x < 0
    softplus = jnp.log1p(jnp.exp(-jnp.where(negative, -x, x)))  # not abs, whose derivative at 0 is neither side's
    if_one, if_zero = jnp.where(negative, -x, 0) + softplus, jnp.where(negative, 0, x) + softplus
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
    return _product(if_one, _product(a, nll_if_one)) + _product(if_zero, _product(1 - a, nll_if_zero))


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
    return (1 - label_smoothing) * (_product(if_one, nll_if_one) - _product(if_zero, nll_if_zero))


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
    scale = (alpha_if_one * a + alpha_if_zero * (1 - a)) * jnp.exp(_product(gamma, _focus(logits, a)[0]))
    return _product(scale, weighted_binary_cross_entropy(logits, target, if_one, if_zero, label_smoothing, clip))


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
    scale = (alpha_if_one * a + alpha_if_zero * (1 - a)) * jnp.exp(_product(gamma, log_q))
    focused = _product(gamma * slope, weighted_binary_cross_entropy(*weighted, clip=None))
    return scale * (focused + d_weighted_binary_cross_entropy(*weighted))


def _focus(logits: Array, a: Array) -> tuple[Array, Array]:
    """Log q of the focal loss, and its derivative with respect to the logits.

    With b the target's share of the class that a logit speaks for, q = (1 - b + b r) / (1 + r), r = e^-|x|. Where b is
    1, q is r / (1 + r), which must not underflow before its logarithm is taken, and r cancels in the derivative. JAX
    differentiates this once more, also with respect to b, so no branch of it may forget that it depends on b.
    """
    x = real(logits)
    negative = x < 0
    size = jnp.where(negative, -x, x)
    share, other = jnp.where(negative, 1 - a, a), jnp.where(negative, a, 1 - a)
    certain = other == 0
    r = jnp.exp(-size)
    most = jnp.minimum(size, 700.0 if x.dtype == jnp.float64 else 80.0)  # so that e^size is a number
    log_q = jnp.log(other + share * jnp.exp(-most)) + jnp.where(certain, most - size, 0) - jnp.log1p(r)
    of_certain = 1 / (share + other * jnp.exp(most))
    relative = jnp.where(certain, of_certain, r / jnp.where(certain, 1, other + share * r)) / (1 + r)
    # As good as -Inf, but a number: times 0 it is 0.
    return jnp.maximum(log_q, -1e9), jnp.where(negative, share - other, other - share) * relative


def categorical_cross_entropy(logits: Array, target: Array, clip: float | None = 1e-7) -> Array:
    r"""$\sum_i -a_i \log \max(t_i, \mathrm{clip})$ with $t = \mathrm{softmax}(x)$, for each row of logits `[..., V]`.

    The target is `[..., V]` probabilities, or `[...]` class indices: then $a$ is 1 at the index and 0 elsewhere, and a
    row whose index is out of range gives NaN.
    """
    return cross_entropy_of_stats(logits, target, *softmax_stats(logits), clip=clip)


def d_categorical_cross_entropy(logits: Array, target: Array) -> Array:
    r"""The derivative with respect to the logits, $t_i \sum_j a_j - a_i$; 0 in a row whose index is out of range."""
    return d_cross_entropy_of_stats(logits, target, *softmax_stats(logits), target_sum(logits, target))


def softmax_stats(logits: Array) -> tuple[Array, Array]:
    r"""The maximum $m$ of each row, and $\log \sum_i e^{x_i - m}$.

    Their sum is the log-sum-exp, but it is left to cancel against $x - m$: an offset of all logits then costs no
    digits.
    """
    x = real(logits)
    maximum = jax.lax.stop_gradient(jnp.max(x, axis=-1, initial=jnp.finfo(x.dtype).min))
    return maximum, jnp.log(jnp.sum(jnp.exp(x - maximum[..., None]), axis=-1))


def softmax_of_stats(logits: Array, maximum: Array, log_sum: Array) -> Array:
    """The softmax of rows whose `softmax_stats` are known."""
    return jnp.exp(real(logits) - maximum[..., None] - log_sum[..., None])


def cross_entropy_of_stats(
    logits: Array, target: Array, maximum: Array, log_sum: Array, clip: float | None = 1e-7
) -> Array:
    """The cross entropy of rows whose `softmax_stats` are known."""
    logits_minus_maximum = real(logits) - maximum[..., None]
    if jnp.issubdtype(target.dtype, jnp.integer):
        at_target = jnp.sum(jnp.where(one_hot(target, logits.shape[-1]), logits_minus_maximum, 0), axis=-1)
        return jnp.where(in_range(target, logits.shape[-1]), nll(at_target, log_sum, clip), jnp.nan)
    return jnp.sum(_product(real(target), nll(logits_minus_maximum, log_sum[..., None], clip)), axis=-1)


def nll(logit_minus_maximum: Array, log_sum: Array, clip: float | None) -> Array:
    r"""$-\log \max(t, \mathrm{clip})$ of a class, from its logit and the `softmax_stats` of its row."""
    loss = log_sum - logit_minus_maximum
    return jnp.minimum(loss, -math.log(clip)) if clip else loss


def d_cross_entropy_of_stats(logits: Array, target: Array, maximum: Array, log_sum: Array, total: Array) -> Array:
    """The derivative of the cross entropy of rows whose `softmax_stats` and `target_sum` are known."""
    softmax = softmax_of_stats(logits, maximum, log_sum)
    if jnp.issubdtype(target.dtype, jnp.integer):
        difference = softmax * total[..., None] - one_hot(target, logits.shape[-1])
        return jnp.where(total[..., None] == 0, 0, difference)
    return softmax * total[..., None] - real(target)


def target_sum(logits: Array, target: Array) -> Array:
    """What the target of each row sums to: for a class index 1, or 0 if it is out of range."""
    if jnp.issubdtype(target.dtype, jnp.integer):
        return in_range(target, logits.shape[-1]).astype(real(logits).dtype)
    return jnp.sum(real(target), axis=-1)


def one_hot(labels: Array, classes: int) -> Array:
    """`[..., classes]` booleans, true at the label."""
    return labels[..., None] == jax.lax.broadcasted_iota(labels.dtype, (*labels.shape, classes), labels.ndim)


def in_range(labels: Array, classes: int) -> Array:
    """Whether each label is the index of a class."""
    return (labels >= 0) & (labels < classes)


def _product(weight: Array | float, value: Array) -> Array:
    """`weight * value`, where a weight of 0 takes the value out even if it is infinite."""
    return weight * jnp.where((weight == 0) & ~jnp.isfinite(value), 0, value)
