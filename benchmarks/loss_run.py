"""Measures rows of `benchmarks.losses`: compiles some of them at once, then times them one after the other."""

import argparse
import time
from collections.abc import Iterator

import jax

from benchmarks import loss_programs, loss_report
from benchmarks.limits import Limit, limit_of
from benchmarks.loss_table import Work
from benchmarks.timing import in_turn

AT_ONCE = 16  # rows that are compiled together, while nothing is timed
# By part: how many loops, and about how many seconds of each. A loop's start and end take 0.3 – 0.5 ms on an H100, and
# not the same with one result as with several: up to 1 % of 30 ms, 0.2 % of 0.1 s. A launch depends on the host's clock
# and scheduler: so more loops.
LOOPS = {"table": (5, 0.1), "portable": (5, 0.1), "launch": (21, 0.03), "classes": (5, 0.05), "bytes": (5, 0.05)}
QUICK = (3, 0.005)


def measured(works: list[Work], chosen: argparse.Namespace, start: float) -> Iterator[dict]:
    """Each row as `loss_report` writes it, in order, until the time is over."""
    for first in range(0, len(works), AT_ONCE):
        some = works[first : first + AT_ONCE]
        for work, compiled in zip(some, loss_programs.compiled(some, chosen.threads), strict=True):
            if chosen.budget and time.monotonic() - start > chosen.budget:
                return
            if isinstance(compiled, Exception):
                yield loss_report.row_of_error(work, compiled)
                continue
            try:
                yield _measured(compiled, chosen)
            except Exception as error:  # out of memory, say: the other rows are worth measuring
                yield loss_report.row_of_error(work, error)


def _measured(compiled: loss_programs.Compiled, chosen: argparse.Namespace) -> dict:
    work = compiled.work
    operands = jax.block_until_ready(compiled.operands())
    programs = compiled.programs(operands)
    torch_error = None
    if chosen.torch and work.part == "table":
        try:
            from benchmarks import loss_torch

            programs |= loss_torch.programs(work, operands)
        except Exception as error:  # a peer that fails takes nobody with it
            torch_error = f"{type(error).__name__}: {error}"[:300]
    limit = None
    if work.part != "launch":
        limit = limit_of([each[: work.numeric_operands] for each in operands])
        programs |= {("limit", what): program for what, program in limit.programs.items()}

    ms = {}
    for (who, what), loops in in_turn(programs, *(QUICK if chosen.quick else LOOPS[work.part])).items():
        steps = loss_programs.STEPS if what == "step" else 1
        ms.setdefault(who, {})[what] = [loop / steps for loop in loops]
    if limit:
        ms["limit"] = _limits(work, limit, ms["limit"])
    row = loss_report.measurement(work, ms, limit.by if limit else {}, compiled.temporary_bytes())
    return row | ({"torch_error": torch_error} if torch_error else {})


def _limits(work: Work, limit: Limit, ms: dict[str, list[float]]) -> dict[str, list[float]]:
    """The times of the bytes that must be moved, from those of a read and a copy of the numbers alone."""
    read, written = work.read_bytes, work.prediction_bytes
    value = [time * limit.read_share(read) for time in ms["read"]]
    both = [time * limit.copy_share(read + written) for time in ms["copy"]]
    limits = {"value": value, "value_and_grad": both, "grad": both}
    if "rows_vjp" in work.goals:
        # Read for the loss of each row; read again, with a cotangent for each, and written for the gradient.
        of_rows = 4 * work.shape[0]
        forward = [time * limit.read_share(read + of_rows) for time in ms["read"]]
        backward = [time * limit.copy_share(read + written + of_rows) for time in ms["copy"]]
        limits["rows_vjp"] = [sum(each) for each in zip(forward, backward, strict=True)]
    return {what: limits[what] for what in work.goals}
