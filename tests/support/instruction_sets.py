"""The instruction sets that CPU kernels are compiled for: whether this processor has one, and C++ programs of the kernels."""

import os
import pathlib
import platform
import re
import shutil
import subprocess

SUPPORT = pathlib.Path(__file__).parent
# The bytes of a register, and what the compiler is told, as CMakeLists.txt does.
FLAGS = {
    "baseline": (16,),
    "avx2": (32, "-mavx2", "-mfma"),
    "avx512": (64, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
}


def processor_has(name: str) -> bool:
    """Whether this processor runs that instruction set."""
    if name == "baseline":
        return True
    if platform.machine() not in ("x86_64", "AMD64") or not pathlib.Path("/proc/cpuinfo").exists():
        return False
    has = pathlib.Path("/proc/cpuinfo").read_text()
    return all(re.search(rf"\b{flag.removeprefix('-m')}\b", has) for flag in FLAGS[name][1:])


def compiler() -> str:
    """The C++ compiler."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    assert found, "no g++ and no clang++ on PATH, and CXX names none"
    return found


def compiled(source: str, name: str, directory: pathlib.Path, *flags: str) -> pathlib.Path:
    """The program made of that file of tests/, with the kernels for an instruction set."""
    vector_bytes, *of_set = FLAGS[name]
    program = directory / pathlib.Path(source).stem
    build = [
        *(compiler(), "-std=c++17", "-fno-math-errno", "-fno-trapping-math", *of_set, *flags),
        *(f"-DJAXLOSS_ISA={name}", f"-DVECTOR_BYTES={vector_bytes}", f"-I{SUPPORT.parents[1] / 'cuda'}"),
        *(SUPPORT / source, "-o", program),
    ]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program
