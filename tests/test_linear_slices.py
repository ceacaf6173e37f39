"""Slices of rows whose logits are read once: losses, and a gradient in factors, against float64 on whole rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import meshes
import tolerance
from jaxloss._calls import TAKEN_OUT
from jaxloss._linear_slices import losses_and_slopes
from jaxloss._objective import Objective
from jaxloss._split_classes import of_slice

pytestmark = meshes.several_devices

ROWS, CLASSES, AXES = 24, 64, ("d", "v")


def on_slices(logits, labels, weight, clip=0.0):
    """Losses, and the gradient: the slopes times the factors of the device that made them."""
    objective = Objective(clip, (), CLASSES, axes=AXES, in_place=True)

    def local(logits, labels, weight):
        operands = of_slice(objective, AXES, logits, labels, weight)
        losses, slopes, factors = losses_and_slopes(objective, AXES, *operands)
        own = factors[jax.lax.axis_index(AXES)][:, None]
        gradient = jnp.where(own == 0, 0, slopes.astype(factors.dtype) * own)
        return losses, gradient, slopes

    of_classes = P(None, AXES)
    run = jax.shard_map(
        local, mesh=meshes.mesh(), in_specs=(of_classes, P(), P()), out_specs=(P(), of_classes, of_classes)
    )
    return jax.tree.map(np.asarray, jax.jit(run)(logits, labels, weight))


def exact(logits, labels, weight):
    """Losses and gradient of whole rows."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    lse = np.log(np.exp(z).sum(-1))
    one_hot = np.arange(CLASSES) == labels[:, None]
    losses = lse - z[np.arange(ROWS), labels]
    return losses, np.asarray(weight, np.float64)[:, None] * (np.exp(z - lse[:, None]) - one_hot)


def sample(scale, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(scale * rng.normal(size=(ROWS, CLASSES)), dtype)
    return logits, rng.integers(0, CLASSES, ROWS, np.int32), rng.uniform(0.5, 2, ROWS).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_losses_and_gradient(scale, dtype):
    """Of shares of all sizes: a slice of large logits leaves the others next to none, with and without the label."""
    logits, labels, weight = sample(scale, dtype)
    losses, gradient, slopes = on_slices(logits, labels, weight)
    of_rows, ideal = exact(logits, labels, weight)
    size = 1 + np.abs(np.asarray(logits, np.float64)).max(-1)
    tolerance.assert_within(losses, of_rows, 8 * tolerance.epsilon("float32") * size, "losses")
    # A slope is rounded to its type; a factor errs like the differences of log-sum-exps.
    assert slopes.dtype == logits.dtype
    error = tolerance.epsilon(dtype) * np.abs(ideal) + 16 * tolerance.epsilon("float32") * size[:, None]
    tolerance.assert_within(gradient, ideal, error, "gradient")


def test_a_loss_next_to_nothing_is_told():
    """Where the label has nearly all of its row, the loss is that of the others: no difference of large numbers."""
    logits = np.full((ROWS, CLASSES), 80, np.float32)
    labels = np.arange(ROWS, dtype=np.int32) * 2
    logits[np.arange(ROWS), labels] += 12
    weight = np.ones(ROWS, np.float32)
    losses, gradient, _ = on_slices(logits, labels, weight)
    of_rows, ideal = exact(logits, labels, weight)
    np.testing.assert_allclose(losses, of_rows, atol=2 * tolerance.epsilon("float32"))
    np.testing.assert_allclose(gradient, ideal, rtol=1e-4, atol=2 * tolerance.epsilon("float32"))


def test_clip_is_of_the_value_alone():
    logits, labels, weight = sample(30)
    losses, gradient, _ = on_slices(logits, labels, weight, clip=1e-3)
    plain, of_plain, _ = on_slices(logits, labels, weight)
    assert plain.max() > -np.log(1e-3)
    np.testing.assert_array_equal(losses, np.minimum(plain, np.float32(-np.log(1e-3))))
    np.testing.assert_array_equal(gradient, of_plain)


def test_rows_taken_out_are_not_seen():
    logits, labels, weight = sample(3)
    out = np.arange(ROWS) % 3 == 0
    seen = np.where(out[:, None], np.nan, logits)
    losses, gradient, slopes = on_slices(seen, labels, np.where(out, np.float32(TAKEN_OUT), weight))
    of_rows, ideal = exact(logits, labels, weight)
    np.testing.assert_allclose(losses, np.where(out, 0, of_rows), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, np.where(out[:, None], 0, ideal), atol=1e-6)
    assert not slopes[out].any(), "a product would add up what is no number"


@pytest.mark.parametrize("label", [-1, CLASSES, 10**6])
def test_a_label_out_of_range_is_nan_and_has_no_gradient(label):
    logits, labels, weight = sample(3)
    labels[5] = label
    losses, gradient, _ = on_slices(logits, labels, weight)
    np.testing.assert_array_equal(np.isnan(losses), np.arange(ROWS) == 5)
    assert not gradient[5].any()
    assert np.abs(gradient[[4, 6]]).sum() > 0


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("at_label", [True, False])
def test_what_is_no_number_shows(number, at_label):
    """In the row's loss and in all of its gradient, whichever slice it is in."""
    logits, labels, weight = sample(3)
    others, labels[5] = np.arange(ROWS) != 5, 40
    ideal = exact(logits, labels, weight)[0]
    logits = np.array(logits)
    logits[5, 40 if at_label else 3] = number
    losses, gradient, _ = on_slices(logits, labels, weight)
    assert np.isnan(losses[5]) or losses[5] == np.inf
    assert np.isnan(gradient[5]).all()
    np.testing.assert_allclose(losses[others], ideal[others], rtol=1e-5)


def test_the_logits_are_overwritten():
    objective = Objective(0.0, (), CLASSES, axes=AXES, in_place=True)
    step = functools.partial(losses_and_slopes, objective, AXES)

    def local(hidden, kernel, labels, weight):
        losses, slopes, factors = step(*of_slice(objective, AXES, hidden @ kernel, labels, weight))
        return losses, slopes @ kernel.T, factors[jax.lax.axis_index(AXES)]

    specs = P(), P(None, AXES), P(), P()
    run = jax.shard_map(local, mesh=meshes.mesh(), in_specs=specs, out_specs=(P(), P(AXES), P(AXES)))
    hidden, kernel = np.ones((256, 8), np.float32), np.ones((8, 64 * CLASSES), np.float32)
    labels, weight = np.zeros(256, np.int32), np.ones(256, np.float32)
    compiled = jax.jit(run).lower(hidden, kernel, labels, weight).compile()
    of_slice_bytes = 4 * 256 * 64 * CLASSES // meshes.count()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * of_slice_bytes, "there are two of them"
