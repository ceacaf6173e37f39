r"""Every loss as a plain formula in `jax.numpy`, unreduced: what the documentation states and what the kernels compute.

The formulas run wherever JAX does, and are what jaxloss runs on a platform that it has no kernel for. Arithmetic is in
float32 at least. `x` is a prediction or logits, `a` a target; an elementwise loss keeps the shape of its operands, a
cross entropy gives one loss a row, the last axis being the classes.

A clip limits the value only. The functions that begin with `d_` are the derivatives of the losses without it.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

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


# ---- divergences ----------------------------------------------------------------------------------------------------


def kl_divergence(
    logits: Array, target: Array, *, target_type: str = "probabilities", temperature: float | Array = 1.0
) -> Array:
    r"""$\sum_i a_i (\log a_i - \log t_i)$ with $t = \mathrm{softmax}(x / T)$, for each row of logits `[..., V]`.

    The target is probabilities $a$ `[..., V]`, or, with `target_type="logits"`, logits $y$ with
    $a = \mathrm{softmax}(y / T)$. A term with $a_i = 0$ is 0, and so is its derivative.
    """
    stats = divergence_stats(logits, target, target_type == "logits", 1 / temperature)
    return jnp.sum(divergence_terms(kl_terms, logits, target, stats, 1 / temperature)[0], axis=-1)


def d_kl_divergence(
    logits: Array, target: Array, *, target_type: str = "probabilities", temperature: float | Array = 1.0
) -> Array:
    r"""The derivative with respect to the logits, $(t_i \sum_j a_j - a_i) / T$."""
    stats = divergence_stats(logits, target, target_type == "logits", 1 / temperature)
    total = jnp.sum(divergence_terms(kl_terms, logits, target, stats, 1 / temperature)[1], axis=-1)
    return d_divergence(kl_terms, logits, target, stats, total, 1 / temperature)


def jensen_shannon(
    student_logits: Array,
    teacher_logits: Array,
    *,
    beta: float | Array = 0.5,
    target_type: str = "logits",
    temperature: float | Array = 1.0,
) -> Array:
    r"""$\sum_i \beta q_i \log\frac{q_i}{m_i} + (1 - \beta) p_i \log\frac{p_i}{m_i}$, $m = \beta q + (1 - \beta) p$.

    For each row of logits `[..., V]`, with the student's $p = \mathrm{softmax}(x / T)$ and the teacher's $q$, which is
    given like the target of `kl_divergence`.
    """
    scale = 1 / temperature
    stats = divergence_stats(student_logits, teacher_logits, target_type == "logits", scale)
    return jnp.sum(divergence_terms(js_terms, student_logits, teacher_logits, stats, scale, beta)[0], axis=-1)


def d_jensen_shannon(
    student_logits: Array,
    teacher_logits: Array,
    *,
    beta: float | Array = 0.5,
    target_type: str = "logits",
    temperature: float | Array = 1.0,
) -> Array:
    r"""The derivative, $\frac{1 - \beta}{T} p_i (\log\frac{p_i}{m_i} - \sum_j p_j \log\frac{p_j}{m_j})$."""
    scale = 1 / temperature
    stats = divergence_stats(student_logits, teacher_logits, target_type == "logits", scale)
    total = jnp.sum(divergence_terms(js_terms, student_logits, teacher_logits, stats, scale, beta)[1], axis=-1)
    return d_divergence(js_terms, student_logits, teacher_logits, stats, total, scale, beta)


def tempered_softmax_stats(logits: Array, scale: float | Array) -> tuple[Array, Array]:
    r"""The maximum $m$ of each row, and $\log \sum_i e^{(x_i - m) \cdot \mathrm{scale}}$.

    A scale, here and below, is 1 over a temperature; an array broadcasts along the logits.
    """
    x = real(logits)
    maximum = jax.lax.stop_gradient(jnp.max(x, axis=-1, initial=jnp.finfo(x.dtype).min))
    return maximum, jnp.log(jnp.sum(jnp.exp((x - maximum[..., None]) * scale), axis=-1))


def divergence_stats(logits: Array, target: Array, of_logits: bool, scale: float | Array) -> tuple[Array, ...]:
    """The `tempered_softmax_stats` of the student and of a teacher that is given as logits."""
    of_teacher = tempered_softmax_stats(target, scale) if of_logits else ()
    return *tempered_softmax_stats(logits, scale), *of_teacher


def above_maximum(logits: Array, maximum: Array) -> Array:
    """What the logits are above their row's maximum; 0 for a masked class, of which no scale makes anything else."""
    x = real(logits)
    return jnp.where(x == -jnp.inf, 0, x - maximum[..., None])


def log_probabilities(logits: Array, maximum: Array, log_sum: Array, scale: float | Array) -> Array:
    """The logarithm of the softmax of rows whose `tempered_softmax_stats` are known; -Inf for a masked class."""
    masked = real(logits) == -jnp.inf
    return jnp.where(masked, -jnp.inf, scale * above_maximum(logits, maximum) - log_sum[..., None])


def log_of_probabilities(probabilities: Array) -> Array:
    """The logarithm, -Inf with derivative 0 for 0."""
    none = probabilities == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, probabilities)))


def divergence_terms(
    terms: Callable[..., tuple[Array, Array]], logits: Array, target: Array, stats, scale, *parameters
) -> tuple[Array, Array]:
    r"""What `terms` gives for each class: $\varphi$, which a divergence sums up, and $p \partial\varphi/\partial p$.

    `stats` are the `divergence_stats`, which also tell what the target is.
    """
    maximum, log_sum, *of_teacher = stats
    log_p = log_probabilities(logits, maximum, log_sum, scale)
    if of_teacher:
        log_q = log_probabilities(target, of_teacher[0], of_teacher[1], scale)
        return terms(log_p, log_q, jnp.exp(log_q), *parameters)
    q = real(target)
    return terms(log_p, log_of_probabilities(q), q, *parameters)


def d_divergence(
    terms: Callable[..., tuple[Array, Array]], logits: Array, target: Array, stats, total: Array, scale, *parameters
) -> Array:
    r"""The derivative with respect to the student's logits: $\mathrm{scale} (\varphi'_i - p_i \sum_j \varphi'_j)$.

    $\varphi' = p \partial\varphi/\partial p$; `total` is its sum.
    """
    of_student = divergence_terms(terms, logits, target, stats, scale, *parameters)[1]
    softmax = jnp.exp(log_probabilities(logits, stats[0], stats[1], scale))
    return scale * (of_student - softmax * total[..., None])


def kl_terms(log_p: Array, log_q: Array, q: Array) -> tuple[Array, Array]:
    r"""$\varphi$ and $p \partial\varphi/\partial p$ of a class in the KL divergence, $q \log(q / p)$ and $-q$."""
    none = q == 0
    return q * (jnp.where(none, 0, log_q) - jnp.where(none, 0, log_p)), -q


@jax.custom_jvp
def js_terms(log_p: Array, log_q: Array, q: Array, beta: float | Array) -> tuple[Array, Array]:
    r"""The same of the Jensen-Shannon divergence; the second is $(1 - \beta) p \log(p / m)$."""
    log_p_m, log_q_m = mixture_ratios(log_p, log_q, beta)
    of_student = (1 - beta) * _product(jnp.exp(log_p), log_p_m)
    return beta * _product(q, log_q_m) + of_student, of_student


@functools.partial(js_terms.defjvp, symbolic_zeros=True)
def _js_terms_jvp(primals, tangents):
    """Written out, for what JAX would make of it has 1 / m in it, which cancels, but only up to its rounding.

    The tangent of `q` stands for that of `log_q` too.
    """
    log_p, log_q, q, beta = primals
    log_p_dot, _, q_dot, beta_dot = (None if isinstance(dot, SymbolicZero) else dot for dot in tangents)
    value, of_student = js_terms(*primals)
    log_p_m, log_q_m = mixture_ratios(log_p, log_q, beta)
    p, p_m, q_m = jnp.exp(log_p), jnp.exp(log_p_m), jnp.exp(log_q_m)
    p_m, q_m = jnp.where(log_p == -jnp.inf, 0, p_m), jnp.where(log_q == -jnp.inf, 0, q_m)
    value_dot, of_student_dot = jnp.zeros_like(value), jnp.zeros_like(value)
    if log_p_dot is not None:
        value_dot += of_student * log_p_dot
        of_student_dot += (of_student + (1 - beta) * beta * p * q_m) * log_p_dot
    if q_dot is not None:
        value_dot += beta * jnp.where(q == 0, 0, log_q_m) * q_dot
        of_student_dot -= (1 - beta) * beta * p_m * jnp.where(q == 0, 0, q_dot)
    if beta_dot is not None:
        of_p = _product(p, log_p_m)
        value_dot += (_product(q, log_q_m) - q - of_p + p) * beta_dot
        of_student_dot -= (of_p + (1 - beta) * p * (q_m - p_m)) * beta_dot
    return (value, of_student), (value_dot, of_student_dot)


def mixture_ratios(log_p: Array, log_q: Array, beta: float | Array) -> tuple[Array, Array]:
    r"""$\log(p / m)$ and $\log(q / m)$ with $m = \beta q + (1 - \beta) p$; finite, whatever, where p or q is 0."""
    masked = (log_p == -jnp.inf) | (log_q == -jnp.inf)
    difference = jnp.where(masked, 0, log_q) - jnp.where(masked, 0, log_p)
    teacher_larger = log_q > log_p
    # m over the larger of the two. Not the exponential of −|difference|, whose derivative at 0 would be 0.
    ratio = jnp.where(masked, 0, jnp.exp(jnp.where(teacher_larger, -difference, difference)))
    of_larger, of_smaller = jnp.where(teacher_larger, beta, 1 - beta), jnp.where(teacher_larger, 1 - beta, beta)
    log_mixture = jnp.log(of_larger + of_smaller * ratio)
    log_p_over_larger = jnp.where(teacher_larger, -difference, 0)
    return log_p_over_larger - log_mixture, jnp.where(teacher_larger, 0, difference) - log_mixture
