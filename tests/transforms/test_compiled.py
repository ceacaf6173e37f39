"""Compiled modules: one custom call for value and gradient, and no operation on a whole array beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss._ffi import library
from losses import BINARY, CASES, CATEGORICAL, FLOATS, Case
from modules import custom_call_targets, of_size

ROWS, FEATURES = 16, 64
SIZE = ROWS * FEATURES
cases = pytest.mark.parametrize("case", CASES)
CATEGORICAL_CASE = Case(CATEGORICAL, "indices")
BY_ROWS = pytest.mark.parametrize("case", [case for case in CASES if case.loss.by_rows])
ELEMENTWISE = pytest.mark.parametrize("case", [case for case in CASES if not case.loss.by_rows])


def compiled(function, *operands):
    return jax.jit(function).lower(*operands).compile()


def operands(case, dtype="float32", **kinds):
    return case.sample((ROWS, FEATURES), dtype, **kinds)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@cases
def test_value_and_gradient_are_one_custom_call(case, reduction, dtype):
    with jax.enable_x64(dtype == "float64"):
        module = compiled(lambda x, a: jax.value_and_grad(case.loss)(x, a, reduction=reduction), *operands(case, dtype))
    assert custom_call_targets(module) == [f"{case.loss.in_modules}_value_and_grad"]
    # In float16 the scale that 1/n and the cotangent are comes after the rounding; that of a sum of errors is 1.
    is_scaled = dtype == "float16" and not (case.loss.in_modules == "jaxloss_mse" and reduction == "sum")
    assert of_size(module, SIZE) == ["custom-call", *["fusion"] * is_scaled]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@cases
def test_a_gradient_alone_and_the_d_function_are_the_same_call(case, dtype):
    for gradient in (jax.grad(case.loss), case.loss.gradient):
        module = compiled(gradient, *operands(case, dtype))
        assert custom_call_targets(module) == [f"{case.loss.in_modules}_value_and_grad"]
        assert of_size(module, SIZE) == ["custom-call"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@cases
def test_a_value_alone_writes_no_gradient(case, dtype):
    module = compiled(case.loss, *operands(case, dtype))
    assert custom_call_targets(module) == [f"{case.loss.in_modules}_value"]
    assert of_size(module, SIZE) == []


@cases
def test_options_cost_no_pass_over_the_array(case):
    where, weights = np.arange(ROWS) % 2 > 0, np.ones(ROWS, np.float32)

    def value_and_grad(x, a, where, weights, normalizer):
        options = {"where": where, "weights": weights, "normalizer": normalizer}
        return jax.value_and_grad(case.loss)(x, a, **options)

    module = compiled(value_and_grad, *operands(case), where, weights, np.float32(3))
    assert custom_call_targets(module) == [f"{case.loss.in_modules}_value_and_grad"]
    assert of_size(module, SIZE) == ["custom-call"]


@cases
def test_gradients_of_options_come_from_the_same_call(case):
    """The row losses that the forward pass leaves are all that the gradients of weights and normalizer need."""

    def loss(x, weights, normalizer, a):
        return case.loss(x, a, weights=weights, normalizer=normalizer)

    x, a = operands(case)
    module = compiled(jax.value_and_grad(loss, (0, 1, 2)), x, np.ones(ROWS, np.float32), np.float32(3), a)
    assert custom_call_targets(module) == [f"{case.loss.in_modules}_value_and_grad"]
    assert of_size(module, SIZE) == ["custom-call"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", [case for case in CASES if case.of_target])
def test_float32_targets_of_16_bit_logits_are_read_as_they_are(case, dtype):
    module = compiled(jax.value_and_grad(case.loss), *operands(case, dtype, target_dtype="float32"))
    assert of_size(module, SIZE) == ["custom-call", *["fusion"] * (dtype == "float16")]


@pytest.mark.parametrize("case", [Case(BINARY, "booleans"), Case(BINARY, "integers")])
def test_targets_of_other_types_are_converted_once(case):
    module = compiled(jax.value_and_grad(case.loss), *operands(case))
    assert len(of_size(module, SIZE)) == 2
    assert custom_call_targets(module) == [f"{case.loss.in_modules}_value_and_grad"]


@pytest.mark.parametrize("case", [case for case in CASES if case.of_target])
def test_the_gradient_of_the_target_when_asked_for(case):
    """Only then is it computed: above, one custom call was all that wrote a whole array."""
    module = compiled(jax.grad(case.loss, (0, 1)), *operands(case))
    assert f"{case.loss.in_modules}_value_and_grad" in custom_call_targets(module)
    assert len(of_size(module, SIZE)) > 1


@cases
def test_a_batched_call_is_one_call(case):
    x, a = operands(case)
    module = compiled(jax.vmap(jax.value_and_grad(case.loss)), np.stack([x] * 3), np.stack([a] * 3))
    assert custom_call_targets(module) == [f"{case.loss.in_modules}_value_and_grad"]
    assert of_size(module, 3 * SIZE) == ["custom-call"]


@cases
def test_a_scan_holds_one_call(case):
    x, a = operands(case)

    def total(xs):
        return jax.lax.scan(lambda s, x: (s + case.loss(x, a), None), jnp.zeros(()), xs)[0]

    module = compiled(jax.value_and_grad(total), np.stack([x] * 3))
    assert custom_call_targets(module) == [f"{case.loss.in_modules}_value_and_grad"]


@cases
def test_forward_mode_is_one_call(case):
    x, a = operands(case)
    module = compiled(lambda x, v: jax.jvp(lambda x: case.loss(x, a), (x,), (v,)), x, x)
    assert custom_call_targets(module) == [f"{case.loss.in_modules}_value_and_grad"]


@BY_ROWS
def test_unreduced_rows(case):
    """The forward call leaves two numbers a row, from which a kernel makes the gradient in one pass more."""
    x, a = operands(case)
    module = compiled(lambda x, a: case.loss(x, a, reduction="none"), x, a)
    assert custom_call_targets(module) == [f"{case.loss.in_modules}_value"]
    module = compiled(jax.grad(lambda x, a: case.loss(x, a, reduction="none").sum()), x, a)
    assert custom_call_targets(module) == [
        f"{case.loss.in_modules}_{purpose}" for purpose in ("value_and_stats", "grad")
    ]


def test_the_gradient_of_an_entropy_is_one_call():
    """It reads the logits alone: no statistics have to be known before."""
    x, _ = operands(CATEGORICAL_CASE)
    module = compiled(jax.grad(lambda x: jaxloss.entropy(x).sum()), x)
    assert custom_call_targets(module) == ["jaxloss_cross_entropy_with_options_stats_grad"]


def test_losses_and_statistics_share_the_call_of_their_gradient():
    def of(x, labels):
        losses, stats = jaxloss.categorical_cross_entropy_with_stats(x, labels, reduction="none")
        return (jnp.exp(-losses) * stats.nll - stats.entropy + stats.lse).sum()

    module = compiled(jax.value_and_grad(of), *operands(CATEGORICAL_CASE))
    purposes = ("value_and_stats", "stats_grad")
    assert custom_call_targets(module) == [f"jaxloss_cross_entropy_with_options_{purpose}" for purpose in purposes]


@ELEMENTWISE
def test_unreduced_elements_are_left_to_xla(case):
    module = compiled(jax.value_and_grad(lambda x, a: case.loss(x, a, reduction="none").sum()), *operands(case))
    assert custom_call_targets(module) == []


@cases
def test_names_of_custom_calls(case):
    version = f"_v{library.CALLING_CONVENTION}"
    assert all(name.startswith("jaxloss_") and name.endswith(version) for name in library.TARGETS)
    assert f"{case.loss.in_modules}_value_and_grad{version}" in library.TARGETS
