"""Divergences from a teacher: wrong arguments, compiled modules, formulas."""

import functools

import jax
import numpy as np
import pytest

from divergences import CELLS, FORMULAS, KINDS, assert_agrees, cells, check, everything, expected_of, numbers, sample
from modules import custom_call_targets, of_size
from paths import no_kernels

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
        ("kl", ValueError, ("temperature", "0.0", "greater than 0"), (X, X), {"temperature": np.float32(0)}),
        ("js", ValueError, ("beta", "-1", "between 0 and 1"), (X, X), {"beta": np.int32(-1)}),
        ("js", TypeError, ("beta", "bool"), (X, X), {"beta": True}),
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
        ("js", ValueError, ("beta", "1.5", "between 0 and 1"), (X, X), {"beta": np.array(1.5)}),
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
