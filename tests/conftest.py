"""Which device the suite runs on, and with what settings.

Tests run on JAX's default device. On a machine without a GPU that is the CPU, of which there are eight virtual ones for the
sharding tests. On a machine with an NVIDIA GPU (and a jax and a build with CUDA) it is the GPU: `pytest -m gpu` runs every
test there but those marked `cpu_only`.
"""

import os

VIRTUAL_DEVICES = 8
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={VIRTUAL_DEVICES}"
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several test processes share one GPU

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

import losses  # noqa: E402

# Products of float32 are made in float32, which a GPU does not do unless it is asked to.
jax.config.update("jax_default_matmul_precision", "highest")

# The same examples in every run: a failure is one that the last change made.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, database=None, max_examples=60)
hypothesis.settings.load_profile("suite")


# Files of many programs: what the newest jax could break in them, it breaks in the others too.
MANY_PROGRAMS = {
    "test_binary_options",
    "test_cross_entropy_options",
    "test_distillation_derivatives",
    "test_linear_matrix",
    "test_linear_sharding",
    "test_linear_transforms",
    "test_optax",
    "test_regression",
}
MATRICES = {"test_axis_name", "test_shard_map", "test_sharding", "test_transforms"}


def is_slow(item) -> bool:
    """Whether a second run in CI may do without: so much of the suite that the rest takes a few minutes."""
    case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
    name = item.path.stem
    return name in MANY_PROGRAMS or (name in MATRICES and case is not None and case not in losses.CASES)


@pytest.hookimpl(tryfirst=True)  # before `-m` picks by marker
def pytest_collection_modifyitems(items):
    on_gpu = jax.default_backend() == "gpu"
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)
        if on_gpu and item.get_closest_marker("cpu_only"):
            item.add_marker(pytest.mark.skip(reason="about the CPU, and this runs on a GPU"))
        elif on_gpu:
            item.add_marker(pytest.mark.gpu)
        elif item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


def pytest_make_parametrize_id(val):
    return str(val) if type(val).__name__ == "Case" else None
