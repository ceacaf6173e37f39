"""`sigmoid_contrastive` against float64: value and every gradient, small losses, types, transforms, the compiled program, errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from modules import of_size, temporary_bytes
from quickly import jit_quickly
from tolerance import assert_trees_near as assert_near

N, WIDTH = 37, 5
RNG = np.random.default_rng(0)


def embeddings(n=N, width=WIDTH):
    x = RNG.normal(size=(n, width))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


OPERANDS = embeddings(), embeddings(), np.float32(3), np.float32(-2)
TANGENTS = tuple(0.3 * RNG.normal(size=np.shape(x)).astype(np.float32) for x in OPERANDS)
COTANGENTS = RNG.normal(size=N).astype(np.float32)
ALL = (0, 1, 2, 3)


def ours(a, b, scale, bias, **options):
    return jaxloss.sigmoid_contrastive(a, b, scale=scale, bias=bias, **{"chunk_size": 8, **options})


def unreduced(a, b, scale, bias):
    return (ours(a, b, scale, bias, reduction="none") * COTANGENTS).sum()


def formula_of_rows(a, b, scale, bias):
    x, n = scale * (a @ b.T) + bias, len(a)
    return jax.nn.softplus(jnp.where(jnp.eye(n, dtype=bool), -x, x)).sum(-1)


def formula(*operands):
    return formula_of_rows(*operands).mean()


def unreduced_formula(*operands):
    return (formula_of_rows(*operands) * COTANGENTS).sum()


def exactly(function, *operands):
    """In float64."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), operands)
        return jax.tree.map(np.asarray, jit_quickly(function)(*wide))


@pytest.fixture(scope="module")
def expected():
    return exactly(jax.value_and_grad(formula, ALL), *OPERANDS)


@pytest.mark.parametrize("chunk_size", [1, 10, N, None])
def test_value_and_gradients(chunk_size, expected):
    function = jax.value_and_grad(lambda *o: ours(*o, chunk_size=chunk_size), ALL)
    actual = jit_quickly(function)(*OPERANDS)
    assert_near(actual, expected)
    assert actual[0].dtype == jnp.float32


def test_float64(expected):
    with jax.enable_x64(True):
        wide = [np.asarray(x, np.float64) for x in OPERANDS]
        assert_near(jit_quickly(jax.value_and_grad(ours, ALL))(*wide), expected, 1e-13)


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 2**-7), ("float16", 2**-10)])
def test_16_bits(dtype, share):
    """Only the gradient of logits is rounded, and what comes of its products: the value is that of the rounded embeddings.

    The loss of float16 is scaled as for training.
    """
    a, b = (x.astype(dtype) for x in OPERANDS[:2])
    exact = exactly(jax.value_and_grad(formula, ALL), a, b, *OPERANDS[2:])
    scale = 2.0**-12 if dtype == "float16" else 1.0
    value, gradients = jit_quickly(jax.value_and_grad(lambda *o: scale * ours(*o), ALL))(a, b, *OPERANDS[2:])
    assert_near(value / scale, exact[0])
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype, "float32", "float32"]
    assert_near(tuple(np.asarray(x, np.float64) / scale for x in gradients), exact[1], share)


def test_large_gradients_of_float16():
    """Rows whose gradients add up to more than the type holds, before they are divided by n."""
    n = 2048
    a = b = np.full((n, 1), 1, "float16")
    gradient = jax.jit(jax.grad(lambda a: ours(a, b, 100.0, 0.0, chunk_size=None)))(a)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), 100 * (n - 1) / n, rtol=2**-10)


@pytest.mark.parametrize("scale", [60.0, 160.0])
def test_small_losses(scale):
    """Of pairs that are told apart: all of the loss is what the sigmoids lack of 1."""
    a, b = np.eye(N, dtype=np.float32), np.eye(N, dtype=np.float32)
    operands = a, b, np.float32(scale), np.float32(-scale / 2)
    value, gradients = jax.jit(jax.value_and_grad(ours, ALL))(*operands)
    exact, of_operands = exactly(jax.value_and_grad(formula, ALL), *operands)
    assert exact < 1e-11
    assert_near((value, gradients), (exact, of_operands), 2e-5)


def test_a_long_row_is_summed_exactly():
    """Also the gradients of scale and bias, which are sums of all logits'."""
    n = 4096
    operands = embeddings(n, 3), embeddings(n, 3), np.float32(5), np.float32(-9)
    actual = jax.jit(jax.value_and_grad(lambda *o: ours(*o, chunk_size=512), ALL))(*operands)
    assert_near(actual, exactly(jax.value_and_grad(formula, ALL), *operands), 5e-6)


def test_reductions():
    rows = exactly(formula_of_rows, *OPERANDS)
    assert_near(ours(*OPERANDS, reduction="none"), rows)
    assert_near(ours(*OPERANDS, reduction="sum"), rows.sum())
    value, of_normalizer = jax.value_and_grad(lambda n: ours(*OPERANDS, normalizer=n))(7.0)
    assert_near((value, of_normalizer), (rows.sum() / 7, -rows.sum() / 49))
    assert ours(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), 1.0, 0.0) == 0


def along(f):
    return lambda *o: jax.jvp(f, o, tuple(t.astype(x.dtype) for t, x in zip(TANGENTS, o, strict=True)))[1]


def dot(tree):
    return sum(map(jnp.vdot, tree, TANGENTS))


TRANSFORMS = {
    "jvp_of_scaled": lambda f: along(lambda *o: 3 * f(*o) ** 2),
    "forward_over_reverse": lambda f: along(jax.grad(f, ALL)),
    "reverse_over_reverse": lambda f: jax.grad(lambda *o: dot(jax.grad(f, ALL)(*o)), ALL),
    "reverse_over_forward": lambda f: jax.grad(along(f), ALL),
    "vmap": lambda f: (
        lambda *o: [
            jax.vmap(jax.value_and_grad(f, ALL), [0 if i in mapped else None for i in ALL])(
                *(jnp.stack([x, 0.5 * x]) if i in mapped else x for i, x in enumerate(o))
            )
            for mapped in ((0,), (1, 2), (0, 1, 3))
        ]
    ),
    "grad_of_scan": lambda f: jax.grad(
        lambda a, b, scale, bias: jax.lax.scan(
            lambda c, x: (c + jax.checkpoint(f)(a, b, scale, x), None), 0.0, jnp.stack([bias, 2 * bias])
        )[0],
        ALL,
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("forward_over_reverse", "vmap") else [pytest.mark.slow])
        for name in TRANSFORMS
    ],
)
def test_transforms(name):
    def of(mean, none):
        return lambda *o: [TRANSFORMS[name](f)(*o) for f in (mean, none)]

    actual = jit_quickly(of(ours, unreduced))(*OPERANDS)
    assert_near(actual, exactly(of(formula, unreduced_formula), *OPERANDS), 5e-5)


# ---- what it compiles to ---------------------------------------------------------------------------------------------

CHUNK, FEATURES = 64, 16


def compiled(function, n):
    operands = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((n, FEATURES), (n, FEATURES), (), ())]
    return jax.jit(function).lower(*operands).compile()


def loss(*operands):
    return ours(*operands, chunk_size=CHUNK)


PRODUCTS = {
    "value": (loss, 1),
    "scale and bias": (jax.value_and_grad(loss, (2, 3)), 1),
    "a": (jax.value_and_grad(loss), 2),
    "all": (jax.value_and_grad(loss, ALL), 3),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_memory(name):
    """No product but those of value and gradients; logits and their gradient are those of a chunk, however large n is."""
    function, count = PRODUCTS[name]
    for n in (8 * CHUNK, 32 * CHUNK):
        module = compiled(function, n)
        found = len(re.findall(r" dot\(|custom_call_target=\"__(?:cublas|onednn)[^\"]*matmul", module.as_text()))
        assert found == count
        assert of_size(module, n * n) == [], "logits are whole"
        # Products and the gradient of logits; sums of embeddings; numbers of rows.
        allowed = 4 * (4.2 * CHUNK * n + 2 * n * FEATURES) + 64 * n
        assert temporary_bytes(module) < allowed


# ---- bad input -------------------------------------------------------------------------------------------------------

ERRORS = {
    "integer": (
        (np.zeros((3, 2), int), OPERANDS[1], 1.0, 0.0),
        {},
        TypeError,
        r"^a has dtype int\d\d: expected one of",
    ),
    "one axis": (
        (np.zeros(3, np.float32),) * 2 + (1.0, 0.0),
        {},
        ValueError,
        r"^a has shape \(3,\): expected two axes",
    ),
    "another n": (
        (*(np.zeros((n, 2), np.float32) for n in (3, 4)), 1.0, 0.0),
        {},
        ValueError,
        r"^b has shape \(4, 2\), a \(3, 2\): expected equal shapes, the pair of each row of a$",
    ),
    "transposed": (
        (*(np.zeros(shape, np.float32) for shape in ((3, 2), (2, 3))), 1.0, 0.0),
        {},
        ValueError,
        r"^b has shape \(2, 3\), a \(3, 2\): .*; write b\.T$",
    ),
    "scale of another shape": (
        (*OPERANDS[:2], np.ones(1, np.float32), 0.0),
        {},
        ValueError,
        r"^scale has shape \(1,\): expected a scalar, a finite number$",
    ),
    "infinite bias": ((*OPERANDS[:3], float("inf")), {}, ValueError, r"^bias is inf: expected a finite number$"),
    "reduction": (OPERANDS, {"reduction": "max"}, ValueError, r"^reduction is 'max': expected one of"),
    "chunk": (OPERANDS, {"chunk_size": 0}, ValueError, r"^chunk_size is 0: expected at least 1, or None$"),
    "no shard_map": (
        OPERANDS,
        {"axis_name": "d"},
        ValueError,
        r"^axis_name is 'd', but a does not vary over 'd': expected an axis of an enclosing shard_map .* the pairs",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    operands, options, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        ours(*operands, **options)


def test_a_traced_number_that_is_none_makes_the_loss_nan():
    assert jnp.isnan(jax.jit(ours)(*OPERANDS[:3], jnp.inf))


def test_debug_checks():
    broken = np.where(np.arange(N)[:, None] == 2, np.nan, OPERANDS[0])
    with (
        pytest.raises(ValueError, match="sigmoid_contrastive: the largest of a of row 2 is nan"),
        jaxloss.debug_checks(),
    ):
        ours(broken, *OPERANDS[1:])
