"""Divergences over few classes, whose rows a CPU takes as many at once as a vector has lanes: those that are left at the end,
and numbers that are not the same in all lanes."""

import jax
import numpy as np
import pytest

from divergences import CELLS, KINDS, OPERATIONS, cells, expected_of, numbers, sample
from tolerance import assert_within, bound

LANES = 32  # of the widest vectors; 8 of the narrowest
COUNTS = (*range(1, LANES + 2), 2 * LANES + 1)
TYPES = [("float32", 7), ("bfloat16", 20), ("float16", 3), ("float32", 33)]
CASES = [(*cell, *of_type) for cell, of_type in zip(CELLS, TYPES, strict=True)]


def results(kind, target_type, x, a, temperature=1.7, beta=0.3, **options):
    loss, d_loss, _, _ = KINDS[kind]
    options |= {"target_type": target_type, "reduction": "none", **numbers(kind, temperature, beta)}
    return loss(x, a, **options), d_loss(x, a, **options)


def assert_exact(found, exact, what, terms):
    error = bound(*exact, computed=np.float32, stored=found.dtype, operations=OPERATIONS, terms=terms)
    assert_within(found, exact[0], error, what)


@pytest.mark.parametrize(("kind", "target_type", "dtype", "width"), CASES)
def test_any_number_of_rows(kind, target_type, dtype, width):
    """Some of them are masked. Where a batch ends changes no bit of its rows."""
    x, a = sample((COUNTS[-1], width), target_type, dtype)
    where = np.arange(COUNTS[-1]) % 5 != 3
    x[~where] = np.nan

    @jax.jit
    def of_all_counts(x, a, where):
        return [results(kind, target_type, x[:n], a[:n], where=where[:n]) for n in COUNTS]

    *others, whole = of_all_counts(x, a, where)
    expected, _ = expected_of(kind, target_type, x, a, where=where, temperature=1.7, beta=0.3, reduction="none")
    assert_exact(whole[0], expected.value, "losses", width)
    assert_exact(whole[1], expected.of_prediction, "gradient", width)
    for n, few in zip(COUNTS, others, strict=False):
        for found, of_whole in zip(few, whole, strict=True):
            np.testing.assert_array_equal(found, of_whole[:n], f"{n} rows")


@pytest.mark.parametrize("together", [1, 3])
@cells
def test_numbers_of_rows(kind, target_type, together):
    """A temperature and a β for each so many rows."""
    groups, width = -(-2 * LANES // together) + 1, 6
    x, a = sample((groups, together, width), target_type)
    temperature, beta = np.random.default_rng(0).uniform(0.2, 0.9, (2, groups)).astype(np.float32)

    def of_group(*operands):
        return results(kind, target_type, *operands)

    losses, gradients = jax.jit(jax.vmap(of_group))(x, a, temperature, beta)
    for i in range(groups):
        of_numbers = {"temperature": temperature[i], "beta": beta[i], "reduction": "none"}
        expected, _ = expected_of(kind, target_type, x[i], a[i], **of_numbers)
        assert_exact(losses[i], expected.value, f"losses of group {i}", width)
        assert_exact(gradients[i], expected.of_prediction, f"gradients of group {i}", width)


def test_the_gradient_of_close_distributions_sums_to_nothing():
    """But for what the two sums of exponentials are off by, up to 2 units each: not for the rounding of their logarithms."""
    random = np.random.default_rng(3)
    y = (1e-3 * random.normal(0, 1, (512, 100))).astype(np.float32)
    x = (y + 2e-6 * random.normal(0, 1, y.shape)).astype(np.float32)
    gradient = KINDS["kl"][1](x, y, target_type="logits", reduction="none")
    assert np.abs(np.asarray(gradient, np.float64).sum(1)).max() <= 2 * np.finfo(np.float32).eps
