"""Very many short rows, whose losses a GPU's kernel sums. In most tests few rows are many, and longer ones short."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cross_entropy_options as samples
import jaxloss
import test_transforms
import tolerance
from agreement import assert_agrees
from jaxloss._ffi import cross_entropy as calls
from jaxloss._rows import cross_entropy
from losses import CATEGORICAL, Case
from modules import custom_call_targets
from quickly import jit_quickly
from transforms import TRANSFORMS

LABELS = Case(CATEGORICAL, "indices")
SUMMED = [
    ("z_loss",),
    ("label_smoothing",),
    ("margin",),
    ("class_weights",),
    ("temperature", "z_loss"),
    ("num_classes",),
]
"""Options that the kernel has which sums losses, each once."""


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"clip": None}, {"normalizer": np.float32(3)}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 2), (1000, 3), (4099, 4), (300, 10), (2, 3, 20), (70, 257), (0, 5)])
def test_agrees(sums_of_few_rows, shape, dtype, options):
    assert_agrees(LABELS, *LABELS.sample(shape, dtype, scale=10), **options)


def test_with_weights_of_rows(sums_of_few_rows):
    x, a = LABELS.sample((50, 10))
    where = np.arange(50) % 2 == 0
    x[~where] = np.nan
    assert_agrees(LABELS, x, a, where=where)
    assert_agrees(LABELS, x, a, where=where, weights=np.linspace(-1, 2, 50, dtype=np.float32))


@pytest.mark.parametrize("place", [0, 17, 19_999])
@pytest.mark.parametrize("label", [-1, 10])
def test_label_out_of_range(sums_of_few_rows, place, label):
    x, a = LABELS.sample((20_000, 10))
    a[place] = label
    value, gradient = jax.value_and_grad(LABELS.loss)(x, a)
    assert np.isnan(value)
    assert np.isfinite(gradient).all()
    assert (gradient[place] == 0).all()


def sum_and_rows(x, labels, **options):
    """Value and gradient, with the losses summed where they are computed, and as with a weight for each row."""
    loss = LABELS.loss
    ones = jnp.ones(x.shape[:-1], np.float32)
    at_once = jit_quickly(jax.value_and_grad(lambda x: loss(x, labels, **options)))
    of_rows = jit_quickly(jax.value_and_grad(lambda x: loss(x, labels, weights=ones, **options)))
    return at_once(x), of_rows(x)


def assert_same(at_once, of_rows, rows):
    (value, gradient), (expected_value, expected_gradient) = at_once, of_rows
    tolerance.assert_ulps(value, expected_value, 32)
    difference = jnp.abs(gradient - expected_gradient).astype("float32")
    of_one = {4: 3e-7, 2: 2**-7}[gradient.dtype.itemsize]  # what one rounding may differ by
    smallest = 1e-7 if gradient.dtype == np.float16 else 5e-7 / rows
    assert (difference <= of_one * jnp.abs(expected_gradient).astype("float32") + smallest).all()


@pytest.mark.parametrize("names", SUMMED, ids="-".join)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(7, 2), (1000, 3), (500, 10), (2, 3, 20), (70, 257)])
def test_with_options(sums_of_few_rows, shape, dtype, names):
    options = samples.on(names, shape[-1])
    x, labels = LABELS.sample(shape, dtype, scale=4)
    labels = np.minimum(labels, options.get("num_classes", shape[-1]) - 1)
    at_once, of_rows = sum_and_rows(jnp.asarray(x), labels, **options)
    assert_same(at_once, of_rows, np.prod(shape[:-1]))


def test_mixed_labels(sums_of_few_rows):
    x, labels = LABELS.sample((500, 10))
    target = labels, np.roll(labels, 1), np.linspace(0, 1, 500, dtype=np.float32)
    assert_same(*sum_and_rows(jnp.asarray(x), target, z_loss=1e-3), 500)


@pytest.mark.gpu
@pytest.mark.parametrize("names", [("z_loss",), ("label_smoothing", "class_weights")], ids="-".join)
@pytest.mark.parametrize(
    ("dtype", "classes"),
    [("float32", classes) for classes in (2, 3, 10, 16)]
    + [("bfloat16", classes) for classes in (2, 3, 10, 16, 31, 64)],
)
def test_many_rows_with_options(dtype, classes, names):
    rows = -(-cross_entropy.MANY_BYTES // (classes * np.dtype(dtype).itemsize) // 4096) * 4096 + 1
    logits = (3 * jax.random.normal(jax.random.key(0), (rows, classes))).astype(dtype)
    labels = jax.random.randint(jax.random.key(1), (rows,), 0, classes)
    options = samples.on(names, classes)
    compiled = jax.jit(lambda x, y: LABELS.loss(x, y, **options)).lower(logits, labels).compile()
    assert custom_call_targets(compiled) == ["jaxloss_cross_entropy_with_options_sums_value"]
    assert_same(*sum_and_rows(logits, labels, **options), rows)


@pytest.mark.gpu
@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize(
    ("dtype", "classes"),
    [("float32", classes) for classes in (2, 3, 10, 12, 16, 31, 128)]
    + [("bfloat16", classes) for classes in (2, 3, 4, 10, 16, 31, 33, 64, 100, 255)],
)
def test_many_rows(dtype, classes, more):
    """As many as are very many: the same as with a weight for each row, whose losses are added up by XLA."""
    rows = -(-cross_entropy.MANY_BYTES // (classes * np.dtype(dtype).itemsize) // 4096) * 4096 + more
    logits = (3 * jax.random.normal(jax.random.key(0), (rows, classes))).astype(dtype)
    labels = jax.random.randint(jax.random.key(1), (rows,), 0, classes)
    compiled = jax.jit(LABELS.loss).lower(logits, labels).compile()
    assert custom_call_targets(compiled) == ["jaxloss_cross_entropy_sums_value"]
    at_once, of_rows = sum_and_rows(logits, labels)
    assert_same(at_once, of_rows, rows)
    tolerance.assert_ulps(compiled(logits, labels), of_rows[0], 32)


# The elementwise losses go the same way in all of them.
SOME = (
    "value",
    "value_and_grad",
    "vmap_grad",
    "per_example",
    "jvp",
    "forward_over_reverse",
    "reverse_over_reverse",
    "scan",
)


@pytest.mark.parametrize("name", SOME)
def test_transforms_of_sums(sums_of_few_rows, name):
    operands = test_transforms.operands(LABELS)
    actual = jit_quickly(lambda o: test_transforms.of_each(TRANSFORMS[name], LABELS.loss, ("mean", "sum"), o))(operands)
    test_transforms.assert_agree(actual, LABELS, TRANSFORMS[name], operands, name)


def test_only_where_rows_are_many_and_short(monkeypatch, retraced):
    used = []
    for name in ("cross_entropy_total", "cross_entropy_with_options_total"):
        sums = getattr(calls, name)
        monkeypatch.setattr(
            calls, name, lambda *operands, sums=sums, **options: used.append(1) or sums(*operands, **options)
        )

    def is_used(shape, dtype="float32", of=lambda loss: loss, loss=LABELS.loss, **options):
        used.clear()
        logits, labels = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[:-1], "int32")
        jax.eval_shape(of(lambda x, y: loss(x, y, **options)), logits, labels)
        return bool(used)

    assert is_used((2**23, 10))
    assert is_used((2**12, 2**12, 4), "bfloat16")
    assert is_used((2**22, 128))
    assert is_used((2**22, 16), of=jax.value_and_grad)
    assert not is_used((2**22, 128), of=jax.value_and_grad)
    assert is_used((2**22, 64), "bfloat16", of=jax.value_and_grad)
    assert is_used((2**24, 1))
    assert not is_used((2**24 - 1, 1))
    assert not is_used((2**16, 10))
    assert not is_used((2**16, 1024))
    assert not is_used((2**23, 10), weights=np.ones(2**23, np.float32))
    for names in SUMMED:
        assert is_used((2**23, 10), **samples.on(names, 10))
    assert not is_used((2**23, 10), softcap=30.0)
    assert not is_used((2**23, 10), margin=np.ones(2**23, np.float32))
    assert not is_used((2**23, 10), loss=jaxloss.categorical_cross_entropy_with_stats, z_loss=0.1)
    assert not is_used((2**23, 10), reduction="none")
