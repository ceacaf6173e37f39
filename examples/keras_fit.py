"""Keras on JAX: `model.fit` with a loss of jaxloss, and what happens without the adapter.

Keras calls a plain function as `loss(y_true, y_pred)` with the labels converted to float32. jaxloss takes the
prediction first, and takes floating-point labels for probabilities. So `loss=jaxloss.categorical_cross_entropy` with
one-hot labels raises no error: the labels are taken for the logits, the logits for the target, and the loss falls
without bound while nothing is learnt. An adapter of two lines puts that right.

    python -m examples.keras_fit --quick
"""

import os

import numpy as np
from sklearn import datasets, model_selection

import examples
import jaxloss

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported
import keras


def cross_entropy(y_true, y_pred):
    """The adapter: class indices of either shape, [n] or [n, 1]. Mean, `sample_weight` and masks are left to Keras."""
    labels = y_true.reshape(y_pred.shape[:-1]).astype(int)
    return jaxloss.categorical_cross_entropy(y_pred, labels, clip=None, reduction="none")


def trained(loss, labels, images, epochs: int, metric: str, **fit):
    """A model after training with a loss, and the loss of each epoch."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])  # logits: no softmax
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss, metrics=[metric])
    history = model.fit(images, labels, epochs=epochs, batch_size=64, verbose=0, **fit).history
    return model, history["loss"]


def main(quick: bool = False) -> dict[str, tuple[list[float], float]]:
    """Trains with Keras's loss, with the adapter and without; returns the losses and the accuracy of each."""
    images, labels = datasets.load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)  # JAX has int64 on request alone
    images, test_images, labels, test_labels = model_selection.train_test_split(
        images, labels, test_size=0.25, random_state=0
    )
    one_hot, indices = keras.utils.to_categorical(labels, 10), "sparse_categorical_accuracy"
    rare = np.where(labels == 8, 3.0, 1.0)  # sample weights reach the loss as they do with Keras's own
    runs = {
        "Keras's loss": (keras.losses.SparseCategoricalCrossentropy(from_logits=True), labels, indices),
        "the adapter": (cross_entropy, labels, indices),
        "swapped by mistake": (jaxloss.categorical_cross_entropy, one_hot, "categorical_accuracy"),
    }
    results = {}
    for name, (loss, target, metric) in runs.items():
        model, losses = trained(
            loss,
            target,
            images,
            epochs=2 if quick else 30,
            metric=metric,
            sample_weight=rare if target is labels else None,
        )
        predicted = model.predict(test_images, verbose=0).argmax(-1)
        accuracy = float((predicted == test_labels).mean())
        results[name] = losses, accuracy
        print(f"{name:20s} loss {losses[0]:12.4f} … {losses[-1]:12.4f}, accuracy {accuracy:.1%}")
    return results


if __name__ == "__main__":
    main(examples.quick())
