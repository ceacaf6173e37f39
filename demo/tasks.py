"""The three tasks: which data, which model, which loss of jaxloss, and the plain formula it is held against."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from sklearn import metrics

import jaxloss
from demo import data
from jaxloss import formulas

Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Task(NamedTuple):
    """What is learnt from what, and how long."""

    name: str
    loss_name: str
    load: Callable[[], data.Data]
    layers: tuple[int, ...]
    loss: Loss
    formula: Loss
    metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    learning_rate: float
    epochs: int
    batch_size: int = 32

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """SGD with momentum: its steps are proportional to the gradient, so that rounding stays in proportion too.

        Adam divides by the gradient's own size, which blows the rounding of a nearly zero gradient up to a full step.
        """
        return optax.sgd(self.learning_rate, momentum=0.9)


def r2(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    return {"R²": float(metrics.r2_score(target, prediction))}


def accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {"accuracy": float(metrics.accuracy_score(labels, logits.argmax(axis=1)))}


def accuracy_and_auc(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": float(metrics.accuracy_score(labels, logits > 0)),
        "AUC": float(metrics.roc_auc_score(labels, logits)),
    }


# The formulas take no clip: the gradient of jaxloss is the gradient of the unclipped loss.
DIABETES = Task(
    name="diabetes",
    loss_name="mse",
    load=data.diabetes,
    layers=(10, 1),
    loss=jaxloss.mse,
    formula=lambda pred, target: formulas.squared_error(pred, target).mean(),
    metrics=r2,
    learning_rate=0.002,
    epochs=60,
)

DIGITS = Task(
    name="digits",
    loss_name="categorical_cross_entropy",
    load=data.digits,
    layers=(64, 64, 10),
    loss=jaxloss.categorical_cross_entropy,
    formula=lambda logits, target: formulas.categorical_cross_entropy(logits, target, clip=None).mean(),
    metrics=accuracy,
    learning_rate=0.02,
    epochs=40,
)

BREAST_CANCER = Task(
    name="breast cancer",
    loss_name="binary_cross_entropy",
    load=data.breast_cancer,
    layers=(30, 1),
    loss=jaxloss.binary_cross_entropy,
    formula=lambda logits, target: formulas.binary_cross_entropy(logits, target, clip=None).mean(),
    metrics=accuracy_and_auc,
    learning_rate=0.01,
    epochs=60,
)
