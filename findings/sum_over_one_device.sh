#!/usr/bin/env bash
# jax 0.10.2: in a shard_map that is manual over one axis of a mesh, a psum of rows that an automatic axis splits is compiled if
# the manual axis has two devices, and is an internal error of XLA's partitioner if it has one.
# Seen: "Cross-partition allreduce must be in (partial) manual partitioning mode".
. "$(dirname "$0")/fresh_environment.sh" jax==0.10.2
run - <<'PY'
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

print("jax", jax.__version__)
for sizes in ((4, 2), (8, 1)):
    mesh = jax.make_mesh(sizes, ("automatic", "manual"), axis_types=(AxisType.Auto,) * 2)
    total = jax.shard_map(
        lambda x: jax.lax.psum(x.sum(-1), "manual"),
        mesh=mesh,
        in_specs=PartitionSpec(None, "manual"),
        out_specs=PartitionSpec(),
        axis_names={"manual"},
    )
    x = jax.device_put(np.ones((16, 4), np.float32), NamedSharding(mesh, PartitionSpec("automatic")))
    try:
        print(sizes, jax.jit(total)(x).sum())
        assert sizes[1] > 1, "it compiles now: this finding is out of date"
    except jax.errors.JaxRuntimeError as error:
        print(sizes, str(error).splitlines()[0][:200])
        assert sizes[1] == 1
        assert "Cross-partition allreduce must be in (partial) manual" in str(error)
PY
