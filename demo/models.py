"""A multilayer perceptron in plain JAX; with no hidden layer it is the linear model."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

Params = list[dict[str, jax.Array]]


def init(key: jax.Array, sizes: tuple[int, ...]) -> Params:
    """Weights of variance 1/inputs and zero biases for layers of the given sizes, inputs first."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"weight": jax.random.normal(key, (inputs, outputs)) / inputs**0.5, "bias": jnp.zeros(outputs)}
        for key, (inputs, outputs) in zip(keys, pairwise(sizes), strict=True)
    ]


def apply(params: Params, x: jax.Array | np.ndarray) -> jax.Array:
    """Outputs [n, outputs] for x [n, inputs]; a single output gives [n]."""
    *hidden, last = params
    activations = jnp.asarray(x)
    for layer in hidden:
        # tanh, not relu: a smooth model keeps two runs together that differ by rounding.
        activations = jnp.tanh(activations @ layer["weight"] + layer["bias"])
    outputs = activations @ last["weight"] + last["bias"]
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs
