"""What `help` and the site show of a public function: every parameter, once and in order, and none of the tables' phrases."""

import inspect
import pathlib
import re
import subprocess
import sys
from typing import get_args

import jax
import pytest

import jaxloss
from jaxloss import _docs
from jaxloss import optax as drop_ins
from jaxloss._docs import described, losses
from jaxloss.optax import _docs as drop_in_tables

# Losses and drop-ins; not what is about the library, and tells of no arrays.
FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (jaxloss, drop_ins)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) and name not in ("backends", "debug_checks", "export_checks")
}
# What another function's docstring has the source of, and losses that are in no paper.
WITHOUT_SOURCE = {
    "jaxloss.linear_log_prob",
    "jaxloss.optax.convex_kl_divergence",
    "jaxloss.optax.hinge_loss",
    "jaxloss.optax.kl_divergence_with_log_targets",
    "jaxloss.optax.perceptron_loss",
    "jaxloss.optax.safe_softmax_cross_entropy",
    "jaxloss.optax.squared_error",
    *(name for name in FUNCTIONS if name.startswith("jaxloss.d_") or name.endswith("_with_stats")),
}
WITHOUT_EXAMPLE = {"jaxloss.optax.convex_kl_divergence"}  # which warns that it is deprecated
TABLES = {
    f"{module.__name__}.{name}": found
    for module in (losses, drop_in_tables)
    for name, found in vars(module).items()
    if isinstance(found, dict) and not name.startswith("__")
}
PARAMETERS = {name for function in FUNCTIONS.values() for name in inspect.signature(function).parameters}

every_function = pytest.mark.parametrize("name", FUNCTIONS)


def sections(name: str) -> dict[str, str]:
    """The text of each section by its heading, the first paragraphs under none."""
    heading, found = "", {"": ""}
    for paragraph in inspect.getdoc(FUNCTIONS[name]).split("\n\n"):
        if match := re.match(r"(Args|Returns|Raises):\n|(Source)s?: |(>>>) ", paragraph):
            heading = next(filter(None, match.groups()))
            assert heading not in found
            found[heading] = ""
        found[heading] += f"{paragraph}\n"
    return found


def entries(section: str) -> list[tuple[str, str]]:
    return [tuple(entry) for entry in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)$", section, re.MULTILINE)]


@every_function
def test_every_parameter_is_described_once_and_in_order(name):
    described_parameters = entries(sections(name)["Args"])
    assert [parameter for parameter, _ in described_parameters] == list(inspect.signature(FUNCTIONS[name]).parameters)
    assert all(text.endswith(".") for _, text in described_parameters)


@every_function
def test_sections(name):
    found = sections(name)
    expected = ["", "Args", "Returns", "Raises"]
    expected += [">>>"] if name not in WITHOUT_EXAMPLE else []
    expected += ["Source"] if name not in WITHOUT_SOURCE else []
    assert list(found) == expected, f"the docstring of {name} has other parts than expected; >>> is an example"
    assert found["Returns"].startswith("Returns:\n    ")
    assert found["Returns"].endswith(".\n")
    errors = [error for error, _ in entries(found["Raises"])]
    assert errors
    assert set(errors) <= {"TypeError", "ValueError"}


@every_function
def test_no_phrase_and_no_reference_is_left(name):
    text = inspect.getdoc(FUNCTIONS[name])
    assert not re.search(r"<[a-z_ ]+>|<Returns>|\bas for `|\bAs `|  +\.|:\n\n\n", text)
    assert max(map(len, text.splitlines())) <= 120


@every_function
def test_a_description_names_no_parameter_of_another_function(name):
    text = " ".join(text for _, text in entries(sections(name)["Args"]))
    named = set(re.findall(r"`(\w+)`", text)) & PARAMETERS
    assert named <= set(inspect.signature(FUNCTIONS[name]).parameters)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.startswith("jaxloss.d_")])
def test_gradients_are_described_as_such(name):
    found, loss = sections(name), sections(name.replace(".d_", "."))
    arguments = dict(entries(found["Args"]))
    assert "their gradient is exactly 0" in " ".join(arguments["where"].split())
    assert "give the gradient of each" in " ".join(arguments["reduction"].split())
    assert "An array like" in found["Returns"]
    differing = {parameter for parameter, text in entries(loss["Args"]) if text != arguments[parameter]}
    assert differing <= {"where", "reduction", "clip", "axis_name"}


def test_an_option_of_cross_entropy_is_described_alike():
    first, *others = (
        dict(entries(sections(f"jaxloss.{name}")["Args"]))
        for name in ("categorical_cross_entropy", "linear_cross_entropy", "log_prob", "linear_log_prob", "entropy")
    )
    for other in others:
        assert other["softcap"] == first["softcap"]
        assert other["temperature"] == first["temperature"]


def test_the_parameters_without_a_derivative():
    """They are what may be no array, masks and labels: a new option is either among them or said to be differentiable."""
    constants = set(TABLES["jaxloss._docs.losses._EVERY_LOSS"]["not differentiable"].split(", "))
    assert constants <= PARAMETERS
    for name in FUNCTIONS:
        if not name.startswith("jaxloss.optax."):
            parameters = inspect.signature(FUNCTIONS[name], eval_str=True).parameters
            arrays = {name for name, x in parameters.items() if jax.Array in get_args(x.annotation)}
            assert set(parameters) - constants == arrays - {"where", "labels"}


@pytest.mark.parametrize("name", TABLES)
def test_every_entry_of_a_table_is_used(name):
    folders = pathlib.Path(_docs.__file__).parent, pathlib.Path(drop_ins.__file__).parent
    modules = [path for folder in folders for path in folder.glob("*.py")]
    source = "".join(path.read_text() for path in [*modules, *pathlib.Path(jaxloss.__file__).parent.glob("*.py")])
    used = {
        *PARAMETERS,
        "Returns",
        "TypeError",
        "ValueError",
        "not differentiable",
        *re.findall(r"<([a-z][\w ]*)>", source),
    }
    assert set(TABLES[name]) <= used


def function(x, scale=1):
    """Scales.

    Args:
        scale: a <number>.

    >>> 2 < 3 > 1
    True

    Source: arithmetic.
    """


def test_what_is_completed():
    shared = described.table("""
    x: what is multiplied,
        here by `scale`.
    number: number that <operand> is multiplied by
    Returns: Their product.
    TypeError: <operands> is none.
    """)
    written = function.__doc__
    try:
        assert described.described(shared)(function) is function
        assert inspect.cleandoc(function.__doc__) == inspect.cleandoc("""Scales.

            Args:
                x: what is multiplied, here by `scale`.
                scale: a number that `x` is multiplied by.

            Returns:
                Their product.

            Raises:
                TypeError: `x` or `scale` is none.

            >>> 2 < 3 > 1
            True

            Source: arithmetic.""")
    finally:
        function.__doc__ = written


def test_a_text_extends_the_one_below():
    below = described.table("""
    clip: a bound.
    """)
    above = described.table(
        """
    clip: <clip> None for none.
    """,
        below,
    )
    assert above == {"clip": "a bound. None for none."}


FAULTY = {
    "a parameter without a description": ("    scale: a number.", "has x: expected a description"),
    "a description without a parameter": ("    x: a number.\n    y: a number.", "describes y: expected parameters"),
    "an unknown phrase": ("    x: a <numeral>.\n    scale: a number.", "with <numeral>: expected a phrase"),
}


@pytest.mark.parametrize(("arguments", "message"), FAULTY.values(), ids=FAULTY)
def test_a_fault_is_an_error(arguments, message):
    def function(x, scale=1):
        pass

    function.__doc__ = f"Scales.\n\nArgs:\n{arguments}\n"
    with pytest.raises(ValueError, match=message):
        described.described({"Returns": "A number."})(function)


@pytest.mark.cpu_only
def test_without_docstrings():
    code = "import inspect, jaxloss, jaxloss.optax as drop_ins\n"
    code += "print(jaxloss.d_mse.__doc__, drop_ins.l2_loss.__doc__, len(inspect.signature(jaxloss.d_mse).parameters))"
    run = subprocess.run([sys.executable, "-OO", "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert run.stdout == "None None 6\n"
