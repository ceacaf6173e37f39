"""where, ignore_index, weights, normalizer and reduction of every loss, alone and together, against the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from agreement import assert_agrees
from losses import CASES, REDUCTIONS

ELEMENTWISE = [case for case in CASES if not case.loss.by_rows]
BY_ROWS = [case for case in CASES if case.loss.by_rows]
INDICES = [case for case in CASES if case.target == "indices"]

SHAPE = (4, 3, 5)
EXAMPLES = {False: (4,), True: (4, 3)}  # of elementwise losses, and of those by rows
OPTION_SHAPES = {
    False: ((4,), (4, 1, 1), (4, 3, 5), (4, 3, 1), (1, 3, 5), (1, 1, 5), (1, 3, 1), (1, 1, 1), ()),
    True: ((4, 3), (4, 3, 1), (4, 1, 1), (1, 3, 1), (1, 1, 1), ()),
}

cases = pytest.mark.parametrize("case", CASES)
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


def mask(shape, seed=1):
    return np.random.default_rng(seed).random(shape) < 0.6


def weighing(shape, seed=2):
    return np.random.default_rng(seed).uniform(0.5, 2, shape).astype(np.float32)


def poisoned(case, x, a, where):
    """The same with NaN, infinities and labels out of range in the examples, rows or elements that `where` leaves out."""
    x, a = x.copy(), a.copy()
    out = np.broadcast_to(~where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), x.shape)
    x[out] = np.resize(np.array([np.nan, np.inf, -np.inf, 3.4e38], x.dtype), out.sum())
    if case.target == "indices":
        a[~np.broadcast_to(where, a.shape)] = 1_000_000
    else:
        a[out] = np.resize(np.array([np.inf, np.nan], a.dtype), out.sum())
    return x, a


@reductions
@pytest.mark.parametrize(
    ("case", "shape"), [(case, shape) for case in CASES for shape in OPTION_SHAPES[case.loss.by_rows]]
)
def test_where_and_weights_of_every_shape(case, shape, reduction):
    x, a = case.sample(SHAPE)
    assert_agrees(case, x, a, where=mask(shape), weights=weighing(shape), reduction=reduction)


@reductions
@cases
def test_where_alone(case, reduction):
    x, a = case.sample(SHAPE)
    assert_agrees(case, x, a, where=mask(EXAMPLES[case.loss.by_rows]), reduction=reduction)


@reductions
@cases
def test_weights_alone(case, reduction):
    x, a = case.sample(SHAPE, "bfloat16")
    assert_agrees(case, x, a, weights=weighing(EXAMPLES[case.loss.by_rows]), reduction=reduction)


@cases
def test_where_and_weights_of_different_shapes(case):
    x, a = case.sample(SHAPE)
    *_, some, all_equal, _ = OPTION_SHAPES[case.loss.by_rows]
    for where, weights in ((some, EXAMPLES[case.loss.by_rows]), (EXAMPLES[case.loss.by_rows], some), (all_equal, some)):
        assert_agrees(case, x, a, where=mask(where), weights=weighing(weights), normalizer=7.5)


@pytest.mark.parametrize("case", ELEMENTWISE)
def test_an_option_as_long_as_the_examples_is_about_examples(case):
    """Also where it could broadcast along the last axis."""
    x, a = case.sample((4, 4))
    assert_agrees(case, x, a, where=np.array([True, True, False, False]), weights=weighing((4,)))


@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 3), (4, 1, 1), (1, 1, 3)])
@pytest.mark.parametrize("case", BY_ROWS)
def test_options_beside_an_inner_axis_of_classes(case, shape):
    x, a = case.sample((4, 5, 3), axis=1)
    assert_agrees(case, x, a, axis=1, where=mask(shape), weights=weighing(shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@reductions
@cases
def test_what_is_taken_out_may_hold_anything(case, reduction, dtype):
    """Its loss and each of its gradients are exactly 0, and nothing else notices."""
    x, a = case.sample(SHAPE, dtype)
    where = mask(EXAMPLES[case.loss.by_rows])
    assert_agrees(case, *poisoned(case, x, a, where), where=where, weights=weighing(where.shape), reduction=reduction)
    gradient = case.loss.gradient(*map(jnp.asarray, poisoned(case, x, a, where)), where=where, reduction=reduction)
    assert (np.asarray(gradient, np.float32)[~where] == 0).all()


@reductions
@cases
def test_what_is_taken_out_moves_with_no_weight(case, reduction):
    """Nor does anything else move otherwise, in forward mode too, whose products with a tangent of 0 are taken."""
    x, a = case.sample(SHAPE)
    where = mask(EXAMPLES[case.loss.by_rows])
    weights = weighing(where.shape)

    def along_weights(x, a):
        def of(weights):
            return case.loss(x, a, where=where, weights=weights, reduction=reduction)

        return jax.jvp(of, (weights,), (np.ones_like(weights),))

    for found, expected in zip(along_weights(*poisoned(case, x, a, where)), along_weights(x, a), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", ELEMENTWISE)
def test_single_elements_taken_out_may_hold_anything(case):
    x, a = case.sample(SHAPE)
    where = mask(SHAPE)
    where[1] = False
    for reduction in REDUCTIONS:
        assert_agrees(case, *poisoned(case, x, a, where), where=where, reduction=reduction)


@cases
def test_derivatives_of_higher_order_do_not_see_what_is_taken_out(case):
    x, a = case.sample(SHAPE)
    where = mask(EXAMPLES[case.loss.by_rows])
    tangent = case.sample(SHAPE, seed=1)[0]

    @jax.jit
    def derivatives(x, a):
        results = []
        for reduction in ("mean", "none"):

            def loss(x, reduction=reduction):
                return case.loss(x, a, where=where, reduction=reduction).sum()

            results.append(jax.jvp(loss, (x,), (tangent,)))
            results.append(jax.jvp(jax.grad(loss), (x,), (tangent,)))
            results.append(jax.grad(lambda x, loss=loss: jnp.vdot(jax.grad(loss)(x), tangent))(x))
        return results

    for clean, dirty in zip(
        jax.tree.leaves(derivatives(x, a)), jax.tree.leaves(derivatives(*poisoned(case, x, a, where))), strict=True
    ):
        np.testing.assert_array_equal(clean, dirty)


@reductions
@cases
def test_everything_taken_out(case, reduction):
    """A mean over no example is 0, and so is every gradient."""
    x, a = case.sample(SHAPE)
    where = np.zeros(EXAMPLES[case.loss.by_rows], bool)
    assert_agrees(case, *poisoned(case, x, a, where), where=where, weights=weighing(where.shape), reduction=reduction)
    gradient = jax.grad(lambda x: case.loss(x, a, where=where, reduction=reduction).sum())(x)
    assert (gradient == 0).all()


@pytest.mark.parametrize("case", ELEMENTWISE)
def test_an_example_counts_while_any_element_of_it_does(case):
    x, a = case.sample((3, 4))
    where = np.array([[True, False, False, False], [False] * 4, [True] * 4])
    losses = case.loss(x, a, where=where, reduction="none")
    assert float(case.loss(x, a, where=where)) == pytest.approx(
        float(losses.sum()) / 2, rel=8 * tolerance.epsilon("float32")
    )


@reductions
@cases
def test_weights_of_zero_and_below(case, reduction):
    """A weight of 0, of either sign, is no mask: the gradient with respect to it is still the example's loss / n."""
    x, a = case.sample(SHAPE)
    weights = np.resize(np.array([0.0, -0.0, -1.5, 2.0], np.float32), EXAMPLES[case.loss.by_rows])
    assert_agrees(case, x, a, weights=weights, reduction=reduction)
    assert_agrees(case, x, a, weights=weights, where=mask(weights.shape), reduction=reduction)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int32"])
@cases
def test_weights_of_every_type(case, dtype):
    x, a = case.sample(SHAPE)
    assert_agrees(
        case,
        x,
        a,
        weights=np.array([1, 2, 0, 3])
        .repeat(3 if case.loss.by_rows else 1)
        .reshape(EXAMPLES[case.loss.by_rows])
        .astype(dtype),
    )


@pytest.mark.parametrize("normalizer", [np.float32(12.5), np.float32(-3), np.int32(7), np.float32(0)])
@cases
def test_normalizer(case, normalizer):
    """It replaces n, whatever else is given; its own gradient is −loss / normalizer."""
    x, a = case.sample(SHAPE)
    assert_agrees(case, x, a, normalizer=normalizer)
    rows = EXAMPLES[case.loss.by_rows]
    assert_agrees(case, x, a, normalizer=normalizer, where=mask(rows), weights=weighing(rows))


@cases
def test_options_may_be_python_values(case):
    x, a = case.sample((3, 4))
    plain = case.loss(
        x.tolist(),
        a.tolist() if case.target == "indices" else a,
        where=[True, False, True],
        weights=[1, 2.0, 3],
        normalizer=2,
    )
    arrays = case.loss(
        x, a, where=np.array([True, False, True]), weights=np.array([1.0, 2, 3], np.float32), normalizer=np.float32(2)
    )
    assert plain == arrays


@pytest.mark.parametrize(
    ("target_dtype", "ignore_index"),
    [
        ("int32", -100),
        ("int32", -1),
        ("int32", 2),
        ("int64", 2**40),
        ("int8", -100),
        ("uint8", 255),
        ("uint32", 2**32 - 1),
        ("uint64", 2**64 - 1),
        ("uint8", -100),  # a uint8 cannot hold these three: they mark nothing
        ("int8", 300),
        ("int32", 2**32 + 2),
    ],
)
@pytest.mark.parametrize("case", INDICES)
def test_ignore_index(case, target_dtype, ignore_index):
    x, a = case.sample(SHAPE, target_dtype=target_dtype)
    info = np.iinfo(target_dtype)
    if info.min <= ignore_index <= info.max:
        a[mask(a.shape)] = ignore_index
    for reduction in ("mean", "none"):
        assert_agrees(case, x, a, ignore_index=ignore_index, reduction=reduction)


@reductions
@pytest.mark.parametrize("case", INDICES)
def test_ignore_index_with_other_options(case, reduction):
    x, a = case.sample(SHAPE)
    a[mask(a.shape)] = -100
    where = mask(a.shape, seed=5)
    assert_agrees(
        case,
        *poisoned(case, x, a, where),
        ignore_index=-100,
        where=where,
        weights=weighing(a.shape),
        reduction=reduction,
    )
    assert_agrees(case, x, np.full_like(a, -100), ignore_index=-100, reduction=reduction)


@pytest.mark.parametrize("case", INDICES)
def test_a_negative_index_is_out_of_range_unless_named(case):
    x, a = case.sample((3, 4))
    a[1] = -100
    assert np.isnan(case.loss(x, a))
    assert np.isfinite(case.loss(x, a, ignore_index=-100))
    assert np.isnan(case.loss(x, a, ignore_index=-1))


@pytest.mark.parametrize("clip", [None, 1e-7, 1e-2])
@pytest.mark.parametrize("case", [case for case in CASES if case.loss.has_clip])
def test_the_value_saturates_at_the_clip_and_the_gradient_does_not(case, clip):
    """A prediction that is wrong by far costs −log(clip), and is corrected as if there were no clip."""
    right, wrong = np.float32([[40.0, -40.0]]), np.float32([[-40.0, 40.0]])
    a = np.int32([0]) if case.target == "indices" else np.float32([[1.0, 0.0]])
    width = 1 if case.loss.by_rows else 2  # losses a row
    distance = 80.0 if case.loss.by_rows else 40.0
    value, gradient = jax.value_and_grad(case.loss)(wrong, a, clip=clip)
    expected = width * (distance if clip is None else -np.log(clip))
    tolerance.assert_close(value, expected, "the value of a wrong prediction")
    tolerance.assert_close(gradient, [[-1.0, 1.0]], "the gradient of a wrong prediction")
    floor = 0.0 if clip is None or case.loss.by_rows else -width * np.log1p(-clip)
    value, gradient = jax.value_and_grad(case.loss)(right, a, clip=clip)
    # A clipped probability is rounded near 1; what is not clipped is as small as what the other class has.
    np.testing.assert_allclose(value, floor, rtol=0, atol=width * tolerance.epsilon("float32"))
    tolerance.assert_ulps(gradient, np.exp(-distance) * np.array([[-1, 1]]), 16 + 2 * distance)


@pytest.mark.parametrize(
    "mask", [np.array([True, True, False]), np.array([[True], [True], [False]])], ids=["rows", "axes"]
)
@pytest.mark.parametrize("of", ["normalizer", "weights"])
def test_what_a_masked_row_weighs_may_be_anything(of, mask):
    """Also in the derivative of what the mean is divided by."""
    x, labels = np.square(np.arange(6, dtype=np.float32)).reshape(3, 2), np.zeros(3, np.int32)

    def gradient(of_masked):
        weights = np.array([1, 3, of_masked], np.float32)
        weights = weights[:, None] if mask.ndim == 2 else weights

        def loss(weights, normalizer):
            normalizer = "weights" if of == "weights" else normalizer
            return jaxloss.categorical_cross_entropy(x, labels, where=mask, weights=weights, normalizer=normalizer)

        return jax.grad(loss, 0 if of == "weights" else 1)(weights, 2.0)

    np.testing.assert_array_equal(gradient(np.nan), gradient(0))
    assert np.abs(gradient(0)).max() > 0
