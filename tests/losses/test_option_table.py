"""The table of the options of cross entropy, `jaxloss/_spec.py`, and all that has to have an entry for each of them.

What is missing after an option is added to the table, each as a sentence that says which file wants what.
"""

import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cross_entropy_options as samples
import jaxloss
import public_calls
from jaxloss import formulas
from jaxloss._ffi import library
from jaxloss._spec import OPTIONS
from test_cross_entropy_options import exact_rows

options = pytest.mark.parametrize("name", OPTIONS)
arguments = pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.is_argument])

WITH_ALL = {
    "categorical_cross_entropy": "categorical",
    "d_categorical_cross_entropy": "categorical",
    "categorical_cross_entropy_with_stats": "categorical",
    "linear_cross_entropy": "linear",
    "linear_cross_entropy_with_stats": "linear",
}
OF_DISTRIBUTIONS = {"log_prob": "categorical", "entropy": "categorical", "linear_log_prob": "linear"}
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "options.md"
X, LABELS, PROBABILITIES = np.float32([[2, 1, 0, -1], [0, 3, 1, -3]]), np.int32([1, 2]), np.full((2, 4), 0.25, "f")


@options
def test_the_library_has_the_same_order(name):
    """It names the one buffer that a call with the option's bit has, of a type that no option has."""
    bit = list(OPTIONS).index(name)
    attributes = {"given": 1 << bit, "wanted": 1, "smoothed_classes": 0}
    call = jax.ffi.ffi_call(
        f"jaxloss_cross_entropy_with_options_value_v{library.CALLING_CONVENTION}",
        jax.ShapeDtypeStruct((2,), jnp.float32),
    )
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jax.block_until_ready(
            call(
                *(X, LABELS, np.ones(2, np.float32), np.zeros((2,), bool)),
                **{key: np.int64(number) for key, number in attributes.items()},
                clip=np.float64(0),
            )
        )
    theirs = re.search(r"jaxloss: (?:result )?(\w+)", str(raised.value))[1]
    assert theirs == name, (
        f"cuda/rows.h: CrossEntropyOptionRows::take_options takes {theirs!r} in the place of {name!r} (place {bit} of "
        f"jaxloss/_spec.py); where it is right, the compiled library is an old one"
    )


@arguments
def test_public_functions_take_it(name):
    option = OPTIONS[name]
    for function, module in (WITH_ALL | (OF_DISTRIBUTIONS if option.of_distribution else {})).items():
        wanted = f"jaxloss/{module}.py: {function} takes no {name}={option.off!r}, as jaxloss/_spec.py has it"
        parameters = inspect.signature(getattr(jaxloss, function)).parameters
        assert name in parameters, wanted
        assert parameters[name].default == option.off, wanted
        docstring = inspect.getdoc(getattr(jaxloss, function))
        assert re.search(rf"^ +{name}: ", docstring, re.M), (
            f"jaxloss/{module}.py: {function} does not say what {name} is"
        )


@arguments
def test_tests_have_a_sample_of_it(name):
    assert name in samples.SAMPLES, f"tests/support/cross_entropy_options.py: SAMPLES has no number for {name}"
    assert name in inspect.signature(exact_rows).parameters, (
        f"tests/losses/test_cross_entropy_options.py: exact_rows, the formula that kernels are compared with, has no {name}"
    )
    calls = [call for call in public_calls.CALLS if name in call.operands or name in call.static]
    assert calls, f"tests/support/public_calls.py: no public call has {name}"


@arguments
def test_it_changes_the_loss(name):
    """In each public function that takes it, by kernels and by the formula: an option that is not read is no option."""
    assert name in samples.SAMPLES, f"tests/support/cross_entropy_options.py: SAMPLES has no number for {name}"
    value = 3 if name == "num_classes" else samples.on([name], X.shape[-1])[name]
    for function, module in WITH_ALL.items():
        x = (X @ np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)) if module == "linear" else (X,)
        run = getattr(jaxloss, function)
        with_it, without = (jax.tree.leaves(run(*x, LABELS, **given))[0] for given in ({name: value}, {}))
        assert not np.array_equal(with_it, without), (
            f"jaxloss/{module}.py: {function} has an argument {name} that changes nothing: it has to be one of the "
            f"options that are checked; else cuda/maths/cross_entropy_options.h does not use it"
        )
    by_formula, without = (
        formulas.categorical_cross_entropy(jnp.asarray(X), jnp.asarray(LABELS), **given)
        for given in ({name: value}, {})
    )
    assert not np.array_equal(by_formula, without), f"jaxloss/formulas/categorical.py: no formula reads {name}"


@arguments
def test_the_page_has_it(name):
    assert f"[`{name}`](#" in PAGE.read_text(), f"docs/options.md: the table of options has no line for {name}"


@pytest.mark.parametrize("name", [name for name in samples.ARGUMENTS if OPTIONS[name].changes == "label"])
def test_what_is_of_one_label_has_an_error_for_other_targets(name):
    for target in (PROBABILITIES, (LABELS, LABELS, 0.5)):
        with pytest.raises(
            ValueError, match=rf"{name} changes the logit of one label, target .*: expected class indices"
        ):
            jaxloss.categorical_cross_entropy(X, target, **samples.on([name], 4))
        jaxloss.categorical_cross_entropy(X, target, **{name: OPTIONS[name].off})
