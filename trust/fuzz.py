"""Differential fuzz: public calls at random, against the oracles of the tests in float64, under JAX's transforms.

A campaign of a seed is a sequence of configurations, each compiled once and run with many arrays. It stops after some
minutes; the next one with the same seed and the same code goes on where it stopped, and their counts are added up.
"""

import collections
import functools
import hashlib
import json
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np

from trust import ROOT, configurations, draws, finds, programs
from trust.campaign import BUILD, Effort, Part

DRAWS = 150
"""Of a configuration; eager calls take as long as hundreds of compiled ones."""

EAGER_DRAWS = 3
QUICK_SECONDS = 40
MOST_FINDS = 20
"""After so many, there is enough to mend."""


def run(effort: Effort) -> Iterator[Part]:
    state = _State.of(effort)
    start, seconds = time.monotonic(), QUICK_SECONDS if effort.quick else 60 * effort.minutes
    found, first = [], state.next
    while time.monotonic() - start < seconds and len(found) < MOST_FINDS:
        configuration = configurations.configuration(effort.seed, state.next)
        if state.next % configurations.BLOCK == 0:
            jax.clear_caches()
        configurations.on_path(configuration.by_formula)
        with jax.enable_x64(configuration.of_64_bits):
            found += _finds_of(configuration, effort, state)
        state.next += 1
        state.keep()
    yield Part(
        "random calls of every loss against float64, by transform",
        {**{f"under {name}": state.counts[name] for name in configurations.TRANSFORMS}, "programs": state.next},
        found,
        note=f"configurations {first} to {state.next - 1} in this run, the others in earlier ones" if first else "",
    )


def _finds_of(configuration: configurations.Configuration, effort: Effort, state: "_State") -> list[str]:
    """At most one find of this configuration, with its program in a file."""
    rng = np.random.default_rng((effort.seed, state.next, 1))
    count = EAGER_DRAWS if configuration.transform == "eager" else DRAWS // 5 if effort.quick else DRAWS
    drawn = [draws.drawn(configuration, rng) for _ in range(count - count % programs.BATCH)]
    try:
        run_it = programs.program(configuration)
        size = programs.BATCH if configuration.transform == "vmap" else len(drawn)
        results = []
        for i in range(0, len(drawn), size):
            results += programs.found(run_it, configuration, drawn[i : i + size])
    except Exception:
        return [_kept(configuration, drawn[0], [traceback.format_exc()], state)]
    state.counts[configuration.transform] += len(drawn)
    for draw, result in zip(drawn, results, strict=True):
        if errors := finds.errors(configuration, draw, result):
            smaller, of_smaller, still = finds.smaller(configuration, draw)
            return [_kept(smaller, of_smaller, still or errors, state)]
    return []


def _kept(configuration, draw, errors: list[str], state: "_State") -> str:
    path = BUILD / "finds" / f"fuzz_{state.seed}_{state.next}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(finds.as_program(configuration, draw, errors))
    return f"{configuration}, {draw.pattern}: {errors[0].strip().splitlines()[-1]} ({path.relative_to(ROOT)})"


class _State:
    """Where the campaign of a seed is, and how many calls it has compared."""

    def __init__(self, seed: int, path) -> None:
        self.seed, self._path = seed, path
        self.next, self.counts = 0, collections.Counter()

    @classmethod
    def of(cls, effort: Effort) -> "_State":
        """That of the last run of this seed and this code; of the short form always the beginning."""
        state = cls(effort.seed, None if effort.quick else BUILD / f"fuzz_{effort.seed}.json")
        if state._path and state._path.exists():
            kept = json.loads(state._path.read_text())
            if kept["code"] == _code():
                state.next, state.counts = kept["next"], collections.Counter(kept["counts"])
        return state

    def keep(self) -> None:
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"code": _code(), "next": self.next, "counts": self.counts}))


@functools.cache
def _code() -> str:
    """Of the library, the campaign and the oracles: one number."""
    total = hashlib.sha256()
    for folder in ("jaxloss", "cuda", "trust", "tests/support"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cc"):
                total.update(path.read_bytes())
    return total.hexdigest()
