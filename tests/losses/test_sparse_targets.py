"""Targets of some classes of each row and their probabilities, against the same as probabilities of all classes in float64."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from modules import custom_call_targets, of_size, temporary_bytes
from quickly import jit_quickly

ROWS, CLASSES, K = 9, 11, 4
RNG = np.random.default_rng(0)
X = (2 * RNG.normal(size=(ROWS, CLASSES))).astype(np.float32)
INDICES = np.stack([RNG.permutation(CLASSES)[:K] for _ in range(ROWS)]).astype(np.int32)
SHARES = RNG.dirichlet(np.ones(K + 1), ROWS)[:, :K].astype(np.float32)
INDICES[1, 0] = INDICES[1, 1]  # a class that is listed twice
INDICES[2, 0], SHARES[2, 0] = -1, 0  # no class, and no probability
INDICES[3], SHARES[3] = CLASSES, 0  # none at all
SHARES[4] /= SHARES[4].sum()  # nothing remains
X[5, next(i for i in range(CLASSES) if i not in INDICES[5])] = -np.inf  # a masked class that is not listed
X[6, INDICES[6, 0]], SHARES[6, 0] = -np.inf, 0  # and one that is
WEIGHTS = np.cos(np.arange(ROWS)).astype(np.float32)
REMAINDERS = ("drop", "spread")


def dense(shares, remainder, masked=None):
    """The targets of all classes, masked ones without their part of the rest."""
    masked, known = np.isneginf(X) if masked is None else masked, INDICES < CLASSES
    place = np.arange(ROWS)[:, None], np.where((INDICES >= 0) & known, INDICES, 0)
    counted = (INDICES >= 0) & known
    targets = jnp.zeros((ROWS, CLASSES), shares.dtype).at[place].add(jnp.where(counted, shares, 0))
    if remainder == "drop":
        return targets
    is_listed = np.zeros((ROWS, CLASSES), bool)
    for row in range(ROWS):
        is_listed[row, INDICES[row][counted[row]]] = True
    rest = jnp.maximum(1 - targets.sum(-1), 0) / (~is_listed).sum(-1)
    return targets + jnp.where(is_listed | masked, 0, rest[:, None])


def formula(x, shares, remainder, divergence=False, clip=None, label_smoothing=0.0, z_loss=0.0, softcap=None, **scale):
    if softcap is not None:
        x = softcap * jnp.tanh(x / softcap)
    x = x / scale.get("temperature", 1.0)
    masked = jnp.isneginf(x)
    given = targets = dense(shares, remainder, masked)
    targets = (1 - label_smoothing) * targets + jnp.where(masked, 0, label_smoothing / CLASSES)
    log_t = jax.nn.log_softmax(x)
    log_t = jnp.where(masked & (targets == 0), 0, log_t)
    losses = -(targets * log_t).sum(-1) + z_loss * jax.nn.logsumexp(x, -1) ** 2
    if clip is not None:  # in the value alone
        clipped = -(targets * jnp.maximum(log_t, math.log(clip))).sum(-1)
        losses = losses + jax.lax.stop_gradient(clipped + (targets * log_t).sum(-1))
    return losses + (
        jnp.where(given > 0, given * jnp.log(jnp.where(given > 0, given, 1)), 0).sum(-1) if divergence else 0
    )


def exactly(function, *operands):
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), operands)
        return jax.tree.map(np.asarray, jit_quickly(function)(*wide))


assert_near = functools.partial(tolerance.assert_trees_near, of_largest=2e-6)


CASES = {
    "plain": {},
    "clipped": {"clip": 0.1},
    "smoothed": {"label_smoothing": 0.1},
    "smoothed and clipped": {"label_smoothing": 0.1, "clip": 0.05},
    "z-loss": {"z_loss": 0.01},
    "scaled": {"softcap": 3.0, "temperature": 1.5},
    "all": {"label_smoothing": 0.1, "z_loss": 0.01, "temperature": 0.5},
}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[] if name in ("plain", "all") else [pytest.mark.slow]) for name in CASES]
)
def test_value_and_gradients(case):
    """Reduced and unreduced; with respect to logits, and of those of finite logits alone to probabilities."""
    options = {"clip": None, **CASES[case]}

    def programs(ours):
        def run(x, shares):
            results = []
            for remainder in REMAINDERS:

                def losses(x, shares, reduction, remainder=remainder):
                    if not ours:
                        rows = formula(x, shares, remainder, **options)
                        return rows.mean() if reduction == "mean" else rows
                    target = INDICES, shares
                    return jaxloss.categorical_cross_entropy(
                        x, target, remainder=remainder, reduction=reduction, **options
                    )

                mean = jax.value_and_grad(lambda *o: losses(*o, "mean"), (0, 1))
                rows = jax.value_and_grad(lambda *o: (losses(*o, "none") * WEIGHTS).sum())
                along = jax.jvp(
                    jax.grad(lambda x: losses(x, shares, "mean")),
                    (x,),
                    (jnp.cos(jnp.arange(CLASSES * 1.0, dtype=x.dtype)) * jnp.ones_like(x),),
                )[1]
                results += [mean(x, shares), rows(x, shares), along]
            return results

        return run

    x = np.where(np.isneginf(X), -30, X) if "softcap" in options else X
    shares = np.where(INDICES < 0, 0.0, SHARES).astype(np.float32)
    actual, expected = jit_quickly(programs(True))(x, shares), exactly(programs(False), x, shares)
    # The derivative with respect to the probability of what is no class is 0 here; the formula gives it one of class 0.
    # And the row of which nothing remains is where the rest begins.
    no_class = (INDICES < 0) | (INDICES >= CLASSES) | (np.arange(ROWS) == 4)[:, None]

    def of_classes(results):
        return [
            [(value, (dx, np.where(no_class, 0, dq))), rows, along]
            for (value, (dx, dq)), rows, along in (results[:3], results[3:])
        ]

    assert_near(of_classes(actual), of_classes(expected), of_largest=5e-6)
    gradient = actual[0][1][0]
    assert (np.asarray(gradient)[3] == 0).all() == ("label_smoothing" not in options and "z_loss" not in options)


@pytest.mark.parametrize("options", [{"z_loss": 0.01}, {"z_loss": 0.01, "label_smoothing": 0.1}, {"temperature": 0.5}])
def test_the_clip_beside_other_options(options):
    """Of improbable classes, as of a target of all classes."""
    x = np.zeros((2, CLASSES), np.float32)
    x[:, 3], x[:, 5] = 30, -30
    indices, shares = np.array([[5, 7], [3, 5]]), np.array([[0.25, 0.5], [0.5, 0.25]], np.float32)
    of_all = np.zeros_like(x)
    np.put_along_axis(of_all, indices, shares, 1)
    ours, expected = (
        jaxloss.categorical_cross_entropy(x, target, reduction="none", **options)
        for target in ((indices, shares), of_all)
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 2**-8), ("float16", 2**-10)])
def test_16_bits(dtype, share, remainder):
    """A gradient is rounded once, also at the listed classes, where it is a difference."""
    near = np.where(np.isneginf(X), X, np.log(np.maximum(np.asarray(dense(SHARES, remainder)), 1e-2)) + 0.1 * X)
    x = near.astype(dtype)
    actual = jax.jit(
        jax.grad(
            lambda x: jaxloss.categorical_cross_entropy(x, (INDICES, SHARES), remainder=remainder, reduction="sum")
        )
    )(x)
    exact = exactly(jax.grad(lambda x: formula(x, jnp.asarray(SHARES, x.dtype), remainder).sum()), x)
    assert actual.dtype == dtype
    error = np.abs(np.asarray(actual, np.float64) - exact)
    assert (error <= share * np.abs(exact) + 1e-6).all()


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_divergence(remainder):
    def run(kl):
        def of(x, shares):
            loss = lambda x, shares, t: kl(x, shares, t)  # noqa: E731
            return [jax.value_and_grad(lambda *o, t=t: loss(*o, t), (0, 1))(x, shares) for t in (1.0, 2.0)]

        return of

    x, (indices, shares) = np.where(np.isneginf(X), -3, X)[:2], (INDICES[:2], SHARES[:2])
    actual = jit_quickly(
        run(lambda x, q, t: jaxloss.kl_divergence(x, (indices, q), remainder=remainder, temperature=t))
    )(x, shares)

    def exact(x, q, t):
        wide = (
            jnp.concatenate([x, jnp.zeros((ROWS - 2, CLASSES), x.dtype)]),
            jnp.concatenate([q, jnp.asarray(SHARES[2:], q.dtype)]),
        )
        return formula(*wide, remainder, divergence=True, temperature=t)[:2].mean()

    # What is not listed is unmasked here.
    expected = exactly(run(exact), x, shares)
    assert_near(actual, expected, of_largest=5e-6)
    gradient = jaxloss.d_kl_divergence(x, (indices, shares), remainder=remainder)
    assert_near(gradient, expected[0][1][0])


def test_small_losses():
    """Of rows whose listed classes have nearly all of the softmax: relative to the loss itself."""
    x = np.full((3, CLASSES), -60, np.float32)
    x[:, 4], x[1, 6] = [0, -3, 10], -50
    target = np.array([[4, 6]] * 3), np.array([[1.0, 0.0]] * 3, np.float32)
    losses = jaxloss.categorical_cross_entropy(x, target, reduction="none", clip=None)
    labels = jaxloss.categorical_cross_entropy(x, target[0][:, 0], reduction="none", clip=None)
    assert (np.asarray(losses) == np.asarray(labels)).all()
    assert 0 < losses[2] < 1e-29

    def gradient(target):
        return jax.grad(lambda x: jaxloss.categorical_cross_entropy(x, target, clip=None))(x)[:, 4]

    np.testing.assert_allclose(gradient(target), gradient(target[0][:, 0]), rtol=1e-5)


def test_one_class_with_all_of_the_probability_is_a_label():
    labels = np.arange(ROWS, dtype=np.int64) % CLASSES
    ones = np.ones((ROWS, 1), np.float32)
    loss = jax.value_and_grad(jaxloss.categorical_cross_entropy)
    for actual, expected in zip(
        jax.tree.leaves(loss(X, (labels[:, None], ones))), jax.tree.leaves(loss(X, labels)), strict=True
    ):
        tolerance.assert_ulps(actual, expected, 16)


def test_no_class():
    """As of labels: a row with one has loss NaN and gradient 0; memory outside the row is not touched."""
    indices, shares = INDICES.copy(), SHARES.copy()
    indices[6, 1], indices[7, 2] = CLASSES, -5
    for remainder in REMAINDERS:
        value, gradient = jax.value_and_grad(
            lambda x, r=remainder: jaxloss.categorical_cross_entropy(x, (indices, shares), remainder=r, reduction="sum")
        )(X)
        rows = jaxloss.categorical_cross_entropy(X, (indices, shares), remainder=remainder, reduction="none")
        assert jnp.isnan(value)
        assert list(np.flatnonzero(np.isnan(rows))) == [6, 7]
        assert (gradient[6:8] == 0).all()
        right = jax.grad(
            lambda x, r=remainder: jaxloss.categorical_cross_entropy(x, (INDICES, SHARES), remainder=r, reduction="sum")
        )(X)
        np.testing.assert_array_equal(gradient[:6], right[:6])


def test_masked_rows_and_weights():
    where = np.arange(ROWS) != 5
    x = np.where(where[:, None], X, np.nan)
    value, gradient = jax.value_and_grad(
        lambda x: jaxloss.categorical_cross_entropy(x, (INDICES, SHARES), where=where, weights=WEIGHTS, clip=None)
    )(x)
    rows = exactly(lambda x: formula(x, jnp.asarray(SHARES, x.dtype), "drop"), X)
    assert_near(value, (rows * WEIGHTS)[where].sum() / where.sum())
    assert (gradient[5] == 0).all()
    shares = SHARES.astype(np.float64).sum(-1)
    mean = jaxloss.categorical_cross_entropy(X, (INDICES, SHARES), normalizer="weights", clip=None)
    assert_near(mean, rows.sum() / shares.sum())


def test_a_target_of_nothing_and_a_negative_weight():
    """Its product with the row's weight is −0, which is no mask: the row's statistics are in the gradient of its shares."""
    x, indices = np.array([[-3.0, 2.0, 1.0]], np.float32), np.array([[2, 1, 0]], np.int32)
    class_weights, example = np.array([0.5, 0.5, 0.0], np.float32), np.array([-2.0], np.float32)

    def loss(shares):
        target = indices, shares
        return jaxloss.categorical_cross_entropy(x, target, class_weights=class_weights, weights=example, clip=None)

    gradient = jax.grad(loss)(np.array([[0.2, 0.0, 0.0]], np.float32))
    expected = example * class_weights[indices] * -jax.nn.log_softmax(x)[0, indices]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_class_weights():
    weights = np.linspace(0.5, 2, CLASSES).astype(np.float32)
    x = np.where(np.isneginf(X), -3, X)

    def exact(x):
        targets = dense(jnp.asarray(SHARES, x.dtype), "drop") * weights
        return -(targets * jax.nn.log_softmax(x)).sum() / targets.sum()

    def loss(x):
        return jaxloss.categorical_cross_entropy(
            x, (INDICES, SHARES), class_weights=weights, normalizer="weights", clip=None
        )

    assert_near(jax.value_and_grad(loss)(x), exactly(jax.value_and_grad(exact), x))


def test_axis_and_padding():
    """The classes in the middle; and logits beyond the number of classes, which a class may not be."""
    x, indices, shares = (np.moveaxis(a.reshape(3, 3, -1), -1, 1) for a in (X, INDICES, SHARES))
    rows = jaxloss.categorical_cross_entropy(X, (INDICES, SHARES), remainder="spread", reduction="none")
    result = jaxloss.categorical_cross_entropy(x, (indices, shares), axis=1, remainder="spread", reduction="none")
    np.testing.assert_array_equal(result.ravel(), rows)
    gradient = jaxloss.d_categorical_cross_entropy(x, (indices, shares), axis=1)
    assert_near(
        np.moveaxis(gradient, 1, -1).reshape(X.shape), jaxloss.d_categorical_cross_entropy(X, (INDICES, SHARES))
    )
    padded = np.pad(X, [(0, 0), (0, 3)], constant_values=7)
    options = {"remainder": "spread", "reduction": "none", "num_classes": CLASSES}
    inside = np.where(INDICES < CLASSES, INDICES, -1)
    np.testing.assert_allclose(jaxloss.categorical_cross_entropy(padded, (inside, SHARES), **options), rows, rtol=2e-6)
    beyond = INDICES + np.int32(CLASSES)
    assert jnp.isnan(jaxloss.categorical_cross_entropy(padded, (beyond, SHARES), **options)[4])


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_one_pass(remainder):
    """One custom call, whose gradient is written into; without an array of probabilities."""
    n, classes = 64, 512
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((n, classes), "float32"), ((n, K), "int32"), ((n, K), "float32"))
    ]

    def loss(x, indices, shares):
        return jaxloss.categorical_cross_entropy(x, (indices, shares), remainder=remainder)

    module = jax.jit(jax.value_and_grad(loss)).lower(*shapes).compile()
    (target,) = custom_call_targets(module)
    assert target.endswith("value_and_grad")
    whole = [name for name in of_size(module, n * classes) if name not in ("custom-call", "fusion", "scatter", "while")]
    assert whole == []
    assert not re.search(rf"copy\S* = f32\[{n},{classes}\]", module.as_text())
    if remainder == "drop":
        assert temporary_bytes(module) < n * classes


# ---- log_prob --------------------------------------------------------------------------------------------------------


def test_log_prob_of_some_classes():
    x = np.where(np.isneginf(X), -3, X)
    ids = np.where(INDICES < CLASSES, INDICES, CLASSES + 5)
    where = np.arange(ROWS) != 7
    cotangents = RNG.normal(size=ids.shape).astype(np.float32)
    known = (ids >= 0) & (ids < CLASSES) & where[:, None]

    def run(log_prob):
        return lambda x: jax.value_and_grad(lambda x: jnp.where(known, log_prob(x) * cotangents, 0).sum())(x)

    def exact(x):
        return jnp.take_along_axis(jax.nn.log_softmax(x / 1.5), np.where(known, ids, 0), -1)

    def ours(x):
        return jaxloss.log_prob(x, ids, where=where, temperature=1.5)

    assert_near(jit_quickly(run(ours))(x), exactly(run(exact), x), of_largest=5e-6)
    found = np.asarray(ours(x))
    assert (np.isnan(found) == (~known & where[:, None])).all()
    assert (found[7] == 0).all()
    moved = jaxloss.log_prob(x.T, np.array(ids.T), where=where, temperature=1.5, axis=0)
    np.testing.assert_array_equal(moved.T, found)


# ---- bad input -------------------------------------------------------------------------------------------------------

TARGET = INDICES, SHARES
ERRORS = {
    "shape": (
        (INDICES[:, 0], SHARES[:, 0]),
        {},
        ValueError,
        r"target\[0\] has shape \(9,\), logits \(9, 11\): expected \(9, K\) class indices",
    ),
    "rows": (
        (INDICES[:4], SHARES[:4]),
        {},
        ValueError,
        r"target\[0\] has shape \(4, 4\), logits \(9, 11\): expected \(9, K\)",
    ),
    "no classes": ((INDICES[:, :0], SHARES[:, :0]), {}, ValueError, r"of one or more classes K"),
    "types swapped": ((SHARES, INDICES), {}, TypeError, r"target\[0\] has dtype float32: expected an integer type"),
    "no probabilities": (
        (INDICES, INDICES),
        {},
        TypeError,
        r"target\[1\] has dtype int32: expected a floating-point type",
    ),
    "unequal": (
        (INDICES, SHARES[:, :2]),
        {},
        ValueError,
        r"target\[1\] has shape \(9, 2\), target\[0\] \(9, 4\): expected equal shapes",
    ),
    "remainder": (
        TARGET,
        {"remainder": "ignore"},
        ValueError,
        r"remainder is 'ignore': expected one of 'drop', 'spread'",
    ),
    "remainder of labels": (
        INDICES[:, 0],
        {"remainder": "spread"},
        ValueError,
        r"remainder is 'spread': expected 'drop', for the target is no pair",
    ),
    "ignore_index": (
        TARGET,
        {"ignore_index": 1},
        ValueError,
        r"ignore_index is 1, target lists classes: expected None",
    ),
    "margin": (TARGET, {"margin": 0.1}, ValueError, r"margin changes the logit of one label, target lists classes"),
    "class weights": (
        TARGET,
        {"remainder": "spread", "class_weights": np.ones(CLASSES)},
        ValueError,
        r"class_weights is given, remainder is 'spread'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    target, options, kind, message = ERRORS[name]
    for function in (jaxloss.categorical_cross_entropy, jaxloss.d_categorical_cross_entropy):
        with pytest.raises(kind, match=message):
            function(X, target, **options)
    if not options.keys() & {"ignore_index", "margin", "class_weights"} and name != "remainder of labels":
        with pytest.raises(kind, match=message):
            jaxloss.kl_divergence(X, target, **options)


def test_errors_of_other_functions():
    with pytest.raises(ValueError, match="target_type is 'logits', target lists classes"):
        jaxloss.kl_divergence(X, TARGET, target_type="logits")
    with pytest.raises(ValueError, match="target lists classes, of which there are no statistics"):
        jaxloss.categorical_cross_entropy_with_stats(X, TARGET)
    with pytest.raises(ValueError, match=r"labels has shape \(4, 4\), logits \(9, 11\): expected \(9, K\)"):
        jaxloss.log_prob(X, INDICES[:4])


def test_debug_checks():
    wrong = np.where(np.arange(ROWS)[:, None] == 6, CLASSES + 2, INDICES)
    with (
        pytest.raises(ValueError, match=r"target\[0\] of row 6, 1 is 13: expected a class index from 0 to 10"),
        jaxloss.debug_checks(),
    ):
        jaxloss.categorical_cross_entropy(np.where(np.isneginf(X), -3, X), (wrong, SHARES))
    with (
        pytest.raises(ValueError, match=r"the sum of target\[1\] of row 0 is .*: expected at most 1"),
        jaxloss.debug_checks(),
    ):
        jaxloss.kl_divergence(X, (INDICES, 9 * SHARES))
    with jaxloss.debug_checks():
        jaxloss.categorical_cross_entropy(X, TARGET)
