"""Labels of 64 bits where JAX has 32: what does not fit is out of range, and never the class of its lower half."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from jaxloss import optax as drop_ins

X = np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5)
KERNEL = np.eye(5, dtype=np.float32)
BEYOND = 2**32 + 3
MINIMUM = int(np.iinfo(np.int64).min)


def rows_of_mixed(x, labels):
    return jaxloss.categorical_cross_entropy(x, (labels, np.zeros(4, np.int32), 0.5), reduction="none")


OF_ROWS = {
    "categorical_cross_entropy": lambda x, labels, **given: jaxloss.categorical_cross_entropy(
        x, labels, reduction="none", **given
    ),
    "with_stats": lambda x, labels, **given: jaxloss.categorical_cross_entropy_with_stats(
        x, labels, reduction="none", **given
    )[0],
    "linear_cross_entropy": lambda x, labels, **given: jaxloss.linear_cross_entropy(
        x, KERNEL, labels, reduction="none", **given
    ),
    "linear_log_prob": lambda x, labels: jaxloss.linear_log_prob(x, KERNEL, labels),
    "log_prob": jaxloss.log_prob,
    "mixed": rows_of_mixed,
    "mixed, second": lambda x, labels: jaxloss.categorical_cross_entropy(
        x, (np.zeros(4, np.int32), labels, 0.5), reduction="none"
    ),
    "optax": drop_ins.softmax_cross_entropy_with_integer_labels,
}
IGNORING = ("categorical_cross_entropy", "with_stats", "linear_cross_entropy")


@pytest.fixture(autouse=True)
def _narrow_types():
    assert not jax.config.read("jax_enable_x64")


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
@pytest.mark.parametrize("name", OF_ROWS)
def test_a_label_beyond_32_bits_is_out_of_range(name, dtype):
    labels = np.array([0, BEYOND, 2, 2**63 - 1], dtype)
    in_range, outside = np.array([0, 4, 2, 4], np.int32), np.array([0, -1, 2, -1], np.int32)
    rows = np.asarray(OF_ROWS[name](X, labels))
    np.testing.assert_array_equal(rows[[0, 2]], np.asarray(OF_ROWS[name](X, in_range))[[0, 2]])
    np.testing.assert_array_equal(rows, OF_ROWS[name](X, outside))
    assert np.isnan(rows[[1, 3]]).all()


@pytest.mark.parametrize("name", IGNORING)
@pytest.mark.parametrize("index", [MINIMUM, np.int64(MINIMUM), BEYOND, -1, np.int64(3), np.int8(3)])
def test_an_ignored_index_of_64_bits(name, index):
    labels = np.array([0, int(index), 2, 0], np.int64)
    rows = OF_ROWS[name](X, labels, ignore_index=index)
    expected = np.asarray(OF_ROWS[name](X, np.array([0, 4, 2, 0], np.int32))).copy()
    expected[1] = 0
    np.testing.assert_array_equal(rows, expected)


WHOLE = {np.int32: (0, 2**31 - 1, -(2**31)), np.int64: (BEYOND, 2**40, 2**31 - 1, MINIMUM), np.uint64: (2**64 - 1,)}


@pytest.mark.parametrize("name", IGNORING)
@pytest.mark.parametrize("dtype", WHOLE)
@pytest.mark.parametrize("index", [2**31 - 1, 2**40, 2**64 - 1, -1, -2, -(2**31), MINIMUM])
def test_only_the_ignored_index_is_ignored(name, dtype, index):
    """Labels that 32 bits do not hold are not each other's, nor what 32 bits would make of them."""
    others = [label for label in (*WHOLE[dtype], -1, -2) if label >= np.iinfo(dtype).min]
    held = np.iinfo(dtype).min <= index <= np.iinfo(dtype).max
    labels = np.array(others + [index] * held, dtype)
    rows = np.asarray(OF_ROWS[name](np.tile(X[:1], (len(labels), 1)), labels, ignore_index=index))
    expected = [0.0 if label == index else np.nan if not 0 <= label < 5 else rows[i] for i, label in enumerate(others)]
    np.testing.assert_array_equal(rows, expected + [0.0] * held)


@pytest.mark.parametrize(("dtype", "index"), [(np.uint64, 2**64 - 1), (np.int64, 2**31 - 1), (np.int32, 2**40)])
def test_only_the_ignored_binary_target_is_ignored(dtype, index):
    marked = index if index <= np.iinfo(dtype).max else np.iinfo(dtype).max
    target = np.array([1, 0, marked, 1], dtype)
    rows = np.asarray(jaxloss.binary_cross_entropy(X[:, 0], target, ignore_index=index, reduction="none"))
    assert (rows[2] == 0) == (marked == index)
    assert (rows[[0, 1, 3]] > 0).all()


def test_a_binary_target_that_is_ignored():
    target = np.where(X > 0, 1, 0).astype(np.int64)
    target[0] = MINIMUM
    value = jaxloss.binary_cross_entropy(X, target, ignore_index=MINIMUM)
    expected = jaxloss.binary_cross_entropy(X, np.where(X > 0, 1, 0), where=np.arange(4)[:, None] + 0 * X > 0)
    np.testing.assert_array_equal(value, expected)


def test_numbers_of_64_bits_are_numbers():
    """A weight, unlike an index, has a nearest floating-point number."""
    weights = np.array([2**40, 0, 0, 0])
    value = jaxloss.mse(X, np.zeros_like(X), weights=weights, normalizer=np.int64(2**40))
    tolerance.assert_ulps(value, 0.5 * (X[0] ** 2).sum(), 16)


def test_a_clip_of_numpy():
    x, labels = jnp.array([[40.0, 0.0]]), np.array([1])
    given = jaxloss.categorical_cross_entropy(x, labels, clip=np.float32(1e-3))
    tolerance.assert_ulps(given, -np.log(1e-3), 16)


@pytest.mark.parametrize("ignore_index", [True, np.True_, 1.0, "1"])
def test_an_index_that_is_none_is_an_error(ignore_index):
    with pytest.raises(TypeError, match=r"ignore_index has type .*: expected int"):
        jaxloss.categorical_cross_entropy(X, np.zeros(4, np.int32), ignore_index=ignore_index)
