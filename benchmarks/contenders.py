"""Linear losses by several contenders: what is measured beside the matrix products, goals, and a script's command."""

import argparse
import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from benchmarks import record
from benchmarks.timing import Program, in_turn, ratio, timing


@dataclasses.dataclass(frozen=True)
class Goal:
    """The most that a contender may take: of the products' time, of temporaries, and of another contender's time."""

    products: float = float("inf")
    gigabytes: float = float("inf")
    never_behind: str | None = None


@dataclasses.dataclass(frozen=True)
class OfTorch:
    """A contender of torch, on a GPU: what makes its loss of tensors, which imports what it needs."""

    loss: Callable[[], Callable]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A loss at one shape.

    Attributes:
        what: its name.
        contenders: functions of the operands, or losses of torch, by who writes them so; those with goals should come
            first.
        operands: makes hidden states, kernel, and what else the functions are of.
        limit: makes what runs the products alone. Both are called when the first contender is measured.
        shape: what a row of the results says of the operands.
        wrt: the operands that gradients are made of; none for the value alone.
        goals: by the names of contenders.
    """

    what: str
    contenders: dict[str, Callable | OfTorch]
    operands: Callable[[], Sequence[jax.Array]]
    limit: Callable[[], Callable[[], Any]]
    shape: dict[str, Any]
    wrt: tuple[int, ...] = (0, 1)
    goals: dict[str, Goal] = dataclasses.field(default_factory=dict)


def with_setting(module: Any, name: str, value: Any, loss: Callable) -> Callable:
    """The loss as it is with another number in a module, while it is traced."""

    def of_setting(*operands):
        before = getattr(module, name)
        setattr(module, name, value)
        try:
            return loss(*operands)
        finally:
            setattr(module, name, before)

    return of_setting


def peers(of_package: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The contenders of those packages that are installed; of the others, a line says that they are left out."""
    found = {}
    for package, contenders in of_package.items():
        if importlib.util.find_spec(package):
            found |= contenders
        else:
            print(f"{package} is not installed: {', '.join(contenders)} left out")
    return found


def measured(comparison: Comparison, who: str) -> dict:
    """Time and temporaries of a contender, in turn with the products alone, or why there are none."""
    loss, limit = comparison.contenders[who], comparison.limit()
    jax.clear_caches()  # a setting may be another
    try:
        program, temporary_bytes = _program(loss, comparison.operands(), comparison.wrt)
        found = {"temporary_bytes": temporary_bytes}
        loops = in_turn({"limit": Program(limit), who: program}, repeats=5)
    except Exception as error:  # memory above all, or whatever a peer raises
        return record.failed(error)
    (ms, spread), of_limit = timing(loops[who]), timing(loops["limit"])
    return {**found, "ms": ms, "spread": spread, "limit_ms": of_limit.ms, "ratio": ratio(loops[who], loops["limit"])}


def _program(loss: Callable | OfTorch, operands: Sequence[jax.Array], wrt: tuple[int, ...]) -> tuple[Program, int]:
    """What is timed, and the bytes of its temporaries."""
    if isinstance(loss, OfTorch):
        from benchmarks import linear_torch

        return linear_torch.program(loss.loss(), operands, wrt)
    function = jax.value_and_grad(loss, wrt) if wrt else loss
    run = jax.jit(function).lower(*operands).compile()
    return Program(functools.partial(run, *operands)), run.memory_analysis().temp_size_in_bytes


def line(who: str, found: dict) -> str:
    """A line of the table."""
    if "failed" in found:
        return f"  {who:40s} {found['failed']}"
    ms = f"{found['ms']:9.2f} ms = {found['ratio']:5.3f} × the products"
    return f"  {who:40s} {ms:40s} {found['temporary_bytes'] / 1e9:7.3f} GB"


def rows_of(comparisons: Iterable[Comparison], who: str = "") -> Iterator[dict]:
    """A row for each contender whose name has this word, measured when it is asked for: first of all the first ones."""
    comparisons = list(comparisons)
    turns = max((len(comparison.contenders) for comparison in comparisons), default=0)
    for turn in range(turns):
        for comparison in comparisons:
            for name in [*comparison.contenders][turn : turn + 1]:
                if who not in name:
                    continue
                found = measured(comparison, name)
                print(
                    f" {comparison.what}, {', '.join(map(str, comparison.shape.values()))}\n{line(name, found)}",
                    flush=True,
                )
                goal = comparison.goals.get(name)
                goals = (
                    {}
                    if goal is None
                    else {"goal": {k: v for k, v in vars(goal).items() if v not in (float("inf"), None)}}
                )
                yield {**comparison.shape, "what": comparison.what, "who": name, **found, **goals}


def missed(rows: Sequence[dict]) -> list[str]:
    """What is beyond its goal."""
    found = []
    same = {}
    for row in rows:
        key = tuple(row[name] for name in row if name not in _OF_WHO)
        same[(*key, row["who"])] = row
    for key, row in same.items():
        goal, name = row.get("goal", {}), f"{row['what']}, {', '.join(map(str, key[:-2]))}, {row['who']}"
        if not goal:
            continue
        if "failed" in row:
            found.append(f"{name}: {row['failed']}")
            continue
        if row["ratio"] > goal.get("products", float("inf")):
            found.append(f"{name}: {row['ratio']:.3f} of the products, goal {goal['products']}")
        if row["temporary_bytes"] > 1e9 * goal.get("gigabytes", float("inf")):
            found.append(f"{name}: {row['temporary_bytes'] / 1e9:.2f} GB of temporaries, goal {goal['gigabytes']}")
        other = same.get((*key[:-1], goal.get("never_behind")), {})
        if row["ratio"] > other.get("ratio", float("inf")):
            found.append(f"{name}: {row['ratio'] / other['ratio']:.3f} of {other['who']}")
    return found


_OF_WHO = ("who", "temporary_bytes", "ms", "spread", "limit_ms", "ratio", "failed", "goal")
"""What is of a contender; all else of a row is of what it is compared in."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of every script that compares contenders."""
    parser.add_argument("--only", default="", help="losses, or shapes, whose name has this word")
    parser.add_argument("--who", default="", help="contenders whose name has this word")
    parser.add_argument("--budget", type=float, default=float("inf"), help="begin no measurement after so many seconds")
    parser.add_argument("--quick", action="store_true", help="a small shape")
    parser.add_argument("--output", help="where to write; default: benchmarks/results")


def run(name: str, comparisons: Iterable[Comparison], arguments: argparse.Namespace) -> None:
    """Measures within the budget, writes `name`.json after each row, and fails if a goal is missed, unless quick."""
    begin, rows = time.monotonic(), []
    path = record.write(name, rows, arguments.output)  # where that can not be, nothing is measured
    print(record.circumstances())
    for row in rows_of(comparisons, arguments.who):
        rows.append(row)
        record.write(name, rows, arguments.output)
        if time.monotonic() - begin > arguments.budget:
            print(f"the budget of {arguments.budget:.0f} s is spent: what would follow is left out")
            break
    print(f"{path}, {time.monotonic() - begin:.0f} s")
    beyond = missed(rows)
    print("beyond the goal:", *(beyond or ["nothing"]), sep="\n  ")
    if beyond and not arguments.quick:
        raise SystemExit(1)


def command(
    name: str, description: str | None, comparisons_of: Callable[[Any], list[Comparison]], shapes: dict
) -> None:
    """Such a script; `comparisons_of` is given a shape of those of the platform, or of "quick"."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    platform = jax.devices()[0].platform
    chosen = shapes["quick"] if arguments.quick else shapes["cpu" if platform == "cpu" else "gpu"]
    comparisons = [of for shape in chosen for of in comparisons_of(shape) if arguments.only in of.what]
    run(f"{name}_{'quick' if arguments.quick else platform}", comparisons, arguments)
