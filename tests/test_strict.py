"""Every public call under JAX's strict settings: nothing is promoted, copied from the host or seen infinite by accident."""

import jax
import jax.numpy as jnp
import pytest

from public_calls import CALLS, IDS, split_operands, total

calls = pytest.mark.parametrize("call", CALLS, ids=IDS)


def traced(call, operands, order: int):
    """The value, the gradient of everything that has one, and the second derivative with respect to it: up to an order."""
    real, others = split_operands(operands)

    def value(real):
        return total(call({**real, **others}))

    def second_order(real):
        return jax.jvp(jax.grad(value), (real,), (real,))

    for program in (value, jax.grad(value), second_order)[: order + 1]:
        jax.eval_shape(program, real)


@calls
def test_nothing_is_promoted_by_accident(call):
    """Neither ranks nor types: of Python's numbers, which have a type that gives way, and of arrays."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(lambda arrays: call({**call.operands, **arrays}), {})
        operands = {name: jnp.asarray(x) for name, x in call.operands.items()}
        traced(call, operands, 2)
        first = next(iter(operands))
        traced(call, {**operands, first: operands[first].astype(jnp.bfloat16)}, 1)
