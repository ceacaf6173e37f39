"""The borders between the ways in which the CPU's kernels go along a row with options, against NumPy's float64.

Rows of few classes are taken many at once, a lane a row; longer ones in steps of vectors, of which the last goes over the one
before once more; rows without masked classes, without class weights or without a softcap in passes of their own.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from instruction_sets import FLAGS, processor_has
from quickly import jit_quickly

pytestmark = pytest.mark.cpu_only

ROWS = 37
# Of a step (8, 16 or 32 numbers), of the most classes of a narrow row (32, 64 or 128), and of what a search looks at at
# once: one less, as many, and one more.
WIDTHS = (2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 128, 129, 256, 257, 300)


def exact(x, labels, **options):
    """Losses, entropies, gradients of their sum, predictions and ranks in float64, and the magnitude of the gradients' terms.

    There is no clip unless one is given. Where nothing but the softmax and a label's target is subtracted, the gradient is
    to be right relative to itself, and is its own magnitude.
    """
    given = {"label_smoothing": 0.0, "z_loss": 0.0, "margin": 0.0, "temperature": 1.0, "clip": None} | options
    x = np.asarray(x, np.float64)
    count, classes = x.shape
    s = given.get("softcap")
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        capped, slope = (
            (x, np.ones_like(x)) if s is None else (s * np.tanh(x / s), np.cosh(np.minimum(abs(x / s), 300)) ** -2.0)
        )
        counted = np.arange(classes) < given.get("num_classes", classes)
        a = np.zeros_like(x)
        np.add.at(a, (np.arange(count), labels), given.get("mix", 1.0))
        if "others" in given:
            np.add.at(a, (np.arange(count), given["others"]), 1 - given["mix"])
        is_label = np.arange(classes) == np.asarray(labels)[:, None]
        ranked = np.where(counted, capped, -np.inf)
        z = np.where(counted, (capped - given["margin"] * is_label) / given["temperature"], -np.inf)
        smooth = given["label_smoothing"] / given.get("num_classes", classes)
        b = (1 - given["label_smoothing"]) * a + np.where(z == -np.inf, 0, smooth)
        b = b * np.asarray(given.get("class_weights", 1.0), np.float64)
        highest = z.max(1, keepdims=True)
        lse = highest + np.log(np.exp(z - highest).sum(1, keepdims=True))
        p = np.exp(z - lse)
        nll = lse - z
        most = np.inf if given["clip"] is None else -np.log(given["clip"])
        losses = np.where(b == 0, 0, b * np.minimum(nll, most)).sum(1) + given["z_loss"] * lse[:, 0] ** 2
        entropy = np.where(p == 0, 0, p * nll).sum(1)
        of_softmax = (b.sum(1, keepdims=True) + 2 * given["z_loss"] * lse) * p
        gradient = (of_softmax - b) * slope / given["temperature"]
        of_terms = np.maximum(np.abs(of_softmax), np.abs(b)) * slope / given["temperature"]
        subtracts = given["label_smoothing"] != 0 or given["z_loss"] != 0 or "mix" in given
    rank = (np.argsort(-ranked, axis=1, kind="stable") == np.asarray(labels)[:, None]).argmax(1)
    return losses, entropy, gradient, ranked.argmax(1), rank, of_terms if subtracts else np.abs(gradient)


def found(x, labels, others=None, mix=None, clip=None, **options):
    target = labels if others is None else (labels, others, mix)

    def with_stats(x):
        loss, stats = jaxloss.categorical_cross_entropy_with_stats(x, target, clip=clip, reduction="none", **options)
        return loss.sum(), (loss, stats)

    def of_loss(x):
        return jaxloss.categorical_cross_entropy(x, target, clip=clip, reduction="sum", **options)

    (gradient, (losses, stats)), alone = jit_quickly(
        lambda x: (jax.grad(with_stats, has_aux=True)(x), jax.grad(of_loss)(x))
    )(x)
    return losses, stats.entropy, gradient, stats.predicted, stats.rank, alone


def assert_gradient(gradient, exact, what="gradients"):
    """`exact` is what the function of this name gives; what is flushed to 0 may be the exponential before it."""
    gradient = np.asarray(gradient)
    error = 64 * np.finfo(np.float32).eps * exact[5] + 8 * np.finfo(np.float32).tiny
    tolerance.assert_within(gradient, exact[2], error, what)


def assert_right(x, labels, **options):
    x = np.asarray(x, np.float32)
    results, expected = found(x, labels, **options), exact(x, labels, **options)
    tolerance.assert_ulps(results[0], expected[0], 16, "losses")
    tolerance.assert_ulps(results[1], expected[1], 16, "entropies")
    assert_gradient(results[2], expected)
    assert_gradient(results[5], expected, "gradients without statistics")
    np.testing.assert_array_equal(results[3], expected[3], "predictions")
    np.testing.assert_array_equal(results[4], expected[4], "ranks")


def sample(width: int, seed: int = 0, deviation: float = 3.0):
    random = np.random.default_rng(seed + width)
    x = random.normal(0, deviation, (ROWS, width)).astype(np.float32)
    return x, random.integers(0, width, ROWS, np.int32)


OPTIONS = {
    "statistics": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "clipped": {"label_smoothing": 0.1, "clip": 1e-3},
    "z_loss": {"z_loss": 0.01, "temperature": 0.7},
    "softcap": {"softcap": 3.0},
    "margin": {"margin": 0.8},
    "all": {"label_smoothing": 0.1, "z_loss": 0.01, "temperature": 1.3, "softcap": 5.0, "margin": -0.8, "clip": 1e-3},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(width, name):
    x, labels = sample(width)
    assert_right(x, labels, **OPTIONS[name])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("width", [9, 65, 257])
def test_class_weights(width, smoothing):
    x, labels = sample(width)
    weights = np.linspace(0, 2, width, dtype=np.float32)
    assert_right(x, labels, class_weights=weights, label_smoothing=smoothing, clip=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("clip", [None, 1e-7])
@pytest.mark.parametrize("width", [9, 65, 257])
def test_a_row_with_a_masked_class_beside_rows_without(width, clip, weighted):
    """The class is the first, the last, or one of a step that the odd one goes over again."""
    x, labels = sample(width)
    for row, masked in ((0, 0), (5, width - 1), (6, width - 9)):
        x[row, masked] = -np.inf
        labels[row] = (masked + 1) % width
    options = {"class_weights": np.linspace(0.5, 2, width, dtype=np.float32)} if weighted else {}
    assert_right(x, labels, label_smoothing=0.1, clip=clip, **options)


@pytest.mark.parametrize("width", [9, 300])
def test_logits_so_far_apart_that_their_sum_is_infinite(width):
    x, labels = sample(width)
    x[3], x[3, 1], labels[3] = -3e38, 3e38, 1
    losses, _, gradient, *_ = found(x, labels, label_smoothing=0.1, clip=1e-7)
    expected = exact(x, labels, label_smoothing=0.1, clip=1e-7)
    tolerance.assert_ulps(losses, expected[0], 64)
    assert_gradient(gradient, expected)


@pytest.mark.parametrize("width", [9, 65, 300])
def test_where_the_largest_logit_is(width):
    """In every row another class leads, by little or by much; in some two do. It is a label or is not."""
    x, labels = sample(width, deviation=1.0)
    for row in range(ROWS):
        leading = row * (width - 1) // (ROWS - 1)
        x[row, leading] = 4.0 + row / 3
        if row % 3 == 0:
            x[row, (leading + width // 2) % width] = x[row, leading]
        if row % 2:
            labels[row] = leading
    others = (labels + 1) % width
    assert_right(x, labels)
    assert_right(x, labels, margin=6.0)
    assert_right(x, labels, others=others, mix=np.float32(0.25))
    assert_right(x, labels, margin=-6.0, label_smoothing=0.1)


@pytest.mark.parametrize("has_labels", [True, False])
@pytest.mark.parametrize("width", [9, 65, 300])
def test_statistics_and_their_gradients(width, has_labels):
    """Of losses, log-sum-exps and entropies together; some rows are sure of a class, of their label or of another."""
    x, labels = sample(width)
    x[::3, 1] += 20
    labels[::6] = 1
    target = labels if has_labels else np.random.default_rng(2).dirichlet(np.ones(width), ROWS).astype(np.float32)
    of_lse, of_entropy = np.cos(np.arange(ROWS)).astype(np.float32), np.linspace(-1, 2, ROWS, dtype=np.float32)

    def of(x):
        losses, stats = jaxloss.categorical_cross_entropy_with_stats(
            x, target, temperature=0.7, clip=None, reduction="none"
        )
        return (losses + of_lse * stats.lse + of_entropy * stats.entropy).sum(), stats.nll

    gradient, nll = jit_quickly(jax.grad(of, has_aux=True))(x)
    z = x.astype(np.float64) / 0.7
    log_p = z - z.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    p = np.exp(log_p)
    b = np.eye(width)[labels] if has_labels else target.astype(np.float64)
    error = 16 * np.finfo(np.float32).eps * (b * (np.abs(log_p) + np.abs(z))).sum(1)
    tolerance.assert_within(nll, -(b * log_p).sum(1), error, "losses without a clip")
    factor = b.sum(1) + of_lse
    surprise = log_p - (p * log_p).sum(1, keepdims=True)
    expected = (factor[:, None] * p - b - of_entropy[:, None] * p * surprise) / 0.7
    terms = (np.abs(factor)[:, None] * p + b + np.abs(of_entropy)[:, None] * p * (np.abs(log_p) + 3)) / 0.7
    tolerance.assert_within(gradient, expected, 64 * np.finfo(np.float32).eps * terms, "gradients")


@pytest.mark.parametrize("width", [9, 300])
def test_masked_rows(width):
    """They may hold anything, and have the results that say so."""
    x, labels = sample(width)
    where = np.arange(ROWS) % 3 != 1
    x[~where] = np.nan

    def of(x):
        losses, stats = jaxloss.categorical_cross_entropy_with_stats(x, labels, where=where, z_loss=0.1)
        return losses + (stats.entropy + stats.nll + stats.lse).sum(), stats

    gradient, stats = jit_quickly(jax.grad(of, has_aux=True))(x)
    of_masked = {name: np.asarray(stat)[~where] for name, stat in stats._asdict().items()}
    np.testing.assert_array_equal(of_masked.pop("predicted"), -1)
    np.testing.assert_array_equal(of_masked.pop("rank"), width)
    for name, numbers in of_masked.items():
        np.testing.assert_array_equal(numbers, 0, name)
    assert ((np.asarray(gradient) == 0).all(1) == ~where).all()


@pytest.mark.parametrize("counted", [1, 5, 31, 33, 129])
@pytest.mark.parametrize("name", ["label_smoothing", "softcap", "all"])
def test_fewer_classes_than_columns(name, counted):
    """What is beyond may be anything."""
    x, labels = sample(150)
    x[:, counted:] = np.nan
    labels %= counted
    results = found(x, labels, num_classes=counted, **OPTIONS[name])
    expected = exact(x[:, :counted], labels, **OPTIONS[name])
    tolerance.assert_ulps(results[0], expected[0], 64)
    assert_gradient(results[2][:, :counted], expected)
    np.testing.assert_array_equal(np.asarray(results[2])[:, counted:], 0)
    np.testing.assert_array_equal(results[3], expected[3])
    np.testing.assert_array_equal(results[4], expected[4])


@pytest.mark.parametrize("width", [9, 65, 140])
def test_options_of_rows_are_those_of_each(width):
    """A number for each row, and class weights of each row; rows of few classes and of more."""
    x, labels = sample(width)
    smoothing = np.linspace(0, 0.5, ROWS, dtype=np.float32)
    weights = np.random.default_rng(1).uniform(0, 2, (ROWS, width)).astype(np.float32)

    def of(x, label, smoothing, weights):
        options = {"label_smoothing": smoothing, "softcap": 3 + smoothing, "class_weights": weights}
        return jaxloss.categorical_cross_entropy(x, label, clip=None, reduction="sum", **options)

    losses, gradient = jit_quickly(jax.vmap(jax.value_and_grad(of)))(x, labels, smoothing, weights)
    for row in range(ROWS):
        one = slice(row, row + 1)
        options = {"label_smoothing": smoothing[row], "softcap": 3 + smoothing[row], "class_weights": weights[row]}
        expected = exact(x[one], labels[one], **options)
        tolerance.assert_ulps(losses[one], expected[0], 64)
        assert_gradient(gradient[one], expected)


@pytest.mark.parametrize("width", [2, 200])
def test_slopes_under_a_softcap_are_right_relative_to_themselves(width):
    """From where tanh is its argument to where it is 1, and beyond: there they are 0, as at an infinite logit."""
    u = np.geomspace(1e-6, 40, ROWS - 2)
    x = np.full((ROWS, width), -1.0, np.float32)
    x[: len(u), 0] = 3 * u * np.where(np.arange(len(u)) % 2, 1, -1)
    x[-2:, 0] = 3e30, np.inf

    def of(x):
        return jaxloss.categorical_cross_entropy(x, jnp.ones(ROWS, jnp.int32), softcap=3.0, clip=None, reduction="sum")

    gradient = jit_quickly(jax.grad(of))(x)
    in_caps = x[: len(u), :1].astype(np.float64) / 3.0
    z = 3 * np.tanh(np.concatenate([in_caps, np.full((len(u), width - 1), -1 / 3)], 1))
    p = np.exp(z[:, 0]) / np.exp(z).sum(1)
    expected = p / np.cosh(in_caps[:, 0]) ** 2
    tolerance.assert_ulps(gradient[: len(u), 0], expected, 256)
    np.testing.assert_array_equal(gradient[-2:, 0], 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGS)
def test_every_instruction_set(name):
    if not processor_has(name):
        pytest.skip(f"this processor has no {name}")
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    run += ["-k", "not every_instruction_set", "-m", ""]
    ran = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "JAXLOSS_CPU_INSTRUCTION_SET": name})
    assert ran.returncode == 0, ran.stdout[-3000:]
