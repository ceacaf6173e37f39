"""Options that are traced and out of their range: every loss and gradient is NaN, in kernels and formulas alike.

A Python number out of range is an error (test_errors.py); of a traced one the loss would often look sound.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cross_entropy_options as samples
import jaxloss
import tolerance
from jaxloss._spec import OPTIONS
from quickly import jit_quickly

NAN, INF = np.nan, np.inf
X = np.float32([[2, 1, 0, -40], [0, 3, 0, -3], [1, 2, 3, 4], [NAN, NAN, 0, 0]])
WHERE = np.array([True, True, True, False])
LABELS, SHARES = np.int32([0, 1, 2, 9]), np.full((4, 4), 0.25, np.float32)
OF_TWO = np.float32([[0, 1, 0.5, 0], [1, 1, 0, 0], [1, 0, 1, 0], [NAN] * 4])
HIDDEN, KERNEL = np.ones((4, 2), np.float32), np.float32([[1, -1, 0.5, 2], [0, 1, 1, 0]])

OF_PROBABILITIES = {name: (number, samples.outside(name)) for name, number in samples.numbers("probabilities").items()}
OF_CLASSES = {name: (number, samples.outside(name)) for name, number in samples.numbers().items()}
SCALES = {name: OF_CLASSES[name] for name in OF_CLASSES if OPTIONS[name].of_distribution}
OF_TWO_CLASSES = {
    "label_smoothing": (0.125, [1.5, -0.25, NAN]),
    "focal_gamma": (1.5, [-1, NAN, INF]),
    "focal_alpha": (0.25, [-0.125, 1.125, NAN]),
    "pos_weight": (1.5, [-1, NAN, INF]),
}
DELTA, Q, BETA = (
    {"delta": (0.5, [-1, 0, NAN, INF])},
    {"q": (0.25, [0, 1, -1, 2, NAN])},
    {"beta": (0.25, [0, 1, 2, NAN])},
)

CALLS = {
    "labels": (jaxloss.categorical_cross_entropy, X, LABELS, OF_CLASSES, {}),
    "labels, exact": (jaxloss.categorical_cross_entropy, X, LABELS, OF_CLASSES, {"clip": None}),
    "probabilities": (jaxloss.categorical_cross_entropy, X, SHARES, OF_PROBABILITIES, {}),
    "linear": (
        lambda hidden, labels, **rest: jaxloss.linear_cross_entropy(hidden, KERNEL, labels, **rest),
        *(HIDDEN, LABELS, OF_CLASSES, {}),
    ),
    "log_prob": (jaxloss.log_prob, X, LABELS, SCALES, None),
    "entropy": (lambda x, _, **rest: jaxloss.entropy(x, **rest), X, None, SCALES, None),
    "binary": (jaxloss.binary_cross_entropy, X, OF_TWO, OF_TWO_CLASSES, {}),
    "kl": (jaxloss.kl_divergence, X, SHARES, {"temperature": SCALES["temperature"]}, {}),
    "js": (jaxloss.jensen_shannon, X, X[:, ::-1], {"temperature": SCALES["temperature"], **BETA}, {}),
    "huber": (jaxloss.huber, X, OF_TWO, DELTA, {}),
    "huber at 0": (jaxloss.huber, OF_TWO, OF_TWO, DELTA, {}),
    "quantile": (jaxloss.quantile, X, OF_TWO, Q, {}),
    "quantile at 0": (jaxloss.quantile, OF_TWO, OF_TWO, Q, {}),
}
CASES = [
    (name, option, reduction)
    for name, (*_, options, static) in CALLS.items()
    for option in options
    for reduction in ((None,) if static is None else ("mean", "none"))
]


@pytest.mark.parametrize(("name", "option", "reduction"), CASES)
def test_out_of_range_is_nan(name, option, reduction, path):
    """The value, alone and with its gradient; what is left out stays 0, and a number in range changes nothing."""
    function, x, target, options, static = CALLS[name]
    rest = {} if static is None else {**static, "reduction": reduction}
    good, bad = options[option]

    def loss(number, x):
        return function(x, target, where=WHERE, **{option: number}, **rest)

    def all_of_them(number):
        loss_and_grad = jax.value_and_grad(lambda x: loss(number, x).sum())(jnp.asarray(x))
        return loss(number, x), *loss_and_grad

    results = jit_quickly(lambda numbers: jax.lax.map(all_of_them, numbers))(np.float32([good, *bad]))
    values, sums, gradients = map(np.asarray, results)
    known = [np.asarray(result) for result in jit_quickly(lambda: all_of_them(good))()]
    counts = WHERE if np.ndim(known[0]) else ...
    assert np.isfinite(known[0]).all()
    for traced, expected in zip((values, sums, gradients), known, strict=True):
        tolerance.assert_close(np.float32(traced[0]), expected, "result")
    for number, value, total, gradient in zip(bad, values[1:], sums[1:], gradients[1:], strict=True):
        assert np.isnan(np.asarray(value)[counts]).all(), f"{option}={number}: {value}"
        assert np.isnan(total), f"{option}={number}: {total}"
        assert np.isnan(np.asarray(gradient)[WHERE]).all(), f"{option}={number}: {gradient}"
        assert (np.asarray(gradient)[~WHERE] == 0).all(), f"{option}={number}: {gradient}"
        if np.ndim(known[0]):
            assert (np.asarray(value)[~WHERE] == 0).all()


@pytest.mark.parametrize("dtype", ["int32", "bfloat16"])
def test_options_of_other_types(dtype):
    """An integer that is in range is a number like any other, and NaN, which integers do not have, where it is not."""
    loss = jit_quickly(lambda number: jaxloss.categorical_cross_entropy(X, LABELS, where=WHERE, z_loss=number))
    expected = jaxloss.categorical_cross_entropy(X, LABELS, where=WHERE, z_loss=2.0)
    assert loss(jnp.asarray(2, dtype)) == expected
    assert np.isnan(loss(jnp.asarray(-2, dtype)))


def test_an_array_of_shares():
    """The share of a mixed label is one number a row: only rows whose share is out of range are NaN."""
    losses = jit_quickly(
        lambda share: jaxloss.categorical_cross_entropy(X[:3], (LABELS[:3], LABELS[::-1][1:], share), reduction="none")
    )(np.float32([0.5, 1.5, 1]))
    assert np.isnan(losses).tolist() == [False, True, False]
