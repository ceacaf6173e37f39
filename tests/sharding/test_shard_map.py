"""Losses inside shard_map, where a device sees its own rows only: gradients inside and outside it, the local and global n."""

import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import meshes
from losses import MATRIX
from quickly import jit_quickly
from test_sharding import PROGRAMS, ROWS, assert_agree, assert_only_rows_travel, exactly, scalar

pytestmark = meshes.several_devices

P = PartitionSpec
FEATURES = 24
SPLITS = {"one_axis": "d", "two_axes": ("d", "v")}

splits = pytest.mark.parametrize("split", SPLITS)
cases = pytest.mark.parametrize("case", MATRIX)


def sample(case):
    return case.sample((ROWS, FEATURES), scale=1)


@functools.cache
def exact_value_and_grad(case):
    """Of the mean: the same however it is split."""
    return exactly(lambda f, x, a: jax.value_and_grad(f)(x, a), case, "mean", *sample(case))


@meshes.AXIS_TYPES
@pytest.mark.parametrize("reduction", ["mean", "none"])
@splits
@cases
def test_gradient_inside(case, split, reduction, axis_type):
    axes = SPLITS[split]
    x, a = sample(case)
    mesh = meshes.mesh(axis_type)
    n = math.prod(mesh.shape[axis] for axis in meshes.axes_of(P(axes)))

    def loss(x, a):
        losses = case.loss(x, a, reduction=reduction)
        return losses if reduction == "mean" else losses.sum() / (ROWS // n)

    @jit_quickly
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(axes), P(axes)), out_specs=(P(), P(axes)))
    def value_and_grad(x, a):
        value, gradient = jax.value_and_grad(loss)(x, a)
        return jax.lax.pmean(value, axes), gradient / n

    x, a = (jax.device_put(t, NamedSharding(mesh, P(axes))) for t in (x, a))
    compiled = value_and_grad.lower(x, a).compile()
    assert_only_rows_travel(compiled)
    results = compiled(x, a)
    assert_agree(results, exact_value_and_grad(case), "gradient")
    assert results[1].sharding.is_equivalent_to(NamedSharding(mesh, P(axes)), 2)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@splits
@cases
def test_gradient_outside(case, split, reduction):
    axes = SPLITS[split]
    x, a = sample(case)

    def loss(x, a):
        if reduction == "mean":
            return jax.lax.pmean(case.loss(x, a), axes)
        return jax.lax.psum(case.loss(x, a, reduction="none").sum(), axes) / ROWS

    total = jax.shard_map(loss, mesh=meshes.mesh(), in_specs=(P(axes), P(axes)), out_specs=P())
    results = jit_quickly(jax.value_and_grad(total))(x, a)
    assert_agree(results, exact_value_and_grad(case), "gradient")


@pytest.mark.parametrize("name", PROGRAMS)
@splits
@cases
def test_programs_inside(case, split, name):
    """Each device runs the program on its rows: the sum over devices is the program on all of them."""
    axes = SPLITS[split]
    (x, a), (v, _) = sample(case), case.sample((ROWS, FEATURES), seed=1, scale=1)
    program = PROGRAMS[name]

    @jit_quickly
    def run(x, a, v):
        @functools.partial(jax.shard_map, mesh=meshes.mesh(), in_specs=P(axes), out_specs=out_specs)
        def on_rows(x, a, v):
            results = program(scalar(case.loss, "sum"), x, a, v)
            return jax.tree.map(lambda t: t if t.ndim else jax.lax.psum(t, axes), results)

        return on_rows(x, a, v)

    abstract = jax.eval_shape(lambda *o: program(scalar(case.loss, "sum"), *o), x, a, v)
    out_specs = jax.tree.map(lambda t: P(axes) if t.ndim else P(), abstract)
    assert_agree(run(x, a, v), exactly(program, case, "sum", x, a, v), name, "sum")


@cases
def test_rows_of_a_batch_inside(case):
    """vmap inside shard_map, and shard_map inside vmap."""
    (x, a), (y, b) = sample(case), case.sample((ROWS, FEATURES), seed=1, scale=1)
    xs, targets = np.stack([x, y]), np.stack([a, b])
    mesh = meshes.mesh()

    def summed(x, a):
        return case.loss(x, a, reduction="sum")

    inside = jax.shard_map(
        jax.vmap(jax.grad(summed)), mesh=mesh, in_specs=(P(None, "d"), P(None, "d")), out_specs=P(None, "d")
    )
    outside = jax.vmap(jax.shard_map(jax.grad(summed), mesh=mesh, in_specs=(P("d"), P("d")), out_specs=P("d")))
    expected = exactly(lambda f, xs, targets: jax.vmap(jax.grad(f))(xs, targets), case, "sum", xs, targets)
    assert_agree(jit_quickly(inside)(xs, targets), expected, "vmap inside", "sum")
    assert_agree(jit_quickly(outside)(xs, targets), expected, "vmap outside", "sum")


@cases
def test_a_replicated_target(case):
    """Only the logits vary over devices: the types of a kernel's operands need not."""
    x, a = sample(case)
    mesh = meshes.mesh()
    devices = mesh.shape["d"]
    rows = ROWS // devices
    total = jax.shard_map(
        lambda x, a: jax.lax.psum(case.loss(x, a, reduction="sum"), "d"),
        mesh=mesh,
        in_specs=(P("d"), P()),
        out_specs=P(),
    )
    value, gradient = jit_quickly(jax.value_and_grad(total))(x, a[:rows])
    repeated = np.concatenate([a[:rows]] * devices)
    expected = exactly(lambda f, x, a: jax.value_and_grad(f)(x, a), case, "sum", x, repeated)
    assert_agree((value, gradient), expected, "a replicated target", "sum")


@cases
def test_n_is_the_local_batch_and_normalizer_makes_it_global(case):
    x, a = sample(case)
    mesh = meshes.mesh()
    devices = mesh.shape["d"]
    where = np.arange(ROWS) < 5  # of four, the devices hold 4, 1, 0 and 0 rows that count

    @jit_quickly
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("d"), P("d"), P("d")), out_specs=(P("d"), P()))
    def local_and_global(x, a, where):
        local = case.loss(x, a, where=where)
        n = jax.lax.psum(where.sum(), "d")
        return local[None], jax.lax.psum(case.loss(x, a, where=where, normalizer=n), "d")

    local, total = local_and_global(x, a, where)
    rows = ROWS // devices
    for device in range(devices):
        own = slice(device * rows, (device + 1) * rows)
        assert_agree(local[device], case.expected(x[own], a[own], where=where[own]).value[0], "a local mean")
    assert_agree(total, case.expected(x, a, where=where).value[0], "the global mean")


@cases
def test_operands_that_every_device_holds(case):
    """The gradient of an operand that is the same everywhere is the sum of what the devices find."""
    x, a = sample(case)
    mesh = meshes.mesh()
    devices = mesh.shape["d"]
    rows = ROWS // devices

    def total(in_specs):
        def loss(x, a, weight, normalizer):
            return jax.lax.psum(case.loss(x, a, weights=weight, normalizer=normalizer), "d")

        return jax.shard_map(loss, mesh=mesh, in_specs=in_specs, out_specs=P())

    options = (np.float32(1.5), np.float32(2.5))
    split, everywhere = P("d"), P()
    gradients = jit_quickly(jax.grad(total((split, split, everywhere, everywhere)), (2, 3)))(x, a, *options)
    expected = case.expected(x, a, weights=options[0], normalizer=options[1])
    assert_agree(gradients, (expected.of_weights[0], expected.of_normalizer[0]), "gradients of options")

    repeated = np.concatenate([x[:rows]] * devices)
    gradient = jit_quickly(jax.grad(total((everywhere, split, everywhere, everywhere))))(x[:rows], a, *options)
    expected = case.expected(repeated, a, weights=options[0], normalizer=options[1])
    assert_agree(
        gradient, expected.of_prediction[0].reshape(devices, rows, FEATURES).sum(0), "the gradient of a prediction"
    )

    if case.of_target:
        repeated = np.concatenate([a[:rows]] * devices)
        gradient = jit_quickly(jax.grad(total((split, everywhere, everywhere, everywhere)), 1))(x, a[:rows], *options)
        expected = case.expected(x, repeated, weights=options[0], normalizer=options[1])
        assert_agree(
            gradient, expected.of_target[0].reshape(devices, rows, FEATURES).sum(0), "the gradient of a target"
        )
