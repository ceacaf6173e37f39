"""The options of cross entropy that are arrays of classes or count them, where devices share the classes and the rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxloss
import meshes
import tolerance
from quickly import jit_quickly
from test_sharding import assert_only_rows_travel

pytestmark = meshes.several_devices

P = PartitionSpec
ROWS, CLASSES, COUNTED = 16, 64, 51
PLACEMENTS = {"rows": P("d", None), "features": P(None, "v"), "both": P("d", "v")}
OPTIONS = {"label_smoothing": 0.1, "num_classes": COUNTED, "z_loss": 0.02, "clip": None}


def sample(kind):
    rng = np.random.default_rng(0)
    x = (3 * rng.normal(size=(ROWS, CLASSES))).astype(np.float32)
    labels, others = (rng.integers(0, COUNTED, ROWS, np.int32) for _ in range(2))
    mix, weights = rng.random(ROWS).astype(np.float32), np.linspace(0.5, 2, CLASSES, dtype=np.float32)
    probabilities = (rng.random(x.shape) / CLASSES).astype(np.float32)
    return x, {"indices": (labels,), "mixed": (labels, others, mix), "probabilities": (probabilities,)}[kind], weights


MARGINS = np.linspace(-2, 3, ROWS, dtype=np.float32)


def of_target(target):
    return target if len(target) == 3 else target[0]


def everything(x, weights, *target, **options):
    """Loss, statistics and gradients, of logits and class weights; of labels with a margin for each row."""
    margin = {"margin": MARGINS} if target[0].ndim == 1 == len(target) else {}

    def loss(x, weights):
        total, stats = jaxloss.categorical_cross_entropy_with_stats(
            x, of_target(target), class_weights=weights, **margin, **OPTIONS, **options
        )
        return total + jnp.sum(stats.nll * jnp.cos(stats.entropy)), stats

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, weights)


@meshes.AXIS_TYPES
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", ["indices", "mixed", "probabilities"])
def test_placements(kind, placement, axis_type):
    x, target, weights = sample(kind)
    expected = jit_quickly(everything)(x, weights, *target)
    rows, classes = PLACEMENTS[placement]
    mesh = meshes.mesh(axis_type, meshes.axes_of(PLACEMENTS[placement]))
    with jax.set_mesh(mesh):
        specs = [P(rows, classes), P(classes), *(P(rows) if t.ndim == 1 else P(rows, classes) for t in target)]
        placed = [
            jax.device_put(t, NamedSharding(mesh, spec)) for t, spec in zip((x, weights, *target), specs, strict=True)
        ]
        compiled = jit_quickly(everything).lower(*placed).compile()
        assert_only_rows_travel(compiled, max(ROWS, CLASSES))
        actual = compiled(*placed)
    for ours, alone in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if ours.dtype == np.int32:
            np.testing.assert_array_equal(ours, alone)
        else:
            tolerance.assert_close(ours, alone, f"{kind}, {placement}", terms=x.size, magnitude=1.0)


@pytest.mark.parametrize("kind", ["indices", "mixed", "probabilities"])
def test_classes_that_the_caller_has_split(kind):
    """With `axis_name`, class weights are the device's slice, labels and the number of classes those of all."""
    x, target, weights = sample(kind)
    mesh = meshes.mesh(axes=("v",))

    def sharded(x, weights, *target):
        def of_slice(x, weights, *target):
            (loss, stats), (of_x, of_weights) = everything(
                x, weights, *target, axis_name="v", normalizer="weights" if kind == "indices" else None
            )
            return loss, stats, of_x, of_weights

        specs = (P(None, "v"), P("v"), *(P(None) if t.ndim == 1 else P(None, "v") for t in target))
        return jax.shard_map(of_slice, mesh=mesh, in_specs=specs, out_specs=(P(), P(), P(None, "v"), P("v")))(
            x, weights, *target
        )

    loss, stats, *gradients = jit_quickly(sharded)(x, weights, *target)
    expected = everything(x, weights, *target, normalizer="weights" if kind == "indices" else None)
    for ours, alone in zip(jax.tree.leaves(((loss, stats), gradients)), jax.tree.leaves(expected), strict=True):
        if ours.dtype == np.int32:
            np.testing.assert_array_equal(ours, alone)
        else:
            tolerance.assert_close(ours, alone, kind, terms=x.size, magnitude=1.0)


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_long_slices_of_classes(kind):
    """Of more classes than a CPU's kernels take many rows at once of."""
    mesh = meshes.mesh(axes=("v",))
    classes = 300 * mesh.shape["v"]
    rng = np.random.default_rng(3)
    x = (3 * rng.normal(size=(5, classes))).astype(np.float32)
    target = rng.integers(0, classes, 5) if kind == "indices" else (rng.random(x.shape) / classes).astype(np.float32)

    def gradient(x, target, **options):
        return jax.grad(
            lambda x: jaxloss.categorical_cross_entropy(x, target, label_smoothing=0.1, z_loss=0.02, **options)
        )(x)

    specs = (P(None, "v"), P(None) if kind == "indices" else P(None, "v"))
    of_slices = functools.partial(gradient, axis_name="v")
    ours = jit_quickly(jax.shard_map(of_slices, mesh=mesh, in_specs=specs, out_specs=P(None, "v")))(x, target)
    alone = jit_quickly(gradient)(x, target)  # a program of its own, or its logits would be split too
    tolerance.assert_close(ours, alone, kind, terms=classes, magnitude=0.2)


@pytest.mark.parametrize("margin", ["scalar", "rows"])
def test_a_margin_of_classes_that_the_caller_has_split(margin):
    """Only the device that holds the label lowers its logit; a prediction may be on another."""
    rng = np.random.default_rng(5)
    x = rng.normal(0, 2, (ROWS, CLASSES)).astype(np.float32).round()
    labels, margins = rng.integers(0, CLASSES, ROWS, np.int32), MARGINS if margin == "rows" else np.float32(4)
    mesh = meshes.mesh(axes=("v",))

    def of(x, margins, **options):
        def loss(x, margins):
            losses, stats = jaxloss.categorical_cross_entropy_with_stats(
                x, labels, margin=margins, clip=None, reduction="none", label_smoothing=0.125, **options
            )
            return losses.sum() + (stats.nll * jnp.cos(stats.entropy)).sum(), stats

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, margins)

    def sharded(x, margins):
        specs, results = (P(None, "v"), P()), ((P(), P()), (P(None, "v"), P()))
        of_slice = lambda x, margins: of(x, margins, axis_name="v")  # noqa: E731
        return jax.shard_map(of_slice, mesh=mesh, in_specs=specs, out_specs=results)(x, margins)

    actual, expected = jit_quickly(sharded)(x, margins), jit_quickly(of)(x, margins)
    for ours, alone in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if ours.dtype == np.int32:
            np.testing.assert_array_equal(ours, alone)
        else:
            tolerance.assert_close(ours, alone, margin, terms=x.size, magnitude=1.0)
