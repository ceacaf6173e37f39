#!/usr/bin/env bash
# jax 0.10.2: XLA calls the partition function of a jax.experimental.custom_partitioning in a thread of its own, where a
# block of jax.enable_x64 that the program was compiled in does not count: float64 is float32 there. Inside the block, the
# partitioned function of float64 numbers is an error, though the same without a mesh, and with the setting for the whole
# process, is right.
# Seen: without a mesh 1.0; on a mesh, in the block, an error: float32 instead of float64; for the process, 1.0.
. "$(dirname "$0")/fresh_environment.sh" jax==0.10.2
cat >step.py <<'PY'
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

warnings.simplefilter("ignore")  # of float64 that is truncated


def added_and_taken_away(x):
    return x + jnp.ones(x.shape, jnp.float64) - x


@custom_partitioning
def partitioned(x):
    return added_and_taken_away(x)


def partition(mesh, operands, result):
    return mesh, added_and_taken_away, result.sharding, (operands[0].sharding,)


partitioned.def_partition(partition=partition, sharding_rule="i -> i")
mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))


def seen(function, spec):
    with jax.enable_x64(True):
        x = np.full(8, 2.0**40)
        if spec is not None:
            x = jax.device_put(x, NamedSharding(mesh, spec))
        try:
            return float(jax.jit(function)(x)[0])
        except jax.errors.JaxRuntimeError as error:
            return "error: float32 instead of float64" if "float32[1]" in str(error) else str(error)


print("without a mesh:", seen(added_and_taken_away, None))
print("in the block:", seen(partitioned, PartitionSpec("batch")))
jax.config.update("jax_enable_x64", True)
print("for the process:", seen(partitioned, PartitionSpec("batch")))
PY
run step.py | tee found
expected="without a mesh: 1.0,in the block: error: float32 instead of float64,for the process: 1.0,"
[ "$(tr '\n' ',' <found)" = "$expected" ] || { echo "this finding is out of date" >&2; exit 1; }
