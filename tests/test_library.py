"""The shared object: what it says of itself, what is said when it is missing, every instruction set, every size of work."""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from agreement import assert_agrees
from instruction_sets import processor_has
from jaxloss import _library
from losses import CASES

pytestmark = pytest.mark.cpu_only


def python(code, *, path=None, **environment):
    """Runs a program in a process of its own; the result has its output and its errors."""
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    if path:
        variables["PYTHONPATH"] = str(path)
    # -P: the folder that this runs in is not where to import from.
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)


def test_backends():
    backends = jaxloss.backends()
    assert backends.cpu in ("avx512", "avx2", "baseline")
    assert isinstance(backends.cuda, tuple)
    assert ("cuda" in _library.PLATFORMS) == bool(backends.cuda)
    assert backends.cpu in str(backends)
    assert ("export" in str(backends)) == (not backends.cuda)
    without_cuda = str(dataclasses.replace(backends, cuda=()))
    assert "none in this build" in without_cuda
    assert "plain formulas" in without_cuda
    with_cuda = str(dataclasses.replace(backends, cuda=("80", "90a")))
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
    """The package's Python files in a folder of their own, and the library beside them."""
    package = tmp_path / "jaxloss"
    shutil.copytree(
        pathlib.Path(jaxloss.__file__).parent, package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copy(_library._path(), package)
    return package


IMPORT_COPY = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Scikit" not in type(finder).__name__]
import jaxloss
print(jaxloss.__file__)
"""


def import_error(package) -> str:
    """The last line that importing the copy printed."""
    ran = python(IMPORT_COPY, path=package.parent)
    assert ran.returncode != 0
    return ran.stderr.strip().splitlines()[-1]


def test_the_copy_is_what_is_imported(copied_package):
    ran = python(IMPORT_COPY, path=copied_package.parent)
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


def test_a_library_of_another_version_is_one_clear_error(copied_package):
    (copied_package / "_version.py").write_text('__version__ = "999.0"\n')
    message = import_error(copied_package)
    assert message.startswith("ImportError: ")
    for word in ("999.0", _library._library.jaxloss_version().decode(), "pip install"):
        assert word in message


def test_a_library_that_is_called_in_another_way_is_one_clear_error(copied_package):
    module = copied_package / "_library.py"
    own = f"CALLING_CONVENTION = {_library.CALLING_CONVENTION}"
    assert own in module.read_text()
    module.write_text(module.read_text().replace(own, "CALLING_CONVENTION = 999"))
    message = import_error(copied_package)
    assert message.startswith("ImportError: ")
    for word in ("999", f"called by {_library.CALLING_CONVENTION}", "pip install"):
        assert word in message


RESULTS = """
import sys
sys.path.insert(0, {tests!r})
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
    code = RESULTS.format(tests=str(pathlib.Path(__file__).parent), name=name)
    ran = python(code, JAXLOSS_CPU_INSTRUCTION_SET=name, XLA_FLAGS="")
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
