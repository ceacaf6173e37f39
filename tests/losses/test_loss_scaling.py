"""Gradients of float16 under a scaled loss: the scale comes before the rounding, as it does in the plain formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance

ROWS, CLASSES, WIDTH = 4096, 16, 24
"""So many rows that 1/n alone takes most gradients below what float16 holds."""

RANDOM = np.random.default_rng(7)
X, Y = (jnp.asarray(RANDOM.normal(0, 3, (ROWS, CLASSES)), jnp.float16) for _ in range(2))
LABELS = jnp.asarray(RANDOM.integers(0, CLASSES, ROWS))
BITS = jnp.asarray(RANDOM.random((ROWS, CLASSES)) < 0.3, jnp.float16)
WEIGHTS = jnp.asarray(RANDOM.random(ROWS), jnp.float32).at[0].set(0)
EVERY_ELEMENT = jnp.asarray(RANDOM.random((ROWS, CLASSES)), jnp.float32)
WHERE = jnp.asarray(RANDOM.random(ROWS) < 0.8)
HIDDEN = jnp.asarray(RANDOM.normal(0, 1, (ROWS, WIDTH)), jnp.float16)
KERNEL = jnp.asarray(RANDOM.normal(0, 0.3, (WIDTH, CLASSES)), jnp.float16)

LOSSES = {
    "mse": lambda x, **given: jaxloss.mse(x, Y, **given),
    "huber": lambda x, **given: jaxloss.huber(x, Y, **given),
    "log_cosh": lambda x, **given: jaxloss.log_cosh(x, Y, **given),
    "quantile": lambda x, **given: jaxloss.quantile(x, Y, q=0.9, **given),
    "binary": lambda x, **given: jaxloss.binary_cross_entropy(x, BITS, **given),
    "binary, weighted": lambda x, **given: jaxloss.binary_cross_entropy(x, BITS, pos_weight=3.0, **given),
    "focal": lambda x, **given: jaxloss.binary_cross_entropy(x, BITS, focal_gamma=2.0, **given),
    "categorical": lambda x, **given: jaxloss.categorical_cross_entropy(x, LABELS, **given),
    "probabilities": lambda x, **given: jaxloss.categorical_cross_entropy(x, jax.nn.softmax(Y), **given),
    "smoothing": lambda x, **given: jaxloss.categorical_cross_entropy(x, LABELS, label_smoothing=0.1, **given),
    "z_loss": lambda x, **given: jaxloss.categorical_cross_entropy(x, LABELS, z_loss=1e-3, softcap=30.0, **given),
    "with_stats": lambda x, **given: jaxloss.categorical_cross_entropy_with_stats(x, LABELS, **given)[0],
    "kl": lambda x, **given: jaxloss.kl_divergence(x, Y, **given),
    "jensen_shannon": lambda x, **given: jaxloss.jensen_shannon(x, Y, **given),
}
REDUCTIONS = {
    "mean": {},
    "weights": {"weights": WEIGHTS},
    "where": {"where": WHERE, "weights": WEIGHTS},
    "normalizer": {"normalizer": 3e4},
    "sum": {"reduction": "sum", "weights": WEIGHTS / ROWS},
}


def scaled_gradients(loss, scale: float, *operands):
    places = tuple(range(len(operands)))
    return jax.jit(jax.grad(lambda *operands: loss(*operands) * scale, argnums=places))(*operands)


def assert_close_in_sum(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).sum() <= 1e-3 * np.abs(expected).sum()


def widened(*operands):
    return (operand.astype(jnp.float32) for operand in operands)


def program(name, reduction):
    """Of logits of float16, the same of float32, and a scale: both scaled gradients, three values."""
    loss = functools.partial(LOSSES[name], **REDUCTIONS[reduction])

    @jax.jit
    def results(x, wide, scale):
        gradients = [jax.grad(lambda x: loss(x) * scale)(x) for x in (x, wide)]
        return gradients, (loss(x), jax.value_and_grad(loss)(x)[0]), loss(wide)

    return results


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_as_near_as_float16_holds_them(name, reduction):
    run = program(name, reduction)
    for scale in (2.0**14, 2.0**16):
        (found, expected), (value, of_both), reference = run(X, *widened(X), scale)
        assert found.dtype == jnp.float16
        assert_close_in_sum(found, expected)
        tolerance.assert_ulps(of_both, value, 16)
        tolerance.assert_ulps(value, reference, 128)


def test_weights_of_elements():
    loss = functools.partial(LOSSES["binary"], weights=EVERY_ELEMENT)
    assert_close_in_sum(*(scaled_gradients(loss, 2.0**15, x)[0] for x in (X, *widened(X))))


@pytest.mark.parametrize("given", [{}, {"where": WHERE, "weights": WEIGHTS}, {"chunk_size": 1000}, {"z_loss": 1e-3}])
def test_linear(given):
    def loss(hidden, kernel):
        return jaxloss.linear_cross_entropy(hidden, kernel, LABELS, **given)

    found, expected = (
        scaled_gradients(loss, 2.0**15, *operands) for operands in ((HIDDEN, KERNEL), widened(HIDDEN, KERNEL))
    )
    for of_float16, reference in zip(found, expected, strict=True):
        assert of_float16.dtype == jnp.float16
        assert_close_in_sum(of_float16, reference)


def test_a_row_of_many_classes():
    """Whose probabilities alone are below float16's normal numbers."""
    x = jnp.asarray(RANDOM.normal(0, 1, (64, 50257)), jnp.float16)

    def loss(x):
        return jaxloss.categorical_cross_entropy(x, jnp.arange(64))

    assert_close_in_sum(*(scaled_gradients(loss, 2.0**16, x)[0] for x in (x, *widened(x))))


@pytest.mark.parametrize("name", LOSSES)
def test_each_of_a_batch_has_a_scale_of_its_own(name):
    def of(x, weight):
        return LOSSES[name](x, normalizer=1 / weight)

    weights = jnp.asarray([1e-5, 1.0, 0.0, 3.0])
    of_one = jax.jit(jax.grad(of))
    batch = jax.jit(jax.vmap(jax.grad(of), (None, 0)))(X, weights)
    for gradient, weight in zip(batch[1:], weights[1:], strict=True):
        np.testing.assert_array_equal(gradient, of_one(X, weight))


def test_a_gradient_that_one_n_th_makes_finite():
    """The scale is not so large that what a mean holds overflows before 1/n comes."""
    x = jnp.full((8, 1), 6e4, jnp.float16)
    np.testing.assert_allclose(jax.grad(jaxloss.mse)(x, -x), np.full((8, 1), 1.5e4), rtol=1e-3)


def test_second_derivatives():
    def of(x, v):
        return jax.jvp(jax.grad(lambda x: jaxloss.mse(x, Y) * 2.0**14), (x,), (v,))[1]

    assert_close_in_sum(jax.jit(of)(X, jnp.ones_like(X)), np.full(X.shape, 2.0**14 / ROWS))

    def square_sum(gradient):
        return jnp.sum(jnp.square(gradient.astype(jnp.float32)))

    of_weights = jax.grad(lambda w: square_sum(jax.grad(lambda x: jaxloss.mse(x, Y, weights=w) * 2.0**14)(X)))
    expected = jax.grad(lambda w: square_sum(2.0**14 / ROWS * w[:, None] * (X - Y)))
    assert_close_in_sum(of_weights(WEIGHTS), expected(WEIGHTS))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_only_float16_has_a_scale(name, dtype):
    """What range float16 lacks costs the others nothing."""

    assert ("name=frexp" in str(jax.make_jaxpr(jax.grad(LOSSES[name]))(X.astype(dtype)))) == (dtype == jnp.float16)
