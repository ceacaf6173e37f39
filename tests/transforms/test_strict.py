"""Every public call under JAX's strict settings: nothing is promoted, copied from the host or seen infinite by accident."""

import jax
import jax.numpy as jnp
import pytest

from public_calls import CALLS, IDS, split_operands, total

calls = pytest.mark.parametrize("call", CALLS, ids=IDS)


def traced(call, operands, orders):
    """The value, the gradient of everything that has one, and the second derivative with respect to it: of these orders."""
    real, others = split_operands(operands)

    def value(real):
        return total(call({**real, **others}))

    def second_order(real):
        return jax.jvp(jax.grad(value), (real,), (real,))

    for order in orders:
        jax.eval_shape((value, jax.grad(value), second_order)[order], real)


WHAT = ("Python's numbers", "arrays", "second derivatives", "a bfloat16")


@pytest.mark.parametrize("what", WHAT)
@calls
def test_nothing_is_promoted_by_accident(call, what):
    """Neither ranks nor types: of Python's numbers, which have a type that gives way, and of arrays."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        arrays = {name: jnp.asarray(x) for name, x in call.operands.items()}
        first = next(iter(arrays))
        match what:
            case "Python's numbers":
                jax.eval_shape(lambda: call(call.operands))
            case "arrays":
                traced(call, arrays, (0, 1))
            case "second derivatives":
                traced(call, arrays, (2,))
            case "a bfloat16":
                traced(call, {**arrays, first: arrays[first].astype(jnp.bfloat16)}, (0, 1))
