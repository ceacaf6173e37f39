"""What the notebooks hold as they are stored; `make notebooks` runs them."""

import json
import pathlib
import re

import pytest

from jaxloss._ffi import library

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TARGET = re.compile(r"\bjaxloss_(?P<name>\w+)_v\d+\b")


def cells(path: pathlib.Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def outputs(path: pathlib.Path) -> list[dict]:
    return [output for cell in cells(path) for output in cell.get("outputs", ())]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_it_says_what_it_needs_and_ends_with_something_to_try(self, path):
        texts = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown"]
        assert texts[0].startswith("# ")
        assert "**You need**" in texts[0]
        assert "## To try\n\n1. " in texts[-1]
        assert cells(path)[-1]["cell_type"] == "markdown"

    def test_its_outputs_are_stored(self, path):
        assert any(output["output_type"] == "stream" or "image/png" in output["data"] for output in outputs(path))
        assert not [output for output in outputs(path) if output["output_type"] == "error"]

    def test_its_pictures_have_descriptions_and_are_small(self, path):
        pictures = [output for output in outputs(path) if "image/png" in output.get("data", ())]
        assert pictures
        for picture in pictures:
            alt = picture["metadata"]["image/png"]["alt"]
            assert len(alt) > 60
            assert alt == "".join(picture["data"]["text/plain"])
            assert len(picture["data"]["image/png"]) < 150_000

    def test_its_outputs_are_of_the_library_as_it_is(self, path):
        """Its targets are named after the calling convention."""
        for match in TARGET.finditer(path.read_text(encoding="utf-8")):
            assert match[0] == library.target_name(match["name"])

    def test_it_is_in_the_navigation_and_in_the_readme(self, path):
        index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
        assert f"<notebooks/{path.stem}>" in index
        assert f"](notebooks/{path.name})" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_targets_are_named_somewhere():
    assert any(TARGET.search(path.read_text(encoding="utf-8")) for path in NOTEBOOKS)
