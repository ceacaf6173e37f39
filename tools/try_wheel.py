"""Install wheels as their users do, each alone in an environment of its own, and see that they work or say why not.

make try-wheel                                          the wheels of dist/ for this machine, with this Python
make try-wheel ARGS="--python python3.13 --jax newest"  another Python; the oldest jax, the newest, or both
make try-wheel ARGS=path/to/jaxloss.whl
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

DIST = Path("dist")
# What is listed of the library is what is in it, the CUDA runtime where it has that, and each with a licence.
MATERIALS = """
import ctypes, importlib.metadata, json
import jaxloss
from jaxloss._ffi import library
files = {path.name: path for path in importlib.metadata.files("jaxloss")}
listed = json.loads(files["jaxloss.cdx.json"].read_text())
assert listed["metadata"]["component"]["version"] == jaxloss.__version__, listed["metadata"]
has_cuda = ctypes.CDLL(str(library.path())).jaxloss_cuda_runtime
names = {component["name"]: component for component in listed["components"]}
assert all(component["licenses"] and component["version"] for component in names.values()), names
assert len(names) >= 4 and ("CUDA runtime, static" in names) == bool(has_cuda()), names
assert {"LICENSE", "THIRD_PARTY.md"} <= set(files), sorted(files)
"""
OLDEST = re.compile(r'"jax>=([\d.]+)"')


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheels", nargs="*", type=Path, help="by default those of dist/ for this processor")
    parser.add_argument("--python", action="append", help="an interpreter; several are tried in turn")
    parser.add_argument("--jax", choices=("oldest", "newest", "both"), default="oldest")
    asked = parser.parse_args()
    wheels = asked.wheels or sorted(DIST.glob(f"*{platform.machine()}.whl"))
    if not wheels:
        sys.exit(f"error: {DIST}/ holds no wheel for {platform.machine()}: make wheel")
    (oldest,) = OLDEST.findall(Path("pyproject.toml").read_text(encoding="utf-8"))
    versions = {"oldest": [f"jax=={oldest}"], "newest": ["jax"], "both": [f"jax=={oldest}", "jax"]}[asked.jax]
    for wheel in wheels:
        for python in asked.python or [sys.executable]:
            for jax in versions:
                walk(wheel.resolve(), python, jax)
    print(f"tried: {', '.join(wheel.name for wheel in wheels)}")


def walk(wheel: Path, python: str, jax: str) -> None:
    """From an empty environment to a verdict, and then what goes wrong for users."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        user = Environment(Path(folder), python)
        user.run("-m", "pip", "--quiet", "install", str(wheel), jax)
        report = user.run("-m", "jaxloss")
        print(report)
        if f"CPU kernels: {widest()};" not in report:
            sys.exit(f"error: this processor runs {widest()}, which the library does not use")
        user.run("-m", "pip", "check")
        user.run("-c", MATERIALS)

        checkout = Path(folder) / "checkout"
        shutil.copytree("jaxloss", checkout / "jaxloss", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        user.run("-c", "import jaxloss; assert jaxloss.__path__[0].endswith('checkout/jaxloss')", folder=checkout)
        print("in the folder of a checkout: found")

        user.fails("JAXLOSS_CPU_INSTRUCTION_SET=none-such: expected one", JAXLOSS_CPU_INSTRUCTION_SET="none-such")
        library = user.library()
        whole = library.read_bytes()
        library.write_bytes(whole[: len(whole) // 2])
        user.fails("is cut off")
        library.unlink()
        user.fails("is neither in")
    print(f"{wheel.name} with {python} and {jax}: works, in {time.monotonic() - start:.0f} s\n", flush=True)


def widest() -> str:
    """The instruction set that kernels should use here."""
    sys.path.insert(0, "tests/support")
    import instruction_sets  # pyright: ignore[reportMissingImports], of tests/support/

    return next(name for name in ("avx512", "avx2", "baseline") if instruction_sets.processor_has(name))


class Environment:
    """A virtual environment of that interpreter, in which nothing is installed."""

    def __init__(self, folder: Path, python: str) -> None:
        subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
        self._folder = folder
        self._python = folder / "venv" / "bin" / "python"

    def _ran(
        self, arguments: tuple[str, ...], folder: Path | None = None, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAXLOSS", "XLA"))}
        command = [str(self._python), *arguments]
        return subprocess.run(
            command,
            cwd=folder or self._folder,
            env={**kept, **(variables or {})},
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, *arguments: str, folder: Path | None = None) -> str:
        """What Python prints, which must not fail."""
        ran = self._ran(arguments, folder=folder)
        if ran.returncode:
            sys.exit(f"error: python {' '.join(arguments)} failed:\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def fails(self, words: str, **variables: str) -> None:
        """Importing jaxloss must be an ImportError with these words."""
        ran = self._ran(("-c", "import jaxloss"), variables=variables)
        last = ran.stderr.strip().splitlines()[-1:]
        if ran.returncode != 1 or not last or not last[0].startswith("ImportError: ") or words not in last[0]:
            sys.exit(f"error: expected an ImportError with {words!r}, found status {ran.returncode}: {last}")
        print(f"{last[0][:100]}…")

    def library(self) -> Path:
        return Path(self.run("-c", "import jaxloss; print(jaxloss._ffi.library.path())").strip())


if __name__ == "__main__":
    main()
