"""What linear distillation compiles to: a product more than cross entropy, no array of whole logits, memory of a chunk."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import distillation_formula
import jaxloss
from distillation_formula import KINDS, loss_of
from jaxloss._autodiff.row_loss import Operands, value_and_grad
from jaxloss._rows import divergence
from modules import custom_call_targets, of_size, temporary_bytes
from test_linear_compiled import CHUNK, CLASSES, WIDTH, N, compiled, products

TEACHER_WIDTH, ON_CPU = 24, jax.default_backend() == "cpu"
NAMES = ("hidden", "kernel", "teacher_hidden", "teacher_kernel")


def operands(tokens=N, dtype="float32"):
    arrays = distillation_formula.operands((tokens,), WIDTH, TEACHER_WIDTH, CLASSES)
    return [*(arrays[name].astype(dtype) for name in NAMES), arrays["labels"]]


def loss(kind, *, with_labels=False, **options):
    def of(*operands):
        labels = {"labels": operands[-1]} if with_labels else {}
        return loss_of(kind, chunk_size=CHUNK, **labels, **options)(*operands[:-1])

    return of


def masked(*operands):
    return jax.value_and_grad(loss("forward", with_labels=True, ignore_index=3, shift=1), (0, 1))(*operands)


def pulled(*operands):
    """Unreduced losses and gradients of hidden states alone, for cotangents."""
    losses, pull = jax.vjp(lambda hidden: loss("forward", reduction="none")(hidden, *operands[1:]), operands[0])
    return losses, pull(jnp.sin(losses))


PRODUCTS = {
    "value": (loss("forward"), 2),
    "hidden alone": (jax.value_and_grad(loss("forward")), 3),
    "kernel alone": (jax.value_and_grad(loss("js"), 1), 3),
    **{kind: (jax.value_and_grad(loss(kind), (0, 1)), 4) for kind in KINDS},
    **{f"{kind} and labels": (jax.value_and_grad(loss(kind, with_labels=True), (0, 1)), 4) for kind in KINDS},
    "masked": (masked, 4),
    "padded": (jax.value_and_grad(loss("forward", num_classes=CLASSES - 3), (0, 1)), 4),
    "all": (jax.value_and_grad(loss("forward"), (0, 1, 2, 3)), 4),
    "unreduced, hidden alone": (pulled, 3),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_memory(name):
    """The logits of a chunk are those of student and teacher; the gradient takes the place of the student's.

    Not on a CPU, where a divergence's own kernel makes it.
    """
    function, count = PRODUCTS[name]
    module = compiled(function, *operands())
    assert products(module) == count
    assert of_size(module, N * CLASSES) == [], "logits are whole"
    arrays = 3 if ON_CPU and any("value_and_grad" in target for target in custom_call_targets(module)) else 2
    logits, kernel, hidden = (4 * size for size in (arrays * CHUNK * CLASSES, WIDTH * CLASSES, N * WIDTH))
    assert temporary_bytes(module) < 1.2 * (logits + kernel) + hidden + 64 * N


DIVERGENCES = {"forward": divergence.KL, "reverse": divergence.REVERSE_KL, "js": divergence.JENSEN_SHANNON}
NAME = {"forward": "kl_divergence", "js": "jensen_shannon"}


@pytest.mark.parametrize("kind", NAME)
@pytest.mark.parametrize("tokens", [N, N - 3])
def test_one_fused_call_in_place_on_a_gpu(kind, tokens):
    module = compiled(jax.value_and_grad(loss(kind), (0, 1)), *operands(tokens))
    assert custom_call_targets(module) == [f"jaxloss_{NAME[kind]}_of_logits_value_and_grad"]
    assert ("output_to_operand_aliasing={{1}: (0, {})}" in module.as_text()) != ON_CPU


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "teacher_dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
def test_gradients_may_overwrite_logits(kind, dtype, teacher_dtype):
    """Every kernel reads what it needs of a row before it writes there."""
    of_kind = DIVERGENCES[kind]
    shapes = [(1, 5), (7, 33), (50, 10), (17, 257), (9, 4099)]
    xs, ys = (
        [(3 * jax.random.normal(jax.random.key(key), shape)).astype(of) for shape in shapes]
        for key, of in ((0, dtype), (1, teacher_dtype))
    )

    def run(xs, ys, in_place):
        loss = dataclasses.replace(of_kind, in_place=in_place)
        numbers = (jnp.float32(0.7), *((jnp.float32(0.3),) if kind == "js" else ()))
        weights = [jnp.linspace(-1, 1, len(x)) for x in xs]
        return [
            value_and_grad(loss)(Operands(2 * x, y, weight, numbers))
            for x, y, weight in zip(xs, ys, weights, strict=True)
        ]

    overwritten, apart = (jax.jit(run, static_argnums=2)(xs, ys, in_place) for in_place in (True, False))
    jax.tree.map(np.testing.assert_array_equal, overwritten, apart)


def test_memory_does_not_grow_with_tokens():
    sizes = []
    for tokens in (N, 16 * N, 16 * N - 5):
        module = compiled(jax.value_and_grad(loss("js", with_labels=True), (0, 1)), *operands(tokens))
        sizes.append(temporary_bytes(module) - 16 * tokens)  # labels, weights, losses
    assert max(sizes[1:]) <= sizes[0] + 4096


def test_second_order_keeps_no_logits():
    def hvp(hidden, kernel, *rest):
        gradient = jax.grad(loss("reverse"), (0, 1))
        return jax.jvp(lambda *o: gradient(*o, *rest), (hidden, kernel), (hidden, kernel))

    assert of_size(compiled(hvp, *operands(32 * CHUNK)), 32 * CHUNK * CLASSES) == []


def test_chunk_size():
    """The logits of both take what those of one take in a linear cross entropy, but a chunk has no fewer tokens."""

    def of_chunk(tokens, classes):
        shapes = (tokens, 128), (128, classes), (tokens, 64), (64, classes)
        operands = [jax.ShapeDtypeStruct(shape, "bfloat16") for shape in shapes]
        text = jax.jit(jaxloss.linear_kl_divergence).lower(*operands).as_text()
        (size,) = set(re.findall(rf"dot_general .* -> tensor<(\d+)x{classes}x", text))
        return int(size)

    assert of_chunk(16384, 32768) == 4096
    assert of_chunk(8192, 128256) == 2048
    assert of_chunk(100, 128256) == 100
