"""Measures rows of `benchmarks.losses`: compiles some of them at once, then times them one after the other."""

import argparse
import time
from collections.abc import Iterator

import jax

from benchmarks import loss_programs, loss_report
from benchmarks.limits import limit_of
from benchmarks.loss_table import Work
from benchmarks.timing import LOOP_SECONDS, REPEATS, in_turn

AT_ONCE = 16  # rows that are compiled together, while nothing is timed


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
            programs |= loss_programs.torch_programs(work, operands)
        except Exception as error:  # a peer that fails takes nobody with it
            torch_error = f"{type(error).__name__}: {error}"[:300]
    limit = None
    if work.part != "launch":
        limit = limit_of(*loss_programs.limit_arguments(work))
        programs |= {("limit", name): program for name, program in limit.programs().items()}

    repeats, seconds = (3, 0.005) if chosen.quick else (REPEATS, LOOP_SECONDS)
    if work.part == "launch" and not chosen.quick:
        repeats *= 3  # a host's clock and scheduler are what such a time depends on
    elif work.part in ("classes", "bytes"):
        repeats, seconds = min(repeats, 5), min(seconds, 0.02)
    ms = {}
    for (who, what), loops in in_turn(programs, repeats, seconds).items():
        steps = loss_programs.STEPS if what == "step" else 1
        ms.setdefault(who, {})[what] = [loop / steps for loop in loops]
    if limit:
        ms["limit"] = _limits(work, limit, ms["limit"])
    by = dict(zip(("read", "copy"), limit.fastest, strict=True)) if limit else {}
    row = loss_report.measurement(work, ms, by, compiled.temporary_bytes())
    return row | ({"torch_error": torch_error} if torch_error else {})


def _limits(work: Work, limit, ms: dict[str, list[float]]) -> dict[str, list[float]]:
    """The times of the bytes that must be moved, from those of a read and a copy of about as many."""
    read, written = work.read_bytes, work.prediction_bytes
    value = [time * limit.read_share(read) for time in ms["read"]]
    both = [time * limit.copy_share(read + written) for time in ms["copy"]]
    limits = {"value": value, "value_and_grad": both}
    if "rows_vjp" in work.goals:
        # Read for the loss of each row; read again, with a cotangent for each, and written for the gradient.
        of_rows = 4 * work.shape[0]
        forward = [time * limit.read_share(read + of_rows) for time in ms["read"]]
        backward = [time * limit.copy_share(read + written + of_rows) for time in ms["copy"]]
        limits["rows_vjp"] = [sum(each) for each in zip(forward, backward, strict=True)]
    return {what: limits[what] for what in work.goals}
