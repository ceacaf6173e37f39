"""Random calls of drop-ins for losses of optax: of those that are a loss of the tests' table by another name."""

import functools
from collections.abc import Iterator

import numpy as np

import losses
import oracles
from trust.configurations import LossConfiguration, Subject, of_losses


def _drop_ins() -> Iterator[Subject]:
    by_name = {loss.name: loss for loss in losses.ELEMENTWISE}
    numbers = (
        ("squared_error", "mse", oracles.weighted_sum_of({oracles.squared_error: 2.0}), ()),
        ("l2_loss", "mse", oracles.squared_error, ()),
        ("huber_loss", "huber", oracles.huber, ("delta",)),
        ("log_cosh", "log_cosh", oracles.log_cosh, ()),
    )
    for name, loss, elements, required in numbers:
        yield _drop_in(name, losses.Case(by_name[loss], "numbers"), elements, required)
    of_bits = losses.Case(losses.BINARY, "probabilities")
    yield _drop_in("sigmoid_binary_cross_entropy", of_bits, oracles.binary_cross_entropy)
    focal = functools.partial(oracles.binary_cross_entropy_with_options, focal_gamma=2.0)
    yield _drop_in("sigmoid_focal_loss", of_bits, focal)
    of_classes, elements = losses.Case(losses.CATEGORICAL, "probabilities"), oracles.categorical_cross_entropy
    yield _drop_in("softmax_cross_entropy", of_classes, elements)
    indices = losses.Case(losses.CATEGORICAL, "indices")
    yield _drop_in("softmax_cross_entropy_with_integer_labels", indices, elements)


def _drop_in(name: str, case: losses.Case, elements, required: tuple[str, ...] = ()) -> Subject:
    return Subject(case, elements, required, function=f"optax.{name}", unreduced=True, bare=True)


DROP_INS = tuple(_drop_ins())


def of_drop_ins(rng: np.random.Generator, by_formula: bool) -> LossConfiguration:
    """A random one."""
    return of_losses(rng, by_formula, DROP_INS)
