"""Divergences from a teacher: values, gradients of every operand, options, edges, and how exact they are."""

import functools

import jax
import numpy as np
import pytest

import jaxloss
import tolerance
from divergences import CELLS, KINDS, OPERATIONS, assert_agrees, cells, check, expected_of, numbers, sample
from losses import REDUCTIONS

# ---- values and gradients -------------------------------------------------------------------------------------------

WIDTHS = [*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 1000, 1024, 1025, 4099, 32003]


def assert_kernels_agree(shape, dtype, target_dtype=None):
    """Losses and gradients of both divergences from both kinds of teacher, in one program."""
    operands = {cell: sample(shape, cell[1], dtype, target_dtype) for cell in CELLS}

    @jax.jit
    def results(*operands):
        def both(kind, target_type, x, a):
            loss, d_loss, *_ = KINDS[kind]
            options = {"target_type": target_type, "reduction": "none", **numbers(kind, 1.7, 0.3)}
            return loss(x, a, **options), d_loss(x, a, **options)

        return [both(*cell, *pair) for cell, pair in zip(CELLS, operands, strict=True)]

    computed = tolerance.arithmetic(np.float64 if "float64" in (dtype, target_dtype) else dtype)
    for cell, (losses, gradient) in zip(CELLS, results(*operands.values()), strict=True):
        expected, _ = expected_of(*cell, *operands[cell], temperature=1.7, beta=0.3, reduction="none")
        assert losses.dtype == computed
        assert gradient.dtype == dtype
        check(losses, expected.value, f"losses of {cell}", computed=computed, terms=shape[-1])
        check(gradient, expected.of_prediction, f"gradient of {cell}", computed=computed, terms=shape[-1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(width, dtype):
    """The kernels at every kind of width."""
    assert_kernels_agree((1 + 600 // width, width), dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@cells
def test_gradients_of_every_operand(kind, target_type, reduction):
    x, a = sample((4, 3, 9), target_type)
    assert_agrees(kind, target_type, x, a, reduction=reduction)


@pytest.mark.parametrize(
    ("dtype", "target_dtype"),
    [
        ("bfloat16", "float32"),
        ("float16", "float16"),
        ("float16", "float32"),
        ("float16", "bfloat16"),
        ("float32", "bfloat16"),
        ("float32", "float64"),
        ("float64", "float64"),
        ("float64", "float32"),
    ],
)
def test_types(dtype, target_dtype):
    with jax.enable_x64("float64" in (dtype, target_dtype)):
        assert_kernels_agree((9, 75), dtype, target_dtype)


@pytest.mark.parametrize(("dtype", "target_dtype"), [("bfloat16", "bfloat16"), ("float16", "float32")])
@cells
def test_types_of_gradients(kind, target_type, dtype, target_dtype):
    assert_agrees(kind, target_type, *sample((5, 21), target_type, dtype, target_dtype))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@cells
def test_options(kind, target_type, reduction):
    """Rows that are left out hold NaN; where and weights of different shapes; another axis."""
    x, a = sample((4, 9, 3), target_type, axis=1)
    where = np.array([[True, False, True], [True] * 3, [False] * 3, [True, True, False]])
    x[~np.broadcast_to(where[:, None], x.shape)] = np.nan
    a[~np.broadcast_to(where[:, None], x.shape)] = np.inf
    weights = np.array([0.5, 2.0, 1.0, -0.7], np.float32)[:, None, None]
    options = {"normalizer": np.float32(3.5)} if reduction == "mean" else {}
    assert_agrees(kind, target_type, x, a, reduction=reduction, where=where, weights=weights, axis=1, **options)


@cells
def test_the_mean_is_over_the_rows_that_count(kind, target_type):
    x, a = sample((6, 5), target_type)
    where = np.array([True, False, True, False, False, True])
    loss = functools.partial(KINDS[kind][0], target_type=target_type)
    mean, total = loss(x, a, where=where), loss(x, a, where=where, reduction="sum")
    tolerance.assert_ulps(mean, total / 3, 16)
    assert loss(x, a, where=np.zeros(6, bool)) == 0
    assert not jax.grad(loss)(x, a, where=np.zeros(6, bool)).any()


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (2, 0, 4)], ids=str)
@cells
def test_small_and_empty(kind, target_type, shape):
    assert_agrees(kind, target_type, *sample(shape, target_type))


@cells
def test_rows_without_classes(kind, target_type):
    x = np.zeros((3, 0), np.float32)
    loss = functools.partial(KINDS[kind][0], target_type=target_type)
    value, gradient = jax.value_and_grad(loss)(x, x)
    assert value == 0
    assert gradient.shape == (3, 0)


def test_a_vector_is_one_row():
    x, a = sample((7,), "logits")
    np.testing.assert_array_equal(jaxloss.kl_divergence(x, a, target_type="logits", reduction="none").shape, ())
    assert_agrees("js", "logits", x, a)


# ---- exactness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1e4, -1e4, 3e37])
@cells
def test_offsets_cancel(kind, target_type, offset):
    """Integers, which an offset of 1e4 leaves exact: the results do not change in any bit but that of an addition."""
    x, a = (np.round(2 * t) for t in sample((6, 40), "logits"))
    x, a = x.astype(np.float32), a.astype(np.float32)
    if offset > 1e5:
        x[:, ::3], a[:, ::3] = -offset, -offset  # so far below the others that they have no probability
        x[:, 1] = offset
        a[:, 1] = offset
    else:
        x, a = x + np.float32(offset), a + np.float32(2 * offset)
    if target_type == "probabilities":
        a = np.exp(a - a.max(-1, keepdims=True)) / 3
    assert_agrees(kind, target_type, x, a)


@cells
def test_masked_classes(kind, target_type):
    """-Inf in both is no class at all: exact zeros, and the results of the others alone."""
    x, a = sample((5, 9), target_type)
    masked = np.arange(9) % 3 == 1
    with_masked, of_teacher = (
        np.where(masked, -np.inf, x),
        np.where(masked, -np.inf if target_type == "logits" else 0, a),
    )
    with_masked, of_teacher = with_masked.astype(np.float32), of_teacher.astype(np.float32)
    assert_agrees(kind, target_type, with_masked, of_teacher)
    loss = functools.partial(KINDS[kind][0], target_type=target_type, temperature=1.3)
    value, gradients = jax.value_and_grad(loss, (0, 1))(with_masked, of_teacher)
    alone, of_alone = jax.value_and_grad(loss, (0, 1))(x[:, ~masked], a[:, ~masked])
    tolerance.assert_close(value, alone, "a loss", operations=OPERATIONS)
    for gradient, expected in zip(gradients, of_alone, strict=True):
        assert (np.asarray(gradient)[:, masked] == 0).all()
        tolerance.assert_close(np.asarray(gradient)[:, ~masked], expected, "a gradient", operations=OPERATIONS)


def test_classes_masked_for_the_student_alone():
    x, a = sample((4, 6), "logits")
    x[:, 2] = -np.inf
    value, gradient = jax.value_and_grad(jaxloss.kl_divergence)(x, jax.nn.softmax(a))
    assert value == np.inf
    assert np.isfinite(gradient).all()
    assert_agrees("js", "logits", x, a)
    a[:, 3] = -np.inf  # and one for the teacher alone
    assert_agrees("js", "logits", x, a)
    assert np.isfinite(jaxloss.jensen_shannon(x, a, beta=1e-6))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_and_close_distributions(dtype):
    x, _ = sample((50, 301), "logits", dtype)
    for loss in (functools.partial(jaxloss.kl_divergence, target_type="logits"), jaxloss.jensen_shannon):
        losses, gradient = loss(x, x, reduction="none"), jax.grad(loss)(x, x)
        assert (losses == 0).all()
        assert (gradient == 0).all()
    shifted = (x.astype(np.float32) + 100).astype(np.float32)
    difference = shifted - 100 - x.astype(np.float32)  # what adding 100 has rounded
    close = jaxloss.jensen_shannon(shifted, x.astype(np.float32), reduction="none")
    assert (np.asarray(close) <= np.square(difference).max() + tolerance.epsilon("float32")).all()


@pytest.mark.parametrize("beta", [0.5, 0.1, 0.9, 1e-3, 0.999])
def test_beta(beta):
    x, a = sample((6, 40), "logits")
    assert_agrees("js", "logits", x, a, beta=beta)
    assert_agrees("js", "probabilities", *sample((6, 40), "probabilities"), beta=beta)


def test_the_limits_of_beta_are_the_divergences_that_the_error_names():
    with jax.enable_x64(True):
        x, a = sample((6, 12), "logits", "float64", scale=1)
        forward = jaxloss.kl_divergence(x, a, target_type="logits")
        reverse = jaxloss.kl_divergence(a, x, target_type="logits")
        np.testing.assert_allclose(jaxloss.jensen_shannon(x, a, beta=1e-7) / 1e-7, forward, rtol=1e-5)
        np.testing.assert_allclose(jaxloss.jensen_shannon(x, a, beta=1 - 1e-7) / 1e-7, reverse, rtol=1e-5)


def test_the_two_are_symmetric():
    x, a = sample((6, 12), "logits")
    np.testing.assert_allclose(
        jaxloss.jensen_shannon(x, a, beta=0.2), jaxloss.jensen_shannon(a, x, beta=0.8), rtol=1e-5
    )


@cells
def test_a_class_that_is_not_a_number(kind, target_type):
    x, a = sample((3, 5), target_type)
    x[1, 2] = np.nan
    losses = KINDS[kind][0](x, a, target_type=target_type, reduction="none")
    assert np.isnan(losses).tolist() == [False, True, False]
