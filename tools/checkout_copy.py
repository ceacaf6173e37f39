"""A copy of the checkout, for tools that change it, and pytest there."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def copy_to(tree: pathlib.Path) -> None:
    """Makes a folder what the checkout is; what has not changed keeps its time, so that little is compiled again."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            write(tree, name, (ROOT / name).read_bytes())


def write(tree: pathlib.Path, name: str, content: bytes) -> None:
    """One file of the copy."""
    target = tree / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if name == "CMakeLists.txt":
        content = content.replace(b"-O3", b"-O1")  # which compiles in a third of the time
    if not target.is_file() or target.read_bytes() != content:
        target.write_bytes(content)


def pytest(
    tree: pathlib.Path, names: list[str], *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the tests of these names in the copy, all of them if there are none, in one process."""
    files = [path for name in names for path in (ROOT / "tests").glob(f"*/test_{name}.py")]
    paths = [str(path.relative_to(ROOT)) for path in files] or ["tests"]
    command = [sys.executable, "-c", _PYTEST, str(ROOT / "tools"), str(tree)]
    options = ["-q", "--no-header", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tree), **environment}
    return subprocess.run([*command, *options, *paths], cwd=tree, env=environment, capture_output=True, text=True)


_PYTEST = """
import sys
# An editable installation finds the checkout before it looks along PYTHONPATH.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ScikitBuildRedirectingFinder"]
import jaxloss, pytest
assert jaxloss.__file__.startswith(sys.argv[2]), jaxloss.__file__
sys.path.append(sys.argv[1])  # for plugins
sys.exit(pytest.main(sys.argv[3:]))
"""
