"""The shared object: find it, load it, register its custom call targets with JAX."""

import ctypes
import dataclasses
import os
import pathlib
import sys

import jax
import jax.export

from jaxloss._ffi import driver, shared_object
from jaxloss._version import __version__

CALLING_CONVENTION = 2
"""What this folder gives the targets and expect of them, as `cuda/library.cc` has it: both numbers change
together."""

_FILE_NAME = "libjaxloss.so"
_HOW_TO_BUILD = "build it with `pip install .` in a checkout of jaxloss, or reinstall the package"
_INSTRUCTION_SET = "JAXLOSS_CPU_INSTRUCTION_SET"


class _ExportedTarget(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("platform", ctypes.c_char_p), ("handler", ctypes.c_void_p))


@dataclasses.dataclass(frozen=True)
class Backends:
    """The kernels that this build of jaxloss holds.

    Attributes:
        cpu: the instruction set of the CPU kernels in use: `"avx512"`, `"avx2"` or `"baseline"` (SSE2 or NEON).
        cuda: the GPU architectures with kernels, such as `("80", "90a")`; empty for a build without CUDA and where the
            driver is too old for its kernels: exports for `cuda` then hold the plain formulas.
        without_cuda: why `cuda` is empty; `""` where it is not.
    """

    cpu: str
    cuda: tuple[str, ...]
    without_cuda: str = ""

    def __str__(self) -> str:
        cuda = ", ".join(f"sm_{architecture}" for architecture in self.cuda) or (
            f"none, for {self.without_cuda}; so the plain formulas run on a GPU, and are what an export for it holds"
        )
        return f"CPU kernels: {self.cpu}; CUDA kernels: {cuda}"


def path() -> pathlib.Path:
    """Where the compiled library is."""
    # In a checkout the package's folder is found first and holds no library: the installed one does.
    beside = [pathlib.Path(directory) for directory in sys.modules["jaxloss"].__path__]
    installed = [pathlib.Path(entry or ".") / "jaxloss" for entry in sys.path]
    for directory in (*beside, *installed):
        if (directory / _FILE_NAME).is_file():
            return directory / _FILE_NAME
    looked = ", ".join(map(str, beside))
    raise ImportError(f"jaxloss's compiled library {_FILE_NAME} is neither in {looked} nor installed: {_HOW_TO_BUILD}")


def _load() -> ctypes.CDLL:
    file = path()
    if why := shared_object.fault(file):
        raise ImportError(f"jaxloss's compiled library {file} does not load ({why}): {_HOW_TO_BUILD}")
    if other := shared_object.loaded_already(_FILE_NAME, file):
        raise ImportError(
            f"another copy of jaxloss's compiled library is loaded in this process: {other}, and {file} would be the "
            "second. JAX takes custom calls of one copy only: start Python anew, with one copy on sys.path"
        )
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise ImportError(f"jaxloss's compiled library {file} does not load ({error}): {_HOW_TO_BUILD}") from error
    try:
        _declare(library)
    except AttributeError as error:
        raise ImportError(
            f"jaxloss is version {__version__}, its compiled library {file} is of another ({error}): {_HOW_TO_BUILD}"
        ) from error
    if (found := library.jaxloss_version().decode()) != __version__:
        raise ImportError(f"jaxloss is version {__version__}, its compiled library {file} is {found}: {_HOW_TO_BUILD}")
    if (found := library.jaxloss_calling_convention()) != CALLING_CONVENTION:
        raise ImportError(
            f"jaxloss calls its compiled library {file} by convention {CALLING_CONVENTION}, that is called by {found}: "
            f"{_HOW_TO_BUILD}"
        )
    return library


def _declare(library: ctypes.CDLL) -> None:
    library.jaxloss_target_count.restype = ctypes.c_int64
    library.jaxloss_target.restype = _ExportedTarget
    library.jaxloss_target.argtypes = [ctypes.c_int64]
    library.jaxloss_calling_convention.restype = ctypes.c_int64
    library.jaxloss_cuda_runtime.restype = ctypes.c_int64
    for text in ("version", "cpu_instruction_sets", "cpu_instruction_set", "cuda_architectures"):
        getattr(library, f"jaxloss_{text}").restype = ctypes.c_char_p


def _names(text: bytes) -> tuple[str, ...]:
    return tuple(filter(None, text.decode().split(",")))


def _backends_of(library: ctypes.CDLL) -> Backends:
    wanted, usable = os.environ.get(_INSTRUCTION_SET), _names(library.jaxloss_cpu_instruction_sets())
    if wanted and wanted not in usable:
        raise ImportError(
            f"{_INSTRUCTION_SET}={wanted}: expected one that this library has and this processor runs, "
            f"{', '.join(usable)}, or nothing for the first of them"
        )
    cuda, without = _names(library.jaxloss_cuda_architectures()), "this build has none"
    if cuda:
        without = driver.too_old(library.jaxloss_cuda_runtime()) or ""
    return Backends(library.jaxloss_cpu_instruction_set().decode(), () if without else cuda, without)


def target_name(name: str) -> str:
    """The custom call target `name` as JAX knows it: executables that are kept may not meet another convention."""
    return f"jaxloss_{name}_v{CALLING_CONVENTION}"


def _register(library: ctypes.CDLL, platforms: tuple[str, ...]) -> frozenset[str]:
    """Makes the library's targets for those platforms known to JAX, and returns their names."""
    names = set()
    for i in range(library.jaxloss_target_count()):
        target = library.jaxloss_target(i)
        name, platform = target.name.decode(), target.platform.decode()
        if platform.lower() not in platforms:
            continue
        # `jax.ffi.pycapsule` wants a ctypes function; the address of the handler is all it takes from it.
        handler = ctypes.CFUNCTYPE(ctypes.c_void_p)(target.handler)
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform=platform)
        names.add(name)
    return frozenset(names)


_library = _load()
_backends = _backends_of(_library)

PLATFORMS = ("cpu", "cuda") if _backends.cuda else ("cpu",)
"""The platforms that have kernels, as `jax.lax.platform_dependent` names them."""

TARGETS = _register(_library, PLATFORMS)
"""The names of all custom call targets."""

PARTITIONED_TARGET = target_name("partitioned")
"""What `_partitioning.partitioned` calls, which no compiled program holds: XLA's partitioner replaces it."""


def export_checks() -> list[jax.export.DisabledSafetyCheck]:
    """What `jax.export.export` wants as `disabled_checks`, for a program with losses of jaxloss.

    JAX asks that custom calls it does not know be allowed by name. Whoever runs the artefact must have imported
    jaxloss, of a version that calls its kernels as this one does; otherwise JAX says which custom call it does not
    find.

    Returns:
        A check for each custom call that a loss may make on any platform, sorted by name.

    >>> import jax, jax.export, jax.numpy as jnp
    >>> import jaxloss
    >>> pred = jax.ShapeDtypeStruct((8, 1024), jnp.float32)
    >>> step = jax.jit(jax.value_and_grad(jaxloss.mse))
    >>> artefact = jax.export.export(step, disabled_checks=jaxloss.export_checks())(pred, pred)
    >>> print(artefact.out_avals)
    (ShapedArray(float32[]), ShapedArray(float32[8,1024]))
    """
    return [jax.export.DisabledSafetyCheck.custom_call(name) for name in sorted({*TARGETS, PARTITIONED_TARGET})]


def backends() -> Backends:
    """Which kernels this build of jaxloss holds.

    On a platform that has none (a TPU, or a GPU where the build had no CUDA compiler) the losses are computed by their
    plain formulas, with the same results. `jax.export` for such a platform gives the plain formula too, for good: an
    artefact for `cuda` that is to call kernels must be exported by a build that holds CUDA kernels, with a GPU or
    without.

    Returns:
        A `Backends` with the CPU's instruction set and the GPU architectures.

    >>> import jaxloss
    >>> jaxloss.backends().cpu in ("avx512", "avx2", "baseline")
    True
    """
    return _backends
