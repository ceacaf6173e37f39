"""Divergences of distributions over classes, and their derivatives."""

from __future__ import annotations

# Some annotations of jax.numpy are partial.
# pyright: reportUnknownMemberType=false
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxloss.formulas.arithmetic import Array, product, real, with_derivatives_of
from jaxloss.formulas.categorical import tempered_softmax_sums


def kl_divergence(
    logits: Array, target: Array, *, target_type: str = "probabilities", temperature: float | Array = 1.0
) -> Array:
    r"""$\sum_i a_i (\log a_i - \log t_i)$ with $t = \mathrm{softmax}(x / T)$, for each row of logits `[..., V]`.

    The target is probabilities $a$ `[..., V]`, or, with `target_type="logits"`, logits $y$ with
    $a = \mathrm{softmax}(y / T)$. A term with $a_i = 0$ is 0, and so is its derivative.
    """
    stats, shift = divergence_stats(logits, target, target_type == "logits", 1 / temperature)
    return jnp.sum(divergence_terms(kl_terms, logits, target, stats, 1 / temperature, shift=shift)[0], axis=-1)


def d_kl_divergence(
    logits: Array, target: Array, *, target_type: str = "probabilities", temperature: float | Array = 1.0
) -> Array:
    r"""The derivative with respect to the logits, $(t_i \sum_j a_j - a_i) / T$."""
    scale = 1 / temperature
    stats, _ = divergence_stats(logits, target, target_type == "logits", scale)
    total = jnp.sum(divergence_terms(kl_terms, logits, target, stats, scale)[1], axis=-1)
    return scale * d_divergence_of_tempered(kl_terms, logits, target, stats, total, scale)


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
    stats, shift = divergence_stats(student_logits, teacher_logits, target_type == "logits", scale)
    terms = divergence_terms(js_terms, student_logits, teacher_logits, stats, scale, beta, shift=shift)
    return jnp.sum(terms[0], axis=-1)


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
    stats, _ = divergence_stats(student_logits, teacher_logits, target_type == "logits", scale)
    total = jnp.sum(divergence_terms(js_terms, student_logits, teacher_logits, stats, scale, beta)[1], axis=-1)
    return scale * d_divergence_of_tempered(js_terms, student_logits, teacher_logits, stats, total, scale, beta)


def divergence_stats(
    logits: Array, target: Array, of_logits: bool, scale: float | Array
) -> tuple[tuple[Array, ...], Array | None]:
    """The maximum and log-sum of the student and of a teacher that is given as logits; then `log_sums_ratio`."""
    student = tempered_softmax_sums(logits, scale)
    return stats_of_sums(student, tempered_softmax_sums(target, scale) if of_logits else None)


def stats_of_sums(
    student: tuple[Array, Array], teacher: tuple[Array, Array] | None
) -> tuple[tuple[Array, ...], Array | None]:
    """The `divergence_stats`, from the `tempered_softmax_sums` of the student and of a teacher's logits."""
    maximum, rest = student
    stats = maximum, jnp.log1p(rest)
    if teacher is None:
        return stats, None
    return (*stats, teacher[0], jnp.log1p(teacher[1])), log_sums_ratio(rest, teacher[1])


def log_sums_ratio(rest: Array, of_teacher: Array) -> Array:
    r"""$\log\frac{1 + r}{1 + r'}$ of the student's and the teacher's sums of exponentials.

    It is right relative to itself, and to what the sums are. The difference of two logarithms, of which each is rounded
    as a number of up to the logarithm of the number of classes, would be a hundred times as far off where the two
    distributions are close; and what it is off by comes squared in their divergence.
    """
    lower, higher = jnp.minimum(rest, of_teacher), jnp.maximum(rest, of_teacher)
    return jnp.where(rest < of_teacher, -1, 1) * jnp.log1p((higher - lower) / (1 + lower))


def above_maximum(logits: Array, maximum: Array) -> Array:
    """What the logits are above their row's maximum; 0 for a masked class, of which no scale makes anything else."""
    x = real(logits)
    return jnp.where(x == -jnp.inf, 0, x - maximum[..., None])


def log_probabilities(logits: Array, maximum: Array, log_sum: Array, scale: float | Array) -> Array:
    """The logarithm of the softmax of rows whose `tempered_softmax_stats` are known; -Inf for a masked class."""
    masked = real(logits) == -jnp.inf
    # Of a row without any class there is no softmax, nor of one with a NaN.
    of_masked = jnp.where(log_sum > -jnp.inf, -jnp.inf, jnp.nan)[..., None]
    return jnp.where(masked, of_masked, scale * above_maximum(logits, maximum) - log_sum[..., None])


def log_of_probabilities(probabilities: Array) -> Array:
    """The logarithm, -Inf with derivative 0 for 0."""
    none = probabilities == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, probabilities)))


def divergence_terms(
    terms: Callable[..., tuple[Array, Array]],
    logits: Array,
    target: Array,
    stats: Sequence[Array],
    scale: float | Array,
    *parameters: float | Array,
    shift: Array | None = None,
) -> tuple[Array, Array]:
    r"""What `terms` gives for each class: $\varphi$, which a divergence sums up, and $p \partial\varphi/\partial p$.

    `stats` and `shift` are the `divergence_stats`. The former also tell what the target is; the latter is not needed
    for what comes second.
    """
    maximum, log_sum, *of_teacher = stats
    log_p = log_probabilities(logits, maximum, log_sum, scale)
    if not of_teacher:
        q = real(target)
        return terms(log_p, log_of_probabilities(q), q, *parameters)
    log_q = log_probabilities(target, of_teacher[0], of_teacher[1], scale)
    q = jnp.exp(log_q)
    value, of_student = terms(log_p, log_q, q, *parameters)
    if shift is None:
        return value, of_student
    ratio = log_ratios(logits, target, (maximum, of_teacher[0]), shift, scale, log_p - log_q)
    return with_derivatives_of(value, _OF_RATIOS[terms](value, ratio, jnp.exp(log_p), q, *parameters)), of_student


def log_ratios(
    logits: Array,
    target: Array,
    maxima: tuple[Array, Array],
    shift: Array,
    scale: float | Array,
    of_masked: Array | float,
) -> Array:
    r"""$\log(p / q)$ of a teacher's logits, right relative to itself up to what is the same for all classes of a row.

    That of the maxima is subtracted from the exact difference of the logits: what is left is small where distributions
    are close, and only then rounded.
    """
    maximum, teacher_maximum = (numbers[..., None] for numbers in maxima)
    x, y = real(logits), real(target)
    masked = (x == -jnp.inf) | (y == -jnp.inf)
    x, y = jnp.where(masked, 0, x), jnp.where(masked, 0, y)
    (logits, lost), (between, lost_between) = _difference(x, y), _difference(maximum, teacher_maximum)
    ratio = scale * ((logits - between) + (lost - lost_between)) - shift[..., None]
    return jnp.where(masked, of_masked, ratio)


def _difference(x: Array, y: Array) -> tuple[Array, Array]:
    """$x - y$, and what its rounding lost: together they are exact. Nothing is lost of an infinite one."""
    rounded = x - y
    minus_y = rounded - x
    return rounded, jnp.where(jnp.isfinite(rounded), (x - (rounded - minus_y)) - (y + minus_y), 0)


def _close(ratio: Array) -> float:
    """Below so much of it a series is more exact than the difference that it is of."""
    return 1 / 512 if ratio.dtype == jnp.float64 else 1 / 8


def _kl_of_ratios(value: Array, ratio: Array, p: Array, q: Array) -> Array:
    r"""$q (e^d - 1 - d)$ with $d = \log(p / q)$: the sum is that of $q \log(q / p)$, and no term is negative."""
    # p and q are as exact as their logarithms.
    close = jnp.abs(ratio) < (_close(ratio) if ratio.dtype == jnp.float64 else 1 / 2)
    d = jnp.where(close, ratio, 0)
    series: Array | float = 0.0
    for k in range(8, 1, -1):
        series = series * d + 1 / math.factorial(k)
    return jnp.where(close, q * (d * d) * series, (p - q) + value)


def _js_of_ratios(value: Array, ratio: Array, p: Array, q: Array, beta: float | Array) -> Array:
    r"""The same value; of a small $d$ by its series in $u = e^d - 1$, whose linear terms cancel.

    With $a = 1 - \beta$, it is $q (a (1 + u) \log(1 + u) - (1 + a u) \log(1 + a u))$.
    """
    del p
    close = jnp.abs(ratio) < _close(ratio)
    d, a = jnp.where(close, ratio, 0), 1 - beta
    u = d + d * d * (1 / 2 + d * (1 / 6 + d / 24))
    two = 1 + a
    three = 1 + a * two
    four = 1 + a * three
    five = 1 + a * four
    series = 1 / 2 - u * (two / 6 - u * (three / 12 - u * (four / 20 - u * five / 30)))
    return jnp.where(close, q * a * beta * (u * u) * series, value)


def d_divergence_of_tempered(
    terms: Callable[..., tuple[Array, Array]],
    logits: Array,
    target: Array,
    stats: Sequence[Array],
    total: Array,
    scale: float | Array,
    *parameters: float | Array,
) -> Array:
    r"""The derivative with respect to the student's logits times the scale: $\varphi'_i - p_i \sum_j \varphi'_j$.

    $\varphi' = p \partial\varphi/\partial p$; `total` is its sum.
    """
    of_student = divergence_terms(terms, logits, target, stats, scale, *parameters)[1]
    maximum, log_sum, *of_teacher = stats
    p = jnp.exp(log_probabilities(logits, maximum, log_sum, scale))
    derivative = of_student - p * total[..., None]
    if terms is kl_terms and of_teacher:
        return _p_minus_q(derivative, -of_student, logits, target, stats, scale)
    return derivative


def _p_minus_q(
    difference: Array, q: Array, logits: Array, target: Array, stats: Sequence[Array], scale: float | Array
) -> Array:
    """The difference of both distributions; where they are close, right relative to itself and not to them."""
    maximum, log_sum, teacher_maximum, teacher_log_sum = stats
    shift = log_sums_ratio(jnp.expm1(log_sum), jnp.expm1(teacher_log_sum))
    ratio = log_ratios(logits, target, (maximum, teacher_maximum), shift, scale, jnp.inf)
    return with_derivatives_of(difference, jnp.where(jnp.abs(ratio) < 1 / 2, q * jnp.expm1(ratio), difference))


def kl_terms(log_p: Array, log_q: Array, q: Array) -> tuple[Array, Array]:
    r"""$\varphi$ and $p \partial\varphi/\partial p$ of a class in the KL divergence, $q \log(q / p)$ and $-q$."""
    none = q == 0
    return q * (jnp.where(none, 0, log_q) - jnp.where(none, 0, log_p)), -q


def reverse_kl_terms(log_p: Array, log_q: Array, q: Array) -> tuple[Array, Array]:
    r"""The same of the reverse divergence, $p \log(p / q)$, twice: $p$ more in the second changes no derivative."""
    del q
    value = product(jnp.exp(log_p), log_p - log_q)
    return value, value


@jax.custom_jvp
def js_terms(log_p: Array, log_q: Array, q: Array, beta: float | Array) -> tuple[Array, Array]:
    r"""The same of the Jensen-Shannon divergence; the second is $(1 - \beta) p \log(p / m)$."""
    log_p_m, log_q_m = mixture_ratios(log_p, log_q, beta)
    of_student = (1 - beta) * product(jnp.exp(log_p), log_p_m)
    return beta * product(q, log_q_m) + of_student, of_student


@functools.partial(js_terms.defjvp, symbolic_zeros=True)
def _js_terms_jvp(
    primals: Sequence[Array], tangents: Sequence[Array | SymbolicZero]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
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
        of_p = product(p, log_p_m)
        value_dot += (product(q, log_q_m) - q - of_p + p) * beta_dot
        of_student_dot -= (of_p + (1 - beta) * p * (q_m - p_m)) * beta_dot
    return (value, of_student), (value_dot, of_student_dot)


def _reverse_kl_of_ratios(value: Array, ratio: Array, p: Array, q: Array) -> Array:
    return _kl_of_ratios(value, -ratio, q, p)


_OF_RATIOS = {kl_terms: _kl_of_ratios, reverse_kl_terms: _reverse_kl_of_ratios, js_terms: _js_of_ratios}


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
