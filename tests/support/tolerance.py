"""How far a result may be from the exact one: so many units in the last place of the numbers that went into it.

An oracle says, beside each exact result, the magnitude of the terms that were added up to it. Every operation on them errs
by at most half an epsilon of that magnitude (an exponential or a logarithm by two), so the bound is epsilon × magnitude × a
factor that counts operations.
"""

import math

import jax
import ml_dtypes
import numpy as np

OPERATIONS = 8
"""Of one loss and its gradient: an exponential and a logarithm of 2 epsilon each, and eight roundings of half an epsilon."""

OPERATIONS_OF_ELEMENT = 4
"""Of one exponential within 2 epsilon, and a sum and a quotient or a logarithm made of it."""

OPERATIONS_OF_HIGHER_ORDER = 64
"""Of a second or third derivative: each order multiplies by, and subtracts, numbers that err like the order below."""


def arithmetic(dtype) -> np.dtype:
    """What a loss of numbers of that type is computed in."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def epsilon(dtype) -> float:
    return float(ml_dtypes.finfo(dtype).eps)


def bound(expected, magnitude, *, computed, stored, operations=OPERATIONS, terms=1, largest=None) -> np.ndarray:
    """The largest error of a result.

    Args:
        expected: the exact result.
        magnitude: of the terms of the result; may be larger than the result, if they cancel.
        computed: the type that was computed in.
        stored: the type of the result.
        operations: how many epsilons the operations may cost.
        terms: how many numbers were added up: roundings of a sum have random signs, so their error grows by the square root.
        largest: the largest magnitude of what each result was made with, where that is not the largest of all: of results
            of many calls, beside each other, that of its call.
    """
    finfo = ml_dtypes.finfo(stored)
    rounding = 0
    if np.dtype(stored) != np.dtype(computed):
        rounding = epsilon(stored) / 2 * np.where(np.isfinite(expected), np.abs(expected), 0)  # to the nearest number
    magnitude = np.where(np.isfinite(magnitude), magnitude, 0)  # what is not finite is exact
    # What is below the smallest normal number is flushed to zero: a result, or the exponential of an element, which is 1 for
    # the largest of a row and is multiplied like it. float16 keeps such numbers, with that spacing.
    smallest = float(ml_dtypes.finfo(computed).smallest_normal)
    largest = magnitude.max(initial=0) if largest is None else largest
    least = smallest * np.maximum(1.0, largest) + float(finfo.smallest_subnormal)
    return (operations + math.sqrt(terms)) * epsilon(computed) * magnitude + rounding + least


def are_within(actual, expected, largest_error) -> np.ndarray:
    """Of each number, whether it is as `assert_within` asks."""
    beyond = np.where(expected < 0, -np.inf, np.inf)
    too_large = np.abs(expected) + largest_error > float(ml_dtypes.finfo(actual.dtype).max)
    actual = actual.astype(np.float64)
    with np.errstate(invalid="ignore"):
        good = (np.abs(actual - expected) <= largest_error) | (actual == expected)
    return good | (np.isnan(actual) & np.isnan(expected)) | (too_large & (actual == beyond))


def assert_within(actual, expected, largest_error, what: str) -> None:
    """That `actual` is `expected`, NaN where that is NaN and the same infinity where it is infinite or too large to hold."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what} has shape {actual.shape}: expected {expected.shape}"
    good = np.asarray(are_within(actual, expected, largest_error))
    if not good.all():
        actual = actual.astype(np.float64)
        wrong = tuple(int(i) for i in np.argwhere(~good)[0]) if good.ndim else ()
        error = np.broadcast_to(largest_error, expected.shape)[wrong]
        raise AssertionError(
            f"{what} is {actual[wrong]} at {wrong}: expected {expected[wrong]} within {error}; "
            f"{int((~good).sum())} of {good.size} are wrong"
        )


def assert_close(
    actual, expected, what: str, *, computed=np.float32, operations=OPERATIONS, terms=1, magnitude=0.0
) -> None:
    """The same where no oracle gave a magnitude: that of the largest element stands for it, or what is given if larger."""
    expected = np.asarray(expected, np.float64)
    magnitude = np.where(np.isfinite(expected), np.abs(expected), 0).max(initial=magnitude)
    stored = np.asarray(actual).dtype
    error = bound(expected, magnitude, computed=computed, stored=stored, operations=operations, terms=terms)
    assert_within(actual, expected, error, what)


def assert_trees_close(actual, expected, *, computed=None, operations=OPERATIONS, terms=1, magnitude=0.0) -> None:
    """The same of every array of a tree, computed in `arithmetic` of its type unless another is given; integers are equal."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, ours), exact in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        what, ours = f"result{jax.tree_util.keystr(path)}", np.asarray(ours)
        if np.issubdtype(ours.dtype, np.integer):
            np.testing.assert_array_equal(ours, exact, what)
            continue
        options = {"operations": operations, "terms": terms, "magnitude": magnitude}
        assert_close(ours, exact, what, computed=computed or arithmetic(ours.dtype), **options)


def assert_trees_near(actual, expected, of_largest: float = 1e-5, *, least: float = 0.0) -> None:
    """That every array of a tree is within a share of its largest number, or of `least` where that is smaller."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, exact in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        ours, exact = np.asarray(ours, np.float64), np.asarray(exact, np.float64)
        np.testing.assert_allclose(ours, exact, rtol=0, atol=of_largest * max(np.abs(exact).max(initial=0), least))


def assert_ulps(actual, expected, ulps: float, what: str = "the result") -> None:
    """That each number is so many units in its own last place from the expected one, or less; NaN and infinite as it.

    Numbers below the smallest normal one are as far from each other as that is. `expected` may be of a wider type.
    """
    actual, expected = np.asarray(actual), np.asarray(expected, np.float64)
    finite, floor = np.where(np.isfinite(expected), expected, 0), float(ml_dtypes.finfo(actual.dtype).smallest_normal)
    error = ulps * last_places(finite, actual.dtype)
    assert_within(actual, expected, np.where(np.abs(finite) <= floor, np.maximum(error, floor), error), what)


def last_places(x, dtype) -> np.ndarray:
    """One unit in the last place of each number, as that type would hold it, of normal ones."""
    finfo = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(np.maximum(np.abs(x), x.dtype.type(finfo.smallest_normal)))
    return np.ldexp(float(finfo.eps), exponent - 1)


def ulp_errors(found, expected, scale=None) -> np.ndarray:
    """The errors, in units in the last place of `scale`, the expected number itself if None: of normal ones."""
    found, expected = np.asarray(found), np.asarray(expected, np.longdouble)
    floor = np.finfo(found.dtype).tiny
    error = np.abs(found.astype(np.longdouble) - expected)
    error /= last_places(expected if scale is None else np.asarray(scale), found.dtype)
    return np.where(np.abs(expected) < floor, np.minimum(error, np.abs(found - expected) / floor), error)
