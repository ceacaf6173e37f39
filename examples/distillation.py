"""A small student of handwritten digits learns from a few labels, and from a teacher's logits of all images.

The loss mixes both: cross entropy where there is a label (−1 is none, `ignore_index`), and T² times the divergence from
the teacher at the temperature T. A student that has the few labels alone is trained beside it.

    python -m examples.distillation --quick
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets, model_selection

import examples
import jaxloss

NO_LABEL, TEMPERATURE = -1, 3.0


def logits_of(params, images):
    """Logits [n, 10] of a perceptron."""
    x = images
    for kernel in params[:-1]:
        x = jax.nn.relu(x @ kernel)
    return x @ params[-1]


def trained(loss, width: int, steps: int):
    """The parameters of a perceptron of that width; `loss` is a function of them."""
    rng, sizes = np.random.default_rng(0), [(64, width), (width, width), (width, 10)]
    params = [jnp.float32(rng.standard_normal(size) * np.sqrt(2 / size[0])) for size in sizes]
    optimiser = optax.adamw(optax.cosine_decay_schedule(5e-3, steps), weight_decay=1e-3)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            update, state = optimiser.update(gradient, state, params)
            return (optax.apply_updates(params, update), state), value

        return jax.lax.scan(step, (params, optimiser.init(params)), None, length=steps)

    (params, _), _ = train(params)
    return params


def main(quick: bool = False) -> dict[str, float]:
    """Trains teacher and students, and returns the accuracy of each on the test images."""
    images, labels = datasets.load_digits(return_X_y=True)
    images, labels = ((images - 8) / 8).astype(np.float32), labels.astype(np.int32)
    split = model_selection.train_test_split(images, labels, test_size=0.25, random_state=0)
    images, test_images, labels, test_labels = (jnp.asarray(x) for x in split)
    few = jnp.where(jnp.arange(len(labels)) < 60, labels, NO_LABEL)
    steps = 100 if quick else 2000

    def of_teacher(params):
        return jaxloss.categorical_cross_entropy(logits_of(params, images), labels)

    teacher = trained(of_teacher, width=256, steps=steps // 2)
    teacher_logits = logits_of(teacher, images)

    def of_labels(params):
        return jaxloss.categorical_cross_entropy(logits_of(params, images), few, ignore_index=NO_LABEL)

    def of_both(params):
        logits = logits_of(params, images)
        hard = jaxloss.categorical_cross_entropy(logits, few, ignore_index=NO_LABEL)
        soft = jaxloss.kl_divergence(logits, teacher_logits, target_type="logits", temperature=TEMPERATURE)
        return 0.1 * hard + 0.9 * TEMPERATURE**2 * soft

    models = {
        "teacher, all labels": teacher,
        "student, 60 labels": trained(of_labels, width=24, steps=steps),
        "student, 60 labels and the teacher": trained(of_both, width=24, steps=steps),
    }
    accuracies = {}
    for name, params in models.items():
        _, stats = jaxloss.categorical_cross_entropy_with_stats(logits_of(params, test_images), test_labels)
        accuracies[name] = float((stats.predicted == test_labels).mean())
        print(f"{name:36s}{sum(x.size for x in params):8,d} parameters, accuracy {accuracies[name]:.1%}")
    return accuracies


if __name__ == "__main__":
    main(examples.quick())
