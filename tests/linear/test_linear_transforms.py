"""Linear cross entropy under the transforms of JAX, with respect to hidden states and kernel at once, against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxloss
import tolerance
from jaxloss._ffi import library
from linear_oracle import sample
from quickly import QUICKLY

TOKENS, WIDTH, CLASSES, HEADS = 10, 4, 13, 3
S = sample((TOKENS,), WIDTH, CLASSES)
V = sample((TOKENS,), WIDTH, CLASSES, seed=1)
HEADS_HIDDEN = sample((HEADS, TOKENS), WIDTH, CLASSES, seed=2).hidden
HEADS_KERNEL = np.stack([sample((1,), WIDTH, CLASSES, seed=seed).kernel for seed in range(HEADS)])


def scalar(losses, reduction):
    """A scalar of hidden states and kernel."""
    if reduction == "mean":
        return lambda h, w: losses(h, w, "mean")
    return lambda h, w: jnp.sum(losses(h, w, "none") * jnp.cos(jnp.arange(TOKENS)))


def ours(h, w, reduction):
    return jaxloss.linear_cross_entropy(h, w, S.labels, reduction=reduction, chunk_size=4)


def formula(h, w, reduction):
    losses = -jnp.take_along_axis(jax.nn.log_softmax(h @ w), S.labels[:, None], -1)[:, 0]
    return losses.mean() if reduction == "mean" else losses


def along(f, o):
    """The derivative along the tangents."""
    return lambda h, w: jax.jvp(f, (h, w), (o["v"], o["u"]))[1]


def gradient_along(f, o):
    return lambda h, w: sum(map(jnp.vdot, jax.grad(f, (0, 1))(h, w), (o["v"], o["u"])))


BOTH = (0, 1)
TRANSFORMS = {
    "jvp": lambda f, o: jax.jvp(f, (o["h"], o["w"]), (o["v"], o["u"])),
    "grad_of_scaled": lambda f, o: jax.grad(lambda h, w: 3 * f(2 * h, w) ** 2, BOTH)(o["h"], o["w"]),
    "forward_over_reverse": lambda f, o: jax.jvp(jax.grad(f, BOTH), (o["h"], o["w"]), (o["v"], o["u"])),
    "reverse_over_reverse": lambda f, o: jax.grad(gradient_along(f, o), BOTH)(o["h"], o["w"]),
    "reverse_over_forward": lambda f, o: jax.grad(along(f, o), BOTH)(o["h"], o["w"]),
    "vmap_heads": lambda f, o: jax.vmap(jax.value_and_grad(f, BOTH))(o["hs"], o["ws"]),
    "vmap_hidden": lambda f, o: jax.vmap(jax.value_and_grad(f, BOTH), (0, None))(o["hs"], o["w"]),
    "vmap_hidden_alone": lambda f, o: jax.vmap(jax.grad(f), (0, None))(o["hs"], o["w"]),
    "vmap_kernels": lambda f, o: jax.vmap(jax.grad(f), (None, 0))(o["h"], o["ws"]),
    "grad_vmap": lambda f, o: jax.grad(lambda hs, w: jax.vmap(f, (0, None))(hs, w).sum(), BOTH)(o["hs"], o["w"]),
    "checkpoint": lambda f, o: jax.grad(jax.checkpoint(lambda h, w: f(jnp.sin(h), w)), BOTH)(o["h"], o["w"]),
    "scan": lambda f, o: jax.grad(
        lambda hs, w: jax.lax.scan(lambda s, h: (s + f(h, w), None), jnp.zeros((), o["h"].dtype), hs)[0], BOTH
    )(o["hs"], o["w"]),
    "cond": lambda f, o: jax.grad(
        lambda h, w: jax.lax.cond(h[0, 0] < 1e9, f, lambda h, w: 0 * h.sum() * w.sum(), h, w), BOTH
    )(o["h"], o["w"]),
}
SECOND_ORDER = {name for name in TRANSFORMS if "_over_" in name}
OF_ROWS = ("jvp", "forward_over_reverse", "reverse_over_reverse", "vmap_heads", "grad_vmap")


def operands(dtype):
    arrays = {"h": S.hidden, "w": S.kernel, "v": V.hidden, "u": V.kernel, "hs": HEADS_HIDDEN, "ws": HEADS_KERNEL}
    return {name: array.astype(dtype) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("name", "reduction"), [*((name, "mean") for name in TRANSFORMS), *((name, "none") for name in OF_ROWS)]
)
def test_agrees_with_the_formula(name, reduction):
    transform = TRANSFORMS[name]

    def run(losses, dtype):
        program = jax.jit(lambda o: transform(scalar(losses, reduction), o), compiler_options=QUICKLY)
        return jax.tree.map(np.asarray, program(operands(dtype)))

    actual = run(ours, np.float32)
    with jax.enable_x64(True):
        exact = run(formula, np.float64)
    order = tolerance.OPERATIONS_OF_HIGHER_ORDER if name in SECOND_ORDER else 2 * tolerance.OPERATIONS
    for result, ideal in zip(jax.tree.leaves(actual), jax.tree.leaves(exact), strict=True):
        tolerance.assert_close(result, ideal, name, operations=order, terms=TOKENS * CLASSES, magnitude=1)


def value_and_gradients(h, w):
    return jax.value_and_grad(scalar(ours, "mean"), BOTH)(h, w)


@pytest.mark.cpu_only
@pytest.mark.parametrize("platforms", [["cpu"], ["cuda"], ["tpu"]])
def test_export(platforms):
    artefact = export.export(
        jax.jit(value_and_gradients), platforms=platforms, disabled_checks=jaxloss.export_checks()
    )(S.hidden, S.kernel)
    called = "jaxloss_cross_entropy_value_and_grad" in artefact.mlir_module()
    assert called == (platforms[0] in library.PLATFORMS)  # elsewhere, the formula
    if platforms == ["cpu"]:
        restored = export.deserialize(artefact.serialize())
        for again, now in zip(
            jax.tree.leaves(restored.call(S.hidden, S.kernel)),
            jax.tree.leaves(jax.jit(value_and_gradients)(S.hidden, S.kernel)),
            strict=True,
        ):
            assert (np.asarray(again) == np.asarray(now)).all()


@pytest.mark.cpu_only
def test_export_with_a_symbolic_number_of_tokens():
    """Chunks need not divide it."""

    def run(hidden, kernel, labels):
        return jax.value_and_grad(lambda *o: jaxloss.linear_cross_entropy(*o, labels, chunk_size=4), BOTH)(
            hidden, kernel
        )

    (tokens,) = export.symbolic_shape("tokens")
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((tokens, WIDTH), "float32"), ((WIDTH, CLASSES), "float32"), ((tokens,), "int32"))
    ]
    artefact = export.export(jax.jit(run), disabled_checks=jaxloss.export_checks())(*shapes)
    for count in (3, 8, 10):
        operands = S.hidden[:count], S.kernel, S.labels[:count]
        results = artefact.call(*operands), jax.jit(run, compiler_options=QUICKLY)(*operands)
        for exported, direct in zip(*map(jax.tree.leaves, results), strict=True):
            tolerance.assert_close(exported, direct, f"of {count} tokens", terms=TOKENS * CLASSES)


def test_eager_is_the_same():
    for eager, jitted in zip(
        jax.tree.leaves(value_and_gradients(S.hidden, S.kernel)),
        jax.tree.leaves(jax.jit(value_and_gradients)(S.hidden, S.kernel)),
        strict=True,
    ):
        tolerance.assert_close(eager, jitted, "an eager result", terms=TOKENS * CLASSES)
