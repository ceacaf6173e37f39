"""Divergences from a teacher: values, gradients of every operand, higher derivatives, options, edges, compiled modules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import oracles
import tolerance
from jaxloss import formulas
from losses import REDUCTIONS
from modules import custom_call_targets, of_size
from test_formulas import no_kernels

OPERATIONS = 2 * tolerance.OPERATIONS
"""Of two softmaxes, where a loss of one has half as many."""

KINDS = {
    "kl": (jaxloss.kl_divergence, jaxloss.d_kl_divergence, oracles.kl_divergence, formulas.kl_divergence),
    "js": (jaxloss.jensen_shannon, jaxloss.d_jensen_shannon, oracles.jensen_shannon, formulas.jensen_shannon),
}
FORMULAS = {"kl": formulas.d_kl_divergence, "js": formulas.d_jensen_shannon}
CELLS = [(kind, target_type) for kind in KINDS for target_type in ("logits", "probabilities")]
cells = pytest.mark.parametrize(("kind", "target_type"), CELLS)


def sample(shape, target_type, dtype="float32", target_dtype=None, *, axis=-1, seed=0, scale=3.0):
    """Student's logits and a teacher; probabilities do not quite sum to 1, and some are 0."""
    rng = np.random.default_rng(seed)
    x, y = scale * rng.standard_normal((2, *shape))
    if target_type == "probabilities":
        y = np.where(y > -scale, np.exp(y), 0)
        y = 1.1 * y / np.maximum(y.sum(axis, keepdims=True), 1e-9)
    return x.astype(dtype), y.astype(target_dtype or dtype)


def numbers(kind, temperature, beta):
    """The options that are numbers, by name."""
    return {"temperature": temperature, **({"beta": beta} if kind == "js" else {})}


def check(actual, exact, what, *, computed=np.float32, terms=1):
    error = tolerance.bound(*exact, computed=computed, stored=actual.dtype, operations=OPERATIONS, terms=terms)
    tolerance.assert_within(actual, exact[0], error, what)


def expected_of(kind, target_type, x, a, *, temperature=1.0, beta=0.5, **options):
    """Oracle's results with options, and with them in `of_temperature` and `of_beta` the gradients of those numbers."""
    numerical = {name: float(value) for name, value in numbers(kind, temperature, beta).items()}
    elements = functools.partial(KINDS[kind][2], target_type=target_type, **numerical)
    found = oracles.reduced(elements, x, a, by_rows=True, **options)
    of_numbers = {}
    for name in numerical:
        # A number's derivative is reduced like the loss.
        def of_rows(x, a, clip, name=name):
            terms = elements(x, a, clip)
            return oracles.Terms(getattr(terms, f"of_{name}"), terms.of_prediction, terms.of_target)

        value, size = oracles.reduced(of_rows, x, a, by_rows=True, **options).value
        of_numbers[name] = value.sum(), size.sum()
    return found, of_numbers


@functools.cache
def everything(kind, target_type, reduction, static=()):
    """A jitted function to the value, the value beside the gradients, these, and what the `d_` function gives."""
    loss, d_loss, _, _ = KINDS[kind]
    options = {"target_type": target_type, "reduction": reduction, **dict(static)}

    def all_of_it(x, a, where, live):
        def scalar(x, a, live):
            losses = loss(x, a, where=where, **live, **options)
            return losses.sum(), losses

        (_, losses), gradients = jax.value_and_grad(scalar, (0, 1, 2), has_aux=True)(x, a, live)
        return scalar(x, a, live)[1], losses, gradients, d_loss(x, a, where=where, **live, **options)

    return jax.jit(all_of_it)


def assert_agrees(kind, target_type, x, a, *, reduction="mean", where=None, temperature=1.3, beta=0.3, **options):
    """That jaxloss and the oracle agree about value and every gradient; numbers are traced."""
    live = {name: np.float32(value) for name, value in numbers(kind, temperature, beta).items()}
    live |= {name: options.pop(name) for name in ("weights", "normalizer") if name in options}
    given = {name: live[name] for name in live if name not in ("temperature", "beta")}
    given |= {"where": where, "reduction": reduction, **options}
    with jax.enable_x64(np.float64 in (x.dtype, a.dtype)):
        run = everything(kind, target_type, reduction, tuple(options.items()))
        value, beside, (of_x, of_a, of_live), d_x = run(x, a, where, live)
        expected, of_numbers = expected_of(
            kind, target_type, x, a, **{name: live[name] for name in numbers(kind, 0, 0)}, **given
        )
        computed = tolerance.arithmetic(np.float64 if np.float64 in (x.dtype, a.dtype) else x.dtype)
        told = functools.partial(check, computed=computed)
        for what, actual in (("value", value), ("value beside the gradients", beside)):
            assert actual.dtype == computed
            told(actual, expected.value, what, terms=expected.terms)
        for what, actual, like in (("student", of_x, x), ("d_ function", d_x, x)):
            assert actual.dtype == like.dtype
            told(actual, expected.of_prediction, f"gradient of the {what}", terms=x.shape[-1])
        assert of_a.dtype == a.dtype
        told(of_a, expected.of_target, "gradient of the teacher", terms=x.shape[-1])
        for name, actual in of_live.items():
            exact = of_numbers[name] if name in of_numbers else getattr(expected, f"of_{name}")
            told(actual, exact, f"gradient of {name}", terms=expected.terms)


# ---- values and gradients -------------------------------------------------------------------------------------------

WIDTHS = [*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 1000, 1024, 1025, 4099, 32003]


def assert_kernels_agree(shape, dtype, target_dtype=None):
    """Losses and gradients of both divergences from both kinds of teacher, in one program."""
    operands = {cell: sample(shape, cell[1], dtype, target_dtype) for cell in CELLS}

    @jax.jit
    def results(*operands):
        def both(kind, target_type, x, a):
            loss, d_loss, *_ = KINDS[kind]
            options = {"target_type": target_type, "reduction": "none", **numbers(kind, 1.7, 0.3)}
            return loss(x, a, **options), d_loss(x, a, **options)

        return [both(*cell, *pair) for cell, pair in zip(CELLS, operands, strict=True)]

    computed = tolerance.arithmetic(np.float64 if "float64" in (dtype, target_dtype) else dtype)
    for cell, (losses, gradient) in zip(CELLS, results(*operands.values()), strict=True):
        expected, _ = expected_of(*cell, *operands[cell], temperature=1.7, beta=0.3, reduction="none")
        assert losses.dtype == computed
        assert gradient.dtype == dtype
        check(losses, expected.value, f"losses of {cell}", computed=computed, terms=shape[-1])
        check(gradient, expected.of_prediction, f"gradient of {cell}", computed=computed, terms=shape[-1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(width, dtype):
    """The kernels at every kind of width."""
    assert_kernels_agree((1 + 600 // width, width), dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@cells
def test_gradients_of_every_operand(kind, target_type, reduction):
    x, a = sample((4, 3, 9), target_type)
    assert_agrees(kind, target_type, x, a, reduction=reduction)


@pytest.mark.parametrize(
    ("dtype", "target_dtype"),
    [
        ("bfloat16", "float32"),
        ("float16", "float16"),
        ("float16", "float32"),
        ("float16", "bfloat16"),
        ("float32", "bfloat16"),
        ("float32", "float64"),
        ("float64", "float64"),
        ("float64", "float32"),
    ],
)
def test_types(dtype, target_dtype):
    with jax.enable_x64("float64" in (dtype, target_dtype)):
        assert_kernels_agree((9, 75), dtype, target_dtype)


@pytest.mark.parametrize(("dtype", "target_dtype"), [("bfloat16", "bfloat16"), ("float16", "float32")])
@cells
def test_types_of_gradients(kind, target_type, dtype, target_dtype):
    assert_agrees(kind, target_type, *sample((5, 21), target_type, dtype, target_dtype))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@cells
def test_options(kind, target_type, reduction):
    """Rows that are left out hold NaN; where and weights of different shapes; another axis."""
    x, a = sample((4, 9, 3), target_type, axis=1)
    where = np.array([[True, False, True], [True] * 3, [False] * 3, [True, True, False]])
    x[~np.broadcast_to(where[:, None], x.shape)] = np.nan
    a[~np.broadcast_to(where[:, None], x.shape)] = np.inf
    weights = np.array([0.5, 2.0, 1.0, -0.7], np.float32)[:, None, None]
    options = {"normalizer": np.float32(3.5)} if reduction == "mean" else {}
    assert_agrees(kind, target_type, x, a, reduction=reduction, where=where, weights=weights, axis=1, **options)


@cells
def test_the_mean_is_over_the_rows_that_count(kind, target_type):
    x, a = sample((6, 5), target_type)
    where = np.array([True, False, True, False, False, True])
    loss = functools.partial(KINDS[kind][0], target_type=target_type)
    mean, total = loss(x, a, where=where), loss(x, a, where=where, reduction="sum")
    np.testing.assert_allclose(mean, total / 3, rtol=1e-6)
    assert loss(x, a, where=np.zeros(6, bool)) == 0
    assert not jax.grad(loss)(x, a, where=np.zeros(6, bool)).any()


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (2, 0, 4)], ids=str)
@cells
def test_small_and_empty(kind, target_type, shape):
    assert_agrees(kind, target_type, *sample(shape, target_type))


@cells
def test_rows_without_classes(kind, target_type):
    x = np.zeros((3, 0), np.float32)
    loss = functools.partial(KINDS[kind][0], target_type=target_type)
    value, gradient = jax.value_and_grad(loss)(x, x)
    assert value == 0
    assert gradient.shape == (3, 0)


def test_a_vector_is_one_row():
    x, a = sample((7,), "logits")
    np.testing.assert_array_equal(jaxloss.kl_divergence(x, a, target_type="logits", reduction="none").shape, ())
    assert_agrees("js", "logits", x, a)


# ---- exactness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1e4, -1e4, 3e37])
@cells
def test_offsets_cancel(kind, target_type, offset):
    """Integers, which an offset of 1e4 leaves exact: the results do not change in any bit but that of an addition."""
    x, a = (np.round(2 * t) for t in sample((6, 40), "logits"))
    x, a = x.astype(np.float32), a.astype(np.float32)
    if offset > 1e5:
        x[:, ::3], a[:, ::3] = -offset, -offset  # so far below the others that they have no probability
        x[:, 1] = offset
        a[:, 1] = offset
    else:
        x, a = x + np.float32(offset), a + np.float32(2 * offset)
    if target_type == "probabilities":
        a = np.exp(a - a.max(-1, keepdims=True)) / 3
    assert_agrees(kind, target_type, x, a)


@cells
def test_masked_classes(kind, target_type):
    """-Inf in both is no class at all: exact zeros, and the results of the others alone."""
    x, a = sample((5, 9), target_type)
    masked = np.arange(9) % 3 == 1
    with_masked, of_teacher = (
        np.where(masked, -np.inf, x),
        np.where(masked, -np.inf if target_type == "logits" else 0, a),
    )
    with_masked, of_teacher = with_masked.astype(np.float32), of_teacher.astype(np.float32)
    assert_agrees(kind, target_type, with_masked, of_teacher)
    loss = functools.partial(KINDS[kind][0], target_type=target_type, temperature=1.3)
    value, gradients = jax.value_and_grad(loss, (0, 1))(with_masked, of_teacher)
    alone, of_alone = jax.value_and_grad(loss, (0, 1))(x[:, ~masked], a[:, ~masked])
    tolerance.assert_close(value, alone, "a loss", operations=OPERATIONS)
    for gradient, expected in zip(gradients, of_alone, strict=True):
        assert (np.asarray(gradient)[:, masked] == 0).all()
        tolerance.assert_close(np.asarray(gradient)[:, ~masked], expected, "a gradient", operations=OPERATIONS)


def test_classes_masked_for_the_student_alone():
    x, a = sample((4, 6), "logits")
    x[:, 2] = -np.inf
    value, gradient = jax.value_and_grad(jaxloss.kl_divergence)(x, jax.nn.softmax(a))
    assert value == np.inf
    assert np.isfinite(gradient).all()
    assert_agrees("js", "logits", x, a)
    a[:, 3] = -np.inf  # and one for the teacher alone
    assert_agrees("js", "logits", x, a)
    assert np.isfinite(jaxloss.jensen_shannon(x, a, beta=1e-6))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_and_close_distributions(dtype):
    x, _ = sample((50, 301), "logits", dtype)
    for loss in (functools.partial(jaxloss.kl_divergence, target_type="logits"), jaxloss.jensen_shannon):
        losses, gradient = loss(x, x, reduction="none"), jax.grad(loss)(x, x)
        assert (losses == 0).all()
        assert (gradient == 0).all()
    shifted = (x.astype(np.float32) + 100).astype(np.float32)
    difference = shifted - 100 - x.astype(np.float32)  # what adding 100 has rounded
    close = jaxloss.jensen_shannon(shifted, x.astype(np.float32), reduction="none")
    assert (np.asarray(close) <= np.square(difference).max() + tolerance.epsilon("float32")).all()


@pytest.mark.parametrize("beta", [0.5, 0.1, 0.9, 1e-3, 0.999])
def test_beta(beta):
    x, a = sample((6, 40), "logits")
    assert_agrees("js", "logits", x, a, beta=beta)
    assert_agrees("js", "probabilities", *sample((6, 40), "probabilities"), beta=beta)


def test_the_limits_of_beta_are_the_divergences_that_the_error_names():
    with jax.enable_x64(True):
        x, a = sample((6, 12), "logits", "float64", scale=1)
        forward = jaxloss.kl_divergence(x, a, target_type="logits")
        reverse = jaxloss.kl_divergence(a, x, target_type="logits")
        np.testing.assert_allclose(jaxloss.jensen_shannon(x, a, beta=1e-7) / 1e-7, forward, rtol=1e-5)
        np.testing.assert_allclose(jaxloss.jensen_shannon(x, a, beta=1 - 1e-7) / 1e-7, reverse, rtol=1e-5)


def test_the_two_are_symmetric():
    x, a = sample((6, 12), "logits")
    np.testing.assert_allclose(
        jaxloss.jensen_shannon(x, a, beta=0.2), jaxloss.jensen_shannon(a, x, beta=0.8), rtol=1e-5
    )


@cells
def test_a_class_that_is_not_a_number(kind, target_type):
    x, a = sample((3, 5), target_type)
    x[1, 2] = np.nan
    losses = KINDS[kind][0](x, a, target_type=target_type, reduction="none")
    assert np.isnan(losses).tolist() == [False, True, False]


# ---- derivatives of every order -------------------------------------------------------------------------------------


def plainly(kind, target_type):
    """The mean loss in `jax.numpy`, of student, teacher, weights, temperature and beta."""

    def loss(x, a, weights, temperature, beta):
        log_p = jax.nn.log_softmax(x / temperature)
        log_q = jax.nn.log_softmax(a / temperature) if target_type == "logits" else jnp.log(a)
        q = jnp.exp(log_q)
        if kind == "kl":
            losses = jnp.einsum("rv,rv->r", q, log_q - log_p)
        else:
            p = jnp.exp(log_p)
            log_m = jnp.log(beta * q + (1 - beta) * p)
            losses = beta * jnp.einsum("rv,rv->r", q, log_q - log_m)
            losses += (1 - beta) * jnp.einsum("rv,rv->r", p, log_p - log_m)
        return jnp.einsum("r,r->", losses, weights) / losses.size

    return loss


def ours(kind, target_type, reduction):
    def loss(x, a, weights, temperature, beta):
        options = {"target_type": target_type, "weights": weights, **numbers(kind, temperature, beta)}
        losses = KINDS[kind][0](x, a, reduction=reduction, **options)
        return losses if reduction == "mean" else losses.mean()

    return loss


ALL = tuple(range(5))
DERIVATIVES = {
    "jvp": lambda f, o, v: jax.jvp(f, o, v),
    "forward_over_reverse": lambda f, o, v: jax.jvp(jax.grad(f, ALL), o, v)[1],
    "reverse_over_reverse": lambda f, o, v: jax.grad(lambda *o: _dot(jax.grad(f, ALL)(*o), v), ALL)(*o),
    "reverse_over_forward": lambda f, o, v: jax.grad(lambda *o: jax.jvp(f, o, v)[1], ALL)(*o),
    "third_order": lambda f, o, v: jax.jvp(lambda *o: jax.jvp(jax.grad(f, ALL), o, v)[1], o, v)[1],
    "vmap": lambda f, o, v: jax.vmap(jax.value_and_grad(f, ALL), (0, None, 0, 0, None))(
        *(jnp.stack([t, t + u]) if place in (0, 2, 3) else t for place, (t, u) in enumerate(zip(o, v, strict=True)))
    ),
    "vmap_of_numbers": lambda f, o, v: jax.vmap(jax.grad(f, ALL), (None, None, None, 0, 0))(
        *o[:3], *(jnp.stack([t, t + u, t - u]) for t, u in zip(o[3:], v[3:], strict=True))
    ),
}


def _dot(tree, other):
    return sum(jnp.sum(a * b) for a, b in zip(tree, other, strict=True))


@pytest.mark.parametrize("name", DERIVATIVES)
@cells
def test_derivatives_of_all_operands(kind, target_type, name):
    """Each transform of the loss as a function of all its operands at once, with both ways to reduce it."""
    x, a = sample((4, 6), target_type, scale=1)
    v, w = sample((4, 6), "logits", seed=1, scale=1)
    if target_type == "probabilities":
        a, w = a + np.float32(0.05), w / 10  # no zeros: the formula's derivative is infinite there
    scalars = np.float32(1.5), np.float32(0.4)
    operands = x, a, np.linspace(0.5, 2, 4, dtype=np.float32), *scalars
    tangents = v, w, np.linspace(-1, 1, 4, dtype=np.float32), np.float32(0.3), np.float32(0.2)
    transform = DERIVATIVES[name]
    actual = jax.jit(
        lambda o, t: [transform(ours(kind, target_type, reduction), o, t) for reduction in ("mean", "none")]
    )(operands, tangents)
    with jax.enable_x64(True):
        exact = jax.tree.map(np.float64, (operands, tangents))
        expected = jax.tree.map(np.asarray, jax.jit(lambda o, t: transform(plainly(kind, target_type), o, t))(*exact))
    for results in actual:
        for result, exact in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
            operations = tolerance.OPERATIONS_OF_HIGHER_ORDER
            tolerance.assert_close(result, exact, name, operations=operations, terms=24, magnitude=1)


def test_where_a_probability_is_zero_its_derivative_is_zero():
    x = np.zeros((1, 3), np.float32)
    a = np.array([[0.5, 0.5, 0]], np.float32)
    for loss in (jaxloss.kl_divergence, functools.partial(jaxloss.jensen_shannon, target_type="probabilities")):
        gradient = jax.grad(loss, 1)(x, a)
        assert gradient[0, 0] == gradient[0, 1] != 0
        assert gradient[0, 2] == 0
        assert np.isfinite(jax.jvp(lambda a, loss=loss: loss(x, a), (a,), (np.ones_like(a),))[1])


def test_second_derivatives_of_equal_distributions():
    """There the divergences are smooth: the second derivative is Fisher's information."""
    x, _ = sample((1, 5), "logits")
    p = np.asarray(jax.nn.softmax(x[0].astype(np.float64)))
    fisher = np.diag(p) - np.outer(p, p)
    for loss, factor in (
        (functools.partial(jaxloss.kl_divergence, target_type="logits"), 1),
        (jaxloss.jensen_shannon, 0.25),
    ):
        hessian = jax.hessian(lambda z, loss=loss: loss(z[None], x))(x[0])
        tolerance.assert_close(hessian, factor * fisher, "a Hessian", operations=tolerance.OPERATIONS_OF_HIGHER_ORDER)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@cells
def test_a_scan_saves_nothing_wider_than_its_logits(kind, target_type, reduction):
    x, a = sample((16, 64), target_type, "bfloat16")

    def total(xs):
        def step(sum_so_far, x):
            return sum_so_far + KINDS[kind][0](x, a, target_type=target_type, reduction=reduction).sum(), None

        return jax.lax.scan(step, jnp.zeros(()), xs)[0]

    program = str(jax.make_jaxpr(jax.grad(total))(np.stack([x] * 7)))
    assert "bf16[7,16,64]" in program
    assert "f32[7,16,64]" not in program


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_a_schedule_does_not_compile_again():
    x, a = sample((3, 5), "logits")
    traces = []

    @jax.jit
    def loss(x, a, temperature, beta):
        traces.append(x)
        return jaxloss.jensen_shannon(x, a, temperature=temperature, beta=beta)

    for temperature, beta in ((1.0, 0.5), (2.5, 0.1)):
        static = jaxloss.jensen_shannon(x, a, temperature=temperature, beta=beta)
        np.testing.assert_allclose(loss(x, a, temperature, beta), static, rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("name", "values"), [("temperature", (0.0, -1.0, np.nan, np.inf)), ("beta", (0.0, 1.0, -1, 2))]
)
def test_arrays_out_of_range_are_loud(name, values):
    x, a = sample((3, 5), "logits")
    for value in values:
        value = jnp.float32(value)
        assert np.isnan(jaxloss.jensen_shannon(x, a, **{name: value}))
        assert np.isnan(jax.grad(lambda x, value=value: jaxloss.jensen_shannon(x, a, **{name: value}))(x)).all()


def test_high_temperatures_need_their_factor():
    """As the docstring says: gradients fall like 1 / T², which `temperature**2` makes up for."""
    x, a = sample((3, 5), "logits")

    def size(temperature):
        gradient = jaxloss.d_kl_divergence(x, a, target_type="logits", temperature=temperature)
        return float(jnp.abs(temperature**2 * gradient).max())

    np.testing.assert_allclose(size(1000.0), size(100.0), rtol=0.05)


# ---- errors ---------------------------------------------------------------------------------------------------------

X = np.zeros((8, 4), np.float32)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    ("kind", "error", "words", "operands", "options"),
    [
        ("kl", ValueError, ("target", "(8, 3)", "logits", "(8, 4)"), (X, X[:, :3]), {}),
        ("kl", ValueError, ("target", "(8,)", "(8, 4)"), (X, X[:, 0]), {}),
        ("js", ValueError, ("teacher_logits", "(8, 3)", "student_logits", "(8, 4)"), (X, X[:, :3]), {}),
        ("kl", TypeError, ("logits", "int32", "float32"), (X.astype(int), X), {}),
        ("js", TypeError, ("student_logits", "bool", "float32"), (X > 0, X), {}),
        ("kl", TypeError, ("target", "complex64"), (X, X.astype("complex64")), {}),
        ("js", TypeError, ("teacher_logits", "complex64"), (X, X.astype("complex64")), {}),
        (
            "kl",
            ValueError,
            ("target_type", "'log_probabilities'", "'probabilities'", "'logits'"),
            (X, X),
            {"target_type": "log_probabilities"},
        ),
        ("kl", ValueError, ("temperature", "0", "greater than 0"), (X, X), {"temperature": 0}),
        ("js", ValueError, ("temperature", "-1.5", "greater than 0"), (X, X), {"temperature": -1.5}),
        ("js", ValueError, ("temperature", "inf"), (X, X), {"temperature": float("inf")}),
        ("js", ValueError, ("temperature", "nan"), (X, X), {"temperature": float("nan")}),
        ("kl", TypeError, ("temperature", "str"), (X, X), {"temperature": "hot"}),
        ("kl", TypeError, ("temperature", "bool"), (X, X), {"temperature": True}),
        ("kl", TypeError, ("temperature", "complex64"), (X, X), {"temperature": np.complex64(1)}),
        ("kl", ValueError, ("temperature", "(8,)", "scalar"), (X, X), {"temperature": np.ones(8)}),
        (
            "js",
            ValueError,
            ("beta", "0", "between 0 and 1", "kl_divergence(student_logits, teacher_logits"),
            (X, X),
            {"beta": 0},
        ),
        (
            "js",
            ValueError,
            ("beta", "1.0", "between 0 and 1", "kl_divergence(teacher_logits, student_logits"),
            (X, X),
            {"beta": 1.0},
        ),
        ("js", ValueError, ("beta", "1.5", "between 0 and 1"), (X, X), {"beta": 1.5}),
        ("js", ValueError, ("beta", "(2,)", "scalar"), (X, X), {"beta": np.ones(2)}),
        ("kl", ValueError, ("axis", "2", "2 axes"), (X, X), {"axis": 2}),
        ("kl", ValueError, ("logits", "()"), (X[0, 0], X[0, 0]), {}),
        ("kl", ValueError, ("weights", "(4,)", "(8,)"), (X, X), {"weights": np.ones(4)}),
        ("js", ValueError, ("axis_name", "'v'", "does not vary"), (X, X), {"axis_name": "v"}),
    ],
)
def test_wrong_arguments(kind, error, words, operands, options, gradient):
    with pytest.raises(error) as raised:
        KINDS[kind][gradient](*operands, **options)
    for word in words:
        assert word in str(raised.value)


# ---- compiled modules -----------------------------------------------------------------------------------------------

ROWS, CLASSES = 16, 64
NAMES = {"kl": "jaxloss_kl_divergence", "js": "jaxloss_jensen_shannon"}


def compiled(function, *operands):
    return jax.jit(function).lower(*operands).compile()


@pytest.mark.parametrize(("dtype", "target_dtype"), [("float32", "float32"), ("bfloat16", "float32")])
@cells
def test_one_custom_call(kind, target_type, dtype, target_dtype):
    """Value and gradient; the `d_` function; with a temperature that is learnt: one call, and nothing of the size beside."""
    x, a = sample((ROWS, CLASSES), target_type, dtype, target_dtype)
    loss, d_loss, *_ = KINDS[kind]
    options = {"target_type": target_type}

    def learnt(x, a, temperature, weights):
        return loss(x, a, temperature=temperature, weights=weights, **options)

    name = f"{NAMES[kind]}_of_{target_type}"
    weights = np.ones(ROWS, np.float32)
    for module in (
        compiled(jax.value_and_grad(functools.partial(loss, **options)), x, a),
        compiled(functools.partial(d_loss, **options), x, a),
        compiled(jax.value_and_grad(learnt, (0, 3)), x, a, np.float32(2), weights),
    ):
        assert custom_call_targets(module) == [f"{name}_value_and_grad"]
        assert of_size(module, x.size) == ["custom-call"]
    module = compiled(jax.value_and_grad(learnt, (0, 2)), x, a, np.float32(2), weights)
    assert custom_call_targets(module) == [f"{name}_value_and_grad"]
    module = compiled(functools.partial(loss, **options), x, a)
    assert custom_call_targets(module) == [f"{name}_value"]
    assert of_size(module, x.size) == []
    module = compiled(
        jax.vmap(jax.grad(learnt), (0, 0, 0, None)), np.stack([x, x]), np.stack([a, a]), np.ones(2), weights
    )
    assert custom_call_targets(module) == [f"{name}_value_and_grad"]


# ---- formulas -------------------------------------------------------------------------------------------------------


@cells
def test_formulas(kind, target_type):
    x, a = sample((5, 9), target_type)
    options = {"target_type": target_type, **numbers(kind, 1.3, 0.3)}
    expected, _ = expected_of(kind, target_type, x, a, temperature=1.3, beta=0.3, reduction="none")
    check(KINDS[kind][3](x, a, **options), expected.value, "a formula", terms=9)
    check(FORMULAS[kind](x, a, **options), expected.of_prediction, "the derivative", terms=9)
    gradient = jax.grad(lambda x: KINDS[kind][3](x, a, **options).sum())(x)
    check(gradient, expected.of_prediction, "jax.grad of a formula", terms=9)


def test_without_kernels():
    """Where a platform has none the formula takes their place, rows that are left out and all."""
    everything.cache_clear()
    with no_kernels():
        for kind, target_type in CELLS:
            x, a = sample((4, 7), target_type)
            x[1] = np.nan
            where, weights = np.array([True, False, True, True]), np.array([1, 2, 0, -3], np.float32)
            for reduction in ("mean", "none"):
                assert_agrees(kind, target_type, x, a, reduction=reduction, where=where, weights=weights)
            assert_agrees(kind, target_type, *sample((0, 3), target_type))
    everything.cache_clear()
