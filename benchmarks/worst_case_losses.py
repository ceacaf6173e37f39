"""Every loss as `benchmarks.worst_cases` compares it: by jaxloss, by XLA, and in extended precision with a bound.

Bounds are those of docs/accuracy.md, "Small numbers" and "Worst cases". They are in units in the last place of float32:
of the result, or of the larger of two numbers that it is the difference of. An exponential below the smallest normal
number may be 0, which loses as much as was made of it.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss
from benchmarks import accuracy_losses
from benchmarks import worst_case_rows as rows
from benchmarks.accuracy import spacing
from jaxloss import formulas

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "support"))
import extended_precision as exact

Array = np.ndarray
TINY = float(np.finfo(np.float32).smallest_normal)
# Widths and their shares of the rows. Narrow rows find trouble of a class or an element, wide ones that of kernels.
OF_CLASSES = {2: 0.5, 3: 0.2, 10: 0.22, 33: 0.063, 129: 0.0155, 1000: 0.00148, 50257: 0.00002}
OF_ELEMENTS = {1: 0.9, 10: 0.08, 129: 0.0195, 4096: 0.0005}


@dataclasses.dataclass(frozen=True)
class Exact:
    """Losses of rows and their gradients in extended precision, and how far from them a result may be.

    Attributes:
        losses: `[N]`.
        gradient: `[N, V]`.
        loss_bound: of the error.
        gradient_bound: of the error before the gradient is rounded to its type.
        defined: where there is a derivative.
    """

    losses: Array
    gradient: Array
    loss_bound: Array
    gradient_bound: Array
    defined: Array | bool = True


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes:
        ours: the sum over rows by jaxloss, without a clip.
        formula: the losses of elements or rows, in plain JAX.
        exact: `(x, a, base_2)` to `Exact`; `base_2` is 2 where the exponential is one of base 2, whose argument is
            rounded once more, else 1.
        predictions: what draws them.
        targets: what draws them, given the predictions; None where there are none.
        widths: of the rows, with the share of rows of that width.
    """

    ours: Callable
    formula: Callable
    exact: Callable[..., Exact]
    predictions: Callable
    targets: Callable | None
    widths: dict[int, float]

    def drawn(self, random, count: int, width: int, dtype: str) -> rows.Drawn:
        return rows.drawn(random, count, width, dtype, self.predictions, self.targets)

    def compiled(self, drawn: rows.Drawn) -> dict[str, Callable]:
        """Losses of rows and their gradients, in one program each."""
        operands = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (drawn.x, drawn.a) if each is not None]
        return accuracy_losses.of_rows(self.ours, self.formula, *operands)


def _units(numbers) -> Array:
    return spacing(np.asarray(numbers, np.float64), np.float32)


# ---- elements --------------------------------------------------------------------------------------------------------

ULPS_OF_ELEMENT = 4
# Of a small error e the loss is e²/2: three roundings (of e, counted twice, and of its square) are up to 3 ulp at the
# lower end of a power of 2, to which its logarithm's come.
ULPS_OF_LOG_COSH = 5


def _of_error(
    value: Callable, derivative: Callable, kinked: bool = False, ulps_of_loss: int = ULPS_OF_ELEMENT
) -> Callable[..., Exact]:
    """Of x − a, which is rounded relative to itself."""

    def of(x, a, base_2):
        del base_2
        error = exact.extended(x) - exact.extended(a)
        losses, gradient = value(error).sum(1), derivative(error)
        bounds = ulps_of_loss * _units(losses), ULPS_OF_ELEMENT * _units(gradient)
        return Exact(losses, gradient, *bounds, error != 0 if kinked else True)

    return of


def _huber(error: Array) -> Array:
    size = np.abs(error)
    return np.where(size <= 1, error**2 / 2, size - np.longdouble(0.5))


def _log_cosh(error: Array) -> Array:
    size = np.abs(error)
    small = 2 * np.sinh(np.minimum(size, 1) / 2) ** 2  # cosh − 1
    return np.where(size < 1, np.log1p(small), size + np.log1p(np.exp(-2 * size)) - np.log(np.longdouble(2)))


def _binary(x, a, base_2) -> Exact:
    """A gradient of soft targets is in units of the larger of the two numbers that it is the difference of."""
    del base_2
    losses, gradient, larger = exact.binary_cross_entropy(x, a)
    losses, a = losses.sum(1), exact.extended(a)
    scale = np.where((a == 0) | (a == 1), gradient, larger)
    return Exact(losses, gradient, ULPS_OF_ELEMENT * _units(losses), ULPS_OF_ELEMENT * _units(scale))


# ---- rows of classes -------------------------------------------------------------------------------------------------

ULPS_OF_ROW = 16


class Row(exact.Softmax):
    """A softmax, and how exact is what is made of it."""

    @functools.cached_property
    def rest_below(self) -> Array:
        """How far the classes are below the leading one: their mean by probability."""
        return self.without_leader(self.exponentials * self.below) / np.maximum(self.rest, np.finfo(np.longdouble).tiny)

    @functools.cached_property
    def class_below(self) -> Array:
        """The same of one class; of all but the leading one for that, whose gradient is made of theirs."""
        below = self.below.copy()
        below[self.rows, self.leader] = self.rest_below
        return below

    @functools.cached_property
    def lost(self) -> Array:
        """The exponentials that may be 0."""
        return np.where(self.probability < TINY, self.exponentials, 0)

    @functools.cached_property
    def lost_with_logarithm(self) -> Array:
        """The same, with what has the logarithm of a probability for a factor."""
        return self.lost * (1 + self.nll)

    def loss_bound(self, scale: Array, base_2: int, lost: Array | None = None) -> Array:
        """Of a loss made of the sum of the exponentials; `lost`: of each class, if it is not its exponential."""
        lost = self.lost if lost is None else lost
        return (ULPS_OF_ROW + base_2 * self.rest_below) * _units(scale) + lost.sum(1)

    def gradient_bound(self, scale: Array, ulps_of_exponent: Array, lost: Array | None = None) -> Array:
        """Of elements made of one class's exponential, or for the leading class of those of all others."""
        of_class = np.where(self.probability < TINY, scale, 0)
        of_class[self.rows, self.leader] += (self.lost if lost is None else lost).sum(1)
        return (ULPS_OF_ROW + ulps_of_exponent) * _units(scale) + of_class


def _row(x) -> Row:
    return Row(exact.extended(x))


def _labels(x, labels, base_2) -> Exact:
    s = _row(x)
    losses, gradient = exact.cross_entropy_of_labels(s, labels)
    return Exact(
        losses, gradient, s.loss_bound(losses, base_2), s.gradient_bound(np.abs(gradient), base_2 * s.class_below)
    )


def _log_prob(x, labels, base_2) -> Exact:
    of = _labels(x, labels, base_2)
    return dataclasses.replace(of, losses=-of.losses, gradient=-of.gradient)


def _probabilities(x, a, base_2) -> Exact:
    """A gradient is in units of the larger of the two numbers that it is the difference of; its own if a is one-hot."""
    s, a = _row(x), exact.extended(a)
    losses, gradient = exact.cross_entropy_of_probabilities(s, a)
    total = a.sum(1, keepdims=True)
    one_hot = ((a != 0).sum(1, keepdims=True) == 1) & (total == 1)
    scale = np.where(one_hot, np.abs(gradient), np.maximum(s.probability * total, a))
    return Exact(losses, gradient, s.loss_bound(losses, base_2), s.gradient_bound(scale, base_2 * s.class_below))


def _entropy(x, base_2) -> Exact:
    """A gradient is in units of p and of the larger of −log p and the entropy, whose difference it has for a factor."""
    s = _row(x)
    scale = s.probability * np.maximum(s.nll, s.entropy[:, None])
    return Exact(
        s.entropy,
        s.entropy_gradient,
        s.loss_bound(s.entropy, base_2, s.lost_with_logarithm),
        s.gradient_bound(scale, base_2 * s.class_below, s.lost_with_logarithm),
    )


# A divergence's p is the exponential of log p, which is rounded twice: less the maximum, less the sum's logarithm.
TWICE = 2


def _kl_of_probabilities(x, a, base_2) -> Exact:
    """A loss is in units of what it is made of: the sums of |a log a| and of −a log t."""
    s, a = _row(x), exact.extended(a)
    losses, gradient, size = exact.kl_divergence_of_probabilities(s, a)
    scale = np.maximum(s.probability * a.sum(1, keepdims=True), a)
    return Exact(losses, gradient, s.loss_bound(size, base_2), s.gradient_bound(scale, TWICE * base_2 * s.nll))


def _divergence_bound(losses: Array) -> Array:
    return 1e-4 * np.asarray(losses, np.float64) + 2e-13


def _kl_of_logits(x, y, base_2) -> Exact:
    s, teacher = _row(x), _row(y)
    losses, gradient = exact.kl_divergence(s, teacher)
    scale = np.maximum(s.probability, teacher.probability)
    scale = np.minimum(scale, 2 * np.maximum(s.missing, teacher.missing))  # of a class that both are sure of
    of_exponents = TWICE * base_2 * sum(row.class_below + row.log_sum[:, None] for row in (s, teacher))
    bound = s.gradient_bound(scale, of_exponents) + TINY  # either of its two terms may be 0
    return Exact(losses, gradient, _divergence_bound(losses), bound)


def _jensen_shannon(x, y, base_2) -> Exact:
    """A gradient is in units of (1 − β) p and of the larger of the two numbers that it is the difference of."""
    s, teacher = _row(x), _row(y)
    losses, gradient, larger = exact.jensen_shannon(s, teacher, 0.5)
    scale = np.maximum(s.probability / 2, larger)
    of_exponents = TWICE * base_2 * (s.nll + teacher.nll)
    bound = s.gradient_bound(scale, of_exponents, s.lost_with_logarithm) + TINY  # either of the two may be 0
    return Exact(losses, gradient, _divergence_bound(losses), bound)


# ---- all of them -----------------------------------------------------------------------------------------------------


def _elements(name: str, of: Callable[..., Exact], predictions=rows.numbers, targets=rows.near_numbers) -> Loss:
    known = accuracy_losses.LOSSES[name]
    return Loss(known.ours, known.formula, of, predictions, targets, OF_ELEMENTS)


def _classes(name: str, of: Callable[..., Exact], targets: Callable) -> Loss:
    known = accuracy_losses.LOSSES[name]
    return Loss(known.ours, known.formula, of, rows.logits, targets, OF_CLASSES)


def _number(x):
    return x.astype(jnp.float32)


def _log_prob_by_xla(x, labels):
    return jnp.take_along_axis(jax.nn.log_softmax(_number(x)), labels[..., None], -1)


def _entropy_by_xla(x):
    log_p = jax.nn.log_softmax(_number(x))
    return -(jnp.exp(log_p) * log_p).sum(-1)


def _kl_by_xla(x, y):
    return optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(_number(x)), jax.nn.log_softmax(_number(y)))


def _quantile(x, a, **options):
    return jaxloss.quantile(x, a, q=0.75, **options)


def _summed(rows_of: Callable) -> Callable:
    return lambda *operands, reduction: rows_of(*operands).sum()


LOSSES = {
    "mse": _elements("mse", _of_error(lambda e: e**2 / 2, lambda e: e)),
    "mae": _elements("mae", _of_error(np.abs, np.sign, kinked=True)),
    "huber": _elements("huber", _of_error(_huber, lambda e: np.clip(e, -1, 1))),
    "log_cosh": _elements("log_cosh", _of_error(_log_cosh, np.tanh, ulps_of_loss=ULPS_OF_LOG_COSH)),
    "quantile, q = ¾": Loss(
        _quantile,
        lambda x, a: formulas.quantile(_number(x), _number(a), 0.75),
        _of_error(lambda e: np.where(e < 0, -0.75, 0.25) * e, lambda e: np.where(e < 0, -0.75, 0.25), kinked=True),
        rows.numbers,
        rows.near_numbers,
        OF_ELEMENTS,
    ),
    "binary_cross_entropy, hard": _elements("binary_cross_entropy", _binary, rows.binary_logits, rows.hard_shares),
    "binary_cross_entropy, soft": _elements("binary_cross_entropy", _binary, rows.binary_logits, rows.shares),
    "categorical_cross_entropy, labels": _classes("categorical_cross_entropy, labels", _labels, rows.labels),
    "categorical_cross_entropy, probabilities": _classes(
        "categorical_cross_entropy, probabilities", _probabilities, rows.probabilities
    ),
    "log_prob": Loss(_summed(jaxloss.log_prob), _log_prob_by_xla, _log_prob, rows.logits, rows.labels, OF_CLASSES),
    "entropy": Loss(_summed(jaxloss.entropy), _entropy_by_xla, _entropy, rows.logits, None, OF_CLASSES),
    "kl_divergence, probabilities": _classes("kl_divergence", _kl_of_probabilities, rows.probabilities),
    "kl_divergence, logits": Loss(
        lambda x, y, **options: jaxloss.kl_divergence(x, y, target_type="logits", **options),
        _kl_by_xla,
        _kl_of_logits,
        rows.logits,
        rows.teacher_logits,
        OF_CLASSES,
    ),
    "jensen_shannon": _classes("jensen_shannon", _jensen_shannon, rows.teacher_logits),
}
