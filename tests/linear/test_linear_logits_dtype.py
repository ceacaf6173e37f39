"""`logits_dtype` of linear losses: float32 logits of 16-bit operands, exact where rounded ones are not, and what they cost."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import jaxloss
import meshes
import tolerance
from linear_oracle import expected, sample

P = PartitionSpec
N, WIDTH, CLASSES, CHUNK = 48, 256, 1000, 16
S = sample((N,), WIDTH, CLASSES, dtype="bfloat16", scale=3.0)
WIDE = S.hidden.astype(np.float32), S.kernel.astype(np.float32)


def loss(hidden, kernel, **options):
    return jaxloss.linear_cross_entropy(hidden, kernel, S.labels, chunk_size=CHUNK, **options)


def rows(hidden, kernel, **options):
    log_probs = jaxloss.linear_log_prob(hidden, kernel, S.labels, chunk_size=CHUNK, **options)
    return jnp.sum(log_probs * jnp.cos(jnp.arange(N)))


def of_statistics(tokens):
    return (tokens.log_prob * jnp.cos(tokens.lse) - tokens.entropy).sum()


def objective(hidden, kernel, **options):
    return jaxloss.linear_objective(hidden, kernel, S.labels, of_statistics, per="token", chunk_size=CHUNK, **options)


def with_stats(hidden, kernel, **options):
    out, stats = jaxloss.linear_cross_entropy_with_stats(hidden, kernel, S.labels, chunk_size=CHUNK, **options)
    return out + jnp.mean(stats.lse * stats.entropy)


PROGRAMS = {"mean": loss, "rows": rows, "objective": objective, "statistics": with_stats}
OPTIONS = {"bias": S.bias, "softcap": 5.0, "num_classes": CLASSES - 3}


def test_a_log_probability_is_that_of_the_operands():
    exact = -expected(S, 1, with_bias=False).losses[0]
    rounded, kept = (
        np.asarray(jaxloss.linear_log_prob(S.hidden, S.kernel, S.labels, logits_dtype=dtype), np.float64)
        for dtype in (None, jnp.float32)
    )
    assert np.abs(kept - exact).max() <= 1e-5
    assert np.abs(rounded - exact).max() >= 1e-3


def test_gradients_are_of_these_logits():
    """Rounded once for the products, and once as they are stored: in the mean square a third of half an epsilon."""
    exact = expected(S, 1 / N, with_bias=False)
    value, gradients = jax.jit(jax.value_and_grad(lambda *o: loss(*o, logits_dtype="float32"), (0, 1)))(
        S.hidden, S.kernel
    )
    assert abs(float(value) - exact.losses[0].mean()) <= 1e-5
    epsilon = float(jnp.finfo(jnp.bfloat16).eps)
    for gradient, (of, _) in zip(gradients, (exact.of_hidden, exact.of_kernel), strict=True):
        assert gradient.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(gradient, np.float64) - of) / np.linalg.norm(of)
        assert error <= epsilon / 2


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_values_are_those_of_wider_operands(program, options):
    ours = PROGRAMS[program](S.hidden, S.kernel, logits_dtype="float32", **options)
    of = PROGRAMS[program](*WIDE, **options)
    tolerance.assert_close(ours, of, program, terms=WIDTH * N, magnitude=1)


TRANSFORMS = {
    "grad": lambda f, o: jax.grad(f, (0, 1))(*o),
    "hvp": lambda f, o: jax.jvp(jax.grad(f, (0, 1)), o, o)[1],
    "vmap": lambda f, o: jax.vmap(jax.grad(f, (0, 1)), (None, 0))(o[0], jnp.stack([o[1], o[1] / 2])),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_derivatives_are_those_of_wider_operands_rounded(program, name):
    def run(operands, **options):
        def f(*operands):
            return PROGRAMS[program](*operands, **OPTIONS, **options)

        return jax.jit(lambda *operands: TRANSFORMS[name](f, operands))(*operands)

    ours, of = run((S.hidden, S.kernel), logits_dtype="float32"), run(WIDE)
    for actual, ideal in zip(ours, of, strict=True):
        error = np.linalg.norm(np.asarray(actual, np.float64) - ideal) / np.linalg.norm(ideal)
        assert error <= 2 * float(jnp.finfo(jnp.bfloat16).eps), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_products_are_of_16_bit_operands(program, dtype):
    hidden, kernel = S.hidden.astype(dtype), S.kernel.astype(dtype)
    step = jax.jit(jax.value_and_grad(lambda *o: PROGRAMS[program](*o, logits_dtype="float32"), (0, 1)))
    text = step.lower(hidden, kernel).as_text()
    short = {"bfloat16": "bf16", "float16": "f16"}[dtype]
    products = re.findall(
        r"dot_general .*\(tensor<[\dx]+x(\w+)>, tensor<[\dx]+x(\w+)>\) -> tensor<([\dx]+)x(\w+)>", text
    )
    of_logits = [result for *_, shape, result in products if shape == f"{CHUNK}x{CLASSES}"]
    assert "f32" in of_logits
    for first, second, shape, _ in products:
        # The products of tangents with one number a token are none of the kernel's.
        if str(WIDTH) in shape or (first, second) != ("f32", "f32"):
            assert (first, second) == (short, short)


@pytest.mark.parametrize("program", PROGRAMS)
def test_by_default_it_is_the_type_of_the_product(program):
    def text(dtype):
        step = jax.jit(jax.value_and_grad(lambda *o: PROGRAMS[program](*o, logits_dtype=dtype), (0, 1)))
        return step.lower(S.hidden, S.kernel).as_text()

    assert text(None) == text("bfloat16") != text("float32")


def test_a_chunk_has_half_as_many_tokens():
    def chunk(dtype):
        shapes = (16384, 128), (128, 32768)
        operands = [jax.ShapeDtypeStruct(shape, "bfloat16") for shape in shapes]
        labels = jax.ShapeDtypeStruct((16384,), "int32")
        step = jax.jit(lambda *o: jaxloss.linear_cross_entropy(*o, logits_dtype=dtype))
        text = step.lower(*operands, labels).as_text()
        return int(re.findall(r"dot_general .* -> tensor<(\d+)x32768x", text)[0])

    assert (chunk(None), chunk("float32")) == (8192, 4096)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_float64(dtype):
    with jax.enable_x64(True):
        s = sample((N,), 8, 37, dtype=dtype)
        exact = expected(s, 1 / N)

        def value(hidden, kernel, bias):
            return jaxloss.linear_cross_entropy(hidden, kernel, s.labels, bias=bias, logits_dtype=jnp.float64)

        found, gradients = jax.value_and_grad(value, (0, 1, 2))(s.hidden, s.kernel, s.bias)
        assert found.dtype == jnp.float64
        assert abs(float(found) - exact.losses[0].mean()) < 1e-12
        assert [gradient.dtype.name for gradient in gradients] == [dtype, dtype, "float32"]
        for wrt in range(3):  # alone, too
            alone = jax.grad(value, wrt)(s.hidden, s.kernel, s.bias)
            np.testing.assert_allclose(*(np.asarray(x, np.float64) for x in (alone, gradients[wrt])), rtol=1e-2)


@pytest.mark.parametrize("wrt", [0, 1, 2, (0, 1, 2)])
def test_gradients_where_one_operand_alone_is_float64(wrt):
    with jax.enable_x64(True):
        s = sample((N,), 8, 37, dtype="float32", kernel_dtype="float64")

        def value(hidden, kernel, bias):
            return jaxloss.linear_cross_entropy(hidden, kernel, s.labels, bias=bias, chunk_size=CHUNK)

        gradients = jax.tree.leaves(jax.grad(value, wrt)(s.hidden, s.kernel, s.bias))
        exact = expected(s, 1 / N)
        ideals = [(exact.of_hidden, exact.of_kernel, exact.of_bias)[place] for place in np.atleast_1d(wrt)]
        for gradient, ideal in zip(gradients, ideals, strict=True):
            tolerance.assert_close(gradient, ideal[0], "the gradient", terms=N + 37)


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
@pytest.mark.parametrize("axis_name", [None, "v"])
def test_on_several_devices(axis_name):
    """Classes are split by the caller, or by the partitioner."""
    mesh = meshes.mesh(axes=("d", "v"))
    exact = expected(S, np.cos(np.arange(N)), with_bias=False)

    def log_probs(hidden, kernel, labels):
        return jaxloss.linear_log_prob(
            hidden, kernel, labels, logits_dtype="float32", axis_name=axis_name, chunk_size=CHUNK
        )

    specs = P("d"), P(None, "v"), P("d")
    run = jax.shard_map(log_probs, mesh=mesh, in_specs=specs, out_specs=P("d")) if axis_name else log_probs
    shardings = [jax.sharding.NamedSharding(mesh, spec) for spec in specs]
    operands = jax.device_put((S.hidden, S.kernel, S.labels), tuple(shardings))
    out = jax.jit(run)(*operands)
    assert np.abs(np.asarray(out, np.float64) + exact.losses[0]).max() <= 1e-5
    gradients = jax.jit(jax.grad(lambda *o: -jnp.sum(run(*o) * jnp.cos(jnp.arange(N))), (0, 1)))(*operands)
    for gradient, (of, _) in zip(gradients, (exact.of_hidden, exact.of_kernel), strict=True):
        error = np.linalg.norm(np.asarray(gradient, np.float64) - of) / np.linalg.norm(of)
        assert error <= float(jnp.finfo(jnp.bfloat16).eps)
