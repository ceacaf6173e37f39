"""The programs in examples/ train, briefly: each learns what it is about. And docs/examples.md lists them all.

Packages that the test dependencies do not bring are `pip install --group examples`; without them the examples are skipped.
"""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import examples
import meshes
import tolerance
from quickly import QUICKLY

ROOT = pathlib.Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "examples").glob("[!_]*.py"))
PAGE = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
BY_CHANCE = 0.1
"""The accuracy of guessing one digit of ten."""


def example(name: str):
    """The module, or the test is skipped with what to install."""
    try:
        return importlib.import_module(f"examples.{name}")
    except ModuleNotFoundError as error:
        pytest.skip(examples.what_is_missing(error))


def test_image_classifier():
    assert example("image_classifier").main(quick=True) > 0.8


def test_segmentation():
    module = example("segmentation")
    background, *shapes = module.main(quick=True)
    _, labels = module.pictures(np.random.default_rng(1), 64)
    counted = labels != module.UNSURE
    assert background > (labels == 0).sum() / counted.sum()  # of predicting nothing else
    assert sum(shapes) > 2 * (counted & (labels > 0)).sum() / counted.sum()  # of predicting both everywhere


def test_multi_label():
    recalls = example("multi_label").main(quick=True)
    rare = {name: recall[-2:].mean() for name, recall in recalls.items()}  # of 2 and of 1 in 100
    assert rare["plain"] < 0.5 * rare["pos_weight"]
    assert rare["plain"] < 0.7 * rare["focal"]


def test_distill():
    """From little text a student learns that text by heart; from a teacher's predictions of it, what text is like."""
    teacher, alone, taught = example("distill").main(quick=True).values()
    assert alone[-1] > alone[0]
    assert taught[-1] < taught[0] - 0.2
    assert teacher[-1] < taught[-1] < alone[-1] - 0.7


def test_distillation():
    teacher, alone, taught = example("distillation").main(quick=True).values()
    assert alone < taught - 0.1
    assert taught < teacher


def test_grpo():
    module = example("grpo")
    rewards = module.main(quick=True)
    assert rewards[0] < 2 / module.DIGITS  # as by chance
    assert rewards[-1] > 0.8


def gauss_newton_by_matrices(network, params, inputs, labels, vector):
    """What a product with the Gauss-Newton matrix is, by the matrices themselves."""
    start, unravel = ravel_pytree(params)

    def logits(flat):
        return network(unravel(flat), inputs)

    def loss(x):
        return -jax.nn.log_softmax(x)[np.arange(len(x)), labels].mean()

    size = logits(start).size
    jacobian = jax.jacobian(logits)(start).reshape(size, -1)
    hessian = jax.hessian(loss)(logits(start)).reshape(size, size)
    return jacobian.T @ hessian @ jacobian @ ravel_pytree(vector)[0]


def test_gauss_newton():
    module = example("gauss_newton")
    loss, of_adam = module.main(quick=True)
    assert loss < 0.1 * of_adam
    params = {
        "hidden": np.full((3, 2), 0.1, np.float32),
        "output": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4),
    }
    given = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3), np.array([0, 1, 2, 3, 0])
    vector = jax.tree.map(lambda x: np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape), params)
    expected = jax.jit(gauss_newton_by_matrices, static_argnums=0, compiler_options=QUICKLY)(
        module.logits_of, params, *given, vector
    )
    found = jax.jit(module.gauss_newton_product, compiler_options=QUICKLY)(params, *given, vector)
    operations = tolerance.OPERATIONS_OF_HIGHER_ORDER
    tolerance.assert_close(ravel_pytree(found)[0], expected, "the product", operations=operations, terms=expected.size)


@pytest.mark.cpu_only
@pytest.mark.skipif(meshes.count() < 8, reason="a mesh of eight devices")
def test_data_and_vocabulary_parallel(capsys):
    losses, losses_of_one = example("data_and_vocabulary_parallel").main(quick=True)
    np.testing.assert_allclose(losses, losses_of_one, rtol=1e-4)
    assert losses[-1] < 0.2 * losses[0]
    printed = capsys.readouterr().out
    assert re.search(r"exchanges of a step: \{'all-reduce': \d+\}\n", printed)  # no logits are gathered
    assert abs(float(re.search(r"shard_map: loss (\S+)", printed)[1]) - losses[0]) < 1e-3
    assert "the output layer is split: P(None, 'vocabulary')" in printed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Keras
def test_keras_fit():
    (usual, accuracy), (adapted, adapted_accuracy), (swapped, swapped_accuracy) = (
        example("keras_fit").main(quick=True).values()
    )
    np.testing.assert_allclose(adapted, usual, rtol=1e-4)
    assert abs(adapted_accuracy - accuracy) < 0.01
    assert accuracy > 0.8
    assert swapped[-1] < swapped[0] < 0
    assert swapped_accuracy < 3 * BY_CHANCE


def test_language_model():
    of_optax, losses = example("language_model").main(quick=True).values()
    np.testing.assert_allclose(losses, of_optax, rtol=1e-2)  # the same up to rounding, which training makes more of
    assert losses[-1] < losses[0] - 1


def test_equinox_model():
    assert example("equinox_model").main(quick=True) > 0.8


def test_torch_port():
    losses, of_torch = example("torch_port").main(quick=True)
    assert min(losses) < 0.5 * losses[0]
    if of_torch is None:
        pytest.skip(examples.what_is_missing(ModuleNotFoundError(name="torch")))
    np.testing.assert_allclose(losses, of_torch, rtol=1e-5)


def run(name: str, *arguments: str, hidden: str = "") -> subprocess.CompletedProcess:
    """The program by itself, in a Python that does not find one package."""
    code = f"import sys, runpy; sys.modules[{hidden!r}] = None; sys.argv = ['-m', *sys.argv[1:]]; import examples; "
    code += f"runpy.run_module('examples.{name}', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.cpu_only
@pytest.mark.parametrize(("name", "package"), [("language_model", "flax"), ("keras_fit", "keras")])
def test_what_is_missing(name, package):
    completed = run(name, hidden=package)
    assert completed.returncode == 1
    assert completed.stderr == f"error: {package} is not installed: pip install --group examples\n"


def test_the_page_lists_all():
    assert sorted(re.findall(r"^\| \[`(\w+)`\]\(\.\./examples/\w+\.py\)", PAGE, re.MULTILINE)) == NAMES
    assert sorted(name.removeprefix("test_") for name in globals() if name.removeprefix("test_") in NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_short(name):
    lines = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
