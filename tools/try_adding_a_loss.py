"""Follows docs/adding_a_loss.diff: adds a loss to a copy of the checkout, builds that, and runs the tests about it.

First the kernel alone: the tests then have to say, one sentence each, what is missing where.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import checkout_copy
from checkout_copy import ROOT

DIFF = ROOT / "docs" / "adding_a_loss.diff"
NAME = "cauchy"
MISSING = (
    f"jaxloss/__init__.py exports no {NAME}",
    f"tests/support/losses.py has no {NAME} in ELEMENTWISE",
    f"jaxloss/__main__.py checks no {NAME}",
    f"docs/choosing.md has no word of {NAME}",
)
TESTS = ["every_loss", "regression", "formulas", "handlers", "docstrings", "debug_checks", "symbolic_classes"]
BASELINE = ("-Ccmake.define.CMAKE_SYSTEM_NAME=Linux", "-Ccmake.define.CMAKE_SYSTEM_PROCESSOR=generic")
"""Kernels of one instruction set compile in a third of the time."""


def checked(what: str, ran: subprocess.CompletedProcess[str]) -> None:
    if ran.returncode:
        sys.exit(f"error: {what}:\n{(ran.stdout + (ran.stderr or ''))[-6000:]}")


def run(folder: pathlib.Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=os.environ | environment, text=True, capture_output=True)


def apply(tree: pathlib.Path, *which: str) -> None:
    checked(
        f"{DIFF.relative_to(ROOT)} no longer fits the tree: make the change of a new loss by hand and store its diff",
        run(tree, "git", "apply", "-C1", *which, str(DIFF), GIT_CEILING_DIRECTORIES=str(tree.parent)),
    )


def built(tree: pathlib.Path, site: pathlib.Path) -> None:
    """Puts the library of the copy there."""
    command = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), ".")
    checked("the build", run(tree, *command, "-Ccmake.define.JAXLOSS_CUDA=OFF", *BASELINE))
    shutil.copy(site / "jaxloss" / "libjaxloss.so", tree / "jaxloss")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        tree = pathlib.Path(temporary) / "jaxloss"
        checkout_copy.copy_to(tree)
        apply(tree, "--include=cuda/*")
        built(tree, pathlib.Path(temporary) / "site")
        with_kernel_alone = checkout_copy.pytest(tree, ["every_loss"], "-k", NAME)
        for sentence in MISSING:
            if sentence not in with_kernel_alone.stdout:
                sys.exit(f"error: with a kernel alone no test says {sentence!r}:\n{with_kernel_alone.stdout[-6000:]}")
        apply(tree, "--exclude=cuda/*")
        whole = checkout_copy.pytest(tree, TESTS, "-k", NAME)
        checked("the tests of the new loss", whole)
        print(f"{NAME} was added by {DIFF.relative_to(ROOT)}: {whole.stdout.splitlines()[-1]}")


if __name__ == "__main__":
    main()
