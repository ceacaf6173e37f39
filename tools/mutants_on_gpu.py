"""CUDA mutants on this machine's GPU: compiled by nvcc, and run by their check in all of its sizes."""

import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nvcc
from nvcc import ROOT

BUILD = ROOT / "build/mutants/gpu"
CHECK = "tests/gpu/kernels_check"


def units() -> list[str]:
    """What the program is made of: files without their suffix."""
    kernels = (ROOT / "cuda/gpu").rglob("*.cu")
    return [CHECK, *sorted(str(path.relative_to(ROOT).with_suffix("")) for path in kernels)]


class Programs:
    """The program without a mutant, and with each: only the files that are about a mutant are compiled with it."""

    def __init__(self):
        self.nvcc = nvcc.command()
        self.objects = BUILD / "objects"

    def compile_all(self, pool: ThreadPoolExecutor) -> None:
        if not all(pool.map(lambda unit: self._compiled(unit, ROOT, self.objects), units())):
            sys.exit("the kernels of the checkout themselves do not compile")
        self._link(BUILD / "kernels_check", self.objects, ())

    def with_fault(self, place: int, file: str, text: str, about: Sequence[str]) -> Path | None:
        """The program with that text in place of a file's; None if it does not compile."""
        tree = BUILD / str(place)
        shutil.rmtree(tree, ignore_errors=True)
        for folder in ("cuda", "tests/gpu"):
            shutil.copytree(ROOT / folder, tree / folder)
        (tree / file).write_text(text)
        if not all(self._compiled(unit, tree, tree) for unit in about):
            return None
        self._link(tree / "kernels_check", tree, about)
        return tree / "kernels_check"

    def _compiled(self, unit: str, tree: Path, to: Path) -> bool:
        made = to / f"{unit}.o"
        made.parent.mkdir(parents=True, exist_ok=True)
        command = [*self.nvcc, f"-I{tree / 'cuda'}", "-c", str(tree / f"{unit}.cu"), "-o", str(made)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def _link(self, program: Path, tree: Path, about: Sequence[str]) -> None:
        objects = [str((tree if unit in about else self.objects) / f"{unit}.o") for unit in units()]
        subprocess.run([*self.nvcc, "-o", str(program), *objects], check=True)


Check = tuple[str, str, str]
"""A part of the check of the kernels, the type of its logits and predictions, and the GPU that an emulator is to be."""

Fault = tuple[str, str, Sequence[str], Sequence[Check]]
"""A file, what it holds with the fault, the units that are about it, and the checks."""


def tried(faults: Iterable[Fault], failing, jobs: int) -> Iterator[tuple[str, str]]:
    """What becomes of each, and by what; `failing(program, checks)` says which check does not pass, and how."""
    faults = list(faults)
    with ThreadPoolExecutor(jobs) as pool:
        programs = Programs()
        programs.compile_all(pool)
        checks = dict.fromkeys(check for *_, checks in faults for check in checks)
        if by := failing(BUILD / "kernels_check", tuple(checks)):
            sys.exit(f"without a mutant: {by}")
        made = [
            pool.submit(programs.with_fault, place, file, text, about)
            for place, (file, text, about, _) in enumerate(faults)
        ]
        for program, (*_, checks) in zip(made, faults, strict=True):
            path = program.result()
            by = "" if path is None else failing(path, checks)
            yield ("invalid", "it does not compile") if path is None else ("killed" if by else "survived", by)
