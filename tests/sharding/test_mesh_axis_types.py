"""Meshes whose axes are automatic, explicit, manual or of several types, with a mesh in context and without.

A loss of each family, in one program, against its plain formula in the same program: values, gradients, where these lie, and
that nothing travels between devices which the formula does not send, but sums of one number a row.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxloss
import meshes
import tolerance
from modules import collectives
from quickly import QUICKLY

pytestmark = meshes.several_devices

P = PartitionSpec
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
TYPES = {
    "auto": (AUTO, AUTO),
    "explicit": (EXPLICIT, EXPLICIT),
    "explicit, auto": (EXPLICIT, AUTO),
    "auto, explicit": (AUTO, EXPLICIT),
}
ROWS, CLASSES, WIDTH = 16, 32, 8
PLACEMENTS = {"replicated": (None, None), "rows": ("d", None), "classes": (None, "v"), "both": ("d", "v")}

RESTS = ("rows", "classes")

contexts = pytest.mark.parametrize("context", ["no context", "set_mesh"])
types = pytest.mark.parametrize("axis_types", TYPES)


def sample():
    rng = np.random.default_rng(0)
    x, a = (rng.standard_normal((ROWS, CLASSES)).astype(np.float32) for _ in range(2))
    hidden, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in ((ROWS, WIDTH), (WIDTH, CLASSES)))
    return x, a, rng.integers(0, CLASSES, ROWS).astype(np.int32), hidden, kernel


def rows_of_labels(logits, labels):
    """Cross entropy of each row by a formula that any sharding takes."""
    return jax.nn.logsumexp(logits, -1) - (jax.nn.one_hot(labels, CLASSES) * logits).sum(-1)


def by_formula(x, a, labels, hidden, kernel):
    log_p, log_q = jax.nn.log_softmax(x), jax.nn.log_softmax(a)
    kl = (jnp.exp(log_q) * (log_q - log_p)).sum(-1).mean()
    rows = rows_of_labels(x, labels)
    return {
        "elementwise": (0.5 * (x - a) ** 2).sum(-1).mean(),
        "rows": rows.mean() + (jnp.cos(rows) * rows).mean(),
        "divergence": kl,
        "linear": rows_of_labels(hidden @ kernel, labels).mean(),
    }


def by_jaxloss(x, a, labels, hidden, kernel):
    rows = jaxloss.categorical_cross_entropy(x, labels, reduction="none", clip=None)
    return {
        "elementwise": jaxloss.mse(x, a),
        "rows": jaxloss.categorical_cross_entropy(x, labels, clip=None) + (jnp.cos(rows) * rows).mean(),
        "divergence": jaxloss.kl_divergence(x, a, target_type="logits"),
        "linear": jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=4, clip=None),
    }


def program(losses, average=lambda x: x, share=1):
    """The values, and the gradients with respect to logits and hidden states, of what may be a device's share of the rows."""

    def run(x, a, labels, hidden, kernel):
        def total(x, hidden):
            values = losses(x, a, labels, hidden, kernel)
            return sum(values.values()), values

        gradients, values = jax.grad(total, (0, 1), has_aux=True)(x, hidden)
        return jax.tree.map(average, values), jax.tree.map(lambda gradient: gradient * share, gradients)

    return run


def placed(mesh, rows, classes):
    specs = (P(rows, classes), P(rows, classes), P(rows), P(rows, None), P(None, classes))
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(sample(), specs, strict=True)]


@functools.cache
def expected():
    return jax.tree.map(np.asarray, jax.jit(program(by_formula))(*sample()))


def assert_as_the_formula(mesh, context, programs, operands):
    """`programs` are those of jaxloss and of the formula."""
    with jax.set_mesh(mesh) if context == "set_mesh" else contextlib.nullcontext():
        ours, formula = (jax.jit(run, compiler_options=QUICKLY).lower(*operands).compile() for run in programs)
        (values, gradients), (_, theirs) = ours(*operands), formula(*operands)
    for actual, exact in zip(jax.tree.leaves((values, gradients)), jax.tree.leaves(expected()), strict=True):
        tolerance.assert_close(actual, exact, "a result", terms=32)
    for actual, exact in zip(gradients, theirs, strict=True):
        assert actual.sharding.is_equivalent_to(exact.sharding, actual.ndim), (actual.sharding, exact.sharding)
    sent = {kind for kind, _ in collectives(formula)}
    travels = [(kind, size) for kind, size in collectives(ours) if kind not in sent]
    # Of linear losses, the hidden states' gradient is a sum over split classes.
    assert all(kind == "all-reduce" and size <= ROWS * WIDTH for kind, size in travels), (travels, sent)


@contexts
@types
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placements(placement, axis_types, context):
    mesh = meshes.mesh_of_types(TYPES[axis_types])
    programs = program(by_jaxloss), program(by_formula)
    assert_as_the_formula(mesh, context, programs, placed(mesh, *PLACEMENTS[placement]))


@contexts
@types
@pytest.mark.parametrize("manual", ["d", "v"])
@pytest.mark.parametrize("rest", RESTS)
def test_partly_manual(rest, manual, axis_types, context):
    """A `shard_map` over one axis, which splits the rows; the other axis, of whatever type, splits rows or classes."""
    mesh = meshes.mesh_of_types(TYPES[axis_types])
    other = {"d": "v", "v": "d"}[manual]
    rows, classes = ((manual, other), None) if rest == "rows" else (manual, other)

    def mapped(losses):
        def average(x):
            return jax.lax.pmean(x, manual)

        run = program(losses, average, 1 / mesh.shape[manual])
        return jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P(manual), P(manual), P(manual), P(manual), P()),
            out_specs=(P(), P(manual)),
            axis_names={manual},
        )

    programs = mapped(by_jaxloss), mapped(by_formula)
    assert_as_the_formula(mesh, context, programs, placed(mesh, rows, classes))


@pytest.mark.parametrize("axes", ["d", "v", ("d", "v")], ids=str)
@pytest.mark.parametrize("placement", ["rows", "classes", "both"])
def test_auto_axes_of_an_explicit_mesh(placement, axes):
    mesh = meshes.mesh_of_types(TYPES["explicit"])
    rows, classes = PLACEMENTS[placement]
    out = (P(), (P(rows, classes), P(rows, None)))
    programs = [
        jax.sharding.auto_axes(program(losses), axes=axes, out_sharding=out) for losses in (by_jaxloss, by_formula)
    ]
    assert_as_the_formula(mesh, "set_mesh", programs, placed(mesh, rows, classes))


@types
def test_eager_values_and_gradients(axis_types):
    """JAX itself makes an eager gradient of explicit axes with the mesh in context only."""
    mesh = meshes.mesh_of_types(TYPES[axis_types])
    operands = placed(mesh, "d", "v")
    values, gradients = by_jaxloss(*operands), None
    with jax.set_mesh(mesh):
        gradients = program(by_jaxloss)(*operands)[1]
    for actual, exact in zip(jax.tree.leaves((values, gradients)), jax.tree.leaves(expected()), strict=True):
        tolerance.assert_close(actual, exact, "a result", terms=32)


@types
@pytest.mark.parametrize("options", ["shift", "weights of classes"])
def test_a_split_sequence(options, axis_types):
    """Labels roll over devices, and their weights are looked up, while the hidden states stay where they are."""
    rng = np.random.default_rng(0)
    hidden, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 64, WIDTH), (WIDTH, CLASSES)))
    labels = rng.integers(0, CLASSES, hidden.shape[:2]).astype(np.int32)  # more than devices trade for classes
    weights = np.linspace(0.5, 2, CLASSES, dtype=np.float32)
    given = {"shift": 1} if options == "shift" else {"class_weights": weights, "normalizer": "weights"}
    mesh = meshes.mesh_of_types(TYPES[axis_types])

    def loss(hidden, kernel, labels):
        return jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=16, **given)

    operands = hidden, kernel, labels
    specs = P(None, "d", None), P(), P(None, "d")
    on_mesh = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(operands, specs, strict=True)]
    run = jax.jit(jax.value_and_grad(loss, (0, 1)), compiler_options=QUICKLY)
    compiled = run.lower(*on_mesh).compile()
    for actual, exact in zip(jax.tree.leaves(compiled(*on_mesh)), jax.tree.leaves(run(*operands)), strict=True):
        tolerance.assert_close(actual, exact, "a result", terms=32)
    gathered = [size for kind, size in collectives(compiled) if kind == "all-gather"]
    assert max(gathered, default=0) <= labels.size, gathered
