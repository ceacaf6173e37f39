"""A row gives the same bits alone and in any batch, wherever it stands: kernels go along every row in one way.

Of the CPU's kernels this holds whatever the number of threads. Where elements are so few that a formula takes their
place, or XLA fuses a formula, it is XLA's to say.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

pytestmark = pytest.mark.cpu_only  # a GPU promises it of each family of kernels, which the number of rows chooses

ROWS = 40
WIDTHS = (3, 20, 65, 700)
DTYPES = (jnp.float32, jnp.bfloat16)


def with_gradient(loss):
    """Losses, and the gradient of each with respect to its row."""

    def results(x, *rest):
        values, pullback = jax.vjp(lambda x: loss(x, *rest)[0], x)
        return *loss(x, *rest), *pullback(jnp.ones_like(values))

    return results


def reduced(loss):
    """The same through the kernel of the whole batch, its weights those of a sum."""
    return lambda x, *rest: (jax.grad(lambda x: loss(x, *rest))(x),)


def other(x):
    """A teacher, or a target."""
    return jax.lax.stop_gradient(x[:, ::-1] * 0.5)


def stats_of(x, labels, **options):
    value, stats = jaxloss.categorical_cross_entropy_with_stats(x, labels, reduction="none", **options)
    return value, *jax.tree.leaves(stats)


LABELLED = {
    "labels": with_gradient(lambda x, y: (jaxloss.categorical_cross_entropy(x, y, reduction="none"),)),
    "labels, sum": reduced(lambda x, y: jaxloss.categorical_cross_entropy(x, y, reduction="sum")),
    "probabilities": with_gradient(
        lambda x, y: (jaxloss.categorical_cross_entropy(x, jax.nn.one_hot(y, x.shape[1]), reduction="none"),)
    ),
    "probabilities, sum": reduced(
        lambda x, y: jaxloss.categorical_cross_entropy(x, jax.nn.one_hot(y, x.shape[1]) * 0.9, reduction="sum")
    ),
    "options": with_gradient(lambda x, y: stats_of(x, y, label_smoothing=0.1, z_loss=1e-3, softcap=9.0)),
    "entropy": with_gradient(lambda x, y: (jaxloss.entropy(x),)),
    "entropy, with options": with_gradient(lambda x, y: (jaxloss.entropy(x, softcap=9.0, temperature=0.7),)),
    # Of divergences the gradient for a cotangent is a formula, XLA's.
    "kl": lambda x, y: (jaxloss.kl_divergence(x, other(x), target_type="logits", reduction="none"),),
    "kl, sum": reduced(lambda x, y: jaxloss.kl_divergence(x, other(x), target_type="logits", reduction="sum")),
    "jensen_shannon": lambda x, y: (jaxloss.jensen_shannon(x, other(x), reduction="none"),),
    "jensen_shannon, sum": reduced(lambda x, y: jaxloss.jensen_shannon(x, other(x), reduction="sum")),
    "mse, sum": reduced(lambda x, y: jaxloss.mse(x, other(x), reduction="sum")),
    "binary, sum": reduced(lambda x, y: jaxloss.binary_cross_entropy(x, jax.nn.sigmoid(other(x)), reduction="sum")),
}


SIZES = (1, 13, 13, 13)


def cuts(seed: int) -> list[np.ndarray]:
    """The rows in batches, in any order."""
    return np.split(np.random.default_rng(seed).permutation(ROWS), np.cumsum(SIZES)[:-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", LABELLED)
def test_random_cuts(name, width, dtype):
    random = np.random.default_rng(width)
    x, labels = random.normal(0, 4, (ROWS, width)).astype(dtype), random.integers(0, width, ROWS, np.int32)
    of = jax.jit(LABELLED[name])
    whole = jax.tree.map(np.asarray, of(x, labels))
    for batch in (*cuts(width), *cuts(width + 1), np.arange(ROWS)[::-1]):
        for result, expected in zip(of(x[batch], labels[batch]), whole, strict=True):
            np.testing.assert_array_equal(result, expected[batch])
