"""A label's gradient where little of it is left: beside other targets that are tiny, or where its class weighs nothing."""

import jax
import numpy as np
import pytest

import extended_precision
import jaxloss
from tolerance import ulp_errors

CLASSES = 37
OF_EVEN_CLASSES = (np.arange(CLASSES) % 2).astype(np.float32)
OPTIONS = {
    "z-loss": {"z_loss": np.float32(1e-7)},
    "tiny z-loss": {"z_loss": np.float32(1e-10)},
    "smoothing": {"label_smoothing": np.float32(1e-6)},
    "both": {"z_loss": np.float32(1e-8), "label_smoothing": np.float32(1e-7)},
    "class weights": {"class_weights": OF_EVEN_CLASSES},
    "class weights and z-loss": {"class_weights": OF_EVEN_CLASSES, "z_loss": np.float32(1e-4)},
    "no option": {"z_loss": np.float32(0)},
}


def label_gradients(x, labels, z_loss=0.0, label_smoothing=0.0, class_weights=None):
    """Exact ones, and the larger of the two numbers that each is the difference of."""
    s, rows, wide = extended_precision.Softmax(extended_precision.extended(x)), np.arange(len(x)), np.longdouble
    weights = np.ones(CLASSES, wide) if class_weights is None else class_weights.astype(wide)
    smooth = wide(label_smoothing) * weights / CLASSES
    own = (1 - wide(label_smoothing)) * weights[labels]
    p, missing = s.probability[rows, labels], s.missing[rows, labels]
    others = smooth.sum() - smooth[labels] + 2 * wide(z_loss) * (x.max(1).astype(wide) + s.log_sum)
    total = others + own + smooth[labels]
    exact = others - total * missing
    in_parts = np.maximum(np.abs(total * missing), np.abs(others))
    of_nothing = np.maximum(np.abs(p * total), smooth[labels])
    return exact, np.where(own == 0, of_nothing, in_parts), s.below[rows, labels]


@pytest.mark.parametrize("classes", ["few", "many"])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_of_a_label(name, classes, path):
    """Of one that is nearly certain, leads or does not lead, in rows as narrow as vectors are, and in wider ones."""
    options, random = OPTIONS[name], np.random.default_rng(21)
    x = random.normal(0, 3, (120, CLASSES)).astype(np.float32)
    labels = x.argmax(1).astype(np.int32)
    labels[100:] = random.integers(0, CLASSES, 20)
    x[np.arange(80), labels[:80]] += random.uniform(8, 25, 80).astype(np.float32)
    padding = {} if classes == "few" else {"num_classes": CLASSES}
    padded = x if classes == "few" else np.pad(x, ((0, 0), (0, 300 - CLASSES)))
    if classes == "many" and "class_weights" in options:
        options = {**options, "class_weights": np.pad(OF_EVEN_CLASSES, (0, 300 - CLASSES))}

    def loss(x):
        return jaxloss.categorical_cross_entropy(x, labels, reduction="sum", **options, **padding)

    found = np.asarray(jax.jit(jax.grad(loss))(padded))[np.arange(len(x)), labels]
    exact, scale, below = label_gradients(x, labels, **OPTIONS[name])
    bound = 16 + (1 if jax.default_backend() == "cpu" else 2) * np.maximum(below, x.max(1) - np.median(x, 1)).astype(
        float
    )
    assert (ulp_errors(found, exact, np.maximum(scale, 1e-37)) <= bound).all()
