"""What only a GPU can show: every regime of the CUDA kernels, arrays of more than 2³¹ elements, CUDA graphs, determinism.

The rest of the suite runs on the GPU as it does on the CPU: `pytest -m gpu`.
"""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from agreement import assert_agrees
from losses import CASES, CATEGORICAL, MATRIX, MSE, Case, Sum

pytestmark = pytest.mark.gpu

BY_ROWS = pytest.mark.parametrize("case", [case for case in CASES if case.loss.by_rows])
(CATEGORICAL_INDICES,) = (case for case in CASES if case.loss is CATEGORICAL and case.target == "indices")
ELEMENTWISE = pytest.mark.parametrize(
    "case", [case for case in MATRIX if not case.loss.by_rows and not isinstance(case.loss, Sum)]
)


def test_this_build_has_kernels_for_the_gpu():
    assert jaxloss.backends().cuda


# Rows and classes: several rows a block, a row a warp, a row a block or a cluster in registers, or streamed;
# widths that 128-bit loads divide and widths that they do not.
ROW_SIZES = [
    (1000, 2),
    (1000, 10),
    (301, 33),
    (301, 100),
    (64, 1000),
    (64, 1024),
    (33, 1025),
    (16, 4096),
    (8, 8192),
    (8, 8191),
    (5, 32000),
    (5, 32001),
    (4, 50257),
    (4, 65536),
    (3, 128256),
    (2, 262144),
    (2, 262147),
    (1, 1_000_003),
]
# So many rows that they go in tiles, and the values of longer ones in chunks; neither kernel's work divides evenly.
MANY_ROWS = [(3_300_003, 3), (500_003, 31), (300_003, 64), (120_003, 257), (8501, 2501)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", ROW_SIZES, ids=str)
@BY_ROWS
def test_regimes_of_rows(case, size, dtype):
    x, a = case.sample(size, dtype)
    assert_agrees(case, x, a)


def near_each_other(size, dtype):
    """Logits, and labels. An exponential errs by more units the further its logit is below the largest: among millions of
    logits as other tests have them there are some of which that is more than the oracle allows.
    """
    x, a = CATEGORICAL_INDICES.sample(size, dtype)
    return x / np.array(4, x.dtype), a


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", MANY_ROWS, ids=str)
def test_regimes_of_many_rows(size, dtype):
    assert_agrees(CATEGORICAL_INDICES, *near_each_other(size, dtype))


@pytest.mark.parametrize("size", [(500_003, 31), (8501, 2501)], ids=str)
def test_many_rows_of_which_some_are_taken_out(size):
    x, a = near_each_other(size, "bfloat16")
    where = np.arange(size[0]) % 3 != 1
    x[~where] = np.nan
    assert_agrees(CATEGORICAL_INDICES, x, a, where=where)


@BY_ROWS
@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("size", [(100, 10), (8, 8192), (3, 32001), (2, 128256)], ids=str)
def test_regimes_of_rows_of_other_types(case, size, dtype):
    assert_agrees(case, *case.sample(size, dtype))


@BY_ROWS
@pytest.mark.parametrize("size", [(300, 100), (64, 1024), (9, 8192), (5, 32001), (3, 128256)], ids=str)
def test_regimes_with_rows_taken_out(case, size):
    """Rows of every kind next to each other: counted, taken out and full of NaN, weighing nothing, with a masked class."""
    x, a = case.sample(size)
    where = np.arange(size[0]) % 3 != 1
    weights = np.resize(np.array([1, 0.5, 0, -2], np.float32), size[0])
    x[~where] = np.nan
    x[0, 1] = -np.inf
    if case.target == "indices":
        a[0] = 0
    else:
        a[0, 1] = 0
    assert_agrees(case, x, a, where=where, weights=weights)
    assert_agrees(case, x, a, where=where, weights=weights, reduction="none")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape", [(1,), (1_000_003,), (7, 100_003), (100_003, 7), (3, 16_384), (2, 16_385), (1, 5_000_001)], ids=str
)
@ELEMENTWISE
def test_regimes_of_elements(case, shape, dtype):
    x, a = case.sample(shape, dtype)
    assert_agrees(case, x, a)
    assert_agrees(case, x, a, where=np.arange(shape[0]) % 2 == 0)


@ELEMENTWISE
def test_unaligned_rows(case):
    """A row that begins where no 128-bit load can: after rows of an odd width."""
    for width in (1, 3, 5, 9, 127):
        x, a = case.sample((33, width), "bfloat16")
        assert_agrees(case, x, a, weights=np.linspace(0.5, 1.5, 33, dtype=np.float32))


def test_more_elements_than_an_int32_counts():
    rows, width = 2**16, 2**15 + 8

    @jax.jit
    def made():
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, width), 0) % 251
        column = jax.lax.broadcasted_iota(jnp.int32, (rows, width), 1) % 127
        return ((row - column) / 64).astype(jnp.bfloat16), (row / 128).astype(jnp.bfloat16)

    x, a = made()
    assert x.size > 2**31
    _, gradient = jax.jit(jax.value_and_grad(lambda x, a: MSE(x, a, reduction="sum")))(x, a)
    for rows_of in (slice(0, 2), slice(2**15 - 1, 2**15 + 1), slice(rows - 2, rows)):
        few = [np.asarray(t[rows_of]) for t in (x, a)]
        expected = Case(MSE, "numbers").expected(*few, reduction="sum").of_prediction[0]
        tolerance.assert_close(np.asarray(gradient[rows_of]), expected, "a gradient beyond 2³¹ elements")


@pytest.mark.parametrize(("rows", "classes"), [(2**16 + 8, 2**15), (2**14 + 1, 2**17 + 8)])
@BY_ROWS
def test_more_logits_than_an_int32_counts(case, rows, classes):
    @jax.jit
    def made():
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, classes), 0) % 251
        column = jax.lax.broadcasted_iota(jnp.int32, (rows, classes), 1) % 127
        return ((row - column) / 64).astype(jnp.bfloat16), (column / classes / 64).astype(jnp.bfloat16)

    x, probabilities = made()
    a = jnp.arange(rows, dtype=jnp.int32) * 7 % classes if case.target == "indices" else probabilities
    del probabilities
    assert x.size > 2**31
    losses = jax.jit(lambda x, a: case.loss(x, a, reduction="none"))(x, a)
    gradient = jax.jit(lambda x, a: case.loss.gradient(x, a, reduction="sum"))(x, a)
    for rows_of in (slice(0, 2), slice(rows // 2, rows // 2 + 2), slice(rows - 2, rows)):
        few = [np.asarray(t[rows_of]) for t in (x, a)]
        expected = case.expected(*few, reduction="none")
        for actual, exact in ((losses[rows_of], expected.value), (gradient[rows_of], expected.of_prediction)):
            error = tolerance.bound(*exact, computed=np.float32, stored=actual.dtype, terms=classes)
            tolerance.assert_within(np.asarray(actual), exact[0], error, "a result beyond 2³¹ elements")


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_in_every_run(case):
    for shape in ((2000, 100), (16, 50_000)):
        x, a = map(jnp.asarray, case.sample(shape))
        step = jax.jit(jax.value_and_grad(case.loss))
        first = jax.tree.map(np.asarray, step(x, a))
        for _ in range(10):
            jax.tree.map(np.testing.assert_array_equal, step(x, a), first)


CAPTURED = """
import sys
sys.path.insert(0, {support!r})
import jax
from agreement import assert_agrees
from losses import CASES
for case in CASES:
    for shape in ((64, 100), (4, 40_000)):
        x, a = map(jax.numpy.asarray, case.sample(shape))
        compiled = jax.jit(lambda x, a: jax.value_and_grad(case.loss)(x * 1.5, a)).lower(x, a).compile()
        first = compiled(x, a)
        for _ in range(5):  # the first runs record the graph, the later ones replay it
            assert all((p == q).all() for p, q in zip(compiled(x, a), first))
        assert_agrees(case, *case.sample(shape))
print("agreed")
"""


def test_captured_in_a_cuda_graph(tmp_path):
    """A step's custom call is recorded in a command buffer, and replayed with the same bits."""
    flags = "--xla_gpu_enable_command_buffer=FUSION,CUSTOM_CALL --xla_gpu_graph_min_graph_size=1"
    flags += f" --xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    code = CAPTURED.format(support=str(pathlib.Path(__file__).parents[1] / "support"))
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.stdout.strip().endswith("agreed"), ran.stderr[-4000:]
    # What XLA runs in the end, in order: a command buffer, and in it the custom call.
    steps = [path.read_text() for path in tmp_path.glob("*thunk_sequence_after*")]
    steps = [text for text in steps if "kCustomCall" in text]
    assert steps, sorted(path.name for path in tmp_path.iterdir())[:40]
    for text in steps:
        assert text.index("kCommandBuffer") < text.index("kCustomCall"), text
