"""One of the processes that train the demo's digits model together, each on its device and its share of every batch.

    python two_processes.py PROCESS PROCESSES PORT OUTPUT PLATFORM

PLATFORM is `cpu`, or `cuda`, where process i has the i-th GPU. Process 0 writes the trained parameters to OUTPUT. `test_processes.py` runs it.
"""

import sys

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

import jaxloss
from demo import data, models

STEPS, BATCH, RATE = 60, 128, 0.1


def main(process: int, processes: int, port: int, output: str, platform: str) -> None:
    """Trains, and writes the parameters."""
    own = process if platform == "cuda" else None
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process, local_device_ids=own)
    elif platform == "cuda":
        jax.config.update("jax_cuda_visible_devices", "0")
    assert jax.device_count() == processes
    assert jax.local_device_count() == 1
    mesh = jax.make_mesh((processes,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())

    @jax.jit
    def step(params, x, y):
        value, gradient = jax.value_and_grad(
            lambda params: jaxloss.categorical_cross_entropy(models.apply(params, x), y)
        )(params)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradient), value

    params = jax.device_put(models.init(jax.random.key(0), (64, 64, 10)), whole)
    train = data.digits().train
    share = BATCH // processes
    for number in range(STEPS):
        first = (number * BATCH) % (len(train.x) - BATCH) + process * share
        batch = (
            jax.make_array_from_process_local_data(split, part[first : first + share]) for part in (train.x, train.y)
        )
        params, _ = step(params, *batch)
    if process == 0:
        np.save(output, np.asarray(ravel_pytree(jax.tree.map(lambda p: p.addressable_data(0), params))[0]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
