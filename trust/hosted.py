"""The handlers compiled with sanitizers and called without JAX: tests/support/hosted_handlers.cc from Python."""

import concurrent.futures
import ctypes
import os
import pathlib
import subprocess

import jaxlib
import numpy as np

import instruction_sets
from trust import ROOT
from trust.campaign import BUILD

SOURCES = (
    "cuda/library.cc",
    "cuda/handlers/cpu.cc",
    "cuda/cpu/instruction_set.cc",
    *(
        f"cuda/cpu/{name}.cc"
        for name in ("kernels", "elementwise", "cross_entropy", "cross_entropy_options", "divergence")
    ),
    "tests/support/hosted_handlers.cc",
)
INCLUDES = (
    f"-I{ROOT / 'cuda'}",
    f"-I{ROOT / 'tests/support'}",
    "-isystem",
    str(pathlib.Path(jaxlib.__file__).parent / "include"),
)
NOT_OPTIMISED = ("-O0", "-g1", "-fno-omit-frame-pointer", "-DJAXLOSS_INLINE=inline", "-DJAXLOSS_FLATTEN=")
"""Quick to compile, and each load and store that is written is one that is checked."""

ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TYPES = {
    "bool": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint8": 6, "uint16": 7, "uint32": 8, "uint64": 9,
    "float16": 10, "float32": 11, "float64": 12, "complex64": 15, "bfloat16": 16, "complex128": 18,
}  # fmt: skip
"""`XLA_FFI_DataType` of each type."""

ARRAY, SCALAR, TEXT = 1, 3, 4
"""`XLA_FFI_AttrType`."""


def build() -> pathlib.Path:
    """The shared object, for the instruction set that every processor has."""
    folder = BUILD / "hosted"
    folder.mkdir(parents=True, exist_ok=True)
    flags = (
        *("-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", *NOT_OPTIMISED, *ADDRESS, *INCLUDES),
        *("-DJAXLOSS_ISA=baseline", "-DVECTOR_BYTES=16", '-DJAXLOSS_VERSION="of a campaign"'),
    )

    def compiled(source: str) -> pathlib.Path:
        made = folder / f"{pathlib.Path(source).stem}.o"
        _run([instruction_sets.compiler(), *flags, "-c", str(ROOT / source), "-o", str(made)])
        return made

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, SOURCES))
    library = folder / "hosted.so"
    _run([instruction_sets.compiler(), "-shared", *ADDRESS, "-pthread", *map(str, objects), "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ran.stderr}")


def environment() -> dict[str, str]:
    """Variables with which Python loads that library: the sanitizer has to be there before anything else."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    command = (instruction_sets.compiler(), "-print-file-name=")
    files = [
        subprocess.run([command[0], command[1] + name], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    ]
    # Python frees little before it ends: what it leaves says nothing.
    options = {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return {**os.environ, **options, "LD_PRELOAD": " ".join(files), "JAX_PLATFORMS": "cpu", "PYTHONMALLOC": "malloc"}


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("sizes", ctypes.c_void_p),
    )


class _Attribute(ctypes.Structure):
    _fields_ = (
        *(("name", ctypes.c_char_p), ("kind", ctypes.c_int32), ("type", ctypes.c_int32)),
        *(("size", ctypes.c_int64), ("data", ctypes.c_void_p)),
    )


class _Target(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("platform", ctypes.c_char_p), ("handler", ctypes.c_void_p))


class Hosted:
    """The handlers of a library that `build` has made."""

    def __init__(self, library: pathlib.Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.jaxloss_target.restype = _Target
        self._library.jaxloss_target.argtypes = (ctypes.c_int64,)
        self._library.jaxloss_target_count.restype = ctypes.c_int64
        targets = [self._library.jaxloss_target(i) for i in range(self._library.jaxloss_target_count())]
        self.handlers = {target.name.decode(): target.handler for target in targets}
        self._message = ctypes.create_string_buffer(2000)

    def __call__(
        self, name: str, operands: list[np.ndarray], results: list[np.ndarray], attributes: dict
    ) -> tuple[int, str]:
        """The code of the error, 0 for none, and its message."""
        kept: list[np.ndarray] = []  # until the call is over

        def buffers(arrays):
            made = (_Buffer * max(1, len(arrays)))()
            for i, array in enumerate(arrays):
                sizes = np.array(array.shape or (0,), np.int64)
                kept.append(sizes)
                made[i] = _Buffer(TYPES[array.dtype.name], array.ctypes.data, array.ndim, sizes.ctypes.data)
            return made

        given = (_Attribute * max(1, len(attributes)))()
        for i, (key, value) in enumerate(attributes.items()):
            array = np.frombuffer(value.encode(), np.uint8) if isinstance(value, str) else np.atleast_1d(value)
            kept.append(array)
            kind = TEXT if isinstance(value, str) else ARRAY if np.ndim(value) else SCALAR
            given[i] = _Attribute(key.encode(), kind, TYPES[array.dtype.name], array.size, array.ctypes.data)
        code = self._library.hosted_call(
            ctypes.c_void_p(self.handlers[name]),
            *(buffers(operands), ctypes.c_int64(len(operands)), buffers(results), ctypes.c_int64(len(results))),
            *(given, ctypes.c_int64(len(attributes)), self._message, ctypes.c_int64(len(self._message))),
        )
        return code, self._message.value.decode(errors="replace") if code else ""
