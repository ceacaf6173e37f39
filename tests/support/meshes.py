"""The meshes of the tests about several devices, and what their compiled modules may hold.

Axes are `d`, for rows, and `v`, for classes or features. On eight devices a mesh is 4 × 2, on four 2 × 2. Two devices can
split one axis: that of classes if it alone is asked for, else the rows. Where both are asked for, the axis of classes then
has one device, and the program that splits both runs on it.

The devices are virtual CPU devices, of which `conftest.py` asks for eight, or GPUs where those are JAX's default.
JAXLOSS_TEST_DEVICES=2 (or 4) has fewer of them used.
"""

import os

import jax
import pytest
from jax.sharding import AxisType

SHAPES = {8: (4, 2), 4: (2, 2), 2: (2, 1)}
AXIS_TYPES = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


def available() -> list[jax.Device]:
    """The devices that meshes may be made of."""
    return jax.devices() if jax.default_backend() == "gpu" else jax.devices("cpu")


def count() -> int:
    """How many of them are used: a power of two that is a mesh."""
    asked = os.environ.get("JAXLOSS_TEST_DEVICES")
    if asked is not None and asked not in map(str, SHAPES):
        raise ValueError(f"JAXLOSS_TEST_DEVICES is {asked!r}: expected one of {', '.join(map(str, SHAPES))}")
    here = len(available())
    wanted = int(asked) if asked else max((size for size in SHAPES if size <= here), default=0)
    return wanted if wanted <= here else 0


def mesh(axis_type=AxisType.Auto, axes: tuple[str, ...] = ("d", "v")) -> jax.sharding.Mesh:
    """A mesh with the axes d and v, to split what those that are named split."""
    shape = SHAPES[count()]
    if shape == (2, 1) and axes == ("v",):
        shape = (1, 2)
    devices = available()[: count()]
    return jax.make_mesh(shape, ("d", "v"), axis_types=(axis_type,) * 2, devices=devices)


def mesh_of_types(axis_types: tuple[AxisType, AxisType]) -> jax.sharding.Mesh:
    """A mesh with the axes d and v, each of a type of its own."""
    return jax.make_mesh(SHAPES[count()], ("d", "v"), axis_types=axis_types, devices=available()[: count()])


def axes_of(*specs) -> tuple[str, ...]:
    """The mesh axes that occur in partition specs."""
    entries = (entry if isinstance(entry, tuple) else (entry,) for spec in specs for entry in spec)
    return tuple(sorted({axis for entry in entries for axis in entry if axis is not None}))


several_devices = [
    pytest.mark.several_devices,
    pytest.mark.skipif(count() == 0, reason="jax has fewer devices than a mesh needs"),
]
"""The marks of a test that uses a mesh."""
