"""The drop-in for optax's focal loss, of logits that are large."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import optax


@pytest.mark.parametrize("x", [1e31, -1e33, 3e38])
def test_focal_logits_beyond_those_that_stand_for_infinite_ones(x):
    """Of a label of 0.3, the loss is 0.3 |x| or 0.7 |x| times the square of that share; and its derivatives are those."""
    x, share = np.float32(x), 0.7 if x > 0 else 0.3
    np.testing.assert_allclose(optax.sigmoid_focal_loss(x, np.float32(0.3)), share**3 * abs(x), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(optax.sigmoid_focal_loss)(x, np.float32(0.3)), share**3 * np.sign(x), rtol=1e-6)


def test_the_focal_gradient_of_a_label_that_a_far_logit_agrees_with():
    """With respect to the label: 0, as p vanishes faster than the loss of the other side grows."""
    of_labels = jax.vmap(jax.grad(optax.sigmoid_focal_loss, 1))
    x, a = jnp.array([200.0, -200.0, 2000.0, -2000.0]), jnp.array([1.0, 0.0, 1.0, 0.0])
    np.testing.assert_array_equal(of_labels(x, a), 0)
