"""A float64 target of a narrower prediction: the loss is float64, in every loss alike, and the gradient is like the prediction."""

import jax
import numpy as np
import pytest

import jaxloss
from losses import CASES

X = np.float32([[0.25, 0.5, 0.75], [0.5, 0.125, 0.25]])
TARGET = np.array([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
LOSSES = {case.loss.name: case.loss for case in CASES if case.target != "indices"}
FUNCTIONS = [*LOSSES, "kl_divergence", "jensen_shannon"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_wider_of_both_is_computed_in(name, dtype):
    options = {"q": 0.25} if name == "quantile" else {"beta": 0.25} if name == "jensen_shannon" else {}
    function = getattr(jaxloss, name)
    with jax.enable_x64(True):
        x = jax.numpy.asarray(X, dtype)
        value, gradient = jax.value_and_grad(function)(x, TARGET, **options)
        assert value.dtype == np.float64
        assert gradient.dtype == x.dtype == getattr(jaxloss, f"d_{name}")(x, TARGET, **options).dtype
        exact = function(x.astype("float64"), TARGET, **options)
        np.testing.assert_allclose(value, exact, rtol=1e-14)
        assert "float64 where" in " ".join(function.__doc__.split())
