"""How long a compiled function takes, by many calls in a row."""

import statistics
import time
from typing import NamedTuple

import jax

REPEATS = 7
LOOP_SECONDS = 0.03  # long against the clock's grain and the cost of starting the first call


class Timing(NamedTuple):
    """The median time of a call in milliseconds, and how far repeats lie apart, as a share of it."""

    ms: float
    spread: float


def timed(function, *operands) -> Timing:
    """Times `function`, which is jitted. A result is dropped before the next one is needed."""
    jax.block_until_ready(function(*operands))
    start = time.perf_counter()
    jax.block_until_ready(function(*operands))
    calls = max(3, min(2000, round(LOOP_SECONDS / max(1e-7, time.perf_counter() - start))))
    loops = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            result = function(*operands)
        jax.block_until_ready(result)
        loops.append((time.perf_counter() - start) / calls * 1e3)
        del result
    median = statistics.median(loops)
    return Timing(median, (max(loops) - min(loops)) / median)
