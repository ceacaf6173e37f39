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


def binary_cross_entropy(logits: Array, target: Array, clip: float | None = 1e-7) -> Array:
    r"""$-a \log t - (1 - a) \log(1 - t)$ with $t = \sigma(x)$ clipped to $[\mathrm{clip}, 1 - \mathrm{clip}]$.

    Computed as $-\log\sigma(x) = \max(-x, 0) + \log(1 + e^{-|x|})$, so that nothing underflows before its logarithm.
    """
    x, a = real(logits), real(target)
    softplus = jnp.log1p(jnp.exp(-jnp.abs(x)))
    if_one, if_zero = jnp.maximum(-x, 0) + softplus, jnp.maximum(x, 0) + softplus
    if clip:
        floor, ceiling = -math.log1p(-clip), -math.log(clip)
        if_one, if_zero = jnp.clip(if_one, floor, ceiling), jnp.clip(if_zero, floor, ceiling)
    return _product(a, if_one) + _product(1 - a, if_zero)


def d_binary_cross_entropy(logits: Array, target: Array) -> Array:
    r"""The derivative with respect to the logits, $\sigma(x) - a$."""
    return jax.nn.sigmoid(real(logits)) - real(target)


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


def _product(weight: Array, value: Array) -> Array:
    """`weight * value`, where a weight of 0 takes the value out even if it is infinite."""
    return jnp.where(weight == 0, 0, weight * value)
