"""Classifies handwritten digits with a small convolutional network.

Images are shifted at random, labels smoothed, and the accuracy comes from the same pass over the logits as the loss.

    python -m examples.image_classifier --quick
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets, model_selection

import examples
import jaxloss


def digits() -> list[np.ndarray]:
    """1797 images [n, 8, 8, 1], a quarter of them for the test, and their labels."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    return model_selection.train_test_split(images, labels.astype(np.int32), test_size=0.25, random_state=0)


def initial(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two convolutions and the output layer."""
    shapes = {"first": (3, 3, 1, 16), "second": (3, 3, 16, 32), "output": (2 * 2 * 32, 10)}
    return {
        name: (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype(np.float32)
        for name, shape in shapes.items()
    }


def logits_of(params, images):
    """Logits [n, 10]."""
    x = images
    for name in ("first", "second"):
        x = jax.lax.conv_general_dilated(x, params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        n, height, width, channels = x.shape
        x = jax.nn.relu(x).reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
    return x.reshape(len(x), -1) @ params["output"]


def shifted(key, images):
    """Each image moved by up to a pixel, in both directions."""

    def one(image, start):
        return jax.lax.dynamic_slice(image, (start[0], start[1], 0), (8, 8, 1))

    starts = jax.random.randint(key, (len(images), 2), 0, 3)
    return jax.vmap(one)(jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))), starts)


def main(quick: bool = False) -> float:
    """Trains, and returns the accuracy on the test images."""
    images, test_images, labels, test_labels = digits()
    epochs, batch = (4, 64) if quick else (30, 64)
    steps = len(images) // batch
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, epochs * steps))

    @jax.jit
    def step(params, state, key, images, labels):
        def loss(params):
            logits = logits_of(params, shifted(key, images))
            return jaxloss.categorical_cross_entropy_with_stats(logits, labels, label_smoothing=0.1)

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        update, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, update), state, value, (stats.predicted == labels).mean()

    @jax.jit
    def tested(params):
        value, stats = jaxloss.categorical_cross_entropy_with_stats(logits_of(params, test_images), test_labels)
        return value, (stats.rank < 1).mean(), (stats.rank < 2).mean()

    rng = np.random.default_rng(0)
    params = initial(rng)
    state = optimiser.init(params)
    for epoch in range(epochs):
        order, seen = rng.permutation(len(images)), []
        for number in range(steps):
            chosen = order[number * batch : (number + 1) * batch]
            key = jax.random.key(epoch * steps + number)
            params, state, *measured = step(params, state, key, images[chosen], labels[chosen])
            seen.append(measured)
        value, accuracy, top_2 = (float(x) for x in tested(params))
        loss, of_training = np.mean(seen, axis=0)
        print(
            f"epoch {epoch + 1:2d}: loss {loss:.3f}, accuracy {of_training:.1%};"
            f" test: loss {value:.3f}, accuracy {accuracy:.1%}, among the first two {top_2:.1%}"
        )
    return accuracy


if __name__ == "__main__":
    main(examples.quick())
