"""The examples in docs/ run: the Python blocks of a page, in order, in one namespace; and every function has its page.

A block under the line `<!-- needs name -->` or `<!-- needs name(option) -->` runs if jaxloss has that.
"""

import inspect
import pathlib
import re

import pytest

import jaxloss

DOCS = pathlib.Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"(?:<!-- needs (\w+)(?:\((\w+)\))? -->\n)?```python\n(.*?)```", re.DOTALL)


def exists(name: str | None, option: str | None) -> bool:
    function = getattr(jaxloss, name, None) if name else exists
    return function is not None and (not option or option in inspect.signature(function).parameters)


@pytest.mark.parametrize(
    "page",
    sorted(page for page in DOCS.rglob("*.md") if "```python" in page.read_text()),
    ids=lambda page: str(page.relative_to(DOCS).with_suffix("")),
)
def test_examples(page):
    text = page.read_text()
    namespace = {}
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")
    for block in blocks:
        name, option, code = block.groups()
        if exists(name, option):
            line = text.count("\n", 0, block.start(3))
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


def test_every_function_has_its_place():
    named = [
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(r"^\.\. auto(?:function|class|module):: jaxloss\.(\w+)$", page.read_text(), re.MULTILINE)
    ]
    assert sorted([*named, "__version__"]) == sorted([*jaxloss.__all__, "optax"])
