"""optax's losses of two classes."""

from __future__ import annotations

# Some annotations of jax.numpy are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._arrays import Array
from jaxloss._checks.arrays import array
from jaxloss._docs.described import described
from jaxloss.binary import binary_cross_entropy
from jaxloss.optax._docs import MARGINS, SIGMOIDS
from jaxloss.optax._operands import broadcast, floating, number, of_type, one_program, signed, wide, with_derivatives

_LARGE = 1e30  # stands for an infinite logit: of any loss of it, the derivatives of all orders are finite


@one_program
@described(SIGMOIDS)
def sigmoid_binary_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""Binary cross entropy of each element, $-a \log \sigma(x) - (1 - a) \log \sigma(-x)$.

    Args:
        logits: <logits> Infinite logits that agree with the label are fine.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.sigmoid_binary_cross_entropy(jnp.array([0.0, 2.0]), jnp.array([1, 0])))
    [0.69315 2.12693 ]

    Source: I. Goodfellow, Y. Bengio and A. Courville, *Deep Learning* (2016), section 6.2.2.2.
    """
    x, a = _logits_and_labels(logits, labels)
    return of_type(_cross_entropy(x, a), x)


@one_program
@described(SIGMOIDS)
def sigmoid_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike | None = None, gamma: ArrayLike = 2.0
) -> Array:
    r"""The focal loss of each element, $\alpha_t (1 - p_t)^\gamma$ times its binary cross entropy.

    $$1 - p_t = (1 - a)\, \sigma(x) + a\, \sigma(-x), \qquad \alpha_t = \alpha a + (1 - \alpha)(1 - a)$$

    Args:
        alpha: the weight of positive examples, in `[0, 1]`. Default: both kinds weigh 1.
        gamma: the exponent; 0 gives binary cross entropy.

    Returns:
        An array of the shape that the operands broadcast to, of the type that `logits`, `alpha` and `gamma` promote to.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.sigmoid_focal_loss(jnp.array([0.0, 2.0]), jnp.array([1, 0])))
    [0.17329 1.65008]

    Source: T.-Y. Lin et al., *Focal Loss for Dense Object Detection* (2017).
    """
    x, a = _logits_and_labels(logits, labels)
    operands = (x, gamma) if alpha is None else (x, gamma, alpha)
    gamma = wide(number("gamma", gamma))
    alpha = None if alpha is None else wide(number("alpha", alpha))
    broadcast(logits=x, labels=a, gamma=gamma, alpha=alpha)
    finite, a = _finite(wide(x)), wide(a)
    loss = _cross_entropy(finite, a) * _power_of_miss(finite, a, gamma)
    if alpha is not None:
        loss = (alpha * a + (1 - alpha) * (1 - a)) * loss
    infinite = jax.lax.stop_gradient(jnp.where(jnp.isinf(x) & (loss > 0), jnp.inf, 0))
    return of_type(loss + infinite, *operands)


@one_program
@described(MARGINS)
def hinge_loss(predictor_outputs: ArrayLike, targets: ArrayLike) -> Array:
    r"""The hinge loss of each element, $\max(0, 1 - x a)$.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.hinge_loss(jnp.array([0.5, 2.0]), jnp.array([1, -1])))
    [0.5 3. ]
    """
    x, a = number("predictor_outputs", predictor_outputs), number("targets", targets)
    broadcast(predictor_outputs=x, targets=a)
    return of_type(jnp.maximum(0, 1 - wide(x) * wide(a)), 1, predictor_outputs, targets)


@one_program
@described(MARGINS)
def perceptron_loss(predictor_outputs: ArrayLike, targets: ArrayLike) -> Array:
    r"""The perceptron loss of each element, $\max(0, -x a)$.

    Args:
        targets: $a$, -1 or 1, of the same shape.

    Returns:
        An array like `predictor_outputs`, of the type that the operands promote to.

    Raises:
        ValueError: the shapes are not equal.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.perceptron_loss(jnp.array([0.5, 2.0]), jnp.array([1, -1])))
    [0. 2.]
    """
    x, a = signed("predictor_outputs", predictor_outputs), number("targets", targets)
    if x.shape != a.shape:
        raise ValueError(f"targets has shape {a.shape}, predictor_outputs {x.shape}: expected equal shapes")
    return of_type(jnp.maximum(0, -wide(x) * wide(a)), 0, predictor_outputs, targets)


@one_program
@described(MARGINS)
def sparsemax_loss(logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""The binary sparsemax loss of each element.

    With $z = x$ for label 0 and $z = -x$ for label 1: 0 up to -1, $\frac14 (z + 1)^2$ up to 1, $z$ beyond.

    Args:
        logits: $x$.
        labels: 0 or 1; broadcasts with `logits`.

    Returns:
        An array of the shape that the operands broadcast to, of the type of `logits`.

    >>> import jax.numpy as jnp
    >>> from jaxloss import optax as losses
    >>> print(losses.sparsemax_loss(jnp.array([0.0, 3.0]), jnp.array([1, 0])))
    [0.25 3.  ]

    Source: M. Blondel, A. F. T. Martins and V. Niculae, *Learning with Fenchel-Young Losses* (2020), section 4.4.
    """
    x, a = number("logits", logits), array("labels", labels)
    broadcast(logits=x, labels=a)
    return of_type(_sparse_plus(jnp.where(a, -wide(x), wide(x))), 0.0, logits)


def _logits_and_labels(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Logits and labels of one shape; labels are no wider than what the loss is computed in."""
    x, a = floating("logits", logits), number("labels", labels)
    shape = broadcast(logits=x, labels=a)
    if a.dtype != x.dtype:
        a = a.astype(wide(x).dtype)
    return jnp.broadcast_to(x, shape), jnp.broadcast_to(a, shape)


def _cross_entropy(x: Array, a: Array) -> Array:
    return binary_cross_entropy(x, a, clip=None, reduction="none")


_sparse_plus = with_derivatives(jax.nn.sparse_plus, jax.nn.sparse_sigmoid)


def _finite_value(x: Array) -> Array:
    return jnp.where(jnp.isinf(x), jnp.copysign(_LARGE, x), x)


_finite = with_derivatives(_finite_value, jnp.ones_like)


def _log_miss_value(x: Array, a: Array) -> Array:
    one, zero = jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)
    one, zero = jnp.where(a == 1, -jnp.inf, one), jnp.where(a == 0, -jnp.inf, zero)
    largest = jnp.maximum(one, zero)
    return largest + jnp.log((1 - a) * jnp.exp(one - largest) + a * jnp.exp(zero - largest))


def _log_miss_by_logit(x: Array, a: Array) -> Array:
    return (1 - 2 * a) * jnp.exp(jax.nn.log_sigmoid(x) + jax.nn.log_sigmoid(-x) - _log_miss(x, a))


def _log_miss_by_label(x: Array, a: Array) -> Array:
    return -jnp.tanh(0.5 * x) * jnp.exp(-_log_miss(x, a))


# log(1 − p_t), as the logarithm of a sum of which no part underflows before it is taken.
_log_miss = with_derivatives(_log_miss_value, _log_miss_by_logit, _log_miss_by_label)


def _power_value(x: Array, a: Array, gamma: Array) -> Array:
    return jnp.exp(gamma * _log_miss(x, a))


def _power_by_logit(x: Array, a: Array, gamma: Array) -> Array:
    sides = jax.nn.log_sigmoid(x) + jax.nn.log_sigmoid(-x)
    return gamma * (1 - 2 * a) * jnp.exp(sides + (gamma - 1) * _log_miss(x, a))


def _power_by_label(x: Array, a: Array, gamma: Array) -> Array:
    return -gamma * jnp.tanh(0.5 * x) * jnp.exp((gamma - 1) * _log_miss(x, a))


def _power_by_gamma(x: Array, a: Array, gamma: Array) -> Array:
    return _log_miss(x, a) * _power_of_miss(x, a, gamma)


# (1 − p_t)^γ, whose derivatives are one exponential each: of two, one may be 0 and the other infinite.
_power_of_miss = with_derivatives(_power_value, _power_by_logit, _power_by_label, _power_by_gamma)
