"""What linear cross entropy compiles to: so many products, no array of whole logits, memory and size that do not grow."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss._arrays import MASKED
from jaxloss._ffi import cross_entropy
from jaxloss._linear import chunks
from linear_oracle import sample
from modules import custom_call_targets, of_size, operations, temporary_bytes

WIDTH, CLASSES, CHUNK = 16, 512, 32
N = 8 * CHUNK


def compiled(function, *operands):
    return jax.jit(function).lower(*operands).compile()


def products(module) -> int:
    """How many matrix products there are, loops unrolled or not."""
    return len(re.findall(r" dot\(|custom_call_target=\"__(?:cublas|onednn)[^\"]*matmul", module.as_text()))


def loss(hidden, kernel, labels, **options):
    return jaxloss.linear_cross_entropy(hidden, kernel, labels, **{"chunk_size": CHUNK, **options})


def operands(tokens=N, **kinds):
    s = sample((tokens,), WIDTH, CLASSES, **kinds)
    return s.hidden, s.kernel, s.labels


def pulled(wanted, cotangents, **options):
    """Unreduced losses and gradients of them."""

    def run(hidden, kernel, labels):
        def losses(*live):
            both = [hidden, kernel]
            for place, operand in zip(wanted, live, strict=True):
                both[place] = operand
            return loss(*both, labels, reduction="none", **options)

        out, pull = jax.vjp(losses, *((hidden, kernel)[place] for place in wanted))
        return out, pull(cotangents(out))

    return run


LOSS_AND_STATS = jaxloss.linear_cross_entropy_with_stats
PRODUCTS = {
    "value": (loss, 1),
    "hidden alone": (jax.value_and_grad(loss, 0), 2),
    "kernel alone": (jax.value_and_grad(loss, 1), 2),
    "both": (jax.value_and_grad(loss, (0, 1)), 3),
    "masked": (lambda h, w, y: jax.value_and_grad(loss, (0, 1))(h, w, y, ignore_index=3, shift=1), 3),
    "with options": (lambda h, w, y: jax.value_and_grad(loss, (0, 1))(h, w, y, softcap=30.0, z_loss=1e-4), 3),
    "scaled": (jax.value_and_grad(lambda h, w, y: 3 * loss(h, w, y) ** 2, (0, 1)), 3),
    "statistics beside": (jax.value_and_grad(lambda *o: LOSS_AND_STATS(*o, chunk_size=CHUNK), (0, 1), has_aux=True), 3),
    "unreduced, hidden alone": (pulled((0,), jnp.sin), 2),
    "unreduced, kernel alone": (pulled((1,), jnp.sin), 3),
    "unreduced, both": (pulled((0, 1), jnp.sin), 4),
}


def assert_products_and_memory(module, count: int):
    """So many products of `N` tokens, and besides them no more memory than a chunk's logits and the gradients take."""
    assert products(module) == count
    assert of_size(module, N * CLASSES) == [], "logits are whole"
    # Logits of a chunk, which their gradient overwrites; the sum of the kernel's gradient; numbers of tokens.
    logits, kernel, hidden = (4 * size for size in (CHUNK * CLASSES, WIDTH * CLASSES, N * WIDTH))
    assert temporary_bytes(module) < 1.2 * (logits + kernel) + hidden + 64 * N
    copies = [size for name, sizes in operations(module) for size in sizes if name == "copy"]
    assert max(copies, default=0) < WIDTH * CLASSES, "an array as large as the kernel is copied"


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_memory(name):
    function, count = PRODUCTS[name]
    assert_products_and_memory(compiled(function, *operands()), count)


@pytest.mark.parametrize("tokens", [N, N - 3])
def test_the_fused_call_is_in_place(tokens):
    module = compiled(jax.value_and_grad(loss, (0, 1)), *operands(tokens))
    assert custom_call_targets(module) == ["jaxloss_cross_entropy_value_and_grad"]
    assert "output_to_operand_aliasing={{1}: (0, {})}" in module.as_text()


@pytest.mark.parametrize("wanted", [(0,), (0, 1)])
def test_memory_does_not_grow_with_tokens(wanted):
    sizes = []
    for tokens in (N, 16 * N, 16 * N - 5):
        module = compiled(jax.value_and_grad(loss, wanted), *operands(tokens))
        sizes.append(temporary_bytes(module) - 16 * tokens)  # labels, weights, losses
    assert max(sizes[1:]) <= sizes[0] + 4096


def test_the_program_does_not_grow_with_tokens():
    texts = [
        str(jax.make_jaxpr(jax.value_and_grad(lambda *o: loss(*o, shift=1), (0, 1)))(*operands(tokens)))
        for tokens in (N, 16 * N)
    ]
    assert texts[0].count(" = ") == texts[1].count(" = ")


def test_a_kernel_with_classes_first_is_not_transposed():
    hidden, kernel, labels = operands()
    module = compiled(jax.value_and_grad(lambda *o: loss(*o, kernel_axis=0), (0, 1)), hidden, kernel.T.copy(), labels)
    plain = compiled(jax.value_and_grad(loss, (0, 1)), hidden, kernel, labels)
    assert temporary_bytes(module) <= temporary_bytes(plain) + 4096


@pytest.mark.parametrize(
    ("chunk_size", "dtype", "kernel_dtype", "summed_in"),
    [
        (N, "bfloat16", "bfloat16", "bf16"),
        (N - 1, "bfloat16", "bfloat16", "f32"),
        (N, "float16", "float16", "f32"),  # what follows may be a scale that brings it back into range
        (N, "float32", "bfloat16", "f32"),
        (N, "bfloat16", "float32", "f32"),
    ],
)
def test_the_kernel_gradient_of_one_chunk_is_rounded_by_its_product(chunk_size, dtype, kernel_dtype, summed_in):
    step = jax.value_and_grad(lambda *o: loss(*o, chunk_size=chunk_size), (0, 1))
    program = jax.jit(step).lower(*operands(dtype=dtype, kernel_dtype=kernel_dtype)).as_text()
    of_kernel = re.findall(rf"dot_general .* -> tensor<{WIDTH}x{CLASSES}x(\w+)>", program)
    assert of_kernel == [summed_in]


def test_second_order_keeps_no_logits():
    def hvp(hidden, kernel, labels):
        f = lambda h, w: loss(h, w, labels)  # noqa: E731
        return jax.jvp(jax.grad(f, (0, 1)), (hidden, kernel), (hidden, kernel))

    def reverse(hidden, kernel, labels):
        f = lambda h, w: loss(h, w, labels)  # noqa: E731
        return jax.grad(lambda h: sum(jnp.sum(g * g) for g in jax.grad(f, (0, 1))(h, kernel)))(hidden)

    for function in (hvp, reverse):
        assert of_size(compiled(function, *operands(32 * CHUNK)), 32 * CHUNK * CLASSES) == []


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_masks_keep_no_kernel_of_each_chunk(reduction):
    """Where reverse mode goes through the scan, whose chunks may be skipped where there is a mask, by a branch."""

    def program(**options):
        def total(hidden, kernel, labels, temperature):
            return jnp.sin(loss(hidden, kernel, labels, temperature=temperature, reduction=reduction, **options)).sum()

        return str(jax.make_jaxpr(jax.value_and_grad(total, (0, 1, 3)))(*operands(), 1.5))

    masked = program(ignore_index=3)
    assert f"[{N // CHUNK},{WIDTH},{CLASSES}]" not in masked
    assert masked.count(" cond[") > program().count(" cond[")


SHAPES = [(1, 5), (7, 33), (50, 10), (17, 257), (9, 4099)]  # narrow and wide rows, and what remains of vectors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_may_overwrite_logits(dtype):
    """Every kernel reads what it needs of a row before it writes there, and writes zeros for one that is masked."""
    xs = [(3 * jax.random.normal(jax.random.key(0), shape)).astype(dtype) for shape in SHAPES]
    options = {"z_loss": jnp.float32(0.1), "softcap": jnp.float32(5)}

    def run(xs, in_place):
        results = []
        for x in xs:
            rows, classes = x.shape
            labels, weight = jnp.arange(rows) * 7 % classes, jnp.linspace(-1, 1, rows).at[1::3].set(MASKED)
            plain = cross_entropy.cross_entropy(
                ("losses", "gradient"), 2 * x, labels, weight, clip=0.0, in_place=in_place
            )
            with_options = cross_entropy.cross_entropy_with_options(
                *("value_and_grad", ("losses", "gradient"), 4 * x, labels, weight, options),
                clip=0.0,
                classes=classes,
                in_place=in_place,
            )
            results.append((plain, with_options))
        return results

    overwritten, apart = (jax.jit(run, static_argnums=1)(xs, in_place) for in_place in (True, False))
    jax.tree.map(np.testing.assert_array_equal, overwritten, apart)
    for results in overwritten:
        assert not any(np.asarray(result, np.float32)[1::3].any() for result in jax.tree.leaves(results))


def test_chunk_size():
    size = chunks.chunk_size
    assert size(8192, 128256, 2) == 2048  # half a gigabyte of 16-bit logits
    assert size(8191, 128256, 2) == 2048
    assert size(131072, 128256, 2) == 2048
    assert size(8192, 128256, 2, memory=2**30) == 4096
    assert size(5000, 128256, 2) == 1792  # three that are as equal as can be
    assert size(100, 128256, 2) == 100
    assert size(10**6, 2**20, 4) == chunks.FEWEST
    assert size(0, 10, 4) == 1
