"""Compile the CUDA kernels for the GPU architectures given, into a wheel under build/cuda, and count their registers.

A kernel that spills registers to memory is an error, and so is a library that does not load without a GPU.
"""

import collections
import ctypes
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

BUILD = Path("build/cuda")

# What ptxas prints of each kernel: its name and architecture, its spills, its registers.
COMPILING = re.compile(r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\w+)'")
SPILLS = re.compile(r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (?P<count>\d+) registers")


def main(architectures: list[str]) -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    log = build_wheel(architectures)
    (BUILD / "log").write_text(log)

    spilling, registers = measure(log)
    for architecture, counts in registers.items():
        print(f"sm_{architecture}: kernels: {len(counts)}, with at most {max(counts)} registers a thread")
    if spilling:
        sys.exit("\n".join(["error: registers spill in", *spilling]))
    if missing := set(architectures) - set(registers):
        sys.exit(f"error: no kernel was compiled for {', '.join(sorted(missing))}")

    (wheel,) = BUILD.glob("*.whl")
    print(f"{wheel} holds {', '.join(f'sm_{name}' for name in held(wheel))}, and loads on this machine")


def build_wheel(architectures: list[str]) -> str:
    """Builds the wheel, and returns what the compilers said."""
    settings = {
        "build-dir": str(BUILD / "objects"),
        "cmake.define.JAXLOSS_CUDA": "ON",
        "cmake.define.JAXLOSS_CUDA_ARCHITECTURES": ";".join(architectures),
        "cmake.define.CMAKE_CUDA_FLAGS": "-Xptxas=-v",
    }
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--wheel-dir", str(BUILD), "."]
    for name, value in settings.items():
        command += ["-C", f"{name}={value}"]
    finished = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if finished.returncode:
        sys.exit(f"{finished.stdout}\nerror: the CUDA kernels do not compile")
    return finished.stdout


def measure(log: str) -> tuple[list[str], dict[str, list[int]]]:
    """The kernels that spill, and by architecture the registers of every kernel."""
    spilling, registers, kernel, architecture = [], collections.defaultdict(list), "", ""
    for line in log.splitlines():
        if found := COMPILING.search(line):
            kernel, architecture = found["kernel"], found["architecture"]
        elif (found := SPILLS.search(line)) and (int(found["stores"]) or int(found["loads"])):
            spilling.append(f"  {demangled(kernel)} for sm_{architecture}: {found[0]}")
        elif found := REGISTERS.search(line):
            registers[architecture].append(int(found["count"]))
    return spilling, registers


def demangled(name: str) -> str:
    if not shutil.which("c++filt"):
        return name
    return subprocess.run(["c++filt", name], check=True, capture_output=True, text=True).stdout.strip()


def held(wheel: Path) -> list[str]:
    """The architectures that the wheel's library says it holds."""
    with zipfile.ZipFile(wheel) as archive:
        library = ctypes.CDLL(archive.extract("jaxloss/libjaxloss.so", BUILD))
    library.jaxloss_cuda_architectures.restype = ctypes.c_char_p
    return library.jaxloss_cuda_architectures().decode().split(",")


if __name__ == "__main__":
    main(sys.argv[1:])
