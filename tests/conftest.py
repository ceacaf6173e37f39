"""Which device the suite runs on, and with what settings.

Tests run on JAX's default device. On a machine without a GPU that is the CPU, of which there are eight virtual ones for the
sharding tests. On a machine with an NVIDIA GPU (and a jax and a build with CUDA) it is the GPU: every test is marked
`gpu` there but those marked `cpu_only`, and those of several devices, of which `pytest -m multi_gpu` runs the main ones on
two GPUs or more.
"""

import gc
import glob
import importlib.metadata
import os
import pathlib
import re

VIRTUAL_DEVICES = 8
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={VIRTUAL_DEVICES}"
if importlib.metadata.version("jaxlib").startswith("0.10.") and not glob.glob("/dev/nvidia[0-9]*"):
    # A CPU's programs compile in half of the time. Newer versions do not know these flags: the second run in CI, on the
    # newest, compiles as a user does.
    for flag in ("cpu_use_fusion_emitters=false", "cpu_parallel_codegen_split_count=1"):
        os.environ["XLA_FLAGS"] += f" --xla_{flag}"
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several test processes share one GPU

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

import losses  # noqa: E402
import meshes  # noqa: E402
import paths  # noqa: E402
import selection  # noqa: E402
from jaxloss._ffi import call  # noqa: E402
from jaxloss._rows import cross_entropy  # noqa: E402

# Small arrays are to test kernels. What the formula does in their place is test_formulas.py's.
call.FALLBACK_SIZE = 0

# Products of float32 are made in float32, which a GPU does not do unless it is asked to.
jax.config.update("jax_default_matmul_precision", "highest")

# Tracing makes many small objects, few of them garbage: to look through them as often as Python does takes a fifth of the time.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 20, 100)

# What one run, or one process of it, has compiled, no other compiles again; also after a fixture has emptied jit's own cache.
COMPILED = pathlib.Path(__file__).parents[1] / "build/tests-compiled"
if jax.default_backend() == "cpu" and not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(COMPILED))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# The same examples in every run: a failure is one that the last change made.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, database=None, max_examples=60)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="module", params=paths.PATHS)
def path_of_module(request):
    """By which the tests of a module are put in order."""
    return request.param


@pytest.fixture
def path(path_of_module):
    """Whether kernels are called, or the formulas that stand in for them: where there are none, or elements are few."""
    paths.take(path_of_module)
    return path_of_module


@pytest.fixture
def without_kernels():
    """Formulas are called."""
    paths.take("formula")


@pytest.fixture(autouse=True)
def kernels(request):
    """Those that do not ask for a path take kernels, also where another test of their process took formulas."""
    if not {"path", "without_kernels"} & set(request.fixturenames):
        paths.take("kernel")


CATEGORICAL = losses.Case(losses.CATEGORICAL, "indices")


def is_for_gpus(item) -> bool:
    """Whether `-m multi_gpu` runs it: so much of what is about several devices that it takes a few minutes on GPUs.

    Every loss that has kernels of its own has its gradient taken on every placement; other programs are those of one loss,
    each where it splits one axis. What two axes split as one is left to the CPU.
    """
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if item.path.stem == "test_public_calls_on_meshes":
        return params["kind"] == "mixed" and not params["name"].startswith(("optax", "d_"))
    case, program = params.get("case"), params.get("name", params.get("program", "value_and_grad"))
    placement, split = str(params.get("placement")), str(params.get("split"))
    is_gradient = program == "value_and_grad" and params.get("reduction", "mean") == "mean"
    if case is not None and case != CATEGORICAL:
        of_every_loss = item.originalname in ("test_placements", "test_gradient_of_both_operands")
        if case not in losses.CASES or not of_every_loss or not is_gradient:
            return False
    if "over" in placement or split in ("two_axes", "classes_twice"):
        return False
    explicit = params.get("axis_type") == jax.sharding.AxisType.Explicit
    by_parts = placement == "replicated" or split == "both" or (item.originalname == "test_programs" and explicit)
    return is_gradient or not by_parts


def chosen(config, marker: str) -> bool:
    """Whether `-m` asks for what has the marker."""
    return re.search(rf"(?<!not )\b{marker}\b", config.option.markexpr) is not None


@pytest.fixture
def retraced():
    """For a test that changes a number which is read while tracing: nothing traced before or in it is used again."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def sums_of_few_rows(monkeypatch, retraced):
    """Every call of cross entropy whose rows have one weight adds up their losses at once, if rows are not too long."""
    monkeypatch.setattr(cross_entropy, "MANY_BYTES", 0)
    monkeypatch.setattr(cross_entropy, "SHORT_BYTES", 1024)
    monkeypatch.setattr(cross_entropy, "SHORT_BYTES_WITH_GRAD", {2: 1024, 4: 1024})


@pytest.hookimpl(tryfirst=True)  # before `-m` picks by marker
def pytest_collection_modifyitems(config, items):
    on_gpu = jax.default_backend() == "gpu"
    of_several_devices = chosen(config, "multi_gpu") or chosen(config, "several_devices")
    if chosen(config, "multi_gpu") and "JAXLOSS_TEST_DEVICES" not in os.environ and not (on_gpu and meshes.count()):
        raise pytest.UsageError(
            f"-m multi_gpu needs two NVIDIA GPUs or more: jax has {', '.join(map(str, jax.devices()))}"
            " (with JAXLOSS_TEST_DEVICES=2, the same tests run on CPU devices)"
        )
    selection.mark(items)
    for item in items:
        if item.get_closest_marker("several_devices"):
            if is_for_gpus(item) and not (on_gpu and item.get_closest_marker("cpu_only")):
                item.add_marker(pytest.mark.multi_gpu)
            if on_gpu and not of_several_devices:
                item.add_marker(pytest.mark.skip(reason="about several devices: make test-multi-gpu"))
        elif on_gpu and item.get_closest_marker("cpu_only"):
            item.add_marker(pytest.mark.skip(reason="about the CPU, and this runs on a GPU"))
        elif on_gpu:
            item.add_marker(pytest.mark.gpu)
        elif item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


class _FailuresAtOnce:
    """Names a test as soon as it has failed: a run that is stopped at its time limit has said what it found."""

    def __init__(self, config):
        self.config = config

    def pytest_runtest_logreport(self, report):
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None and not hasattr(self.config, "workerinput"):
            terminal.ensure_newline()
            terminal.write_line(f"FAILED {report.nodeid}")


def pytest_configure(config):
    config.pluginmanager.register(_FailuresAtOnce(config), "failures_at_once")


def pytest_make_parametrize_id(val):
    return str(val) if type(val).__name__ == "Case" else None
