"""Derivatives of options where a row is bad, masked or clipped: of cases that a change of the rules could miss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from quickly import jit_quickly

pytestmark = pytest.mark.usefixtures("path")

ROWS, CLASSES = 4, 9
OPTIONS = {"z_loss": 0.3, "label_smoothing": 0.2, "temperature": 1.5}


def sample(seed: int = 0):
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.normal(0, 2, (ROWS, CLASSES)), jnp.float32)
    return x, jnp.asarray(random.integers(0, CLASSES, ROWS))


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("names", [("z_loss",), ("z_loss", "label_smoothing"), ("temperature",), tuple(OPTIONS)])
def test_a_bad_label_has_no_second_derivative(names, reduction):
    x, labels = sample()
    tangent = sample(1)[0]
    options = {name: OPTIONS[name] for name in names}

    def product(x, labels, tangent):
        def gradient(x):
            def total(x):
                return jaxloss.categorical_cross_entropy(x, labels, reduction=reduction, **options).sum()

            return jax.grad(total)(x)

        return jax.jvp(gradient, (x,), (tangent,))[1]

    found = product(x, labels.at[1].set(CLASSES), tangent)
    np.testing.assert_array_equal(found[1], 0)
    expected = product(x[GOOD], labels[GOOD], tangent[GOOD])
    tolerance.assert_close(found[GOOD], expected, "second derivative", operations=tolerance.OPERATIONS_OF_HIGHER_ORDER)


GOOD = np.array([0, 2, 3])


@pytest.mark.parametrize("name", ["label_smoothing", "class_weights"])
def test_a_bad_label_has_no_derivative_of_an_option(name):
    """What is smoothed over the classes of its row counts no more than the label does."""
    x, labels = sample()
    number = {"label_smoothing": np.float32(0.2), "class_weights": np.linspace(0.5, 2, CLASSES, dtype=np.float32)}

    def of(number_now, x, labels):
        return jaxloss.categorical_cross_entropy(x, labels, reduction="sum", **{**number, name: number_now})

    gradient = jit_quickly(jax.grad(of))
    found = gradient(number[name], x, labels.at[1].set(CLASSES))
    tolerance.assert_close(found, gradient(number[name], x[GOOD], labels[GOOD]), "derivative", terms=ROWS * CLASSES)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("names", [(), ("label_smoothing", "z_loss")])
def test_the_statistics_of_a_bad_label_have_no_derivatives(names, reduction):
    """Those of its negative log-likelihood, with respect to the logits and to the share of the first label."""
    x, labels = sample()
    others, share = (labels + 1) % CLASSES, jnp.full(ROWS, 0.7)

    options = {name: OPTIONS[name] for name in names}

    def nll(x, share, labels, others):
        target = (labels, others, share)
        return jaxloss.categorical_cross_entropy_with_stats(x, target, reduction=reduction, **options)[1].nll

    gradients = jit_quickly(jax.grad(lambda *operands: nll(*operands).sum(), (0, 1)))
    found = gradients(x, share, labels.at[1].set(CLASSES), others)
    expected = gradients(x[GOOD], share[GOOD], labels[GOOD], others[GOOD])
    for of_all, of_good in zip(found, expected, strict=True):
        np.testing.assert_array_equal(of_all[1], 0)
        tolerance.assert_close(of_all[GOOD], of_good, "derivative")

    @jit_quickly
    def tangent(x, share, labels, others, *tangents):
        return jax.jvp(lambda x, share: nll(x, share, labels, others), (x, share), tangents)[1]

    tangents = sample(1)[0], jnp.full(ROWS, 0.3)
    found = tangent(x, share, labels.at[1].set(CLASSES), others, *tangents)
    of_x, of_share = (np.asarray(of) for of in gradients(x, share, labels, others))
    expected = (of_x * tangents[0]).sum(1) + of_share * tangents[1]
    np.testing.assert_array_equal(found[1], 0)
    tolerance.assert_close(found[GOOD], expected[GOOD], "tangent", terms=CLASSES)


def negative_log_likelihoods(x) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return np.log(np.exp(x).sum(1, keepdims=True)) - x


MASKED = 3


def masked_sample():
    """Rows in which one class is masked and no label."""
    x, labels = sample()
    return x.at[:, MASKED].set(-jnp.inf), jnp.where(labels == MASKED, MASKED + 1, labels)


def summed(x, labels, **options):
    return jaxloss.categorical_cross_entropy(x, labels, reduction="sum", clip=None, **options)


def test_smoothing_beside_masked_classes():
    """Its derivative has no infinite loss of a class over which nothing is smoothed."""
    x, labels = masked_sample()
    nll = negative_log_likelihoods(x)
    others = np.arange(CLASSES) != MASKED
    more, less = nll[:, others].sum() / CLASSES, nll[np.arange(ROWS), labels].sum()
    found = jax.grad(lambda smoothing: summed(x, labels, label_smoothing=smoothing))(0.2)
    tolerance.assert_close(found, more - less, "derivative", terms=ROWS * CLASSES, magnitude=max(more, less))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_beside_masked_classes(smoothing):
    x, labels = masked_sample()
    nll = negative_log_likelihoods(x)
    share = np.eye(CLASSES)[np.asarray(labels)] * (1 - smoothing) + smoothing / CLASSES
    share[:, MASKED] = 0
    expected = (share * np.where(share > 0, nll, 0)).sum(0)
    options = {"label_smoothing": smoothing} if smoothing else {}
    found = jax.grad(lambda weights: summed(x, labels, class_weights=weights, **options))(jnp.ones(CLASSES))
    tolerance.assert_close(found, expected, "derivative", terms=ROWS * CLASSES)
    assert found[MASKED] == 0


def test_shares_beside_masked_classes():
    x, labels = masked_sample()
    others = jnp.where((labels + 1) % CLASSES == MASKED, MASKED + 1, (labels + 1) % CLASSES)
    nll = negative_log_likelihoods(x)
    expected = (nll[np.arange(ROWS), labels] - nll[np.arange(ROWS), others]).sum()
    found = jax.grad(lambda share: summed(x, (labels, others, share)))(0.7)
    tolerance.assert_close(found, expected, "derivative", terms=ROWS * CLASSES)


@pytest.mark.parametrize("name", ["class_weights", "pos_weight"])
def test_weights_of_a_clipped_binary_loss(name):
    """The derivative is that of the unclipped loss, for these operands too."""
    x = jnp.array([[40.0, -40.0, 0.5]])
    a = jnp.array([[0.0, 1.0, 1.0]])
    nll = np.array([40.0, 40.0, np.log1p(np.exp(-0.5))])
    expected = nll if name == "class_weights" else nll * np.asarray(a[0])
    found = jax.grad(lambda weights: jaxloss.binary_cross_entropy(x, a, reduction="sum", **{name: weights}))(
        jnp.ones(3)
    )
    tolerance.assert_close(found, expected, "derivative", terms=ROWS * CLASSES)
