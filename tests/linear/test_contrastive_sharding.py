"""`sigmoid_contrastive` on a mesh: what one device gives, with gradients where the embeddings lie; what is communicated."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxloss
import meshes
from meshes import AXIS_TYPES
from modules import exchanged, of_size
from quickly import jit_quickly
from test_contrastive import ALL, assert_near, embeddings, exactly, formula, formula_of_rows

pytestmark = meshes.several_devices

P = PartitionSpec
N, WIDTH, CHUNK = 64, 8, 4
OPERANDS = embeddings(N, WIDTH), embeddings(N, WIDTH), np.float32(3), np.float32(-2)
TANGENTS = 0.3 * embeddings(N, WIDTH), 0.3 * embeddings(N, WIDTH), np.float32(1), np.float32(0.5)

# How the embeddings of both kinds are placed.
PLACEMENTS = {
    "rows": (P("d"), P("d")),
    "rows over both": (P(("d", "v")), P(("d", "v"))),
    "rows of each": (P("d"), P("v")),
    "features too": (P("d", "v"), P("d", "v")),
}


def loss(a, b, scale, bias, **options):
    return jaxloss.sigmoid_contrastive(a, b, scale=scale, bias=bias, chunk_size=CHUNK, **options)


def placed(mesh, placement):
    specs = (*PLACEMENTS[placement], P(), P())
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(OPERANDS, specs, strict=True)]


@AXIS_TYPES
@pytest.mark.parametrize(
    "placement",
    [pytest.param(name, marks=[] if name in ("rows", "rows of each") else [pytest.mark.slow]) for name in PLACEMENTS],
)
def test_placements(placement, axis_type):
    exact = exactly(jax.value_and_grad(formula, ALL), *OPERANDS)
    mesh = meshes.mesh(axis_type, meshes.axes_of(*PLACEMENTS[placement]))
    with jax.set_mesh(mesh):
        operands = placed(mesh, placement)
        module = jit_quickly(jax.value_and_grad(loss, ALL)).lower(*operands).compile()
        results = module(*operands)
    assert_near(results, exact)
    for gradient, operand in zip(results[1], operands, strict=True):
        assert gradient.sharding.is_equivalent_to(operand.sharding, gradient.ndim)
    assert of_size(module, N * N) == [], "logits are whole"
    devices = {"rows": mesh.shape["d"], "rows over both": mesh.size}.get(placement, 1)
    if devices > 1:
        found = exchanged(module)
        assert found["all-gather", N * WIDTH] == 1, "b is gathered once"
        assert found["reduce-scatter", N * WIDTH // devices] == 1, "its gradient is reduced once"
        assert sum(size > 2 for _, size in found.elements()) == 2, found


@AXIS_TYPES
@pytest.mark.parametrize("placement", [pytest.param("rows", marks=pytest.mark.slow), "rows of each"])
def test_second_order(placement, axis_type):
    def along(f):
        def of(*operands):
            tangents = tuple(t.astype(x.dtype) for t, x in zip(TANGENTS, operands, strict=True))
            return jax.jvp(jax.grad(f, ALL), operands, tangents)[1]

        return of

    mesh = meshes.mesh(axis_type, meshes.axes_of(*PLACEMENTS[placement]))
    with jax.set_mesh(mesh):
        results = jit_quickly(along(loss))(*placed(mesh, placement))
    assert_near(results, exactly(along(formula), *OPERANDS), 5e-5)


@pytest.mark.parametrize("axis_name", ["d", ("d", "v")])
def test_axis_name(axis_name):
    """Rows of both split by the caller: the loss of all of them on every device, or of the device's own rows."""
    mesh, rows = meshes.mesh(), P(axis_name)

    def split(reduction, out_specs):
        def local(a, b, scale, bias):
            return loss(a, b, scale, bias, axis_name=axis_name, reduction=reduction)

        return jax.shard_map(local, mesh=mesh, in_specs=(rows, rows, P(), P()), out_specs=out_specs)

    module = jit_quickly(jax.value_and_grad(split("mean", P()), ALL)).lower(*OPERANDS).compile()
    assert_near(module(*OPERANDS), exactly(jax.value_and_grad(formula, ALL), *OPERANDS))
    found = exchanged(module)
    assert found["all-gather", N * WIDTH] == 1
    assert sum(size > 2 for _, size in found.elements()) == 2, found

    def weighted(rows_of):
        return lambda *o: (rows_of(*o) * np.cos(np.arange(N))).sum()

    results = jit_quickly(jax.grad(weighted(split("none", rows)), ALL))(*OPERANDS)
    assert_near(results, exactly(jax.grad(weighted(formula_of_rows), ALL), *OPERANDS))


def test_without_an_axis_name_the_pairs_are_those_of_the_device():
    mesh = meshes.mesh()
    d = mesh.shape["d"]

    def local(a, b, scale, bias):
        return jax.lax.pmean(loss(a, b, scale, bias), "d")

    share = jax.shard_map(local, mesh=mesh, in_specs=(P("d"), P("d"), P(), P()), out_specs=P())

    def whole(a, b, scale, bias):
        parts = (x.reshape(d, -1, WIDTH) for x in (a, b))
        return jax.vmap(formula, (0, 0, None, None))(*parts, scale, bias).mean()

    results = jit_quickly(jax.value_and_grad(share, ALL))(*OPERANDS)
    assert_near(results, exactly(jax.value_and_grad(whole, ALL), *OPERANDS))
