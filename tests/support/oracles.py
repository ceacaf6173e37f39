"""The losses in float64 NumPy: values, derivatives and every option, from their definition, sharing no code with jaxloss.

`squared_error`, `binary_cross_entropy` and `categorical_cross_entropy` know one element or one row; `reduced` knows what the
options mean. Each result comes with the magnitude of the terms that were added up to it, which `tolerance.bound` needs.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Terms:
    """Losses before their reduction, per element or per row, and their derivatives; each with its magnitude."""

    loss: tuple[Array, Array]
    of_prediction: tuple[Array, Array]
    of_target: tuple[Array, Array]


def squared_error(x: Array, a: Array, clip: float | None) -> Terms:
    del clip
    difference = x - a
    loss = difference**2 / 2
    return Terms((loss, loss), (difference, abs(difference)), (-difference, abs(difference)))


def absolute_error(x: Array, a: Array, clip: float | None) -> Terms:
    del clip
    return _of_error(x, a, abs(x - a), np.sign(x - a))


def huber(x: Array, a: Array, clip: float | None, *, delta: float = 1.0) -> Terms:
    del clip
    error = x - a
    loss = np.where(abs(error) <= delta, error**2 / 2, delta * (abs(error) - delta / 2))
    return _of_error(x, a, loss, np.clip(error, -delta, delta))


def log_cosh(x: Array, a: Array, clip: float | None) -> Terms:
    del clip
    error = abs(x - a)
    small = np.log1p(2 * np.sinh(np.minimum(error, 1) / 2) ** 2)  # in which nothing cancels
    return _of_error(x, a, np.where(error < 1, small, np.logaddexp(error, -error) - np.log(2)), np.tanh(x - a))


def quantile(x: Array, a: Array, clip: float | None, *, q: float) -> Terms:
    del clip
    error = a - x
    return _of_error(x, a, np.maximum(q * error, (q - 1) * error), np.where(error > 0, -q, (1 - q) * -np.sign(error)))


def poisson_nll(x: Array, a: Array, clip: float | None) -> Terms:
    del clip
    rate = np.exp(x)
    # An error of x is one of the rate times x.
    size = _product(rate, np.maximum(1, abs(x))) + abs(a)
    return Terms((rate - _product(a, x), rate + abs(_product(a, x))), (rate - a, size), (-x, abs(x)))


def gaussian_nll(x: Array, a: Array, clip: float | None, *, variance: Array | float) -> Terms:
    del clip
    error, logarithm = x - a, np.log(np.asarray(variance, np.float64))
    square, derivative = error**2 / variance, error / variance
    size = abs(logarithm) + square
    return Terms(((logarithm + square) / 2, size), (derivative, abs(derivative)), (-derivative, abs(derivative)))


def _of_error(x: Array, a: Array, loss: Array, derivative: Array) -> Terms:
    """A loss of the error x − a, which is rounded as it is computed: as far as that goes, so does the derivative."""
    derivative = np.where(np.isnan(x - a), np.nan, derivative)
    return Terms((loss, abs(loss)), (derivative, abs(derivative)), (-derivative, abs(derivative)))


def weighted_sum_of(parts: dict[Callable[..., Terms], float]) -> Callable[..., Terms]:
    """The oracle of a sum of losses, from theirs and their factors."""

    def elements(x: Array, a: Array, clip: float | None) -> Terms:
        terms = [(part(x, a, clip), factor) for part, factor in parts.items()]

        def total(name: str) -> tuple[Array, Array]:
            pairs = [(getattr(term, name), factor) for term, factor in terms]
            return sum(factor * pair[0] for pair, factor in pairs), sum(abs(factor) * pair[1] for pair, factor in pairs)

        return Terms(total("loss"), total("of_prediction"), total("of_target"))

    return elements


def binary_cross_entropy_with_options(
    x: Array,
    a: Array,
    clip: float | None,
    *,
    class_weights: Array | float = 1.0,
    pos_weight: Array | float = 1.0,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    focal_alpha: float | None = None,
) -> Terms:
    """c α q^γ (−p a′ log t − (1 − a′) log(1 − t)), a′ = a (1 − ε) + ε/2, q = a′ (1 − t) + (1 − a′) t."""
    soft = a * (1 - label_smoothing) + label_smoothing / 2
    t, not_t = (np.where(y < 0, np.exp(-abs(y)), 1) / (1 + np.exp(-abs(y))) for y in (x, -x))
    exact = np.logaddexp(0, -x), np.logaddexp(0, x)
    clipped = tuple(np.clip(nll, -np.log1p(-clip), -np.log(clip)) for nll in exact) if clip else exact
    with np.errstate(divide="ignore"):  # the power of a q that float64 does not hold may be an ordinary number
        log_q = np.logaddexp(np.log(soft) - exact[1], np.log(1 - soft) - exact[0])
    power = np.exp(focal_gamma * log_q) if focal_gamma else np.ones_like(log_q)
    alpha = 1.0 if focal_alpha is None else focal_alpha * soft + (1 - focal_alpha) * (1 - soft)
    factor = _product(np.broadcast_to(class_weights * alpha, log_q.shape), power)
    # An error of the exponent γ log q is one of the power times the exponent.
    size = 1 + abs(_product(np.full_like(log_q, focal_gamma), np.where(power == 0, 0, log_q)))

    def weighted(if_one: Array, if_zero: Array) -> Array:
        return _product(pos_weight * soft, if_one) + _product(1 - soft, if_zero)

    # Of a certain logit, log t vanishes as q does.
    slope = np.where(np.isinf(log_q), 0, (1 - 2 * soft) * np.exp(-exact[0] - exact[1] - log_q))
    d_nll = (1 - soft) * t, pos_weight * soft * not_t
    focused = _product(focal_gamma * slope, weighted(*exact))
    derivative = _product(factor, focused + d_nll[0] - d_nll[1])
    d_size = _product(abs(factor), size * (abs(focused) + abs(d_nll[0]) + abs(d_nll[1])))

    d_alpha = 0.0 if focal_alpha is None else 2 * focal_alpha - 1
    lower = np.where(focal_gamma == 0, 0, np.exp((focal_gamma - 1) * log_q))
    terms = (
        _product(d_alpha * power, weighted(*exact)),
        _product(alpha * focal_gamma * (1 - 2 * t) * lower, weighted(*exact)),
        _product(alpha * power * pos_weight, exact[0]),
        -_product(alpha * power, exact[1]),
    )
    scale = (1 - label_smoothing) * class_weights
    loss = _product(factor, weighted(*clipped))
    return Terms(
        (loss, _product(abs(loss), size)),
        (derivative, d_size),
        (_product(scale, sum(terms)), _product(abs(scale), size * sum(map(abs, terms)))),
    )


def binary_cross_entropy(x: Array, a: Array, clip: float | None) -> Terms:
    sigmoid = np.where(x < 0, np.exp(-abs(x)), 1) / (1 + np.exp(-abs(x)))
    if_one, if_zero = np.logaddexp(0, -x), np.logaddexp(0, x)  # −log t, −log(1 − t)
    if clip:
        if_one, if_zero = (np.clip(nll, -np.log1p(-clip), -np.log(clip)) for nll in (if_one, if_zero))
    one, zero = _product(a, if_one), _product(1 - a, if_zero)
    return Terms((one + zero, abs(one) + abs(zero)), (sigmoid - a, sigmoid + abs(a)), (-x, abs(x)))


def categorical_cross_entropy(x: Array, a: Array, clip: float | None) -> Terms:
    """Rows of classes along the last axis; class indices `[...]` of an integer type or probabilities."""
    classes = x.shape[-1]
    valid = np.ones(x.shape[:-1], bool)
    if np.issubdtype(a.dtype, np.integer):
        valid = (a >= 0) & (a < classes)
        a = (np.arange(classes) == a[..., None]) & valid[..., None]
    a = a.astype(np.float64)
    shifted = x - x.max(-1, keepdims=True, initial=np.finfo(np.float64).min)
    log_sum = np.log(np.exp(shifted).sum(-1, keepdims=True))
    softmax = np.exp(shifted - log_sum)
    exact = log_sum - shifted
    nll = np.minimum(exact, -np.log(clip)) if clip else exact
    size = 1 + abs(log_sum) + abs(np.where(np.isinf(shifted), 0, shifted))  # the 1: of the sum whose logarithm is taken
    has_softmax = ~np.isnan(log_sum[..., 0])
    loss = np.where(valid & has_softmax, _product(a, nll).sum(-1), np.nan)
    loss_size = _product(abs(a), size).sum(-1)
    total, total_size = a.sum(-1, keepdims=True), abs(a).sum(-1, keepdims=True)
    gradient = np.where(valid[..., None], softmax * total - a, 0)
    gradient_size = _product(softmax, size) * total_size + abs(a)
    return Terms((loss, loss_size), (gradient, gradient_size), (exact, size))


def categorical_cross_entropy_with_options(
    x: Array,
    a: Array,
    clip: float | None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    margin: float = 0.0,
    class_weights: Array | float = 1.0,
    num_classes: int | None = None,
) -> Terms:
    """The cross entropy of z = (s tanh(x / s) − margin of a label) / T with smoothed and weighted targets, and z_loss · lse².

    Of `num_classes` alone there is a probability.
    """
    classes = num_classes or x.shape[-1]
    counted, hot = np.arange(x.shape[-1]) < classes, np.zeros(x.shape, bool)
    valid = np.ones(x.shape[:-1], bool)
    if np.issubdtype(a.dtype, np.integer):
        valid = (a >= 0) & (a < classes)
        a = ((np.arange(x.shape[-1]) == a[..., None]) & valid[..., None]).astype(np.float64)
        hot = a > 0
    tangent = np.tanh(x / softcap) if softcap else np.zeros_like(x)
    lowered = margin * a if margin else 0
    z, slope = ((softcap * tangent if softcap else x) - lowered) / temperature, (1 - tangent**2) / temperature
    z = np.where(counted, z, -np.inf)
    factor = np.where(counted, np.broadcast_to(class_weights, x.shape), 0)
    target = factor * ((1 - label_smoothing) * a + label_smoothing / classes)
    terms = categorical_cross_entropy(z, target, clip)
    # The class of a label has what the others leave, also where its weight is 0 and it has no target itself.
    of_label = np.where(hot, np.maximum(1, abs(target).sum(-1, keepdims=True)), 0)
    maximum = z.max(-1, keepdims=True, initial=np.finfo(np.float64).min)
    powers = np.exp(z - maximum)
    lse = maximum + np.log(powers.sum(-1, keepdims=True))
    softmax = powers / powers.sum(-1, keepdims=True)
    # z is rounded like numbers of this size.
    cap = (softcap or (_reach(x) if temperature != 1 or margin else 0)) / temperature + abs(margin) / temperature
    loss = terms.loss[0] + z_loss * lse[..., 0] ** 2
    gradient = terms.of_prediction[0] + 2 * z_loss * lse * softmax
    # The target's part is what a number with that of the z-loss in it leaves, less that.
    gradient_size = (1 + 2 * z_loss * abs(lse)) * (terms.of_prediction[1] + softmax * (1 + cap) + of_label)
    keep = valid[..., None] & counted
    scale = (1 - label_smoothing) * factor
    of_row = cap if np.ndim(cap) == 0 else cap[..., 0]
    return Terms(
        (np.where(valid, loss, np.nan), terms.loss[1] + of_row + z_loss * lse[..., 0] ** 2),
        (np.where(keep, gradient * slope, 0), gradient_size / temperature),
        (_product(scale, terms.of_target[0]), abs(scale) * (terms.of_target[1] + cap)),
    )


def _reach(x: Array) -> Array:
    """The magnitude of the largest finite number of each row."""
    return np.where(np.isfinite(x), abs(x), 0).max(-1, keepdims=True, initial=0)


def _product(weight: Array, value: Array) -> Array:
    return np.where(weight == 0, 0, weight * value)


@dataclasses.dataclass(frozen=True)
class Expected:
    """A reduced loss and its gradients; each an exact result and the magnitude of its terms."""

    value: tuple[Array, Array]
    of_prediction: tuple[Array, Array]
    of_target: tuple[Array, Array]
    of_weights: tuple[Array, Array] | None
    of_normalizer: tuple[Array, Array] | None
    terms: int


def reduced(
    elements: Callable[[Array, Array, float | None], Terms],
    x: Array,
    a: Array,
    *,
    by_rows: bool,
    axis: int = -1,
    where: Array | None = None,
    ignore_index: int | None = None,
    weights: Array | None = None,
    clip: float | None = 1e-7,
    reduction: str = "mean",
    normalizer: float | None = None,
    cotangent: Array | None = None,
) -> Expected:
    """The loss with its options, and its gradients times `cotangent` (of the shape of the value; default 1)."""
    x, a = np.asarray(x), np.asarray(a)
    x = x.astype(np.float64)
    a = a if by_rows and np.issubdtype(a.dtype, np.integer) else a.astype(np.float64)

    def classes_last(array: Array) -> Array:
        return np.moveaxis(array, axis, -1) if by_rows and array.ndim == x.ndim else array

    with np.errstate(all="ignore"):
        terms = elements(classes_last(x), classes_last(a), clip)
    units = terms.loss[0].shape  # of the losses: elements or rows
    examples = units if by_rows else x.shape[:1]

    def per_unit(option: Array) -> Array:
        option = np.asarray(option)
        if option.shape == examples:
            option = option.reshape(examples + (1,) * (len(units) - len(examples)))
        elif by_rows:
            option = np.moveaxis(option.reshape((1,) * (x.ndim - option.ndim) + option.shape), axis, -1)[..., 0]
        return np.broadcast_to(option, units)

    counted = np.ones(units, bool) if where is None else per_unit(where)
    if ignore_index is not None:
        counted = counted & (classes_last(a) != ignore_index)
    weight = np.ones(units) if weights is None else per_unit(np.asarray(weights, np.float64))
    if normalizer is not None:
        n = float(normalizer)
    elif where is None and ignore_index is None:
        n = np.prod(examples)
    else:
        n = counted.any(tuple(range(len(examples), len(units)))).sum()
    scale = 1.0 if reduction != "mean" else 1 / n if n else 0.0

    def kept(pair: tuple[Array, Array], factor) -> tuple[Array, Array]:
        """What counts of the pair, times a factor per unit."""
        factor = np.broadcast_to(factor, units)
        keep = np.broadcast_to(counted, units)
        if pair[0].ndim > len(units):
            factor, keep = factor[..., None], keep[..., None]
        with np.errstate(all="ignore"):
            return np.where(keep, _product(factor, pair[0]), 0), np.where(keep, _product(abs(factor), pair[1]), 0)

    def summed(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN
            return pair[0].sum(), pair[1].sum()

    loss = kept(terms.loss, weight * scale)
    pulled = 1.0 if cotangent is None else np.asarray(cotangent, np.float64)
    of_prediction = kept(terms.of_prediction, weight * scale * pulled)
    of_target = kept(terms.of_target, weight * scale * pulled)
    if by_rows:
        of_prediction = tuple(np.moveaxis(array, -1, axis) for array in of_prediction)
        of_target = tuple(np.moveaxis(array, -1, axis) for array in of_target)
    of_weights = of_normalizer = None
    if weights is not None:
        of_weights = tuple(
            _gathered(per_unit, array, np.shape(weights))
            for array in kept(terms.loss, np.broadcast_to(scale * pulled, units))
        )
    if normalizer is not None:
        of_normalizer = tuple(
            part * factor for part, factor in zip(summed(loss), (-scale * pulled, abs(scale * pulled)), strict=True)
        )
    return Expected(
        value=loss if reduction == "none" else summed(loss),
        of_prediction=of_prediction,
        of_target=of_target,
        of_weights=of_weights,
        of_normalizer=of_normalizer,
        terms=max(1, x.size),
    )


def _gathered(spread: Callable[[Array], Array], values: Array, shape: tuple[int, ...]) -> Array:
    """The transpose of `spread`: values per unit, added up where they came from the same entry of an array of `shape`."""
    places = spread(np.arange(int(np.prod(shape))).reshape(shape))
    return np.bincount(places.ravel(), weights=values.ravel(), minlength=int(np.prod(shape))).reshape(shape)


# ---- divergences ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DivergenceTerms(Terms):
    """And the derivatives of each row with respect to the temperature and to beta, with their magnitudes."""

    of_temperature: tuple[Array, Array]
    of_beta: tuple[Array, Array]


def kl_divergence(x, a, clip=None, *, target_type="probabilities", temperature=1.0) -> DivergenceTerms:
    """Rows of classes along the last axis; a target of probabilities or logits."""
    del clip
    p, q = _student(x, temperature), _teacher(a, target_type, temperature)
    difference = np.where(q.value == 0, 0, q.log - np.where(q.value == 0, 0, p.log))
    size = _product(q.value, p.size + q.size * (1 + abs(difference)))
    loss, loss_size = _total(q.value * difference), _total(size)
    total, total_size = _total(q.value), _total(abs(q.value))
    gradient = p.value * total - q.value
    gradient_size = p.value * p.size * total_size + q.value * q.size
    if target_type == "logits":
        of_target = q.value * (difference - loss)
        of_target_size = q.value * (q.size * (abs(difference) + abs(loss)) + p.size + q.size + loss_size)
    else:
        of_target, of_target_size = np.where(q.value == 0, 0, difference + 1), p.size + q.size
    none = np.zeros_like(loss), np.zeros_like(loss)
    of_target = of_target, of_target_size
    return _untempered(p, q, (loss, loss_size), (gradient, gradient_size), of_target, none, target_type, temperature)


def jensen_shannon(x, a, clip=None, *, target_type="logits", beta=0.5, temperature=1.0) -> DivergenceTerms:
    """The same; `beta` is the teacher's share."""
    del clip
    p, q = _student(x, temperature), _teacher(a, target_type, temperature)
    log_m = np.logaddexp(np.log(beta) + q.log, np.log1p(-beta) + p.log)
    p_ratio, q_ratio = (np.where(of.log == -np.inf, 0, of.log - log_m) for of in (p, q))  # log p/m, log q/m
    size = _product(beta * q.value + (1 - beta) * p.value, p.size + q.size)
    of_p, of_q = p.value * p_ratio, q.value * q_ratio
    loss, loss_size = _total(beta * of_q + (1 - beta) * of_p), _total(size)
    p_total, q_total = _total(of_p), _total(of_q)
    p_size = _total(_product(p.value, p.size * (1 + abs(p_ratio)) + q.size))
    q_size = _total(_product(q.value, q.size * (1 + abs(q_ratio)) + p.size))
    gradient = (1 - beta) * p.value * (p_ratio - p_total)
    gradient_size = (1 - beta) * p.value * (p.size * (abs(p_ratio) + abs(p_total)) + p.size + q.size + p_size)
    if target_type == "logits":
        of_target = beta * q.value * (q_ratio - q_total)
        of_target_size = beta * q.value * (q.size * (abs(q_ratio) + abs(q_total)) + p.size + q.size + q_size)
    else:
        of_target, of_target_size = np.where(q.value == 0, 0, beta * q_ratio), beta * (p.size + q.size)
    of_beta = q_total - p_total - _total(q.value) + _total(p.value)
    of_beta_size = p_size + q_size + _total(q.value) + 1
    of_target, of_beta = (of_target, of_target_size), (of_beta, of_beta_size)
    return _untempered(p, q, (loss, loss_size), (gradient, gradient_size), of_target, of_beta, target_type, temperature)


def distillation(x: Array, a: Array, clip: float | None = None) -> Terms:
    """The sum of both divergences that `losses.DISTILLATION` is, of a teacher's logits and of an eighth of their exp."""
    kl = kl_divergence(x, a, clip, target_type="logits", temperature=1.5)
    probabilities = np.exp(a) / 8
    js = jensen_shannon(x, probabilities, clip, target_type="probabilities", beta=0.3)

    def added(name, factor=1.0):
        first, second = getattr(kl, name), getattr(js, name)
        return first[0] + factor * second[0], first[1] + factor * second[1]

    return Terms(added("loss"), added("of_prediction"), added("of_target", probabilities))


@dataclasses.dataclass(frozen=True)
class _Distribution:
    """Probabilities, their logarithms and the magnitude of these; and the logits above their maximum, 0 if masked."""

    value: Array
    log: Array
    size: Array
    shifted: Array


def _student(x: Array, temperature: float) -> _Distribution:
    shifted = x - x.max(-1, keepdims=True, initial=np.finfo(np.float64).min)
    tempered = shifted / temperature
    log_sum = np.log(np.exp(tempered).sum(-1, keepdims=True))
    log, shifted = tempered - log_sum, np.where(np.isinf(shifted), 0, shifted)
    size = 1 + abs(log_sum) + abs(shifted) / temperature
    return _Distribution(np.exp(log), log, size, shifted)


def _teacher(a: Array, target_type: str, temperature: float) -> _Distribution:
    if target_type == "logits":
        return _student(a, temperature)
    log = np.log(a)
    return _Distribution(a, log, 1 + np.where(np.isinf(log), 0, abs(log)), np.zeros_like(a))


def _untempered(p, q, loss, gradient, of_target, of_beta, target_type, temperature) -> DivergenceTerms:
    """With one number a row, and derivatives with respect to the logits themselves; those given are of tempered ones.

    Each derivative along a row of logits sums to 0, so that of the temperature may leave an offset out.
    """
    of_temperature, size = -gradient[0] * p.shifted, gradient[1] * abs(p.shifted)
    scale = 1.0
    if target_type == "logits":
        of_temperature, size = of_temperature - of_target[0] * q.shifted, size + of_target[1] * abs(q.shifted)
        scale = 1 / temperature
    return DivergenceTerms(
        loss=(loss[0][..., 0], loss[1][..., 0]),
        of_prediction=(gradient[0] / temperature, gradient[1] / temperature),
        of_target=(of_target[0] * scale, of_target[1] * scale),
        of_temperature=(_total(of_temperature)[..., 0] / temperature**2, _total(size)[..., 0] / temperature**2),
        of_beta=(of_beta[0][..., 0], of_beta[1][..., 0]),
    )


def _total(terms: Array) -> Array:
    return terms.sum(-1, keepdims=True)
