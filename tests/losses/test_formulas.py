"""The plain formulas: right by the same oracle, and with the same results as the kernels wherever they stand in for them."""

import math

import jax
import numpy as np
import pytest

import tolerance
from agreement import assert_agrees
from jaxloss import formulas
from jaxloss._ffi import elementwise
from losses import CASES, ELEMENTWISE, FLOATS, MATRIX, REDUCTIONS
from modules import custom_call_targets
from quickly import jit_quickly
from test_transforms import assert_agree, of_each, operands
from transforms import TRANSFORMS

cases = pytest.mark.parametrize("case", CASES)
UNREDUCED = {
    "mse": (formulas.squared_error, formulas.d_squared_error),
    "binary_cross_entropy": (formulas.binary_cross_entropy, formulas.d_binary_cross_entropy),
    "categorical_cross_entropy": (formulas.categorical_cross_entropy, formulas.d_categorical_cross_entropy),
}


@pytest.mark.parametrize("dtype", FLOATS)
@cases
def test_unreduced_losses(case, dtype):
    x, a = case.sample((5, 9), dtype, scale=10)
    value, derivative = UNREDUCED[case.loss.name]
    expected = case.expected(x, a, reduction="none")
    with jax.enable_x64(dtype == "float64"):
        results = [np.asarray(function(*map(jax.numpy.asarray, (x, a)))) for function in (value, derivative)]
    for actual, exact in zip(results, (expected.value, expected.of_prediction), strict=True):
        assert actual.dtype == tolerance.arithmetic(dtype)
        error = tolerance.bound(*exact, computed=actual.dtype, stored=actual.dtype, terms=9)
        tolerance.assert_within(actual, exact[0], error, "a formula")


@cases
def test_derivatives_are_those_of_the_values(case):
    """`jax.grad` of the value without a clip is the formula of the derivative."""
    x, a = case.sample((5, 9), scale=3)
    value, derivative = UNREDUCED[case.loss.name]
    exact = {"clip": None} if case.loss.has_clip else {}
    gradient = jax.grad(lambda x: value(x, a, **exact).sum())(x)
    tolerance.assert_close(gradient, derivative(x, a), "jax.grad of a formula", operations=2 * tolerance.OPERATIONS)


WITH_PARAMETERS = {
    **{loss.name: (loss.value, loss.derivative, tuple(dict(loss.parameters).values())) for loss in ELEMENTWISE},
    "weighted": (formulas.weighted_binary_cross_entropy, formulas.d_weighted_binary_cross_entropy, (2.0, 0.5, 0.125)),
    "focal": (
        formulas.focal_binary_cross_entropy,
        formulas.d_focal_binary_cross_entropy,
        (2.0, 0.5, 0.125, 1.5, 0.25, 0.75),
    ),
}


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_derivatives_of_losses_with_parameters_are_those_of_the_values(name):
    """Also where a formula has branches: at a logit of 0, and of errors that are small and large."""
    value, derivative, parameters = WITH_PARAMETERS[name]
    exact = {"clip": None} if name in ("weighted", "focal") else {}
    x = np.float32([-30, -4, -1, -0.25, 0, 1e-3, 0.5, 2, 30, 3])
    a = np.float32([0.5, 0, 1, 1, 1, 0, 0.25, 0, 0.75, 1])
    if not exact:
        x = x + a + np.float32(0.0625)  # no error of 0, where a corner has no derivative
    gradient = jax.grad(lambda x: value(x, a, *parameters, **exact).sum())(x)
    tolerance.assert_close(gradient, derivative(x, a, *parameters), name, operations=2 * tolerance.OPERATIONS)


OF_ROWS = [
    *(formulas.categorical_cross_entropy, formulas.d_categorical_cross_entropy),
    *(formulas.kl_divergence, formulas.d_kl_divergence, formulas.jensen_shannon, formulas.d_jensen_shannon),
    *(formulas.sigmoid_contrastive, formulas.d_sigmoid_contrastive),
]


@pytest.mark.parametrize("function", OF_ROWS, ids=lambda function: function.__name__)
def test_rows_have_any_number_of_axes(function):
    x, a = np.random.default_rng(0).dirichlet(np.ones(5), (2, 2, 3)).astype(np.float32)
    a = a.argmax(-1).astype(np.int32) if "contrastive" in function.__name__ else a
    found = np.asarray(function(x, a))
    for row in np.ndindex(2, 3):
        tolerance.assert_close(found[row], function(x[row], a[row]), function.__name__, terms=5)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@cases
def test_values_without_kernels(without_kernels, case, reduction, dtype):
    where, weights = np.array([True, False, True, True]), np.array([1, 2, 0, -3], np.float32)
    x, a = case.sample((4, 7), dtype)
    assert_agrees(case, x, a, reduction=reduction)
    x[1] = np.nan
    assert_agrees(case, x, a, reduction=reduction, where=where, weights=weights)


@pytest.mark.parametrize("shape", [(4, 7), (5,)], ids=str)
@pytest.mark.parametrize("case", [case for case in MATRIX if case not in CASES])
def test_parameters_without_kernels(without_kernels, case, shape):
    x, a = case.sample(shape)
    assert_agrees(case, x, a)
    examples = shape[:-1] if case.loss.by_rows else shape[:1]
    where = np.arange(math.prod(examples)).reshape(examples) % 2 == 0
    x[~where] = np.nan
    assert_agrees(case, x, a, where=where, reduction="none")
    xs, targets = (np.nan_to_num(np.stack([t, t])) for t in (x, a))
    of_one = jax.value_and_grad(lambda x, a: case.loss(x, a, where=where))
    losses, gradients = map(np.asarray, jax.jit(jax.vmap(of_one))(xs, targets))
    expected = case.expected(xs[0], targets[0], where=where)
    for i in range(2):
        for actual, exact in ((losses[i], expected.value), (gradients[i], expected.of_prediction)):
            error = tolerance.bound(*exact, computed=np.float32, stored=np.float32, terms=x.size)
            tolerance.assert_within(actual, exact[0], error, "one of a batch")


@cases
def test_edges_without_kernels(without_kernels, case):
    for shape in ((0, 3), (3, 1), (3, 0)) if case.target != "indices" else ((0, 3), (3, 1)):
        assert_agrees(case, *case.sample(shape))
    x, a = case.sample((5, 6), scale=40)
    if case.target == "indices":
        a[2:4] = -1, 6
    elif case.target == "probabilities":
        x[0], a[0] = -np.inf, 0  # of classes: all are masked but one
        x[0, 1] = a[0, 1] = 1
    assert_agrees(case, x, a, reduction="none")
    assert_agrees(case, x, a)


@pytest.mark.parametrize(
    "name", ["value_and_grad", "vmap_grad", "jvp", "reverse_over_reverse", "scan", "checkpoint", "hessian"]
)
@cases
def test_transforms_without_kernels(without_kernels, case, name):
    transform, o = TRANSFORMS[name], operands(case)
    compiled = jit_quickly(lambda o: of_each(transform, case.loss, REDUCTIONS, o)).lower(o).compile()
    assert not custom_call_targets(compiled)
    assert_agree(compiled(o), case, transform, o, name)


def test_the_parts_of_a_long_row_without_kernels(without_kernels):
    """A long row's loss is made of several parts, of which the formula fills the first."""
    (case,) = (case for case in CASES if case.loss.name == "mse")
    x, a = case.sample((2, 20_000))
    assert elementwise._parts(case.loss.name, x, 1) > 1
    assert_agrees(case, x, a)
