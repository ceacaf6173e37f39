"""The CPU kernels under sanitizers: random types, sizes, values and alignments, and the loop over threads."""

import os
import pathlib
import re
import subprocess
from functools import partial

import instruction_sets
from trust import hosted
from trust.campaign import BUILD, Campaign, Effort
from trust.jobs import Part

RUNS, QUICK_RUNS = 100_000, 10_000
"""Of all instruction sets together."""

OF_THREADS, QUICK_OF_THREADS = 20_000, 1_000
ADDRESS = "AddressSanitizer and UndefinedBehaviorSanitizer"
THREAD = "ThreadSanitizer"
FLAGS = {
    ADDRESS: hosted.ADDRESS,
    THREAD: ("-fsanitize=thread", "-DJAXLOSS_THREADS", "-pthread"),
}


def campaign(effort: Effort) -> Campaign:
    has = [name for name in ("baseline", "avx2", "avx512") if instruction_sets.processor_has(name)]
    sets = has[-1:] if effort.quick else has
    runs = -(-effort.count(RUNS, QUICK_RUNS) // len(sets))
    numbers = "random types, sizes, values and alignments"
    of_sets = [partial(_tried, f"kernels of {name}, {numbers}", ADDRESS, name, effort.seed, runs) for name in sets]
    runs = effort.count(OF_THREADS, QUICK_OF_THREADS)
    loop = "kernels on four threads by the library's own loop over rows"
    return Campaign([*of_sets, partial(_tried, loop, THREAD, sets[-1], effort.seed, runs)])


def _tried(what: str, sanitizer: str, name: str, seed: int, runs: int) -> Part:
    program = _compiled(sanitizer, name)
    # g++ 13 keeps variables of 64 bytes where they are not aligned, if it is to see the use of one after its function.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
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
