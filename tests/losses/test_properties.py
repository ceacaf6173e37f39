"""Any shape, any value, any mask: hypothesis looks for a call about which jaxloss and the oracle do not agree."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from agreement import assert_agrees
from losses import CASES, REDUCTIONS

# Compiling takes longer than computing, so shapes come from a list: empty, one row, odd, and on either side of what one
# vector (4, 8, 16 floats) or two hold. `test_values.py` has the widths one by one.
SHAPES = ((0, 3), (1, 1), (1, 7), (2, 9), (3, 17), (5, 33), (2, 64), (2, 3, 15))

LOGITS = {
    "float32": st.one_of(
        st.floats(-30, 30, width=32),
        st.sampled_from([0.0, -0.0, 1e4, -1e4, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 88.8, -104.0]),
    ),
    "bfloat16": st.one_of(
        st.integers(-400, 400).map(lambda i: i / 16), st.sampled_from([np.inf, -np.inf, np.nan, 1e4, -1e4, 1e-40])
    ),
    "float16": st.one_of(
        st.floats(-30, 30, width=16), st.sampled_from([np.inf, -np.inf, np.nan, 65504, -65504, 6e-8, 6e-5])
    ),
}


@st.composite
def calls(draw, case):
    """Prediction, target and options of a call."""
    shape = draw(st.sampled_from(SHAPES))
    dtype = draw(st.sampled_from(sorted(LOGITS)))
    x = draw(arrays.arrays(np.float64, shape, elements=LOGITS[dtype], fill=st.just(0.5))).astype(dtype)
    target_shape = case.target_shape(shape)
    if case.target == "indices":
        a = draw(arrays.arrays(np.int32, target_shape, elements=st.integers(-2, shape[-1] + 1), fill=st.just(0)))
    elif case.target == "probabilities":
        a = draw(arrays.arrays(np.float64, target_shape, elements=st.integers(0, 16).map(lambda i: i / 16))).astype(
            dtype
        )
    else:
        a = draw(arrays.arrays(np.float64, target_shape, elements=LOGITS[dtype], fill=st.just(0.5))).astype(dtype)
    options = {"reduction": draw(st.sampled_from(REDUCTIONS))}
    examples = shape[:-1] if case.loss.by_rows else shape[:1]
    if draw(st.booleans()):
        options["where"] = draw(arrays.arrays(bool, examples, elements=st.booleans()))
    if draw(st.booleans()):
        options["weights"] = draw(
            arrays.arrays(np.float32, examples, elements=st.sampled_from([0.0, -0.0, 0.5, 1.0, -2.0, 3.0]))
        )
        # 0 × ∞ is nothing that the losses promise anything about: where infinities are to be taken out, there is `where`.
        nothing = options["weights"] == 0
        x[nothing] = 0.5
        if case.of_target:
            a[nothing] = 0.5
    if case.loss.has_clip and draw(st.booleans()):
        options["clip"] = None
    return x, a, options


@pytest.mark.parametrize("case", CASES)
@hypothesis.given(data=st.data())
def test_any_call(case, data):
    x, a, options = data.draw(calls(case))
    assert_agrees(case, x, a, **options)
