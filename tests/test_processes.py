"""A batch split between two processes trains the same model as one process does."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

pytestmark = [pytest.mark.cpu_only, pytest.mark.slow]

SCRIPT = pathlib.Path(__file__).with_name("two_processes.py")
STEPS = 60  # of the script


def train(processes: int, output: pathlib.Path) -> np.ndarray:
    """The parameters that so many processes end with."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # One device a process; the suite's own flags ask for several.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(SCRIPT.parents[1])}
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(process), str(processes), str(port), str(output)],
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


def test_two_processes_end_with_the_parameters_of_one(tmp_path):
    alone, together = train(1, tmp_path / "alone.npy"), train(2, tmp_path / "together.npy")
    assert np.abs(alone).max() > 0.1
    # Two halves of a sum round differently from the whole: an epsilon a step, which a stable descent does not amplify.
    tolerance = np.finfo(np.float32).eps * STEPS * np.abs(alone).max()
    np.testing.assert_allclose(together, alone, rtol=0, atol=tolerance)
