"""A row whose largest logit is +Inf has no softmax: all that is made of it is NaN, and no other row notices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

pytestmark = pytest.mark.usefixtures("path")

ROWS, ROW = 9, 4
WIDTHS = (2, 7, 20, 65, 700, 5000)


def labels_at(place: int):
    return lambda width: jnp.full(ROWS, place)


def one_hot_at(place: int):
    return lambda width: jax.nn.one_hot(jnp.full(ROWS, place), width)


TARGETS = {
    "label of it": labels_at(0),
    "label of another": labels_at(1),
    "probability of it": one_hot_at(0),
    "probability of another": one_hot_at(1),
    "even": lambda width: jnp.full((ROWS, width), 1 / width),
    "nothing": lambda width: jnp.zeros((ROWS, width)),
}


def with_statistics(x, target, **options):
    losses, stats = jaxloss.categorical_cross_entropy_with_stats(x, target, clip=None, reduction="none", **options)
    return jnp.stack([losses, stats.entropy, stats.lse], axis=1)


LOSSES = {
    "plain": lambda x, target: jaxloss.categorical_cross_entropy(x, target, clip=None, reduction="none"),
    "statistics": with_statistics,
    "options": lambda x, target: with_statistics(x, target, label_smoothing=0.1, z_loss=1e-3),
    "softmax": lambda x, target: jaxloss.kl_divergence(x, jnp.zeros_like(x), target_type="logits", reduction="none"),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LOSSES)
def test_its_row_is_nan(name, target, width, dtype):
    x = jnp.full((ROWS, width), 0.5, dtype).at[ROW, 0].set(jnp.inf)
    a, loss = TARGETS[target](width), LOSSES[name]
    others = np.arange(ROWS) != ROW
    gradients = [jax.grad(lambda x: loss(x, a).sum())(x)]
    if name == "plain":
        gradients.append(jax.grad(lambda x: jaxloss.categorical_cross_entropy(x, a, clip=None, reduction="sum"))(x))
    for gradient in gradients:
        is_nan = np.isnan(np.asarray(gradient, np.float32))
        assert is_nan[ROW].all()
        assert not is_nan[others].any()
    # A class of probability 0 adds nothing, whatever its logit.
    values = np.asarray(loss(x, a))
    assert not np.isnan(values[others]).any()
    if target != "nothing":
        assert np.isnan(values[ROW]).all()
