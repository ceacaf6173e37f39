"""Every public call, with every option, on meshes whose axes are explicit, or explicit and automatic, with no mesh in context.

What a call gives is what it gives of the same operands on one device, and what varies is a derivative of everything that has
one. A loss is one program here: which placements there are is `test_sharding.py`'s.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import meshes
from public_calls import CALLS, CLASSES, IDS, ROWS, split_operands, total

pytestmark = meshes.several_devices

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
TYPES = {"explicit": (EXPLICIT, EXPLICIT), "explicit rows": (EXPLICIT, AUTO), "explicit classes": (AUTO, EXPLICIT)}


def placed(mesh, x):
    """Rows over d, classes over v."""
    axes = {ROWS: "d", CLASSES: "v"}
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*(axes.get(size) for size in np.shape(x)))))


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_results_are_those_of_one_device(call, types):
    mesh = meshes.mesh_of_types(TYPES[types])
    operands = {name: jnp.asarray(x) for name, x in call.operands.items()}

    def program(operands):
        real, others = split_operands(operands)
        value = lambda real: total(call({**real, **others}))  # noqa: E731
        return call(operands), jax.grad(value)(real) if call.differentiable else ()

    expected = jax.jit(program)(operands)
    actual = jax.jit(program)({name: placed(mesh, x) for name, x in operands.items()})
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6, err_msg=call.name)
