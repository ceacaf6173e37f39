"""Divergences from a teacher: derivatives of every order with respect to all operands at once, temperature and beta too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from divergences import KINDS, cells, numbers, sample
from quickly import QUICKLY, jit_quickly


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
    actual = jit_quickly(
        lambda o, t: [transform(ours(kind, target_type, reduction), o, t) for reduction in ("mean", "none")],
        compiler_options=QUICKLY,
    )(operands, tangents)
    with jax.enable_x64(True):
        exact = jax.tree.map(np.float64, (operands, tangents))
        run = jax.jit(lambda o, t: transform(plainly(kind, target_type), o, t), compiler_options=QUICKLY)
        expected = jax.tree.map(np.asarray, run(*exact))
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
        hessian = jax.jit(jax.hessian(lambda z, loss=loss: loss(z[None], x)), compiler_options=QUICKLY)(x[0])
        tolerance.assert_close(hessian, factor * fisher, "a Hessian", operations=tolerance.OPERATIONS_OF_HIGHER_ORDER)


@cells
def test_second_derivatives_beside_classes_without_probability(kind, target_type):
    """They are what they are where the probability is next to nothing: the teacher's, the student's, or both."""
    x, a = sample((3, 6), target_type, scale=1)
    if target_type == "probabilities":
        a = a + np.float32(0.05)
    of_teacher, of_student = np.zeros((2, 3, 6), bool)
    of_teacher[:, :2] = of_student[1:, 1] = True
    of_student[2, 3] = kind == "js"  # the other divergence is infinite there
    v, _ = sample((3, 6), "logits", seed=1, scale=1)
    weights, scalars = np.array([1, 2, 0.5], np.float32), (np.float32(1.5), np.float32(0.4))
    tangents = v, np.float32(0.3), np.float32(0.2)

    def transform(f, operands, tangents):
        x, a, *scalars = operands
        of = jax.grad(lambda x, *scalars: f(x, a, weights, *scalars), (0, 1, 2))
        return jax.jvp(of, (x, *scalars), tangents)

    nothing, little = (-np.inf, -300.0) if target_type == "logits" else (0.0, np.exp(-300.0))
    masked = np.where(of_student, np.float32(-np.inf), x), np.where(of_teacher, np.float32(nothing), a)
    nearly = np.where(of_student, -300, np.float64(x)), np.where(of_teacher, little, np.float64(a))
    actual = jit_quickly(functools.partial(transform, ours(kind, target_type, "mean")))((*masked, *scalars), tangents)
    with jax.enable_x64(True):
        exact = jax.tree.map(np.float64, ((*nearly, *scalars), tangents))
        expected = jit_quickly(functools.partial(transform, plainly(kind, target_type)))(*exact)
        expected = jax.tree.map(np.asarray, expected)
    for result, exact in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        operations = tolerance.OPERATIONS_OF_HIGHER_ORDER
        tolerance.assert_close(result, exact, "a derivative", operations=operations, terms=18, magnitude=1)


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

    @jit_quickly
    def loss(x, a, temperature, beta):
        traces.append(x)
        return jaxloss.jensen_shannon(x, a, temperature=temperature, beta=beta)

    for temperature, beta in ((1.0, 0.5), (2.5, 0.1)):
        static = jaxloss.jensen_shannon(x, a, temperature=temperature, beta=beta)
        tolerance.assert_ulps(loss(x, a, temperature, beta), static, 16)
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
