"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: no byte outside an array, nothing undefined."""

import os
import subprocess

import pytest

from instruction_sets import compiled, processor_has

pytestmark = [pytest.mark.cpu_only, pytest.mark.slow]


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_kernels_stay_inside_their_arrays(name, tmp_path):
    if not processor_has(name):
        pytest.skip(f"this processor has no {name}")
    # Neither optimised nor inlined: it compiles in an eighth of the time, and every load and store that is written is one
    # that is checked.
    flags = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    flags += ["-DJAXLOSS_INLINE=inline", "-DJAXLOSS_FLATTEN="]
    program = compiled("sanitized_kernels.cc", name, tmp_path, *flags)
    # Leaks are looked for by tracing the process, which containers often forbid; every array is owned by its scope anyway.
    ran = subprocess.run(
        [program], capture_output=True, text=True, env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().endswith("kernels")
