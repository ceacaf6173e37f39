"""What every measurement is kept with: where, with what, and on which commit it ran."""

import contextlib
import functools
import json
import os
import pathlib
import platform
import subprocess
from importlib import metadata

import jax

import jaxloss

RESULTS = pathlib.Path(__file__).with_name("results")
PACKAGES = ("jax", "jaxlib", "jaxloss", "optax", "torch", "triton", "liger-kernel", "tokamax", "jax-cce")
"""Whose versions are kept, of those that are installed."""


def circumstances() -> dict:
    """The device, the versions and the commit."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "kernels": str(jaxloss.backends()),
        "versions": _versions(),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@functools.cache  # as it was when the run began
def _commit() -> str | None:
    if commit := os.environ.get("JAXLOSS_COMMIT"):  # for a copy of the tree without its history
        return commit
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with changes" if changed.strip() else "")


def failed(error: Exception) -> dict[str, str]:
    """What is kept of a contender that raised this, in place of its measurement."""
    return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def write(name: str, measurements: list[dict], directory: str | None = None) -> pathlib.Path:
    """Writes the measurements as `name`.json and returns where."""
    path = pathlib.Path(directory or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**circumstances(), "measurements": measurements}, indent=1) + "\n")
    return path
