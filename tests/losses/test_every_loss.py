"""What an elementwise loss needs besides its kernel: where something is missing, the failure says which file wants what."""

import pathlib
import re

import pytest

import jaxloss
from jaxloss import __main__ as self_check
from losses import ELEMENTWISE

ROOT = pathlib.Path(__file__).parents[2]
FUNCTORS = re.findall(r'const char\* name = "(\w+)"', (ROOT / "cuda/maths/elementwise.h").read_text())
PAGES = ("docs/api/regression.md", "docs/choosing.md", "docs/semantics.md", "README.md", "CHANGELOG.md")


def has_word(page: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", (ROOT / page).read_text(encoding="utf-8")) is not None


def missing(name: str) -> list[str]:
    """What a loss lacks, in the order in which one adds it."""
    has = {
        f"jaxloss/__init__.py exports no {name}": name in jaxloss.__all__,
        f"jaxloss/__init__.py exports no d_{name}": f"d_{name}" in jaxloss.__all__,
        f"tests/support/losses.py has no {name} in ELEMENTWISE": name in [loss.name for loss in ELEMENTWISE],
        f"jaxloss/__main__.py checks no {name}": name in self_check.checks(),
        f"docs/api/regression.md has no d_{name}": has_word("docs/api/regression.md", f"d_{name}"),
        **{f"{page} has no word of {name}": has_word(page, name) for page in PAGES},
    }
    return [what for what, is_there in has.items() if not is_there]


@pytest.mark.parametrize("name", FUNCTORS)
def test_nothing_is_missing(name):
    if what := missing(name):
        pytest.fail("\n".join(what), pytrace=False)


def test_a_loss_that_has_a_kernel_alone():
    assert missing("squared_sine") == [
        "jaxloss/__init__.py exports no squared_sine",
        "jaxloss/__init__.py exports no d_squared_sine",
        "tests/support/losses.py has no squared_sine in ELEMENTWISE",
        "jaxloss/__main__.py checks no squared_sine",
        "docs/api/regression.md has no d_squared_sine",
        *(f"{page} has no word of squared_sine" for page in PAGES),
    ]
