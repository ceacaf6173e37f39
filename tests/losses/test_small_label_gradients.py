"""A label's gradient where little of it is left: beside other targets that are tiny, or where its class weighs nothing.

Of losses that are reduced and that are not, in forward mode, of mixed labels, and of classes that devices share.
"""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import extended_precision
import jaxloss
import meshes
import tolerance
from tolerance import ulp_errors

CLASSES, ROWS = 38, np.arange(120)
OF_EVEN_CLASSES = (np.arange(CLASSES) % 2).astype(np.float32)
OPTIONS = {
    "z-loss": {"z_loss": np.float32(1e-7)},
    "tiny z-loss": {"z_loss": np.float32(1e-10)},
    "smoothing": {"label_smoothing": np.float32(1e-6)},
    "both": {"z_loss": np.float32(1e-8), "label_smoothing": np.float32(1e-7)},
    "class weights": {"class_weights": OF_EVEN_CLASSES},
    "class weights and z-loss": {"class_weights": OF_EVEN_CLASSES, "z_loss": np.float32(1e-4)},
    "no option": {"z_loss": np.float32(0)},
    "temperature": {"temperature": np.float32(0.7), "z_loss": np.float32(1e-6)},
    "softcap": {"softcap": np.float32(90), "label_smoothing": np.float32(1e-6)},
}
SHARE = np.float32(1 - 2**-20)
"""Of the first of two labels."""


def sample():
    """Logits, labels of which most lead by 8 and more, some lead and some do not, and others, some of them the same."""
    random = np.random.default_rng(21)
    x = random.normal(0, 3, (len(ROWS), CLASSES)).astype(np.float32)
    labels = x.argmax(1).astype(np.int32)
    labels[100:] = random.integers(0, CLASSES, 20)
    x[ROWS[:80], labels[:80]] += random.uniform(8, 25, 80).astype(np.float32)
    return x, labels, (labels + random.integers(0, 3, len(ROWS), np.int32)) % CLASSES


X, LABELS, OTHERS = sample()
TARGETS = {"labels": LABELS, "mixed": (LABELS, OTHERS, SHARE)}


def exact(kind, z_loss=0.0, label_smoothing=0.0, class_weights=None, temperature=1.0, softcap=None):
    """The labels' gradients, and the larger of the two numbers that each is the difference of."""
    wide, z = np.longdouble, extended_precision.extended(X)
    slopes = np.ones_like(z) / wide(temperature)
    if softcap is not None:
        slopes, z = slopes / np.cosh(z / softcap) ** 2, softcap * np.tanh(z / wide(softcap))
    z = z / wide(temperature)
    s = extended_precision.Softmax(z)
    weights = np.ones(CLASSES, wide) if class_weights is None else class_weights.astype(wide)
    smooth, hard = wide(label_smoothing) * weights / CLASSES, 1 - wide(label_smoothing)
    own, others = hard * weights[LABELS], smooth.sum() - smooth[LABELS]
    if kind == "mixed":
        of_other, same = (1 - wide(SHARE)) * hard * weights[OTHERS], LABELS == OTHERS
        own = wide(SHARE) * own + np.where(same, of_other, 0)
        others = others + np.where(same, 0, of_other)
    p, missing = s.probability[ROWS, LABELS], s.missing[ROWS, LABELS]
    others = others + 2 * wide(z_loss) * (z.max(1) + s.log_sum)
    total = others + own + smooth[LABELS]
    in_parts = np.maximum(np.abs(total * missing), np.abs(others))
    of_nothing = np.maximum(np.abs(p * total), smooth[LABELS])
    slopes = slopes[ROWS, LABELS]
    return (others - total * missing) * slopes, np.where(own == 0, of_nothing, in_parts) * slopes


def assert_right(found, kind, **options):
    gradients, scale = exact(kind, **options)
    below = X.max(1) - np.minimum(X[ROWS, LABELS], np.median(X, 1))
    bound = 16 + (1 if jax.default_backend() == "cpu" else 2) * below.astype(float)
    if {"temperature", "softcap"} & set(options):  # by which all logits are rounded
        bound = bound + 16 * np.abs(X).max(1)
    for way, gradient in found.items():
        assert (ulp_errors(gradient, gradients, np.maximum(scale, 1e-37)) <= bound).all(), (kind, way)


def at_labels(x, of_label, options, **others):
    """The gradients of both targets' losses at the labels, which `of_label` is 1 at; of a slice of classes, its part."""

    def losses(x, target, reduction="none"):
        return jaxloss.categorical_cross_entropy(x, target, reduction=reduction, **options, **others)

    def of(target):
        return {
            "reduced": (jax.grad(lambda x: losses(x, target, "sum"))(x) * of_label).sum(1),
            "unreduced": (jax.grad(lambda x: losses(x, target).sum())(x) * of_label).sum(1),
            "forward": jax.jvp(lambda x: losses(x, target), (x,), (of_label,))[1],
        }

    return {kind: of(target) for kind, target in TARGETS.items()}


@functools.lru_cache
def program(path, num_classes):
    """One for all options of the same names."""
    del path
    return jax.jit(functools.partial(at_labels, **({"num_classes": num_classes} if num_classes else {})))


def padded(array, width):
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - CLASSES)])


@pytest.mark.parametrize("width", [CLASSES, 300])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_of_a_label(name, width, path):
    """In rows as narrow as vectors are, and in wider ones."""
    options = {name: padded(x, width) if x.ndim else x for name, x in OPTIONS[name].items()}
    run = program(path, CLASSES if width > CLASSES else None)
    found = run(padded(X, width), np.eye(width, dtype=np.float32)[LABELS], options)
    for kind, gradients in found.items():
        assert_right(gradients, kind, **OPTIONS[name])


@functools.lru_cache
def on_two_devices(names):
    mesh = jax.sharding.Mesh(np.array(meshes.available()[:2]), ("v",))
    specs = {name: P("v") if name == "class_weights" else P() for name in names}

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(None, "v"), P(None, "v"), specs), out_specs=P())
    def run(x, of_label, options):
        found = at_labels(x, of_label, options, axis_name="v")
        return {
            kind: {way: x if way == "forward" else jax.lax.psum(x, "v") for way, x in of.items()}
            for kind, of in found.items()
        }

    return jax.jit(run)


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
@pytest.mark.parametrize("name", OPTIONS)
def test_classes_on_two_devices(name):
    """Of which one at most has the label, and all that its gradient is made of is not there."""
    run = on_two_devices(tuple(OPTIONS[name]))
    for kind, gradients in run(X, np.eye(CLASSES, dtype=np.float32)[LABELS], OPTIONS[name]).items():
        assert_right(gradients, kind, **OPTIONS[name])


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_on_two_devices(dtype):
    """They are written among the others in another way, and rounded once."""
    x, of_label = X.astype(dtype), np.eye(CLASSES, dtype=dtype)[LABELS]
    options = OPTIONS["both"]
    run = on_two_devices(tuple(options))
    found, wide = run(x, of_label, options), run(x.astype(np.float32), of_label.astype(np.float32), options)
    for kind, gradients in found.items():
        for way in ("reduced", "unreduced"):
            exact = np.asarray(wide[kind][way], np.float64)
            error = tolerance.bound(exact, np.abs(exact), computed=np.float32, stored=dtype)
            tolerance.assert_within(gradients[way], exact, error, f"{kind}, {way}")
