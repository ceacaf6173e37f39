"""Few rows of millions of classes, worked on in slices; most tests have that of rows of a hundred."""

import jax
import numpy as np
import pytest

import tolerance
from agreement import assert_agrees
from jaxloss._rows import long_rows
from losses import CATEGORICAL, FLOATS, Case
from modules import custom_call_targets

LABELS = Case(CATEGORICAL, "indices")


@pytest.fixture
def short_slices(monkeypatch, retraced):
    """Slices of four float32 numbers or more."""
    monkeypatch.setattr(long_rows, "LONG_ROW", 64)
    monkeypatch.setattr(long_rows, "SLICE", 16)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 96), (3, 64), (2, 3, 200), (5, 33)])
def test_agrees(short_slices, shape, dtype):
    x, a = LABELS.sample(shape, dtype, scale=10)
    assert (long_rows.slices(jax.ShapeDtypeStruct(shape, np.dtype(x.dtype))) > 1) == (shape != (5, 33))
    for reduction in ("mean", "none"):
        assert_agrees(LABELS, x, a, reduction=reduction)
    where = np.arange(a.size).reshape(a.shape) % 2 == 0
    x[~where] = np.nan
    weights = np.linspace(-1, 2, a.size).astype(np.float32).reshape(a.shape)
    assert_agrees(LABELS, x, a, where=where, weights=weights, reduction="none")


def test_edges(short_slices):
    x, a = LABELS.sample((7, 64), scale=40)
    a[:4] = -1, 64, 0, 63
    x[4, :32] = -np.inf  # slices without a class, the label's not among them
    a[4] = 40
    x[5] = 1e30
    assert_agrees(LABELS, x, a, reduction="none")
    assert_agrees(LABELS, x, a, reduction="none", clip=None)


def test_nan_reaches_its_row_alone(short_slices):
    x, a = LABELS.sample((3, 64))
    x[1, 5] = np.nan
    losses, pull = jax.vjp(lambda x: LABELS.loss(x, a, reduction="none"), x)
    (gradient,) = pull(np.ones_like(losses))
    assert (np.isnan(losses) == [False, True, False]).all()
    assert (np.isnan(gradient).all(-1) == [False, True, False]).all()
    assert np.isfinite(gradient[::2]).all()


def test_how_many():
    def of(*shape, dtype="bfloat16"):
        return long_rows.slices(jax.ShapeDtypeStruct(shape, dtype))

    assert of(1, 2**29) == long_rows.ENOUGH
    assert of(8, 2**26) == long_rows.ENOUGH // 8
    assert of(2, 4, 2**26) == long_rows.ENOUGH // 8
    assert of(255, 2**21) == 32
    assert of(256, 2**21) == of(1, 2**20) == of(1, 2**21 + 1) == of(0, 2**22) == 1
    assert of(1, 2**20, dtype="float32") == 64
    assert [of(1, 2**21 + 2 * odd) for odd in (1, 2, 3)] == [2, 4, 2]  # as many as are equal


def test_whole_rows():
    x, a = LABELS.sample((1, 2**20), scale=3)
    step = jax.jit(jax.value_and_grad(lambda x: LABELS.loss(x, a))).lower(x).compile()
    assert custom_call_targets(step) == ["jaxloss_cross_entropy_value_and_stats", "jaxloss_cross_entropy_grad"]
    expected = LABELS.expected(x, a)
    for actual, exact in zip(step(x), (expected.value, expected.of_prediction), strict=True):
        error = tolerance.bound(*exact, computed=np.float32, stored=np.float32, terms=x.size)
        tolerance.assert_within(actual, exact[0], error, "a long row")
