"""nvcc for this machine's GPU, for whoever compiles the check of the CUDA kernels without CMake."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def command(*flags: str) -> list[str]:
    """How to call it for the first kind of GPU that this machine has, with these flags too; without one, the end."""
    found = subprocess.run([ROOT / "tools/gpu-architectures"], capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"error: {found.stdout.strip()}")
    return command_for(found.stdout.strip().split(";")[0], "-O3", *flags)


def command_for(name: str, *flags: str) -> list[str]:
    """How to call it for that architecture, such as 90a."""
    nvcc = shutil.which("nvcc") or str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc"))
    target = f"-gencode=arch=compute_{name},code=sm_{name}"
    return [nvcc, "-std=c++17", "--expt-relaxed-constexpr", target, *flags]
