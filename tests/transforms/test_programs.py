"""A loss in whole programs: compiled ahead of time, exported, printed, with donated buffers, with NaN checks."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.experimental.xla_metadata import set_xla_metadata

import jaxloss
import tolerance
from jaxloss._ffi import library
from losses import CASES, REDUCTIONS

cases = pytest.mark.parametrize("case", CASES)


def step_of(case):
    return jax.jit(jax.value_and_grad(case.loss))


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@cases
def test_ahead_of_time(case):
    x, a = case.sample((4, 6))
    lowered = step_of(case).lower(jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(a.shape, a.dtype))
    assert_same(lowered.compile()(x, a), step_of(case)(x, a))


ALLOWED = jaxloss.export_checks()


@pytest.mark.parametrize("platforms", [("cpu",), ("cuda",), ("tpu",), ("cpu", "cuda", "tpu")])
@cases
def test_export(case, platforms):
    """One artefact for any platforms: the kernel for those that have one, the formula for the others."""
    x, a = case.sample((4, 6))
    artefact = export.export(step_of(case), platforms=platforms, disabled_checks=ALLOWED)(x, a)
    read_back = export.deserialize(artefact.serialize())
    assert read_back.platforms == platforms
    holds_kernel = bool({"cpu", "cuda"} & set(platforms) & set(library.PLATFORMS))
    assert (f"{case.loss.in_modules}_value_and_grad" in read_back.mlir_module()) == holds_kernel
    here = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
    if here in platforms:
        for actual, expected in zip(read_back.call(x, a), step_of(case)(x, a), strict=True):
            tolerance.assert_close(actual, expected, "an exported result")


@cases
def test_export_of_any_batch_size(case):
    """A batch size that is a symbol until the program is called."""
    x, a = case.sample((4, 6))
    (batch,) = export.symbolic_shape("batch")
    shapes = [jax.ShapeDtypeStruct((batch, *t.shape[1:]), t.dtype) for t in (x, a)]
    artefact = export.export(step_of(case), disabled_checks=ALLOWED)(*shapes)
    for n in (1, 4):
        for actual, expected in zip(artefact.call(x[:n], a[:n]), step_of(case)(x[:n], a[:n]), strict=True):
            tolerance.assert_close(actual, expected, "an exported result")


@cases
def test_donated_logits(case):
    x, a = case.sample((4, 6))
    expected = jax.grad(case.loss)(x, a)
    donated = jax.jit(jax.grad(case.loss), donate_argnums=0)
    logits = jnp.asarray(x)
    np.testing.assert_array_equal(donated(logits, a), expected)
    assert logits.is_deleted()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@cases
def test_debug_nans(case, reduction):
    """Quiet where there is no NaN, masked infinities included; loud where there is one."""
    x, a = case.sample((4, 6))
    where = np.array([True, False, True, True])
    hidden = np.where(where[:, None], x, np.inf)
    value_and_grad = jax.value_and_grad(lambda x, **options: case.loss(x, a, reduction=reduction, **options).sum())
    with jax.debug_nans(True):
        for function in (value_and_grad, jax.jit(value_and_grad)):
            function(x)
            function(hidden, where=where)
            with pytest.raises(FloatingPointError):
                function(np.full_like(x, np.nan))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@cases
def test_shapes_without_values(case, reduction):
    x, a = case.sample((4, 6), "bfloat16")
    abstract = jax.eval_shape(lambda x, a: case.loss(x, a, reduction=reduction), x, a)
    value = case.loss(x, a, reduction=reduction)
    assert (abstract.shape, abstract.dtype) == (value.shape, value.dtype)
    assert pickle.loads(pickle.dumps(abstract)).shape == value.shape
    assert "custom_call" in jax.jit(case.loss).lower(x, a).as_text()
    assert "jaxloss" in str(jax.make_jaxpr(jax.grad(case.loss))(x, a))


@cases
def test_a_loss_can_be_pickled(case):
    """By name, as a configuration that names its loss would."""
    import jaxloss

    loss = getattr(jaxloss, case.loss.name)
    assert pickle.loads(pickle.dumps(loss)) is loss


@cases
def test_traced_once(case):
    """A second call with new values of the same shapes compiles nothing, whatever the values of traced options."""
    x, a = case.sample((4, 6))
    traces = []

    @jax.jit
    def loss(x, a, normalizer, where):
        traces.append(x)
        return case.loss(x, a, normalizer=normalizer, where=where)

    for normalizer, first in ((2.0, True), (3.0, False)):
        loss(x, a, normalizer, np.array([first, True, True, True]))
    assert len(traces) == 1


@cases
def test_a_training_step(case):
    """An optimiser's step, with the loss where it belongs: between the last layer and the update."""
    features, _ = case.sample((32, 3), seed=7)
    shape = (32, 5)
    a = case.sample(shape, scale=1)[1]
    optimiser = optax.adam(0.05)
    parameters = {"w": jnp.zeros((3, 5)), "b": jnp.zeros(5)}

    def trained(loss):
        @jax.jit
        def step(parameters, state):
            def objective(parameters):
                return loss(features @ parameters["w"] + parameters["b"], a)

            value, gradient = jax.value_and_grad(objective)(parameters)
            updates, state = optimiser.update(gradient, state)
            return optax.apply_updates(parameters, updates), state, value

        now, state, values = parameters, optimiser.init(parameters), []
        for _ in range(20):
            now, state, value = step(now, state)
            values.append(float(value))
        return values

    ours, formula = trained(case.loss), trained(case.formula)
    assert ours[-1] < ours[0]
    tolerance.assert_close(ours, formula, "losses of a training run", operations=tolerance.OPERATIONS_OF_HIGHER_ORDER)


def bytes_accessed(function, *operands) -> float:
    analysis = jax.jit(function).lower(*operands).compile().cost_analysis()
    return analysis["bytes accessed"]


@pytest.mark.cpu_only
def test_cost_analysis_knows_nothing_of_a_custom_call():
    """Whatever it is told. Should this fail, XLA has learnt to listen: then calls are to say what they cost."""
    x, labels = np.zeros((64, 1024), np.float32), np.zeros(64, np.int32)

    def told(x, labels):
        with set_xla_metadata(flops=2 * x.size, bytes_accessed=2 * x.nbytes, cost_estimate=2 * x.nbytes):
            return jax.value_and_grad(jaxloss.categorical_cross_entropy)(x, labels)

    assert bytes_accessed(told, jnp.asarray(x), labels) < x.nbytes
    assert bytes_accessed(jaxloss.formulas.categorical_cross_entropy, x, labels) > x.nbytes


@cases
def test_without_jit(case):
    """As one debugs: every operation runs by itself."""
    x, a = case.sample((4, 8))
    expected = step_of(case)(x, a)
    with jax.disable_jit():
        actual = jax.value_and_grad(case.loss)(x, a)
    for one, other in zip(actual, expected, strict=True):
        tolerance.assert_close(one, other, "without jit")
