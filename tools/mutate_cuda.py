"""Puts one fault after the other into the CUDA kernels, and says which of them their check does not see: no GPU.

    python tools/mutate_cuda.py                  # every mutant of cuda_mutants.toml that has no result yet
    python tools/mutate_cuda.py --list           # the mutants
    python tools/mutate_cuda.py --only tiles     # those whose name has that in it
    python tools/mutate_cuda.py --survivors      # those that survived, again
    python tools/mutate_cuda.py --minutes 30     # and stop after so many: the next run goes on
    python tools/mutate_cuda.py --on-gpu         # those that survived, by nvcc on this machine's GPU, in all sizes

Each is compiled into the program of `tools/emulate_kernels.py`, and the parts of `tests/gpu/kernels_check.cu` that are
about it run on the emulator. Of a family's kernels those of float32, or of the type that the mutant names, are compiled
with the fault, and linked before the others, which are as they were: so it takes a minute, not ten. What was found is
kept after every mutant, in `benchmarks/results/cuda_mutants.json`; one is tried again whose file has changed since, or
the check, or the emulator.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import emulate_kernels
import mutants_on_gpu
import mutate
from emulate_kernels import ROOT
from mutants_on_gpu import Check

BUILD = ROOT / "build/mutants/emulator"
RESULTS = ROOT / "benchmarks/results/cuda_mutants.json"
TABLE = tomllib.loads((ROOT / "tools/cuda_mutants.toml").read_text())
SECONDS = 900
"""A part that takes longer does not end; most take less than a minute of a processor's time."""

OF_TYPE = ("gpu/cross_entropy/{type}",)
UNITS = {
    **dict.fromkeys(("any", "registers", "cluster"), OF_TYPE),
    **dict.fromkeys(("tiles", "streaming"), (*OF_TYPE, "gpu/options/options")),
    "teams": ("gpu/options/options",),
    "options": ("gpu/options/options",),
    "gradient": ("gpu/cross_entropy/gradient",),
    "divergences": ("gpu/divergence/{type}",),
    "elementwise": ("gpu/elementwise/errors", "gpu/elementwise/binary"),
}
"""What is compiled for each part of the check, of a type."""


@dataclasses.dataclass(frozen=True)
class CudaMutant:
    """A fault of `cuda_mutants.toml`: the mutant, and the parts of the check that are about it.

    Attributes:
        type: the one that logits and predictions have.
        gpu: the one that is emulated: `large` or `small`.
        equivalent: why it changes no result, if it does not.
        reason: why it survives, if it does though it may change one on a GPU.
    """

    mutant: mutate.Mutant
    parts: tuple[str, ...]
    type: str
    gpu: str
    equivalent: str
    reason: str

    @property
    def name(self) -> str:
        return self.mutant.name

    @property
    def checks(self) -> list[Check]:
        return [(part, self.type, self.gpu) for part in self.parts]

    @property
    def units(self) -> list[str]:
        """What its parts are about."""
        return list(dict.fromkeys(unit.format(type=self.type) for part in self.parts for unit in UNITS[part]))

    @property
    def digest(self) -> str:
        """Of what its result depends on, other kernels apart."""
        check = (ROOT / "tests/gpu").glob("*.cu*")
        emulator = (path for path in emulate_kernels.EMULATOR.rglob("*") if path.is_file())
        return mutate.digest(ROOT / self.mutant.file, *check, *emulator)


def mutants() -> list[CudaMutant]:
    found = []
    for row in TABLE["mutants"]:
        text = (ROOT / row["file"]).read_text()
        place = text.find(row["old"])
        if text.count(row["old"]) != 1:
            raise SystemExit(f"{row['file']} has this {text.count(row['old'])} times, not once: {row['old']}")
        mutant = mutate.Mutant(row["file"], place, row["old"], row["new"])
        parts = tuple(row["parts"].split())
        how = row.get("type", "float"), row.get("gpu", "large")
        found.append(CudaMutant(mutant, parts, *how, row.get("equivalent", ""), row.get("reason", "")))
    return found


def rules(into: str, *more: str) -> list[str]:
    """The command that compiles into that folder of the build."""
    makefile = ["-f", str(emulate_kernels.EMULATOR / "Makefile"), f"CUDA_HEADERS={emulate_kernels.cuda_headers()}"]
    return ["make", "--silent", "-C", str(BUILD), *makefile, f"into={into}", *more]


def units_of(mutant: CudaMutant) -> list[str]:
    """The objects with that fault: of those that its parts are about, the ones that include its file."""
    path = mutant.mutant.file.removeprefix("cuda/")
    return [unit for unit in mutant.units if f"source/{path}" in (BUILD / f"objects/{unit}.d").read_text().split()]


def compiled(mutant: CudaMutant) -> bool:
    """Whether the program compiles, with that fault in it."""
    emulate_kernels.translate(BUILD, {ROOT / mutant.mutant.file: mutant.mutant.applied()})
    shutil.rmtree(BUILD / "mutated", ignore_errors=True)
    units = units_of(mutant)
    if not units:
        raise SystemExit(f"no object of {', '.join(mutant.parts)} includes {mutant.mutant.file}")
    made = subprocess.run(rules("mutated", *(f"mutated/{unit}.o" for unit in units)), capture_output=True)
    if made.returncode:
        return False
    first = [f"mutated/{unit}.o" for unit in units]
    others = [
        path
        for path in (BUILD / "objects").rglob("*.o")
        if path.relative_to(BUILD / "objects").with_suffix("") not in map(Path, units)
    ]
    # Of functions that several objects have, the linker takes the first.
    subprocess.run(["c++", "-o", "kernels_check", *first, *map(str, others)], cwd=BUILD, check=True)
    return True


def failing_part(checks: Sequence[Check], program: Path = BUILD / "kernels_check", sizes: str = "few") -> str:
    """The first part of these checks that does not pass, and what it says first; empty if all do."""
    for part, of_type, gpu in checks:
        asked = {"JAXLOSS_CHECK_SIZES": sizes, "JAXLOSS_CHECK_TYPES": of_type, "JAXLOSS_EMULATED_GPU": gpu}
        environment = {**os.environ, **asked}
        command = ["timeout", str(SECONDS), "stdbuf", "-oL", str(program), part]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = next((line.strip() for line in process.stdout if line.startswith("FAIL")), "")
            if said:  # the cases behind it say nothing more
                process.terminate()
        if said:
            return f"{part}: {said}"
        if process.returncode:
            return f"{part}: {'does not end' if process.returncode == 124 else f'status {process.returncode}'}"
    return ""


def tried(mutant: CudaMutant) -> tuple[str, str]:
    """What becomes of it, and by what."""
    if not compiled(mutant):
        return "invalid", "it does not compile"
    by = failing_part(mutant.checks)
    if by:
        return "killed", by
    return ("equivalent" if mutant.equivalent else "survived"), ""


def try_on_gpu(chosen: Sequence[CudaMutant], jobs: int) -> None:
    """Of survivors of the emulator: what becomes of each in all sizes of the check."""
    faults = [
        (mutant.mutant.file, mutant.mutant.applied(), [f"cuda/{unit}" for unit in mutant.units], mutant.checks)
        for mutant in chosen
    ]

    def failing(program: Path, checks: Sequence[Check]) -> str:
        return failing_part(checks, program, "all")

    for mutant, (result, by) in zip(chosen, mutants_on_gpu.tried(faults, failing, jobs), strict=True):
        print(f"{result:10} {mutant.name}  {by}", flush=True)
        keep({mutant.name: {"result": result, "by": f"on a GPU, {by}" if by else "", "file": mutant.digest}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say which mutants there are")
    parser.add_argument("--only", default="", help="mutants whose name has this in it")
    parser.add_argument("--survivors", action="store_true", help="those that survived, again")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="so many compilers at once")
    parser.add_argument("--on-gpu", action="store_true", help="those that survived, compiled by nvcc, on a GPU")
    options = parser.parse_args()
    known, chosen = found_before(), [mutant for mutant in mutants() if options.only in mutant.name]
    if options.list:
        for mutant in chosen:
            print(f"{known.get(mutant.name, {}).get('result', ''):10} {mutant.name}")
        return
    if options.on_gpu:
        try_on_gpu([mutant for mutant in chosen if is_left(mutant, known.get(mutant.name), True)], options.jobs)
        mutate.table(found_before())
        return
    left = [mutant for mutant in chosen if is_left(mutant, known.get(mutant.name), options.survivors)]
    start = time.monotonic()
    if left:
        check_without_a_mutant(left, options.jobs)
    for mutant in left:
        if time.monotonic() - start > 60 * options.minutes:
            print(f"{options.minutes} minutes are over: the next run goes on", flush=True)
            break
        since = time.monotonic()
        result, by = tried(mutant)
        print(f"{result:10} {time.monotonic() - since:4.0f} s  {mutant.name}  {by}", flush=True)
        keep({mutant.name: {"result": result, "by": by, "file": mutant.digest}})
    mutate.table(found_before())


def is_left(mutant: CudaMutant, before: dict | None, survivors: bool) -> bool:
    """Whether it is to be tried: as one that has no result for what there is now; or as a survivor, if asked."""
    if survivors or before is None:
        return survivors == (before is not None and before["result"] == "survived")
    return before["file"] != mutant.digest or bool(mutant.equivalent) != (before["result"] == "equivalent")


def check_without_a_mutant(left: list[CudaMutant], jobs: int) -> None:
    """Ends the program where the check of the kernels fails as they are: it would see a fault in every mutant."""
    emulate_kernels.translate(BUILD)
    if subprocess.run(rules("objects", f"-j{jobs}", "kernels_check")).returncode:
        sys.exit("the kernels of the checkout themselves do not compile")
    sources = [path for path in (BUILD / "source").rglob("*") if path.is_file()]
    subject, passed = mutate.digest(*sources, emulate_kernels.EMULATOR / "emulator.h"), BUILD / "passed.json"
    before = json.loads(passed.read_text()) if passed.exists() else {}
    for check in dict.fromkeys(check for mutant in left for check in mutant.checks):
        name = " ".join(check)
        if before.get(name) != subject:
            if by := failing_part([check]):
                sys.exit(f"without a mutant: {by}")
            before[name] = subject
            passed.write_text(json.dumps(before, indent=1))
            print(f"without a mutant: {name} passes", flush=True)


def found_before() -> dict:
    return json.loads(RESULTS.read_text())["mutants"] if RESULTS.exists() else {}


def keep(found: dict) -> None:
    """Adds it to the results, with what the table says of it now, and leaves out what is no mutant any more."""
    known, now = found_before() | found, {}
    for mutant in mutants():
        if mutant.name in known:
            now[mutant.name] = {**known[mutant.name], "reason": mutant.equivalent or mutant.reason}
    text = json.dumps({"counts": mutate.counted(now), "mutants": now}, indent=1, ensure_ascii=False)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
