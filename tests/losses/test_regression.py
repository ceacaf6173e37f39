"""The losses of errors beside mse: values and derivatives of every type, their parameters, and what is special to each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from agreement import assert_agrees
from losses import ELEMENTWISE, FLOATS, HUBER, LOG_COSH, MSE, Case, finfo
from modules import custom_call_targets, of_size
from quickly import jit_quickly

ALL = tuple(Case(loss, "numbers") for loss in ELEMENTWISE if loss is not MSE)  # which is in every other test
cases = pytest.mark.parametrize("case", ALL)


@pytest.mark.parametrize("dtype", FLOATS)
@cases
def test_types(case, dtype):
    assert_agrees(case, *case.sample((6, 37), dtype))


@cases
def test_options(case):
    x, a = case.sample((4, 3, 5))
    where, weights = np.random.default_rng(1).random((4, 3, 5)) < 0.6, np.linspace(0.5, 2, 4, dtype=np.float32)
    hidden = np.where(where, x, np.nan)
    assert_agrees(case, hidden, a, where=where, weights=weights, normalizer=7.5)
    assert_agrees(case, hidden, a, where=where, weights=weights, reduction="none")


@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (2, 1023), (3, 20_001)], ids=str)
@cases
def test_shapes(case, shape):
    assert_agrees(case, *case.sample(shape))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", [case for case in ALL if case.loss.bounded])
def test_ends_of_the_type(case, dtype):
    """Infinite, largest, tiny, equal and undefined, of losses whose gradients are bounded: each element for itself."""
    largest, least = finfo(dtype).max, finfo(dtype).smallest_normal
    x = np.array([[np.inf, -np.inf, largest / 2, -largest / 2, least, 0, 3, np.nan, np.inf, 1]], dtype)
    a = np.array([[0, 0, 0, 0, 0, 0, 3, 0, np.inf, np.nan]], dtype)
    assert_agrees(case, x, a, reduction="none")
    with jax.enable_x64(dtype == "float64"):
        gradient = np.asarray(case.loss.gradient(jnp.asarray(x), jnp.asarray(a)))[0]
    assert np.isfinite(gradient[:7]).all()
    assert (gradient[5:7] == 0).all()
    assert np.isnan(gradient[7:]).all()


@cases
def test_second_derivatives(case):
    """Huber's is 1 inside and 0 outside, log cosh has 1 − tanh², Poisson the rate, Gauss 1/v, those with a corner 0."""
    name = case.loss.name
    error = np.float32([-3, -1.25, -0.5, 0, 0.25, 1.25, 4])
    second = jax.vmap(jax.grad(lambda x: case.loss.gradient(x, jnp.zeros(()))))(error)
    expected = {
        "mae": np.zeros(7),
        "quantile": np.zeros(7),
        "huber": (abs(error) <= 1.25).astype(float),
        "log_cosh": 1 - np.tanh(error.astype(np.float64)) ** 2,
        "poisson_nll": np.exp(error.astype(np.float64)),
        "gaussian_nll": np.full(7, 1 / 0.75),
    }
    assert name in expected, f"tests/losses/test_regression.py expects no second derivative of {name}: write which"
    tolerance.assert_close(
        second, expected[name], "a second derivative", operations=tolerance.OPERATIONS_OF_HIGHER_ORDER
    )


def test_log_cosh_to_the_last_digits():
    """Relative to itself, from errors whose squares nearly vanish up to the largest."""
    error = np.concatenate([np.geomspace(1e-18, 1e30, 10_001), np.linspace(0.9, 1.1, 101)]).astype(np.float32)
    exact = error.astype(np.float64)

    def total(weights):  # each row is one element, so the gradient with respect to its weight is its own loss
        return LOG_COSH(error[:, None], np.zeros_like(error)[:, None], weights=weights, reduction="sum")

    losses = jax.grad(total)(np.ones_like(error))
    large = exact + np.log1p(np.exp(-2 * exact)) - np.log(2)
    expected = np.where(exact < 1e-2, exact**2 / 2 - exact**4 / 12 + exact**6 / 45, large)
    # |e| + log(1 + e^-2|e|) - log 2 of an error of 1 cancels to a quarter of its terms.
    few = 4 * tolerance.OPERATIONS_OF_ELEMENT * tolerance.epsilon("float32")
    least = float(finfo("float32").smallest_normal)
    tolerance.assert_within(losses, expected, few * expected + least, "log cosh")
    slope = LOG_COSH.gradient(-error, np.zeros_like(error), reduction="sum")
    few = tolerance.OPERATIONS * tolerance.epsilon("float32")
    tolerance.assert_within(slope, -np.tanh(exact), few * np.tanh(exact), "its derivative")


def test_equal_prediction_and_target_have_no_gradient():
    """At the corner of mae and quantile, of all derivatives that there are, 0."""
    x = np.float32([1, 2])
    assert (jaxloss.d_mae(x, x) == 0).all()
    assert (jaxloss.d_quantile(x, x, q=0.9) == 0).all()
    assert (jax.grad(lambda x: jaxloss.quantile(x, np.float32([1, 2]), q=0.9, reduction="none").sum())(x) == 0).all()


OF_PARAMETER = {
    "all gradients": lambda f, x, a, p: jax.value_and_grad(f, (0, 1, 2))(x, a, p),
    "jvp": lambda f, x, a, p: jax.jvp(f, (x, a, p), (a, x, 1.5 * p)),
    "mixed": lambda f, x, a, p: jax.grad(lambda x: jax.grad(f, 2)(x, a, p))(x),
    "mixed, the other way": lambda f, x, a, p: jax.jacfwd(jax.grad(f), 2)(x, a, p),
    "vmap": lambda f, x, a, p: jax.vmap(jax.value_and_grad(f, (0, 2)), (None, None, 0))(x, a, jnp.stack([p, 0.5 * p])),
    "vmap of all": lambda f, x, a, p: jax.vmap(jax.value_and_grad(f, (0, 2)))(
        jnp.stack([x, a]), jnp.stack([a, x]), jnp.stack([p, 0.5 * p])
    ),
    "second": lambda f, x, a, p: jax.grad(jax.grad(f, 2), 2)(x, a, p),
}


@pytest.mark.parametrize("loss", [loss for loss in ELEMENTWISE if loss.parameters], ids=lambda loss: loss.name)
def test_a_traced_parameter(loss):
    """Every derivative with respect to it is the formula's; in one program for every reduction."""
    ((name, number),) = loss.parameters
    case = Case(loss, "numbers")
    x, a = case.sample((4, 5))
    where = np.array([[True], [True], [False], [True]])

    def of_each(unreduced, x, a, p):
        weighing = jnp.cos(jnp.arange(20.0).reshape(4, 5))
        reduced = {
            "mean": lambda x, a, p: unreduced(x, a, p, "mean"),
            "none": lambda x, a, p: jnp.sum(weighing * unreduced(x, a, p, "none")),
        }
        return {
            (reduction, transform): OF_PARAMETER[transform](f, x, a, p)
            for reduction, f in reduced.items()
            for transform in OF_PARAMETER
        }

    def ours(x, a, p, reduction):
        return loss(x, a, reduction=reduction, where=where, **{name: p})

    def formula(x, a, p, reduction):
        losses = jnp.where(where, loss.formula(x, a, **{name: p}), 0)
        return losses if reduction == "none" else losses.sum() / 3

    actual = jit_quickly(functools.partial(of_each, ours))(x, a, np.float32(number))
    with jax.enable_x64(True):
        expected = jit_quickly(functools.partial(of_each, formula))(*map(np.float64, (x, a, number)))
        expected = jax.tree.map(np.asarray, expected)
    for key in expected:
        for one, exact in zip(jax.tree.leaves(actual[key]), jax.tree.leaves(expected[key]), strict=True):
            tolerance.assert_close(
                one, exact, str(key), operations=tolerance.OPERATIONS_OF_HIGHER_ORDER, terms=20, magnitude=1
            )


@cases
def test_value_and_gradient_are_one_custom_call(case):
    """With a parameter that is traced, too: a schedule compiles nothing."""
    x, a = case.sample((16, 64))
    traced = []

    @jax.jit
    def step(x, a, p):
        traced.append(p)
        options = {name: p for name, _ in case.loss.parameters}
        loss = functools.partial(getattr(jaxloss, case.loss.name), **options)
        return jax.value_and_grad(loss)(x, a)

    module = step.lower(x, a, np.float32(0.5)).compile()
    assert custom_call_targets(module) == [f"{case.loss.in_modules}_value_and_grad"]
    assert of_size(module, x.size) == ["custom-call"]
    traced.clear()
    values = [float(step(x, a, np.float32(p))[0]) for p in (0.5, 0.25)]
    assert len(traced) <= 1
    if case.loss.parameters:
        assert values[0] != values[1]


def test_parameters_may_be_python_numbers():
    x, a = Case(HUBER, "numbers").sample((3, 4))
    assert jaxloss.huber(x, a) == jaxloss.huber(x, a, delta=np.float32(1)) == jaxloss.huber(x, a, delta=1)
    assert jaxloss.quantile(x, a, q=0.25) == jaxloss.quantile(x, a, q=jnp.float32(0.25))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("huber", {"delta": 0}, ValueError, ("delta", "0", "greater than 0")),
        ("huber", {"delta": -1.5}, ValueError, ("delta", "-1.5", "greater than 0")),
        ("huber", {"delta": float("nan")}, ValueError, ("delta", "nan", "greater than 0")),
        ("huber", {"delta": np.float32(-1)}, ValueError, ("delta", "-1.0", "greater than 0")),
        ("huber", {"delta": None}, TypeError, ("delta is None", "greater than 0")),
        ("huber", {"delta": float("inf")}, ValueError, ("delta", "inf", "mse")),
        ("huber", {"delta": np.ones(3, np.float32)}, ValueError, ("delta", "(3,)", "scalar")),
        ("huber", {"delta": np.bool_(True)}, TypeError, ("delta", "bool")),
        ("quantile", {"q": 0}, ValueError, ("q", "0", "between 0 and 1")),
        ("quantile", {"q": 1.0}, ValueError, ("q", "1.0", "between 0 and 1")),
        ("quantile", {"q": 90}, ValueError, ("q", "90", "between 0 and 1")),
        ("quantile", {"q": np.ones((1,), np.float32)}, ValueError, ("q", "(1,)", "scalar")),
        ("quantile", {"q": 1j}, TypeError, ("q", "complex", "between 0 and 1")),
        ("quantile", {}, TypeError, ("q",)),
    ],
)
def test_wrong_parameters(name, options, error, words, gradient):
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(error) as raised:
        getattr(jaxloss, f"d_{name}" if gradient else name)(x, x, **options)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_rate_of_zero(dtype):
    """Its loss is 0 where nothing was counted, and infinite where anything was; the gradient is −a."""
    with jax.enable_x64(dtype == "float64"):
        x, a = jnp.asarray([-np.inf, -np.inf, 0], dtype), jnp.asarray([0, 2, 1], dtype)
        losses = jaxloss.poisson_nll(x, a, reduction="none")
        gradient = jaxloss.d_poisson_nll(x, a, reduction="none")
    np.testing.assert_array_equal(losses, [0, np.inf, 1])
    np.testing.assert_array_equal(gradient, np.asarray([0, -2, 0], dtype))


def test_a_rate_that_overflows():
    """Its loss and its gradient are infinite, however large the count."""
    x, a = jnp.asarray([89.0, 1e38, jnp.inf]), jnp.asarray([3e38, 1e38, 1e38])
    assert (jaxloss.poisson_nll(x[:1], a[:1] * 0, reduction="none") == jnp.inf).all()
    assert (jaxloss.d_poisson_nll(x, a, reduction="none") == jnp.inf).all()


def gaussian(x, a, variance, where=None):
    """The loss in plain `jax.numpy`."""
    losses = 0.5 * (jnp.log(variance) + (x - a) ** 2 / variance)
    if where is None:
        return losses.sum() / x.shape[0]
    rows = where.any(tuple(range(1, where.ndim)))
    return jnp.where(where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), losses, 0).sum() / rows.sum()


OF_VARIANCE = {
    "a vector": ((40,), (40,)),
    "elements": ((6, 5, 37), (6, 5, 37)),
    "examples": ((6, 37), (6, 1)),
    "last axis": ((6, 37), (1, 37)),
}


@pytest.mark.parametrize("name", OF_VARIANCE)
def test_a_variance_of_each_element(name):
    """Value and derivatives with respect to all three, first and second, in one program."""
    shape, of_variance = OF_VARIANCE[name]
    rng = np.random.default_rng(0)
    x, a = rng.standard_normal((2, *shape)).astype(np.float32)
    operands = x, a, rng.uniform(0.25, 4, of_variance).astype(np.float32)

    def results(loss):
        def mixed(x, a, variance):
            return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(loss, (0, 1, 2))(x, a, variance))

        return jit_quickly(lambda *o: (jax.value_and_grad(loss, (0, 1, 2))(*o), jax.grad(mixed, (0, 1, 2))(*o)))(
            *operands
        )

    actual, expected = results(jaxloss.gaussian_nll), results(gaussian)
    for found, exact in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        tolerance.assert_close(found, exact, "a derivative", operations=tolerance.OPERATIONS_OF_HIGHER_ORDER)


@pytest.mark.parametrize("of", ["examples", "elements"])
def test_a_variance_that_is_masked_may_hold_anything(of):
    rng = np.random.default_rng(0)
    x, a = rng.standard_normal((2, 8, 20)).astype(np.float32)
    keep = rng.random((8, 20) if of == "elements" else 8) < 0.5
    keep[0] = True
    whole = np.broadcast_to(keep.reshape(8, -1), x.shape)
    variance = np.where(whole, rng.uniform(0.25, 4, x.shape), np.nan).astype(np.float32)

    def results(loss, variance):
        def slope(x, variance):
            return jnp.sum(jnp.sin(jax.grad(loss)(x, a, variance, where=keep)))

        return jit_quickly(
            lambda x, v: (jax.value_and_grad(loss, (0, 2))(x, a, v, where=keep), jax.grad(slope, 1)(x, v))
        )(x, variance)

    actual, expected = results(jaxloss.gaussian_nll, variance), results(gaussian, np.where(whole, variance, 1))
    for found, exact in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        tolerance.assert_close(found, exact, "a derivative", operations=tolerance.OPERATIONS_OF_HIGHER_ORDER)


def test_a_variance_that_is_not_above_0():
    """Spoils the elements that it belongs to, the gradient too, where a negative one would look sound."""
    x, a, variance = jnp.zeros(4), jnp.ones(4), jnp.asarray([1.0, 0, -1, jnp.nan])
    losses, gradient = (f(x, a, variance, reduction="none") for f in (jaxloss.gaussian_nll, jaxloss.d_gaussian_nll))
    for found in (losses, gradient):
        np.testing.assert_array_equal(np.isnan(found), [False, True, True, True])
    assert np.isnan(jaxloss.gaussian_nll(x, a, jnp.asarray(-1.0)))


@pytest.mark.parametrize(
    ("variance", "error", "words"),
    [
        (0.0, ValueError, "variance is 0.0: expected a finite number greater than 0, or an array of the shape of mean"),
        (None, TypeError, "variance is None"),
        (
            np.ones(3, np.float32),
            ValueError,
            "variance has shape (3,), mean (2, 3): expected a scalar, or as many axes",
        ),
        (np.ones((2, 2), np.float32), ValueError, "variance has shape (2, 2), mean (2, 3)"),
        (np.ones((2, 3), bool), TypeError, "variance has dtype bool"),
    ],
    ids=["zero", "None", "fewer axes", "other lengths", "booleans"],
)
def test_wrong_variances(variance, error, words):
    x = np.zeros((2, 3), np.float32)
    for function in (jaxloss.gaussian_nll, jaxloss.d_gaussian_nll):
        with pytest.raises(error) as raised:
            function(x, x, variance)
        assert words in str(raised.value)
