"""The directive `measurements`: a table of what benchmarks/results/ holds, made as the site is built.

```{measurements} losses losses_gpu value_and_grad
```
"""

import json
import pathlib
from collections.abc import Iterator

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"
Rows = Iterator[tuple[str | float, ...]]

LOSSES = {
    "mse": "mean squared error",
    "binary": "binary cross entropy",
    ("categorical", "labels"): "cross entropy, labels",
    ("categorical", "numbers"): "cross entropy, probabilities",
    "KL": "`kl_divergence`",
    "Jensen-Shannon": "`jensen_shannon`",
    "entropy": "`entropy`",
    "policy": "`log_prob` and `entropy`",
}


def _loss(row: dict) -> str:
    if " with " in row["loss"]:
        option = row["loss"].removeprefix("categorical with ")
        return {"all": "all of them", "statistics": "none, statistics"}.get(option, f"`{option}`")
    return LOSSES.get((row["loss"], row["target"])) or LOSSES[row["loss"]]


def _shape(shape: list[int]) -> str:
    return "\u00a0×\u00a0".join(f"{size:,}".replace(",", "\u202f") for size in shape)


def losses(rows: list[dict], what: str) -> Rows:
    """Of large arrays: times, and what they are compared with."""
    rows = [row for row in rows if row["part"] in ("table", "portable") and what in row["ms"]["jaxloss"]]
    first = "option" if any(" with " in row["loss"] for row in rows) else "loss"
    torch = [who for who in ("torch.compile", "Liger") if any(who in row["ms"] for row in rows)]
    yield (
        *(first, "type", "shape", "jaxloss, ms", "XLA, ms", *(f"{who}, ms" for who in torch)),
        *("memory limit, ms", "jaxloss / limit", "XLA / jaxloss"),
    )
    for row in rows:
        times = [row["ms"].get(who, {}).get(what, "") for who in ("jaxloss", "xla", *torch, "limit")]
        ratio = row["ratio"][what]
        yield (
            *(_loss(row), row["dtype"], _shape(row["shape"]), *times),
            *(ratio["limit"], 1 / ratio["xla"] if "xla" in ratio else ""),
        )


def calls(rows: list[dict]) -> Rows:
    """Of small arrays: a call from Python, and a step of a loop inside one program."""
    yield (
        *("loss", "type", "shape", "call of jaxloss, µs", "call of XLA, µs"),
        *("step of jaxloss, µs", "step of XLA, µs"),
    )
    for row in rows:
        if row["part"] == "launch":
            times = (1000 * row["ms"][who][what] for what in ("call", "step") for who in ("jaxloss", "xla"))
            yield _loss(row), row["dtype"], _shape(row["shape"]), *times


def linear(rows: list[dict], what: str) -> Rows:
    """Linear losses beside the matrix products that they cannot do without."""
    yield "tokens × width × classes", "implementation", "ms", "the products, ms", "ratio", "temporaries, GB"
    for row in rows:
        if row["what"] == what and "ms" in row:
            shape = _shape([row["tokens"], row["width"], row["classes"]])
            limit = row["limit_ms"]
            yield shape, row["who"], row["ms"], limit, row["ms"] / limit, row["temporary_bytes"] / 1e9


def linear_losses(rows: list[dict]) -> Rows:
    """The same, of value and gradients of several losses; variants that were tried are left out."""
    yield "loss", "tokens × width × classes", "implementation", "ms", "the products, ms", "ratio", "temporaries, GB"
    for row in rows:
        if row["who"] in ("jaxloss", "jaxloss, summed in bfloat16", "whole logits", "scan and checkpoint"):
            shape = _shape([row["tokens"], row["width"], row["classes"]])
            times = (
                (row["ms"], row["limit_ms"], row["ms"] / row["limit_ms"]) if "ms" in row else ("out of memory", "", "")
            )
            yield row["what"], shape, row["who"], *times, row["temporary_bytes"] / 1e9 if "ms" in row else ""


def compilation(rows: list[dict]) -> Rows:
    """How long value and gradient take to trace and to compile."""
    yield "loss", "jaxloss traces, ms", "jaxloss compiles, ms", "optax traces, ms", "optax compiles, ms"
    for row in rows:
        times = (1000 * row[who][step] for who in ("jaxloss", "optax") for step in ("trace", "compile"))
        yield row["loss"], *times


TABLES = {
    "losses": losses,
    "calls": calls,
    "linear_cross_entropy": linear,
    "linear_losses": linear_losses,
    "compile_time": compilation,
}


class Measurements(SphinxDirective):
    """The table `TABLES[name]` of a file of results, and on what it was measured."""

    required_arguments = 2  # the table, and the name of the file
    optional_arguments = 1  # which of its measurements

    def run(self) -> list[nodes.Node]:
        table, name, *what = self.arguments
        path = RESULTS / f"{name}.json"
        self.env.note_dependency(str(path))
        kept = json.loads(path.read_text(encoding="utf-8"))
        columns = zip(*TABLES[table](kept["measurements"], *what), strict=True)
        heading, *rows = zip(*(column for column in columns if any(column[1:])), strict=True)
        numeric = [any(isinstance(row[place], float) for row in rows) for place in range(len(heading))]
        lines = [heading, ["--:" if right else "---" for right in numeric]]
        lines += [[_cell(*pair) for pair in zip(heading, row, strict=True)] for row in rows]
        versions = kept["versions"]
        on_gpu = kept["platform"] == "gpu"
        where = kept["device"] if on_gpu else f"{kept['cores']} cores of a CPU ({kept['processor']})"
        kernels = kept["kernels"].split("; ")[on_gpu]
        origin = (
            f"Measured on {where}, {kernels}, jax {versions['jax']}, optax {versions['optax']}; "
            f"commit {kept['commit'][:12]}; `benchmarks/results/{name}.json`."
        )
        text = [*("| " + " | ".join(line) + " |" for line in lines), "", origin]
        box = nodes.container(classes=["measurements"])
        self.state.nested_parse(StringList(text, source=str(path)), 0, box)
        return [box]


def _cell(heading: str, cell: str | float) -> str:
    """Times and sizes in three digits, ratios to the hundredth."""
    if isinstance(cell, str):
        return cell
    ratio = heading.endswith(("/ limit", "/ jaxloss", "ratio", "copies"))
    return f"{cell:.2f}" if ratio else f"{cell:,.0f}" if cell >= 100 else f"{cell:#.3g}"


def setup(app: Sphinx) -> dict:
    app.add_directive("measurements", Measurements)
    return {"parallel_read_safe": True}
