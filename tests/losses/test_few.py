"""Few elements of some losses are left to the formula; the rest of the suite has kernels for them, too."""

import jax
import numpy as np
import pytest

from agreement import assert_agrees
from jaxloss._ffi import call
from losses import CATEGORICAL, MATRIX
from modules import custom_call_targets

FALLBACK_SIZE = 4096


@pytest.fixture
def few_by_formula(monkeypatch, retraced):
    monkeypatch.setattr(call, "FALLBACK_SIZE", FALLBACK_SIZE)


@pytest.mark.parametrize("case", [case for case in MATRIX if case.loss.name != "distillation"])
def test_few_elements_are_left_to_formulas(few_by_formula, case):
    """Of elementwise losses, and of probabilities without options on a CPU."""
    for shape, is_few in (((64, FALLBACK_SIZE // 64), True), ((FALLBACK_SIZE // 64 + 1, 64), False)):
        x, a = case.sample(shape)
        step = jax.jit(jax.value_and_grad(lambda x, a: case.loss(x, a))).lower(x, a).compile()
        if case.loss == CATEGORICAL:
            by_formula = is_few and case.target == "probabilities" and jax.default_backend() == "cpu"
        else:
            by_formula = is_few and not case.loss.by_rows
        assert bool(custom_call_targets(step)) != by_formula
        assert_agrees(case, x, a)
        x[::2] = np.nan
        assert_agrees(case, x, a, where=np.arange(shape[0]) % 2 == 1, reduction="none")
