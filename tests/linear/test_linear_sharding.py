"""Linear cross entropy on a mesh: values, where gradients lie, and what the devices communicate.

The kernel is gathered once and its gradient reduced once, however many chunks there are; where the classes are split, a
chunk costs exchanges of one number a token, and the gradient of the hidden states is reduced once.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxloss
import meshes
import tolerance
from linear_oracle import expected, sample
from meshes import AXIS_TYPES
from modules import exchanged, temporary_bytes
from quickly import jit_quickly

pytestmark = meshes.several_devices

P = PartitionSpec
SEQUENCES, LENGTH, WIDTH, CLASSES, CHUNK = 8, 12, 16, 32, 4
N = SEQUENCES * LENGTH
S = sample((SEQUENCES, LENGTH), WIDTH, CLASSES)
KERNEL = WIDTH * CLASSES

# How hidden states and kernel are placed.
PLACEMENTS = {
    "replicated": (P(), P()),
    "batch": (P("d"), P()),
    "batch over both": (P(("d", "v")), P()),
    "fsdp": (P("d"), P("d", None)),
    "fsdp over classes": (P("d"), P(None, "d")),
    "fsdp over both": (P(("d", "v")), P(("d", "v"), None)),
    "classes": (P(), P(None, "v")),
    "batch and classes": (P("d"), P(None, "v")),
    "fsdp and classes": (P("d"), P("d", "v")),
}


def exchanges_of(placement, d, v) -> collections.Counter:
    """What d × v devices exchange, by kind and size: once a step, and of each chunk five numbers a token."""
    both = d * v
    once = {
        "replicated": [],
        "batch": [("all-reduce", KERNEL, d)],
        "batch over both": [("all-reduce", KERNEL, both)],
        "fsdp": [("all-gather", KERNEL, d), ("reduce-scatter", KERNEL // d, d)],
        "fsdp over classes": [("all-gather", KERNEL, d), ("reduce-scatter", KERNEL // d, d)],
        "fsdp over both": [("all-gather", KERNEL, both), ("reduce-scatter", KERNEL // both, both)],
        "classes": [("all-reduce", N * WIDTH, v)],
        "batch and classes": [("all-reduce", N * WIDTH // d, v), ("all-reduce", KERNEL // v, d)],
        "fsdp and classes": [
            ("all-gather", KERNEL // v, d),
            ("all-reduce", N * WIDTH // d, v),
            ("reduce-scatter", KERNEL // both, d),
        ],
    }
    found = collections.Counter((kind, size) for kind, size, devices in once[placement] if devices > 1)
    if "classes" in placement and "fsdp over" not in placement and v > 1:
        tokens = N if placement == "classes" else N // d
        found["all-reduce", CHUNK] = 5 * tokens // CHUNK
    return found


def mesh_of(axis_type, placement):
    return meshes.mesh(axis_type, meshes.axes_of(*PLACEMENTS[placement]))


def placed(mesh, hidden_spec, kernel_spec):
    operands = {
        "hidden": (S.hidden, hidden_spec),
        "kernel": (S.kernel, kernel_spec),
        "labels": (S.labels, P(*hidden_spec[:1])),
    }
    return [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in operands.values()]


def check(actual, exact, what):
    error = tolerance.bound(*exact, computed=np.float32, stored=np.float32, terms=N * CLASSES)
    tolerance.assert_within(actual, exact[0], error, what)


@AXIS_TYPES
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placements(placement, axis_type):
    mesh, exact = mesh_of(axis_type, placement), expected(S, 1 / N, with_bias=False)

    def loss(hidden, kernel, labels):
        return jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=CHUNK)

    with jax.set_mesh(mesh):
        operands = placed(mesh, *PLACEMENTS[placement])
        compiled = jit_quickly(jax.value_and_grad(loss, (0, 1))).lower(*operands).compile()
        value, gradients = compiled(*operands)
    check(value, (exact.losses[0].mean(), exact.losses[1].mean()), "value")
    for gradient, of, operand in zip(gradients, (exact.of_hidden, exact.of_kernel), operands, strict=False):
        check(gradient, of, "gradient")
        assert gradient.sharding.is_equivalent_to(operand.sharding, operand.ndim), gradient.sharding
    assert exchanged(compiled) == exchanges_of(placement, *mesh.devices.shape)


@AXIS_TYPES
@pytest.mark.parametrize("placement", ["fsdp", "fsdp and classes"])
def test_the_gradient_of_hidden_states_alone(placement, axis_type):
    """Of unreduced losses, whose cotangents are not known."""
    mesh, exact = mesh_of(axis_type, placement), expected(S, np.cos(S.labels), with_bias=False)

    def loss(hidden, kernel, labels):
        losses = jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=CHUNK, reduction="none")
        return jnp.sum(losses * jnp.cos(labels))

    with jax.set_mesh(mesh):
        operands = placed(mesh, *PLACEMENTS[placement])
        compiled = jit_quickly(jax.grad(loss)).lower(*operands).compile()
        gradient = compiled(*operands)
    check(gradient, exact.of_hidden, "gradient")
    assert gradient.sharding.is_equivalent_to(operands[0].sharding, 3)
    kinds = {kind for kind, _ in exchanged(compiled)}
    assert "reduce-scatter" not in kinds  # the kernel's gradient is not made


@AXIS_TYPES
@pytest.mark.parametrize("placement", ["batch", "fsdp and classes"])
@pytest.mark.parametrize("program", ["both, unreduced", "hvp", "options", "vmap", "statistics"])
def test_programs(program, placement, axis_type):
    mesh = mesh_of(axis_type, placement)

    def loss(hidden, kernel, labels, formula):
        if formula:
            losses = -jnp.take_along_axis(jax.nn.log_softmax(hidden @ kernel), labels[..., None], -1)[..., 0]
            return losses.mean() if program in ("hvp", "vmap") else jnp.sum(losses * jnp.cos(labels))
        reduction = "mean" if program in ("hvp", "vmap") else "none"
        losses = jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=CHUNK, reduction=reduction)
        return losses if reduction == "mean" else jnp.sum(losses * jnp.cos(labels))

    def with_options(hidden, kernel, labels, formula):
        if formula:
            z = 5 * jnp.tanh(hidden @ kernel / 5)
            losses = -jnp.take_along_axis(jax.nn.log_softmax(z), labels[..., None], -1)[..., 0]
            return (losses + 0.1 * jax.nn.logsumexp(z, axis=-1) ** 2).mean()
        return jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=CHUNK, softcap=5.0, z_loss=0.1)

    def of_statistics(hidden, kernel, labels, formula):
        if formula:
            return loss(hidden, kernel, labels, True) * 0 + jnp.mean(jax.nn.logsumexp(hidden @ kernel, axis=-1) ** 2)
        return jnp.mean(jaxloss.linear_cross_entropy_with_stats(hidden, kernel, labels, chunk_size=CHUNK)[1].lse ** 2)

    def run(formula, hidden, kernel, labels):
        of = {"options": with_options, "statistics": of_statistics}.get(program, loss)
        f = lambda h, w: of(h, w, labels, formula)  # noqa: E731
        if program == "hvp":
            return jax.jvp(jax.grad(f, (0, 1)), (hidden, kernel), (hidden, kernel))[1]
        if program == "vmap":
            return jax.vmap(jax.grad(f, (0, 1)), (None, 0))(hidden, jnp.stack([kernel, 2 * kernel]))
        return jax.grad(f, (0, 1))(hidden, kernel)

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = S.hidden.astype(np.float64), S.kernel.astype(np.float64), S.labels
        exact = jax.tree.map(np.asarray, jit_quickly(run, static_argnums=0)(True, *wide))
    with jax.set_mesh(mesh):
        operands = placed(mesh, *PLACEMENTS[placement])
        results = jit_quickly(run, static_argnums=0)(False, *operands)
    for actual, ideal in zip(results, exact, strict=True):
        tolerance.assert_close(actual, ideal, program, operations=64, terms=N * CLASSES, magnitude=1)


@pytest.mark.parametrize("masked", [False, True])
def test_inside_shard_map(masked):
    """Tokens split by the caller; the kernel is every device's, so its gradient is the sum of theirs, made once."""
    mesh = meshes.mesh()
    keep = np.arange(N).reshape(SEQUENCES, LENGTH) % 5 > 0 if masked else np.ones((SEQUENCES, LENGTH), bool)
    keep[:2] = not masked
    exact = expected(S, 1 / N, keep, with_bias=False)

    def loss(hidden, kernel, labels, keep):
        def local(hidden, kernel, labels, keep):
            where = keep if masked else None
            share = jaxloss.linear_cross_entropy(
                hidden, kernel, labels, where=where, normalizer=float(N), chunk_size=CHUNK
            )
            return jax.lax.psum(share, ("d", "v"))

        spec = P(("d", "v"))
        return jax.shard_map(local, mesh=mesh, in_specs=(spec, P(), spec, spec), out_specs=P())(
            hidden, kernel, labels, keep
        )

    compiled = jit_quickly(jax.value_and_grad(loss, (0, 1))).lower(S.hidden, S.kernel, S.labels, keep).compile()
    value, gradients = compiled(S.hidden, S.kernel, S.labels, keep)
    check(value, (exact.losses[0].sum() / N, exact.losses[1].mean()), "value")
    for gradient, of in zip(gradients, (exact.of_hidden, exact.of_kernel), strict=True):
        check(gradient, of, "gradient")
    assert exchanged(compiled) == {("all-reduce", KERNEL): 1}


OPTIONS = {"softcap": 5.0, "label_smoothing": 0.1}


@pytest.mark.parametrize(("program", "options"), [("grad", {}), ("rows", {}), ("hvp", {}), ("grad", OPTIONS)])
def test_axis_name(program, options):
    """Classes split by the caller, and tokens too."""
    mesh, weights = meshes.mesh(), np.cos(np.arange(N)).reshape(SEQUENCES, LENGTH).astype(np.float32)

    def split(hidden, kernel):
        def local(hidden, kernel, labels, weights):
            reduction = "none" if program == "rows" else "sum"
            out = jaxloss.linear_cross_entropy(
                hidden, kernel, labels, axis_name="v", reduction=reduction, chunk_size=CHUNK, **options
            )
            return jax.lax.psum(jnp.sum(out * weights) if program == "rows" else out / N, "d")

        specs = (P("d"), P(None, "v"), P("d"), P("d"))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())(hidden, kernel, S.labels, weights)

    def whole(hidden, kernel):
        z = hidden @ kernel
        if options:
            z = 5 * jnp.tanh(z / 5)
        log_softmax = jax.nn.log_softmax(z)
        losses = -jnp.take_along_axis(log_softmax, S.labels[..., None], -1)[..., 0]
        if options:
            losses = 0.9 * losses - 0.1 * log_softmax.mean(-1)
        return jnp.sum(losses * weights) if program == "rows" else losses.mean()

    def run(f, hidden, kernel):
        if program == "hvp":
            return jax.jvp(jax.grad(f, (0, 1)), (hidden, kernel), (hidden, kernel))[1]
        return jax.grad(f, (0, 1))(hidden, kernel)

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact = jit_quickly(lambda *o: run(whole, *o))(S.hidden.astype(np.float64), S.kernel.astype(np.float64))
        exact = jax.tree.map(np.asarray, exact)
    compiled = jit_quickly(lambda *o: run(split, *o)).lower(S.hidden, S.kernel).compile()
    for actual, ideal in zip(compiled(S.hidden, S.kernel), exact, strict=True):
        tolerance.assert_close(actual, ideal, program, operations=64, terms=N * CLASSES, magnitude=1)
    if program != "hvp":
        found, (d, v) = exchanged(compiled), mesh.devices.shape
        assert {kind for kind, _ in found} == {"all-reduce"}
        whole = {N * WIDTH // d: v, KERNEL // v: d}  # gradients, by how many devices have a share of them
        assert all(found["all-reduce", size] == (devices > 1) for size, devices in whole.items())
        assert all(size <= 4 * CHUNK for _, size in found if size not in whole)  # of a chunk, a few numbers a token


def test_sizes_that_do_not_divide_the_mesh():
    s = sample((5, 3), WIDTH, 7)
    exact = expected(s, 1 / 15, with_bias=False)
    mesh = meshes.mesh()

    @jit_quickly
    def run(hidden, kernel):
        hidden = jax.lax.with_sharding_constraint(hidden + 0, NamedSharding(mesh, P("d")))
        kernel = jax.lax.with_sharding_constraint(kernel + 0, NamedSharding(mesh, P(None, "v")))
        return jax.grad(lambda *o: jaxloss.linear_cross_entropy(*o, s.labels, chunk_size=4), (0, 1))(hidden, kernel)

    for actual, of in zip(run(s.hidden, s.kernel), (exact.of_hidden, exact.of_kernel), strict=True):
        check(actual, of, "gradient")


def test_chunks_smaller_than_the_mesh_in_second_order():
    """There XLA's partitioner splits each chunk, which must have an equal share for every device."""
    mesh = meshes.mesh()

    def directional(hidden, kernel):
        def loss(hidden):
            return jaxloss.linear_cross_entropy(hidden, kernel, S.labels, chunk_size=2)

        return jax.jvp(jax.grad(loss), (hidden,), (jnp.cos(hidden),))[1]

    hidden = jax.device_put(S.hidden, NamedSharding(mesh, P("d")))
    kernel = jax.device_put(S.kernel, NamedSharding(mesh, P()))
    tolerance.assert_close(
        jit_quickly(directional)(hidden, kernel),
        jit_quickly(directional)(S.hidden, S.kernel),
        "a second derivative",
        operations=tolerance.OPERATIONS_OF_HIGHER_ORDER,
    )


@pytest.mark.cpu_only
def test_labels_are_read_before_the_gradient_takes_the_place_of_logits():
    """With a z-loss the gradient at labels is made apart; the logits of a chunk are not copied for that."""
    mesh = meshes.mesh(axes=("v",))
    tokens, chunk, classes = 64, 32, 4096

    def temporary(**options):
        def loss(hidden, kernel, labels):
            return jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=chunk, **options)

        with jax.set_mesh(mesh):
            given = [
                jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
                for shape, dtype, spec in (
                    ((tokens, WIDTH), np.float32, P()),
                    ((WIDTH, classes), np.float32, P(None, "v")),
                    ((tokens,), np.int32, P()),
                )
            ]
            compiled = jit_quickly(jax.value_and_grad(loss, (0, 1))).lower(*given).compile()
        return temporary_bytes(compiled)

    of_rows = 64 * tokens * 4  # some numbers of each token
    assert temporary(z_loss=1e-4) <= temporary() + of_rows < temporary() + chunk * classes // mesh.shape["v"] * 4


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)], ids=str)
def test_an_explicit_axis_of_one_device(shape):
    """It splits nothing, but types name it: losses are split by the names that the labels are."""
    mesh = jax.make_mesh(shape, ("d", "v"), axis_types=(AxisType.Explicit,) * 2, devices=meshes.available()[:2])
    random = np.random.default_rng(0)
    arrays = random.normal(size=(8, 4)), random.normal(size=(4, 16)), random.integers(0, 16, 8), np.arange(8) % 3 != 0
    arrays = [x.astype(np.float32) if x.dtype == np.float64 else x for x in arrays]

    def loss(hidden, kernel, labels, mask, **options):
        return jaxloss.linear_cross_entropy(hidden, kernel, labels, where=mask, **options)

    expected = jax.value_and_grad(loss, (0, 1))(*arrays)
    with jax.set_mesh(mesh):
        given = [jax.device_put(x, NamedSharding(mesh, P(("d", "v")))) for x in arrays]
        tolerance.assert_trees_close(jax.jit(jax.value_and_grad(loss, (0, 1)))(*given), expected, terms=64)
        losses = jax.jit(lambda *given: loss(*given, reduction="none"))(*given)
    assert jax.typeof(losses).sharding.spec == P(("d", "v"))
    tolerance.assert_trees_close(losses, loss(*arrays, reduction="none"), terms=64)
