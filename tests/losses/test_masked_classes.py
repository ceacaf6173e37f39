"""Classes whose logits are -Inf: what they take of a target, and what of a loss."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jaxloss
import meshes
import tolerance

CLASSES = 12
RANDOM = np.random.default_rng(2)
X = RANDOM.normal(0, 2, (6, CLASSES)).astype(np.float32)
MASK = RANDOM.random(X.shape) < 0.4
LABELS = np.array([np.flatnonzero(~row)[0] for row in MASK])
MASKED = np.where(MASK, -np.inf, X).astype(np.float32)
SMOOTHING = 0.2


def expected(weights):
    """Losses, gradients, and derivatives of the losses with respect to smoothing and class weights."""
    z = np.where(MASK, -np.inf, X.astype(np.float64))
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    hard = np.eye(CLASSES)[LABELS]
    soft = np.where(MASK, 0, 1 / CLASSES)
    b = weights * ((1 - SMOOTHING) * hard + SMOOTHING * soft)
    nll = np.where(MASK, 0, -log_p)
    gradient = np.exp(log_p) * b.sum(1, keepdims=True) - b
    return (b * nll).sum(1), gradient, (weights * (soft - hard) * nll).sum(), (b / weights * nll).sum(0)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("clip", [None, 1e-7])
def test_masked_classes_are_not_smoothed_over(clip, reduction, path):
    def of(x, smoothing, weights):
        loss = jaxloss.categorical_cross_entropy(
            x, LABELS, label_smoothing=smoothing, class_weights=weights, clip=clip, reduction=reduction
        )
        return loss.sum(), loss

    weights = np.linspace(0.5, 2, CLASSES)
    operands = (MASKED, SMOOTHING, weights.astype(np.float32))
    (_, losses), gradients = jax.value_and_grad(of, (0, 1, 2), has_aux=True)(*operands)
    values, gradient, of_smoothing, of_weights = expected(weights)
    tolerance.assert_ulps(losses, values if reduction == "none" else values.sum(), 32)
    for found, reference in zip(gradients, (gradient, of_smoothing, of_weights), strict=True):
        tolerance.assert_close(found, reference, "derivative", terms=CLASSES)
    alone = jaxloss.d_categorical_cross_entropy(
        MASKED, LABELS, label_smoothing=SMOOTHING, class_weights=operands[2], reduction="sum"
    )
    tolerance.assert_close(alone, gradient, "gradient", terms=CLASSES)


@pytest.mark.parametrize("name", ["one device", "split"])
def test_all_that_is_asked_for_together(name):
    def of(x, axis_name=None):
        loss, stats = jaxloss.categorical_cross_entropy_with_stats(
            x, LABELS, label_smoothing=SMOOTHING, clip=None, reduction="none", axis_name=axis_name
        )
        return loss, stats.entropy

    if name == "split":
        mesh = Mesh(np.array(meshes.available()[:2]), ("v",))
        of_all = jax.shard_map(lambda x: of(x, "v"), mesh=mesh, in_specs=P(None, "v"), out_specs=P())
    else:
        of_all = of
    losses, entropy = jax.jit(of_all)(MASKED)
    values, gradient, *_ = expected(np.ones(CLASSES))
    tolerance.assert_ulps(losses, values, 32)
    assert np.isfinite(entropy).all()
    tolerance.assert_close(jax.jit(jax.grad(lambda x: of_all(x)[0].sum()))(MASKED), gradient, "gradient", terms=CLASSES)


@pytest.mark.parametrize(("clip", "value"), [(None, np.inf), (1e-7, -np.log(1e-7))])
def test_a_label_on_a_masked_class(clip, value, path):
    x = np.where(np.arange(CLASSES) == 3, -np.inf, X[:1]).astype(np.float32)
    label = np.array([3])
    loss, gradient = jax.value_and_grad(lambda x: jaxloss.categorical_cross_entropy(x, label, clip=clip))(x)
    tolerance.assert_ulps(loss, value, 16)
    probabilities = np.exp(x) / np.exp(x).sum()
    tolerance.assert_close(gradient, probabilities - np.eye(CLASSES)[3], "gradient", terms=CLASSES)
    assert gradient[0, 3] == -1


@pytest.mark.parametrize("clip", [None, 1e-7])
def test_a_share_of_0_at_a_masked_class_has_an_infinite_derivative(clip, path):
    """The loss of the second label is infinite, and its share is 0: in both modes no product of the two is taken."""
    labels, masked = LABELS, MASK.argmax(1)  # of each row one that is not masked, and one that is

    def of(share):
        return jaxloss.categorical_cross_entropy(MASKED, (labels, masked, share), clip=clip, reduction="sum")

    def of_unmasked(share):
        return jaxloss.categorical_cross_entropy(X, (labels, masked, share), clip=clip, reduction="sum")

    ones = np.ones(len(X), np.float32)
    log_p = X - np.log(np.exp(X.astype(np.float64)).sum(1, keepdims=True))
    expected = np.take_along_axis(log_p, masked[:, None], 1) - np.take_along_axis(log_p, labels[:, None], 1)
    tolerance.assert_close(jax.grad(of_unmasked)(ones), expected[:, 0], "derivative", terms=CLASSES)
    np.testing.assert_array_equal(jax.grad(of)(ones), -np.inf)
    assert jax.jvp(of, (ones,), (ones,))[1] == -np.inf


@pytest.mark.parametrize("low", [-1e9, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize(
    ("rows", "classes", "dtype"),
    [(5, 64, "float32"), (5, 1000, "bfloat16"), (600, 9000, "float32"), (3, 40_000, "bfloat16")],
)
def test_classes_masked_by_a_very_low_number(rows, classes, low, dtype):
    """As is usual, and with class weights of 0, so that smoothing does not count them: as -Inf masks them."""
    rng = np.random.default_rng(classes)
    x, labels = rng.normal(0, 3, (rows, classes)), rng.integers(0, classes // 2, rows, np.int32)
    weights = (np.arange(classes) < classes // 2).astype(np.float32)
    lower = low if dtype == "float32" else max(low, -3.3e38)  # which is finite in bfloat16

    @jax.jit
    def of(x):
        def smoothed(x, clip):
            losses = jaxloss.categorical_cross_entropy(
                x, labels, label_smoothing=0.1, class_weights=weights, clip=clip, reduction="none"
            )
            return losses.sum(), losses

        def statistics(x):
            losses, stats = jaxloss.categorical_cross_entropy_with_stats(x, labels, reduction="none")
            return losses.sum() + stats.entropy.sum(), (losses, stats.nll, stats.lse, stats.entropy)

        both = [jax.value_and_grad(smoothed, has_aux=True)(x, clip) for clip in (None, 1e-7)]
        return both, [smoothed(x, clip) for clip in (None, 1e-7)], jax.value_and_grad(statistics, has_aux=True)(x)

    found, expected = (jax.tree.leaves(of(np.where(weights, x, mask).astype(dtype))) for mask in (lower, -np.inf))
    for one, other in zip(found, expected, strict=True):
        assert np.isfinite(np.asarray(other, np.float32)).all()
        tolerance.assert_close(one, other, "results", terms=64)
