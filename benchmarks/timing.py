"""How long a compiled function takes, by many calls in a row."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

REPEATS = 7
LOOP_SECONDS = 0.03  # long against the clock's grain; starting a loop and being woken costs an H100's host 0.3 – 0.5 ms
LONG_SECONDS = 0.1  # a call of so long needs no others beside it


class Timing(NamedTuple):
    """The median time of a call in milliseconds, and how far repeats lie apart, as a share of it."""

    ms: float
    spread: float


class Program(NamedTuple):
    """Something to time: a call without arguments that starts the work, and what waits for its result."""

    call: Callable[[], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready

    def loop(self, calls: int) -> float:
        """Seconds a call, of so many in a row. A result is dropped before the next but one is made."""
        start = time.perf_counter()
        for _ in range(calls):
            result = self.call()
        self.wait(result)
        return (time.perf_counter() - start) / calls


def in_turn(programs: Mapping[str, Program], repeats=REPEATS, seconds=LOOP_SECONDS) -> dict[str, list[float]]:
    """Milliseconds a call of each program, of `repeats` loops.

    The programs take turns at their loops, so that a clock that drifts and whatever else the machine does fall on all.
    """
    calls = {}
    for name, program in programs.items():
        program.loop(1)  # the first call sets up
        once = program.loop(1)
        if once < seconds / 10:  # which may mostly be the start of a loop and its end
            once = program.loop(_calls(seconds / 10, once))
        calls[name] = 1 if once > LONG_SECONDS else max(3, _calls(seconds, once))
    loops = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            loops[name].append(program.loop(calls[name]) * 1e3)
    return loops


def _calls(seconds: float, once: float) -> int:
    return min(2000, round(seconds / max(1e-7, once)))


def timing(loops: list[float]) -> Timing:
    """Of the times of several loops."""
    median = statistics.median(loops)
    return Timing(median, (max(loops) - min(loops)) / median)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios of loops that were neighbours, so that a clock that drifts falls on both."""
    return statistics.median(x / y for x, y in zip(ours, theirs, strict=True))


def timed(function, *operands) -> Timing:
    """Times `function`, which is jitted."""
    return timing(in_turn({"": Program(lambda: function(*operands))})[""])
