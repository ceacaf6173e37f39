"""A row with a logit of +Inf or NaN has no softmax: all that is made of it is NaN, and no other row notices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

pytestmark = pytest.mark.usefixtures("path")

BROKEN = {4: np.inf, 7: np.nan}  # the row, and what its first logit is
ROWS = 9
WIDTHS = (2, 7, 20, 65, 700, 5000)

# Targets of every row, one kind after the other.
TARGETS = {
    "labels": lambda width: [np.full(ROWS, 0), np.full(ROWS, 1)],
    "probabilities": lambda width: [
        *(np.tile(np.eye(width, dtype=np.float32)[label], (ROWS, 1)) for label in (0, 1)),
        np.full((ROWS, width), 1 / width, np.float32),
        np.zeros((ROWS, width), np.float32),
    ],
}


def with_statistics(x, target, **options):
    losses, stats = jaxloss.categorical_cross_entropy_with_stats(x, target, clip=None, reduction="none", **options)
    return jnp.stack([losses, stats.entropy, stats.lse], axis=1)


LOSSES = {
    "plain": lambda x, target: jaxloss.categorical_cross_entropy(x, target, clip=None, reduction="none"),
    "statistics": with_statistics,
    "options": lambda x, target: with_statistics(x, target, label_smoothing=0.1, z_loss=1e-3),
    "weights of 0": lambda x, target: with_statistics(x, target, class_weights=jnp.zeros(x.shape[1])),
    "softmax": lambda x, target: jaxloss.kl_divergence(x, jnp.zeros_like(x), target_type="logits", reduction="none"),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LOSSES)
def test_its_row_is_nan(name, target, width, dtype):
    loss, targets = LOSSES[name], TARGETS[target](width)
    x = np.full((ROWS, width), 0.5, dtype)
    for row, number in BROKEN.items():
        x[row, 0], x[row, -1] = number, -np.inf  # what is masked has no softmax either
    x, a = np.tile(x, (len(targets), 1)), np.concatenate(targets)
    broken = np.tile(np.isin(np.arange(ROWS), list(BROKEN)), len(targets))

    @jax.jit
    def all_of_them(x, a):
        results = {"value": loss(x, a), "gradient": jax.grad(lambda x: loss(x, a).sum())(x)}
        if name == "plain":
            of_sum = jax.grad(lambda x: jaxloss.categorical_cross_entropy(x, a, clip=None, reduction="sum"))
            results["gradient of the sum"] = of_sum(x)
        return results

    for what, result in all_of_them(x, a).items():
        is_nan = np.isnan(np.asarray(result, np.float32))
        assert is_nan[broken].all(), what
        assert not is_nan[~broken].any(), what


@pytest.mark.parametrize("clip", [None, 1e-7])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_whose_classes_are_all_masked(width, clip):
    """It has no loss either, whichever its target; where no class is a target its loss is 0."""
    x = np.full((ROWS, width), 0.5, np.float32)
    x[4] = -np.inf
    labels, *_ = TARGETS["labels"](width)
    *targets, nothing = TARGETS["probabilities"](width)

    @jax.jit
    def all_of_them(x, targets):
        options = ({}, {"z_loss": jnp.zeros(())})
        return [
            jaxloss.categorical_cross_entropy(x, target, clip=clip, reduction="none", **given)
            for target in targets
            for given in options
        ]

    for losses in all_of_them(x, [labels, *targets]):
        np.testing.assert_array_equal(np.isnan(losses), np.arange(ROWS) == 4)
    for losses in all_of_them(x, [nothing]):
        np.testing.assert_array_equal(losses, 0)
