"""Says of each pixel of a noisy picture whether it is background, disc or square.

Logits are [N, C, H, W], as torch has them: `axis=1`. Pixels on an outline are labelled 255 and left out, by
`ignore_index`, of loss, gradient and scores. Shapes cover little of a picture, so their classes weigh more.

    python -m examples.segmentation --quick
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import examples
import jaxloss

CLASSES = ("background", "disc", "square")
UNSURE = 255


def pictures(rng: np.random.Generator, count: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [count, 1, side, side] of a disc and a square in noise, and labels [count, side, side]."""
    y, x = np.mgrid[:side, :side]
    labels = np.zeros((count, side, side), np.int32)
    for label in labels:
        for shape in (1, 2):
            row, column, radius = rng.integers((6, 6, 4), (side - 6, side - 6, 7))
            down, right = abs(y - row), abs(x - column)
            distance = np.hypot(down, right) if shape == 1 else np.maximum(down, right)
            label[distance <= radius] = shape
            label[abs(distance - radius) < 0.5] = UNSURE
    brightness = np.where(labels == UNSURE, 0.5, labels > 0) + 0.3 * rng.standard_normal(labels.shape)
    return brightness[:, None].astype(np.float32), labels


def initial(rng: np.random.Generator) -> list[np.ndarray]:
    """Kernels [out, in, 3, 3]."""
    sizes = [(16, 1), (16, 16), (16, 16), (len(CLASSES), 16)]
    return [(rng.standard_normal((*size, 3, 3)) * np.sqrt(2 / 9 / size[1])).astype(np.float32) for size in sizes]


def logits_of(params, images):
    """Logits [N, C, H, W]; with dilations of 1, 2 and 4 a pixel sees a whole shape."""
    x = images
    for kernel, dilation in zip(params, (1, 2, 4, 1), strict=True):
        x = jax.nn.relu(x) if x is not images else x
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", rhs_dilation=(dilation, dilation))
    return x


def main(quick: bool = False) -> np.ndarray:
    """Trains, and returns the intersection over union of each class in pictures not seen before."""
    rng, steps, batch = np.random.default_rng(0), 60 if quick else 600, 8
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    class_weights = jnp.array([1.0, 4.0, 4.0])

    @jax.jit
    def step(params, state, images, labels):
        def loss(params):
            return jaxloss.categorical_cross_entropy(
                logits_of(params, images), labels, axis=1, ignore_index=UNSURE,
                class_weights=class_weights, normalizer="weights",
            )  # fmt: skip

        value, gradient = jax.value_and_grad(loss)(params)
        update, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, update), state, value

    @jax.jit
    def scores(params, images, labels):
        """Of each class: the pixels of it that are predicted to be, over those that are it or are predicted to be."""
        _, stats = jaxloss.categorical_cross_entropy_with_stats(
            logits_of(params, images), labels, axis=1, ignore_index=UNSURE
        )  # what is left out has the prediction -1
        found, right = (jax.nn.one_hot(x, len(CLASSES), dtype=bool) for x in (stats.predicted, labels))
        return (found & right).sum((0, 1, 2)) / (found | right).sum((0, 1, 2))

    params = initial(rng)
    state, test = optimiser.init(params), pictures(np.random.default_rng(1), 64)
    for number in range(1, steps + 1):
        params, state, value = step(params, state, *pictures(rng, batch))
        if number % (steps // 5) == 0:
            overlap = np.asarray(scores(params, *test))
            said = ", ".join(f"{name} {score:.2f}" for name, score in zip(CLASSES, overlap, strict=True))
            print(f"step {number:3d}: loss {value:.3f}; intersection over union: {said}")
    return overlap


if __name__ == "__main__":
    main(examples.quick())
