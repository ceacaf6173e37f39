#!/usr/bin/env bash
# jax 0.10.2 (0.12.0.1 too): a program that holds a jax.experimental.custom_partitioning is written to the persistent compilation
# cache, and never found there by another process: its callback's address is part of the key. The option
# jax_remove_custom_partitioning_ptr_from_cache_key, off by default and called unsafe, leaves it out.
# Seen: hits 1 of 1 for the plain function, 0 of 1 for the partitioned one.
. "$(dirname "$0")/fresh_environment.sh" jax==0.10.2
cat >step.py <<'PY'
import sys

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))


@custom_partitioning
def partitioned(x):
    return jnp.sin(x)


def partition(mesh, operands, result):
    return mesh, jnp.sin, operands[0].sharding, (operands[0].sharding,)


partitioned.def_partition(partition=partition, sharding_rule="i j -> i j")
padding = [object() for _ in range(int(sys.argv[2]))]  # so that not even by chance the address is the same
mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
x = jax.device_put(np.ones((16, 4), np.float32), NamedSharding(mesh, PartitionSpec("batch")))
for name, function in (("sin", jnp.sin), ("partitioned", partitioned)):
    events.clear()
    jax.jit(function).lower(x).compile()
    print(name, sum("cache_hits" in event for event in events))
PY
run step.py cache 10 >/dev/null
run step.py cache 100000 | tee found
[ "$(tr '\n' ' ' <found)" = "sin 1 partitioned 0 " ] || { echo "this finding is out of date" >&2; exit 1; }
