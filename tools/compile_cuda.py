"""Compile the CUDA kernels for the GPU architectures given, into a wheel under build/cuda, and count their registers.

    python tools/compile_cuda.py 80 90a             for both
    python tools/compile_cuda.py 90a --parse 80     for one; the other only has to be taken by the compiler

A kernel that spills registers to memory is an error, or of which ptxas does not say that it spills none; and so is a
library that does not load without a GPU, or one whose wheel would be too large with all the architectures of a release.
"""

import argparse
import collections
import concurrent.futures
import ctypes
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nvcc

BUILD = Path("build/cuda")
OBJECTS = BUILD / "objects"

# What ptxas prints of each kernel: its name and architecture; the spills, of it and of every function that it calls and
# that is not inlined; its registers.
COMPILING = re.compile(r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\w+)'")
PROPERTIES = re.compile(r"Function properties for (?P<function>\w+)")
SPILLS = re.compile(r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (?P<count>\d+) registers")

# Of the wheel of a release, in which the shared object is packed.
MOST_MEGABYTES = 25
# What the kernels of a release take for each, compressed by CUDA 13.0.
KILOBYTES = {"80": 2655, "86": 2642, "89": 2643, "90a": 3338, "100": 3620, "120": 3280, "PTX": 3861}
RELEASED = re.compile(r'set\(JAXLOSS_RELEASED_ARCHITECTURES "(?P<architectures>[\w;]+)"')


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("architectures", nargs="+", choices=list(KILOBYTES)[:-1], help="of GPUs")
    parser.add_argument("--parse", action="append", default=[], help="one that is only parsed, which is quick")
    asked = parser.parse_args()
    for architecture in asked.parse:
        parse(architecture)
    compile_for(asked.architectures)


def parse(architecture: str) -> None:
    """Fails where the compiler does not take a file for that architecture; nothing is optimised, or kept."""
    sources = sorted(Path("cuda/gpu").glob("*/*.cu"))
    command = nvcc.command_for(architecture, "-Icuda", "-Xcicc", "-O0", "-ptx", "-o", os.devnull)

    def parsed(source: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, str(source)], check=False, capture_output=True, text=True)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        refused = [ran.stderr for ran in pool.map(parsed, sources) if ran.returncode]
    if refused:
        sys.exit("\n".join([*refused, f"error: the CUDA kernels do not compile for sm_{architecture}"]))
    print(f"sm_{architecture}: {len(sources)} files parsed")


def compile_for(architectures: list[str]) -> None:
    """Builds the wheel, and fails if registers spill in it, if it does not load, or if a release would be too large."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    reuse_cpu_kernels()
    log = build_wheel(architectures)
    (BUILD / "log").write_text(log)

    spilling, unknown, registers = measure(log)
    for architecture, counts in registers.items():
        print(f"sm_{architecture}: kernels: {len(counts)}, with at most {max(counts)} registers a thread")
    if spilling:
        sys.exit("\n".join(["error: registers spill in", *spilling]))
    if unknown:
        sys.exit("\n".join(["error: ptxas does not say whether registers spill in", *unknown]))
    if missing := set(architectures) - set(registers):
        sys.exit(f"error: no kernel was compiled for {', '.join(sorted(missing))}")

    (wheel,) = BUILD.glob("*.whl")
    library = extracted(wheel)
    print(f"{wheel} holds {', '.join(f'sm_{name}' for name in held(library))}, and loads on this machine")
    check_size(library, packed(wheel), architectures)


def reuse_cpu_kernels() -> None:
    """Takes the objects of the CPU kernels from the build that .venv holds, if there is one.

    With them goes what ninja noted when it made them: it makes again what was made otherwise, or of other files.
    """
    for log in Path("build").glob(f"py3-none-*-{sys.implementation.cache_tag}/.ninja_log"):
        OBJECTS.mkdir(parents=True, exist_ok=True)
        for name in (".ninja_log", ".ninja_deps"):
            if (log.parent / name).exists():
                shutil.copy2(log.parent / name, OBJECTS)
        for objects in (log.parent / "CMakeFiles").glob("kernels_*.dir"):
            shutil.copytree(objects, OBJECTS / "CMakeFiles" / objects.name, dirs_exist_ok=True)
        return


def build_wheel(architectures: list[str]) -> str:
    """Builds the wheel, and returns what the compilers said."""
    settings = {
        "build-dir": str(OBJECTS),
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


def measure(log: str) -> tuple[list[str], list[str], dict[str, list[int]]]:
    """The kernels that spill, those of which nothing is said, and by architecture the registers of every kernel."""
    spilling, answered, registers, kernels = [], set(), collections.defaultdict(list), []
    kernel = function = architecture = ""
    for line in log.splitlines():
        if found := COMPILING.search(line):
            kernel, architecture = found["kernel"], found["architecture"]
            kernels.append((kernel, architecture))
        elif found := PROPERTIES.search(line):
            function = found["function"]
        elif found := SPILLS.search(line):
            answered.add((function, architecture))
            if int(found["stores"]) or int(found["loads"]):
                callee = "" if function == kernel else f", in {demangled(function)}"
                spilling.append(f"  {demangled(kernel)}{callee} for sm_{architecture}: {found[0]}")
        elif found := REGISTERS.search(line):
            registers[architecture].append(int(found["count"]))
    unknown = [f"  {demangled(name)} for sm_{of}" for name, of in kernels if (name, of) not in answered]
    return spilling, unknown, registers


def demangled(name: str) -> str:
    if not shutil.which("c++filt"):
        return name
    return subprocess.run(["c++filt", name], check=True, capture_output=True, text=True).stdout.strip()


def extracted(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract("jaxloss/libjaxloss.so", BUILD))


def held(path: Path) -> list[str]:
    """The architectures that the library says it holds."""
    library = ctypes.CDLL(str(path))
    library.jaxloss_cuda_architectures.restype = ctypes.c_char_p
    return library.jaxloss_cuda_architectures().decode().split(",")


def packed(wheel: Path) -> int:
    """How many bytes the library has in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.getinfo("jaxloss/libjaxloss.so").compress_size


def check_size(library: Path, in_wheel: int, compiled: list[str]) -> None:
    """Fails if a wheel would be too large with what a release is compiled for: all its architectures, and PTX."""
    sections = subprocess.run(["size", "-A", str(library)], check=True, capture_output=True, text=True).stdout
    size, kernels = released_bytes(library.stat().st_size, sections, compiled, released())
    of_release = in_wheel + size - library.stat().st_size  # nvcc has packed the kernels as well as can be
    print(
        f"{library} has {library.stat().st_size / 1e6:.1f} MB, {kernels / 1e6:.1f} of them kernels; "
        f"for {', '.join(f'sm_{name}' for name in released())} and PTX it would have about {size / 1e6:.1f} MB, "
        f"{of_release / 1e6:.1f} in a wheel"
    )
    if of_release > MOST_MEGABYTES * 1e6:
        sys.exit(f"error: the wheel of a release may have {MOST_MEGABYTES} MB")


def released() -> list[str]:
    """The architectures that CMakeLists.txt compiles a release for."""
    found = RELEASED.search(Path("CMakeLists.txt").read_text())
    if not found:
        sys.exit("error: CMakeLists.txt does not name the architectures of a release")
    return found["architectures"].split(";")


def released_bytes(whole: int, sections: str, compiled: list[str], architectures: list[str]) -> tuple[float, int]:
    """The size of a release's library, from one for those that are compiled, and that of the kernels in this one."""
    found = re.search(r"^\.nv_fatbin\s+(\d+)", sections, re.MULTILINE)
    if not found:
        sys.exit("error: the library has no section of kernels")
    kernels = int(found[1])
    release, here = (sum(KILOBYTES[name] for name in names) for names in ([*architectures, "PTX"], compiled))
    return whole - kernels + kernels * release / here, kernels


if __name__ == "__main__":
    main()
