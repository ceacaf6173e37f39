"""How accurate the CPU kernels are: the functions they are made of, row losses, gradients."""

import subprocess

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxloss
from instruction_sets import FLAGS, compiled, processor_has

pytestmark = pytest.mark.cpu_only

UNITS = {
    "exponential": 2,
    "exponential_of_negative": 2,
    "exponential_minus_one": 2,
    "log_one_plus": 2,
    "logarithm": 2,
    "hyperbolic_tangent": 3,
}


@pytest.mark.parametrize("name", FLAGS)
def test_vector_functions_over_their_whole_range(name, tmp_path):
    if not processor_has(name):
        pytest.skip(f"this processor has no {name}")
    program = compiled("vector_functions.cc", name, tmp_path, "-O2")
    ran = subprocess.run([program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert {function for function, _, _ in lines} == set(UNITS)
    for function, units, at in lines:
        assert float(units) <= UNITS[function], f"{function} of {at} is off by {units} units in the last place"


def rows(classes, dtype, count=35):
    """More rows than a vector has lanes, some of which are sure of their label, some wrong, and a far-off one."""
    generator = np.random.default_rng(classes)
    logits = generator.normal(0, 3, (count, classes))
    labels = generator.integers(0, classes, count)
    logits[1:4, :] += 1000
    logits[np.arange(5, 12), labels[5:12]] += np.arange(5, 12)
    logits = logits.astype(dtype)
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    sums = np.exp(x).sum(-1)
    return logits, labels.astype(np.int32), x, sums


@pytest.mark.parametrize("classes", [2, 7, 16, 65, 131, 1000, 50257])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("target", ["labels", "probabilities"])
def test_rows_of_cross_entropy(classes, dtype, target):
    """A loss within 4 units in the last place (of 1, if it is smaller: there the sum of exponentials is rounded), a
    gradient within 2^-20 of its terms, what their exponents are rounded by, and its own rounding."""
    logits, labels, x, sums = rows(classes, dtype)
    at = np.arange(len(labels))
    if target == "labels":
        a, given = np.zeros_like(x), labels
        a[at, labels] = 1
        losses = np.log(sums) - x[at, labels]
    else:
        given = np.random.default_rng(0).uniform(0, 2 / classes, x.shape).astype(np.float32)
        a = given.astype(np.float64)
        losses = (a * (np.log(sums)[:, None] - x)).sum(-1)

    def losses_of(logits, reduction):
        return jaxloss.categorical_cross_entropy(logits, given, clip=None, reduction=reduction)

    both = jax.jit(lambda logits: (losses_of(logits, "none"), jax.grad(losses_of)(logits, "sum")))
    found, gradient = both(jnp.asarray(logits))
    units = np.abs(np.asarray(found, np.float64) - losses) / np.spacing(np.maximum(losses, 1).astype(np.float32))
    assert units.max() <= 4, f"the loss of row {units.argmax()} is off by {units.max()} units in the last place"

    softmax = np.exp(x) / sums[:, None] * a.sum(-1, keepdims=True)
    exact = softmax - a
    finfo = ml_dtypes.finfo(dtype)
    # x, the difference of a logit and the largest, is rounded to float32, which is an error relative to its exponential.
    relative = 2.0**-20 + 2.0**-24 * np.abs(x)
    bound = relative * (softmax + a) + float(finfo.eps) / 2 * np.abs(exact) + float(finfo.smallest_normal)
    over = np.abs(np.asarray(gradient).astype(np.float64) - exact) / bound
    assert over.max() <= 1, f"a gradient is off by {over.max()} bounds at {np.unravel_index(over.argmax(), over.shape)}"
