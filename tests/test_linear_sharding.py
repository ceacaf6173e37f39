"""Linear cross entropy on eight devices: values, where gradients lie, and what the devices tell each other.

The kernel is gathered once and its gradient reduced once, however many chunks there are; where the classes are split, a
chunk costs exchanges of one number a token, and the gradient of the hidden states is reduced once.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxloss
import tolerance
from conftest import VIRTUAL_DEVICES
from linear_oracle import expected, sample

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.skipif(jax.device_count() < VIRTUAL_DEVICES, reason="jax was set up with fewer devices"),
]

P = PartitionSpec
SEQUENCES, LENGTH, WIDTH, CLASSES, CHUNK = 8, 12, 16, 32, 4
N = SEQUENCES * LENGTH
S = sample((SEQUENCES, LENGTH), WIDTH, CLASSES)
KERNEL = WIDTH * CLASSES

_INSTRUCTION = re.compile(r"= (.*?) (all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)(?:-start)?\(")


def mesh_of(axis_type):
    return jax.make_mesh((4, 2), ("d", "v"), axis_types=(axis_type,) * 2, devices=jax.devices("cpu"))


def exchanges(compiled) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The collectives once a step and those once a chunk, each with the size of its result; without scalars."""
    once, each, inside = [], [], True
    for line in compiled.as_text().splitlines():
        if line.startswith(("%", "ENTRY")):
            inside = not line.startswith("ENTRY")
        elif match := _INSTRUCTION.search(line):
            size = max(
                int(np.prod([int(d) for d in dims.split(",") if d])) for dims in re.findall(r"\[([\d,]*)\]", match[1])
            )
            if size > 1:
                (each if inside else once).append((match[2], size))
    return sorted(once), sorted(each)


# How hidden states and kernel are placed, and what is exchanged: once, and of each chunk (of so many kinds of numbers).
PLACEMENTS = {
    "replicated": (P(), P(), [], 0),
    "batch": (P("d"), P(), [("all-reduce", KERNEL)], 0),
    "batch over both": (P(("d", "v")), P(), [("all-reduce", KERNEL)], 0),
    "fsdp": (P("d"), P("d", None), [("all-gather", KERNEL), ("reduce-scatter", KERNEL // 4)], 0),
    "fsdp over classes": (P("d"), P(None, "d"), [("all-gather", KERNEL), ("reduce-scatter", KERNEL // 4)], 0),
    "fsdp over both": (
        P(("d", "v")),
        P(("d", "v"), None),
        [("all-gather", KERNEL), ("reduce-scatter", KERNEL // 8)],
        0,
    ),
    "classes": (P(), P(None, "v"), [("all-reduce", N * WIDTH)], 4),
    "batch and classes": (P("d"), P(None, "v"), [("all-reduce", N * WIDTH // 4), ("all-reduce", KERNEL // 2)], 4),
    "fsdp and classes": (
        P("d"),
        P("d", "v"),
        [("all-gather", KERNEL // 2), ("all-reduce", N * WIDTH // 4), ("reduce-scatter", KERNEL // 8)],
        4,
    ),
}
AXIS_TYPES = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


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
    hidden_spec, kernel_spec, once, of_tokens = PLACEMENTS[placement]
    mesh, exact = mesh_of(axis_type), expected(S, 1 / N, with_bias=False)

    def loss(hidden, kernel, labels):
        return jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=CHUNK)

    with jax.set_mesh(mesh):
        operands = placed(mesh, hidden_spec, kernel_spec)
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*operands).compile()
        value, gradients = compiled(*operands)
    check(value, (exact.losses[0].mean(), exact.losses[1].mean()), "value")
    for gradient, of, operand in zip(gradients, (exact.of_hidden, exact.of_kernel), operands, strict=False):
        check(gradient, of, "gradient")
        assert gradient.sharding.is_equivalent_to(operand.sharding, operand.ndim), gradient.sharding
    at_once, each = exchanges(compiled)
    assert at_once == sorted(once)
    assert each == [("all-reduce", CHUNK)] * of_tokens


@AXIS_TYPES
@pytest.mark.parametrize("placement", ["fsdp", "fsdp and classes"])
def test_the_gradient_of_hidden_states_alone(placement, axis_type):
    """Of unreduced losses, whose cotangents are not known."""
    mesh, exact = mesh_of(axis_type), expected(S, np.cos(S.labels), with_bias=False)

    def loss(hidden, kernel, labels):
        losses = jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=CHUNK, reduction="none")
        return jnp.sum(losses * jnp.cos(labels))

    with jax.set_mesh(mesh):
        operands = placed(mesh, *PLACEMENTS[placement][:2])
        compiled = jax.jit(jax.grad(loss)).lower(*operands).compile()
        gradient = compiled(*operands)
    check(gradient, exact.of_hidden, "gradient")
    assert gradient.sharding.is_equivalent_to(operands[0].sharding, 3)
    assert "reduce-scatter" not in str(exchanges(compiled))  # the kernel's gradient is not made


@AXIS_TYPES
@pytest.mark.parametrize("placement", ["batch", "fsdp and classes"])
@pytest.mark.parametrize("program", ["both, unreduced", "hvp", "options", "vmap", "statistics"])
def test_programs(program, placement, axis_type):
    mesh = mesh_of(axis_type)

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

    with jax.enable_x64(True):
        wide = S.hidden.astype(np.float64), S.kernel.astype(np.float64), S.labels
        exact = jax.tree.map(np.asarray, jax.jit(run, static_argnums=0)(True, *wide))
    with jax.set_mesh(mesh):
        operands = placed(mesh, *PLACEMENTS[placement][:2])
        results = jax.jit(run, static_argnums=0)(False, *operands)
    for actual, ideal in zip(results, exact, strict=True):
        tolerance.assert_close(actual, ideal, program, operations=64, terms=N * CLASSES, magnitude=1)


@pytest.mark.parametrize("masked", [False, True])
def test_inside_shard_map(masked):
    """Tokens split by the caller; the kernel is every device's, so its gradient is the sum of theirs, made once."""
    mesh = mesh_of(AxisType.Auto)
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

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(S.hidden, S.kernel, S.labels, keep).compile()
    value, gradients = compiled(S.hidden, S.kernel, S.labels, keep)
    check(value, (exact.losses[0].sum() / N, exact.losses[1].mean()), "value")
    for gradient, of in zip(gradients, (exact.of_hidden, exact.of_kernel), strict=True):
        check(gradient, of, "gradient")
    once, each = exchanges(compiled)
    assert ("all-reduce", KERNEL) in once
    assert each == []


OPTIONS = {"softcap": 5.0, "label_smoothing": 0.1}


@pytest.mark.parametrize(("program", "options"), [("grad", {}), ("rows", {}), ("hvp", {}), ("grad", OPTIONS)])
def test_axis_name(program, options):
    """Classes split by the caller, and tokens too."""
    mesh, weights = mesh_of(AxisType.Auto), np.cos(np.arange(N)).reshape(SEQUENCES, LENGTH).astype(np.float32)

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

    with jax.enable_x64(True):
        exact = jax.jit(lambda *o: run(whole, *o))(S.hidden.astype(np.float64), S.kernel.astype(np.float64))
        exact = jax.tree.map(np.asarray, exact)
    compiled = jax.jit(lambda *o: run(split, *o)).lower(S.hidden, S.kernel).compile()
    for actual, ideal in zip(compiled(S.hidden, S.kernel), exact, strict=True):
        tolerance.assert_close(actual, ideal, program, operations=64, terms=N * CLASSES, magnitude=1)
    if program != "hvp":  # of a chunk, numbers of one a token: no more than a few for each
        once, each = exchanges(compiled)
        assert all(kind == "all-reduce" for kind, _ in (*once, *each))
        assert max(size for _, size in each) <= 4 * CHUNK
        assert [size for _, size in once].count(N * WIDTH // 4) == 1


def test_sizes_that_do_not_divide_the_mesh():
    s = sample((5, 3), WIDTH, 7)
    exact = expected(s, 1 / 15, with_bias=False)
    mesh = mesh_of(AxisType.Auto)

    @jax.jit
    def run(hidden, kernel):
        hidden = jax.lax.with_sharding_constraint(hidden + 0, NamedSharding(mesh, P("d")))
        kernel = jax.lax.with_sharding_constraint(kernel + 0, NamedSharding(mesh, P(None, "v")))
        return jax.grad(lambda *o: jaxloss.linear_cross_entropy(*o, s.labels, chunk_size=4), (0, 1))(hidden, kernel)

    for actual, of in zip(run(s.hidden, s.kernel), (exact.of_hidden, exact.of_kernel), strict=True):
        check(actual, of, "gradient")
