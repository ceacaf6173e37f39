"""Losses × reductions × targets × transforms: every cell agrees with the plain formula, transformed alike in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tolerance
from losses import CASES, MATRIX, Distillation, Sum
from quickly import jit_quickly
from transforms import HIGHER_ORDER, TRANSFORMS, TRANSFORMS_OF_TARGET, Operands

SHAPE = (5, 6)


def operands(case, dtype="float32") -> Operands:
    """Predictions so small that no clip is reached: the formula that they are compared with has none."""
    samples = [case.sample(SHAPE, dtype, seed=seed, scale=1) for seed in range(3)]
    (x, a), (v, w), (y, b) = samples
    return Operands(x, a, v, w if case.of_target else a, np.stack([x, y]), np.stack([a, b]))


def scalar(loss, reduction):
    """The loss as a function to a scalar: unreduced losses are added up with different weights."""
    if reduction != "none":
        return lambda x, a: loss(x, a, reduction=reduction)

    def contracted(x, a):
        losses = loss(x, a, reduction="none")
        return jnp.sum(losses * jnp.cos(jnp.arange(losses.size)).reshape(losses.shape).astype(losses.dtype))

    return contracted


def of_each(transform, loss, reductions, o):
    """What the transform makes of the loss with each reduction: they are compiled together, which is quicker."""
    return {reduction: transform(scalar(loss, reduction), o) for reduction in reductions}


def exactly(program, o):
    """What the program makes of these operands, in float64 and on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact = jax.tree.map(lambda t: t if t.dtype.kind == "i" else t.astype(np.float64), o)
        return jax.tree.map(np.asarray, jit_quickly(program)(exact))


def assert_agree(actual, case, transform, o, name, computed=None):
    """That these results of `of_each` are what the transformed formula gives.

    `computed` is the type that each reduction was computed in, float32 if None.
    """
    expected = exactly(lambda o: of_each(transform, case.formula, list(actual), o), o)
    assert_all_close(actual, expected, name, computed)


def assert_all_close(actual, expected, name, computed=None):
    """That results of `of_each` are these, of the transform of that name.

    Operands and tangents are about 1, so terms are about 1, or 1/n in a mean; their sum may cancel to less.
    """
    operations = tolerance.OPERATIONS_OF_HIGHER_ORDER if name in HIGHER_ORDER else tolerance.OPERATIONS
    for reduction, results in actual.items():
        magnitude, terms = 1 / SHAPE[0] if reduction == "mean" else 1, SHAPE[0] * SHAPE[1]
        assert jax.tree.structure(results) == jax.tree.structure(expected[reduction])
        for ours, exact in zip(jax.tree.leaves(results), jax.tree.leaves(expected[reduction]), strict=True):
            tolerance.assert_close(
                ours,
                exact,
                f"{name} of the loss with reduction {reduction!r}",
                computed=computed[reduction] if computed else np.float32,
                operations=operations,
                terms=terms,
                magnitude=magnitude,
            )


PARTS = 8
"""Every eighth transform is in one program, which takes two thirds of the time that one for each takes."""

CELLS = [
    pytest.param(case, part, reductions, id=f"{case}-{part}-{'-'.join(reductions)}")
    for case in MATRIX
    for part in range(PARTS)
    for reductions in (("mean", "none"), ("sum",))  # a sum is a mean with another weight: of the founding losses alone
    if case in CASES or reductions != ("sum",)
]


@pytest.mark.parametrize(("case", "part", "reductions"), CELLS)
def test_jitted(case, part, reductions):
    of_case = TRANSFORMS | (TRANSFORMS_OF_TARGET if case.of_target else {})
    transforms, o = dict(list(of_case.items())[part::PARTS]), operands(case)

    def of_all(loss):
        return lambda o: {name: of_each(transform, loss, reductions, o) for name, transform in transforms.items()}

    actual, expected = jit_quickly(of_all(case.loss))(o), exactly(of_all(case.formula), o)
    for name in transforms:
        assert_all_close(actual[name], expected[name], name)


EAGER = ("value", "value_and_grad", "vmap_grad", "per_example", "jvp", "linearize", "forward_over_reverse")


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("case", MATRIX)
def test_eager(case, name):
    actual = of_each(TRANSFORMS[name], case.loss, ("mean", "none"), jax.tree.map(jnp.asarray, operands(case)))
    assert_agree(actual, case, TRANSFORMS[name], operands(case), name)


# Those that do not round in between: what they are given and what they return is all that a 16-bit type holds.
OF_EVERY_TYPE = ("value_and_grad", "vmap_grad", "jvp", "forward_over_reverse", "map")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("name", OF_EVERY_TYPE)
@pytest.mark.parametrize(
    "case", [case for case in MATRIX if not isinstance(case.loss, Distillation | Sum)]
)  # each term is rounded
def test_types(case, name, dtype):
    transform, o = TRANSFORMS[name], operands(case, dtype)
    with jax.enable_x64(dtype == "float64"):
        actual = jax.jit(lambda o: of_each(transform, case.loss, ("mean", "none"), o))(o)
        actual = jax.tree.map(np.asarray, actual)
    gradients = [leaf for leaf in jax.tree.leaves(actual) if leaf.shape[-2:] == SHAPE]
    assert all(gradient.dtype == dtype for gradient in gradients)
    # The tangent of a reduced loss is the product with a gradient that has the type of the prediction.
    computed = {
        reduction: dtype if name == "jvp" and reduction == "mean" else tolerance.arithmetic(dtype)
        for reduction in actual
    }
    assert_agree(actual, case, transform, o, name, computed)


def with_options(loss):
    """A loss as a function of prediction, target, weights and normalizer."""
    where = np.array([True, True, False, True, True])

    def of(x, a, weights, normalizer):
        return loss(x, a, weights=weights, where=where, normalizer=normalizer)

    return of


OPTION_TRANSFORMS = {
    "grad": lambda f, o: jax.grad(f, (2, 3))(*o),
    "jvp": lambda f, o: jax.jvp(lambda *live: f(*o[:2], *live), o[2:], (o[2] + 1, o[3] * 2)),
    "mixed": lambda f, o: jax.jacrev(jax.grad(f), (2, 3))(*o),
    "mixed_over_": lambda f, o: jax.jacfwd(jax.grad(f, 3), (0, 2))(*o),
    "vmap_of_weights": lambda f, o: jax.vmap(jax.grad(f, (0, 2)), (None, None, 0, None))(
        *o[:2], jnp.stack([o[2], -o[2]]), o[3]
    ),
    "vmap_of_normalizer": lambda f, o: jax.vmap(jax.grad(f, (0, 3)), (None, None, None, 0))(
        *o[:3], jnp.stack([o[3], -o[3]])
    ),
    "vmap_of_all": lambda f, o: jax.vmap(jax.value_and_grad(f, (0, 2, 3)))(*(jnp.stack([t, t]) for t in o)),
}


@pytest.mark.parametrize("name", OPTION_TRANSFORMS)
@pytest.mark.parametrize("case", MATRIX)
def test_weights_and_normalizer(case, name):
    x, a = case.sample(SHAPE, scale=1)
    o = (x, a, np.linspace(0.5, 2, SHAPE[0], dtype=np.float32), np.float32(3.5))

    def formula(x, a, weights, where, normalizer):
        spread = (lambda t: t) if case.loss.by_rows else (lambda t: t[:, None])
        return case.formula(x, a, weights=spread(weights), where=spread(where), normalizer=normalizer)

    actual = jit_quickly(lambda o: OPTION_TRANSFORMS[name](with_options(case.loss), o))(o)
    with jax.enable_x64(True):
        exact = tuple(t if t.dtype.kind == "i" else np.float64(t) for t in o)
        run = jit_quickly(lambda o: OPTION_TRANSFORMS[name](with_options(formula), o))
        expected = jax.tree.map(np.asarray, run(exact))
    for ours, ideal in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        tolerance.assert_close(ours, ideal, name, operations=tolerance.OPERATIONS_OF_HIGHER_ORDER)


@pytest.mark.parametrize("case", MATRIX)
def test_vmap_of_a_mask(case):
    x, a = case.sample(SHAPE)
    masks = np.array([[True] * 5, [False] * 5, [True, False, True, False, True]])
    values, gradients = jax.vmap(lambda where: jax.value_and_grad(case.loss)(x, a, where=where))(masks)
    for where, value, gradient in zip(masks, values, gradients, strict=True):
        expected = case.expected(x, a, where=where)
        for actual, exact in ((value, expected.value), (gradient, expected.of_prediction)):
            error = tolerance.bound(*exact, computed=np.float32, stored=np.float32, terms=x.size)
            tolerance.assert_within(actual, exact[0], error, "a batched mask")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", CASES)
def test_a_scan_saves_nothing_wider_than_its_logits(case, reduction):
    """Of 16-bit logits, 16-bit arrays: no float32 softmax or gradient of every step waits for the backward pass."""
    steps, shape = 7, (16, 64)
    x, a = case.sample(shape, "bfloat16")

    def total(xs):
        def step(sum_so_far, x):
            return sum_so_far + case.loss(x, a, reduction=reduction).sum(), None

        return jax.lax.scan(step, jnp.zeros(()), xs)[0]

    program = str(jax.make_jaxpr(jax.grad(total))(np.stack([x] * steps)))
    assert f"bf16[{steps},16,64]" in program
    assert f"f32[{steps},16,64]" not in program
