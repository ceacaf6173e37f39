"""docs/options.md: every option has its formula and its picture, and the pictures show what jaxloss computes today."""

import importlib.util
import inspect
import pathlib
import re
from xml.etree import ElementTree

import numpy as np
import pytest

import jaxloss
import tolerance
from jaxloss._spec import OPTIONS

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "options.md").read_text(encoding="utf-8")
PICTURES = re.findall(r'src="images/options/(\w+)_light\.svg"', PAGE)
SVG = "{http://www.w3.org/2000/svg}"


def drawing():
    pytest.importorskip("matplotlib")
    specification = importlib.util.spec_from_file_location("draw_options", DOCS / "draw_options.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def series(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Where the points of each line, or the corners of each bar, are in a picture."""
    groups = ElementTree.parse(path).getroot().iter(f"{SVG}g")
    return {
        name: np.array(re.findall(r"[ML] (\S+) (\S+)", group.find(f"{SVG}path").get("d")), float)
        for group in groups
        if (name := group.get("id", "")).startswith("series: ")
    }


def in_place(pictured: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same, as shares of the width and the height of all: how letters are set moves the axes."""
    points = np.concatenate(list(pictured.values()))
    return {name: (of - points.min(0)) / np.ptp(points, 0) for name, of in pictured.items()}


CATEGORICAL = [*(name for name, option in OPTIONS.items() if option.is_argument), "clip"]
TARGETS = ["(labels, other_labels, share)", "(indices, probabilities)"]
BINARY = ["pos_weight", "class_weights", "label_smoothing", "focal_gamma", "focal_alpha"]


@pytest.mark.parametrize(
    ("part", "name"), [*((0, name) for name in CATEGORICAL + TARGETS), *((1, name) for name in BINARY)], ids=str
)
def test_every_option_has_formula_and_picture(part, name):
    """In the section that the table of options links to."""
    text = PAGE.split("\n## Options of binary cross entropy\n")[part]
    anchor = re.search(rf"\[`{re.escape(name)}`\]\(#([\w-]+)\)", text)[1]
    (section,) = [of for of in text.split("\n### ") if of.splitlines()[0].lower().replace(" ", "-") == anchor]
    assert "$$" in section
    assert "<picture>" in section


def test_all_options_of_binary_cross_entropy_are_there():
    parameters = inspect.signature(jaxloss.binary_cross_entropy).parameters
    assert set(BINARY) < set(parameters)
    every_loss = set(inspect.signature(jaxloss.mse).parameters) | {"logits", "ignore_index", "clip"}
    assert set(parameters) - every_loss == set(BINARY)


def test_pictures_are_what_the_script_draws(tmp_path):
    module = drawing()
    assert list(module.CHARTS) == PICTURES
    for name, chart in module.CHARTS.items():
        module.draw(chart(), "light", tmp_path / "drawn.svg")
        dark, light = (series(DOCS / "images" / "options" / f"{name}_{theme}.svg") for theme in ("dark", "light"))
        kept, found = in_place(light), in_place(series(tmp_path / "drawn.svg"))
        assert list(dark) == list(kept) == list(found)
        # Either errs like a loss, of the range of them, and by the last of six digits that are written, of a width or height.
        error = 2 * tolerance.OPERATIONS * tolerance.epsilon(np.float32) + 2e-6 / np.ptp(
            np.concatenate([*light.values()]), 0
        )
        for one in kept:
            np.testing.assert_array_equal(dark[one], light[one])
            tolerance.assert_within(found[one], kept[one], error, f"{name}, {one}")


PICTURE = re.compile(
    r'<picture>.*?srcset="(?P<dark>[^"]+)".*? src="(?P<light>[^"]+)".*? alt="(?P<alt>[^"]+)".*?</picture>', re.DOTALL
)


def test_pictures_have_both_themes_and_a_description():
    for path in (*DOCS.rglob("*.md"), DOCS.parent / "README.md"):
        text = path.read_text(encoding="utf-8")
        found = list(PICTURE.finditer(text))
        assert len(found) == text.count("<picture>"), path
        for picture in found:
            stem = picture["light"].rpartition(".")[0].removesuffix("_light")
            assert picture["dark"].rpartition(".")[0] == f"{stem}_dark"
            assert all((path.parent / picture[theme]).is_file() for theme in ("dark", "light"))
            assert len(picture["alt"]) > 60
