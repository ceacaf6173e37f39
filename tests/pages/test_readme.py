"""The README's tables say what benchmarks/results/ holds."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOSSES = {
    "cross entropy, labels": ("categorical", "labels"),
    "cross entropy, probabilities": ("categorical", "numbers"),
    "binary cross entropy": ("binary", "numbers"),
    "mean squared error": ("mse", "numbers"),
}
LINEAR = {"jaxloss": "jaxloss", "XLA, whole logits": "whole logits", "XLA, checkpointed scan": "scan and checkpoint"}


def measurements(name: str) -> list[dict]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["measurements"]


def table(heading: str) -> list[list[str]]:
    """The rows of the first table after the line that begins so, without its two lines of headings."""
    after = README[README.index(f"\n{heading}") :]
    lines = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def shape_of(text: str) -> list[int]:
    return [int(size.replace(" ", "")) for size in text.split("×")]


SPEED = table("## How near the memory's limit")
OPTIONS_SPEED = table("Cross entropy of labels with options, value and gradient")
LINEAR_SPEED = table("Linear cross entropy, value and gradient")


def speed(found: dict) -> list[str]:
    """Value and gradient: times of jaxloss, the limit and XLA, and their ratios."""
    ours, limit, xla = (found["ms"][who]["value_and_grad"] for who in ("jaxloss", "limit", "xla"))
    ratios = found["ratio"]["value_and_grad"]
    return [f"{ours:.2f}", f"{limit:.2f}", f"{xla:.2f}", f"{ratios['limit']:.2f}", f"{1 / ratios['xla']:.1f}"]


@pytest.mark.parametrize("row", SPEED, ids=lambda row: " ".join(row[:3]))
def test_speed(row):
    name, dtype, shape, *numbers = row
    loss, target = LOSSES[name]
    (found,) = [
        entry
        for entry in measurements("losses_gpu")
        if (entry["part"], entry["loss"], entry["target"]) == ("table", loss, target)
        and (entry["dtype"], entry["shape"]) == (dtype, shape_of(shape))
    ]
    assert numbers == speed(found)


@pytest.mark.parametrize("row", OPTIONS_SPEED, ids=lambda row: " ".join(row[:3]))
def test_speed_with_options(row):
    name, dtype, shape, *numbers = row
    (found,) = [
        entry
        for entry in measurements("losses_options_gpu")
        if entry["loss"] == f"categorical with {name.strip('`')}"
        and (entry["dtype"], entry["shape"]) == (dtype, shape_of(shape))
    ]
    assert numbers == speed(found)


@pytest.mark.parametrize("row", LINEAR_SPEED, ids=lambda row: " ".join(row[:2]))
def test_linear_speed(row):
    shape, who, *numbers = row
    (found,) = [
        entry
        for entry in measurements("linear_cross_entropy_gpu")
        if entry["what"] == "value_and_grad"
        and [entry["tokens"], entry["width"], entry["classes"]] == shape_of(shape)
        and entry["who"] == LINEAR[who]
    ]
    expected = [f"{found['ms']:.1f}", f"{found['ms'] / found['limit_ms']:.2f}", f"{found['temporary_bytes'] / 1e9:.1f}"]
    assert numbers == expected


def test_the_tables_are_there():
    assert len(SPEED) >= 8
    assert len(LINEAR_SPEED) >= 6
