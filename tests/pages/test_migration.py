"""docs/migration.md against the libraries that it is about: each row whose two columns are calls, in value and gradient.

Only optax comes with the test dependencies. For the others, `pip install torch keras`: without them their rows are skipped.
"""

import os
import pathlib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import jaxloss.optax
import tolerance
from quickly import QUICKLY

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "migration.md").read_text()
ROW = re.compile(r"^\| `([^`]*\b(F|optax|keras)\.[^`]*\([^`]*)` \| `([^`]+\([^`]*)`.*\|$", re.MULTILINE)
PAIRS = [pytest.param(*match.group(2, 1, 3), id=match[1]) for match in ROW.finditer(PAGE)]
N, C, PIXELS = 8, 10, (2, 5, 4, 4)
PREDICTIONS = ("x", "X")
"""What is differentiated; the other operands are given."""


def operands(library: str) -> dict[str, np.ndarray]:
    """What the page says they are."""
    rng = np.random.default_rng(0)
    labels, classes = rng.integers(0, C, N), rng.integers(0, PIXELS[1], (2, 4, 4))
    padding = -1 if library == "optax" else -100
    y = rng.standard_normal((N, C))
    floats = {
        "x": 2 * rng.standard_normal((N, C)),
        "a": rng.uniform(size=(N, C)),
        "w": rng.uniform(0.5, 2.0, (N, C)),
        "p": np.asarray(jax.nn.softmax(y)),
        "y": y,
        "v": rng.uniform(0.5, 2.0, N),
        "c": rng.uniform(0.5, 2.0, C),
        "one_hot": np.eye(C)[labels],
        "X": rng.standard_normal(PIXELS),
        "Y": rng.standard_normal(PIXELS),
    }
    integers = {"labels": labels, "padded": np.where(np.arange(N) % 3, labels, padding), "classes": classes}
    return {k: x.astype(np.float32) for k, x in floats.items()} | integers | {"m": labels > 3}


def evaluated(call: str, names: dict, given: dict):
    return eval(call, names, given)  # of this repository's page


def of_jax(call: str, names: dict, given: dict, cotangent: Callable):
    """The value of a call, and its gradients with respect to the predictions."""

    def value_and_gradients(given):
        predictions = {name: given[name] for name in PREDICTIONS}
        value, pull = jax.vjp(lambda predictions: evaluated(call, names, given | predictions), predictions)
        return value, pull(cotangent(value).astype(value.dtype))[0]

    return jax.jit(value_and_gradients, compiler_options=QUICKLY)(given)


def of_torch(call: str, given: dict, cotangent: Callable):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(x.astype(np.float64) if x.dtype == np.float32 else x) for name, x in given.items()}
    predictions = [tensors[name].requires_grad_() for name in PREDICTIONS]
    found = evaluated(call, {"torch": torch, "F": torch.nn.functional}, tensors)
    gradients = torch.autograd.grad(
        found, predictions, torch.tensor(cotangent(found)), allow_unused=True, materialize_grads=True
    )
    return found.detach().numpy(), dict(zip(PREDICTIONS, (x.numpy() for x in gradients), strict=True))


def of_library(library: str, call: str, given: dict, cotangent: Callable):
    """The same of a call of another library; in float64, but for Keras."""
    if library == "F":
        return of_torch(call, given, cotangent)
    names = {library: keras() if library == "keras" else pytest.importorskip(library), "jax": jax, "C": C}
    names |= {"log_softmax": jax.nn.log_softmax, "logsumexp": jax.nn.logsumexp}
    with jax.enable_x64(True):
        given = {name: jnp.asarray(x, np.float64 if x.dtype == np.float32 else None) for name, x in given.items()}
        return jax.tree.map(np.asarray, of_jax(call, names, given, cotangent))


def keras():
    """The library, on JAX."""
    os.environ["KERAS_BACKEND"] = "jax"
    return pytest.importorskip("keras")


def cotangent(value) -> np.ndarray:
    """Numbers of the shape of a value that tell its elements apart."""
    return np.cos(np.arange(np.prod(value.shape, dtype=int)).reshape(value.shape), dtype=np.float64)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")  # of F.kl_div
@pytest.mark.parametrize(("library", "theirs", "ours"), PAIRS)
def test_row(library, theirs, ours):
    given = operands(library)
    value, gradients = of_library(library, theirs, given, cotangent)
    names = vars(jaxloss) | {"jaxloss": jaxloss, "C": C, "log_softmax": jax.nn.log_softmax}
    found, found_gradients = of_jax(ours, names, {k: jnp.asarray(x) for k, x in given.items()}, cotangent)
    terms = max(x.size for x in given.values())
    tolerance.assert_close(found, value, "the value", terms=terms, magnitude=1.0)
    for name in PREDICTIONS:
        tolerance.assert_close(found_gradients[name], gradients[name], f"the gradient of {name}", terms=terms)


def test_rows_are_read():
    """Of every library, and of every function that a heading names."""
    calls = [(param.values[0], param.values[1]) for param in PAIRS]
    assert {library for library, _ in calls} == {"F", "optax", "keras"}
    for name in re.findall(r"`(F\.\w+)`", "".join(line for line in PAGE.splitlines() if line.startswith("###"))):
        assert any(f"{name}(" in call for _, call in calls), name


def losses_of_training(loss, target, **options) -> list[float]:
    """Of each epoch of a small Keras model."""
    library = keras()
    library.utils.set_random_seed(0)
    model = library.Sequential([library.layers.Dense(C)])
    model.compile(optimizer=library.optimizers.SGD(0.1), loss=loss)
    return model.fit(operands("keras")["x"], target, epochs=20, batch_size=N, verbose=0, **options).history["loss"]


@pytest.mark.parametrize("weighted", [False, True])
def test_keras_adapter(weighted):
    """It trains as the loss of Keras does, with labels of either shape."""
    library, given = keras(), operands("keras")
    options = {"sample_weight": given["v"]} if weighted else {}
    usual = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    indices = given["labels"].astype(np.int32)  # of an int64 Keras asks JAX for one, and JAX 0.12 warns
    expected = losses_of_training(usual, indices, **options)
    assert expected[-1] < expected[0] / 2
    names = {"jaxloss": jaxloss}
    exec(re.search(r"^def cross_entropy\(y_true.*?\n\n", PAGE, re.DOTALL | re.MULTILINE)[0], names)
    for labels in (indices, indices[:, None]):
        np.testing.assert_allclose(losses_of_training(names["cross_entropy"], labels, **options), expected, rtol=1e-5)


def test_keras_without_the_adapter():
    """Swapped operands are no error: a cross entropy below 0 is all that shows it."""
    assert losses_of_training(jaxloss.categorical_cross_entropy, operands("keras")["one_hot"])[-1] < -1
