#!/usr/bin/env bash
# jax 0.10.2: on a mesh of explicit axes, two arrays that lie alike on all devices can not be added where the type of one also
# names a mesh axis of one device: a mesh of 8 × 1 makes errors of programs that name its second axis in one place only.
# Seen: "add got incompatible shardings for broadcasting: (('data', 'model'),), ('data',)".
. "$(dirname "$0")/fresh_environment.sh" jax==0.10.2
run - <<'PY'
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh((8, 1), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
x, y = (
    jax.device_put(np.ones(16, np.float32), NamedSharding(mesh, PartitionSpec(axes)))
    for axes in (("data", "model"), ("data",))
)
print("jax", jax.__version__)
alike = [shard.index for shard in x.addressable_shards] == [shard.index for shard in y.addressable_shards]
print("the same numbers on each device:", alike, "and to JAX:", x.sharding.is_equivalent_to(y.sharding, 1))
assert alike
with jax.set_mesh(mesh):
    try:
        x + y
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0])
        assert "incompatible shardings" in str(error)
    else:
        raise SystemExit("they are added now: this finding is out of date")
    print("after a reshard:", (x + jax.sharding.reshard(y, PartitionSpec(("data", "model")))).sum())
PY
