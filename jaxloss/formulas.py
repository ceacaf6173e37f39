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


def categorical_cross_entropy(logits: Array, target, clip: float | None = 1e-7, **options) -> Array:
    r"""$\sum_i -b_i \log \max(t_i, \mathrm{clip}) + \zeta \log^2 \sum_i e^{z_i}$ of rows, $t = \mathrm{softmax}(z)$.

    The target is `[..., V]` probabilities, or `[...]` class indices: then $a$ is 1 at the index and 0 elsewhere, and a
    row whose index is out of range gives NaN; or, mixed, `(labels, other_labels, share)`. Without options $z = x$ and
    $b = a$, else $z$ are the `scaled_logits` and $b$ the `class_targets`; options are named as the arguments of
    `jaxloss.categorical_cross_entropy`.
    """
    target, options, classes = _unmixed(logits, target, options)
    return cross_entropy_results(logits, target, options, clip, classes)["losses"]


def d_categorical_cross_entropy(logits: Array, target, **options) -> Array:
    r"""The derivative with respect to the logits, $((\sum_j b_j + 2 \zeta \log \sum_j e^{z_j}) t_i - b_i) dz_i / dx_i$.

    It is 0 in a row whose index is out of range.
    """
    target, options, classes = _unmixed(logits, target, options)
    return cross_entropy_results(logits, target, options, None, classes)["gradient"]


def _unmixed(logits: Array, target, options: dict) -> tuple[Array, dict, int]:
    """The first target, the options with what is mixed into it, and the number of classes."""
    dtype = real(logits).dtype
    options = {name: jnp.asarray(value) for name, value in options.items()}
    options = {
        name: value if jnp.issubdtype(value.dtype, jnp.integer) and name == "num_classes" else value.astype(dtype)
        for name, value in options.items()
    }
    classes = logits.shape[-1] if "num_classes" not in options else int(options["num_classes"])
    if isinstance(target, tuple):
        target, options["second_label"], mix = target
        options["mix"] = jnp.asarray(mix, dtype)
    return target, options, classes


# In what follows `options` holds the operands of a call by name: `class_weights` `[rows..., V]`, all others with the
# first axes of the rows.


def _along(numbers: Array, x: Array) -> Array:
    """Numbers of rows, to be broadcast along the classes of `x`."""
    return jax.lax.expand_dims(numbers, range(numbers.ndim, x.ndim))


def counted_classes(x: Array, options) -> Array | bool:
    """Which classes are no padding."""
    if "num_classes" not in options:
        return True
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) < _along(options["num_classes"], x)


def scaled_logits(logits: Array, options) -> Array:
    r"""$z = s \tanh(x / s) / T$ with softcap $s$ and temperature $T$; $-\infty$ for padding beyond `num_classes`."""
    counted = counted_classes(logits, options)
    z = real(logits)
    if counted is not True:
        z = jnp.where(counted, z, 0)
    if "softcap" in options:
        cap = _along(options["softcap"], z)
        z = cap * jnp.tanh(z / cap)
    if "temperature" in options:
        z = z / _along(options["temperature"], z)
    return z if counted is True else jnp.where(counted, z, -jnp.inf)


def logit_slopes(logits: Array, options) -> Array | float:
    """The derivative of the `scaled_logits` with respect to the logits."""
    slope = 1.0
    if "softcap" in options:
        counted = counted_classes(logits, options)
        x = real(logits) if counted is True else jnp.where(counted, real(logits), 0)
        tangent = jnp.tanh(x / _along(options["softcap"], x))
        slope = 1 - tangent * tangent
    if "temperature" in options:
        slope = slope / _along(options["temperature"], logits)
    return slope


def given_targets(logits: Array, target: Array, options) -> Array:
    """The target $a$ of each class, with 1 for a class index, and shares of 1 for two that are mixed."""
    x = real(logits)
    if not jnp.issubdtype(target.dtype, jnp.integer):
        counted = counted_classes(x, options)
        return real(target).astype(x.dtype) if counted is True else jnp.where(counted, real(target), 0).astype(x.dtype)
    a = one_hot(target, x.shape[-1]).astype(x.dtype)
    if "second_label" not in options:
        return a
    mix = _along(options["mix"], x)
    return mix * a + (1 - mix) * one_hot(options["second_label"], x.shape[-1])


def class_targets(logits: Array, target: Array, options, classes: int) -> Array:
    r"""$b = w ((1 - \varepsilon) a + \varepsilon / K)$: with smoothing over the $K$ `classes`, times class weights."""
    b = given_targets(logits, target, options)
    if "label_smoothing" in options:
        smoothing = _along(options["label_smoothing"], b)
        b = (1 - smoothing) * b + smoothing / classes
    if "class_weights" in options:
        weights = options["class_weights"]
        b = b * jax.lax.expand_dims(weights, range(weights.ndim - 1, b.ndim - 1))
    counted = counted_classes(b, options)
    return b if counted is True else jnp.where(counted, b, 0)


def valid_rows(logits: Array, target: Array, options) -> Array:
    """Whether the class indices of each row are indices of classes."""
    if not jnp.issubdtype(target.dtype, jnp.integer):
        return jnp.ones(target.shape[:-1], bool)
    classes = logits.shape[-1]
    if "num_classes" in options:
        classes = _along(options["num_classes"], target)
    valid = in_range(target, classes)
    return valid & in_range(options["second_label"], classes) if "second_label" in options else valid


def cross_entropy_results(logits: Array, target: Array, options, clip: float | None, classes: int) -> dict[str, Array]:
    """Everything that is known of rows with `options`, by name: losses, gradient and statistics.

    Args:
        logits: `[..., V]`.
        target: class indices `[...]` or probabilities `[..., V]`.
        options: operands by name.
        clip: of the losses.
        classes: how many classes smoothing is spread over.
    """
    z, valid = scaled_logits(logits, options), valid_rows(logits, target, options)
    a, b = given_targets(logits, target, options), class_targets(logits, target, options, classes)
    maximum, log_sum = softmax_stats(z)
    lse, z_minus_maximum = maximum + log_sum, z - maximum[..., None]
    losses = jnp.sum(_product(b, nll(z_minus_maximum, log_sum[..., None], clip)), axis=-1)
    total = jnp.sum(b, axis=-1)
    if "z_loss" in options:
        z_loss = _along(options["z_loss"], lse)
        losses, total = losses + _product(z_loss, lse * lse), total + _product(2 * z_loss, lse)
    softmax = jnp.exp(z_minus_maximum - log_sum[..., None])
    derivative = d_cross_entropy_with_options(logits, target, options, maximum, log_sum, total, classes)
    return {
        "losses": jnp.where(valid, losses, jnp.nan),
        "maximum": maximum,
        "log_sum": log_sum,
        "nll": jnp.where(valid, jnp.sum(_product(a, log_sum[..., None] - z_minus_maximum), axis=-1), jnp.nan),
        "entropy": jnp.sum(_product(softmax, log_sum[..., None] - z_minus_maximum), axis=-1),
        "predicted": predicted_classes(z),
        "rank": label_ranks(z, target, options, classes),
        "gradient": jnp.where(valid[..., None], derivative, 0),
    }


def d_cross_entropy_with_options(
    logits: Array, target: Array, options, maximum: Array, log_sum: Array, total: Array, classes: int
) -> Array:
    """The derivative with respect to the logits, of valid rows whose statistics are known.

    `total` is what the softmax is multiplied by.
    """
    z, b = scaled_logits(logits, options), class_targets(logits, target, options, classes)
    softmax = jnp.exp(z - maximum[..., None] - log_sum[..., None])
    return (softmax * total[..., None] - b) * logit_slopes(logits, options)


def predicted_classes(z: Array) -> Array:
    """The first class with the largest logit; NaNs are passed over."""
    if z.shape[-1] == 0:
        return jnp.zeros(z.shape[:-1], jnp.int32)
    return jnp.argmax(jnp.where(jnp.isnan(z), -jnp.inf, z), axis=-1).astype(jnp.int32)


def label_ranks(z: Array, target: Array, options, classes: int) -> Array:
    """How many classes come before the label in order of logits, of equal ones the first.

    It is `classes` where there is no one label.
    """
    if not jnp.issubdtype(target.dtype, jnp.integer):
        return jnp.full(z.shape[:-1], classes, jnp.int32)
    is_label = one_hot(target, z.shape[-1])
    of_label = jnp.sum(jnp.where(is_label, z, 0), axis=-1, keepdims=True)
    earlier = jax.lax.broadcasted_iota(target.dtype, z.shape, z.ndim - 1) < target[..., None]
    before = jnp.sum((z > of_label) | ((z == of_label) & earlier), axis=-1, dtype=jnp.int32)
    has_label = valid_rows(z, target, {name: options[name] for name in ("num_classes",) if name in options})
    return jnp.where(has_label, before, classes)


def softmax_stats(logits: Array) -> tuple[Array, Array]:
    r"""The maximum $m$ of each row, and $\log \sum_i e^{x_i - m}$.

    Their sum is the log-sum-exp, but it is left to cancel against $x - m$: an offset of all logits then costs no
    digits.
    """
    x = real(logits)
    maximum = jax.lax.stop_gradient(jnp.max(x, axis=-1, initial=jnp.finfo(x.dtype).min))
    return maximum, jnp.log(jnp.sum(jnp.exp(x - maximum[..., None]), axis=-1))


def nll(logit_minus_maximum: Array, log_sum: Array, clip: float | None) -> Array:
    r"""$-\log \max(t, \mathrm{clip})$ of a class, from its logit and the `softmax_stats` of its row."""
    loss = log_sum - logit_minus_maximum
    return jnp.minimum(loss, -math.log(clip)) if clip else loss


def one_hot(labels: Array, classes: int) -> Array:
    """`[..., classes]` booleans, true at the label."""
    return labels[..., None] == jax.lax.broadcasted_iota(labels.dtype, (*labels.shape, classes), labels.ndim)


def in_range(labels: Array, classes: int | Array) -> Array:
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
