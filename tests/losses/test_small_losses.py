"""Cross entropies of confident rows: losses, gradients and entropies are right relative to themselves, however small."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import extended_precision
import jaxloss
import meshes
from tolerance import ulp_errors

GAPS = np.array([0, 0.5, 1, 2, 4, 8, 12, 16, 17, 20, 24, 32, 48, 64, 80])
WIDTHS = (2, 7, 17, 33, 100, 1000)
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
TARGETS = ("labels", "probabilities")


def confident_rows(classes: int, dtype, seed: int = 0):
    """Rows whose label leads by each gap; the same gap at several places. One row has two that lead."""
    random = np.random.default_rng(seed)
    gaps = np.repeat(GAPS, 3)
    labels = random.integers(0, classes, len(gaps))
    x = random.uniform(-3, 0, (len(gaps), classes))
    x[np.arange(len(gaps)), labels] = gaps
    x[-1, (labels[-1] + 1) % classes] = x[-1, labels[-1]]
    return x.astype(dtype), labels


def target_of(labels, classes: int, kind: str):
    return labels if kind == "labels" else np.eye(classes, dtype=np.float32)[labels]


def references(x, labels):
    """Losses, gradients of their sum, and entropies."""
    softmax = extended_precision.Softmax(extended_precision.extended(x))
    return *extended_precision.cross_entropy_of_labels(softmax, np.asarray(labels)), softmax.entropy


def summed(x, target, **options):
    return jaxloss.categorical_cross_entropy(x, target, clip=None, reduction="sum", **options)


def allowed(x, labels, ulps: float = 16) -> np.ndarray:
    """In ulp, of each row: besides, the difference of two logits loses by its rounding up to as many as it is.

    A GPU's exponential, which is one of base 2, loses as many once more.
    """
    wide = np.asarray(x, np.float64)
    gap = np.abs(wide[np.arange(len(wide)), labels] - wide.min(1))
    return ulps + gap * (2 if jax.default_backend() == "gpu" else 1)


def assert_right(values, gradient, x, labels, ulps: float = 16):
    loss, expected, _ = references(x, labels)
    limit = allowed(x, labels, ulps)
    assert (ulp_errors(values, loss) <= limit).all()
    dtype, wide = gradient.dtype, np.asarray(gradient, np.float32)
    unit = np.spacing(np.maximum(np.abs(expected), float(jnp.finfo(dtype).tiny)).astype(np.float32))
    rounding = np.zeros_like(expected)
    if dtype != jnp.float32:  # rounded to the type of the logits; float16 once more, where it was scaled
        rounding = np.maximum(np.abs(expected) * float(jnp.finfo(dtype).eps), _least(dtype))
    errors = np.abs(wide - expected) - rounding
    assert (errors <= limit[:, None] * unit).all(), (errors / unit).max()
    if dtype == jnp.float32:
        assert (np.abs(wide.astype(np.longdouble).sum(1)) <= limit * np.spacing(np.abs(wide).max(1))).all()


def _least(dtype) -> float:
    return float(jnp.finfo(dtype).smallest_subnormal)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", WIDTHS)
def test_losses_and_gradients(classes, dtype, kind, path):
    x, labels = confident_rows(classes, dtype)
    target = target_of(labels, classes, kind)

    def of_rows(x):
        return jaxloss.categorical_cross_entropy(x, target, clip=None, reduction="none")

    @jax.jit
    def all_of_them(x):
        alone = jaxloss.d_categorical_cross_entropy(x, target, reduction="sum")
        return of_rows(x), (jax.grad(summed)(x, target), alone, jax.grad(lambda x: of_rows(x).sum())(x))

    values, gradients = all_of_them(x)
    for gradient in gradients:
        assert_right(values, gradient, x, labels)


OPTIONS = {
    "statistics": {},
    "class_weights": {"class_weights": 1.0},
    "temperature": {"temperature": jnp.ones(())},
    "margin": {"margin": 0.75},
    "z_loss": {"z_loss": jnp.zeros(())},
    "label_smoothing": {"label_smoothing": jnp.zeros(())},
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in OPTIONS for kind in TARGETS if (name, kind) != ("margin", TARGETS[1])]
)
@pytest.mark.parametrize("classes", [2, 17, 1000])
def test_with_options(classes, name, kind, path):
    """Neutral ones, and a margin of labels whose logits are as much higher."""
    x, labels = confident_rows(classes, jnp.float32)
    target, options = target_of(labels, classes, kind), dict(OPTIONS[name])
    raised = np.array(x)
    raised[np.arange(len(labels)), labels] += options.get("margin", 0)
    if "class_weights" in options:
        options["class_weights"] = jnp.ones(classes)

    def of(x):
        value, stats = jaxloss.categorical_cross_entropy_with_stats(x, target, clip=None, reduction="none", **options)
        return value.sum(), (value, stats)

    gradient, (values, stats) = jax.jit(jax.grad(of, has_aux=True))(raised)
    assert_right(values, gradient, x, labels)
    loss, _, entropy = references(x, labels)
    limit = allowed(x, labels)
    assert (ulp_errors(stats.nll, loss) <= limit).all()
    assert (ulp_errors(stats.entropy, entropy) <= limit).all()


@pytest.mark.parametrize("classes", [2, 17, 1000])
def test_log_prob_and_entropy(classes, path):
    x, labels = confident_rows(classes, jnp.float32)
    assert (ulp_errors(jaxloss.entropy(x), references(x, labels)[2]) <= allowed(x, labels)).all()
    of_log_prob = jax.grad(lambda x: -jaxloss.log_prob(x, labels).sum())(x)
    assert_right(-jaxloss.log_prob(x, labels), of_log_prob, x, labels)


@pytest.mark.parametrize("weights", [(0, 1), (1, 0.5), (0.25, -1)], ids=str)
@pytest.mark.parametrize("classes", [2, 17, 1000])
def test_gradients_of_entropies_and_of_losses_with_them(classes, weights, path):
    """In units of the larger of the numbers that a derivative is the difference of.

    Where two logits lead alike, a GPU and a formula are off by what the rounding of an exponent leaves of that difference.
    """
    x, labels = confident_rows(classes, jnp.float32)
    of_loss, of_entropy = weights
    least = 2.0**-24 if jax.default_backend() == "gpu" or path == "formula" else 0

    def of(x):
        losses, stats = jaxloss.categorical_cross_entropy_with_stats(x, labels, clip=None, reduction="none")
        return (of_loss * losses + of_entropy * stats.entropy).sum()

    softmax = extended_precision.Softmax(extended_precision.extended(x))
    _, gradient = extended_precision.cross_entropy_of_labels(softmax, labels)
    expected = of_loss * gradient + of_entropy * softmax.entropy_gradient
    scale = np.abs(of_loss * gradient) + abs(of_entropy) * softmax.probability * np.maximum(
        softmax.below, np.maximum(softmax.mean_below[:, None], least)
    )
    of_each = [of] if of_loss else [of, lambda x: jaxloss.entropy(x).sum()]
    for function in of_each:
        errors = ulp_errors(jax.jit(jax.grad(function))(x), expected, scale)
        assert (errors <= allowed(x, labels, 24 if path == "formula" else 16)[:, None]).all()


def test_gradient_of_entropy_of_a_first_class_that_is_unlikely(path):
    """A kernel takes it for the label of rows without one: not with an exponent that is rounded once more than others'."""
    random = np.random.default_rng(0)
    x = random.normal(0, 8, (20000, 33)).astype(np.float32)
    x[:, 0] -= random.uniform(10, 30, len(x))
    softmax = extended_precision.Softmax(extended_precision.extended(x))
    scale = softmax.probability * np.maximum(softmax.nll, softmax.entropy[:, None])
    errors = ulp_errors(jax.jit(jax.grad(lambda x: jaxloss.entropy(x).sum()))(x), softmax.entropy_gradient, scale)
    limit = (24 if path == "formula" else 16) + softmax.below * (2 if jax.default_backend() == "gpu" else 1)
    assert (errors <= limit)[:, 0].all()


@pytest.mark.parametrize("name", ["plain", "statistics"])
def test_split_classes(name):
    x, labels = confident_rows(64, jnp.float32)
    mesh = jax.sharding.Mesh(np.array(meshes.available()[:2]), ("model",))

    def of(x, labels):
        if name == "plain":
            return jaxloss.categorical_cross_entropy(x, labels, clip=None, reduction="none", axis_name="model")
        value, stats = jaxloss.categorical_cross_entropy_with_stats(
            x, labels, clip=None, reduction="none", axis_name="model"
        )
        return value, stats.entropy

    split = jax.shard_map(of, mesh=mesh, in_specs=(P(None, "model"), P()), out_specs=P())
    results = jax.jit(split)(x, labels)
    gradient = jax.jit(jax.grad(lambda x: jax.tree.leaves(split(x, labels))[0].sum()))(x)
    assert_right(jax.tree.leaves(results)[0], gradient, x, labels, ulps=16)
    if name == "statistics":
        assert (ulp_errors(results[1], references(x, labels)[2]) <= allowed(x, labels, 16)).all()


@pytest.mark.parametrize("name", ["temperature", "softcap"])
def test_of_logits_that_are_scaled_in_two_places(name):
    """By a kernel, whose maximum it is, and by XLA, of classes that are listed or on other devices: each rounds them."""
    x, labels = confident_rows(64, jnp.float32)
    options = {"temperature": {"temperature": np.float32(1.3)}, "softcap": {"softcap": np.float32(100)}}[name]
    z = extended_precision.extended(x)
    z = z / options["temperature"] if name == "temperature" else 100 * np.tanh(z / 100)
    exact = extended_precision.cross_entropy_of_labels(extended_precision.Softmax(z), labels)[0]
    mesh = jax.sharding.Mesh(np.array(meshes.available()[:2]), ("model",))

    def losses(x, target, **where):
        return jaxloss.categorical_cross_entropy(x, target, clip=None, reduction="none", **options, **where)

    def of_slice(x):
        return losses(x, labels, axis_name="model")

    of_split = jax.shard_map(of_slice, mesh=mesh, in_specs=P(None, "model"), out_specs=P())
    of_listed = functools.partial(losses, target=(labels[:, None], np.ones((len(x), 1), np.float32)))
    limit = allowed(x, labels) + 16 * np.abs(x).max(1)
    for function in (of_split, of_listed, functools.partial(losses, target=labels)):
        assert (ulp_errors(jax.jit(function)(x), exact) <= limit).all()


def test_a_long_row(monkeypatch):
    from jaxloss._rows import long_rows

    monkeypatch.setattr(long_rows, "LONG_ROW", 2**8)
    monkeypatch.setattr(long_rows, "SLICE", 2**6)
    jax.clear_caches()
    x, labels = confident_rows(256, jnp.float32)
    values = jaxloss.categorical_cross_entropy(x, labels, clip=None, reduction="none")
    assert_right(values, jax.grad(summed)(x, labels), x, labels)
    jax.clear_caches()


def test_float64(path):
    with jax.enable_x64(True):
        for classes in (3, 50):
            x, labels = confident_rows(classes, jnp.float64)
            loss, gradient, entropy = references(x, labels)
            limit = allowed(x, labels)
            values = jaxloss.categorical_cross_entropy(x, labels, clip=None, reduction="none")
            assert (ulp_errors(values, loss) <= limit).all()
            assert (ulp_errors(jax.grad(summed)(x, labels), gradient) <= 2 * limit[:, None]).all()
            assert (ulp_errors(jaxloss.entropy(x), entropy) <= limit).all()


def test_identical_rows_are_identical():
    """Wherever they stand: the label leads by 12."""
    x = np.zeros((17, 16), np.float32)
    x[:, 3] = 12
    losses = np.asarray(jaxloss.categorical_cross_entropy(x, np.full(17, 3), clip=None, reduction="none"))
    assert np.unique(losses).size == 1
    assert ulp_errors(losses, np.log1p(15 * np.exp(np.longdouble(-12)))).max() <= 8
