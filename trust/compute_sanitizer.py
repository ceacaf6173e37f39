"""The CUDA kernels under compute-sanitizer, for `make sanitize-gpu`: on a machine with an NVIDIA GPU and its toolkit.

    python -m trust.compute_sanitizer                        every tool over every part of tests/gpu/kernels_check.cu
    python -m trust.compute_sanitizer --tool racecheck --part cluster

memcheck looks for accesses out of bounds, racecheck for ones to shared memory that no barrier orders, initcheck for
reads of what nothing has written, synccheck for barriers that are wrong. What they found is kept in
benchmarks/results/trust_gpu.json.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
from functools import partial

from tools import nvcc
from trust import ROOT, campaign
from trust.campaign import BUILD, Campaign, Effort
from trust.jobs import Part

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PARTS = ("elementwise", "divergences", "gradient", "options", "any", "tiles", "registers", "cluster", "streaming")
"""Those that kernels_check.cu runs one by one."""

SECONDS = 900
"""A tool that takes longer over one part is stopped, and that is a find: sizes are too large for it."""

ERRORS = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
CASES = re.compile(r"^PASS .*: (\d+) cases", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trust.compute_sanitizer")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="this one; may be repeated")
    parser.add_argument("--part", action="append", choices=PARTS, help="this part of the program; may be repeated")
    parser.add_argument("--program", type=pathlib.Path, help="tests/gpu/kernels_check.cu, compiled before")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="so many parts at once")
    parser.add_argument("--all-sizes", action="store_true", help="those of the program itself, which take hours")
    parser.add_argument("--output", help="where to write the JSON; default: benchmarks/results")
    asked = parser.parse_args()
    program = asked.program.resolve() if asked.program else build()
    tools = {
        tool: Campaign([partial(watched, program, tool, part, asked.all_sizes) for part in asked.part or PARTS])
        for tool in asked.tool or TOOLS
    }
    effort = Effort(quick=False, seed=0, minutes=0)
    found = [part for parts in campaign.measured(tools, effort, asked.jobs) for part in parts]
    print(f"kept in {write(found, asked.output)}")
    if count := sum(len(part["finds"]) for part in found):
        sys.exit(f"error: {count} found")


def build() -> pathlib.Path:
    """The program, with the lines of the kernels in it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "kernels_check"
    command = nvcc.command("-lineinfo", "--threads", "0", f"-I{ROOT / 'cuda'}", "-o", str(program))
    sources = [ROOT / "tests/gpu/kernels_check.cu", *sorted((ROOT / "cuda/gpu").rglob("*.cu"))]
    subprocess.run([*command, *map(str, sources)], check=True)
    return program


def watched(program: pathlib.Path, tool: str, part: str, all_sizes: bool) -> Part:
    """One part of the program under one tool."""
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    command = [sanitizer, "--tool", tool, "--error-exitcode", "7", str(program), part]
    environment = {**os.environ, "JAXLOSS_CHECK_SIZES": "all" if all_sizes else "few"}
    limit = None if all_sizes else SECONDS
    tried = f"{tool} of the kernels: {part}"
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return Part(tried, {"cases": 0}, [f"{' '.join(command)} did not end in {SECONDS} s"])
    said = ran.stdout + ran.stderr
    cases = sum(map(int, CASES.findall(said)))
    errors = sum(int(number) for pair in ERRORS.findall(said) for number in pair if number)
    # Without a summary the tool itself failed: that is no success.
    clean = ran.returncode == 0 and ERRORS.search(said) and errors == 0 and cases > 0
    return Part(tried, {"cases": cases}, [] if clean else [f"{' '.join(command)}: {errors} errors\n{said[-4000:]}"])


def write(parts: list[dict], directory: str | None) -> pathlib.Path:
    """Keeps them in place of those of the same tools and parts of the program."""
    run = {part["tried"] for part in parts}
    return campaign.kept_with(parts, "trust_gpu", lambda part: part["tried"] not in run, directory)


if __name__ == "__main__":
    main()
