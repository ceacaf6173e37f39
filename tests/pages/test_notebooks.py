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

    def test_its_measurements_are_those_of_the_benchmarks(self, path):
        """Outputs are stored: of a file that was measured again they are old."""
        sources = "".join(line for cell in cells(path) for line in cell["source"])
        printed = "".join("".join(output.get("text", ())) for output in outputs(path))
        for name in re.findall(r"\"(\w+_gpu)\.json\"", sources):
            kept = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
            assert kept["device"] in printed
            for row in kept["measurements"]:
                if row.get("part") == "table":
                    assert f"{row['ms']['jaxloss']['value_and_grad']:.3f}" in printed
                if row.get("what") in ("sweep", "value_and_grad") and row["who"] == "jaxloss" and "ms" in row:
                    assert f"{row['ms']:.1f}" in printed

    def test_what_only_draws_is_folded(self, path):
        """On the site and in JupyterLab: a reader wants the figure, and opens its source if at all."""
        for cell in cells(path):
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and re.search(r"^ *figure[, ].*= |[( ]Figure\(", source, re.MULTILINE):
                assert cell["metadata"] == {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]}

    def test_it_is_in_the_navigation_and_in_the_readme(self, path):
        index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
        assert f"<notebooks/{path.stem}>" in index
        assert f"](notebooks/{path.name})" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_targets_are_named_somewhere():
    assert any(TARGET.search(path.read_text(encoding="utf-8")) for path in NOTEBOOKS)
