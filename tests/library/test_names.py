"""The public names: what is among them, what their parameters are annotated with, and what ours are called elsewhere."""

import inspect
import pathlib
import subprocess
import sys
import tomllib

import pytest

import jaxloss
from jaxloss import formulas
from jaxloss import optax as drop_ins
from jaxloss._checks import other_names

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (jaxloss, drop_ins, formulas)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}


@pytest.mark.parametrize("function", PUBLIC.values(), ids=PUBLIC)
def test_every_parameter_is_annotated(function):
    signature = inspect.signature(function, eval_str=True)  # every name in them is there
    assert signature.return_annotation is not signature.empty
    assert [x.name for x in signature.parameters.values() if x.annotation is x.empty] == []


@pytest.mark.parametrize("function", PUBLIC.values(), ids=PUBLIC)
def test_types_are_shown_as_they_are_written(function):
    """`help` shows a parameter as `ArrayLike`, not as the nine types that it stands for."""
    annotations = [x.annotation for x in inspect.signature(function).parameters.values()]
    assert [x for x in annotations if not isinstance(x, str) and x is not bool] == []


def test_formulas_are_losses_and_their_derivatives():
    losses = {name for name in formulas.__all__ if not name.startswith("d_")}
    derivatives = {name.removeprefix("d_").removesuffix("_of_target") for name in set(formulas.__all__) - losses}
    assert derivatives == losses


@pytest.mark.cpu_only
def test_drop_ins_are_imported_when_they_are_used():
    code = """
import sys
import tomllib
import jaxloss
assert "optax" in dir(jaxloss) and "jaxloss.optax" not in sys.modules
assert jaxloss.optax.l2_loss(3.0) == 4.5
assert jaxloss.optax is sys.modules["jaxloss.optax"]
assert "optax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", other_names._OURS)
def test_a_name_of_another_library(name):
    ours, difference = other_names._OURS[name]
    assert ours in jaxloss.__all__
    assert not hasattr(jaxloss, name)
    drop_in = f" Or jaxloss.optax.{name}, optax's." if hasattr(drop_ins, name) else ""
    with pytest.raises(AttributeError) as raised:
        getattr(jaxloss, name)
    assert str(raised.value) == (
        f"module 'jaxloss' has no attribute {name!r}: did you mean jaxloss.{ours}, {difference}?{drop_in}"
    )


def test_the_whole_message_of_another_name():
    with pytest.raises(AttributeError) as raised:
        jaxloss.mse_loss  # noqa: B018
    assert str(raised.value) == (
        "module 'jaxloss' has no attribute 'mse_loss': did you mean jaxloss.mse, which has a factor 1/2, and whose mean "
        "divides by the number of examples, not of elements?"
    )


@pytest.mark.parametrize("name", ["spam", "mean", "__wrapped__", "cross_entropies"])
def test_any_other_name(name):
    with pytest.raises(AttributeError) as raised:
        getattr(jaxloss, name)
    assert str(raised.value) == f"module 'jaxloss' has no attribute {name!r}"
    assert raised.value.name == name


def test_the_names_of_drop_ins():
    assert set(other_names._DROP_INS) == set(drop_ins.__all__) - set(jaxloss.__all__)
    assert not set(other_names._OPTAX_ALONE) & {*drop_ins.__all__, *jaxloss.__all__, *other_names._OURS}


OF_MODULES = {
    "a drop-in": (jaxloss, "hinge_loss", "did you mean jaxloss.optax.hinge_loss, optax's?"),
    "optax's alone": (jaxloss, "ctc_loss", "call optax.losses.ctc_loss, which has no kernels here"),
    "optax's alone, of drop-ins": (drop_ins, "ntxent", "call optax.losses.ntxent, which has no kernels here"),
    "ours, of drop-ins": (drop_ins, "mse", "did you mean jaxloss.mse? This module has optax's names."),
    "torch's, of drop-ins": (
        drop_ins,
        "l1_loss",
        "did you mean jaxloss.mae, whose mean divides by the number of examples, not of elements? This module has "
        "optax's names.",
    ),
}


@pytest.mark.parametrize(("module", "name", "advice"), OF_MODULES.values(), ids=OF_MODULES)
def test_a_name_that_is_elsewhere(module, name, advice):
    with pytest.raises(AttributeError) as raised:
        getattr(module, name)
    assert str(raised.value) == f"module '{module.__name__}' has no attribute {name!r}: {advice}"


def test_any_other_name_of_a_drop_in():
    with pytest.raises(AttributeError) as raised:
        drop_ins.squared_errors  # noqa: B018
    assert str(raised.value) == "module 'jaxloss.optax' has no attribute 'squared_errors'"
    assert (raised.value.name, raised.value.obj) == ("squared_errors", drop_ins)


@pytest.mark.cpu_only
def test_types_of_public_modules_are_checked_strictly():
    settings = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text())
    package = pathlib.Path(jaxloss.__file__).parent  # CI runs this suite where the wheel alone is installed
    folders = {f"jaxloss/{path.parent.name}" for path in package.glob("[!_]*/__init__.py")}
    modules = {f"jaxloss/{path.name}" for path in package.glob("[!_]*.py")}
    strict = settings["tool"]["pyright"]["strict"]
    assert set(strict) == {"jaxloss/__init__.py", *folders, *modules}
