"""The shared object: what it says of itself, what is said when it is missing, every instruction set, every size of work."""

import dataclasses
import os
import pathlib
import platform
import re
import shutil
import struct
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import forks
import jaxloss
import tolerance
from agreement import assert_agrees
from instruction_sets import processor_has
from jaxloss import __main__
from jaxloss._ffi import driver as _driver
from jaxloss._ffi import library as _library
from losses import CASES

pytestmark = pytest.mark.cpu_only


def python(code, **environment):
    """Runs a program in a process of its own; the result has its output and its errors."""
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)


KEPT = {
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir or ""),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""The programs of this process, and of others that ran before, need not be compiled again."""


def test_two_interpreters_do_not_build_in_one_folder():
    project = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text())
    folder = project["tool"]["scikit-build"]["build-dir"]
    tags = {"wheel_tag": "py3-none-any", "build_type": "Release", "state": "wheel"}  # the same for every interpreter
    assert folder.format(cache_tag="cpython-311", **tags) != folder.format(cache_tag="cpython-313", **tags)


def test_backends():
    backends = jaxloss.backends()
    assert backends.cpu in ("avx512", "avx2", "baseline")
    assert isinstance(backends.cuda, tuple)
    assert ("cuda" in _library.PLATFORMS) == bool(backends.cuda)
    assert backends.cpu in str(backends)
    assert ("export" in str(backends)) == (not backends.cuda)
    without_cuda = str(dataclasses.replace(backends, cuda=(), without_cuda="a reason"))
    assert "CUDA kernels: none, for a reason" in without_cuda
    assert "plain formulas" in without_cuda
    with_cuda = str(dataclasses.replace(backends, cuda=("80", "90a"), without_cuda=""))
    assert with_cuda.endswith("CUDA kernels: sm_80, sm_90a")
    with pytest.raises(AttributeError):
        backends.cpu = "other"


def test_import_needs_no_gpu():
    ran = python("import jaxloss, jax; print(jaxloss.backends(), jax.devices()[0].platform)", CUDA_VISIBLE_DEVICES="")
    assert ran.returncode == 0, ran.stderr
    assert "cpu" in ran.stdout


def test_import_starts_no_backend():
    """Nor does it compile anything: settings that must come before the first device still can."""
    code = "import jaxloss, jax\njax.config.update('jax_num_cpu_devices', 3)\nprint(len(jax.devices('cpu')))"
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")).strip()
    ran = python(code, XLA_FLAGS=flags)
    assert ran.stdout.strip() == "3", ran.stderr


@pytest.fixture
def copied_package(tmp_path):
    """The package's Python files in a folder of their own, with the library and, beside it, what pip writes."""
    package = tmp_path / "jaxloss"
    shutil.copytree(
        pathlib.Path(jaxloss.__file__).parent, package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copy(_library.path(), package)
    metadata = tmp_path / f"jaxloss-{jaxloss.__version__}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: jaxloss\nVersion: {jaxloss.__version__}\n")
    return package


# The jaxloss that is installed here, editable or not, must not serve the copy; JAX may be installed beside it.
IMPORT_COPY = """
import os, pathlib, sys
import jax
def is_installed(entry):
    return entry != os.environ["PYTHONPATH"] and pathlib.Path(entry, "jaxloss", "libjaxloss.so").exists()
sys.meta_path[:] = [finder for finder in sys.meta_path if "Scikit" not in type(finder).__name__]
sys.path[:] = [entry for entry in sys.path if not is_installed(entry)]
import jaxloss
print(jaxloss.__file__)
"""


def shared_object(path, source: str):
    """Compiles C."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    build = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", path]
    subprocess.run(build, input=source, text=True, check=True)


def import_error(package, code=IMPORT_COPY, **environment) -> str:
    """The last line that importing the copy printed."""
    ran = forks.run(code, path=package.parent, **environment)
    assert ran.returncode == 1, ran.stderr
    return ran.stderr.strip().splitlines()[-1]


def test_the_copy_is_what_is_imported(copied_package):
    ran = forks.run(IMPORT_COPY, path=copied_package.parent)
    assert ran.stdout.strip() == str(copied_package / "__init__.py"), ran.stderr


def test_a_missing_library_is_one_clear_error(copied_package):
    (copied_package / "libjaxloss.so").unlink()
    message = import_error(copied_package)
    assert message.startswith("ImportError: ")
    for word in ("libjaxloss.so", str(copied_package), "pip install"):
        assert word in message


def test_a_library_that_does_not_load_is_one_clear_error(copied_package):
    (copied_package / "libjaxloss.so").write_bytes(b"not a library")
    message = import_error(copied_package)
    assert message.startswith("ImportError: ")
    for word in ("libjaxloss.so", "does not load", "pip install"):
        assert word in message


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_library_that_is_cut_off_is_one_clear_error(copied_package, share):
    library = copied_package / "libjaxloss.so"
    whole = library.read_bytes()
    library.write_bytes(whole[: int(share * len(whole))])
    message = import_error(copied_package)
    assert message.startswith("ImportError: ")
    for word in ("libjaxloss.so", "is cut off", f"{int(share * len(whole))} bytes of ", "pip install"):
        assert word in message


def test_a_segment_without_bytes_may_begin_behind_the_end(copied_package):
    library = copied_package / "libjaxloss.so"
    of_file = bytearray(library.read_bytes())
    (segments,) = struct.unpack_from("<Q", of_file, 32)
    size, count = struct.unpack_from("<HH", of_file, 54)
    stack = 0x6474E551  # says how the stack is mapped, and has no bytes
    headers = [segments + size * i for i in range(count)]
    (header,) = [at for at in headers if struct.unpack_from("<I", of_file, at)[0] == stack]
    assert struct.unpack_from("<Q", of_file, header + 32) == (0,)
    struct.pack_into("<Q", of_file, header + 8, len(of_file) + 4096)
    library.write_bytes(of_file)
    ran = forks.run(IMPORT_COPY, path=copied_package.parent)
    assert ran.stdout.strip() == str(copied_package / "__init__.py"), ran.stderr


def test_a_library_of_another_processor_is_one_clear_error(copied_package):
    library = copied_package / "libjaxloss.so"
    of_file = bytearray(library.read_bytes())
    of_file[18:20] = (62 if platform.machine() != "x86_64" else 183).to_bytes(2, "little")
    library.write_bytes(of_file)
    message = import_error(copied_package)
    for word in ("ImportError: ", "is for another processor", platform.machine(), "pip install"):
        assert word in message


def test_a_library_of_another_kind_is_one_clear_error(copied_package):
    """Of another program, or of a version of jaxloss that had fewer symbols."""
    shared_object(copied_package / "libjaxloss.so", "int other(void) { return 1; }")
    message = import_error(copied_package)
    for word in ("ImportError: ", "is of another", "jaxloss_target_count", "pip install"):
        assert word in message


AGAIN = """
for name in [name for name in sys.modules if name.split(".")[0] == "jaxloss"]:
    del sys.modules[name]
"""


def test_a_second_copy_in_one_process_is_one_clear_error(copied_package, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(copied_package, second / "jaxloss")
    message = import_error(copied_package, f"{IMPORT_COPY}{AGAIN}sys.path.insert(0, {str(second)!r})\nimport jaxloss")
    for word in ("ImportError: another copy", str(copied_package), str(second), "start Python anew"):
        assert word in message


def test_the_same_copy_can_be_imported_again(copied_package):
    ran = forks.run(f"{IMPORT_COPY}{AGAIN}import jaxloss\nprint(jaxloss.mse(1.0, 3.0))", path=copied_package.parent)
    assert ran.stdout.splitlines()[1:] == ["2.0"], ran.stderr


@pytest.mark.parametrize("name", ["avx3", "AVX2"])
def test_an_unknown_instruction_set_is_one_clear_error(copied_package, name):
    message = import_error(copied_package, JAXLOSS_CPU_INSTRUCTION_SET=name)
    for word in (f"ImportError: JAXLOSS_CPU_INSTRUCTION_SET={name}: expected one", "baseline"):
        assert word in message


def test_in_a_checkout_the_installed_library_is_found(copied_package, tmp_path):
    """Python finds the checkout's own folder first, which holds no library."""
    checkout = tmp_path / "checkout"
    shutil.copytree(copied_package, checkout / "jaxloss", ignore=shutil.ignore_patterns("*.so"))
    code = f"{IMPORT_COPY}print(jaxloss._ffi.library.path())"
    ran = forks.run(code, path=copied_package.parent, folder=checkout)
    expected = [str(checkout / "jaxloss" / "__init__.py"), str(copied_package / "libjaxloss.so")]
    assert ran.stdout.splitlines() == expected, ran.stderr


DRIVER = """
#include <stdlib.h>
int cuDriverGetVersion(int* version) {
  *version = atoi(getenv("STUB_CUDA_VERSION"));
  return *version == 0;
}
"""


# The newest CUDA of a driver, the runtime of the kernels, and what is said of the two.
DRIVERS = [
    (12040, 13000, "runs CUDA 12.4, these kernels want 13.0"),
    (11080, 12090, "runs CUDA 11.8, these kernels want 12.0"),
    (13000, 13000, None),
    (13010, 13000, None),
    (14000, 13000, None),
    (13000, 13020, None),  # of one major version, an older driver runs what a newer toolkit made
    (0, 13000, None),  # the driver does not know
]

TOO_OLD = f"""
import os
from jaxloss._ffi import driver
for version, runtime, _ in {DRIVERS}:
    os.environ["STUB_CUDA_VERSION"] = str(version)
    print(driver.too_old(runtime))
"""


def test_an_old_driver(tmp_path):
    """A stub takes the place of NVIDIA's library; with CUDA kernels, the import asks it too."""
    shared_object(tmp_path / "libcuda.so.1", DRIVER)
    found_first = f"{tmp_path}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    ran = python(TOO_OLD, LD_LIBRARY_PATH=found_first, STUB_CUDA_VERSION="13000")
    assert ran.returncode == 0, ran.stderr
    for said, (version, runtime, why) in zip(ran.stdout.splitlines(), DRIVERS, strict=True):
        if why is None:
            assert said == "None", (version, runtime)
        else:
            assert why in said
            assert "update the driver" in said


class LibraryWithCuda:
    """What a library built with CUDA says of itself."""

    jaxloss_cuda_architectures = staticmethod(lambda: b"80,90a")
    jaxloss_cuda_runtime = staticmethod(lambda: 13000)
    jaxloss_cpu_instruction_set = staticmethod(lambda: b"avx2")
    jaxloss_cpu_instruction_sets = staticmethod(lambda: b"avx2,baseline")


@pytest.mark.parametrize(("driver", "cuda"), [(12080, ()), (13000, ("80", "90a")), (None, ("80", "90a"))])
def test_kernels_are_used_where_the_driver_runs_them(monkeypatch, driver, cuda):
    monkeypatch.delenv("JAXLOSS_CPU_INSTRUCTION_SET", raising=False)
    monkeypatch.setattr(_driver, "cuda_version", lambda: driver)
    backends = _library._backends_of(LibraryWithCuda)
    assert backends.cuda == cuda
    assert ("runs CUDA 12.8" in str(backends)) == (not cuda)
    assert ("plain formulas run" in str(backends)) == (not cuda)


def test_the_self_check():
    ran = python("import runpy; runpy.run_module('jaxloss', run_name='__main__', alter_sys=True)", **KEPT)
    assert ran.returncode == 0, ran.stderr
    for word in (
        jaxloss.__version__,
        jax.__version__,
        str(_library.path()),
        jaxloss.backends().cpu,
        "jaxloss works here",
    ):
        assert word in ran.stdout
    *_, without_paths = ran.stdout.partition("kernels ")
    assert all(len(line) <= 100 for line in without_paths.splitlines())
    checked = [
        line.split()[0].rstrip(",") for line in ran.stdout.splitlines() if re.fullmatch(r"  \w.* \d\.\de.\d+", line)
    ]
    public = {name for name in jaxloss.__all__ if f"d_{name}" in jaxloss.__all__} | {
        "linear_cross_entropy",
        "sigmoid_contrastive",
    }
    assert set(checked) == public


def test_a_loss_that_is_wrong_fails_the_self_check(monkeypatch, capsys):
    monkeypatch.setattr(jaxloss, "huber", lambda x, a: jaxloss.mae(x, a))
    assert __main__.main() == 1
    printed = capsys.readouterr().out
    assert re.search(r"  huber .* WRONG", printed)
    assert "1 of " in printed.splitlines()[-1]


def test_a_library_of_another_version_is_one_clear_error(copied_package):
    (copied_package / "_version.py").write_text('__version__ = "999.0"\n')
    message = import_error(copied_package)
    assert message.startswith("ImportError: ")
    for word in ("999.0", _library._library.jaxloss_version().decode(), "pip install"):
        assert word in message


def test_a_library_that_is_called_in_another_way_is_one_clear_error(copied_package):
    module = copied_package / "_ffi" / "library.py"
    own = f"CALLING_CONVENTION = {_library.CALLING_CONVENTION}"
    assert own in module.read_text()
    module.write_text(module.read_text().replace(own, "CALLING_CONVENTION = 999"))
    message = import_error(copied_package)
    assert message.startswith("ImportError: ")
    for word in ("999", f"called by {_library.CALLING_CONVENTION}", "pip install"):
        assert word in message


RESULTS = """
import sys
sys.path.insert(0, {support!r})
import jax, jaxloss, numpy as np
from agreement import assert_agrees
from instruction_sets import processor_has
from losses import CASES
assert jaxloss.backends().cpu == {name!r}, jaxloss.backends()
for case in CASES:
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        assert_agrees(case, *case.sample((3, 77), dtype))
    x, a = case.sample((2, 33))
    x[0, 3] = x[1, 32] = -np.inf if case.loss.has_clip else np.nan
    if case.of_target:
        a[0, 3] = a[1, 32] = 0
    assert_agrees(case, x, a)
    for shape in ((2, 1), (2, 9), (2, 16), (2, 1000), (37, 5), (37, 64)):
        assert_agrees(case, *case.sample(shape, scale=20))
print("agreed")
"""


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(name):
    if not processor_has(name):
        pytest.skip(f"this processor has no {name}")
    if name == jaxloss.backends().cpu:
        pytest.skip(f"every other test runs with {name}")
    code = RESULTS.format(support=str(pathlib.Path(__file__).parents[1] / "support"), name=name)
    ran = python(code, JAXLOSS_CPU_INSTRUCTION_SET=name, **KEPT)
    assert ran.stdout.strip() == "agreed", ran.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_work_for_many_threads(case, dtype):
    """A large array is shared out over threads, rows are not: each row comes out as it does alone, bit by bit."""
    x, a = case.sample((1500, 3000), dtype)
    results = jax.jit(jax.value_and_grad(case.loss))(x, a)
    assert_agrees(case, x, a)
    again = jax.jit(jax.value_and_grad(case.loss))(x, a)
    jax.tree.map(np.testing.assert_array_equal, results, again)
    few = slice(700, 705)
    alone = case.loss.gradient(x[few], a[few], reduction="sum")
    np.testing.assert_array_equal(case.loss.gradient(x, a, reduction="sum")[few], alone)


def test_the_same_bits_in_every_run():
    """However its rows were shared out: sums are ordered by place, not by who was first."""
    for case in CASES:
        x, a = map(jnp.asarray, case.sample((400, 500)))
        step = jax.jit(jax.value_and_grad(case.loss))
        first = jax.tree.map(np.asarray, step(x, a))
        for _ in range(20):
            jax.tree.map(np.testing.assert_array_equal, step(x, a), first)


def test_many_calls_at_once():
    """Independent calls that XLA may run on the same threads: none waits for another."""

    @jax.jit
    def losses(xs, targets):
        return [case.loss(x, a) for case, x, a in zip(CASES * 4, xs, targets, strict=True)]

    samples = [case.sample((300, 400), seed=seed) for seed, case in enumerate(CASES * 4)]
    xs, targets = zip(*samples, strict=True)
    for case, value, (x, a) in zip(CASES * 4, losses(xs, targets), samples, strict=True):
        exact = case.expected(x, a).value
        error = tolerance.bound(*exact, computed=np.float32, stored=np.float32, terms=x.size)
        tolerance.assert_within(value, exact[0], error, "one of many losses")
