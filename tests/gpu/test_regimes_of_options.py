"""Cross entropy with options in every regime of the CUDA kernels: rows that lanes or clusters hold, and that are read twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cross_entropy_options as samples
import jaxloss
import tolerance
from jaxloss import formulas

pytestmark = pytest.mark.gpu

SHAPES = [(301, 3), (300, 33), (65, 1000), (33, 1025), (17, 2048), (16, 4099), (9, 8191), (5, 32001), (4, 50264)]
SHAPES += [(3, 128256), (2, 262147), (1, 1_000_003), (160, 5003)]  # the last has a row for every multiprocessor
SETS = {
    "linear": ("z_loss", "margin", "temperature", "num_classes"),
    "smoothing": ("label_smoothing", "num_classes"),
    "weights": ("label_smoothing", "class_weights", "z_loss"),
    "softcap": ("softcap", "z_loss"),
    "softcap and smoothing": ("softcap", "label_smoothing", "temperature"),
    "all": samples.ARGUMENTS,
}
KINDS = ["indices", "mixed"]


def sample(shape, dtype, options, kind):
    """Logits of which some rows lead, some are masked in part, and one is close to all the same; and labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, shape)
    x[1::5] *= 8
    counted = options.get("num_classes", shape[1])
    x[2::5, : counted // 2] = -np.inf
    x[3::5] /= 64
    labels, others = (rng.integers(counted // 2, counted, shape[0], np.int32) for _ in range(2))
    others[::3] = labels[::3]
    x[np.arange(shape[0])[4::5], labels[4::5]] += 40
    if kind == "indices":
        return x.astype(dtype), labels
    return x.astype(dtype), (labels, others, rng.random(shape[0]).astype(np.float32))


def exactly(x, target, options, clip):
    """The results of the formulas in float64, and how large the numbers of each row are that are rounded."""
    rows, classes = x.shape
    operands = {
        name: value if np.shape(value)[:1] == (rows,) else np.broadcast_to(value, (rows, *np.shape(value)))
        for name, value in options.items()
    }
    if isinstance(target, tuple):
        target, operands["second_label"], operands["mix"] = target
    with jax.enable_x64(True):
        operands = {name: t if t.dtype.kind == "i" else t.astype(np.float64) for name, t in operands.items()}
        run = jax.jit(formulas.categorical.cross_entropy_results, static_argnums=(3, 4))
        wide = jnp.asarray(x.astype(np.float64))
        results = run(wide, target, operands, clip, int(options.get("num_classes", classes)))
        results = jax.tree.map(np.asarray, results)
    return results, np.abs(np.where(np.isfinite(x), x.astype(np.float64), 0)).max(-1)


def check(actual, expected, magnitude, name):
    finite = np.where(np.isfinite(expected), np.abs(expected), 0)
    error = tolerance.bound(expected, finite + magnitude, computed=np.float32, stored=actual.dtype, terms=64)
    tolerance.assert_within(np.asarray(actual), expected, error, name)


def check_gradient(actual, expected, size, target):
    """Each to the digits of its own row's logits, and of what smoothing or being a label takes from it."""
    magnitude = np.abs(expected) * size[:, None] + 1 / expected.shape[1]
    if isinstance(target, tuple):
        for labels in target[:2]:
            magnitude[np.arange(len(labels)), labels] += 4
    check(actual, expected, magnitude, "gradient")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", SETS)
def test_losses_and_gradients(names, kind, shape, dtype):
    options = samples.on(SETS[names], shape[1], kind)
    x, target = sample(shape, dtype, options, kind)
    where = np.arange(shape[0]) % 7 != 6
    weights = np.resize(np.array([1, 0.5, -2, 1, 0.25], np.float32), shape[0])
    given = x.copy()
    given[~where] = np.nan
    given[:, options.get("num_classes", shape[1]) :] = np.nan

    # Smoothed losses that are not clipped are streamed.
    clips = (1e-2, None) if "label_smoothing" in options else (1e-2,)

    @jax.jit
    def run(x):
        losses = [
            jaxloss.categorical_cross_entropy(x, target, clip=clip, where=where, reduction="none", **options)
            for clip in clips
        ]
        gradient = jaxloss.d_categorical_cross_entropy(
            x, target, where=where, weights=weights, reduction="sum", **options
        )
        return losses, gradient

    losses, gradient = run(given)
    for clip, of_rows in zip(clips, losses, strict=True):
        exact, size = exactly(x, target, options, clip or 0)
        check(of_rows, np.where(where, exact["losses"], 0), 1 + size, f"losses clipped at {clip}")
    check_gradient(
        gradient, np.where(where, weights, 0)[:, None] * np.where(where[:, None], exact["gradient"], 0), size, target
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("names", ["plain", *SETS])
def test_statistics(names, shape, dtype):
    options = samples.on(SETS.get(names, ()), shape[1])
    x, labels = sample(shape, dtype, options, "indices")
    x[::4] = np.round(x[::4].astype(np.float32)).astype(dtype)  # many are equal
    where = np.arange(shape[0]) % 7 != 6
    given = x.copy()
    given[~where] = np.nan

    @jax.jit
    def run(x):
        def total(x):
            loss, stats = jaxloss.categorical_cross_entropy_with_stats(
                x, labels, where=where, reduction="sum", **options
            )
            return loss, stats

        return jax.value_and_grad(total, has_aux=True)(x), jaxloss.categorical_cross_entropy_with_stats(
            x, labels, where=where, reduction="none", **options
        )

    ((_, beside), gradient), (losses, stats) = run(given)
    exact, size = exactly(x, labels, options, 1e-7)
    expected = {name: exact[name] for name in ("nll", "entropy")} | {"lse": exact["maximum"] + exact["log_sum"]}
    for of in (stats, beside):
        for name, value in expected.items():
            check(getattr(of, name), np.where(where, value, 0), 1 + size, name)
        if not {"softcap", "temperature"} & set(options):  # with these, a rounding may make different logits equal
            for name in ("predicted", "rank"):
                np.testing.assert_array_equal(np.asarray(getattr(of, name))[where], exact[name][where], name)
    for name in ("predicted", "rank"):
        np.testing.assert_array_equal(getattr(stats, name), getattr(beside, name), name)
    check(losses, np.where(where, exact["losses"], 0), 1 + size, "losses")
    check_gradient(gradient, np.where(where[:, None], exact["gradient"], 0), size, labels)


@pytest.mark.parametrize("classes", [3, 33, 1000, 4099])
def test_rows_that_are_smoothed_beside_rows_that_are_not(classes):
    """They may share a warp."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(0, 3, (61, classes)).astype(np.float32), rng.integers(0, classes, 61, np.int32)
    smoothing = np.where(np.arange(61) % 3, 0, 0.2).astype(np.float32)

    def of(x, label, smoothing):
        return jaxloss.categorical_cross_entropy(x, label, clip=None, label_smoothing=smoothing, reduction="sum")

    losses, gradient = jax.jit(jax.vmap(jax.value_and_grad(of)))(x, labels, smoothing)
    exact, size = exactly(x, labels, {"label_smoothing": smoothing}, 0)
    check(losses, exact["losses"], 1 + size, "losses")
    check_gradient(gradient, exact["gradient"], size, labels)
