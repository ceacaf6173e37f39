"""The gradients of listed classes of which one has nearly all of the target, and is nearly certain."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import extended_precision
import jaxloss
import meshes
from tolerance import ulp_errors

CLASSES, ROWS, K = 38, np.arange(120)[:, None], 4
OPTIONS = {
    "nothing": {},
    "z-loss": {"z_loss": np.float32(1e-7)},
    "z-loss alone": {"z_loss": np.float32(1e-4)},
    "smoothing": {"label_smoothing": np.float32(1e-6)},
    "both": {"z_loss": np.float32(1e-8), "label_smoothing": np.float32(1e-7)},
    "class weights": {"class_weights": np.cos(np.arange(CLASSES)).astype(np.float32) + 2},
}


def sample():
    """Logits of which one leads by 8 and more, that of the first listed class in most rows; one class is listed twice."""
    random = np.random.default_rng(5)
    x = random.normal(0, 3, (len(ROWS), CLASSES)).astype(np.float32)
    indices = np.stack([random.permutation(CLASSES)[:K] for _ in ROWS]).astype(np.int32)
    place = np.where(ROWS[:, 0] < 90, indices[:, 0], indices[:, 1])
    x[ROWS[:, 0], place] = x.max(1) + random.uniform(0, 25, len(ROWS)).astype(np.float32)
    indices[::7, 3] = indices[::7, 2]
    little = 2.0 ** -random.integers(8, 22, (len(ROWS), K))
    return x, indices, little.astype(np.float32)


X, INDICES, LITTLE = sample()
OF_FIRST = np.eye(CLASSES, dtype=np.float32)[INDICES[:, 0]]


def shares(name):
    """So that their sum is exact, and lacks a little of 1; or is all of one class."""
    given = LITTLE.copy()
    given[:, 1:] *= name != "z-loss alone"
    given[:, 0] = 1 - given[:, 1:].sum(1) - 2.0**-22
    return given


def exact(given, remainder, z_loss=0.0, label_smoothing=0.0, class_weights=1.0):
    """The gradients of all listed classes, and the larger of the two numbers that each is the difference of."""
    s, wide = extended_precision.Softmax(extended_precision.extended(X)), np.longdouble
    targets, listed = np.zeros(X.shape, wide), np.zeros(X.shape, bool)
    np.add.at(targets, (ROWS, INDICES), given.astype(wide))
    np.put_along_axis(listed, INDICES, True, 1)
    if remainder == "spread":
        rest = (1 - given.astype(wide).sum(1)) / (~listed).sum(1)
        targets = np.where(listed, targets, rest[:, None])
    smoothing = wide(label_smoothing)
    targets = ((1 - smoothing) * targets + smoothing / CLASSES) * np.asarray(class_weights, wide)
    of_z = 2 * wide(z_loss) * (X.max(1).astype(wide) + s.log_sum)[:, None]
    others = np.stack([np.delete(targets, i, 1).sum(1) for i in range(CLASSES)], 1) + of_z
    total = targets.sum(1, keepdims=True) + of_z
    leads = s.probability > 0.5
    more, less = np.where(leads, others, total * s.probability), np.where(leads, total * s.missing, targets)
    return (more - less)[ROWS, INDICES], np.maximum(np.abs(more), np.abs(less))[ROWS, INDICES]


def remainders(options):
    return ("drop",) if "class_weights" in options else ("drop", "spread")


def gradients(x, of_first, given, options, **others):
    """Of the sum, of losses one by one, and the derivative along the first listed class, by the remainder."""

    def losses(x, remainder, reduction="none"):
        return jaxloss.categorical_cross_entropy(
            x, (INDICES, given), remainder=remainder, reduction=reduction, **options, **others
        )

    def of(remainder):
        return (
            jax.grad(lambda x: losses(x, remainder, "sum"))(x),
            jax.grad(lambda x: losses(x, remainder).sum())(x),
            jax.jvp(lambda x: losses(x, remainder), (x,), (of_first,))[1],
        )

    return {remainder: of(remainder) for remainder in remainders(options)}


def assert_right(found, name, given):
    for remainder, (*whole, along) in found.items():
        expected, scale = exact(given, remainder, **OPTIONS[name])
        below = X.max(1, keepdims=True) - np.minimum(X[ROWS, INDICES], np.median(X, 1, keepdims=True))
        bound = 16 + (1 if jax.default_backend() == "cpu" else 2) * below.astype(float)
        of_all = [np.asarray(gradient)[ROWS, INDICES] for gradient in whole]
        for gradient in (*of_all, np.asarray(along)[:, None]):
            places = slice(gradient.shape[1])
            errors = ulp_errors(gradient, expected[:, places], np.maximum(scale, 1e-37)[:, places])
            assert (errors <= bound[:, places]).all(), remainder


@functools.lru_cache
def program(path):
    del path
    return jax.jit(gradients)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_of_listed_classes(name, path):
    given = shares(name)
    assert_right(program(path)(X, OF_FIRST, given, OPTIONS[name]), name, given)


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("both", "nothing") else [pytest.mark.slow]) for name in OPTIONS]
)
def test_classes_on_two_devices(name):
    given, options = shares(name), OPTIONS[name]
    mesh = jax.sharding.Mesh(np.array(meshes.available()[:2]), ("v",))
    columns, of_options = P(None, "v"), {name: P("v") if name == "class_weights" else P() for name in options}
    results = {remainder: (columns, columns, P()) for remainder in remainders(options)}

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(columns, columns, of_options), out_specs=results)
    def run(x, of_first, options):
        return gradients(x, of_first, given, options, axis_name="v")

    assert_right(run(X, OF_FIRST, options), name, given)
