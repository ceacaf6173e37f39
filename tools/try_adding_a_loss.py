"""Follows docs/adding_a_loss.diff: adds a loss to a copy of the checkout, builds that, and runs the tests about it.

First the kernel alone: the tests then have to say, one sentence each, what is missing where.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
DIFF = ROOT / "docs" / "adding_a_loss.diff"
NAME = "cauchy"
MISSING = (
    f"jaxloss/__init__.py exports no {NAME}",
    f"tests/support/losses.py has no {NAME} in ELEMENTWISE",
    f"jaxloss/__main__.py checks no {NAME}",
    f"docs/choosing.md has no word of {NAME}",
)
TESTS = ("every_loss", "regression", "formulas", "handlers", "docstrings", "debug_checks", "symbolic_classes")


def fail(message: str) -> None:
    sys.exit(f"error: {message}")


def run(folder: pathlib.Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def checked(what: str, ran: subprocess.CompletedProcess[str]) -> None:
    if ran.returncode:
        fail(f"{what}:\n{ran.stdout[-6000:]}")


def copy(folder: pathlib.Path) -> None:
    """The files that git knows or would know, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def apply(folder: pathlib.Path, *which: str) -> None:
    checked(
        f"{DIFF.relative_to(ROOT)} no longer fits the tree: make the change of a new loss by hand and store its diff",
        run(folder, "git", "apply", "-C1", *which, str(DIFF), GIT_CEILING_DIRECTORIES=str(folder.parent)),
    )


def tested(folder: pathlib.Path, names: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    files = [str(path.relative_to(folder)) for name in names for path in folder.glob(f"tests/*/test_{name}.py")]
    command = (sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-k", NAME, *files)
    return run(folder, *command, PYTHONPATH=str(folder))


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "jaxloss"
        copy(folder)
        apply(folder, "--include=cuda/*")
        site = pathlib.Path(temporary) / "site"
        install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), ".")
        checked("the build", run(folder, *install, "-C", "cmake.define.JAXLOSS_CUDA=OFF"))
        shutil.copy(site / "jaxloss" / "libjaxloss.so", folder / "jaxloss")
        with_kernel_alone = tested(folder, ("every_loss",))
        for sentence in MISSING:
            if sentence not in with_kernel_alone.stdout:
                fail(f"with a kernel alone no test says {sentence!r}:\n{with_kernel_alone.stdout[-6000:]}")
        apply(folder, "--exclude=cuda/*")
        whole = tested(folder, TESTS)
        checked("the tests of the new loss", whole)
        print(f"{NAME} was added by {DIFF.relative_to(ROOT)}: {whole.stdout.splitlines()[-1]}")


if __name__ == "__main__":
    main()
