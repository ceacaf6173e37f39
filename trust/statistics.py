"""What statistics, `log_prob` and `entropy` say of rows, in float64 like the losses of `tests/support/oracles.py`."""

import numpy as np

import oracles
from oracles import Array, Terms

nll = oracles.categorical_cross_entropy_with_options


def log_prob(x: Array, a: Array, clip: float | None, **options) -> Terms:
    terms = nll(x, a, clip, **options)
    return Terms((-terms.loss[0], terms.loss[1]), (-terms.of_prediction[0], terms.of_prediction[1]), terms.of_target)


def _softmax(x, a, softcap=None, temperature=1.0, margin=0.0, num_classes=None):
    """Of the logits that the loss sees: softmax, its logarithm, log-sum-exp, slope, which classes count, magnitudes."""
    classes = num_classes or x.shape[-1]
    hot = (np.arange(x.shape[-1]) == a[..., None]) & (a < classes)[..., None]
    tangent = np.tanh(x / softcap) if softcap else np.zeros_like(x)
    z = ((softcap * tangent if softcap else x) - margin * hot) / temperature
    counted = np.arange(x.shape[-1]) < classes
    z, slope = np.where(counted, z, -np.inf), np.where(counted, (1 - tangent**2) / temperature, 0)
    maximum = z.max(-1, keepdims=True, initial=np.finfo(np.float64).min)
    log_sum = np.log(np.exp(z - maximum).sum(-1, keepdims=True))
    log_t = z - maximum - log_sum
    rounded = softcap or (
        np.where(np.isfinite(x), abs(x), 0).max(-1, keepdims=True, initial=0) if temperature != 1 or margin else 0
    )
    size = 1 + abs(log_sum) + np.where(np.isinf(z), 0, abs(z - maximum)) + (rounded + abs(margin)) / temperature
    return np.exp(log_t), log_t, maximum + log_sum, slope, counted, size / min(1.0, temperature)


def lse(x: Array, a: Array, clip: float | None, **options) -> Terms:
    del clip
    t, _, lse, slope, counted, size = _softmax(x, a, **options)
    size_of_row = size.max(-1, initial=0)
    none = np.zeros_like(x)
    derivative = np.where(counted, t * slope, 0)
    return Terms((lse[..., 0], size_of_row + abs(lse[..., 0])), (derivative, t * size), (none, none))


def entropy(x: Array, a: Array, clip: float | None, **options) -> Terms:
    del clip
    t, log_t, _, slope, counted, size = _softmax(x, a, **options)
    finite = np.where(np.isneginf(log_t), 0, log_t)
    entropy = -(t * finite).sum(-1, keepdims=True)
    # Where t errs by a share of itself, so does each term, and the logarithm by as much.
    of_row = (t * (1 + abs(finite)) * size).sum(-1, keepdims=True)
    derivative = np.where(counted, -t * (finite + entropy) * slope, 0)
    none = np.zeros_like(x)
    of_x = t * ((1 + abs(finite) + entropy) * size + of_row)
    return Terms((entropy[..., 0], of_row[..., 0]), (derivative, of_x), (none, none))


OF_ROWS = {"nll": nll, "lse": lse, "entropy": entropy}
"""The fields of `CrossEntropyStats` that have derivatives."""
