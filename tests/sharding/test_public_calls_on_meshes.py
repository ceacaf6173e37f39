"""Every public call, with every option, on a mesh of explicit axes, and on one whose axes differ in type; no mesh in context.

What a call gives, and the gradient with respect to everything that has one, are those of the same operands on one device.
A call is one program here: which placements there are is `test_sharding.py`'s.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import meshes
import tolerance
from public_calls import CALLS, CLASSES, IDS, ROWS, split_operands, total
from quickly import QUICKLY

pytestmark = meshes.several_devices

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


def placed(mesh, x):
    """Rows over d, classes over v."""
    axes = {ROWS: "d", CLASSES: "v"}
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*(axes.get(size) for size in np.shape(x)))))


@functools.cache
def program(name: str):
    """The results of a call and its gradients, of its operands by name."""
    call = CALLS[IDS.index(name)]

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(operands):
        real, others = split_operands(operands)

        def value(real):
            return total(call({**real, **others}))

        return call(operands), jax.grad(value)(real) if call.differentiable else ()

    return run


@functools.cache
def expected(name: str):
    """On one device."""
    return program(name)({key: jnp.asarray(x) for key, x in CALLS[IDS.index(name)].operands.items()})


@pytest.mark.parametrize("kind", ["explicit", "mixed"])
@pytest.mark.parametrize("name", IDS)
def test_results_are_those_of_one_device(name, kind):
    mixed = [(EXPLICIT, AUTO), (AUTO, EXPLICIT)][IDS.index(name) // 2 % 2]  # CI runs every other call with mixed axes
    mesh = meshes.mesh_of_types((EXPLICIT, EXPLICIT) if kind == "explicit" else mixed)
    operands = {key: placed(mesh, x) for key, x in CALLS[IDS.index(name)].operands.items()}
    actual = program(name)(operands)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected(name)), strict=True):
        if jnp.issubdtype(other.dtype, jnp.floating):  # sums of terms that are about 1, and may cancel
            tolerance.assert_close(one, other, name, terms=32, magnitude=1.0)
        else:
            np.testing.assert_array_equal(one, other, name)
