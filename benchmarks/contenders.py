"""Linear losses by several contenders, compared at one shape: what is measured, and the command of such a script."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import record
from benchmarks.linear_cross_entropy import line
from benchmarks.timing import Timing, timed


def measured(function: Callable, operands: Sequence[jax.Array]) -> dict:
    """Time and temporaries, or why there are none."""
    try:
        run = jax.jit(function)
        temporary = run.lower(*operands).compile().memory_analysis().temp_size_in_bytes
        timing = timed(run, *operands)
        return {"temporary_bytes": temporary, "ms": timing.ms, "spread": timing.spread}
    except Exception as error:  # memory above all
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def compared(
    losses: dict[str, dict[str, Callable]],
    operands: Sequence[jax.Array],
    limit: Timing,
    shape: dict[str, Any],
    wrt: tuple[int, ...] = (0, 1),
) -> list[dict]:
    """Value and gradients of each loss by each of its contenders, beside the limit.

    Args:
        losses: by their names, functions of the operands by who writes them so.
        operands: hidden states, kernel, and what else the functions are of.
        limit: the time of the products alone.
        shape: what a row of the results says of the operands.
        wrt: the operands that gradients are made of; by default hidden states and kernel.
    """
    rows = []
    for name, contenders in losses.items():
        print(f" {name}")
        for who, loss in contenders.items():
            found = measured(jax.value_and_grad(loss, wrt), operands)
            print(line(who, found, limit), flush=True)
            rows.append({**shape, "what": name, "who": who, "limit_ms": limit.ms, **found})
    return rows


def command(
    name: str,
    description: str | None,
    rows_of: Callable[[Any, str], list[dict]],
    shapes: dict[str, list],
) -> None:
    """Measures, prints and writes `name`_PLATFORM.json.

    `rows_of` is given a shape of those of the platform, or of "quick", and a word that the losses' names have to have.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="losses whose name has this word")
    parser.add_argument("--quick", action="store_true", help="a small shape")
    parser.add_argument("--output", help="where to write; default: benchmarks/results")
    arguments = parser.parse_args()
    platform = jax.devices()[0].platform
    print(record.circumstances())
    chosen = shapes["quick"] if arguments.quick else shapes["cpu" if platform == "cpu" else "gpu"]
    rows = [row for shape in chosen for row in rows_of(shape, arguments.only)]
    print(record.write(f"{name}_{'quick' if arguments.quick else platform}", rows, arguments.output))
