"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: no byte outside an array, nothing undefined."""

import os
import pathlib
import platform
import shutil
import subprocess

import pytest

from test_library import processor_has

pytestmark = [pytest.mark.cpu_only, pytest.mark.slow]

TESTS = pathlib.Path(__file__).parent
KERNELS = TESTS.parent / "cuda"
FLAGS = {"baseline": (16,), "avx2": (32, "-mavx2", "-mfma")}


@pytest.mark.parametrize("name", FLAGS)
def test_kernels_stay_inside_their_arrays(name, tmp_path):
    if name == "avx2" and (platform.machine() not in ("x86_64", "AMD64") or not processor_has(name)):
        pytest.skip("this processor has no AVX2")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    vector_bytes, *flags = FLAGS[name]
    program = tmp_path / "sanitized_kernels"
    # Neither optimised nor inlined: it compiles in an eighth of the time, and every load and store that is written is one
    # that is checked.
    build = [
        *(compiler, "-std=c++17", "-O0", "-g1", "-fno-math-errno", "-fno-trapping-math", *flags),
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
        *(f"-DJAXLOSS_ISA={name}", f"-DVECTOR_BYTES={vector_bytes}", f"-I{KERNELS}"),
        *("-DJAXLOSS_INLINE=inline", "-DJAXLOSS_FLATTEN="),
        *(TESTS / "sanitized_kernels.cc", "-o", program),
    ]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    # Leaks are looked for by tracing the process, which containers often forbid; every array is owned by its scope anyway.
    ran = subprocess.run(
        [program], capture_output=True, text=True, env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().endswith("kernels")
