"""The margin of cross entropy: what the label's logit is lowered by, in the loss and not in what is predicted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from quickly import QUICKLY

ROWS, CLASSES = 12, 19
RANDOM = np.random.default_rng(5)
X = RANDOM.normal(0, 2, (ROWS, CLASSES)).astype(np.float32)
LABELS = RANDOM.integers(0, CLASSES, ROWS, np.int32)
MARGINS = np.linspace(-2.5, 3, ROWS, dtype=np.float32)
ONE_HOT = np.arange(CLASSES) == LABELS[:, None]


def lowered(x=X, margins=MARGINS):
    """The logits that a loss without the option would be given for the same."""
    return x - jnp.where(ONE_HOT, margins[:, None], 0)


def close(actual, expected, what="a result"):
    tolerance.assert_close(actual, expected, what, terms=ROWS * CLASSES, magnitude=1.0)


OPTIONS = {
    "alone": {},
    "scaled": {"temperature": 1 / 16},
    "all": {"label_smoothing": 0.125, "z_loss": 0.01, "temperature": 1.5, "class_weights": np.linspace(1, 2, CLASSES)},
    "clip": {"clip": 1e-2},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_is_the_loss_of_lowered_logits(name, reduction, path):
    """Value, gradient, tangents and second order, with respect to logits and margins."""
    options = {"clip": None, **OPTIONS[name], "reduction": reduction}
    along = jnp.cos(jnp.arange(X.size, dtype=jnp.float32)).reshape(X.shape), jnp.sin(jnp.arange(1.0, ROWS + 1))

    def ours(x, margins):
        return jaxloss.categorical_cross_entropy(x, LABELS, margin=margins, **options).sum()

    def plain(x, margins):
        return jaxloss.categorical_cross_entropy(lowered(x, margins), LABELS, **options).sum()

    def all_of(loss):
        along_all = jax.grad(lambda *o: jax.jvp(loss, o, along)[1], (0, 1))
        return jax.jit(lambda *o: (jax.value_and_grad(loss, (0, 1))(*o), along_all(*o)), compiler_options=QUICKLY)

    for actual, expected in zip(*(jax.tree.leaves(all_of(loss)(X, MARGINS)) for loss in (ours, plain)), strict=True):
        close(actual, expected, name)


def test_large_margin_cosine_loss():
    """s (cos θ − m) of the label, s cos θ of the others."""
    cosines, scale, margin = np.tanh(X), 30.0, 0.35
    z = scale * (cosines - margin * ONE_HOT)
    expected = -jax.nn.log_softmax(z)[np.arange(ROWS), LABELS].mean()
    close(jaxloss.categorical_cross_entropy(cosines, LABELS, margin=margin, temperature=1 / scale, clip=None), expected)


@pytest.mark.parametrize("shape", [(), (3, 1), (3, 1, 4), (1, 1, 4)])
def test_margins_broadcast_as_weights_do(shape):
    x = RANDOM.normal(size=(3, 5, 4)).astype(np.float32)
    labels, margins = RANDOM.integers(0, 5, (3, 4), np.int32), RANDOM.normal(size=shape).astype(np.float32)
    if shape == (3, 1):
        with pytest.raises(ValueError, match="margin has shape"):
            jaxloss.categorical_cross_entropy(x, labels, margin=margins, axis=1)
        return
    of_rows = np.broadcast_to(margins.reshape(()) if shape == () else margins[:, 0], (3, 4))
    moved = x - of_rows[:, None] * (np.arange(5)[:, None] == labels[:, None])
    found = jaxloss.categorical_cross_entropy(x, labels, margin=margins, axis=1, reduction="none")
    close(found, jaxloss.categorical_cross_entropy(moved, labels, axis=1, reduction="none"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_statistics(dtype, path):
    """Those of the softmax have the margin; prediction and rank have none, also of rows with ties and of masked labels."""
    x = np.round(X).astype(dtype)  # many are equal
    x[3, LABELS[3]] = -np.inf
    x[4] = -np.inf
    x[5, LABELS[5]], x[5, (LABELS[5] + 1) % CLASSES] = 9, 9
    where = np.arange(ROWS) != 7
    with jax.enable_x64(dtype == "float64"):
        margins = MARGINS.astype(np.float64 if dtype == "float64" else np.float32)

        def of(x, **options):
            return jaxloss.categorical_cross_entropy_with_stats(
                x, LABELS, where=where, clip=None, reduction="none", **options
            )

        losses, stats = of(x, margin=margins)
        wide = np.asarray(x, margins.dtype)
        expected, exact = of(lowered(wide, margins))
        unmoved = of(wide)[1]
    for name in ("nll", "lse", "entropy", "target_probability"):
        close(np.asarray(getattr(stats, name))[where], np.asarray(getattr(exact, name))[where], name)
    close(losses, expected)
    assert stats.predicted.tolist() == unmoved.predicted.tolist()
    assert stats.rank.tolist() == unmoved.rank.tolist()
    assert exact.rank.tolist() != unmoved.rank.tolist()


def test_labels_that_are_ignored_or_out_of_range():
    labels = LABELS.copy()
    labels[1], labels[2], labels[3] = -100, CLASSES, -1
    losses = jaxloss.categorical_cross_entropy(
        X, labels, margin=MARGINS, ignore_index=-100, num_classes=CLASSES, reduction="none"
    )
    gradient = jaxloss.d_categorical_cross_entropy(X, labels, margin=MARGINS, ignore_index=-100, reduction="sum")
    plain = jaxloss.categorical_cross_entropy(lowered(), LABELS, reduction="none")
    assert np.isnan(losses).nonzero()[0].tolist() == [2, 3]
    assert losses[1] == 0
    assert not np.asarray(gradient)[1:4].any()
    close(np.delete(losses, [1, 2, 3]), np.delete(plain, [1, 2, 3]))


def test_a_margin_out_of_range_is_that_of_its_row():
    losses = jax.jit(lambda m: jaxloss.categorical_cross_entropy(X, LABELS, margin=m, reduction="none"))(
        np.where(np.arange(ROWS) == 2, np.inf, MARGINS)
    )
    assert np.isnan(losses).nonzero()[0].tolist() == [2]


def test_linear_losses_take_a_scalar():
    hidden, kernel = RANDOM.normal(size=(ROWS, 4)).astype(np.float32), RANDOM.normal(size=(4, CLASSES)).astype("f")

    def linear(hidden, kernel, margin):
        loss, stats = jaxloss.linear_cross_entropy_with_stats(hidden, kernel, LABELS, margin=margin, chunk_size=5)
        return loss + stats.entropy.sum(), stats

    def whole(hidden, kernel, margin):
        loss, stats = jaxloss.categorical_cross_entropy_with_stats(hidden @ kernel, LABELS, margin=margin, clip=None)
        return loss + stats.entropy.sum(), stats

    def of(loss):
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(hidden, kernel, 0.75)

    for actual, expected in zip(jax.tree.leaves(of(linear)), jax.tree.leaves(of(whole)), strict=True):
        close(np.asarray(actual, np.float32), np.asarray(expected, np.float32))
    with pytest.raises(ValueError, match=r"margin has shape \(12,\): expected a scalar"):
        jaxloss.linear_cross_entropy(hidden, kernel, LABELS, margin=MARGINS)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_margin_far_beyond_the_softcap(classes, path):
    """Of one class that counts, the loss is 0 however far its logit is lowered: no other class has a logit that is as large."""
    x = np.linspace(-2, 2, 5 * classes, dtype=np.float32).reshape(5, classes)
    losses, stats = jaxloss.categorical_cross_entropy_with_stats(
        x, np.zeros(5, np.int32), softcap=1.0, margin=200.0, num_classes=1, reduction="none"
    )
    assert losses.tolist() == [0] * 5
    close(stats.lse, np.tanh(x[:, 0]) - 200)
