"""Value and gradient of every loss against float64 NumPy and the founding C functions, over types, shapes and reductions."""

import ctypes
import pathlib
import subprocess
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from agreement import assert_agrees
from losses import ALL_CASES, BINARY, CASES, FLOATS, REDUCTIONS

SHAPES = ((), (1,), (7,), (33,), (5, 1), (6, 5), (1, 129), (3, 257), (2, 3, 5), (2, 3, 2, 5))


def shapes_of(case):
    return [shape for shape in SHAPES if shape or not case.loss.by_rows]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", ALL_CASES)
def test_types_and_reductions(case, dtype, reduction):
    assert_agrees(case, *case.sample((6, 37), dtype), reduction=reduction)


@pytest.mark.parametrize(("case", "shape"), [(case, shape) for case in CASES for shape in shapes_of(case)])
def test_shapes(case, shape):
    assert_agrees(case, *case.sample(shape))
    assert_agrees(case, *case.sample(shape, "bfloat16"), reduction="none")


@pytest.mark.parametrize("target_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", [case for case in CASES if case.of_target])
def test_target_of_another_type(case, dtype, target_dtype):
    """The gradient of each operand has its own type, whatever the two were computed in."""
    assert_agrees(case, *case.sample((5, 19), dtype, target_dtype=target_dtype))


@pytest.mark.parametrize("target_dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [case for case in ALL_CASES if case.target in ("integers", "indices")])
def test_integer_targets_of_every_type(case, dtype, target_dtype):
    assert_agrees(case, *case.sample((5, 19), dtype, target_dtype=target_dtype))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", [case for case in CASES if case.loss.by_rows])
def test_axis_of_classes(case, reduction, axis):
    assert_agrees(case, *case.sample((4, 5, 6), axis=axis), axis=axis, reduction=reduction)


@pytest.mark.parametrize("clip", [None, 1e-7, 0.01, 0.4])
@pytest.mark.parametrize("case", [case for case in CASES if case.loss.has_clip])
def test_clip(case, clip):
    """Many of these probabilities are beyond the clip, and their gradients must not notice."""
    assert_agrees(case, *case.sample((8, 21), scale=20), clip=clip)
    assert_agrees(case, *case.sample((8, 21), scale=20), clip=clip, reduction="none")


@pytest.mark.parametrize("width", [2, 3, 4, 8, 9, 15, 16, 17, 31, 32, 63, 64, 65, 127, 1023, 1025])
@pytest.mark.parametrize("case", CASES)
def test_widths_around_those_of_vectors(case, width):
    assert_agrees(case, *case.sample((2, width)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape", [(3, 2), (4, 2), (8, 3), (15, 1), (16, 10), (17, 10), (33, 4), (40, 63), (16, 64), (17, 65)], ids=str
)
@pytest.mark.parametrize("case", [case for case in CASES if case.loss.by_rows])
def test_many_rows_of_few_classes(case, shape, dtype):
    """As many rows at once as a vector has lanes, each with an option and, some of them, a label of its own kind."""
    x, a = case.sample(shape, dtype)
    rows = np.arange(shape[0])
    where, weights = rows % 5 != 2, np.resize(np.float32([1, 0.5, -2, 0]), shape[0])
    x[~where] = np.nan
    if case.target == "indices":
        a[rows % 7 == 1] = shape[1]
    assert_agrees(case, x, a, where=where, weights=weights, reduction="none")
    assert_agrees(case, x, a)


def test_exponential_and_logarithm_to_the_last_digits():
    """What a loss of many terms would hide: binary cross entropy shows both functions of one number, relative to itself."""
    x = -np.linspace(0, 85, 30_001, dtype=np.float32)  # to where subnormal numbers are near
    exact = x.astype(np.float64)

    sigmoid = BINARY.gradient(x, np.zeros_like(x), reduction="sum")
    expected = np.exp(exact) / (1 + np.exp(exact))
    largest_error = tolerance.OPERATIONS_OF_ELEMENT * tolerance.epsilon("float32") * expected
    tolerance.assert_within(sigmoid, expected, largest_error, "a sigmoid")

    def total(weights):  # each row is one element, so the gradient with respect to its weight is its own loss
        return BINARY(x[:, None], np.zeros_like(x)[:, None], weights=weights, clip=None, reduction="sum")

    losses = jax.grad(total)(np.ones_like(x))
    expected = np.log1p(np.exp(exact))
    largest_error = tolerance.OPERATIONS_OF_ELEMENT * tolerance.epsilon("float32") * expected
    tolerance.assert_within(losses, expected, largest_error, "a logarithm")


@pytest.fixture(scope="session")
def founding(tmp_path_factory):
    """The founding C functions, compiled."""
    library = tmp_path_factory.mktemp("founding") / "founding_losses.so"
    source = pathlib.Path(__file__).parents[1] / "support" / "founding_losses.c"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-lm"], check=True)
    functions = ctypes.CDLL(str(library))

    def of_arrays(name):
        function = getattr(functions, name)
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double] * 3
        return np.vectorize(function, otypes=[np.float64])

    return of_arrays


def activated(case, x):
    """What the founding functions call the prediction: the softmax, the sigmoid, or x itself."""
    x = x.astype(np.float64)
    if case.loss.by_rows:
        exponentials = np.exp(x - x.max(-1, keepdims=True))
        return exponentials / exponentials.sum(-1, keepdims=True)
    return 1 / (1 + np.exp(-x)) if case.loss.has_clip else x


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", ALL_CASES)
def test_founding_definitions(founding, case, dtype):
    """The mean loss is the sum of the C function over all elements; the gradient is its derivative, element by element."""
    x, a = case.sample((16, 10), dtype, scale=8)
    n, classes = x.shape
    prediction = activated(case, x)
    if case.target == "indices":
        probability = np.eye(classes)[a]
    elif case.loss.by_rows:
        a = (a / a.astype(np.float64).sum(-1, keepdims=True)).astype(dtype)
        probability = a.astype(np.float64)
        probability /= probability.sum(-1, keepdims=True)  # the definition's targets sum to 1
    else:
        probability = a.astype(np.float64)
    value = founding(case.loss.name)(prediction, probability, n).sum()
    gradient = founding(f"d_{case.loss.name}")(prediction, probability, n)
    with jax.enable_x64(dtype == "float64"):
        actual, of_prediction = jax.value_and_grad(case.loss)(jnp.asarray(x), jnp.asarray(a))

    computed = tolerance.arithmetic(dtype)
    # What the definition itself loses: a probability is rounded before it is taken from 1, and is at least 1e-7 away.
    lost = x.size / n * tolerance.epsilon(np.float64) / 1e-7
    if case.loss.by_rows and case.of_target:  # the stored probabilities sum to 1 only as far as their type goes
        lost += value * tolerance.epsilon(dtype)
    error = tolerance.bound(value, value, computed=computed, stored=computed, terms=x.size)
    tolerance.assert_within(actual, value, error + lost, "value")
    magnitude = (abs(prediction) + abs(probability)) * (1 + abs(x.astype(np.float64))) / n
    error = tolerance.bound(gradient, magnitude, computed=computed, stored=dtype)
    tolerance.assert_within(of_prediction, gradient, error + lost, "gradient")
