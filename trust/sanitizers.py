"""The CPU kernels under sanitizers: random types, sizes, values and alignments, and the loop over threads."""

import os
import pathlib
import re
import subprocess
from collections.abc import Iterator

import instruction_sets
from trust import hosted
from trust.campaign import BUILD, Effort, Part

RUNS, QUICK_RUNS = 100_000, 10_000
OF_THREADS, QUICK_OF_THREADS = 20_000, 1_000
ADDRESS = "AddressSanitizer and UndefinedBehaviorSanitizer"
THREAD = "ThreadSanitizer"
FLAGS = {
    ADDRESS: hosted.ADDRESS,
    THREAD: ("-fsanitize=thread", "-DJAXLOSS_THREADS", "-pthread"),
}


def run(effort: Effort) -> Iterator[Part]:
    has = [name for name in ("baseline", "avx2", "avx512") if instruction_sets.processor_has(name)]
    sets = has[-1:] if effort.quick else has
    for name in sets:
        runs = effort.count(RUNS, QUICK_RUNS)
        yield _tried(f"kernels of {name}, random types, sizes, values and alignments", ADDRESS, name, effort.seed, runs)
    runs = effort.count(OF_THREADS, QUICK_OF_THREADS)
    yield _tried("kernels on four threads by the library's own loop over rows", THREAD, sets[-1], effort.seed, runs)


def _tried(what: str, sanitizer: str, name: str, seed: int, runs: int) -> Part:
    program = _compiled(sanitizer, name)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(program), str(seed), str(runs)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = re.fullmatch(r"(\d+) runs of (\d+) draws\n", ran.stdout)
    counts = {"runs": int(said[1]), "draws": int(said[2])} if said else {"runs": 0}
    finds = [] if said and ran.returncode == 0 else [f"{' '.join(command)}:\n{ran.stderr[-6000:]}"]
    return Part(f"{what}, under {sanitizer}", counts, finds)


def _compiled(sanitizer: str, name: str) -> pathlib.Path:
    folder = BUILD / f"{sanitizer.partition(' ')[0]}_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    flags = (*hosted.NOT_OPTIMISED, *hosted.INCLUDES, *FLAGS[sanitizer])
    return instruction_sets.compiled("sanitized_kernels.cc", name, folder, *flags)
