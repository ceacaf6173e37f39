"""Multiclass cross entropy with its options, its derivative and its statistics."""

from __future__ import annotations

# Some annotations of jax.numpy are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
import math
from collections.abc import Iterable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss.formulas.arithmetic import Array, product, real, with_derivatives_of

Options = dict[str, Array]
Target = Array | tuple[Array, Array, ArrayLike]


def categorical_cross_entropy(logits: Array, target: Target, clip: float | None = 1e-7, **options: ArrayLike) -> Array:
    r"""$\sum_i -b_i \log \max(t_i, \mathrm{clip}) + \zeta \log^2 \sum_i e^{z_i}$ of rows, $t = \mathrm{softmax}(z)$.

    The target is `[..., V]` probabilities, or `[...]` class indices: then $a$ is 1 at the index and 0 elsewhere, and a
    row whose index is out of range gives NaN; or, mixed, `(labels, other_labels, share)`. Without options $z = x$ and
    $b = a$, else $z$ are the `scaled_logits` and $b$ the `class_targets`; options are named as the arguments of
    `jaxloss.categorical_cross_entropy`.
    """
    a, operands, classes = _unmixed(logits, target, options)
    return cross_entropy_results(logits, a, operands, clip, classes)["losses"]


def d_categorical_cross_entropy(logits: Array, target: Target, **options: ArrayLike) -> Array:
    r"""The derivative with respect to the logits, $((\sum_j b_j + 2 \zeta \log \sum_j e^{z_j}) t_i - b_i) dz_i / dx_i$.

    It is 0 in a row whose index is out of range.
    """
    a, operands, classes = _unmixed(logits, target, options)
    return cross_entropy_results(logits, a, operands, None, classes)["gradient"]


def _unmixed(logits: Array, target: Target, given: dict[str, ArrayLike]) -> tuple[Array, Options, int]:
    """The first target, the options with what is mixed into it, and the number of classes."""
    dtype = real(logits).dtype
    options = {name: jnp.asarray(value) for name, value in given.items()}
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


def only(options: Options, *names: str) -> dict[str, Array]:
    """Those of the options."""
    return {name: option for name, option in options.items() if name in names}


def counted_classes(x: Array, options: Options) -> Array | bool:
    """Which classes are no padding."""
    if "num_classes" not in options:
        return True
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) < _along(options["num_classes"], x)


def scaled_logits(logits: Array, target: Array | None, options: Options) -> Array:
    r"""$z = (s \tanh(x / s) - m a) / T$ with softcap $s$, margin $m$ of the label ($a$ is 1 there), temperature $T$.

    It is $-\infty$ for padding beyond `num_classes`. Without a target, there is no margin: what rows are ranked by.
    """
    counted = counted_classes(logits, options)
    z = real(logits)
    if counted is not True:
        z = jnp.where(counted, z, 0)
    if "softcap" in options:
        z = capped(z, _along(options["softcap"], z))
    if "margin" in options and target is not None:
        z = z - jnp.where(one_hot(target, z.shape[-1]), _along(options["margin"], z), 0)
    if "temperature" in options:
        z = z / _along(options["temperature"], z)
    return z if counted is True else jnp.where(counted, z, -jnp.inf)


def with_maximum(z: Array, maximum: Array, options: Options) -> Array:
    """The scaled logits `[..., V]`, the `maximum` of their row where they differ from it by their rounding alone.

    A kernel that gave the maximum may have rounded it in another way, and a compiler makes a quotient or a product anew
    where it is used, in a difference without rounding it. Of a class that leads, that would be all of the loss.
    """
    if not only(options, "softcap", "margin", "temperature"):
        return z
    rounding = jnp.minimum(8 * jnp.finfo(z.dtype).eps * jnp.abs(maximum), 0.25)[..., None]
    is_maximum = jnp.abs(z - maximum[..., None]) <= rounding
    return with_derivatives_of(z, jnp.where(is_maximum, maximum[..., None], z))


@jax.custom_jvp
def capped(x: Array, cap: Array) -> Array:
    r"""$s \tanh(x / s)$. Its derivatives are right relative to themselves, however small, and at an infinite $x$."""
    return cap * jnp.tanh(x / cap)


@capped.defjvp
def _capped_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, cap), (x_dot, cap_dot) = primals, tangents
    u = _in_caps(x, cap)
    return capped(x, cap), _cap_slope(u) * x_dot + _cap_slope_of_cap(u) * cap_dot


def _in_caps(x: Array, cap: Array) -> Array:
    """$x / s$, bounded: all that is made of it has its limit long before, and then so have its derivatives."""
    bound = 500 * jax.lax.stop_gradient(cap)
    return jnp.where(x > bound, bound, jnp.where(x < -bound, -bound, x)) / cap


def _cap_slope(u: Array) -> Array:
    r"""$\mathrm{sech}^2 u$; $1 - \tanh^2 u$ would lose the digits of a small one."""
    decay = jnp.exp(-2 * jnp.where(u < 0, -u, u))
    return 4 * decay / jnp.square(1 + decay)


def _series_of_cap(terms: int) -> list[float]:
    r"""The coefficients of $\tanh u - u \,\mathrm{sech}^2 u = u^3 \sum_k a_k u^{2k}$.

    Those of $\tanh u$ follow from $\tanh' = 1 - \tanh^2$, and each term of $u \tanh' u$ is that of $\tanh u$ times its
    exponent.
    """
    of_tanh = [1.0]
    for k in range(1, terms + 1):
        of_tanh.append(-sum(of_tanh[i] * of_tanh[k - 1 - i] for i in range(k)) / (2 * k + 1))
    return [-2 * k * of_tanh[k] for k in range(1, terms + 1)]


_SERIES_OF_CAP = _series_of_cap(14)
"""For |u| < 0.4 in float64: each term is less than 0.07 of the one before."""


def _cap_slope_of_cap(u: Array) -> Array:
    r"""$\tanh u - u \,\mathrm{sech}^2 u$: of a small $u$, where the two cancel, by its series."""
    small = jnp.abs(u) < 0.4
    inside = jnp.where(small, u, 0)
    square = jnp.square(inside)
    series = jnp.zeros_like(square)
    for coefficient in reversed(_SERIES_OF_CAP):
        series = series * square + coefficient
    return jnp.where(small, series * square * inside, jnp.tanh(u) - u * _cap_slope(u))


def logit_slopes(logits: Array, options: Options) -> Array | float:
    """The derivative of the `scaled_logits` with respect to the logits."""
    slope = 1.0
    if "softcap" in options:
        counted = counted_classes(logits, options)
        x = real(logits) if counted is True else jnp.where(counted, real(logits), 0)
        slope = _cap_slope(_in_caps(x, _along(options["softcap"], x)))
    if "temperature" in options:
        slope = slope / _along(options["temperature"], logits)
    return slope


def given_targets(logits: Array, target: Array, options: Options) -> Array:
    """The target $a$ of each class, with 1 for a class index, and shares of 1 for two that are mixed."""
    x = real(logits)
    if not jnp.issubdtype(target.dtype, jnp.integer):
        counted = counted_classes(x, options)
        return real(target).astype(x.dtype) if counted is True else jnp.where(counted, real(target), 0).astype(x.dtype)
    first = one_hot(target, x.shape[-1])
    if "second_label" not in options:
        return first.astype(x.dtype)
    # Selected, not multiplied: an infinite loss of one label is then no part of the derivative of the other's share.
    mix, second = _along(options["mix"], x), one_hot(options["second_label"], x.shape[-1])
    return jnp.where(first, mix, 0) + jnp.where(second, 1 - mix, 0)


def class_targets(logits: Array, target: Array, options: Options, classes: int) -> Array:
    r"""$b = w ((1 - \varepsilon) a + \varepsilon / K)$: with smoothing over the $K$ `classes`, times class weights.

    A masked class, of which $z$ is $-\infty$, has no $\varepsilon / K$.
    """
    b = given_targets(logits, target, options)
    if "label_smoothing" in options:
        smoothing = _along(options["label_smoothing"], b)
        unmasked = jax.lax.stop_gradient(scaled_logits(logits, None, options)) != -jnp.inf
        b = (1 - smoothing) * b + smoothing / classes * unmasked.astype(b.dtype)
    if "class_weights" in options:
        weights = options["class_weights"]
        b = b * jax.lax.expand_dims(weights, range(weights.ndim - 1, b.ndim - 1))
    counted = counted_classes(b, options)
    return b if counted is True else jnp.where(counted, b, 0)


def target_totals(logits: Array, target: Array, options: Options, classes: int) -> Array:
    """What the `class_targets` of each row sum to.

    Of labels without class weights it is counted, not summed over the classes: nothing of their size is made, and a row
    has the same bits whatever the order in which XLA would add up a batch of as many.
    """
    if not jnp.issubdtype(target.dtype, jnp.integer) or "class_weights" in options:
        return class_targets(logits, target, options, classes).sum(axis=-1)
    dtype = real(logits).dtype

    def counted(labels: Array) -> Array:
        return valid_rows(logits, labels, only(options, "num_classes")).astype(dtype)

    total = counted(target)
    if "second_label" in options:
        mix = _along(options["mix"], total)
        total = mix * total + (1 - mix) * counted(options["second_label"])
    if "label_smoothing" in options:
        smoothing = _along(options["label_smoothing"], total)
        unmasked = (scaled_logits(logits, None, options) != -jnp.inf).sum(axis=-1, dtype=jnp.int32)
        total = (1 - smoothing) * total + smoothing * (unmasked.astype(dtype) / classes)
    return total


def valid_rows(logits: Array, target: Array, options: Options) -> Array:
    """Whether the class indices of each row are indices of classes."""
    if not jnp.issubdtype(target.dtype, jnp.integer):
        return jnp.ones(target.shape[:-1], bool)
    classes = logits.shape[-1]
    if "num_classes" in options:
        classes = _along(options["num_classes"], target)
    valid = in_range(target, classes)
    return valid & in_range(options["second_label"], classes) if "second_label" in options else valid


def cross_entropy_results(
    logits: Array, target: Array, options: Options, clip: float | None, classes: int
) -> dict[str, Array]:
    """Everything that is known of rows with `options`, by name: losses, gradient and statistics.

    Args:
        logits: `[..., V]`.
        target: class indices `[...]` or probabilities `[..., V]`.
        options: operands by name.
        clip: of the losses.
        classes: how many classes smoothing is spread over.
    """
    z, valid = scaled_logits(logits, target, options), valid_rows(logits, target, options)
    a, b = given_targets(logits, target, options), class_targets(logits, target, options, classes)
    maximum, log_sum = softmax_stats(z)
    z = with_maximum(z, maximum, options)
    lse, z_minus_maximum = maximum + log_sum, z - maximum[..., None]
    losses = jnp.sum(product(b, nll(z_minus_maximum, log_sum[..., None], clip)), axis=-1)
    total, beyond = jnp.sum(b, axis=-1), jnp.sum(jnp.where(z == maximum[..., None], 0, b), axis=-1)
    if "z_loss" in options:
        z_loss = _along(options["z_loss"], lse)
        of_total = product(2 * z_loss, lse)
        losses, total, beyond = losses + product(z_loss, lse * lse), total + of_total, beyond + of_total
    softmax = softmax_of(z, maximum, log_sum)
    derivative = d_cross_entropy_with_options(logits, target, options, maximum, log_sum, total, classes, beyond)
    ranked = scaled_logits(logits, None, options)
    counted = valid & has_softmax(log_sum)
    return {
        "losses": jnp.where(counted, losses, jnp.nan),
        "maximum": maximum,
        "log_sum": log_sum,
        "nll": jnp.where(counted, jnp.sum(product(a, log_sum[..., None] - z_minus_maximum), axis=-1), jnp.nan),
        "entropy": jnp.sum(product(softmax, log_sum[..., None] - z_minus_maximum), axis=-1),
        "predicted": predicted_classes(ranked),
        "rank": label_ranks(ranked, target, options, classes),
        "gradient": jnp.where(valid[..., None], derivative, 0),
    }


def d_cross_entropy_with_options(
    logits: Array,
    target: Array,
    options: Options,
    maximum: Array,
    log_sum: Array,
    total: Array,
    classes: int,
    beyond: Array | None = None,
) -> Array:
    """The derivative with respect to the logits, of valid rows whose statistics are known.

    `total` is what the softmax is multiplied by, `beyond` that without the target of the largest logit.
    """
    z, b = scaled_logits(logits, target, options), class_targets(logits, target, options, classes)
    z = with_maximum(z, maximum, options)
    return softmax_minus_target(z, maximum, log_sum, total, b, beyond) * logit_slopes(logits, options)


def softmax_of(z: Array, maximum: Array, log_sum: Array) -> Array:
    """The softmax of rows whose `softmax_stats` are known: one exponential of both would round their difference."""
    return jnp.exp(z - maximum[..., None]) * jnp.exp(-log_sum)[..., None]


def softmax_minus_target(
    z: Array, maximum: Array, log_sum: Array, total: Array, target: Array, beyond: Array | None = None
) -> Array:
    r"""$T t_i - b_i$ of rows whose `softmax_stats` are known, with $t = \mathrm{softmax}(z)$ and a `total` $T$.

    Of a logit that has 0.6 of the softmax, which no other is near, as $T (t_i - 1) + (T - b_i)$: where $t_i$ is near
    1, $T t_i - b_i$ would lose the digits. `beyond`, $T - b_i$ of that logit, is right where it is small beside both.
    """
    softmax = softmax_of(z, maximum, log_sum)
    difference = softmax * total[..., None] - target
    others = total[..., None] - target if beyond is None else beyond[..., None]
    of_largest = (total * jnp.expm1(-log_sum))[..., None] + others
    # No choice between the two, whose shardings may differ where shardings are part of the types.
    largest = ((z == maximum[..., None]) & (log_sum < -math.log(0.6))[..., None]).astype(difference.dtype)
    return with_derivatives_of(difference, difference + largest * (of_largest - difference))


def label_derivative(nll: Array, total: Array, target: Array, others: Array) -> Array:
    r"""$T t_i - b_i$ of classes whose $-\log t_i$ is known, with a `total` $T$, from `others`, $T - b_i$.

    As $T (t_i - 1) + (T - b_i)$, in which nothing cancels of a class that is nearly certain. Where $t_i$ is less than a
    half, and most of $T$ is not $b_i$, the two would be what cancels.
    """
    exact = total * jnp.expm1(-nll) + others
    from_zero = (nll > math.log(2)) & (jnp.abs(2 * target) < jnp.abs(total))
    return jnp.where(from_zero, total * jnp.exp(-nll) - target, exact)


def has_softmax(log_sum: Array) -> Array:
    """Whether a row has one: its loss is NaN where it has none, also where no class is a target."""
    return ~jnp.isnan(log_sum)


def predicted_classes(z: Array) -> Array:
    """The first class with the largest logit; NaNs are passed over."""
    if z.shape[-1] == 0:
        return jnp.zeros(z.shape[:-1], jnp.int32)
    return jnp.argmax(jnp.where(jnp.isnan(z), -jnp.inf, z), axis=-1).astype(jnp.int32)


def label_ranks(z: Array, target: Array, options: Options, classes: int) -> Array:
    """How many classes come before the label in order of logits, of equal ones the first.

    It is `classes` where there is no one label.
    """
    if not jnp.issubdtype(target.dtype, jnp.integer):
        return jnp.full(z.shape[:-1], classes, jnp.int32)
    is_label = one_hot(target, z.shape[-1])
    of_label = jnp.sum(jnp.where(is_label, z, 0), axis=-1, keepdims=True)
    earlier = jax.lax.broadcasted_iota(target.dtype, z.shape, z.ndim - 1) < target[..., None]
    before = jnp.sum((z > of_label) | ((z == of_label) & earlier), axis=-1, dtype=jnp.int32)
    has_label = valid_rows(z, target, only(options, "num_classes"))
    return jnp.where(has_label, before, classes)


def softmax_stats(logits: Array) -> tuple[Array, Array]:
    r"""The maximum $m$ of each row, and $\log \sum_i e^{x_i - m}$.

    Their sum is the log-sum-exp, but it is left to cancel against $x - m$: an offset of all logits then costs no
    digits.
    """
    return tempered_softmax_stats(logits, 1)


def tempered_softmax_stats(logits: Array, scale: float | Array) -> tuple[Array, Array]:
    r"""The maximum $m$ of each row, and $\log \sum_i e^{(x_i - m) \cdot \mathrm{scale}}$.

    A scale is 1 over a temperature; an array broadcasts along the logits.
    """
    maximum, rest = tempered_softmax_sums(logits, scale)
    return maximum, jnp.log1p(rest)


def tempered_softmax_sums(logits: Array, scale: float | Array) -> tuple[Array, Array]:
    r"""The maximum $m$ of each row, and $\sum_i e^{(x_i - m) \cdot \mathrm{scale}} - 1$.

    The 1 is the term of one of the largest: a sum that has it loses the digits of what is small beside it.
    """
    x = real(logits)
    maximum = jax.lax.stop_gradient(jnp.max(x, axis=-1, initial=jnp.finfo(x.dtype).min))
    difference, largest = x - maximum[..., None], x == maximum[..., None]
    # Of a quotient, which a compiler makes anew without rounding it, the difference from itself may be another.
    exactly = jnp.where(largest & jnp.isfinite(maximum)[..., None], 0, difference)
    exponentials = jnp.exp(with_derivatives_of(difference, exactly) * scale)
    others, count = _summed_together(jnp.where(largest, exponentials - 1, exponentials), largest.astype(x.dtype))
    return maximum, with_derivatives_of(jnp.sum(exponentials, axis=-1), others + (count - 1))


@jax.custom_jvp
def _summed_together(*of_classes: Array) -> list[Array]:
    """The sums over the last axis: on a GPU by one reduction, for which it launches one kernel.

    A CPU would add up the operands of one reduction one number after the other, whose rounding grows with their number.
    """

    def added(a: Iterable[Array], b: Iterable[Array]) -> tuple[Array, ...]:
        return tuple(map(jnp.add, a, b))

    def by_one_reduction(*of_classes: Array) -> list[Array]:
        zeros = tuple(jnp.zeros((), x.dtype) for x in of_classes)
        return list(jax.lax.reduce(of_classes, zeros, added, (of_classes[0].ndim - 1,)))

    def one_by_one(*of_classes: Array) -> list[Array]:
        return [x.sum(axis=-1) for x in of_classes]

    return cast("list[Array]", jax.lax.platform_dependent(*of_classes, cpu=one_by_one, default=by_one_reduction))


@_summed_together.defjvp
def _summed_together_jvp(of_classes: Sequence[Array], dots: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    # JAX's own rule for a reduction of several arrays fails where one of them has no tangent.
    return _summed_together(*of_classes), [dot.sum(axis=-1) for dot in dots]


def sums_of_slice(maximum: Array, of_slice: Array, rest: Array, scale: float | Array = 1) -> tuple[Array, Array]:
    """What a slice of rows, with these `tempered_softmax_sums`, adds to those of the whole rows: see `rest_of_sums`.

    `maximum` is that of the whole rows.
    """
    leads = of_slice == maximum
    rest = jnp.where(leads, rest, jnp.exp((of_slice - maximum) * scale) * (1 + rest))
    return rest, leads.astype(rest.dtype)


def rest_of_sums(rest: Array, leading: Array) -> Array:
    """The second of the `tempered_softmax_sums` of whole rows, from sums over slices: one term of 1 is left out."""
    return rest + (leading - 1)


def log_of_sums(rest: Array, leading: Array) -> Array:
    """The log of the `softmax_stats` of whole rows, from sums over slices."""
    return jnp.log1p(rest_of_sums(rest, leading))


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
