"""Eager calls do what jitted ones do, and no more: nothing is copied from the host, nothing infinite is written that was not given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import jaxloss.optax
import tolerance
from public_calls import CALLS, IDS, total


@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_nothing_is_copied_from_the_host(call):
    """Not even a scalar, whether numbers are Python's (they are put on the device, which the guard allows) or arrays."""
    operands = {name: jnp.asarray(x) for name, x in call.operands.items()}
    numbers = {name: x for name, x in call.operands.items() if isinstance(x, float)}
    with jax.transfer_guard("disallow"):
        call({**operands, **numbers})


PULLED_BACK = (
    "mse",
    "binary",
    "binary, options",
    "categorical_cross_entropy, labels",
    "categorical_cross_entropy, labels, options",
    "categorical_cross_entropy, probabilities",
    "categorical_cross_entropy, unreduced",
    "kl, probabilities",
    "js, logits",
    "linear_cross_entropy",
    "linear_cross_entropy, options",
)


@pytest.mark.parametrize("name", PULLED_BACK)
def test_nothing_is_copied_on_the_way_back(name):
    """Of a cotangent that is given: `jax.grad` copies its 1 from the host, as it does for any function."""
    call = CALLS[IDS.index(name)]
    operands = {name: jnp.asarray(x) for name, x in call.operands.items()}
    first = next(iter(operands))

    def of_first(x):
        return call({**operands, first: x})

    result = jax.eval_shape(of_first, operands[first])
    cotangent = jnp.ones(result.shape, result.dtype)
    with jax.transfer_guard("disallow"):
        jax.vjp(of_first, operands[first])[1](cotangent)


def test_the_guard_sees_a_scalar():
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
        jnp.zeros(3) + 1


X = np.array([[1.0, -np.inf, 2.0], [0.0, 1.0, -np.inf]], np.float32)
LABELS = np.array([0, 1])
PROBABILITIES = np.array([[0.5, 0.0, 0.5], [0.5, 0.5, 0.0]], np.float32)
TEACHER = jnp.array([[0.5, -np.inf, 1.5], [0.5, 0.0, -np.inf]], np.float32)
MASKED = {
    "labels": lambda x: jaxloss.categorical_cross_entropy(x, LABELS),
    "labels, none": lambda x: jaxloss.categorical_cross_entropy(x, LABELS, reduction="none"),
    "probabilities": lambda x: jaxloss.categorical_cross_entropy(x, PROBABILITIES),
    "probabilities, none": lambda x: jaxloss.categorical_cross_entropy(x, PROBABILITIES, reduction="none"),
    "options": lambda x: jaxloss.categorical_cross_entropy(x, LABELS, z_loss=0.25, temperature=2.0, where=LABELS > 0),
    "padding": lambda x: jaxloss.categorical_cross_entropy(x, LABELS, num_classes=2),
    "log_prob": lambda x: jaxloss.log_prob(x, LABELS),
    "kl": lambda x: jaxloss.kl_divergence(x, PROBABILITIES),
    "kl of logits": lambda x: jaxloss.kl_divergence(x, TEACHER, target_type="logits"),
    "js": lambda x: jaxloss.jensen_shannon(x, TEACHER),
    "drop-in, labels": lambda x: jaxloss.optax.softmax_cross_entropy_with_integer_labels(x, LABELS),
    "drop-in": lambda x: jaxloss.optax.softmax_cross_entropy(x, PROBABILITIES),
}


@pytest.mark.parametrize("loss", MASKED.values(), ids=MASKED)
def test_masked_logits_are_no_infinite_results(loss):
    """Under `jax_debug_infs`, eager or jitted: no program that a loss runs gives back an infinite logit."""
    x = jnp.asarray(X)
    value_and_grad = jax.value_and_grad(lambda x: loss(x).sum())
    with jax.debug_infs(True):
        for function in (loss, value_and_grad, jax.jit(value_and_grad)):
            function(x)


def test_an_infinite_loss_is_seen():
    with jax.debug_infs(True), pytest.raises(FloatingPointError):
        jaxloss.categorical_cross_entropy(X, np.array([1, 1]), clip=None)


EVALUATED = (*PULLED_BACK, "linear_cross_entropy, none", "linear_log_prob", "linear_cross_entropy_with_stats, options")


@pytest.mark.parametrize("name", EVALUATED)
def test_compile_time_evaluation(name):
    """Numbers, value and gradient, although every constant is an array there."""
    call = CALLS[IDS.index(name)]
    operands = {name: jnp.asarray(x) for name, x in call.operands.items()}
    first = next(iter(operands))
    gradient = jax.value_and_grad(lambda x: total(call({**operands, first: x})))
    with jax.ensure_compile_time_eval():
        evaluated = gradient(operands[first])
    assert all(isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) for x in evaluated)
    for result, expected in zip(evaluated, gradient(operands[first]), strict=True):
        tolerance.assert_close(result, expected, name, terms=operands[first].size, magnitude=1)
