"""What is kept and printed of a row of `benchmarks.losses`: times, ratios, goals, and which of them were missed."""

import dataclasses

from benchmarks.loss_programs import STEPS
from benchmarks.loss_table import Work
from benchmarks.timing import ratio, timing

TEMPORARY_BYTES_A_ROW, TEMPORARY_BYTES = 16, 2**20


def measurement(
    work: Work, ms: dict[str, dict[str, list[float]]], limit_by: dict[str, str], temporary: int | None
) -> dict:
    """A row as it is written: medians and spreads by who and what, ratios by what and whom jaxloss is compared with.

    A ratio is the median of those of single loops, which were timed one after the other.

    Args:
        work: the row.
        ms: milliseconds of loops by who ("limit" too, where there is one) and what.
        limit_by: by which program the limit was measured.
        temporary: bytes of temporaries of jaxloss.
    """

    ours = ms["jaxloss"]
    both = work.read_bytes + work.prediction_bytes
    moved = {"value": work.read_bytes, "value_and_grad": both, "grad": both}
    return {
        "part": work.part,
        "loss": work.loss,
        "target": work.target,
        "dtype": work.dtype,
        "shape": list(work.shape),
        "bytes": work.prediction_bytes,
        "temporary_bytes": temporary,
        "limit_by": limit_by,
        "limit_gb_a_second": {
            what: moved[what] / timing(loops).ms / 1e6 for what, loops in ms.get("limit", {}).items() if what in moved
        },
        "ms": {who: {what: timing(loops).ms for what, loops in of.items()} for who, of in ms.items()},
        "spread": {who: {what: timing(loops).spread for what, loops in of.items()} for who, of in ms.items()},
        "ratio": {
            what: {who: ratio(ours[what], of[what]) for who, of in ms.items() if who != "jaxloss" and what in of}
            for what in ours
        },
        "goals": {what: goal._asdict() for what, goal in work.goals.items() if what in ours},
    }


def misses(row: dict) -> list[str]:
    """A line for each goal of a row that was missed."""
    name = f"{row['loss']} {row['target']} {row['dtype']} {row['shape']}"
    lines = []
    for what, goal in row.get("goals", {}).items():
        for whom, most in _compared(goal):
            ratio = row["ratio"][what].get(whom)
            if ratio is not None and ratio > most:
                lines.append(f"{name} {what}: {ratio:.3f} of {_called(whom)}, goal ≤ {most:.3g}")
    allowed = TEMPORARY_BYTES_A_ROW * row["shape"][0] + TEMPORARY_BYTES
    if row.get("temporary_bytes") is not None and row["temporary_bytes"] > allowed:
        lines.append(f"{name}: {row['temporary_bytes']} bytes of temporaries, goal ≤ {allowed}")
    return lines


def _compared(goal: dict[str, float | None]) -> list[tuple[str, float]]:
    """With whom, and the most that a ratio to its time may be."""
    of = {"limit": "of_limit", "xla": "of_xla", "torch.compile": "of_torch", "Liger": "of_torch"}
    return [(whom, most) for whom, name in of.items() if (most := goal.get(name)) is not None]


def _called(whom: str) -> str:
    return {"limit": "the limit's time", "xla": "XLA's time"}.get(whom, f"{whom}'s time")


HEADING = (
    f"{'':17}{'jaxloss ms':>11}{'spread':>8}{'/ limit':>9}{'/ XLA':>8}"
    f"{'XLA / limit':>13}{'torch / limit':>15}{'Liger / limit':>15}{'goal':>26}"
)


def lines(row: dict) -> list[str]:
    """A row for the terminal: a heading, and a line for each time."""
    name = f"{row['loss']} {row['target']} {row['dtype']} {row['shape']}"
    if "error" in row:
        return [f"{name}: FAILED: {row['error']}"]
    heading = name
    if row["limit_by"]:
        read, copy = row["limit_by"].values()
        speeds = row["limit_gb_a_second"].items()
        heading += "   limit: " + ", ".join(
            f"{read if what == 'value' else copy} at {speed:.4g} GB/s" for what, speed in speeds
        )
    if row.get("torch_error"):
        heading += f"   torch failed: {row['torch_error']}"
    text = [heading]
    for what, time in row["ms"]["jaxloss"].items():
        ratios = row["ratio"][what]

        def of_limit(who, what=what):
            limit, theirs = row["ms"].get("limit", {}).get(what), row["ms"].get(who, {}).get(what)
            return f"{theirs / limit:.3f}" if limit and theirs else "–"

        def of(whom, ratios=ratios):
            return f"{ratios[whom]:.3f}" if whom in ratios else "–"

        wanted, missed = [], False
        for whom, most in _compared(row["goals"][what]):
            if whom in ratios:
                wanted.append(f"≤ {most:.3g} {whom}")
                missed |= ratios[whom] > most
        verdict = "" if not wanted else "  MISSED" if missed else "  met"
        label = what if what != "step" else f"step of {STEPS}"
        text.append(
            f"  {label:15}{time:11.4f}{row['spread']['jaxloss'][what]:8.1%}{of('limit'):>9}{of('xla'):>8}"
            f"{of_limit('xla'):>13}{of_limit('torch.compile'):>15}{of_limit('Liger'):>15}"
            f"{', '.join(wanted):>26}{verdict}"
        )
    return text


def summary(rows: list[dict], left_out: list[Work]) -> str:
    """The last lines of a run: how many goals were met, which were not, and what was not measured at all."""
    measured = [row for row in rows if "error" not in row]
    counted = sum(
        whom in row["ratio"][what]
        for row in measured
        for what, goal in row["goals"].items()
        for whom, _ in _compared(goal)
    )
    missed = [line for row in measured for line in misses(row)]
    text = [f"goals: {counted} of time, and temporaries of {len(measured)} rows; missed: {len(missed) or 'none'}"]
    text += [f"missed: {line}" for line in missed]
    text += [line for row in rows if "error" in row for line in lines(row)]
    text += [f"not measured, for lack of time: {work}" for work in left_out]
    return "\n".join(text)


def row_of_error(work: Work, error: Exception) -> dict:
    """A row that could not be measured."""
    kept = {key: value for key, value in dataclasses.asdict(work).items() if key != "goals"}
    first = (str(error).splitlines() or [""])[0]
    return {**kept, "shape": list(work.shape), "error": f"{type(error).__name__}: {first[:300]}"}
