"""Linear distillation on a mesh: what one device gives, with gradients where their operands lie; and what is communicated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import distillation_formula
import meshes
from distillation_formula import loss_of
from modules import exchanged, of_size
from test_linear_objective_sharding import assert_same

pytestmark = meshes.several_devices

P = PartitionSpec
TOKENS, WIDTH, TEACHER_WIDTH, CHUNK = (16, 4), 8, 16, 16
MASK = np.random.default_rng(0).random(TOKENS) > 0.3
WIDE, NARROW = 512, 32  # so many classes that devices re-shard the tokens, and so few that they do not
ARRAYS = {classes: distillation_formula.operands(TOKENS, WIDTH, TEACHER_WIDTH, classes) for classes in (WIDE, NARROW)}
STUDENT = ("hidden", "kernel", "bias")
NUMBERS = {"temperature": np.float32(1.3), "softcap": np.float32(2.5), "teacher_softcap": np.float32(2.0)}
DIFFERENTIABLE = (*STUDENT, "temperature", "softcap")


def loss(kind, operands, mask, **options):
    """With labels but of the reverse divergence."""
    o = dict(operands)
    labels = o.pop("labels")
    hidden = jnp.where(mask[..., None], o.pop("hidden"), jnp.nan)
    given = {} if kind == "reverse" else {"labels": labels, "soft_weight": 0.5}
    return loss_of(kind, chunk_size=CHUNK, where=mask, **given, **options)(hidden=hidden, **o)


def with_gradients(kind, operands, mask, **options):
    own = {name: operands[name] for name in DIFFERENTIABLE}
    return jax.value_and_grad(lambda own: loss(kind, {**operands, **own}, mask, **options))(own)


# How tokens and kernels are placed; a teacher's kernel may be split otherwise.
PLACEMENTS = {
    "batch": (P(("d", "v")), P(), P()),
    "fsdp": (P(("d", "v")), P(("d", "v")), P(None, ("d", "v"))),
    "classes": (P(), P(None, "v"), P(None, "v")),
    "both": (P("d"), P("d", "v"), P("d", "v")),
    "the teacher's classes": (P("d"), P("d"), P(None, "v")),
}


def placed(mesh, placement, operands, mask):
    tokens, kernel, teacher_kernel = PLACEMENTS[placement]
    specs = {
        **dict.fromkeys(("hidden", "teacher_hidden", "labels"), tokens),
        "kernel": kernel,
        "teacher_kernel": teacher_kernel,
        "bias": P(*kernel[1:2]),
        "teacher_bias": P(*teacher_kernel[1:2]),
    }
    put = {name: jax.device_put(x, NamedSharding(mesh, specs.get(name, P()))) for name, x in operands.items()}
    return put, jax.device_put(mask, NamedSharding(mesh, tokens))


def operands_of(classes):
    return {**ARRAYS[classes], **NUMBERS}


CASES = [
    ("batch", AxisType.Auto, NARROW, "forward"),
    ("batch", AxisType.Auto, WIDE, "js"),
    ("fsdp", AxisType.Auto, NARROW, "reverse"),
    ("fsdp", AxisType.Explicit, WIDE, "forward"),
    ("classes", AxisType.Auto, NARROW, "js"),
    ("classes", AxisType.Explicit, NARROW, "reverse"),
    ("both", AxisType.Auto, WIDE, "reverse"),
    ("both", AxisType.Explicit, NARROW, "forward"),
    ("the teacher's classes", AxisType.Auto, NARROW, "js"),
    ("the teacher's classes", AxisType.Explicit, NARROW, "forward"),
]


@pytest.mark.parametrize(("placement", "axis_type", "classes", "kind"), CASES)
def test_value_and_gradients(placement, axis_type, classes, kind):
    def run(operands, mask):
        return with_gradients(kind, operands, mask)

    expected = jax.jit(run)(operands_of(classes), MASK)
    mesh = meshes.mesh(axis_type, ("d", "v"))
    with jax.set_mesh(mesh):
        given = placed(mesh, placement, operands_of(classes), MASK)
        module = jax.jit(run).lower(*given).compile()
        results = module(*given)
    assert_same(results, expected)
    # XLA is free to leave a gradient split as it was made, which may be as the teacher's kernel is.
    alike = axis_type is AxisType.Explicit or PLACEMENTS[placement][1] == PLACEMENTS[placement][2]
    for name in STUDENT if alike else STUDENT[:1]:
        gradient = results[1][name]
        assert gradient.sharding.is_equivalent_to(given[0][name].sharding, gradient.ndim), name
    assert of_size(module, np.prod(TOKENS) * classes) == [], "logits are whole"
    d, v = mesh.devices.shape
    if placement == "both" and classes == NARROW:
        found = exchanged(module)
        own = WIDTH * classes // v, TEACHER_WIDTH * classes // v
        assert [found["all-gather", size] for size in own] == [d > 1] * 2, "each kernel is gathered once"
        assert found["reduce-scatter", own[0] // d] == (d > 1), "the gradient of the student's is reduced once"
        assert found["all-reduce", np.prod(TOKENS) * WIDTH // d] == (v > 1), "that of its hidden states too"
    if placement == "batch" and classes == NARROW:
        found = exchanged(module)
        assert found["all-reduce", WIDTH * classes] == 1, (
            "the gradient is reduced once, and nothing of the teacher sent"
        )
        assert all(size <= WIDTH * classes for _, size in found)


@pytest.mark.parametrize(("axis_type", "kind"), [(AxisType.Auto, "js"), (AxisType.Explicit, "reverse")])
def test_second_order(axis_type, kind):
    def along_gradient(operands, mask):
        own = {name: operands[name] for name in STUDENT}
        gradient = jax.grad(lambda own: loss(kind, {**operands, **own}, mask))
        return jax.jvp(gradient, (own,), (own,))[1]

    expected = jax.jit(along_gradient)(operands_of(NARROW), MASK)
    mesh = meshes.mesh(axis_type, ("d", "v"))
    with jax.set_mesh(mesh):
        assert_same(jax.jit(along_gradient)(*placed(mesh, "both", operands_of(NARROW), MASK)), expected)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("kind", distillation_formula.KINDS)
def test_in_shard_map(kind, reduction):
    """Tokens and vocabulary are split by the caller, and the last classes are padding."""
    classes = NARROW - 5
    operands = operands_of(NARROW)
    operands["labels"] = operands["labels"] % classes
    options = {"num_classes": classes, "reduction": reduction}

    def total(operands, mask, **more):
        losses = loss(kind, operands, mask, **options, **more)
        return losses if reduction == "sum" else jnp.sum(jnp.sin(losses))

    expected = jax.jit(jax.value_and_grad(lambda own: total({**operands, **own}, MASK)))(
        {name: operands[name] for name in DIFFERENTIABLE}
    )
    mesh = meshes.mesh(AxisType.Auto, ("d", "v"))
    specs = {name: P("d") for name in ("hidden", "teacher_hidden", "labels")}
    specs |= {
        **dict.fromkeys(("kernel", "teacher_kernel"), P(None, "v")),
        **dict.fromkeys(("bias", "teacher_bias"), P("v")),
    }
    specs |= dict.fromkeys(NUMBERS, P())

    def on_device(operands, mask):
        def local(own):
            return jax.lax.psum(total({**operands, **own}, mask, axis_name="v"), "d")

        return jax.value_and_grad(local)({name: operands[name] for name in DIFFERENTIABLE})

    out = (P(), {name: specs[name] for name in DIFFERENTIABLE})
    mapped = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=(specs, P("d")), out_specs=out))
    assert_same(mapped(operands, MASK), expected)
