"""Equinox: a model that is a function of one example, `jax.vmap` over the batch, and a loss of the batch.

The loss is called on the logits of the batch, outside of `vmap`, so that it is one call and divides by the batch size.

    python -m examples.equinox_model --quick
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets, model_selection

import examples
import jaxloss


class Classifier(eqx.Module):
    """One image `[64]` to logits `[10]`."""

    perceptron: eqx.nn.MLP
    norm: eqx.nn.LayerNorm

    def __init__(self, key):
        self.norm = eqx.nn.LayerNorm(64)
        self.perceptron = eqx.nn.MLP(64, 10, width_size=64, depth=2, key=key)

    def __call__(self, image):
        """Logits."""
        return self.perceptron(self.norm(image))


@eqx.filter_value_and_grad(has_aux=True)
def loss(model, images, labels):
    """Loss, and the accuracy from the same pass."""
    logits = jax.vmap(model)(images)
    value, stats = jaxloss.categorical_cross_entropy_with_stats(logits, labels, label_smoothing=0.05)
    return value, (stats.predicted == labels).mean()


def main(quick: bool = False) -> float:
    """Trains, and returns the accuracy on the test images."""
    images, labels = datasets.load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    images, test_images, labels, test_labels = model_selection.train_test_split(
        images, labels, test_size=0.25, random_state=0
    )
    model, optimiser = Classifier(jax.random.key(0)), optax.adam(3e-3)
    state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, images, labels):
        (value, accuracy), gradient = loss(model, images, labels)
        update, state = optimiser.update(gradient, state)
        return eqx.apply_updates(model, update), state, value, accuracy

    rng, steps = np.random.default_rng(0), 100 if quick else 1000
    for number in range(1, steps + 1):
        chosen = rng.integers(0, len(images), 64)
        model, state, value, accuracy = step(model, state, images[chosen], labels[chosen])
        if number % (steps // 5) == 0:
            print(f"step {number:4d}: loss {value:.3f}, accuracy {accuracy:.1%}")

    logits = jax.vmap(model)(jnp.asarray(test_images))
    _, stats = jaxloss.categorical_cross_entropy_with_stats(logits, jnp.asarray(test_labels))
    accuracy = float((stats.predicted == test_labels).mean())
    print(f"test: accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main(examples.quick())
