"""Small numbers are right relative to themselves: losses, gradients and slopes, by kernels and by formulas."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import extended_precision
import jaxloss
from jaxloss import formulas
from jaxloss.formulas import categorical
from tolerance import assert_ulps, ulp_errors

# ---- binary cross entropy --------------------------------------------------------------------------------------------

LOGITS = np.concatenate([-np.geomspace(87, 1e-6, 4000), [0.0], np.geomspace(1e-6, 87, 4000)])
NEUTRAL = {
    "pos_weight": {"pos_weight": 1.0},
    "class_weights": {"class_weights": np.ones(1, np.float32)},
    "label_smoothing": {"label_smoothing": jnp.zeros(())},
    "focal_gamma": {"focal_gamma": jnp.zeros(())},
    "all": {"pos_weight": np.ones(1, np.float32), "label_smoothing": jnp.zeros(()), "focal_gamma": jnp.zeros(())},
}


def binary(x, a, **given):
    """Losses of rows of one element, and the gradient of their sum."""
    x, a = jnp.asarray(x)[:, None], jnp.asarray(a)[:, None]

    def total(x):
        return jaxloss.binary_cross_entropy(x, a, reduction="sum", weights=jnp.ones(len(x)), **given)

    gradient = jax.jit(jax.grad(total))(x)[:, 0]
    derivative = jaxloss.d_binary_cross_entropy(
        x, a, reduction="sum", **{k: v for k, v in given.items() if k != "clip"}
    )
    np.testing.assert_array_equal(gradient, derivative[:, 0])
    return jaxloss.binary_cross_entropy(x, a, reduction="none", **given)[:, 0], gradient


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_gradients_of_hard_binary_targets(target, path):
    x = LOGITS.astype(np.float32)
    value, gradient = binary(x, np.full_like(x, target), clip=None)
    expected, derivative, _ = extended_precision.binary_cross_entropy(x, np.full_like(x, target))
    assert ulp_errors(gradient, derivative).max() <= 4
    assert ulp_errors(value, expected).max() <= 4


def test_gradients_of_soft_binary_targets(path):
    """In units of the larger of the two terms that the derivative is the difference of."""
    random = np.random.default_rng(3)
    x = np.tile(LOGITS[::8], 4).astype(np.float32)
    a = np.concatenate([random.random(len(x) // 2), 1 - 10 ** random.uniform(-9, 0, len(x) - len(x) // 2)])
    a = np.concatenate([a[:-1], [0.9999999]]).astype(np.float32)
    x[-1] = 16
    _, derivative, scale = extended_precision.binary_cross_entropy(x, a)
    assert ulp_errors(binary(x, a)[1], derivative, scale).max() <= 4


@pytest.mark.parametrize("weight", [None, 1.0, 3.0])
def test_derivatives_of_binary_targets(weight, path):
    """They are -x, times the weight that both classes have: the losses of the two are not subtracted."""
    x = LOGITS.astype(np.float32)
    options = {} if weight is None else {"class_weights": np.float32([weight])}

    def total(a):
        return jaxloss.binary_cross_entropy(x[:, None], a, reduction="sum", **options)

    found = jax.jit(jax.grad(total))(np.full((len(x), 1), 0.5, np.float32))[:, 0]
    assert ulp_errors(found, -(weight or 1.0) * x.astype(np.float64)).max() <= 1


def test_derivatives_of_counts(path):
    def total(a):
        return jaxloss.poisson_nll(LOGITS.astype(np.float32)[:, None], a, reduction="sum")

    found = jax.jit(jax.grad(total))(np.ones((len(LOGITS), 1), np.float32))[:, 0]
    assert ulp_errors(found, -LOGITS.astype(np.float32).astype(np.float64)).max() == 0


@pytest.mark.parametrize("options", [{}, {"clip": None}, {"label_smoothing": 0.1}, {"focal_gamma": 2.0}], ids=str)
def test_binary_targets_mirror_each_other(options, path):
    if path == "formula" and "clip" not in options and options:
        pytest.skip("XLA is free to round a product of the options or not")
    random = np.random.default_rng(5)
    x = np.concatenate([LOGITS[::8], random.normal(0, 5, 999)]).astype(np.float32)
    a = random.integers(0, 2**12, len(x)).astype(np.float32) / 2**12
    a[::3] = np.round(a[::3])
    (value, gradient), (mirrored, of_mirror) = binary(x, a, **options), binary(-x, 1 - a, **options)
    np.testing.assert_array_equal(value, mirrored)
    np.testing.assert_array_equal(gradient, -of_mirror)


@pytest.mark.parametrize("options", NEUTRAL.values(), ids=NEUTRAL)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_neutral_options_change_no_bit(options, dtype, path):
    random = np.random.default_rng(6)
    x = jnp.asarray(np.concatenate([LOGITS[::8], random.normal(0, 5, 999)]), dtype)
    a = jnp.asarray(random.random(len(x)).round(random.integers(0, 9)), dtype)
    for plain, neutral in zip(binary(x, a), binary(x, a, **options), strict=True):
        np.testing.assert_array_equal(plain, neutral)


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 2.0}], ids=str)
def test_a_class_of_weight_zero_takes_no_part(options, path):
    """Whatever its logit is, in value and gradient."""
    x = np.array([[np.nan, 1.0], [np.inf, -2.0], [-np.inf, 3.0]], np.float32)
    a = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]], np.float32)
    weights = np.array([0.0, 1.0], np.float32)

    def of(x, **given):
        return jaxloss.binary_cross_entropy(x, a, reduction="sum", class_weights=weights, **options, **given)

    finite = np.where(np.isfinite(x), x, 0)
    (value, gradient), expected = jax.value_and_grad(of)(x), jax.value_and_grad(of)(finite)
    np.testing.assert_array_equal(value, expected[0])
    np.testing.assert_array_equal(gradient, np.where(np.isfinite(x), expected[1], 0))


def test_focal_losses_of_far_float64_logits(path):
    """Whose exponentials are no numbers."""
    with jax.enable_x64(True):
        x = np.array([[-750.0], [750.0]])

        def of(x):
            return jaxloss.binary_cross_entropy(x, np.ones((2, 1)), focal_gamma=2.0, clip=None, reduction="sum")

        value, gradient = jax.value_and_grad(of)(x)
    assert float(value) == 750
    np.testing.assert_array_equal(gradient, [[-1], [0]])


# ---- regression ------------------------------------------------------------------------------------------------------


def test_log_cosh_in_float64(path):
    with jax.enable_x64(True):
        x = np.geomspace(1e-6, 3, 2000)[:, None]
        found = jaxloss.log_cosh(x, np.zeros_like(x), reduction="none")
    expected = np.log1p(2 * np.square(np.sinh(x.astype(np.longdouble) / 2)))
    assert ulp_errors(found, expected).max() <= 4


# ---- softcap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [1.0, 3.0, 30.0])
def test_slopes_under_a_softcap(cap, path):
    """Relative to themselves, up to what x / s loses by its own rounding."""
    u = np.concatenate([-np.geomspace(40, 1, 500), np.geomspace(1, 40, 500)])
    x = jnp.asarray((u * cap).astype(np.float32))[:, None]

    def of(x):
        # With a second class that is never there, the derivative of z² with respect to x is 2 z dz/dx.
        return jaxloss.categorical_cross_entropy(
            jnp.concatenate([x, jnp.zeros_like(x)], 1), jnp.zeros(len(x), int), z_loss=1.0, num_classes=1,
            softcap=cap, reduction="sum", clip=None,
        )  # fmt: skip

    exact = np.asarray(x[:, 0], np.longdouble) / cap
    expected = 2 * cap * np.tanh(exact) / np.cosh(exact) ** 2
    errors = ulp_errors(jax.jit(jax.grad(of))(x)[:, 0], expected)
    bad = errors > 8 + 4 * np.abs(exact)
    assert not bad.any(), (exact[bad], errors[bad])
    of_formula = jax.vmap(jax.grad(lambda x: categorical.capped(x, jnp.float32(cap))))(x[:, 0])
    assert (ulp_errors(of_formula, 1 / np.cosh(exact) ** 2) <= 8 + 4 * np.abs(exact)).all()


def test_the_derivative_with_respect_to_a_softcap():
    u = np.concatenate([np.geomspace(1e-5, 40, 2000), [0.0]]) * np.array([[1], [-1]])
    x = (u.ravel() * 3).astype(np.float32)
    found = jax.vmap(jax.grad(categorical.capped, 1), (0, None))(jnp.asarray(x), jnp.float32(3))
    exact = x.astype(np.longdouble) / 3
    series = sum(c * exact ** (2 * k + 3) for k, c in enumerate((2 / 3, -8 / 15, 34 / 105, -496 / 2835)))
    expected = np.where(np.abs(exact) < 0.01, series, np.tanh(exact) - exact / np.cosh(exact) ** 2)
    assert ulp_errors(found, expected).max() <= (32 if jax.default_backend() == "gpu" else 24)
    second = jax.grad(jax.grad(categorical.capped, 1), 1)(jnp.float32(2), jnp.float32(3))
    assert_ulps(second, -8 / 27 / np.cosh(2 / 3) ** 2 * np.tanh(2 / 3), 128)


def test_the_derivative_with_respect_to_a_softcap_in_float64():
    """Against the series of hyperbolic functions in extended precision, on both sides of where its own series ends."""
    u = np.linspace(0.01, 2, 400)
    with jax.enable_x64(True):
        found = jax.vmap(jax.grad(categorical.capped, 1))(u, np.ones_like(u))
    wide = np.asarray(u, np.longdouble)
    # tanh u − u / cosh² u = (sinh 2u − 2u) / (2 cosh² u)
    terms = [(2 * wide) ** k / np.prod(np.arange(1, k + 1, dtype=np.longdouble)) for k in range(3, 61, 2)]
    exact = sum(reversed(terms)) / (2 * np.cosh(wide) ** 2)
    # Where the series ends, tanh u is 10 times the difference: its rounding, and that of u / cosh² u, so many times more.
    np.testing.assert_allclose(np.asarray(found), exact.astype(np.float64), rtol=5e-15)


CAPPED = {
    "value": lambda x, cap: jaxloss.categorical_cross_entropy(x, jnp.array([0, 1]), softcap=cap, clip=None),
    "log_prob": lambda x, cap: jaxloss.log_prob(x, jnp.array([0, 1]), softcap=cap).sum(),
    "entropy": lambda x, cap: jaxloss.entropy(x, softcap=cap).sum(),
    "linear": lambda x, cap: jaxloss.linear_cross_entropy(
        jnp.eye(2), jnp.zeros((2, 4)), jnp.array([0, 1]), bias=x[0], softcap=cap
    ),
}


@pytest.mark.parametrize("name", CAPPED)
def test_a_softcap_beside_an_infinite_logit(name, path):
    """Which a cap makes as finite as any."""
    x = jnp.array([[1.0, -jnp.inf, 2.0, 0.5], [3.0, 0.0, 2.0, jnp.inf]])
    found = jax.grad(CAPPED[name], 1)(x, 2.0)
    expected = jax.grad(CAPPED[name], 1)(jnp.where(jnp.isinf(x), jnp.sign(x) * 1e4, x), 2.0)
    assert jnp.isfinite(found)
    assert_ulps(found, expected, 128)


OF_MANY_CLASSES = """
import jax, numpy, extended_precision
from jaxloss.formulas import softmax_stats
from tolerance import ulp_errors
x = (1e-3 * numpy.random.default_rng(14).normal(0, 1, (2, 131072))).astype(numpy.float32)
expected = extended_precision.Softmax(extended_precision.extended(x)).log_sum
assert ulp_errors(jax.jit(softmax_stats)(x)[1], expected).max() <= 4
"""


def test_formulas_of_many_classes():
    """A sum of as many terms is off by the rounding of a few, compiled as users do: the suite has faster ways."""
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", OF_MANY_CLASSES], check=True, timeout=120, env=environment)


# ---- divergences -----------------------------------------------------------------------------------------------------


def close_rows(distance: float, classes: int = 50, rows: int = 64, offset: float = 0.0):
    """A student's and a teacher's logits that differ by about so much, as float32 holds them."""
    random = np.random.default_rng(11)
    y = random.normal(0, 3, (rows, classes)).astype(np.float32) + np.float32(offset)
    x = (y + distance * random.normal(0, 1, y.shape)).astype(np.float32)
    return x, y


def exact_divergences(x, y, beta: float | None):
    """KL, or Jensen-Shannon with this beta."""
    student, teacher = (extended_precision.Softmax(extended_precision.extended(z)) for z in (x, y))
    if beta is None:
        return extended_precision.kl_divergence(student, teacher)[0]
    return extended_precision.jensen_shannon(student, teacher, beta)[0]


def assert_divergences_are_exact(x, y, beta: float | None) -> None:
    """Of the kernels, and of the formulas that other platforms have."""
    if beta is None:
        by_kernel = jaxloss.kl_divergence(x, y, target_type="logits", reduction="none")
        by_formula = formulas.kl_divergence(x, y, target_type="logits")
    else:
        by_kernel = jaxloss.jensen_shannon(x, y, beta=beta, reduction="none")
        by_formula = formulas.jensen_shannon(x, y, beta=beta)
    expected = exact_divergences(x, y, beta)
    # Each sum of exponentials is off by up to 2 units; half of the square of what both are off by is in the divergence.
    squared = (4 * np.finfo(np.float32).eps) ** 2 / 2
    for found in (by_kernel, by_formula):
        assert (np.asarray(found) >= 0).all()
        np.testing.assert_allclose(found, expected.astype(np.float64), rtol=1e-4, atol=squared)


@pytest.mark.parametrize("beta", [None, 0.5, 0.1, 0.9])
@pytest.mark.parametrize("distance", [1e-5, 4.5e-5, 1e-4, 1e-2, 0.1, 1.0, 10.0])
def test_divergences_of_close_distributions(beta, distance, path):
    assert_divergences_are_exact(*close_rows(distance), beta)


@pytest.mark.parametrize("beta", [None, 0.5])
@pytest.mark.parametrize("shift", [0.5, -1.5, 37.3, 1e3])
def test_divergences_from_a_shifted_teacher(beta, shift, path):
    """A constant in all of its logits changes nothing but their rounding, which the distributions then differ by."""
    x, y = close_rows(1e-4)
    assert_divergences_are_exact(x, (y + np.float32(shift)).astype(np.float32), beta)


@pytest.mark.parametrize("beta", [None, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_close_divergences_of_many_classes(dtype, beta, path):
    """Of which the logarithm of a sum is a large number, whose rounding the divergence must not have."""
    random = np.random.default_rng(12)
    y = (1e-3 * random.normal(0, 1, (3, 60000))).astype(dtype)
    x = (y.astype(np.float32) + 4.5e-5 * random.normal(0, 1, y.shape)).astype(dtype)
    assert_divergences_are_exact(x, y, beta)


@pytest.mark.parametrize("beta", [None, 0.5])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("largest", [(8.0, 8.0), (1.0, 2.0), (3e-5, 5e-5)])
def test_divergences_of_small_16_bit_logits(dtype, largest, beta, path):
    """Whose difference from a row's maximum is not a number of float32."""
    x, y = np.zeros((2, 300), np.float32), np.zeros((2, 300), np.float32)
    y[:, 100:] = np.random.default_rng(13).uniform(0, 1e-4, (2, 200))
    y[:, 200:] = 4.46e-5 if largest[1] > 1e-3 else -10.0
    x[:, 200:] = 0 if largest[1] > 1e-3 else -10.0
    x[:, 0], y[:, 0] = largest
    assert_divergences_are_exact(x.astype(dtype), y.astype(dtype), beta)


@pytest.mark.parametrize("classes", [5, 300, 3000])
@pytest.mark.parametrize("lead", [3, 12, 25])
def test_gradients_where_student_and_teacher_are_as_sure(classes, lead, path):
    """That of their common leader is as small as what the others have: not the rounding of two numbers near 1."""
    random = np.random.default_rng(17)
    x, y = random.normal(0, 1, (2, 8, classes)).astype(np.float32)
    x[:, 1] += lead
    y[:, 1] += lead
    student, teacher = (extended_precision.Softmax(extended_precision.extended(z)) for z in (x, y))
    expected = extended_precision.kl_divergence(student, teacher)[1]
    units = np.maximum(student.probability, teacher.probability)
    units[:, 1] = np.maximum(student.rest, teacher.rest)
    found = jax.grad(lambda x: jaxloss.kl_divergence(x, y, target_type="logits", reduction="sum"))(x)
    by_formula = formulas.d_kl_divergence(x, y, target_type="logits")
    for gradient in (found, by_formula):
        error = np.abs(np.asarray(gradient) - expected) / (units * np.finfo(np.float32).eps)
        assert error.max() <= 16 + 2 * (lead + np.log(classes))


@pytest.mark.parametrize("name", ["kl", "jensen_shannon"])
def test_a_student_without_classes_has_no_divergence(name, path):
    """Nor a gradient: both are NaN, of its row alone, whichever way they are asked for."""
    x = np.zeros((3, 5), np.float32)
    x[1] = -np.inf
    y = np.ones((3, 5), np.float32)

    def of(x, reduction):
        loss = jaxloss.kl_divergence if name == "kl" else jaxloss.jensen_shannon
        return loss(x, y, target_type="logits", reduction=reduction)

    derivative = jaxloss.d_kl_divergence if name == "kl" else jaxloss.d_jensen_shannon
    gradients = (
        jax.grad(of)(x, "sum"),
        jax.grad(lambda x: of(x, "none").sum())(x),
        derivative(x, y, target_type="logits", reduction="sum"),
    )
    # Of two uniform distributions; a formula leaves what the sum of five rounded probabilities lacks of 1.
    least = 2.0**-24 if path == "formula" else 0
    for rows in (of(x, "none")[:, None], *gradients):
        np.testing.assert_array_equal(np.isnan(rows).all(1), [False, True, False])
        assert (np.abs(np.asarray(rows)[[0, 2]]) <= least).all()


@pytest.mark.parametrize("infinite", [-1, 1])
def test_derivatives_of_a_softcap_beside_an_infinite_logit(infinite):
    """A logit of 500 softcaps is as good as infinite; derivatives of both orders, in either mode, are the same."""
    labels = np.array([0])

    def all_of(far):
        x = jnp.array([[1.0, infinite * far, 2.0, 0.25]])

        def value(x, softcap):
            return jaxloss.categorical_cross_entropy(x, labels, softcap=softcap, clip=None)

        def log_prob(x, softcap):
            return jaxloss.log_prob(x, labels, softcap=softcap)[0]

        def entropy(x, softcap):
            stats = jaxloss.categorical_cross_entropy_with_stats(x, labels, softcap=softcap)[1]
            return stats.entropy[0]

        def linear(x, softcap):
            return jaxloss.linear_cross_entropy(jnp.ones((1, 1)), x, labels, softcap=softcap, clip=None)

        found = {}
        for of in (value, log_prob, entropy, linear):
            found[of.__name__] = jax.grad(of, 1)(x, 3.0)
        for of in (value, log_prob):
            of_softcap = jax.grad(of, 1)
            found[of.__name__ + " twice"] = jax.grad(of_softcap, 1)(x, 3.0), jax.jacfwd(of_softcap, 1)(x, 3.0)
            found[of.__name__ + " mixed"] = jax.grad(lambda s, of=of: jax.grad(of)(x, s)[0, 0])(3.0)
        return found

    found, expected = jax.jit(lambda: (all_of(jnp.inf), all_of(3000.0)))()
    for name, numbers in found.items():
        assert np.isfinite(jax.tree.leaves(numbers)).all(), name
        assert_ulps(jax.tree.leaves(numbers), jax.tree.leaves(expected[name]), 64, name)


# ---- what a search for the worst cases found -------------------------------------------------------------------------


def rows(loss, x, a):
    """The loss of each row, by what value and gradient of a sum over a batch of one run."""
    one = jax.value_and_grad(lambda x, a: loss(x[None], a[None], reduction="sum"))
    return jax.jit(jax.vmap(one))(jnp.asarray(x), jnp.asarray(a))


def test_the_smallest_losses(path):
    """Near the smallest normal number, of which what is smaller is flushed to 0."""
    x = -np.linspace(80, 87, 99, dtype=np.float32)[:, None]
    value, _ = rows(lambda *operands, **given: jaxloss.binary_cross_entropy(*operands, clip=None, **given), x, 0 * x)
    assert ulp_errors(value, extended_precision.binary_cross_entropy(x, 0 * x)[0][:, 0]).max() <= 4


def test_log_cosh_relative_to_itself(path):
    x = np.geomspace(1e-3, 40, 9999, dtype=np.float32)[:, None]
    value, gradient = rows(jaxloss.log_cosh, x, 0 * x)
    e = x.astype(np.longdouble)
    of_small = np.log1p(2 * np.sinh(e / 2) ** 2)
    expected = np.where(e < 1, of_small, e + np.log1p(np.exp(-2 * e)) - np.log(np.longdouble(2)))
    assert ulp_errors(value, expected[:, 0]).max() <= 4
    of_gpus_tanh = path == "formula" and jax.default_backend() == "gpu"  # XLA's own is 4.19 ulp off on an H200
    assert ulp_errors(gradient, np.tanh(e)).max() <= (5 if of_gpus_tanh else 4)


@pytest.mark.parametrize("with_stats", [False, True])
@pytest.mark.parametrize("classes", [20, 129, 1000, 4096, 100_003])
@pytest.mark.parametrize("smoothing", [1e-3, 0.00426, 0.1])
def test_small_targets_beside_a_large_one(smoothing, classes, with_stats, path):
    """Many equal terms are all rounded the same way by a sum that holds a larger one."""
    if path == "formula":
        pytest.skip("the sum over the classes is XLA's")
    x, a = np.zeros((1, classes), np.float32), np.full((1, classes), smoothing / (classes - 1), np.float32)
    x[0, 1], a[0, 1] = 0.003, 1 - smoothing
    if with_stats:
        found, _ = jaxloss.categorical_cross_entropy_with_stats(x, a, clip=None, reduction="none")
    else:
        found = jaxloss.categorical_cross_entropy(x, a, clip=None, reduction="none")
    student = extended_precision.Softmax(extended_precision.extended(x))
    expected, _ = extended_precision.cross_entropy_of_probabilities(student, a)
    assert ulp_errors(found, expected).max() <= 6
