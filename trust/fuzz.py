"""Differential fuzz: public calls at random, against the oracles of the tests in float64, under JAX's transforms.

A campaign of a seed is a sequence of configurations, each compiled once and run with many arrays; shares of it
run side by side, each of some of the configurations. One that stops before it has made its calls goes on in the next
run of the same seed and code, and the counts are added up.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import time
import traceback
from functools import partial

import jax
import numpy as np

from trust import ROOT, finds, programs
from trust.calls import TRANSFORMS, Configuration, Drawn
from trust.campaign import BUILD, Campaign, Effort
from trust.jobs import Part

CALLS, CALLS_OF_GPU = 1_000_000, 100_000
SHARES = 8
"""Not as many as there are processors, so that a seed's calls are the same on any machine."""

CHUNK = 32
"""So many calls have the same options and the same kind of numbers, and the oracle looks at them at once."""

NUMBERS, LEAST, MOST = 500_000, 10 * CHUNK, 40 * CHUNK
"""A program is called so often that its predictions have as many numbers together, within these two; of none, one
chunk."""

EAGER_CALLS = 8
"""They take as long as hundreds of compiled ones."""

QUICK_SECONDS = 30
GPU_SHARE = 0.6
"""Of the minutes on a GPU. A program takes seconds to compile there: each is called more often, and few are eager."""

CALLS_ON_GPU, EAGER_ON_GPU = 2, 8
MOST_FINDS = 10
"""After so many of a share, there is enough to mend."""


def campaign(effort: Effort) -> Campaign:
    """The short form has one share, which ends after some seconds."""
    shares = 1 if effort.quick else SHARES
    calls = -(-effort.count(CALLS_OF_GPU if effort.on_gpu else CALLS, CALLS) // shares)
    return Campaign([partial(_share, effort, place, shares, calls) for place in range(shares)])


def _share(effort: Effort, place: int, shares: int, calls: int) -> Part:
    """So many calls of the configurations of that place in each so many."""
    state = _State.of(effort, place, shares)
    whole = effort.seconds(GPU_SHARE) if effort.on_gpu else 60 * effort.minutes
    start, seconds = time.monotonic(), QUICK_SECONDS if effort.quick else whole
    found, before = [], state.programs
    while state.calls < calls and time.monotonic() - start < seconds and len(found) < MOST_FINDS:
        configuration = programs.configuration(effort.seed, state.next)
        if effort.on_gpu and configuration.transform == "eager" and state.next % EAGER_ON_GPU:
            configuration = dataclasses.replace(configuration, transform="jit")
        programs.on_path(configuration.by_formula)
        with jax.enable_x64(configuration.of_64_bits):
            found += _finds_of(configuration, effort, state)
        state.next += shares
        state.keep()
    counts = {"calls": state.calls, **{f"under {name}": state.counts[name] for name in TRANSFORMS}}
    return Part(
        "random calls of every loss against float64, by transform",
        {**counts, "programs": state.programs},
        found,
        note="some of them in an earlier run of the same code" if before else "",
    )


def calls_of(configuration: Configuration, effort: Effort) -> int:
    """How often a configuration is called."""
    if configuration.transform == "eager":
        return EAGER_CALLS
    if effort.quick or configuration.size == 0:
        return CHUNK
    return (CALLS_ON_GPU if effort.on_gpu else 1) * int(np.clip(NUMBERS // configuration.size, LEAST, MOST))


def _finds_of(configuration: Configuration, effort: Effort, state: "_State") -> list[str]:
    """At most one find of this configuration, with its program in a file."""
    rng = np.random.default_rng((effort.seed, state.next, 1))
    together = programs.BATCH if configuration.transform == "vmap" else 1
    left = calls_of(configuration, effort)
    run_it = programs.program(configuration)
    while left > 0:
        drawn = [configuration.drawn(rng, min(left, CHUNK)) for _ in range(together)]
        try:
            results = programs.found(run_it, configuration, drawn)
            wrong = [finds.errors(configuration, *pair) for pair in zip(drawn, results, strict=True)]
        except Exception as error:
            said = f"{traceback.format_exc()}\n{type(error).__name__}: {error}"
            return [_kept(configuration, drawn[0].of(0), [said], state)]
        left -= together * len(drawn[0])
        state.counts[configuration.transform] += together * len(drawn[0])
        for draw, errors in zip(drawn, wrong, strict=True):
            if errors:
                i, said = min(errors.items())
                return [_minimised(configuration, drawn, draw.of(i), i, said, state)]
    return []


def _minimised(configuration: Configuration, drawn: list[Drawn], alone: Drawn, i: int, errors, state) -> str:
    """The find as a call that goes wrong alone, or with the others of its batch."""
    simplest, smallest, still = finds.smaller(configuration, alone)
    if still:
        return _kept(simplest, smallest, still, state)
    if configuration.transform == "vmap":
        parts = [(draw.operands, draw.tangents, draw.cotangent) for draw in drawn]
        operands, tangents, cotangent = jax.tree.map(lambda *leaves: np.stack([x[i] for x in leaves]), *parts)
        alone = Drawn(alone.pattern, operands, tangents, cotangent)
    return _kept(configuration, alone, errors, state)


def _kept(configuration: Configuration, draw: Drawn, errors: list[str], state: "_State") -> str:
    path = BUILD / "finds" / f"fuzz_{state.seed}_{state.next}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(finds.as_program(configuration, draw, errors))
    return f"{configuration}, {draw.pattern}: {errors[0].strip().splitlines()[-1]} ({path.relative_to(ROOT)})"


class _State:
    """Where a share of the campaign of a seed is, and how many calls it has compared."""

    def __init__(self, seed: int, place: int, shares: int, path: pathlib.Path | None) -> None:
        self.seed, self._place, self._shares, self._path = seed, place, shares, path
        self.next, self.counts = place, collections.Counter()

    @property
    def calls(self) -> int:
        return self.counts.total()

    @property
    def programs(self) -> int:
        return (self.next - self._place) // self._shares

    @classmethod
    def of(cls, effort: Effort, place: int = 0, shares: int = 1) -> "_State":
        """That of the last run of this seed and this code; of the short form always the beginning."""
        path = BUILD / f"fuzz_{effort.platform}_{effort.seed}_{place}_of_{shares}.json"
        state = cls(effort.seed, place, shares, None if effort.quick else path)
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
