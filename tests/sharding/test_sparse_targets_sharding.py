"""Targets of some classes of each row on meshes: rows and classes split, by XLA, by the types, and by the caller."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxloss
import meshes
import tolerance
from meshes import AXIS_TYPES
from modules import exchanged
from quickly import jit_quickly

pytestmark = meshes.several_devices

P = PartitionSpec
ROWS, CLASSES, K = 16, 24, 3
RNG = np.random.default_rng(0)
X = (2 * RNG.normal(size=(ROWS, CLASSES))).astype(np.float32)
X[3, 5] = X[6, 2] = -np.inf
INDICES = np.stack([RNG.permutation(np.delete(np.arange(CLASSES), [2, 5]))[:K] for _ in range(ROWS)]).astype(np.int32)
INDICES[0, 1] = INDICES[0, 2]
SHARES = RNG.dirichlet(np.ones(K + 1), ROWS)[:, :K].astype(np.float32)
INDICES[1, 0], SHARES[1, 0] = -1, 0
COTANGENTS = RNG.normal(size=(ROWS, K)).astype(np.float32)
WEIGHTS = np.cos(np.arange(ROWS)).astype(np.float32)
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "remainder": "spread"}
PLACEMENTS = {"rows": P("d"), "classes": P(None, "v"), "both": P("d", "v")}


def results(x, indices, shares, **where):
    """Of losses with and without options, reduced and not, and of log-probabilities, with their gradients."""

    def mean(x):
        return jaxloss.categorical_cross_entropy(x, (indices, shares), **where)

    def rows(x):
        losses = jaxloss.categorical_cross_entropy(x, (indices, shares), reduction="none", **where)
        return (losses * jnp.cos(jnp.arange(len(losses)))).sum()

    def with_options(x):
        return jaxloss.categorical_cross_entropy(x, (indices, shares), **OPTIONS, **where)

    def divergence(x):
        return jaxloss.kl_divergence(x, (indices, shares), **where)

    def log_prob(x):
        found = jaxloss.log_prob(x, indices, **where)
        return jnp.where(indices < 0, 0, found * jnp.sin(1.0 + indices)).sum()

    losses = (mean, rows, with_options, divergence, log_prob)
    return [jax.value_and_grad(loss)(x) for loss in losses]


def second_order(x, indices, shares, **where):
    def loss(x):
        return jaxloss.categorical_cross_entropy(x, (indices, shares), **OPTIONS, **where)

    return jax.jvp(jax.grad(loss), (x,), (jnp.where(jnp.isneginf(x), 0, x),))[1]


assert_near = functools.partial(tolerance.assert_trees_near, of_largest=5e-6)


@pytest.fixture(scope="module")
def expected():
    return jit_quickly(results)(X, INDICES, SHARES), jit_quickly(second_order)(X, INDICES, SHARES)


@AXIS_TYPES
@pytest.mark.parametrize(
    "placement", [pytest.param(name, marks=[] if name in ("both",) else [pytest.mark.slow]) for name in PLACEMENTS]
)
def test_placements(placement, axis_type, expected):
    mesh = meshes.mesh(axis_type, meshes.axes_of(PLACEMENTS[placement]))
    of_rows = P(*PLACEMENTS[placement][:1])
    with jax.set_mesh(mesh):
        operands = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in ((X, PLACEMENTS[placement]), (INDICES, of_rows), (SHARES, of_rows))
        ]
        module = jit_quickly(results).lower(*operands).compile()
        found = module(*operands)
        of_second_order = jit_quickly(second_order)(*operands)
    assert_near(found, expected[0])
    assert_near(of_second_order, expected[1])
    for _, gradient in found:
        assert gradient.sharding.is_equivalent_to(operands[0].sharding, 2), gradient.sharding


def test_what_is_communicated():
    """Some numbers a row where classes are split, never the logits or their gradient."""
    mesh = meshes.mesh(axes=("v",))
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P(None, "v")))

        def loss(x):
            return jaxloss.categorical_cross_entropy(x, (INDICES, SHARES))

        module = jit_quickly(jax.value_and_grad(loss)).lower(x).compile()
    assert max((size for _, size in exchanged(module)), default=0) <= ROWS * K


def test_axis_name(expected):
    mesh = meshes.mesh(axes=("v",))

    def local(x, indices, shares):
        return results(x, indices, shares, axis_name="v"), second_order(x, indices, shares, axis_name="v")

    shard = P(None, "v")
    specs = [(P(), shard)] * 5, shard
    run = jax.shard_map(local, mesh=mesh, in_specs=(shard, P(), P()), out_specs=specs)
    found, of_second_order = jit_quickly(run)(X, INDICES, SHARES)
    assert_near(found, expected[0])
    assert_near(of_second_order, expected[1])
