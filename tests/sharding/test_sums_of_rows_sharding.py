"""Sums of rows on a mesh: programs and placements of `test_sharding`, those in which rows or classes are split."""

import pytest

import meshes
import test_sharding
from losses import CATEGORICAL, Case

pytestmark = [*meshes.several_devices, pytest.mark.usefixtures("sums_of_few_rows")]

LABELS = Case(CATEGORICAL, "indices")


@meshes.AXIS_TYPES
@pytest.mark.parametrize("placement", ["rows", "features", "both"])
@pytest.mark.parametrize("name", ["value", "value_and_grad", "hvp"])
def test_placements(name, placement, axis_type):
    test_sharding.test_placements(LABELS, name, "mean", placement, axis_type)


@meshes.AXIS_TYPES
@pytest.mark.parametrize("placement", ["rows", "both"])
def test_placements_of_a_stack(placement, axis_type):
    test_sharding.test_placements_of_a_stack(LABELS, "vmap_grad", placement, axis_type)
