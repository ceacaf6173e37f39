"""Sums of rows on a mesh: the programs and placements of `test_sharding`."""

import pytest

import meshes
import test_sharding
from losses import CATEGORICAL, Case

pytestmark = [*meshes.several_devices, pytest.mark.usefixtures("sums_of_few_rows")]

LABELS = Case(CATEGORICAL, "indices")


@meshes.AXIS_TYPES
@pytest.mark.parametrize("placement", test_sharding.PLACEMENTS)
@pytest.mark.parametrize("name", test_sharding.PROGRAMS)
def test_placements(name, placement, axis_type):
    test_sharding.test_placements(LABELS, name, "mean", placement, axis_type)


@meshes.AXIS_TYPES
@pytest.mark.parametrize("placement", ["rows", "features", "both"])
@pytest.mark.parametrize("name", test_sharding.STACKED_PROGRAMS)
def test_placements_of_a_stack(name, placement, axis_type):
    test_sharding.test_placements_of_a_stack(LABELS, name, placement, axis_type)
