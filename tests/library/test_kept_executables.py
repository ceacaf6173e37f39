"""Programs that outlive the library that they were compiled for: their custom calls name its calling convention."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import jaxloss
from jaxloss._ffi import library

pytestmark = pytest.mark.cpu_only

PROGRAM = """
import json, pathlib, pickle, sys
import jax, jax.export, jax.monitoring, numpy as np
from jax.experimental import serialize_executable
import jaxloss
from jaxloss._ffi import library

folder, convention, found = pathlib.Path(sys.argv[1]), int(sys.argv[2]), {}
if convention != library.CALLING_CONVENTION:
    # What a release does that calls its kernels in another way.
    def named(name):
        return name.replace(f"_v{own}", f"_v{convention}")

    own, register = library.CALLING_CONVENTION, jax.ffi.register_ffi_target
    jax.ffi.register_ffi_target = lambda name, *rest, **options: register(named(name), *rest, **options)
    library._register(library._library, library.PLATFORMS)
    library.CALLING_CONVENTION, library.TARGETS = convention, frozenset(map(named, library.TARGETS))

jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))

pred, target = np.linspace(0, 1, 8192, dtype=np.float32).reshape(8, 1024), np.zeros((8, 1024), np.float32)
step = jax.jit(jax.value_and_grad(jaxloss.mse))
compiled = step.lower(pred, target).compile()
found["value"] = float(compiled(pred, target)[0])
found["hits"] = sum("cache_hits" in event for event in events)
found["calls"] = library.target_name("mse_value_and_grad") in compiled.as_text()

artefact, executable = folder / "artefact", folder / "executable"
if artefact.exists():
    for kind, run in (
        ("artefact", lambda: jax.export.deserialize(artefact.read_bytes()).call(pred, target)),
        ("executable", lambda: serialize_executable.deserialize_and_load(*pickle.loads(executable.read_bytes()))(pred, target)),
    ):
        try:
            found[kind] = float(run()[0])
        except jax.errors.JaxRuntimeError as error:
            found[kind] = str(error)
else:
    artefact.write_bytes(jax.export.export(step, disabled_checks=jaxloss.export_checks())(pred, target).serialize())
    executable.write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
print(json.dumps(found))
"""


def run(folder, convention: int) -> dict:
    """What a process finds that calls the kernels by this convention."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-P", "-c", PROGRAM, str(folder), str(convention)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("convention", [library.CALLING_CONVENTION, 999])
def test_a_kept_program_is_run_by_the_convention_that_it_was_compiled_for_or_not_at_all(tmp_path, convention):
    first, then = run(tmp_path, convention), run(tmp_path, library.CALLING_CONVENTION)
    assert first["calls"]
    assert then["calls"]
    assert first["value"] == then["value"] == float(jaxloss.mse(*operands()))
    kept = {name: then[name] for name in ("artefact", "executable")}
    if convention == library.CALLING_CONVENTION:
        assert then["hits"] == 1
        assert kept == dict.fromkeys(kept, first["value"])
    else:
        assert then["hits"] == 0
        for error in kept.values():
            assert f"jaxloss_mse_value_and_grad_v{convention}" in error


def operands() -> tuple[np.ndarray, np.ndarray]:
    return np.linspace(0, 1, 8192, dtype=np.float32).reshape(8, 1024), np.zeros((8, 1024), np.float32)


def test_export_checks_are_all_targets():
    checks = [str(check) for check in jaxloss.export_checks()]
    assert checks == sorted(checks)
    assert all(any(name in check for check in checks) for name in library.TARGETS)
