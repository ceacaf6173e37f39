"""Every loss as `benchmarks.accuracy` compares it: by jaxloss, by XLA, and by the tests' oracle in float64."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss
from jaxloss import formulas

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "support"))
import oracles

CLASSES = (10, 1000, 50257)
WIDTHS = (10, 4096)  # of the rows of losses of elements
ELEMENTS = 2**18


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes:
        ours: the sum over rows by jaxloss, without a clip.
        formula: the losses of elements or rows, in plain JAX.
        oracle: `(x, a, None)` to `oracles.Terms`.
        target: "number" like the prediction, "share" of 0 to 1, "label", "probability" or "logit".
        widths: of the rows to try.
        least: the size of the terms that a small loss is the difference of; 0 for a loss that is a sum.
        kinked: there is no derivative where prediction and target are equal.
    """

    ours: Callable
    formula: Callable
    oracle: Callable
    target: str
    widths: tuple[int, ...] = WIDTHS
    least: float = 0.0
    kinked: bool = False


def _number(x):
    return x.astype(jnp.float32)


def _in_float32(formula: Callable) -> Callable:
    return lambda x, a: formula(_number(x), a if jnp.issubdtype(a.dtype, jnp.integer) else _number(a))


def _unclipped(x, a, **options):
    return jaxloss.categorical_cross_entropy(x, a, clip=None, **options)


LOSSES = {
    "mse": Loss(jaxloss.mse, _in_float32(optax.l2_loss), oracles.squared_error, "number"),
    "mae": Loss(jaxloss.mae, _in_float32(formulas.absolute_error), oracles.absolute_error, "number", kinked=True),
    "huber": Loss(jaxloss.huber, _in_float32(optax.huber_loss), oracles.huber, "number"),
    "log_cosh": Loss(jaxloss.log_cosh, _in_float32(optax.log_cosh), oracles.log_cosh, "number"),
    "quantile, q = 0.9": Loss(
        lambda x, a, **options: jaxloss.quantile(x, a, q=0.9, **options),
        _in_float32(lambda x, a: formulas.quantile(x, a, 0.9)),
        lambda x, a, clip: oracles.quantile(x, a, clip, q=0.9),
        "number",
        kinked=True,
    ),
    "binary_cross_entropy": Loss(
        lambda x, a, **options: jaxloss.binary_cross_entropy(x, a, clip=None, **options),
        _in_float32(optax.sigmoid_binary_cross_entropy),
        oracles.binary_cross_entropy,
        "share",
    ),
    "categorical_cross_entropy, labels": Loss(
        _unclipped,
        _in_float32(optax.softmax_cross_entropy_with_integer_labels),
        oracles.categorical_cross_entropy,
        "label",
        CLASSES,
        least=1.0,
    ),
    "categorical_cross_entropy, probabilities": Loss(
        _unclipped,
        _in_float32(optax.softmax_cross_entropy),
        oracles.categorical_cross_entropy,
        "probability",
        CLASSES,
        least=1.0,
    ),
    "kl_divergence": Loss(
        jaxloss.kl_divergence,
        _in_float32(lambda x, a: optax.losses.kl_divergence(jax.nn.log_softmax(x), a)),
        oracles.kl_divergence,
        "probability",
        CLASSES,
        least=1.0,
    ),
    "jensen_shannon": Loss(
        jaxloss.jensen_shannon,
        _in_float32(formulas.jensen_shannon),
        oracles.jensen_shannon,
        "logit",
        CLASSES,
        least=1.0,
    ),
}


def operands(loss: Loss, width: int, dtype: str, deviation: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Random rows: predictions of that deviation about the offset; targets that are numbers or logits are like them."""
    random = np.random.default_rng(width)
    shape = (max(4, min(1024, ELEMENTS // width)), width)

    def stored(numbers):
        return np.asarray(jnp.asarray(numbers, jnp.float32).astype(dtype))

    def normal():
        return offset + deviation * random.standard_normal(shape)

    x = stored(normal())
    if loss.target == "label":
        return x, random.integers(0, width, shape[0], np.int32)
    if loss.target == "share":
        return x, stored(random.uniform(size=shape))
    if loss.target == "probability":
        a = random.uniform(size=shape)
        return x, stored(a / a.sum(-1, keepdims=True))
    return x, stored(normal())


def exact(loss: Loss, x: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The losses of rows and their derivatives in float64."""
    terms = loss.oracle(x.astype(np.float64), a if loss.target == "label" else a.astype(np.float64), None)
    losses, gradient = terms.loss[0], terms.of_prediction[0]
    return losses.reshape(len(x), -1).sum(-1), gradient


def compiled(loss: Loss, width: int, dtype: str) -> dict[str, Callable]:
    """Losses of rows and their derivatives, from `operands` of that width and type."""
    x, a = (jax.ShapeDtypeStruct(each.shape, each.dtype) for each in operands(loss, width, dtype, 1.0, 0.0))
    return of_rows(loss.ours, loss.formula, x, a)


def of_rows(ours: Callable, formula: Callable, *rows: jax.ShapeDtypeStruct) -> dict[str, Callable]:
    """Losses of rows and their derivatives in one program, the one that value and gradient of a scalar run."""
    of_row = {
        "jaxloss": lambda *row: ours(*(each[None] for each in row), reduction="sum"),
        "xla": lambda *row: formula(*(each[None] for each in row)).sum(),
    }
    return {who: jax.jit(jax.vmap(jax.value_and_grad(one))).lower(*rows).compile() for who, one in of_row.items()}
