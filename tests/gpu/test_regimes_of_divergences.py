"""Divergences in every regime of the CUDA kernels: rows that lanes of a warp or a cluster hold, and that are read twice."""

import numpy as np
import pytest

from divergences import assert_agrees, sample

pytestmark = pytest.mark.gpu

SHAPES = [(301, 3), (129, 33), (65, 1000), (33, 1025), (17, 2049), (9, 4104), (7, 16384), (5, 32001), (4, 100352)]
SHAPES += [(2, 262147), (1, 1_000_003)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["kl", "js"])
def test_a_teacher_of_logits(kind, shape, dtype):
    """Rows that are close, that are far apart, in which classes are masked, and that are masked whole."""
    x, y = sample(shape, "logits", dtype)
    x[1::5] = (y[1::5].astype(np.float32) + x[1::5].astype(np.float32) / 256).astype(dtype)
    x[2::5] = (x[2::5].astype(np.float32) * 3).astype(dtype)
    for row in range(3, shape[0], 5):
        x[row, : shape[1] // 3] = y[row, : shape[1] // 2] = -np.inf
    where = np.arange(shape[0]) % 7 != 6
    x[~where], y[~where] = np.nan, np.nan
    weights = np.resize(np.array([1, 0.5, -2, 0, 0.25], np.float32), shape[0])
    assert_agrees(kind, "logits", x, y, where=where, weights=weights, reduction="sum")


@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("shape", [(9, 1000), (5, 4104), (3, 32001)], ids=str)
@pytest.mark.parametrize("kind", ["kl", "js"])
def test_logits_that_share_an_offset(kind, shape, offset):
    """16-bit numbers so large that their differences would be rounded, were they not those from the maximum."""
    x, y = (1e4 * offset + each.astype(np.float32) for each in sample(shape, "logits", "float32"))
    assert_agrees(kind, "logits", x.astype("bfloat16"), (y / 3).astype("bfloat16"), reduction="sum")
