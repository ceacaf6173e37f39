"""`jaxloss.optax` against optax itself in float64: any operands, axes and masks; values, gradients, tangents, types, errors.

What differs on purpose is in `test_optax_differences.py`, and is not drawn here.
"""

import functools
import inspect
import math
import subprocess
import sys
import warnings
from collections.abc import Callable

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tolerance
from jaxloss import optax as ours
from optax_forms import ERRORS_OF, FORMS, LARGE, NUMBERS, Form
from quickly import QUICKLY

NAMES = ours.__all__


@functools.cache
def compiled(form: Form, which) -> Callable:
    """Of all operands, tangents and a cotangent: the value of the function of `which` module, its tangent, its gradients."""

    def everything(operands, dots, cotangent):
        of_live, live = restricted(form, which, operands)
        if which is ours:
            value, pull = jax.vjp(of_live, *live)
            return value, jax.jvp(of_live, live, dots)[1], pull(cotangent)
        value, along = jax.linearize(of_live, *live)  # one trace for both
        return value, along(*dots), jax.linear_transpose(along, *live)(cotangent)

    return jax.jit(everything, compiler_options=QUICKLY)


def restricted(form: Form, which, operands) -> tuple[Callable, list]:
    """The function of a module, of the operands that are differentiated, and these."""

    def of_live(*live):
        named = operands | dict(zip(form.differentiated, live, strict=True))
        return getattr(which, form.name)(**named, **form.options)

    return of_live, [operands[name] for name in form.differentiated]


def eighths(like) -> np.ndarray:
    """Numbers of that shape and type."""
    return (np.round(8 * np.cos(np.arange(math.prod(like.shape)))) / 8).reshape(like.shape).astype(like.dtype)


@st.composite
def calls(draw, form: Form) -> dict[str, np.ndarray]:
    """Values for the operands of a form."""
    numbers = LARGE if draw(st.booleans()) else NUMBERS
    drawn = {}
    for name, o in form.operands.items():
        elements = numbers if o.elements is NUMBERS else o.elements
        values = draw(arrays.arrays(np.float64, o.shape, elements=elements.map(float), fill=st.nothing()))
        drawn[name] = values.astype(o.dtype)
    if form.name.endswith("integer_labels") and "where" in drawn:
        drawn["labels"] = of_included(drawn, form.options["axis"])
    return drawn


def of_included(drawn: dict[str, np.ndarray], axis) -> np.ndarray:
    """The labels, but those of a class that is masked, of which optax is wrong, replaced by one that is not."""
    shape, where, labels = drawn["logits"].shape, drawn["where"], drawn["labels"]
    if where.ndim != len(shape):
        return labels
    axes = [one % len(shape) for one in (axis if isinstance(axis, tuple) else (axis,))]
    order = [at for at in range(len(shape)) if at not in axes] + axes
    included = np.broadcast_to(where, shape).transpose(order).reshape((*labels.shape, -1))
    is_there = np.take_along_axis(included, labels[..., None].astype(int), -1)[..., 0]
    return np.where(is_there, labels, included.argmax(-1)).astype(labels.dtype)


def magnitude(form: Form, call: dict[str, np.ndarray], but: str = "") -> float:
    """Of the largest terms of a loss, or of its derivative with respect to the operand `but`.

    A loss is a sum of products of what it is given; that of an error, at most its square.
    """
    sizes = {name: 1 + np.abs(x.astype(np.float64)).max(initial=0) for name, x in call.items()}
    if ERRORS_OF[0] in call:
        of_error = sum(sizes.pop(name) for name in ERRORS_OF)
        sizes["error"] = of_error if but else of_error**2
    elif form.name == "sigmoid_focal_loss" and but == "labels":
        sizes["inverse of a label"] = 16
    elif form.name != "kl_divergence_with_log_targets":  # where exp(log_targets) stays
        sizes.pop(but, None)
    return 2 * float(
        np.prod([*sizes.values(), *(1 + abs(v) for v in form.options.values() if isinstance(v, float | np.float32))])
    )


@pytest.mark.filterwarnings("ignore:.*convex_kl_divergence:DeprecationWarning")
@pytest.mark.parametrize("form", FORMS, ids=str)
@hypothesis.settings(max_examples=6)
@hypothesis.given(data=st.data())
def test_any_call(form, data):
    """The value, gradients and tangent are those of optax in float64; shapes and types those of optax."""
    call = data.draw(calls(form))
    floats = {name: x for name, x in call.items() if not np.issubdtype(x.dtype, np.integer) and x.dtype != bool}
    with jax.enable_x64(any(x.itemsize == 8 for x in call.values())):
        promised = promises(form)
        dots, cotangent = [eighths(call[name]) for name in form.differentiated], eighths(promised[0])
        results = value, tangent, gradients = compiled(form, ours)(call, dots, cotangent)
    with jax.enable_x64(True):
        exact = jax.tree.map(wide, (call, dots, cotangent))
        expected = compiled(form, optax.losses)(*exact)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), results) == jax.tree.map(lambda x: (x.shape, x.dtype), promised)

    computed = np.float64 if all(x.dtype == np.float64 for x in floats.values()) else np.float32
    terms = max(x.size for x in call.values())

    def check(what, actual, exact, magnitude, summed=1):
        """`summed`: how many numbers that were rounded to the type of the result were added up to it."""
        exact = np.asarray(exact)
        largest = tolerance.bound(exact, magnitude, computed=computed, stored=actual.dtype, operations=32, terms=terms)
        rounded = 0.0 if summed == 1 else summed * tolerance.epsilon(actual.dtype) * magnitude
        tolerance.assert_within(actual, exact, largest + rounded, f"{what} of {call}")

    check("value", value, expected[0], magnitude(form, call))
    tangent_size = sum(x.size * magnitude(form, call, name) for name, x in call.items() if name in form.differentiated)
    check("tangent", tangent, expected[1], tangent_size)
    for name, gradient, exact in zip(form.differentiated, gradients, expected[2], strict=True):
        shape = np.broadcast_shapes(*(x.shape for k, x in call.items() if k in form.differentiated))
        check(
            f"gradient with respect to {name}",
            gradient,
            exact,
            magnitude(form, call, name),
            summed=math.prod(shape) // gradient.size,
        )


def wide(x: np.ndarray) -> np.ndarray:
    return x if np.issubdtype(x.dtype, np.integer) or x.dtype == bool else x.astype(np.float64)


@functools.cache
def promises(form: Form):
    """Shapes and types of optax's results; a tangent is as a value is, a gradient as an operand."""
    operands = {name: jax.ShapeDtypeStruct(o.shape, np.dtype(o.dtype)) for name, o in form.operands.items()}
    value = jax.eval_shape(lambda operands: getattr(optax.losses, form.name)(**operands, **form.options), operands)
    return value, value, tuple(operands[name] for name in form.differentiated)


@pytest.mark.parametrize(("name", "axis"), [("softmax_cross_entropy", 0), ("poly_loss_cross_entropy", -1)])
def test_a_class_that_is_masked_is_as_good_as_deleted(name, axis):
    """Value, gradients and tangent, those of labels too, are what optax says of the others in float64."""
    rng = np.random.default_rng(0)
    x, a, x_dot, a_dot = rng.standard_normal((4, 3, 6)).astype(np.float32)
    kept = np.array([True, True, False, True, False, True])
    operands = [np.moveaxis(array, -1, axis) for array in (x, abs(a), x_dot, a_dot)]
    where = np.moveaxis(np.broadcast_to(kept, x.shape), -1, axis)
    spoilt = [np.where(where, array, np.float32(7)) for array in operands]

    def results(function, x, a, x_dot, a_dot):
        value, pull = jax.vjp(function, x, a)
        return value, jax.jvp(function, (x, a), (x_dot, a_dot))[1], *pull(jnp.ones_like(value))

    masked = jax.jit(
        lambda *operands: results(lambda x, a: getattr(ours, name)(x, a, axis=axis, where=where), *operands),
        compiler_options=QUICKLY,
    )
    deleted = jax.jit(
        lambda *operands: results(lambda x, a: getattr(optax.losses, name)(x, a, axis=axis), *operands),
        compiler_options=QUICKLY,
    )
    found = masked(*spoilt)
    with jax.enable_x64(True):
        exact = deleted(*(np.compress(kept, array, axis).astype(np.float64) for array in operands))
    for what, array, expected in zip(("value", "tangent", "gradient", "gradient of labels"), found, exact, strict=True):
        if array.ndim == 2:
            assert (array[~where] == 0).all()
            array = np.compress(kept, array, axis)
        tolerance.assert_close(array, expected, what, terms=6, magnitude=4.0)


def test_second_derivatives():
    """Of formulas with derivatives of their own, in float64, and under vmap."""

    def second(module):
        def of(function):
            return jax.vmap(jax.grad(jax.grad(lambda x, a: function(x, a).sum())), (0, None))

        elements = (module.huber_loss, module.log_cosh, module.sigmoid_binary_cross_entropy, module.sigmoid_focal_loss)
        rows = jax.vmap(jax.hessian(lambda x: module.softmax_cross_entropy(x, jnp.array([0.25, 0.5, 0.25]))))
        return lambda x: [of(function)(x, 0.25) for function in elements] + [rows(x.reshape(-1, 3))]

    x = np.linspace(-3.0, 3.1, 18)
    with jax.enable_x64(True):
        results = (jax.jit(second(module), compiler_options=QUICKLY)(x) for module in (ours, optax.losses))
        for found, expected in zip(*results, strict=True):
            operations = tolerance.OPERATIONS_OF_HIGHER_ORDER
            tolerance.assert_close(
                found, expected, "a second derivative", computed=np.float64, operations=operations, magnitude=3.0
            )


def test_every_function_is_drawn():
    assert {form.name for form in FORMS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    """Names, order, kinds and defaults of the parameters."""

    def parameters(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(inspect.unwrap(function)).parameters.values()]

    assert parameters(getattr(ours, name)) == parameters(getattr(optax.losses, name))


def test_deprecated_name_warns_as_optax_does():
    p = jnp.full(2, 0.5)
    for function in (ours.convex_kl_divergence, optax.losses.convex_kl_divergence):
        with pytest.warns(DeprecationWarning, match="generalized_kl_divergence"):
            function(jnp.log(p), p)


X, ONE_HOT, LABELS = jnp.zeros((2, 3)), jnp.eye(3)[:2], jnp.array([0, 1])
CE, INDICES = "softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"
MASKED = {
    CE: (X, ONE_HOT),
    INDICES: (X, LABELS),
    "poly_loss_cross_entropy": (X, ONE_HOT),
    "kl_divergence": (X, ONE_HOT),
}
ERRORS = [
    *((name, (X.astype(int), ONE_HOT), {}) for name in NAMES if name not in ("smooth_labels", "hinge_loss", "perceptron_loss", "sparsemax_loss", INDICES, "ranking_softmax_loss")),
    *((name, (X, jnp.ones((2, 4))), {}) for name in NAMES if name not in ("smooth_labels", INDICES, "sparsemax_loss", "ranking_softmax_loss")),
    *((name, (X, jnp.ones(2)), {}) for name in NAMES if name not in ("smooth_labels", INDICES)),
    *((name, args, {"axis": axis}) for name, args in MASKED.items() for axis in (2, -3, (0, 5), (1, 1), (1, -1))),
    *((name, args, {"axis": 1.0}) for name, args in MASKED.items()),
    *((name, args, {"where": where}) for name, args in MASKED.items() for where in (jnp.ones((2, 3)), jnp.ones((2, 3), int), jnp.ones((2, 2), bool), jnp.ones(4, bool))),
    *((INDICES, (X, LABELS), {"axis": axis}) for axis in (None, [1], "1")),
    *((INDICES, (X, labels), {}) for labels in (jnp.zeros(3, int), jnp.zeros((2, 1), int), jnp.zeros((1, 2), int), jnp.zeros((), int), LABELS > 0, LABELS * 1.0)),
    (INDICES, (X.astype(int), LABELS), {}),
    (INDICES, (jnp.float32(1), jnp.int32(0)), {}),
    (CE, (jnp.float32(1), jnp.float32(0)), {}),
    ("kl_divergence", (X, ONE_HOT.astype(int)), {}),
    ("kl_divergence_with_log_targets", (X, ONE_HOT.astype(int)), {}),
    ("poly_loss_cross_entropy", (X, ONE_HOT.astype(int)), {}),
    ("smooth_labels", (ONE_HOT.astype(int), 0.1), {}),
    *(("smooth_labels", (ONE_HOT, 0.1), {"axis": axis}) for axis in (2, -3, (1, 1), 1.0)),
    ("smooth_labels", (ONE_HOT, 0.1), {"where": jnp.ones((2, 3, 1), bool)}),
    *((name, (X, jnp.ones(())), {}) for name in ("squared_error", "l2_loss", "perceptron_loss")),
    ("huber_loss", (X,), {"delta": jnp.ones(2)}),
    ("ranking_softmax_loss", (X.astype(int), ONE_HOT), {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "options"), ERRORS)
def test_what_is_an_error_of_optax_is_one_here(name, args, options):
    """Of the same type; but one about shapes or axes is always a ValueError, where optax has TypeErrors too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises((TypeError, ValueError)) as theirs:
            getattr(optax.losses, name)(*args, **options)
        with pytest.raises((TypeError, ValueError)) as mine:
            getattr(ours, name)(*args, **options)
    about_shapes = any(words in str(theirs.value) for words in ("shape", "permutation"))
    assert mine.type is (ValueError if about_shapes else theirs.type), mine.value


@pytest.mark.parametrize("name", ["squared_error", "l2_loss", "huber_loss", "hinge_loss", "sparsemax_loss"])
def test_results_are_as_weakly_typed(name):
    """A loss of Python numbers takes the type of what it is then multiplied with."""
    args = (jnp.full(2, 1.0), jnp.full(2, 1.0))
    assert getattr(ours, name)(*args).weak_type
    assert getattr(optax.losses, name)(*args).weak_type


@pytest.mark.parametrize("name", [CE, INDICES])
def test_kernels_run(name):
    """The loss of classes is the custom call of jaxloss, beside which the logits are read for nothing else."""
    text = jax.jit(getattr(ours, name)).lower(X, LABELS if name == INDICES else ONE_HOT).as_text()
    assert "jaxloss_cross_entropy_value" in text
    assert "stablehlo.exponential" not in text


def test_optax_is_not_needed():
    code = "import sys; sys.modules['optax'] = None; from jaxloss import optax; print(optax.l2_loss(2.0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2.0", done.stderr
