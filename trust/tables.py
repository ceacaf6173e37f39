"""The tables of docs/trust.md, from what the campaigns keep."""

import json
import pathlib
import tomllib
from collections.abc import Iterator

from trust import ROOT

RESULTS = ROOT / "benchmarks" / "results"
MENDED = ROOT / "trust" / "mended.toml"
Rows = Iterator[tuple[str, ...]]


def campaigns(kept: dict) -> Rows:
    """What was tried, how often, and what was found."""
    yield "campaign", "tried", "how often", "found", "minutes", "on", "commit"
    for part in kept["measurements"]:
        counts = ", ".join(f"{count:,} {what}".replace(",", "\u202f") for what, count in part["counts"].items())
        tried = part["tried"] + (f" ({part['note']})" if part["note"] else "")
        yield (
            *(part["campaign"], tried, counts, str(len(part["finds"])), f"{part['seconds'] / 60:.1f}"),
            *(part["date"], (part["commit"] or "")[:12]),
        )


def mended(kept: dict) -> Rows:
    """What was found and mended, and what was found and stays."""
    yield "found", "by", "on", "what became of it"
    for find in kept["finds"]:
        became = f"mended: `{find['test']}`" if "test" in find else f"stays: {find['reason']}"
        yield find["what"], find["campaign"], str(find["date"]), became


def mutants(kept: dict) -> Rows:
    """How many faults the tests saw, by the file that they were put into."""
    yield "file", "killed", "survived", "change no result", "do not compile", "killed of those that could be"
    for file, count in kept["counts"].items():
        tried = count["killed"] + count["survived"]
        share = f"{100 * count['killed'] / tried:.0f} %" if tried else ""
        yield (
            "all" if file == "all" else f"`{file}`",
            *(str(count[result]) for result in ("killed", "survived", "equivalent", "invalid")),
            share,
        )


def survivors(kept: dict) -> Rows:
    """The faults that no test saw, and those that are none, each with its reason."""
    yield "fault", "result", "why"
    for fault, mutant in kept["mutants"].items():
        if (result := mutant["result"]) in ("survived", "equivalent"):
            why = mutant.get("reason") or mutant["by"] or "a case of the check is missing"
            yield f"`{fault}`", "changes no result" if result == "equivalent" else result, why


def markdown(rows: Rows) -> list[str]:
    """The lines of a table."""
    heading, *lines = ((cell.replace("|", "\\|") for cell in row) for row in rows)
    heading = list(heading)
    return [f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *lines)]


def table(name: str, arguments: list[str]) -> tuple[pathlib.Path, list[str]]:
    """The lines of the table of that name, and the file that they are from; `arguments` may have its name."""
    if name == "mended":
        return MENDED, markdown(mended(tomllib.loads(MENDED.read_text(encoding="utf-8"))))
    path = RESULTS / f"{arguments[0]}.json"
    if not path.exists():
        return path, [f"Nothing of this has run yet: `benchmarks/results/{path.name}` is not there."]
    kept = json.loads(path.read_text(encoding="utf-8"))
    if name == "mutants":
        lines = markdown(mutants(kept))
        left = markdown(survivors(kept))
        return path, lines + (["", *left] if len(left) > 2 else [])
    versions = ", ".join(f"{package} {version}" for package, version in kept["versions"].items())
    kernels = kept["kernels"].split("; ")[kept["platform"] == "gpu"]
    where = kept["device"] if kept["platform"] == "gpu" else f"{kept['cores']} cores of a CPU ({kept['processor']})"
    origin = f"On {where}, {kernels}; Python {kept['python']}, {versions}; `benchmarks/results/{path.name}`."
    return path, [*markdown(campaigns(kept)), "", origin]
