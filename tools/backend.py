"""The build backend: scikit-build-core's, which also asks for compilers that a build needs and the machine lacks."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from scikit_build_core import build as _build  # pyright: ignore[reportMissingImports], where it is not installed
from scikit_build_core.build import *  # noqa: F403, what pip calls  # pyright: ignore[reportMissingImports]

# nvcc with what it calls, its headers, and the CUDA runtime that is linked statically.
NVCC = [f"nvidia-{part}==13.0.*" for part in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")]
# Links against an older glibc than the machine's; `release` in pyproject.toml names the same.
ZIG = ["ziglang==0.17.1"]


def get_requires_for_build_wheel(config_settings=None):
    return [*_build.get_requires_for_build_wheel(config_settings), *_compilers(config_settings or {})]


def get_requires_for_build_editable(config_settings=None):
    return [*_build.get_requires_for_build_editable(config_settings), *_compilers(config_settings or {})]


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _announce(config_settings or {})
    return _build.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _announce(config_settings or {})
    return _build.build_editable(wheel_directory, config_settings, metadata_directory)


def _announce(settings) -> None:
    """Tells whoever sits at the terminal, to whom pip shows nothing of a build unless it is told `-v`."""
    if os.environ.get("JAXLOSS_ANNOUNCED"):  # by tools/environment, which shows each file
        return
    kernels = (
        "CPU and CUDA kernels, six minutes or more" if _wants_cuda(settings) else "CPU kernels, one to two minutes"
    )
    with contextlib.suppress(OSError), open("/dev/tty", "w") as terminal:
        print(f"\njaxloss: compiling {kernels}; pip's -v shows each file", file=terminal)


def _compilers(settings) -> list[str]:
    zig = ZIG if settings.get("cmake.define.JAXLOSS_GLIBC") else []
    return [*(NVCC if _wants_cuda(settings) and not _has_nvcc() else []), *zig]


def _wants_cuda(settings) -> bool:
    cuda = settings.get("cmake.define.JAXLOSS_CUDA", "AUTO")
    named = settings.get("cmake.define.JAXLOSS_CUDA_ARCHITECTURES")
    return cuda == "ON" or (cuda == "AUTO" and bool(named or _has_gpu()))


def _has_gpu() -> bool:
    return subprocess.run(["tools/gpu-architectures"], stdout=subprocess.DEVNULL, check=False).returncode == 0


def _has_nvcc() -> bool:
    toolkit = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")
    return bool(os.environ.get("CUDACXX") or shutil.which("nvcc")) or (toolkit / "bin" / "nvcc").exists()
