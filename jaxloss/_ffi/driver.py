"""The NVIDIA driver of this machine, asked without starting it: whether it runs the CUDA kernels of this build."""

import ctypes


def cuda_version() -> int | None:
    """The newest CUDA that the driver runs, as 1000 · major + 10 · minor; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int(0)
        if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value or None


def written(version: int) -> str:
    """A version of CUDA as people write it."""
    return f"{version // 1000}.{version % 1000 // 10}"


def too_old(runtime: int) -> str | None:
    """Why the driver does not run kernels of that CUDA runtime; None if it does, or if there is no driver.

    A runtime wants a driver of its own major version or a newer one. Where there is no driver nothing runs, but
    programs can be compiled for machines that have one.
    """
    found = cuda_version()
    if found is None or found // 1000 >= runtime // 1000:
        return None
    return (
        f"the NVIDIA driver of this machine runs CUDA {written(found)}, "
        f"these kernels want {runtime // 1000}.0 or newer: update the driver, or build jaxloss with a CUDA toolkit "
        f"{found // 1000}"
    )
