"""Runs the cases of `tests/gpu/kernels_check.cu` on a CPU, by an emulator of CUDA's threads: no GPU, no nvcc.

    python tools/emulate_kernels.py                    # everything, in few and small sizes
    python tools/emulate_kernels.py options streaming  # some parts: those that kernels_check takes as its argument

The GPU is like an H200, and for some parts then like a GeForce, for which there are other rows that fit on the chip.
The kernels' sources are copied to `build/emulator` with what is CUDA's own syntax written in C++: launches, and shared
memory. They are compiled there with a C++20 compiler, for which the headers of CUDA have to be there.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build/emulator"
EMULATOR = ROOT / "tests/gpu/emulator"
PARTS = [
    "options",
    "streaming",
    "tiles",
    "cluster",
    "registers",
    "any",
    "divergences",
    "elementwise",
    "teams",
    "gradient",
]
PARTS_OF_SMALL_GPU = ["tiles", "any", "options"]
"""Those whose launchers ask how much shared memory there is, or how fast the memory is."""


def closing(text: str, start: int, pair: str) -> int:
    """Where the bracket that opens at `start` is closed."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == pair[0]) - (text[place] == pair[1])
        if depth == 0:
            return place
    raise ValueError(f"no {pair[1]} for the {pair[0]} at {start}")


def callee_before(text: str, end: int) -> int:
    """Where the name begins, with its template arguments, that ends before `end`."""
    place = end
    if text[place - 1] == ">":
        depth = 0
        while True:
            place -= 1
            depth += (text[place] == ">") - (text[place] == "<")
            if depth == 0:
                break
    while re.match(r"[\w:]", text[place - 1]):
        place -= 1
    return place


def with_launches(text: str) -> str:
    """kernel<<<blocks, threads, bytes, stream>>>(arguments) as a call of the emulator."""
    while (at := text.find("<<<")) >= 0:
        end = text.index(">>>", at)
        opening = text.index("(", end)
        close = closing(text, opening, "()")
        begin = callee_before(text, len(text[:at].rstrip()))
        callee, with_, arguments = text[begin:at].strip(), text[at + 3 : end], text[opening : close + 1]
        call = f"emulator::launch(emulator::configuration({with_}), [=] {{ {callee}{arguments}; }})"
        text = text[:begin] + call + text[close + 1 :]
    return text.replace("cudaLaunchKernelEx(", "emulator::launch_ex(")


def with_shared_memory(text: str) -> str:
    """Shared variables as those of the block that is run."""
    text = re.sub(
        r"extern __shared__ (?:__align__\([^)]*\) )?([\w ]+?) (\w+)\[\];",
        r"\1* const \2 = emulator::dynamic_shared<\1>();",
        text,
    )

    def variables(match: re.Match) -> str:
        of_type, names = match.groups()
        parts = (re.match(r"(\w+)((?:\[.*\])?)", name.strip()) for name in names.split(","))
        return " ".join(
            f"using {name}_type = {of_type}{size}; static const char {name}_tag = 0; "
            f"auto& {name} = emulator::shared<{name}_type>(&{name}_tag);"
            for name, size in (part.groups() for part in parts if part)
        )

    return re.sub(r"__shared__ (?:__align__\([^)]*\) )?([\w:]+(?:<.*>)?) ([^;]+);", variables, text)


def write(to: Path, text: str) -> None:
    """Unless it is there: a file that is newer is compiled again."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if not to.exists() or to.read_text() != text:
        to.write_text(text)


def translate(build: Path = BUILD, changed: Mapping[Path, str] = MappingProxyType({})) -> None:
    """Into `build`; `changed`: what files of the checkout hold instead of what they do."""
    replaced = {path.relative_to(EMULATOR) for path in EMULATOR.rglob("*.cuh")}
    for source in [*ROOT.glob("cuda/**/*.cu*"), *ROOT.glob("cuda/**/*.h"), *ROOT.glob("tests/gpu/*.cu*")]:
        folder = ROOT / "cuda" if source.is_relative_to(ROOT / "cuda") else ROOT / "tests/gpu"
        path = source.relative_to(folder)
        if path.parts[0] != "cpu" and path not in replaced:
            text = changed.get(source) or source.read_text()
            write(build / "source" / path, with_shared_memory(with_launches(text)))
    for path in replaced:
        write(build / "source" / path, (EMULATOR / path).read_text())


def cuda_headers() -> Path:
    nvcc = shutil.which("nvcc")
    toolkit = Path(os.environ.get("CUDA_HOME") or (nvcc and Path(nvcc).resolve().parents[1]) or "/usr/local/cuda")
    for found in sorted(toolkit.glob("**/cuda_fp16.h")):
        return found.parent
    raise SystemExit(f"no cuda_fp16.h in {toolkit}: install CUDA's toolkit, or set CUDA_HOME to where it is")


def compile_all(jobs: int, build: Path = BUILD) -> Path:
    """The program; only what has changed is compiled again."""
    rules = ["-f", str(EMULATOR / "Makefile"), f"CUDA_HEADERS={cuda_headers()}"]
    subprocess.run(["make", "--silent", "-C", str(build), f"-j{jobs}", *rules], check=True)
    return build / "kernels_check"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", default=PARTS, help=f"of kernels_check: {', '.join(PARTS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="so many compilers and parts at once")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: expected some of {', '.join(PARTS)}")
    translate()
    program = compile_all(arguments.jobs)
    environment = {**os.environ, "JAXLOSS_CHECK_SIZES": "few"}

    def passes(part: str, gpu: str) -> bool:
        return subprocess.run([str(program), part], env=environment | {"JAXLOSS_EMULATED_GPU": gpu}).returncode == 0

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        runs = [pool.submit(passes, part, "large") for part in arguments.parts]
        runs += [pool.submit(passes, part, "small") for part in arguments.parts if part in PARTS_OF_SMALL_GPU]
        passed = [run.result() for run in runs]
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
