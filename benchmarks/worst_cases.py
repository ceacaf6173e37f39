"""The worst of a million rows of each loss and type: errors relative to the result itself, against extended precision.

Run it with `python -m benchmarks.worst_cases [--platform cpu|gpu] [--rows N] [--only LOSS …] [--output DIRECTORY]`. It
draws rows that search for trouble (`worst_case_rows.py`), writes `worst_cases_PLATFORM.json` with the row behind every
number, and, unless `--rows` or `--output` is given, the platform's section of docs/accuracy.md; `--page-from FILE`
writes it from a file that another machine wrote. With `--only`, what was measured of other losses stays. **The last
lines are the results beyond their stated bound** (`worst_case_losses.py`). Extended precision is that of x86: 64 bits.
"""

import argparse
import json
import math
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.accuracy import DTYPES, PAGE, measured_with, spacing, with_section

ROWS = 1_000_000
BATCH = 2**21  # elements at most
PART = 2**17  # elements of which references are computed at once, so that they stay in the cache
FLOOR = float(np.finfo(np.float32).smallest_normal)
SIDES = ("jaxloss", "xla")
KEPT_WIDTH = 33  # of rows that are written out in full
# The gradient's own rounding, in units of its type; one of float16 may have been scaled, and rounded, before.
OWN_ROUNDINGS = {"float32": 0.0, "bfloat16": 0.5, "float16": 1.0}


def ulps(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Errors in units in the last place of the exact number, as the found one's type would hold it.

    An error of at most the smallest normal number of float32 counts in units of that, if they are fewer: so much is
    lost where a number is flushed to zero, the result or what is added to it. What is not finite is infinitely wrong.
    """
    error = np.abs(found.astype(np.float64) - exact)
    units = error / spacing(exact.astype(np.float64), found.dtype)
    units = np.where(error <= FLOOR, np.minimum(units, error / FLOOR), units)
    return np.where(np.isfinite(found.astype(np.float32)), units, np.inf).astype(np.float64)


def shares(found: np.ndarray, exact: np.ndarray, bound: np.ndarray, roundings: float) -> np.ndarray:
    """Errors as shares of the bound and the floor, after so many roundings to their type are taken off."""
    error = np.abs(found.astype(np.float64) - exact) - roundings * spacing(exact.astype(np.float64), found.dtype)
    share = np.maximum(error, 0) / (bound + FLOOR)
    return np.where(np.isfinite(found.astype(np.float32)), share, np.inf).astype(np.float64)


class Worst:
    """The worst of one quantity of one side: in ulp of itself, and as a share of its bound."""

    def __init__(self):
        self.found: dict[str, dict] = {"ulps": {"is": -1.0}, "share_of_bound": {"is": -1.0}}
        self.beyond = 0

    def see(self, drawn, first: int, found, exact, bound, roundings: float = 0.0, defined=True) -> None:
        """Results of rows from `first` on, of each row or of each of its elements."""
        measured = {"ulps": ulps(found, exact), "share_of_bound": shares(found, exact, bound, roundings)}
        for name, errors in measured.items():
            errors = np.where(defined, errors, 0)
            at = np.unravel_index(errors.argmax(), errors.shape)
            if errors[at] > self.found[name]["is"]:
                error = {"is": float(errors[at]), "exact": float(exact[at]), "found": float(found[at])}
                element = {"element": int(at[1])} if len(at) == 2 else {}
                self.found[name] = {**error, **element, **_row(drawn, first + int(at[0]))}
        self.beyond += int((np.where(defined, measured["share_of_bound"], 0) > 1).sum())

    def as_json(self) -> dict:
        return {**self.found, "beyond_bound": self.beyond}


def _row(drawn, row: int) -> dict:
    """What a row was, in full if it is narrow."""
    x, a = drawn.x[row], None if drawn.a is None else drawn.a[row]
    described = {"V": len(x), "where": f"V = {len(x)}, {drawn.words(row)}".removesuffix(", ")}
    if a is not None and a.ndim == 0:
        described["label"] = int(a)
    if len(x) <= KEPT_WIDTH:
        described["prediction"] = x.astype(float).tolist()
        if a is not None and a.ndim == 1:
            described["target"] = a.astype(float).tolist()
    return described


def _batches(widths: dict[int, float], count: int) -> list[tuple[int, int]]:
    """Widths and numbers of rows: those of a width are equal, for they share a program."""
    batches = []
    for width, share in widths.items():
        rows = max(round(share * count), 2)
        of_width = math.ceil(rows * width / BATCH)
        batches += [(width, math.ceil(rows / of_width))] * of_width
    return batches


def _compare(loss, drawn, results: dict, worst: dict, pool: ThreadPoolExecutor, base_2: int) -> None:
    """Sees the worst of a batch."""
    operands = [each for each in (drawn.x, drawn.a) if each is not None]
    step = max(PART // drawn.x.shape[1], 1)
    parts = [slice(first, first + step) for first in range(0, len(drawn.x), step)]
    references = pool.map(lambda part: loss.exact(*(each[part] for each in operands), base_2), parts)
    roundings = OWN_ROUNDINGS[str(drawn.x.dtype)]
    for part, exact in zip(parts, references, strict=True):
        for side, (losses, gradient) in results.items():
            seen = drawn, part.start
            worst[side]["loss"].see(*seen, losses[part], exact.losses, exact.loss_bound)
            of_elements = gradient[part], exact.gradient, exact.gradient_bound
            worst[side]["gradient"].see(*seen, *of_elements, roundings, exact.defined)


def measure(name: str, dtype: str, count: int, pool: ThreadPoolExecutor, base_2: int) -> dict:
    """Draws rows of a loss and a type, and keeps the worst."""
    from benchmarks.worst_case_losses import LOSSES

    loss = LOSSES[name]
    random = np.random.default_rng([DTYPES.index(dtype), *name.encode()])
    batches = _batches(loss.widths, count)
    first_of = {batch: loss.drawn(random, batch[1], batch[0], dtype) for batch in dict.fromkeys(batches)}
    programs = dict(zip(first_of, pool.map(loss.compiled, first_of.values()), strict=True))
    worst = {side: {"loss": Worst(), "gradient": Worst()} for side in SIDES}
    for batch in batches:
        drawn = first_of.pop(batch, None) or loss.drawn(random, batch[1], batch[0], dtype)
        operands = [each for each in (drawn.x, drawn.a) if each is not None]
        results = {side: tuple(map(np.asarray, run(*operands))) for side, run in programs[batch].items()}
        _compare(loss, drawn, results, worst, pool, base_2)
    of_sides = {side: {quantity: found.as_json() for quantity, found in of.items()} for side, of in worst.items()}
    return {"loss": name, "dtype": dtype, "rows": sum(size for _, size in batches), **of_sides}


# ---- the page --------------------------------------------------------------------------------------------------------


def beyond(row: dict) -> list[str]:
    """What of a row's jaxloss is beyond its bound."""
    lines = []
    for quantity in ("loss", "gradient"):
        found = row["jaxloss"][quantity]
        if found["beyond_bound"]:
            worst = found["share_of_bound"]
            lines.append(
                f"{row['loss']} {row['dtype']}: {quantity} {worst['found']:.9g} for {worst['exact']:.9g}, "
                f"{worst['is']:.3g} of its bound; {worst['where']}; {found['beyond_bound']} such"
            )
    return lines


def _cells(row: dict, quantity: str) -> str:
    ours, xla = row["jaxloss"][quantity], row["xla"][quantity]
    number, share = f"{ours['ulps']['is']:.3g}", f"{ours['share_of_bound']['is']:.2g}"
    share = f"**{share}**" if ours["beyond_bound"] else share
    where = ours["ulps"]["where"] if ours["ulps"]["is"] > 0 else ""
    return f"{number} / {xla['ulps']['is']:.3g} | {share} | {where}"


def section(rows: list[dict], circumstances: dict) -> str:
    """What the page says of a platform."""
    missed = [line for row in rows for line in beyond(row)]
    verdict = (
        f"{len(missed)} of {2 * len(rows)} worst cases are beyond their bound, in bold."
        if missed
        else "All are in bounds."
    )
    text = f"""{measured_with(circumstances)}{_other_commits(rows, circumstances)}
{min(row["rows"] for row in rows):,} rows of each loss and type. {verdict}

Errors are the worst, in ulp of the result itself: jaxloss / XLA, and where jaxloss has it. Shares are of the bound,
jaxloss's worst ones.

| loss | type | of a loss | share | where | of a gradient's element | share | where |
|---|---|---|---|---|---|---|---|
"""
    last = None
    for row in rows:
        name = row["loss"] if row["loss"] != last else ""
        text += f"| {name} | {row['dtype']} | {_cells(row, 'loss')} | {_cells(row, 'gradient')} |\n"
        last = row["loss"]
    return text


def _other_commits(rows: list[dict], circumstances: dict) -> str:
    """Of losses that were measured before the others."""
    of_commit: dict[str, dict[str, None]] = {}
    for row in rows:
        if (commit := row.get("commit", circumstances["commit"])) != circumstances["commit"]:
            of_commit.setdefault(commit, {})[row["loss"]] = None
    return "".join(f" At commit {commit[:12]}: {', '.join(names)}." for commit, names in of_commit.items())


def _kept(path: pathlib.Path, others_than: tuple[str, ...]) -> list[dict]:
    """What that file has of other losses, with its commit."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    rows = (row for row in found["measurements"] if not row["loss"].startswith(others_than))
    return [{"commit": found["commit"], **row} for row in rows]


def write_page(rows: list[dict], circumstances: dict) -> None:
    platform = "cpu" if circumstances["platform"] == "cpu" else "gpu"
    text = section(rows, circumstances)
    title = f"Worst cases, {platform.upper()}"
    PAGE.write_text(with_section(PAGE.read_text(), f"{platform}, worst cases", text, title))


def main() -> None:
    """Measures, prints what is beyond its bound, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=("cpu", "gpu"), help="where to run; default: what jax chooses")
    parser.add_argument("--rows", type=int, help=f"of each loss and type; default: {ROWS}")
    parser.add_argument(
        "--only",
        metavar="LOSS",
        nargs="+",
        default=[""],
        help="losses whose name begins with one of these; what was measured of others stays",
    )
    parser.add_argument("--page-from", metavar="FILE", type=pathlib.Path, help="only write the section of such a JSON")
    parser.add_argument("--output", help="where to write the JSON, and leave the page; default: benchmarks/results")
    chosen = parser.parse_args()
    if chosen.page_from:
        measured = json.loads(chosen.page_from.read_text())
        write_page(measured["measurements"], measured)
        return
    if chosen.platform:
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[chosen.platform]
    if np.finfo(np.longdouble).nmant < 63:
        raise SystemExit("needs a machine whose long double has 64 bits, as x86's has")
    import jax

    from benchmarks import record, worst_case_losses
    from jaxloss._ffi import call

    call.FALLBACK_SIZE = 0  # kernels, where the formula might take so few
    platform = "cpu" if jax.default_backend() == "cpu" else "gpu"
    circumstances = record.circumstances()
    some = "some_" if chosen.rows else ""
    rows = [] if some else _kept(record.RESULTS / f"worst_cases_{platform}.json", tuple(chosen.only))
    place = {name: i for i, name in enumerate(worst_case_losses.LOSSES)}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for name in worst_case_losses.LOSSES:
            if name.startswith(tuple(chosen.only)):
                for dtype in DTYPES:
                    found = measure(name, dtype, chosen.rows or ROWS, pool, 1 if platform == "cpu" else 2)
                    print(f"{name} {dtype}", *beyond(found), sep="\n  ", flush=True)
                    rows = sorted(
                        [*rows, found | {"commit": circumstances["commit"]}], key=lambda row: place[row["loss"]]
                    )
                    # Each time: a run may be cut off.
                    path = record.write(f"worst_cases_{some}{platform}", rows, chosen.output)
    print(section(rows, circumstances), path, sep="\n")
    if not (some or chosen.output):
        write_page(rows, circumstances)
        print(PAGE)
    missed = [line for row in rows for line in beyond(row)]
    print(
        f"bounds: {2 * len(rows)}; exceeded: {len(missed) or 'none'}", *(f"beyond: {line}" for line in missed), sep="\n"
    )


if __name__ == "__main__":
    main()
