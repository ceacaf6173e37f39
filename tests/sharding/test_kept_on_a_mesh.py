"""Steps on a mesh of automatic axes that outlive their process: cached, serialized, exported; and what platforms without kernels get."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxloss
import kept_on_a_mesh
import meshes
import modules
import tolerance
from jaxloss import formulas
from jaxloss._autodiff import row_loss
from jaxloss._linear import autodiff
from jaxloss._linear.plan import Plan
from jaxloss._linear.split import Split
from jaxloss._partitioning import descriptions, partitioned, partitioner
from jaxloss._rows.cross_entropy import CrossEntropy
from jaxloss._rows.divergence import Divergence
from jaxloss._rows.elementwise import Elementwise
from jaxloss._spec import Objective

P = PartitionSpec
SCRIPT = pathlib.Path(kept_on_a_mesh.__file__)


def run(folder) -> dict:
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, str(SCRIPT), str(folder)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.cpu_only
def test_a_second_process_compiles_nothing_and_runs_what_the_first_kept(tmp_path):
    first, then = run(tmp_path), run(tmp_path)
    assert (first.pop("hits"), first.pop("misses")) == (0, 1)
    assert (then.pop("hits"), then.pop("misses")) == (1, 0)
    assert set(then) == {"compiled", "executable", "artefact", "artefact of three"}
    for name, found in {**first, **then}.items():
        assert found["error"] < 1e-5, name
        assert found["calls"], name
        assert not found["gathers"], name


@pytest.fixture
def placed():
    mesh = meshes.mesh()
    specs = P(None, "v"), P("d"), P("d"), P("d", "v")
    operands = zip(kept_on_a_mesh.operands(), specs, strict=True)
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in operands]


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
def test_a_platform_without_kernels_gets_the_formula_alone(placed):
    traced = jax.jit(kept_on_a_mesh.step).trace(*placed)
    module = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "jaxloss" not in module
    assert "CustomSPMDPartitioning" not in module
    assert "jaxloss_partitioned" in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
def test_without_internals_of_jax_the_same_is_computed(placed, monkeypatch, retraced):
    named = jax.jit(kept_on_a_mesh.step).lower(*placed).compile()
    jax.clear_caches()
    monkeypatch.setattr(partitioned, "NAMED", False)
    lowered = jax.jit(kept_on_a_mesh.step).lower(*placed)
    assert "CustomSPMDPartitioning" in lowered.as_text()
    compiled = lowered.compile()
    assert modules.collectives(compiled) == modules.collectives(named)
    for actual, exact in zip(compiled(*placed), named(*placed), strict=True):
        tolerance.assert_close(actual, exact, "a result", terms=32)


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
def test_a_program_names_the_code_that_splits_it(placed, monkeypatch, retraced):
    """Else a cache would give another release what this one compiled."""
    first = jax.jit(kept_on_a_mesh.step).lower(*placed).as_text()
    jax.clear_caches()
    assert jax.jit(kept_on_a_mesh.step).lower(*placed).as_text() == first
    jax.clear_caches()
    monkeypatch.setattr(partitioner, "_release", lambda: "another")
    assert jax.jit(kept_on_a_mesh.step).lower(*placed).as_text() != first


@pytest.mark.cpu_only
@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
def test_the_partitioner_before_shardy(placed, retraced):
    expected = jax.jit(kept_on_a_mesh.step)(*placed)
    jax.clear_caches()
    before = jax.config.jax_use_shardy_partitioner
    jax.config.update("jax_use_shardy_partitioner", False)
    try:
        actual = jax.jit(kept_on_a_mesh.step)(*placed)
    finally:
        jax.config.update("jax_use_shardy_partitioner", before)
    for one, other in zip(actual, expected, strict=True):
        tolerance.assert_close(one, other, "a result", terms=32)


# ---- descriptions ----------------------------------------------------------------------------------------------------


def plan(precision):
    types = jax.numpy.dtype("bfloat16"), jax.numpy.dtype("float32")
    return Plan(*(Objective(1e-7, ("z_loss",), 32), 1, False, True, False, False, 4, *types, precision))


DESCRIBED = {
    "rows": (
        row_loss,
        (CrossEntropy(Objective(0.1, ("z_loss", "softcap"), 1000, True, ("v",))), "grad", ((), ("d",))),
    ),
    "unknown classes": (row_loss, (CrossEntropy(Objective(0.0, (), None)), "value", ((), ()))),
    "divergence": (
        row_loss,
        (Divergence("jensen_shannon", formulas.js_terms, True, ("v",)), "value_and_grad", ((), ())),
    ),
    "elements": (
        row_loss,
        (Elementwise("mse", formulas.squared_error, formulas.d_squared_error), "total_and_grad", ((), ("d", "v"))),
    ),
    "linear": (
        autodiff,
        (plan(jax.lax.Precision.HIGHEST), ("hidden", "kernel"), Split({"v": ("v",)}, {}, ())),
    ),
    "linear, preset": (autodiff, (plan(jax.lax.DotAlgorithmPreset.BF16_BF16_F32), (), Split())),
    "linear, two precisions": (autodiff, (plan((jax.lax.Precision.HIGH, jax.lax.Precision.DEFAULT)), (), Split())),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_call_is_made_again_from_its_description(name):
    module, arguments = DESCRIBED[name]
    description = (module.__name__, arguments)
    text = descriptions.text_of(description)
    assert descriptions.made_of(text) == description
    assert descriptions.text_of(descriptions.made_of(text)) == text
    call = module.partitioned(*arguments)
    assert call.description == description


def test_formulas_with_options_are_described():
    given = functools.partial(formulas.binary_cross_entropy, clip=1e-7)
    again = descriptions.made_of(descriptions.text_of(given))
    assert (again.func, again.keywords) == (given.func, given.keywords)


@pytest.mark.parametrize("foreign", [print, os.path.join, object(), {1, 2}, CrossEntropy])
def test_nothing_else_is_described(foreign):
    with pytest.raises(TypeError, match="can not be described"):
        descriptions.text_of((foreign,))


@pytest.mark.parametrize("module", ["os", "jax.numpy", "jaxlossy", "jaxloss_other.formulas"])
def test_a_description_names_no_other_module(module):
    with pytest.raises(ValueError, match=f"{module} is not a module of this library"):
        descriptions.own_module(module)


# ---- reduced and unreduced operands ----------------------------------------------------------------------------------


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
class TestReduced:
    """Operands that are replicated over a mesh axis over which their gradient is a sum still to be made, and such sums."""

    @staticmethod
    def operands():
        mesh = meshes.mesh_of_types((jax.sharding.AxisType.Explicit,) * 2)
        _, _, labels, x = kept_on_a_mesh.operands()
        on_mesh = [jax.device_put(t, NamedSharding(mesh, spec)) for t, spec in ((x, P(None, None)), (labels, P(None)))]
        return mesh, (x, labels), on_mesh

    @pytest.mark.parametrize("of_labels", [False, True], ids=["logits", "logits and labels"])
    def test_reduced_operands_are_taken_as_replicated(self, of_labels):
        mesh, plain, on_mesh = self.operands()

        def loss(x, labels):
            x = jax.sharding.reshard(x, NamedSharding(mesh, P(None, None, reduced={"d"})))
            if of_labels:
                labels = jax.sharding.reshard(labels, NamedSharding(mesh, P(None, reduced={"d"})))
            first = jaxloss.categorical_cross_entropy(x, labels)
            return first + jaxloss.linear_cross_entropy(x, jax.numpy.eye(x.shape[-1]), labels)

        def formula(x, labels):
            return 2 * jaxloss.categorical_cross_entropy(x, labels, clip=None)

        actual = jax.jit(jax.value_and_grad(loss))(*on_mesh)
        for one, other in zip(actual, jax.jit(jax.value_and_grad(formula))(*plain), strict=True):
            tolerance.assert_close(one, other, "a result", terms=32)

    @pytest.mark.parametrize("argument", ["logits", "weights"])
    def test_unreduced_operands_are_an_error_that_names_the_argument(self, argument):
        mesh, _, (x, labels) = self.operands()

        def loss(x, labels):
            given = {"logits": x, "target": labels, "weights": jax.numpy.ones(labels.shape, x.dtype)}
            spec = P(*(None,) * given[argument].ndim, unreduced={"d"})
            given[argument] = jax.sharding.reshard(given[argument], NamedSharding(mesh, spec))
            return jaxloss.categorical_cross_entropy(**given)

        with jax.set_mesh(mesh), pytest.raises(ValueError, match=f"{argument} is unreduced over the mesh axes 'd'"):
            jax.jit(loss)(x, labels)
