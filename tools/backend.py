"""The build backend: scikit-build-core's, which also asks for compilers that a build needs and the machine lacks."""

import os
import shutil
import subprocess
from pathlib import Path

from scikit_build_core import build as _build
from scikit_build_core.build import *  # noqa: F403, what pip calls

# nvcc with what it calls, its headers, and the CUDA runtime that is linked statically.
NVCC = [f"nvidia-{part}==13.0.*" for part in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")]
# Links against an older glibc than the machine's; `release` in pyproject.toml names the same.
ZIG = ["ziglang==0.17.1"]


def get_requires_for_build_wheel(config_settings=None):
    return [*_build.get_requires_for_build_wheel(config_settings), *_compilers(config_settings or {})]


def get_requires_for_build_editable(config_settings=None):
    return [*_build.get_requires_for_build_editable(config_settings), *_compilers(config_settings or {})]


def _compilers(settings) -> list[str]:
    cuda = settings.get("cmake.define.JAXLOSS_CUDA", "AUTO")
    named = settings.get("cmake.define.JAXLOSS_CUDA_ARCHITECTURES")
    wants_nvcc = cuda == "ON" or (cuda == "AUTO" and (named or _has_gpu()))
    zig = ZIG if settings.get("cmake.define.JAXLOSS_GLIBC") else []
    return [*(NVCC if wants_nvcc and not _has_nvcc() else []), *zig]


def _has_gpu() -> bool:
    return subprocess.run(["tools/gpu-architectures"], stdout=subprocess.DEVNULL, check=False).returncode == 0


def _has_nvcc() -> bool:
    toolkit = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")
    return bool(os.environ.get("CUDACXX") or shutil.which("nvcc")) or (toolkit / "bin" / "nvcc").exists()
