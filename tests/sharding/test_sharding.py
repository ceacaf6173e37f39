"""Losses × placements × programs on a mesh: values agree, gradients stay where their operands are, nothing is gathered.

What may travel between devices is numbers of one a row. The compiled module is read to see that.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import meshes
import tolerance
from losses import CATEGORICAL, MATRIX, WithEverything
from modules import collectives
from quickly import jit_quickly

pytestmark = meshes.several_devices

P = PartitionSpec
ROWS, FEATURES, BATCH = 16, 64, 2
PLACEMENTS = {
    "replicated": P(None, None),
    "rows": P("d", None),
    "rows_over_two_axes": P(("d", "v"), None),
    "features": P(None, "v"),
    "features_over_two_axes": P(None, ("d", "v")),
    "both": P("d", "v"),
}
HIGHER_ORDER = ("hvp",)


def dot(a, b):
    return jnp.sum(a * b)


# Of a scalar loss f, a prediction, a target and a tangent; the last two of a stack of predictions.
PROGRAMS = {
    "value": lambda f, x, a, v: f(x, a),
    "value_and_grad": lambda f, x, a, v: jax.value_and_grad(f)(x, a),
    "jvp": lambda f, x, a, v: jax.jvp(lambda x: f(x, a), (x,), (v,)),
    "hvp": lambda f, x, a, v: jax.grad(lambda x: dot(jax.grad(f)(x, a), v))(x),
    "checkpoint": lambda f, x, a, v: jax.grad(jax.checkpoint(lambda x: f(jnp.sin(x), a)))(x),
}
STACKED_PROGRAMS = {
    "vmap_grad": lambda f, xs, a: jax.vmap(jax.grad(f), (0, None))(xs, a),
    "scan": lambda f, xs, a: jax.grad(
        lambda xs: jax.lax.scan(lambda s, x: (s + f(x, a), None), jnp.zeros((), float), xs)[0]
    )(xs),
}


def weighing(losses):
    """Unreduced losses are added up with different weights."""
    size = losses.shape[0]
    return jnp.cos(jnp.arange(size, dtype=losses.dtype)).reshape(size, *(1,) * (losses.ndim - 1))


def scalar(loss, reduction, **options):
    if reduction != "none":
        return lambda x, a: loss(x, a, reduction=reduction, **options)

    def contracted(x, a):
        losses = loss(x, a, reduction="none", **options)
        return jnp.sum(losses * weighing(losses))

    return contracted


def assert_only_rows_travel(compiled, rows=ROWS * BATCH, weights_of_classes=0):
    """Weights of classes that are constants of the program XLA may split for one use, and gather for another."""
    for kind, size in collectives(compiled):
        if kind == "all-gather" and size <= weights_of_classes:
            continue
        assert kind == "all-reduce", f"there is an {kind} of {size} numbers"
        assert size <= rows, f"an all-reduce of {size} numbers"


def exactly(program, case, reduction, *operands):
    """What the program makes of the formula, in float64 on one device, a CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        operands = [t if t.dtype.kind == "i" else t.astype(np.float64) for t in operands]
        run = jit_quickly(lambda *o: program(scalar(case.formula, reduction), *o))
        return jax.tree.map(np.asarray, run(*operands))


def assert_agree(actual, expected, name, reduction="mean"):
    operations = tolerance.OPERATIONS_OF_HIGHER_ORDER if name in HIGHER_ORDER else tolerance.OPERATIONS
    magnitude = 1 / ROWS if reduction == "mean" else 1
    for ours, exact in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        terms = ROWS * FEATURES  # of a scalar; of a gradient there are at most as many
        tolerance.assert_close(ours, exact, name, operations=operations, terms=terms, magnitude=magnitude)


def run_sharded(program, case, reduction, mesh, specs, operands):
    """The results on the mesh, having looked at the module."""
    with jax.set_mesh(mesh):
        placed = [jax.device_put(t, NamedSharding(mesh, spec)) for t, spec in zip(operands, specs, strict=True)]
        compiled = (
            jit_quickly(lambda *operands: program(scalar(case.loss, reduction), *operands)).lower(*placed).compile()
        )
        has_weights = isinstance(case.loss, WithEverything)
        assert_only_rows_travel(compiled, weights_of_classes=FEATURES if has_weights else 0)
        return compiled(*placed), placed


@functools.cache
def sample(case, seed=0):
    return case.sample((ROWS, FEATURES), seed=seed, scale=1)


@functools.cache
def expected_of(name, case, reduction):
    """The same for every placement."""
    (x, a), (v, _) = sample(case), sample(case, 1)
    if name in PROGRAMS:
        return exactly(PROGRAMS[name], case, reduction, x, a, v)
    return exactly(STACKED_PROGRAMS[name], case, reduction, np.stack([x, v]), a)


# Every program with the mean loss, and the gradient with every reduction.
CELLS = [(name, "mean") for name in PROGRAMS] + [("value_and_grad", "sum"), ("value_and_grad", "none")]


@meshes.AXIS_TYPES
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("name", "reduction"), CELLS)
@pytest.mark.parametrize("case", MATRIX)
def test_placements(case, name, reduction, placement, axis_type):
    (x, a), (v, _) = sample(case), sample(case, 1)
    spec = PLACEMENTS[placement]
    specs = (spec, P(*spec[: a.ndim]), spec)
    mesh = meshes.mesh(axis_type, meshes.axes_of(spec))
    results, placed = run_sharded(PROGRAMS[name], case, reduction, mesh, specs, (x, a, v))
    assert_agree(results, expected_of(name, case, reduction), name, reduction)
    for leaf in jax.tree.leaves(results):
        if leaf.shape == x.shape:
            assert leaf.sharding.is_equivalent_to(placed[0].sharding, x.ndim), leaf.sharding


@meshes.AXIS_TYPES
@pytest.mark.parametrize("placement", ["rows", "features", "both"])
@pytest.mark.parametrize("name", STACKED_PROGRAMS)
@pytest.mark.parametrize("case", MATRIX)
def test_placements_of_a_stack(case, name, placement, axis_type):
    (x, a), (y, _) = sample(case), sample(case, 1)
    spec, xs = PLACEMENTS[placement], np.stack([x, y])
    specs = (P(None, *spec), P(*spec[: a.ndim]))
    mesh = meshes.mesh(axis_type, meshes.axes_of(spec))
    results, placed = run_sharded(STACKED_PROGRAMS[name], case, "mean", mesh, specs, (xs, a))
    assert_agree(results, expected_of(name, case, "mean"), name)
    assert results.sharding.is_equivalent_to(placed[0].sharding, xs.ndim)


def gradient_of_both(f, x, a):
    return jax.value_and_grad(f, (0, 1))(x, a)


@functools.cache
def exact_gradient_of_both(case):
    return exactly(gradient_of_both, case, "mean", *sample(case))


@meshes.AXIS_TYPES
@pytest.mark.parametrize("placement", ["rows", "features", "both"])
@pytest.mark.parametrize("case", [case for case in MATRIX if case.of_target])
def test_gradient_of_both_operands(case, placement, axis_type):
    x, a = sample(case)
    spec = PLACEMENTS[placement]
    mesh = meshes.mesh(axis_type, meshes.axes_of(spec))
    results, placed = run_sharded(gradient_of_both, case, "mean", mesh, (spec, spec), (x, a))
    assert_agree(results, exact_gradient_of_both(case), "gradients")
    for gradient, operand in zip(results[1], placed, strict=True):
        assert gradient.sharding.is_equivalent_to(operand.sharding, 2)


@meshes.AXIS_TYPES
@pytest.mark.parametrize("placement", ["rows", "rows_over_two_axes", "features", "both"])
@pytest.mark.parametrize("case", MATRIX)
def test_masks_and_weights_split_like_the_rows(case, placement, axis_type):
    x, a = case.sample((ROWS, FEATURES))
    where = np.arange(ROWS) % 3 > 0
    weights = np.linspace(0.5, 2, ROWS, dtype=np.float32)
    spec = PLACEMENTS[placement]
    mesh = meshes.mesh(axis_type, meshes.axes_of(spec))
    expected = case.expected(x, a, where=where, weights=weights)

    def loss(x, a, where, weights):
        return case.loss(x, a, where=where, weights=weights)

    with jax.set_mesh(mesh):
        specs = (spec, P(*spec[: a.ndim]), P(spec[0]), P(spec[0]))
        operands = [
            jax.device_put(t, NamedSharding(mesh, s)) for t, s in zip((x, a, where, weights), specs, strict=True)
        ]
        compiled = jit_quickly(jax.value_and_grad(loss, (0, 3))).lower(*operands).compile()
        assert_only_rows_travel(compiled)
        value, (of_prediction, of_weights) = compiled(*operands)
    for actual, exact in (
        (value, expected.value),
        (of_prediction, expected.of_prediction),
        (of_weights, expected.of_weights),
    ):
        error = tolerance.bound(*exact, computed=np.float32, stored=np.float32, terms=x.size)
        tolerance.assert_within(actual, exact[0], error, "a result on a mesh")


@meshes.AXIS_TYPES
@pytest.mark.parametrize("case", [case for case in MATRIX if case.target == "indices"])
def test_classes_that_are_split_cost_two_exchanges(case, axis_type):
    """The maximum, and then all that the losses are made of; smoothing counts every class, once the sum is known."""
    mesh = meshes.mesh(axis_type, ("v",))
    x, a = sample(case)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(t, NamedSharding(mesh, spec)) for t, spec in ((x, P(None, "v")), (a, P()))]
        compiled = jit_quickly(jax.value_and_grad(case.loss)).lower(*placed).compile()
    found = [size for _, size in collectives(compiled)]
    assert found == [ROWS] * (2 if case.loss is CATEGORICAL else 3)


@pytest.mark.parametrize(("rows", "features"), [(10, 64), (16, 30), (3, 7)])
@pytest.mark.parametrize("placement", ["rows", "rows_over_two_axes", "features", "both"])
@pytest.mark.parametrize("case", MATRIX)
def test_sizes_that_do_not_divide_the_mesh(case, placement, rows, features):
    x, a = case.sample((rows, features))
    spec = PLACEMENTS[placement]
    placed = NamedSharding(meshes.mesh(AxisType.Auto, meshes.axes_of(spec)), spec)

    @jit_quickly
    def value_and_grad(x, a):
        return jax.value_and_grad(case.loss)(jax.lax.with_sharding_constraint(x + 0, placed), a)

    expected = case.expected(x, a)
    for actual, exact in zip(value_and_grad(x, a), (expected.value, expected.of_prediction), strict=True):
        error = tolerance.bound(*exact, computed=np.float32, stored=np.float32, terms=x.size)
        tolerance.assert_within(actual, exact[0], error, "a result of uneven shards")


@meshes.AXIS_TYPES
@pytest.mark.parametrize("placement", ["rows", "features"])
@pytest.mark.parametrize("case", MATRIX)
def test_float64_of_a_block_of_a_program(case, placement, axis_type):
    """The partitioner works in threads that do not know of `jax.enable_x64`."""
    spec = PLACEMENTS[placement]
    x, a = sample(case)
    with jax.enable_x64(True), jax.set_mesh(meshes.mesh(axis_type, meshes.axes_of(spec))):
        a = a if a.dtype.kind == "i" else a.astype(np.float64)
        placed = jax.device_put(x.astype(np.float64), NamedSharding(jax.sharding.get_mesh(), spec))
        found = jit_quickly(jax.value_and_grad(case.loss))(placed, a)
    expected = exactly(PROGRAMS["value_and_grad"], case, "mean", x, a, x)
    for actual, exact in zip(found, expected, strict=True):
        assert actual.dtype == np.float64
        tolerance.assert_close(actual, exact, "the result", computed=np.float64, terms=x.size)
