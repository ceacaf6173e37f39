"""`logits_dtype` of linear distillation: 16-bit operands, and the logits of student and teacher as the products sum them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import distillation_formula
from distillation_formula import KINDS, loss_of, rows
from quickly import jit_quickly

N, WIDTH, TEACHER_WIDTH, CLASSES, CHUNK = 24, 128, 64, 300, 10
NAMES = ("hidden", "kernel", "teacher_hidden", "teacher_kernel")
ARRAYS = distillation_formula.operands((N,), WIDTH, TEACHER_WIDTH, CLASSES)
OPERANDS = tuple(ARRAYS[name].astype("bfloat16") * 2 for name in NAMES)
LABELS = {"labels": ARRAYS["labels"], "hard_weight": 0.5}
EPSILON = float(jnp.finfo(jnp.bfloat16).eps)


def exactly(kind, function, *operands):
    """In float64, of whole logits."""

    def loss(hidden, kernel, teacher_hidden, teacher_kernel):
        teacher = jax.lax.stop_gradient(teacher_hidden @ teacher_kernel)
        return rows(kind, hidden @ kernel, teacher, **LABELS).mean()

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = [np.asarray(x, np.float64) for x in operands]
        return jax.tree.map(np.asarray, jit_quickly(function(loss))(*wide))


def with_gradients(loss):
    return jax.value_and_grad(loss, (0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients(kind):
    """The value is that of the operands; the gradient of logits is rounded once, for its products."""
    exact, of_operands = exactly(kind, with_gradients, *OPERANDS)
    kept, rounded = (
        jit_quickly(with_gradients(loss_of(kind, chunk_size=CHUNK, logits_dtype=dtype, **LABELS)))(*OPERANDS)
        for dtype in ("float32", None)
    )
    assert abs(float(kept[0]) - exact) <= 2e-6 * exact
    assert abs(float(rounded[0]) - exact) >= 1e-5 * exact
    for gradient, of in zip(kept[1], of_operands, strict=True):
        assert gradient.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(gradient, np.float64) - of) / np.linalg.norm(of)
        assert error <= EPSILON / 2


@pytest.mark.parametrize("kind", ["forward"])
def test_second_order_and_unreduced(kind):
    def along_gradient(loss):
        gradient = jax.grad(loss, (0, 1))
        return lambda h, w, *rest: jax.jvp(lambda h, w: gradient(h, w, *rest), (h, w), (h, w))[1]

    loss = loss_of(kind, chunk_size=CHUNK, logits_dtype="float32", **LABELS)
    for actual, of in zip(
        jit_quickly(along_gradient(loss))(*OPERANDS), exactly(kind, along_gradient, *OPERANDS), strict=True
    ):
        assert np.linalg.norm(np.asarray(actual, np.float64) - of) <= 2 * EPSILON * np.linalg.norm(of)
    losses = loss_of(kind, chunk_size=CHUNK, logits_dtype="float32", reduction="none", **LABELS)(*OPERANDS)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses.mean(), exactly(kind, lambda f: f, *OPERANDS), rtol=2e-6)


def test_products_are_of_16_bit_operands():
    """Also those of the teacher; by default the logits have the type of the product."""

    def text(dtype):
        loss = loss_of("js", chunk_size=CHUNK, logits_dtype=dtype)
        return jax.jit(with_gradients(loss)).lower(*OPERANDS).as_text()

    products = re.findall(
        r"dot_general .*\(tensor<[\dx]+x(\w+)>, tensor<[\dx]+x(\w+)>\) -> tensor<([\dx]+)x(\w+)>", text("float32")
    )
    assert {(first, second) for first, second, *_ in products} == {("bf16", "bf16")}
    assert [result for *_, shape, result in products if shape == f"{CHUNK}x{CLASSES}"] == ["f32", "f32"]
    assert text(None) == text("bfloat16") != text("float32")


def test_float64_and_errors():
    with jax.enable_x64(True):
        value = loss_of("forward", logits_dtype="float64", chunk_size=CHUNK, **LABELS)(*OPERANDS)
        assert value.dtype == jnp.float64
        exact = exactly("forward", lambda f: f, *OPERANDS)
        assert abs(float(value) - exact) <= 1e-12 * exact
    with pytest.raises(
        TypeError, match=r"logits_dtype is float16, hidden @ kernel has dtype bfloat16: expected None, bfl"
    ):
        loss_of("js", logits_dtype="float16")(*OPERANDS)


def test_a_chunk_has_half_as_many_tokens():
    def chunk(dtype):
        shapes = (16384, 128), (128, 16384), (16384, 64), (64, 16384)
        operands = [jax.ShapeDtypeStruct(shape, "bfloat16") for shape in shapes]
        text = jax.jit(loss_of("forward", logits_dtype=dtype)).lower(*operands).as_text()
        return {int(size) for size in re.findall(r"dot_general .* -> tensor<(\d+)x16384x", text)}

    assert (chunk(None), chunk("float32")) == ({8192}, {4096})
