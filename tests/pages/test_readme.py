"""The README's tables and its picture say what benchmarks/results/ holds."""

import importlib.util
import json
import pathlib
import re
from xml.etree import ElementTree

import pytest

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOSSES = {
    "cross entropy, labels": ("categorical", "labels"),
    "cross entropy, probabilities": ("categorical", "numbers"),
    "binary cross entropy": ("binary", "numbers"),
    "mean squared error": ("mse", "numbers"),
}
LINEAR = {
    "jaxloss": "jaxloss",
    "XLA, whole logits": "whole logits",
    "XLA, checkpointed scan": "scan and checkpoint",
    "torch.compile": "torch.compile",
    "Liger": "Liger",
    "tokamax": "tokamax",
    "jax-cce": "jax-cce",
}
DRAWN = LINEAR.keys() - {"jax-cce"}
BESIDE_A_COPY = {"jaxloss": "jaxloss", "torch.compile": "torch.compile", "Liger": "Liger", "XLA": "xla"}


def measurements(name: str) -> list[dict]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["measurements"]


def table(heading: str) -> list[list[str]]:
    """The rows of the first table after the line that begins so, without its two lines of headings."""
    after = README[README.index(f"\n{heading}") :]
    lines = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def shape_of(text: str) -> list[int]:
    return [int(size.replace(" ", "")) for size in text.split("×")]


SPEED = table("## Performance")
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
    ms = [
        found["ms"].get(who, {}).get("value_and_grad") for who in ("jaxloss", "limit", "xla", "torch.compile", "Liger")
    ]
    ratio = found["ratio"]["value_and_grad"]["limit"]
    assert numbers == [*("–" if time is None else f"{time:.2f}" for time in ms), f"{ratio:.2f}"]


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
    assert len(OPTIONS_SPEED) >= 8
    assert len(LINEAR_SPEED) >= 10


SVG = "{http://www.w3.org/2000/svg}"
PICTURES = [path for path in re.findall(r'src(?:set)?="([^"]+\.svg)"', README) if "speed" in path]


def drawn_bars(picture: str) -> dict[tuple[str, str, str], tuple[float, str]]:
    """Of each panel, group and bar: how long it is drawn, and the text beside it."""
    root = ElementTree.parse(ROOT / picture).getroot()
    texts = {float(text.get("y")): text.text for text in root.iter(f"{SVG}text")}
    bars = {}
    for group in root.iter(f"{SVG}g"):
        if group.get("id", "").startswith("bar: "):
            places = re.findall(r"[ML] (\S+) (\S+)", group.find(f"{SVG}path").get("d"))
            left, *_, right = sorted({float(x) for x, _ in places})
            middle = sum(float(y) for _, y in places) / len(places)
            beside = [text for y, text in texts.items() if 0 <= y - middle <= 10]
            bars[tuple(group.get("id").split(": ")[1:])] = right - left, *beside
    return bars


def length(panel: str, group: str, who: str) -> float:
    """What a bar stands for, as benchmarks/results/ has it."""
    if panel == "Cross entropy":
        dtype, shape = group.split(" ", 1)
        (found,) = [
            row
            for row in measurements("losses_torch_gpu")
            if (row["part"], row["loss"], row["target"]) == ("table", "categorical", "labels")
            and (row["dtype"], row["shape"]) == (dtype, shape_of(shape))
        ]
        return found["ms"][BESIDE_A_COPY[who]]["value_and_grad"]
    (found,) = [
        row
        for row in measurements("linear_cross_entropy_gpu")
        if (row["what"], row["who"], row["tokens"]) == ("value_and_grad", LINEAR[who], 32768)
    ]
    return found["ms"] if panel.endswith("time") else found["temporary_bytes"] / 1e9


@pytest.mark.parametrize("picture", PICTURES)
def test_picture(picture):
    bars = drawn_bars(picture)
    assert {(panel, who) for panel, _, who in bars} >= {
        *(("Cross entropy", who) for who in BESIDE_A_COPY),
        *((f"Linear cross entropy, {what}", who) for what in ("time", "memory") for who in DRAWN),
    }
    longest = {panel: max(length(*bar) for bar in bars if bar[0] == panel) for panel, _, _ in bars}
    widest = {panel: max(width for bar, (width, _) in bars.items() if bar[0] == panel) for panel in longest}
    for bar, (width, text) in bars.items():
        panel, _, who = bar
        assert width / widest[panel] == pytest.approx(length(*bar) / longest[panel], abs=1e-3), bar
        name, number, unit = text.rsplit(" ", 2)
        assert (name, unit) == (who, "GB" if panel.endswith("memory") else "ms")
        decimals = len(number.partition(".")[2])
        assert number == f"{length(*bar):.{decimals}f}"
        assert len(number.replace(".", "")) == 3


def test_picture_is_of_two_themes_and_one_set_of_bars():
    dark, light = PICTURES
    assert drawn_bars(dark) == drawn_bars(light)
    assert (ROOT / dark).read_text() != (ROOT / light).read_text()


def test_picture_is_what_its_script_draws(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import readme_picture

    for theme, kept in zip(("dark", "light"), PICTURES, strict=True):
        readme_picture.draw(theme, tmp_path / f"{theme}.svg")
        assert drawn_bars(tmp_path / f"{theme}.svg") == drawn_bars(kept)


def test_long_description_links_to_the_repository():
    path = ROOT / "tools" / "long_description.py"
    specification = importlib.util.spec_from_file_location("long_description", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    text = module.dynamic_metadata("readme", {})["text"]
    links = re.findall(r'\]\(([^)\s]+)\)|\b(?:src|srcset)="([^"]+)"', text)
    targets = [one or other for one, other in links]
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_training_step_of_the_readme_trains():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    jax = names["jax"]
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "hidden": 0.3 * jax.random.normal(keys[0], (16, 8)),
        "output": 0.3 * jax.random.normal(keys[1], (8, 3)),
    }
    images, labels = jax.random.normal(keys[2], (32, 16)), jax.random.randint(keys[3], (32,), 0, 3)
    first, params = names["train_step"](params, images, labels)
    for _ in range(20):
        value, params = names["train_step"](params, images, labels)
    assert value < first


PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "findings/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Those of the pages that the site, whose links `make docs` checks, does not have."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)\s]+)\)|\b(?:src|srcset)=\"([^\"]+)\"", text)
    for target in (one or other for one, other in found):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
                assert anchor in anchors, target


def test_code_of_the_readme_is_not_cut_off():
    """A repository page shows 97 columns."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 20
    assert [line for line in lines if len(line) > 97] == []


def said(pattern: str) -> tuple[float, ...]:
    """The numbers of a sentence of the README."""
    (found,) = re.finditer(pattern, " ".join(README.split()))
    return tuple(float(number) for number in found.groups())


class TestSentences:
    """What the README says in words of the same measurements."""

    def test_of_the_sweep(self):
        fewest, most, *expected = said(
            r"For 1 GB of logits with (\d+) to (\d+) classes, value and gradient take ([\d.]+) to ([\d.]+) times a copy, "
            r"odd widths too; XLA takes (\d+) to (\d+) times"
        )
        rows = [row for row in measurements("losses_sweep_gpu") if row["part"] == "classes"]
        rows = [row for row in rows if fewest <= row["shape"][1] <= most]
        assert min(row["shape"][1] for row in rows) == fewest
        assert max(row["shape"][1] for row in rows) == most
        assert any(row["shape"][1] % 2 for row in rows)
        ours, xla = (
            [row["ms"][who]["value_and_grad"] / row["ms"]["limit"]["value_and_grad"] for row in rows]
            for who in ("jaxloss", "xla")
        )
        assert expected == [*(round(of(ours), 2) for of in (min, max)), *(round(of(xla)) for of in (min, max))]

    @pytest.mark.parametrize(
        ("dtype", "said_so"),
        [
            ("bfloat16", r"take ([\d.]+) to ([\d.]+) times a copy in bfloat16, a third to a seventh of XLA's time"),
            ("float32", r"([\d.]+) to ([\d.]+) times in float32, a quarter to 0.55 of it"),
        ],
    )
    def test_of_the_sweep_on_an_h200(self, dtype, said_so):
        rows = [row for row in measurements("losses_sweep_h200_gpu") if row["part"] == "classes"]
        ratios = [r["ratio"]["value_and_grad"] for r in rows if r["dtype"] == dtype and r["shape"][1] <= 262144]
        ours, xla = ([ratio[who] for ratio in ratios] for who in ("limit", "xla"))
        assert said(said_so) == tuple(round(of(ours), 2) for of in (min, max))
        least, most = {"bfloat16": (1 / 7, 1 / 3), "float32": (1 / 4, 0.55)}[dtype]
        assert min(xla) == pytest.approx(least, rel=0.1)
        assert max(xla) == pytest.approx(most, rel=0.1)

    def test_of_the_rows_on_an_h100(self):
        least, most = said(r"with kernels of commit 9f529bf, the same rows are at ([\d.]+) to ([\d.]+)")
        rows = {tuple(row[:3]) for row in SPEED}
        ratios = [
            row["ratio"]["value_and_grad"]["limit"]
            for row in measurements("losses_h100_gpu")
            for name, dtype, shape in rows
            if (row["part"], row["loss"], row["target"]) == ("table", *LOSSES[name])
            and (row["dtype"], row["shape"]) == (dtype, shape_of(shape))
        ]
        assert len(ratios) == len(rows)
        assert (least, most) == (round(min(ratios), 2), round(max(ratios), 2))

    def test_of_long_rows(self):
        (expected,) = said(
            r"Rows of millions of classes do not fit on the chip, so they are read twice and take ([\d.]+)"
        )
        rows = [row for row in measurements("losses_sweep_gpu") if row["part"] == "classes" and row["shape"][1] > 10**6]
        assert len(rows) >= 4
        for row in rows:
            assert row["ratio"]["value_and_grad"]["limit"] == pytest.approx(expected, abs=0.06)

    def test_of_the_memory_of_two_cards(self):
        (expected,) = said(r"on an H200, whose memory is ([\d.]+) times as fast as an H100's")
        h100, h200 = (
            min(
                row["ms"]["limit"]["value_and_grad"]
                for row in measurements(name)
                if (row["dtype"], row["shape"]) == ("bfloat16", [16384, 32000])
            )
            for name in ("losses_h100_gpu", "losses_options_gpu")
        )
        assert round(h100 / h200, 1) == expected

    def test_of_temporaries(self):
        (expected,) = said(r"([\d.]+) GB of jaxloss's temporaries are the float32 sum of the kernel's gradient")
        shape = dict(zip(("tokens", "width", "classes"), shape_of(LINEAR_SPEED[0][0]), strict=True))
        in_float32, in_bfloat16 = (
            next(
                row["temporary_bytes"]
                for row in measurements("linear_cross_entropy_gpu")
                if row["what"] == "value_and_grad" and row["who"] == who and shape.items() <= row.items()
            )
            for who in ("jaxloss", "jaxloss, summed in bfloat16")
        )
        assert round((in_float32 - in_bfloat16) / 1e9, 1) == expected
