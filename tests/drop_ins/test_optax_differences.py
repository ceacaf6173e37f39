"""Where `jaxloss.optax` differs from optax on purpose: each entry of the table in docs/optax.md, with both behaviours."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tolerance
from jaxloss import optax as ours

theirs = optax.losses
INF, NAN = jnp.inf, jnp.nan
LOGITS = jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.5]])
ONE_HOT = jnp.eye(3)[:2]
MASKED = LOGITS.at[0, 1].set(-INF)
WITHOUT_A_CLASS = jnp.array([[True, False, True], [True, True, True]])


def table() -> dict[str, str]:
    """The entries of the table in docs/optax.md, by the test that each names."""
    text = (pathlib.Path(__file__).parents[2] / "docs" / "optax.md").read_text()
    return {
        name: line for line in text.splitlines() if line.startswith("|") for name in re.findall(r"`(test_\w+)`", line)
    }


def test_the_table_lists_every_difference():
    tests = {name for name in globals() if name.startswith("test_") and name != "test_the_table_lists_every_difference"}
    assert set(table()) == tests


def gradient(function, *operands, of=0, **options):
    return jax.grad(lambda *operands: function(*operands, **options).sum(), of)(*operands)


def close(actual, expected, **options):
    tolerance.assert_close(actual, np.asarray(expected, np.float64), "the result", **options)


def nll(logits, label):
    return np.logaddexp.reduce(np.float64(logits)) - np.float64(logits)[label]


def softmax(logits):
    logits = np.float64(logits)
    return np.exp(logits - np.logaddexp.reduce(logits))


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "poly_loss_cross_entropy"])
def test_a_masked_class(name):
    poly = 2 * (1 - softmax([1.0, 3.0])[0]) if name.startswith("poly") else 0.0
    assert np.isnan(getattr(theirs, name)(MASKED, ONE_HOT)[0])
    close(getattr(ours, name)(MASKED, ONE_HOT)[0], nll([1.0, 3.0], 0) + poly)
    assert gradient(getattr(ours, name), MASKED, ONE_HOT)[0, 1] == 0


def test_a_masked_item_of_a_list():
    assert np.isnan(theirs.ranking_softmax_loss(MASKED, ONE_HOT))
    close(ours.ranking_softmax_loss(MASKED, ONE_HOT, reduce_fn=None), [nll([1.0, 3.0], 0), nll(LOGITS[1], 1)])


def test_tangents_beside_a_masked_class():
    def tangent(function):
        return jax.jvp(lambda x: function(x, ONE_HOT), (MASKED,), (jnp.ones_like(MASKED),))[1]

    assert np.isnan(tangent(theirs.safe_softmax_cross_entropy)[0])
    close(tangent(ours.safe_softmax_cross_entropy), [0.0, 0.0], magnitude=1.0)


def test_gradients_beside_integer_probabilities():
    labels = ONE_HOT.astype(int)
    with pytest.raises(TypeError, match="float0"):
        gradient(theirs.safe_softmax_cross_entropy, LOGITS, labels)
    close(
        gradient(ours.safe_softmax_cross_entropy, LOGITS, labels),
        [softmax(x) - a for x, a in zip(LOGITS, labels, strict=True)],
    )


@pytest.mark.parametrize("where", [WITHOUT_A_CLASS, jnp.array([[True], [False]])], ids=["classes", "rows"])
def test_gradients_of_labels_under_a_mask(where):
    found = gradient(ours.softmax_cross_entropy, LOGITS, ONE_HOT, of=1, where=where)
    kept = np.broadcast_to(where, LOGITS.shape)
    assert np.isnan(gradient(theirs.softmax_cross_entropy, LOGITS, ONE_HOT, of=1, where=where)[~kept]).all()
    assert (found[~kept] == 0).all()
    for x, row, keep in zip(LOGITS, found, kept, strict=True):
        if keep.any():
            close(row[keep], -np.log(softmax(x[keep])))


def test_a_label_of_minus_one():
    labels = jnp.array([-1, 1])
    close(theirs.softmax_cross_entropy_with_integer_labels(LOGITS, labels)[0], nll(LOGITS[0], 2))
    assert np.isnan(ours.softmax_cross_entropy_with_integer_labels(LOGITS, labels)[0])
    assert (gradient(ours.softmax_cross_entropy_with_integer_labels, LOGITS, labels)[0] == 0).all()


def test_the_gradient_of_a_label_out_of_range():
    labels = jnp.array([3, 1])
    function = "softmax_cross_entropy_with_integer_labels"
    assert np.isnan(getattr(theirs, function)(LOGITS, labels)[0])
    assert np.isnan(getattr(ours, function)(LOGITS, labels)[0])
    close(gradient(getattr(theirs, function), LOGITS, labels)[0], softmax(LOGITS[0]))
    assert (gradient(getattr(ours, function), LOGITS, labels)[0] == 0).all()


def test_labels_without_classes():
    labels, logits = jnp.zeros(2, int), jnp.zeros((2, 0))
    assert (theirs.softmax_cross_entropy_with_integer_labels(logits, labels) == -INF).all()
    assert np.isnan(ours.softmax_cross_entropy_with_integer_labels(logits, labels)).all()


def test_the_label_of_a_class_that_is_not_there():
    labels, where = jnp.array([2, 1]), jnp.array([[True, True, False]])
    options = {"where": where}
    assert theirs.softmax_cross_entropy_with_integer_labels(LOGITS, labels, **options)[0] < 0
    assert ours.softmax_cross_entropy_with_integer_labels(LOGITS, labels, **options)[0] == INF
    assert gradient(theirs.softmax_cross_entropy_with_integer_labels, LOGITS, labels, **options)[0, 2] == -1
    assert gradient(ours.softmax_cross_entropy_with_integer_labels, LOGITS, labels, **options)[0, 2] == 0


def test_a_mask_that_broadcasts_along_some_of_the_axes():
    x, labels, where = jnp.zeros((2, 3, 4)), jnp.zeros(2, int), jnp.array([True, False, True])[:, None]
    with pytest.raises(ValueError, match="broadcast"):
        theirs.softmax_cross_entropy_with_integer_labels(x, labels, (1, 2), where[None])
    close(ours.softmax_cross_entropy_with_integer_labels(x, labels, (1, 2), where[None]), np.log([8.0, 8.0]))


def test_logits_of_one_class_beside_labels_of_several():
    x = LOGITS[:, :1]
    assert (theirs.softmax_cross_entropy(x, ONE_HOT) == 0).all()
    with pytest.raises(ValueError, match="logits of all classes"):
        ours.softmax_cross_entropy(x, ONE_HOT)


def test_an_axis_that_is_another_of_the_labels():
    x, labels = jnp.zeros(3), jnp.zeros((3, 3))
    assert theirs.softmax_cross_entropy(x, labels, axis=0).shape == (3,)
    with pytest.raises(ValueError, match="counted from the end"):
        ours.softmax_cross_entropy(x, labels, axis=0)


@pytest.mark.parametrize(("name", "shape"), [("softmax_cross_entropy", (2, 3, 1)), ("kl_divergence", (4, 2, 3))])
def test_a_mask_with_too_many_axes(name, shape):
    where = jnp.ones(shape, bool)
    assert getattr(theirs, name)(LOGITS, ONE_HOT, where=where).shape != (2,)
    with pytest.raises(ValueError, match="where"):
        getattr(ours, name)(LOGITS, ONE_HOT, where=where)


def test_a_mask_of_rows_for_poly_loss():
    """optax takes one for classes in the one half of the loss, and for rows in the other."""
    x, a = jnp.concatenate([LOGITS, LOGITS[:1]]), jnp.eye(3)
    rows, classes = jnp.array([True, True, False]), jnp.array([[True], [True], [False]])
    mixed = theirs.poly_loss_cross_entropy(x, a, where=rows)
    exact = theirs.poly_loss_cross_entropy(x, a, where=classes)
    assert not np.allclose(mixed, exact)
    close(ours.poly_loss_cross_entropy(x, a, where=rows), exact)


def test_infinite_binary_logits():
    x, a = jnp.array([INF, -INF, INF, -INF]), jnp.array([1.0, 0.0, 0.0, 1.0])
    assert np.isnan(theirs.sigmoid_binary_cross_entropy(x, a)[:2]).all()
    np.testing.assert_array_equal(ours.sigmoid_binary_cross_entropy(x, a), [0, 0, INF, INF])


def test_infinite_focal_logits():
    x, a = jnp.array([INF, -INF, INF, -INF]), jnp.array([1.0, 0.0, 0.0, 1.0])
    assert np.isnan(theirs.sigmoid_focal_loss(x, a)[:2]).all()
    assert np.isnan(gradient(theirs.sigmoid_focal_loss, x, a)).all()
    np.testing.assert_array_equal(ours.sigmoid_focal_loss(x, a), [0, 0, INF, INF])
    np.testing.assert_array_equal(gradient(ours.sigmoid_focal_loss, x, a), [0, 0, 1, -1])


def test_the_focal_gradient_of_a_certain_label():
    """By differences of optax's own loss, in float64."""
    with jax.enable_x64(True):
        x, step = jnp.float64(2.0), 1e-6
        for label, other in ((0.0, step), (1.0, 1 - step)):
            slope = float(theirs.sigmoid_focal_loss(x, other) - theirs.sigmoid_focal_loss(x, label)) / (other - label)
            assert abs(float(gradient(theirs.sigmoid_focal_loss, x, label, of=1)) / slope - 1) > 0.05
            # The slope errs by half its step times the second derivative, which is 17 times the first.
            assert abs(float(gradient(ours.sigmoid_focal_loss, x, label, of=1)) / slope - 1) < 10 * step


def test_small_errors_of_log_cosh():
    errors = np.float32([1e-4, 1e-3, 0.01])
    exact = np.log(np.cosh(np.float64(errors)))
    assert (abs(np.asarray(theirs.log_cosh(errors)) / exact - 1) > 1e-4).all()
    assert (
        abs(np.asarray(ours.log_cosh(errors)) / exact - 1) < tolerance.OPERATIONS * tolerance.epsilon("float32")
    ).all()


def test_huber_without_a_linear_part():
    errors = jnp.array([1.0, 2.0])
    assert np.isnan(theirs.huber_loss(errors, delta=INF)).all()
    close(ours.huber_loss(errors, delta=INF), [0.5, 2.0])


def test_a_negative_delta():
    errors = jnp.array([1.0, 2.0])
    assert (theirs.huber_loss(errors, delta=-1.0) < 0).all()
    with pytest.raises(ValueError, match="delta is -1"):
        ours.huber_loss(errors, delta=-1.0)


LOG_P, TARGET = np.log(np.float32([0.2, 0.3, 0.5])), np.float32([0.0, 0.4, 0.6])
KL = float((TARGET[1:] * (np.log(TARGET[1:]) - LOG_P[1:])).sum())


@pytest.mark.parametrize("name", ["kl_divergence", "generalized_kl_divergence"])
def test_a_target_of_zero_beside_a_prediction_of_zero(name):
    log_p = np.float32([-INF, *LOG_P[1:]])
    assert np.isnan(getattr(theirs, name)(log_p, TARGET))
    close(
        getattr(ours, name)(log_p, TARGET),
        KL + (np.exp(log_p).sum() - 1 if name.startswith("gen") else 0),
        magnitude=1.0,
    )


@pytest.mark.parametrize("name", ["kl_divergence", "generalized_kl_divergence"])
def test_the_gradient_of_a_target_of_zero(name):
    constant = 0.0 if name.startswith("gen") else 1.0
    exact = constant + np.log(np.float64(TARGET[1:])) - LOG_P[1:]
    found = gradient(getattr(theirs, name), LOG_P, TARGET, of=1)
    assert np.isnan(found[0])
    close(found[1:], exact)
    found = gradient(getattr(ours, name), LOG_P, TARGET, of=1)
    close(found[1:], exact)
    close(found[0], -LOG_P[0] - 1 + constant, magnitude=2.0)  # without the infinite log of 0


def test_a_logarithm_of_a_target_of_zero():
    log_target = jnp.log(TARGET)
    assert np.isnan(theirs.kl_divergence_with_log_targets(LOG_P, log_target))
    assert np.isnan(gradient(theirs.kl_divergence_with_log_targets, LOG_P, log_target, of=1)[0])
    close(ours.kl_divergence_with_log_targets(LOG_P, log_target), KL, magnitude=1.0)
    assert gradient(ours.kl_divergence_with_log_targets, LOG_P, log_target, of=1)[0] == 0


def test_what_a_divergence_leaves_out_may_be_anything():
    log_p, where = np.float32([NAN, *LOG_P[1:]]), jnp.array([False, True, True])
    target = np.float32([NAN, *TARGET[1:]])
    assert np.isnan(gradient(theirs.kl_divergence, log_p, target, where=where)[0])
    close(ours.kl_divergence(log_p, target, where=where), KL, magnitude=1.0)
    assert gradient(ours.kl_divergence, log_p, target, where=where)[0] == 0


def test_smoothing_gives_nothing_to_classes_that_are_not_there():
    where = jnp.array([True, True, False])
    label = jnp.array([1.0, 0.0, 0.0])
    assert theirs.smooth_labels(label, 0.2, where=where).sum() > 1.05
    close(ours.smooth_labels(label, 0.2, where=where), [0.9, 0.1, 0.0])


def test_smoothing_of_a_row_without_classes():
    where = jnp.zeros((1, 3), bool)
    assert (theirs.smooth_labels(ONE_HOT[:1], 0.2, where=where) == INF).any()
    assert (ours.smooth_labels(ONE_HOT[:1], 0.2, where=where) == 0).all()


def test_smoothing_under_a_mask_that_broadcasts():
    where = jnp.array([[True], [True]])
    assert theirs.smooth_labels(ONE_HOT, 0.3, where=where).sum(-1).max() > 1.5  # it counts one class, of three
    close(ours.smooth_labels(ONE_HOT, 0.3, where=where), 0.7 * np.eye(3)[:2] + 0.1)
    assert theirs.smooth_labels(ONE_HOT, 0.3, where=jnp.array([True, True])).shape == (2, 3)
    with pytest.raises(ValueError, match="broadcast"):
        ours.smooth_labels(ONE_HOT, 0.3, where=jnp.array([True, True]))


def test_arithmetic_in_float32():
    """A 16-bit result is the exact one, rounded once."""
    x = jnp.array([300.0], jnp.float16)
    assert theirs.l2_loss(x)[0] == INF
    assert ours.l2_loss(x)[0] == 45000
    logits, one_hot = jnp.array([2.0, 1.0, 0.0], jnp.bfloat16), jnp.array([1.0, 0.0, 0.0], jnp.bfloat16)
    exact = nll([2.0, 1.0, 0.0], 0) + 2 * (1 - softmax([2.0, 1.0, 0.0])[0])
    rounded = theirs.poly_loss_cross_entropy(logits, one_hot, epsilon=jnp.float32(2))
    assert rounded.dtype == jnp.float32
    assert abs(rounded / exact - 1) > tolerance.epsilon("bfloat16") / 2
    close(ours.poly_loss_cross_entropy(logits, one_hot, epsilon=jnp.float32(2)), exact)


def test_errors_about_shapes_are_value_errors():
    with pytest.raises(TypeError, match="incompatible shapes"):
        theirs.softmax_cross_entropy(LOGITS, jnp.ones((2, 2)))
    with pytest.raises(TypeError, match="permutation"):
        theirs.softmax_cross_entropy_with_integer_labels(LOGITS, jnp.array([0, 1]), axis=(1, 1))
    with pytest.raises(ValueError, match=r"logits has shape \(2, 3\), labels has shape \(2, 2\)"):
        ours.softmax_cross_entropy(LOGITS, jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="no axis twice"):
        ours.softmax_cross_entropy_with_integer_labels(LOGITS, jnp.array([0, 1]), axis=(1, 1))


def test_lists_and_numbers_are_arrays():
    for error, name, args, options in (
        (AttributeError, "sigmoid_binary_cross_entropy", (1.0, 1), {}),
        (AttributeError, "log_cosh", (1.0,), {}),
        (AttributeError, "softmax_cross_entropy", (LOGITS, ONE_HOT), {"where": [True, False]}),
        (TypeError, "softmax_cross_entropy", ([1.0, 2.0], [1.0, 0.0]), {}),
        (TypeError, "softmax_cross_entropy_with_integer_labels", (LOGITS, [0, 1]), {}),
        (ValueError, "softmax_cross_entropy", (LOGITS, ONE_HOT), {"axis": [1]}),
    ):
        with pytest.raises(error):
            getattr(theirs, name)(*args, **options)
        assert np.isfinite(getattr(ours, name)(*args, **options)).all()


def test_masks_of_fewer_axes():
    for error, name, labels, options in (
        (TypeError, "softmax_cross_entropy", ONE_HOT, {"axis": None, "where": jnp.array(True)}),
        (ValueError, "softmax_cross_entropy_with_integer_labels", jnp.array([0, 1]), {"where": jnp.array(True)}),
        (ValueError, "poly_loss_cross_entropy", ONE_HOT, {"where": jnp.array([True, True])}),
    ):
        with pytest.raises(error):
            getattr(theirs, name)(LOGITS, labels, **options)
        unmasked = getattr(ours, name)(LOGITS, labels, **{k: v for k, v in options.items() if k != "where"})
        np.testing.assert_array_equal(getattr(ours, name)(LOGITS, labels, **options), unmasked)


def test_names_that_are_not_here():
    missing = {name for name in dir(theirs) if not name.startswith("_")} - set(ours.__all__)
    assert missing, "every loss is here: take the entry out of the table"
    line = table()["test_names_that_are_not_here"]
    assert set(re.findall(r"`(\w+)`", line)) - {"test_names_that_are_not_here"} == missing
