"""What is no array, where an array is expected: at once a TypeError that names the argument."""

import jax
import numpy as np
import pytest
from jax.experimental import sparse

import jaxloss
from jaxloss import optax as drop_ins
from public_calls import CALLS, IDS

SPARSE = sparse.BCOO((np.ones(5, np.float32), np.stack([np.arange(5)] * 2, 1)), shape=(5, 5))
ODD = {
    "a sparse array": SPARSE,
    "a string": "target",
    "strings": np.array(["a", "b"]),
    "None": None,
    "a set": {1.0, 2.0},
    "a dictionary": {"a": 1.0},
    "lists of unequal length": [[1.0, 2.0], [3.0]],
    "objects": np.array([1.0, None], object),
    "a list of sparse arrays": [SPARSE] * 2,
    "a shape without values": jax.ShapeDtypeStruct((4, 5), np.float32),
    "a function": lambda: None,
    "a type": np.float32,
    "random keys": jax.random.key(0),
    "dates": np.array(["2026-01-01"], "datetime64[D]"),
}


@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_what_is_no_array_is_a_type_error(call):
    for argument in call.operands:
        for what, odd in ODD.items():
            if odd is None and argument in call.optional:
                continue  # the default of many
            if argument == "normalizer" and isinstance(odd, str):
                continue  # of which one has a meaning
            listed = "labels" if "hidden" in call.operands else "target"
            of_pair = {"indices": f"{listed}[0]", "probabilities": f"{listed}[1]"}
            name = {"other": "target", "share": "share", **of_pair}.get(argument, argument)
            with pytest.raises(TypeError) as error:
                call({**call.operands, argument: odd})
            assert name in str(error.value), f"{argument} is {what}: {error.value}"


def test_every_public_function_is_in_the_table():
    functions = {call.function for call in CALLS}
    others = {"backends", "debug_checks", "export_checks"}
    for module in (jaxloss, drop_ins):
        for name in module.__all__:
            function = getattr(module, name)
            if callable(function) and not isinstance(function, type) and name not in others:
                assert function in functions or name == "convex_kl_divergence", name


def test_lists_and_numbers_are_arrays():
    assert jaxloss.mse([1.0, 3.0], [1, 2]) == 0.25
    assert jaxloss.mse(3.0, (np.float32(1))) == 2
    assert jaxloss.categorical_cross_entropy([[0.0, 0.0]], [np.int32(1)]) == jaxloss.categorical_cross_entropy(
        np.zeros((1, 2), np.float32), np.array([1])
    )
