#!/usr/bin/env bash
# jax 0.10.2 (0.12.0.1 too): the eager gradient of any function of an array on a mesh of explicit axes, which jax.make_mesh makes
# by default, is a ValueError unless the mesh is in context. The value is computed, and so is the jitted gradient.
# Seen: "Length of device assignment 1 is not equal to the size of the mesh 8 of aval f32[]".
. "$(dirname "$0")/fresh_environment.sh" jax==0.10.2
run - <<'PY'
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def loss(x):
    return (x**2).mean()


mesh = jax.make_mesh((8,), ("batch",))
x = jax.device_put(np.ones((16, 4), np.float32), NamedSharding(mesh, PartitionSpec("batch")))
print("jax", jax.__version__)
print("value:", loss(x))
print("jitted gradient:", jax.jit(jax.grad(loss))(x).sum())
with jax.set_mesh(mesh):
    print("eager gradient with the mesh in context:", jax.grad(loss)(x).sum())
try:
    jax.grad(loss)(x)
except ValueError as error:
    print("eager gradient without:", error)
    assert "Length of device assignment 1" in str(error)
else:
    raise SystemExit("the eager gradient is computed now: this finding is out of date")
PY
