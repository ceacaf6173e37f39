"""One of two processes that share compiled and exported steps on a mesh: `python kept_on_a_mesh.py FOLDER`.

The first that runs compiles, fills a cache, serializes and exports; the second finds all of it. Each prints what it found as
JSON. `test_kept_on_a_mesh.py` runs it, with eight CPU devices.
"""

import json
import pathlib
import pickle
import sys

import jax
import jax.export
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxloss
from jaxloss._ffi import call

P = PartitionSpec
ROWS, CLASSES, WIDTH = 16, 32, 8


def step(kernel, hidden, labels, target):
    """Value and gradient of a loss of each family, with the options that a call's name must tell."""

    def loss(kernel):
        logits = hidden @ kernel
        return (
            jaxloss.categorical_cross_entropy(logits, labels)
            + jaxloss.categorical_cross_entropy(logits, labels, z_loss=0.1, class_weights=jnp.arange(1.0, CLASSES + 1))
            + jaxloss.categorical_cross_entropy(logits, labels, reduction="none").mean()
            + jaxloss.mse(logits, target)
            + jaxloss.binary_cross_entropy(logits, jax.nn.sigmoid(target), focal_gamma=2.0)
            + jaxloss.kl_divergence(logits, target, target_type="logits")
            + jaxloss.linear_cross_entropy(hidden, kernel, labels, chunk_size=4, precision=jax.lax.Precision.HIGHEST)
        )

    return jax.value_and_grad(loss)(kernel)


def operands() -> list[np.ndarray]:
    """Kernel, hidden states, labels and target."""
    rng = np.random.default_rng(0)
    shapes = ((WIDTH, CLASSES), (ROWS, WIDTH), (ROWS, CLASSES))
    kernel, hidden, target = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return [kernel, hidden, rng.integers(0, CLASSES, ROWS).astype(np.int32), target]


def main(folder: pathlib.Path) -> None:
    """Compiles, or finds what was compiled."""
    call.FALLBACK_SIZE = 0
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    mesh = jax.make_mesh((4, 2), ("d", "v"), axis_types=(AxisType.Auto,) * 2)
    specs = P(None, "v"), P("d"), P("d"), P("d", "v")
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(operands(), specs, strict=True)]

    events.clear()
    compiled = jax.jit(step).lower(*placed).compile()
    found = {"hits": sum("cache_hits" in event for event in events), "misses": sum("cache_misses" in e for e in events)}
    runs = {"compiled": compiled}
    executable, artefacts = folder / "executable", {"artefact": ("cpu",), "artefact of three": ("cpu", "cuda", "tpu")}
    if executable.exists():
        runs["executable"] = serialize_executable.deserialize_and_load(*pickle.loads(executable.read_bytes()))
        for name in artefacts:
            exported = jax.export.deserialize(bytearray((folder / name).read_bytes()))
            runs[name] = jax.jit(exported.call).lower(*placed).compile()
    else:
        executable.write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
        for name, platforms in artefacts.items():
            exported = jax.export.export(jax.jit(step), platforms=platforms, disabled_checks=jaxloss.export_checks())
            (folder / name).write_bytes(exported(*placed).serialize())
    value, gradient = jax.jit(step)(*operands())
    for name, run in runs.items():
        actual, of_kernel = run(*placed)
        error = max(abs(actual - value) / value, np.abs(np.asarray(of_kernel) - gradient).max())
        found[name] = {
            "error": float(error),
            "calls": "jaxloss_cross_entropy" in run.as_text() if name != "executable" else True,
            "gathers": "all-gather" in run.as_text() if name != "executable" else False,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
