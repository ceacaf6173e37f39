"""The first chunk of several, which writes what the others are added to: results, products and memory.

All other tests have sums so small that it is in the loop with the others.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxloss
import meshes
from jaxloss import objectives
from jaxloss._linear import chunks
from linear_oracle import sample
from test_linear_alignment import assert_same
from test_linear_compiled import CLASSES as CLASSES_OF_LARGE
from test_linear_compiled import WIDTH as WIDTH_OF_LARGE
from test_linear_compiled import assert_products_and_memory, compiled, loss, operands

P = PartitionSpec
N, WIDTH, CLASSES, CHUNK = 20, 7, 37, 6
S, TEACHER = sample((N,), WIDTH, CLASSES), sample((N,), WIDTH + 2, CLASSES, seed=1)


@pytest.fixture
def both(monkeypatch):
    """From a function and operands to its results with the first chunk apart, and in the loop."""

    def results(function, *operands):
        found = []
        for least in (0, 2**62):
            monkeypatch.setattr(chunks, "APART_FROM", least)
            jax.clear_caches()
            found.append(jax.jit(lambda *operands: function(*operands))(*operands))
        return found

    yield results
    jax.clear_caches()


def cross_entropy(hidden, kernel, bias, **options):
    labels = jnp.asarray(S.labels)
    return jaxloss.linear_cross_entropy(hidden, kernel, labels, bias=bias, chunk_size=CHUNK, **options)


def divergence(hidden, kernel, bias):
    teacher = jnp.asarray(TEACHER.hidden), jnp.asarray(TEACHER.kernel)
    return jaxloss.linear_kl_divergence(hidden, kernel, *teacher, bias=bias, labels=S.labels, chunk_size=CHUNK)


def objective(hidden, kernel, bias):
    hidden, labels = hidden.reshape(5, 4, WIDTH), jnp.asarray(S.labels).reshape(5, 4)
    of_sequences = objectives.reinforce()
    options = {"bias": bias, "chunk_size": CHUNK, "ignore_index": 3}
    return jaxloss.linear_objective(hidden, kernel, labels, of_sequences, jnp.arange(5.0), **options)


def sparse(hidden, kernel, bias):
    labels = jnp.stack([S.labels, (S.labels + 1) % CLASSES], -1), jnp.full((N, 2), 0.4)
    return jaxloss.linear_cross_entropy(hidden, kernel, labels, bias=bias, chunk_size=CHUNK)


KEPT = jnp.arange(N) % 4 > 0
LOSSES = {
    "plain": cross_entropy,
    "masked": lambda *o: cross_entropy(*o, where=KEPT),
    "a chunk masked": lambda *o: cross_entropy(*o, where=jnp.arange(N) > CHUNK),
    "all masked": lambda *o: cross_entropy(*o, where=jnp.zeros(N, bool)),
    "divergence": divergence,
    "objective": objective,
    "sparse": sparse,
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_results_are_the_same(name, both):
    apart, in_loop = both(jax.value_and_grad(LOSSES[name], (0, 1, 2)), S.hidden, S.kernel, S.bias)
    assert_same(apart, in_loop, name)


def test_under_vmap_and_in_second_order(both):
    def function(hidden, kernel, bias):
        gradient = jax.grad(cross_entropy, (0, 1, 2))
        batched = jax.vmap(gradient, (None, 0, None))(hidden, jnp.stack([kernel, 2 * kernel]), bias)
        return batched, jax.jvp(lambda kernel: gradient(hidden, kernel, bias), (kernel,), (kernel,))

    assert_same(*both(function, S.hidden, S.kernel, S.bias), "transforms", terms=2 * N * CLASSES)


SPLITS = {"tokens": (P("d"), P()), "classes": (P(), P(None, "v"))}


@pytest.mark.parametrize(
    "split", [pytest.param(split, id=name, marks=meshes.several_devices) for name, split in SPLITS.items()]
)
def test_on_devices(split, both):
    mesh, s = meshes.mesh(axes=meshes.axes_of(*split)), sample((32,), WIDTH, 40)
    placed = zip((s.hidden, s.kernel), split, strict=True)
    operands = [jax.device_put(x, NamedSharding(mesh, of)) for x, of in placed]

    def of_all(hidden, kernel):
        return jaxloss.linear_cross_entropy(hidden, kernel, s.labels, chunk_size=4)

    assert_same(*both(jax.value_and_grad(of_all, (0, 1)), *operands), "devices", terms=32 * 40)


def test_a_block_without_tokens_that_is_computed_all_the_same(both):
    """Of the first chunk, where all are masked: an objective may be undefined there."""

    def function(hidden, kernel, data):
        def of_block(tokens, data):
            return jnp.where(tokens.mask, tokens.log_prob, 0).sum() / tokens.mask.sum() * jnp.log(data).sum()

        labels = jnp.asarray(S.labels).reshape(5, 4)
        options = {"where": jnp.zeros((5, 4), bool), "chunk_size": 4}
        return jaxloss.linear_objective(hidden.reshape(5, 4, WIDTH), kernel, labels, of_block, data, **options)

    apart, in_loop = both(jax.value_and_grad(function, (0, 1, 2)), S.hidden, S.kernel, jnp.zeros(5))
    for result in jax.tree.leaves((apart, in_loop)):
        np.testing.assert_array_equal(result, 0)


def test_products_and_memory(monkeypatch):
    """Those of the first chunk and those of the loop, from sums of so many bytes on; and no more memory."""
    step, size = jax.value_and_grad(loss, (0, 1)), WIDTH_OF_LARGE * CLASSES_OF_LARGE
    for least, products in ((4 * size, 6), (4 * size + 1, 3)):
        monkeypatch.setattr(chunks, "APART_FROM", least)
        jax.clear_caches()
        assert_products_and_memory(compiled(step, *operands()), products)
    jax.clear_caches()
