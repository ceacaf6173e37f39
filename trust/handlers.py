"""Handlers called with what mutations make of a right call: an error, or the right numbers, and never more.

They are compiled with AddressSanitizer and UndefinedBehaviorSanitizer, and called without JAX: a hundred thousand calls
then take a few minutes, and a byte outside a buffer ends the process.
"""

import json
import pathlib
import subprocess
import sys
from functools import partial

import numpy as np

from trust import ROOT, hosted, mutations
from trust.campaign import BUILD, Campaign, Effort
from trust.jobs import Part

CALLS, QUICK_CALLS = 100_000, 4_000
INVALID_ARGUMENT = 3
MOST_FINDS = 20


def campaign(effort: Effort) -> Campaign:
    return Campaign([partial(_mutated, effort.seed, effort.count(CALLS, QUICK_CALLS))])


def _mutated(seed: int, calls: int) -> Part:
    library, place = hosted.build(), BUILD / "handlers_at"
    worker = [sys.executable, "-W", "ignore", "-m", "trust.handlers"]
    ran = subprocess.run(
        [*worker, str(library), str(seed), str(calls), str(place)],
        cwd=ROOT,
        env=hosted.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        number = int(place.read_text() or 0)
        call = _call(seed, number)
        return Part("calls of handlers until the process ended", {"calls": number}, [f"{call}:\n{ran.stderr[-6000:]}"])
    found = json.loads(ran.stdout.splitlines()[-1])
    counts = {name: found[name] for name in ("calls", "refused", "taken", "compared")}
    return Part(
        "mutated calls of every handler, under AddressSanitizer and UndefinedBehaviorSanitizer",
        counts,
        found["finds"],
        note="compared: losses and gradients with float64; the others taken have options of many rows at once, or "
        "exchanged operands, and are watched by the sanitizers alone",
    )


def _call(seed: int, number: int, rng: np.random.Generator | None = None) -> mutations.Hosted:
    """The call of that number."""
    rng = rng or np.random.default_rng((seed, number))
    call = mutations.valid(rng)
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.15, 0.55, 0.2, 0.1]))):
        call = mutations.mutated(call, rng)
    return call


def _try_all(library: pathlib.Path, seed: int, calls: int, place: pathlib.Path) -> dict:
    """In a process of its own, for which `place` says where it was when it ended."""
    from trust import handler_oracle

    host = hosted.Hosted(library)
    counts, finds = {"calls": 0, "refused": 0, "taken": 0, "compared": 0}, []
    with place.open("w") as at:
        for number in range(calls):
            at.seek(0)
            at.write(f"{number:<12}")
            at.flush()
            rng = np.random.default_rng((seed, number))
            call = _call(seed, number, rng)
            operands, results = mutations.arrays_of(call, rng)
            code, message = host(call.target, operands, results, call.attributes)
            counts["calls"] += 1
            if code == INVALID_ARGUMENT:
                counts["refused"] += 1
            elif code:
                finds.append(f"{call}: error {code}, {message}")
            else:
                counts["taken"] += 1
                error, compared = handler_oracle.error_of(call.target, operands, results, call.attributes)
                counts["compared"] += compared
                if error:
                    finds.append(f"{call}: {error}")
            if len(finds) >= MOST_FINDS:
                break
    return {**counts, "finds": finds}


if __name__ == "__main__":
    print(
        json.dumps(_try_all(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4])))
    )
