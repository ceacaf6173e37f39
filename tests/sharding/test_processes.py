"""A batch split between processes trains the same model as one process does: on CPUs, and with a GPU a process."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import meshes

SCRIPT = pathlib.Path(__file__).parents[1] / "support" / "two_processes.py"
STEPS = 60  # of the script


def train(processes: int, platform: str, output: pathlib.Path) -> np.ndarray:
    """The parameters that so many processes end with, each on one device."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The suite's own flags ask for several CPU devices. Products of float32 as in the suite: what a GPU makes of them by
    # default depends on the last bit of a factor.
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(SCRIPT.parents[2])}
    environment |= {"JAX_PLATFORMS": platform, "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(process), str(processes), str(port), str(output), platform],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(processes)
    ]
    logs = [process.communicate(timeout=240)[0] for process in running]
    for process, log in zip(running, logs, strict=True):
        assert process.returncode == 0, log
    return np.load(output)


def assert_end_with_the_same_parameters(processes: int, platform: str, directory: pathlib.Path) -> None:
    alone = train(1, platform, directory / "alone.npy")
    together = train(processes, platform, directory / "together.npy")
    assert np.abs(alone).max() > 0.1
    # Two halves of a sum round differently from the whole: an epsilon a step, which a stable descent does not amplify.
    tolerance = np.finfo(np.float32).eps * STEPS * np.abs(alone).max()
    np.testing.assert_allclose(together, alone, rtol=0, atol=tolerance)


@pytest.mark.cpu_only
@pytest.mark.slow
def test_two_processes_end_with_the_parameters_of_one(tmp_path):
    assert_end_with_the_same_parameters(2, "cpu", tmp_path)


@pytest.mark.several_devices
@pytest.mark.skipif(jax.default_backend() != "gpu" or meshes.count() == 0, reason="fewer than two NVIDIA GPUs")
def test_a_process_for_each_gpu_ends_with_the_parameters_of_one(tmp_path):
    assert_end_with_the_same_parameters(meshes.count(), "cuda", tmp_path)
