"""`linear_objective` on a mesh: what one device gives, with gradients where their operands lie; and what is communicated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxloss
import meshes
import tolerance
from linear_oracle import sample
from modules import exchanged, of_size
from quickly import jit_quickly

pytestmark = meshes.several_devices

P = PartitionSpec
S, T, WIDTH, CHUNK = 16, 4, 8, 16
RNG = np.random.default_rng(0)
MASK = RNG.random((S, T)) > 0.3
MASK[2:4] = False
WIDE, NARROW = 512, 32  # so many classes that devices re-shard the tokens, and so few that they do not


def operands(classes):
    s = sample((S, T), WIDTH, classes)
    data = RNG.normal(size=S).astype(np.float32), (0.1 * RNG.normal(size=(S, T)) - np.log(classes)).astype(np.float32)
    return (s.hidden, s.kernel, s.bias, *data, np.float32(1.3)), s.labels


OPERANDS = {classes: operands(classes) for classes in (WIDE, NARROW)}


def objective(tokens, advantages, old):
    """Of pairs."""
    ratio = jnp.exp(tokens.log_prob - old)
    of_tokens = jnp.where(tokens.mask, ratio * advantages[:, None] + 0.1 * tokens.entropy + tokens.lse, 0)
    first, second = of_tokens.sum(1)
    return jnp.square(first - 2 * second), tokens.mask.sum()


def loss(labels, mask, hidden, kernel, bias, advantages, old, temperature, **options):
    hidden = jnp.where(mask[..., None], hidden, jnp.nan)
    options = {"chunk_size": CHUNK, "group": 2, "has_aux": True, "normalizer": "sequences", **options}
    blocks = labels, objective, advantages, old
    return jaxloss.linear_objective(hidden, kernel, *blocks, bias=bias, where=mask, temperature=temperature, **options)


def with_gradients(labels, mask, operands, **options):
    def of(*operands):
        return loss(labels, mask, *operands, **options)

    return jax.value_and_grad(of, tuple(range(6)), has_aux=True)(*operands)


# How hidden states, kernel, bias, data of sequences and data of tokens are placed.
PLACEMENTS = {
    "sequences": (P(("d", "v")), P(), P(), P(("d", "v")), P(("d", "v"))),
    "tokens of a sequence": (P("d", "v"), P("d"), P(), P("d"), P("d", "v")),
    "both": (P("d"), P("d", "v"), P("v"), P("d"), P("d")),
}


def placed(mesh, placement, classes):
    specs = (*PLACEMENTS[placement], P())
    (*arrays, temperature), labels = OPERANDS[classes]
    put = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip((*arrays, temperature), specs, strict=True)]
    labels, mask = (jax.device_put(x, NamedSharding(mesh, specs[4])) for x in (labels, MASK))
    return labels, mask, tuple(put)


def assert_same(actual, expected, operations=tolerance.OPERATIONS):
    """Within so many operations, by the largest number of each array; either errs."""
    tolerance.assert_trees_close(actual, expected, operations=2 * operations, terms=S * T * WIDTH)


CASES = [
    ("sequences", AxisType.Auto, NARROW),
    ("tokens of a sequence", AxisType.Auto, NARROW),
    ("both", AxisType.Auto, WIDE),
    ("both", AxisType.Explicit, NARROW),
    ("tokens of a sequence", AxisType.Explicit, WIDE),
]


@pytest.mark.parametrize(("placement", "axis_type", "classes"), CASES)
def test_value_and_gradients(placement, axis_type, classes):
    (mesh_operands, labels) = OPERANDS[classes]
    expected = jit_quickly(with_gradients)(labels, MASK, mesh_operands)
    mesh = meshes.mesh(axis_type, ("d", "v"))
    with jax.set_mesh(mesh):
        given = placed(mesh, placement, classes)
        module = jit_quickly(with_gradients).lower(*given).compile()
        results = module(*given)
    assert_same(results, expected)
    for gradient, operand in zip(results[1], given[2], strict=True):
        assert gradient.sharding.is_equivalent_to(operand.sharding, gradient.ndim)
    assert of_size(module, S * T * classes) == [], "logits are whole"
    if placement == "both" and classes == NARROW:
        d, v = (mesh.shape[axis] for axis in "dv")
        found = exchanged(module)
        assert found["all-gather", WIDTH * classes // v] == (d > 1), "the kernel is gathered once"
        assert found["reduce-scatter", WIDTH * classes // v // d] == (d > 1), "its gradient is reduced once"
        assert found["all-reduce", S * T * WIDTH // d] == (v > 1), "that of the hidden states too"


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_second_order(axis_type):
    tangents = tuple(0.3 * RNG.normal(size=np.shape(x)).astype(np.float32) for x in OPERANDS[NARROW][0])

    def along_gradient(labels, mask, operands, tangents):
        gradient = jax.grad(lambda operands: loss(labels, mask, *operands)[0])
        return jax.jvp(gradient, (operands,), (tangents,))[1]

    arrays, labels = OPERANDS[NARROW]
    expected = jit_quickly(along_gradient)(labels, MASK, arrays, tangents)
    mesh = meshes.mesh(axis_type, ("d", "v"))
    with jax.set_mesh(mesh):
        given = placed(mesh, "both", NARROW)
        tangents = tuple(jax.device_put(x, operand.sharding) for x, operand in zip(tangents, given[2], strict=True))
        assert_same(jit_quickly(along_gradient)(*given, tangents), expected, tolerance.OPERATIONS_OF_HIGHER_ORDER)


def test_in_shard_map():
    """Sequences and vocabulary are split by the caller; the objective closes over an array that varies as they do."""
    arrays, labels = OPERANDS[NARROW]
    expected = jit_quickly(with_gradients)(labels, MASK, arrays)
    mesh = meshes.mesh(AxisType.Auto, ("d", "v"))

    def on_device(labels, mask, factor, operands):
        sequences = jax.lax.psum(mask.any(1).sum(), "d")

        def total(operands):
            hidden, kernel, bias, advantages, old, temperature = operands
            own = jax.lax.pcast(factor, "d", to="varying")
            hidden = jnp.where(mask[..., None], hidden, jnp.nan)
            result, aux = jaxloss.linear_objective(
                *(hidden, kernel, labels, lambda *block: (own * objective(*block)[0], objective(*block)[1]), advantages, old),
                bias=bias, where=mask, temperature=temperature, chunk_size=CHUNK, group=2, has_aux=True, axis_name="v",
                normalizer=sequences,
            )  # fmt: skip
            return jax.lax.psum(result, "d"), jax.lax.psum(aux, "d")

        return jax.value_and_grad(total, has_aux=True)(operands)

    specs = P("d"), P(None, "v"), P("v"), P("d"), P("d"), P()
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(P("d"), P("d"), P(), specs), out_specs=((P(), P()), specs))
    assert_same(jit_quickly(mapped)(labels, MASK, jnp.float32(1), arrays), expected)


def test_what_an_objective_may_not_close_over():
    arrays, labels = OPERANDS[NARROW]
    hidden, kernel = arrays[:2]

    def loss(hidden, kernel, factor):
        return jaxloss.linear_objective(hidden, kernel, labels[: len(hidden)], lambda t: (factor * t.log_prob).sum())

    with (
        jax.set_mesh(meshes.mesh(AxisType.Explicit, ("d", "v"))),
        pytest.raises(ValueError, match="closes over a traced array"),
    ):
        jit_quickly(loss)(jax.device_put(hidden, P("d")), kernel, 2.0)
    mesh = meshes.mesh(AxisType.Auto, ("d", "v"))
    mapped = jax.shard_map(
        jax.grad(lambda *o: jax.lax.psum(loss(*o), "d"), 2), mesh=mesh, in_specs=(P("d"), P(), P()), out_specs=P()
    )
    with pytest.raises(ValueError, match=r"closes over an array of shape \(\) that is differentiated.*jax.lax.pcast"):
        jit_quickly(mapped)(hidden, kernel, jnp.float32(2))
