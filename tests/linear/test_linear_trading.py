"""Linear cross entropy on a mesh, of tokens that are few beside the classes: devices that share tokens trade.

Each then works on the tokens of all and its part of the classes. They communicate the hidden states and their
gradient, a chunk at a time, and of the kernel and its gradient what another of them keeps.
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
from benchmarks import exchanges
from linear_oracle import expected, sample
from meshes import AXIS_TYPES
from quickly import jit_quickly

pytestmark = meshes.several_devices

P = PartitionSpec
SEQUENCES, LENGTH, WIDTH, CLASSES, CHUNK = 8, 8, 24, 320, 4
N, KERNEL = SEQUENCES * LENGTH, WIDTH * CLASSES
S = sample((SEQUENCES, LENGTH), WIDTH, CLASSES)

# How hidden states and kernel are placed.
PLACEMENTS = {
    "batch": (P("d"), P()),
    "batch over both": (P(("d", "v")), P()),
    "batch and length": (P("d", "v"), P()),
    "fsdp": (P("d"), P("d", None)),
    "fsdp over classes": (P("d"), P(None, "d")),
    "fsdp over both": (P(("d", "v")), P(("d", "v"), None)),
    "batch and classes": (P("d"), P(None, "v")),
    "fsdp and classes": (P("d"), P("d", "v")),
}


def placed(mesh, specs, s=S):
    hidden, kernel = specs
    operands = [(s.hidden, hidden), (s.kernel, kernel), (s.labels, P(*hidden[:2])), (s.bias, P(*kernel[1:2]))]
    return [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in operands]


def loss(hidden, kernel, labels, bias, **options):
    return jaxloss.linear_cross_entropy(hidden, kernel, labels, bias=bias, chunk_size=CHUNK, **options)


def check(actual, exact, what, dtype=np.float32):
    error = tolerance.bound(*exact, computed=np.float32, stored=dtype, terms=N * CLASSES)
    tolerance.assert_within(actual, exact[0], error, what)


def told(compiled) -> collections.Counter:
    """The numbers that a device is told in a step, by kind of collective; without those of one a token, or a class."""
    found = collections.Counter()
    for collective in exchanges.of_module(compiled.as_text()):
        for _, size in collective.results:
            if size >= CHUNK * WIDTH and size not in (CLASSES, CLASSES // 2):
                found[collective.kind] += size * collective.times
    return found


def expected_to_be_told(placement, d, v) -> collections.Counter:
    by = d * v if "both" in placement or "length" in placement else d
    others = v if placement.endswith("and classes") else 1
    if by == 1:
        return collections.Counter()
    found = collections.Counter({"all-gather": N * WIDTH, "reduce-scatter": N // by * WIDTH})
    if placement.startswith("batch"):
        found["all-gather"] += KERNEL // others
    elif placement != "fsdp over classes":
        found["all-to-all"] += 2 * KERNEL // others // by  # the kernel, and its gradient
    if others > 1:
        found["all-reduce"] += N // by * WIDTH
    return found


@AXIS_TYPES
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placements(placement, axis_type):
    mesh = meshes.mesh(axis_type, meshes.axes_of(*PLACEMENTS[placement]))
    exact = expected(S, 1 / N)
    with jax.set_mesh(mesh):
        operands = placed(mesh, PLACEMENTS[placement])
        compiled = jit_quickly(jax.value_and_grad(loss, (0, 1, 3))).lower(*operands).compile()
        value, gradients = compiled(*operands)
    check(value, (exact.losses[0].mean(), exact.losses[1].mean()), "value")
    of = (operands[0], exact.of_hidden), (operands[1], exact.of_kernel), (operands[3], exact.of_bias)
    for gradient, (operand, ideal) in zip(gradients, of, strict=True):
        check(gradient, ideal, "gradient")
        assert gradient.sharding.is_equivalent_to(operand.sharding, operand.ndim), gradient.sharding
    found, ideal = told(compiled), expected_to_be_told(placement, *mesh.devices.shape)
    if meshes.axes_of(*PLACEMENTS[placement]) == ("d", "v") and mesh.devices.shape[1] == 1:
        return  # two devices: what is split over one of them alone is not worth a description
    allowed = [ideal]
    if axis_type == AxisType.Auto and ideal["all-to-all"]:
        # XLA's partitioner brings the kernel to where it is worked on, and may gather it for that (as in jax 0.12).
        others = mesh.devices.shape[1] if placement.endswith("and classes") else 1
        kernel = collections.Counter({"all-gather": KERNEL // others})
        allowed.append(ideal + kernel - collections.Counter({"all-to-all": ideal["all-to-all"] // 2}))
    assert found in allowed


@AXIS_TYPES
@pytest.mark.parametrize("placement", ["batch", "fsdp", "fsdp and classes"])
@pytest.mark.parametrize("kept", ["some", "those of a device", "none"])
def test_masks(kept, placement, axis_type):
    """All that trade work on the same chunks: those in which any of them has a token."""
    mesh = meshes.mesh(axis_type, meshes.axes_of(*PLACEMENTS[placement]))
    keep = {
        "some": np.arange(N).reshape(SEQUENCES, LENGTH) % 5 > 0,
        "those of a device": np.arange(SEQUENCES)[:, None] == np.full((1, LENGTH), 5),
        "none": np.zeros((SEQUENCES, LENGTH), bool),
    }[kept]
    hidden = np.where(keep[..., None], S.hidden, np.nan)
    exact = expected(S, 1 / max(1, keep.sum()), keep)
    with jax.set_mesh(mesh):
        operands = placed(mesh, PLACEMENTS[placement])
        operands[0] = jax.device_put(hidden, operands[0].sharding)
        where = jax.device_put(keep, operands[2].sharding)
        step = jit_quickly(jax.value_and_grad(loss, (0, 1, 3)))
        value, gradients = step(*operands, where=where)
    check(value, (exact.losses[0].sum() / max(1, keep.sum()), exact.losses[1].mean()), "value")
    for gradient, ideal in zip(gradients, (exact.of_hidden, exact.of_kernel, exact.of_bias), strict=True):
        check(gradient, ideal, "gradient")


@AXIS_TYPES
@pytest.mark.parametrize("placement", ["batch", "fsdp"])
def test_bfloat16(placement, axis_type):
    """Gradients are rounded once, though they travel as bfloat16."""
    mesh = meshes.mesh(axis_type, meshes.axes_of(*PLACEMENTS[placement]))
    s = sample((SEQUENCES, LENGTH), WIDTH, CLASSES, dtype="bfloat16")
    with jax.set_mesh(mesh):
        operands = placed(mesh, PLACEMENTS[placement], s)
        compiled = jit_quickly(jax.value_and_grad(loss, (0, 1))).lower(*operands).compile()
        _, gradients = compiled(*operands)
    one_device = jit_quickly(jax.grad(loss, (0, 1)))(s.hidden, s.kernel, s.labels, s.bias)
    exact = expected(s, 1 / N)
    for gradient, ideal, (_, size) in zip(gradients, one_device, (exact.of_hidden, exact.of_kernel), strict=True):
        ideal = np.asarray(ideal, np.float64)
        # Either is rounded by half an epsilon, and a logit of one token may be rounded the other way.
        error = tolerance.epsilon("bfloat16") * (np.abs(ideal) + size / N)
        tolerance.assert_within(gradient, ideal, error, "gradient")
    largest = max(
        (result for each in exchanges.of_module(compiled.as_text()) for result in each.results), key=lambda r: r[1]
    )
    assert largest[0] == "bf16" or jax.default_backend() == "cpu"  # whose compiler tells float32


@AXIS_TYPES
@pytest.mark.parametrize("program", ["hvp", "vmap", "statistics", "one chunk", "odd chunks"])
def test_programs(program, axis_type):
    mesh = meshes.mesh(axis_type, ("d",))
    chunk = {"one chunk": 64, "odd chunks": 7}.get(program, CHUNK)

    def with_stats(hidden, kernel, labels):
        losses, stats = jaxloss.linear_cross_entropy_with_stats(hidden, kernel, labels, chunk_size=chunk)
        return losses + 0.1 * jnp.mean(stats.lse**2)

    def of(hidden, kernel, labels):
        if program == "statistics":
            return with_stats(hidden, kernel, labels)
        return jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=chunk)

    def formula(hidden, kernel, labels):
        z = hidden @ kernel
        lse = jax.nn.logsumexp(z, axis=-1)
        losses = (lse - jnp.take_along_axis(z, labels[..., None], -1)[..., 0]).mean()
        return losses + 0.1 * jnp.mean(lse**2) if program == "statistics" else losses

    def run(f, hidden, kernel, labels):
        if program == "hvp":
            return jax.jvp(jax.grad(lambda *o: f(*o, labels), (0, 1)), (hidden, kernel), (hidden, kernel))[1]
        if program == "vmap":
            gradient = jax.vmap(jax.grad(f, (0, 1)), (None, 0, None))
            return gradient(hidden, jnp.stack([kernel, 2 * kernel]), labels)
        return jax.grad(f, (0, 1))(hidden, kernel, labels)

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = S.hidden.astype(np.float64), S.kernel.astype(np.float64), S.labels
        exact = jax.tree.map(np.asarray, jit_quickly(run, static_argnums=0)(formula, *wide))
    with jax.set_mesh(mesh):
        operands = placed(mesh, PLACEMENTS["fsdp"])[:3]
        results = jit_quickly(run, static_argnums=0)(of, *operands)
    for actual, ideal in zip(results, exact, strict=True):
        tolerance.assert_close(actual, ideal, program, operations=64, terms=N * CLASSES, magnitude=1)
