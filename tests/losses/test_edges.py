"""Empty batches, single classes, labels out of range, and logits at the ends of what a float can hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from agreement import assert_agrees
from losses import BINARY, CASES, CATEGORICAL, FLOATS, REDUCTIONS, Case, finfo

pytestmark = pytest.mark.usefixtures("path")

BY_ROWS = [case for case in CASES if case.loss.by_rows]
INDICES = Case(CATEGORICAL, "indices")
LOGIT_DTYPES = pytest.mark.parametrize("dtype", FLOATS)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (0, 0), (2, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("case", CASES)
def test_empty(case, shape, reduction):
    x = np.zeros(shape, np.float32)
    a = np.zeros(case.target_shape(shape), np.int32 if case.target == "indices" else np.float32)
    if case.target == "indices" and shape[-1] == 0:
        losses = case.loss(x, a, reduction="none")  # no index is in a row of no classes
        assert losses.shape == shape[:-1]
        assert np.isnan(losses).all()
    else:
        assert_agrees(case, x, a, reduction=reduction)


@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch_may_have_options(case):
    x = np.zeros((0, 3), np.float32)
    a = np.zeros(case.target_shape(x.shape), np.int32 if case.target == "indices" else np.float32)
    assert_agrees(case, x, a, where=np.zeros((0,), bool), weights=np.zeros((0,), np.float32))
    assert_agrees(case, x, a, normalizer=np.float32(4))


@pytest.mark.parametrize("case", BY_ROWS)
def test_one_class(case):
    """Its probability is 1 whatever its logit: no loss, no gradient."""
    x, a = case.sample((5, 1), scale=100)
    assert_agrees(case, x, a)
    value, gradient = jax.value_and_grad(INDICES.loss)(x, np.zeros(5, np.int32))
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("case", CASES)
def test_the_normalizer_does_not_see_what_weighs_nothing(case):
    """Nor does the loss: a row that is NaN is out of both. The derivative of its weight is its loss."""
    x, a = case.sample((4, 3))
    x = np.where(np.arange(12).reshape(4, 3) == 7, np.nan, x)
    weights = jnp.array([1.0, 2.0, 0.0, 3.0])

    def loss(weights, normalizer):
        return case.loss(x, a, weights=weights, normalizer=normalizer)

    value, (of_weights, of_normalizer) = jax.value_and_grad(loss, (0, 1))(weights, jnp.float32(2))
    np.testing.assert_allclose(of_normalizer, -value / 2, rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(of_weights), [False, False, True, False])


LABELS_OUT_OF_RANGE = [
    ("int32", -1),
    ("int32", 7),
    ("int32", 2**31 - 1),
    ("int32", -(2**31)),
    ("int8", -1),
    ("int8", 127),
    ("uint8", 255),
    ("int16", -32768),
    ("uint16", 2**16 - 1),
    ("uint32", 2**32 - 1),
    ("int64", 2**32 + 3),  # 3 once its upper half is lost
    ("int64", -(2**32) + 3),
    ("int64", 2**63 - 1),
    ("uint64", 2**32 + 3),
    ("uint64", 2**64 - 1),
]


@pytest.mark.parametrize(("dtype", "label"), LABELS_OUT_OF_RANGE)
def test_a_label_out_of_range_spoils_its_row_only(dtype, label):
    wide, labels = INDICES.sample((3, 107), target_dtype=dtype)
    labels[1] = label if label != 7 else 107
    assert_agrees(INDICES, wide, labels, reduction="none")
    x, a = INDICES.sample((4, 7), target_dtype=dtype)
    a[2] = label
    assert_agrees(INDICES, x, a, reduction="none")
    assert_agrees(INDICES, x, a)
    with jax.enable_x64(a.itemsize == 8):
        losses = INDICES.loss(x, jnp.asarray(a), reduction="none")
        gradient = INDICES.loss.gradient(x, jnp.asarray(a))
        assert list(np.isnan(losses)) == [False, False, True, False]
        assert (gradient[2] == 0).all()
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_labels_of_a_type_that_cannot_hold_every_class(dtype):
    x, _ = INDICES.sample((3, 300))
    assert_agrees(INDICES, x, np.array([0, 100, np.iinfo(dtype).max], dtype))


@LOGIT_DTYPES
@pytest.mark.parametrize("case", BY_ROWS)
def test_a_masked_class(case, dtype):
    """A logit of −Inf: probability and gradient 0, as if the class were not there."""
    x, a = case.sample((4, 6), dtype)
    x[:, 2] = x[1, 4] = -np.inf
    if case.target == "indices":
        a = np.array([0, 1, 3, 5], np.int32)
    else:
        a[:, 2] = a[1, 4] = 0
    for clip in (1e-7, None):
        assert_agrees(case, x, a, clip=clip)
    with jax.enable_x64(dtype == "float64"):
        gradient = np.asarray(case.loss.gradient(jnp.asarray(x), jnp.asarray(a)))
    assert (gradient[:, 2] == 0).all()


@pytest.mark.parametrize("case", BY_ROWS)
def test_a_masked_class_in_every_derivative(case):
    """What the derivatives are for the other classes alone, and 0 for the masked one."""
    x, a = case.sample((3, 5))
    v = case.sample((3, 5), seed=1)[0]
    masked, tangent = np.insert(x, 5, -np.inf, axis=1), np.insert(v, 5, 0, axis=1)
    target = a if case.target == "indices" else np.insert(a, 5, 0, axis=1)

    @jax.jit
    def derivatives(x, a, v):
        results = []
        for reduction in ("mean", "none"):

            def loss(x, reduction=reduction):
                return case.loss(x, a, reduction=reduction).sum()

            results.append(jax.jvp(loss, (x,), (v,))[1])
            results.append(jax.grad(loss)(x))
            results.append(jax.jvp(jax.grad(loss), (x,), (v,))[1])
            results.append(jax.grad(lambda x, loss=loss: jnp.vdot(jax.grad(loss)(x), v))(x))
        return results

    for with_masked, without in zip(derivatives(masked, target, tangent), derivatives(x, a, v), strict=True):
        expected = np.insert(without, 5, 0, axis=1) if without.ndim else without
        # The terms of a directional derivative, about 1, may cancel.
        tolerance.assert_close(with_masked, expected, "a derivative with a masked class", magnitude=1)


@pytest.mark.parametrize("offset", [1e4, -1e4, 2.0**17, 1e30])
@pytest.mark.parametrize("case", BY_ROWS)
def test_an_offset_common_to_all_logits_costs_nothing(case, offset):
    """The logits are multiples of 1/64 and the offset leaves them so: what cancels, cancels exactly."""
    x, a = case.sample((6, 33))
    x = np.round(x * 64) / 64
    if abs(offset) > 2**17:
        x = np.zeros_like(x)
    expected = jax.value_and_grad(case.loss)(x, a, clip=None)
    for result, unshifted in zip(
        jax.value_and_grad(case.loss)(x + np.float32(offset), a, clip=None), expected, strict=True
    ):
        if jax.default_backend() == "cpu":
            np.testing.assert_array_equal(result, unshifted)
        # On a GPU, sums may be taken in another order.
        few = tolerance.OPERATIONS * tolerance.epsilon(np.float32)
        np.testing.assert_allclose(result, unshifted, rtol=few, atol=few * np.float32(2**-10))
    assert_agrees(case, x + np.float32(offset), a, clip=None)


@LOGIT_DTYPES
@pytest.mark.parametrize("case", BY_ROWS)
def test_logits_at_the_ends_of_their_type(case, dtype):
    """One class ahead of the others by all that there is; and all at the lowest number, which is not −Inf."""
    largest = finfo(dtype).max
    x, a = case.sample((5, 9), dtype)
    x[0], x[1], x[2], x[3, 4], x[4, 4] = largest, -largest, 0, largest, -largest
    assert_agrees(case, x, a, clip=1e-7)
    assert_agrees(case, x[:3], a[:3], clip=None)


@LOGIT_DTYPES
def test_infinite_logits_of_binary_cross_entropy(dtype):
    """Right and sure: no loss but the clip's, no gradient. Wrong and sure: the clip's ceiling, and gradient ±1."""
    case = Case(BINARY, "probabilities")
    largest = finfo(dtype).max
    x = np.array([np.inf, -np.inf, np.inf, -np.inf, largest, -largest, largest, -largest], dtype)
    a = np.array([1, 0, 0, 1, 1, 0, 0, 1], dtype)
    for reduction in ("mean", "none"):
        assert_agrees(case, x, a, reduction=reduction)
    assert_agrees(case, x[:2], a[:2], clip=None)
    with jax.enable_x64(dtype == "float64"):
        assert case.loss(jnp.asarray(x[:2]), jnp.asarray(a[:2]), clip=None) == 0
        gradient = np.asarray(case.loss.gradient(jnp.asarray(x), jnp.asarray(a), reduction="sum"))
    assert gradient.astype(np.float32).tolist() == [0, 0, 1, -1, 0, 0, 1, -1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_nan_is_never_lost(case, dtype):
    """A NaN in the prediction is in the loss and in the gradient of its row, and in nothing else."""
    for position in (0, 3, 16):  # within a vector and in what is left over
        x, a = case.sample((3, 17), dtype)
        x[1, position] = np.nan
        assert_agrees(case, x, a, reduction="none")
        gradient = np.asarray(case.loss.gradient(x, a), np.float32)
        assert np.isnan(gradient[1, position])
        assert not np.isnan(gradient[[0, 2]]).any()
        assert np.isnan(case.loss(x, a))


@pytest.mark.parametrize("case", BY_ROWS)
def test_nan_is_not_in_the_gradient_of_a_loss_that_nobody_reads(case):
    x, a = case.sample((3, 33))
    x[1, 5] = np.nan
    counts = np.array([True, False, True])
    gradient = jax.grad(lambda x: jnp.where(counts, case.loss(x, a, reduction="none"), 0).sum())(x)
    expected = jax.grad(lambda x: case.loss(x, a, reduction="sum", where=counts))(x)
    tolerance.assert_close(gradient, expected, "the gradient of rows that count")


@pytest.mark.parametrize("case", [case for case in CASES if case.of_target])
def test_nan_in_the_target_is_never_lost(case):
    x, a = case.sample((3, 17))
    a[1, 16] = np.nan
    assert_agrees(case, x, a, reduction="none")
    assert np.isnan(case.loss(x, a))


@LOGIT_DTYPES
@pytest.mark.parametrize("case", CASES)
def test_subnormal_numbers(case, dtype):
    least = finfo(dtype).smallest_subnormal
    x, a = case.sample((4, 7), dtype)
    x[0], x[1], x[2, 3] = least, -least, 3 * least
    assert_agrees(case, x, a)


@pytest.mark.parametrize("case", CASES)
def test_a_scalar_or_vector_is_a_batch_of_its_elements(case):
    if case.loss.by_rows:
        x, a = case.sample((6,))
        assert case.loss(x, a) == case.loss(x[None], a[None] if a.ndim else a.reshape(1))
        return
    x, a = case.sample((6,))
    assert case.loss(x[0], a[0]) == case.loss(x[:1], a[:1])
    tolerance.assert_close(case.loss(x, a), case.loss(x[:, None], a[:, None]), "the loss of a vector")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_sums_of_16_bit_numbers_do_not_saturate(case, dtype):
    """70000 losses add up in float32: float16 ends at 65504, and bfloat16 stops counting at 256."""
    x = np.zeros((70_000, 2), dtype)
    a = np.zeros(case.target_shape(x.shape), np.int32 if case.target == "indices" else dtype)
    if case.target == "numbers":
        a += 1
    elif case.target == "probabilities":
        a[:, 0] = 1
    assert_agrees(case, x, a, reduction="sum")


@pytest.mark.parametrize("shape", [(2,), (300,), (2, 3), (300, 70)])
def test_a_sum_beyond_what_a_float_holds_is_infinite(shape):
    """Also if its mean would not be, as in `jnp.mean`; the losses themselves are finite."""
    x, a = np.full(shape, 2e38, np.float32), np.zeros(shape, np.float32)
    assert jnp.isinf(jnp.abs(x - a).mean())

    @jax.jit
    def all_of_them(x, a):
        of_each = {}
        for loss in (jaxloss.mae, jaxloss.huber, jaxloss.log_cosh):
            of_each[loss.__name__] = loss(x, a), loss(x, a, reduction="none"), jax.grad(loss)(x, a)
        return of_each

    for name, (value, losses, gradient) in all_of_them(x, a).items():
        assert np.isinf(value), name
        assert np.isfinite(losses).all(), name
        assert np.isfinite(gradient).all(), name
