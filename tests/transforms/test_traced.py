"""What is traced of a loss: the formula that stands in for a kernel only where a program is compiled for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss._ffi import library
from jaxloss._ffi.call import call
from losses import CASES

ROWS, FEATURES = 16, 64
cases = pytest.mark.parametrize("case", CASES)


@cases
def test_of_a_loss_no_formula_is_traced(case):
    text = str(jax.make_jaxpr(jax.value_and_grad(case.loss))(*case.sample((ROWS, FEATURES), "float32")))
    assert "jaxloss_formula" in text
    assert "= exp" not in text
    # A cotangent's product with the gradient, and little more.
    assert text.count(f":f32[{ROWS},{FEATURES}] = ") < 16


class Formula:
    """The row sums, counted."""

    def __init__(self):
        self.traced = 0

    def __call__(self, x, *_):
        self.traced += 1
        return (x.sum(-1),)


def traced_formulas(platform: str) -> int:
    """How often a formula beside a kernel is traced until its program is lowered for the platform."""
    formula, clip = Formula(), np.float64(0)
    operands = jnp.ones((ROWS, 512)), jnp.zeros(ROWS, jnp.int32), jnp.ones(ROWS)
    results = (jax.ShapeDtypeStruct((ROWS,), jnp.float32),)
    program = jax.jit(lambda *operands: call("cross_entropy_value", results, formula, *operands, clip=clip))
    program.trace(*operands).lower(lowering_platforms=(platform,))
    return formula.traced


def test_a_formula_is_traced_once_where_it_is_lowered():
    kernels = library.PLATFORMS
    assert [traced_formulas(platform) for platform in ("cpu", "tpu")] == [int("cpu" not in kernels), 1]


def test_a_formula_has_the_types_of_the_call():
    """64 bits where they were on when the loss was called, whatever they are when it is lowered."""
    x, labels = np.linspace(-1, 1, 80 * 512).reshape(80, 512), np.arange(80)
    with jax.enable_x64(True):
        traced = jax.jit(lambda x: jaxloss.categorical_cross_entropy(x, labels)).trace(x)
    assert "f64" in traced.lower(lowering_platforms=("tpu",)).as_text()


@cases
def test_a_program_that_is_traced_again_is_the_same(case):
    """A caller's objective with a loss in it is found again by what it does."""
    x, a = case.sample((ROWS, FEATURES), "float32")
    texts = [str(jax.make_jaxpr(lambda x, a: case.loss(x, a))(x, a)) for _ in range(2)]
    assert texts[0] == texts[1]


def test_an_objective_with_a_loss_in_it_is_compiled_once():
    hidden, kernel, labels = jnp.ones((4, 3, 8)), jnp.ones((8, 16)), jnp.zeros((4, 3), jnp.int32)
    target = jnp.zeros((4, 3))
    before = jaxloss._linear.objective.value._cache_size()
    for _ in range(3):

        def objective(tokens, target):
            return jaxloss.huber(tokens.log_prob, target, delta=0.5, reduction="sum")

        jaxloss.linear_objective(hidden, kernel, labels, objective, target)
    assert jaxloss._linear.objective.value._cache_size() == before + 1
