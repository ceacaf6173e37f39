"""The options of the binary cross entropy, alone and in pairs: values and derivatives, traced numbers, infinities, errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxloss
import meshes
import oracles
import tolerance
from agreement import assert_agrees
from losses import (
    BINARY,
    BINARY_WITH_EVERYTHING,
    FLOATS,
    Case,
    binary_formula,
    everything,
    finfo,
    per_class,
)
from modules import collectives, custom_call_targets, of_size
from quickly import QUICKLY, jit_quickly

EVERYTHING = Case(BINARY_WITH_EVERYTHING, "probabilities")
SHAPE = (4, 3, 5)
ON = {
    "class_weights": {"class_weights": per_class(5)},
    "pos_weight": {"pos_weight": np.float32(1.75)},
    "pos_weight of classes": {"pos_weight": per_class(5)[::-1]},
    "label_smoothing": {"label_smoothing": np.float32(0.125)},
    "focal_gamma": {"focal_gamma": np.float32(1.5)},
    "focal_gamma below 1": {"focal_gamma": np.float32(0.5)},
    "focal_alpha": {"focal_alpha": np.float32(0.375)},
    "where": {"where": np.random.default_rng(1).random(SHAPE) < 0.7},
    "weights": {"weights": np.linspace(0.5, 2, 4, dtype=np.float32)},
}
PAIRS = [(name,) for name in ON] + [
    pair for pair in itertools.combinations(ON, 2) if not set(ON[pair[0]]) & set(ON[pair[1]])
]
# Numbers are traced, so that one program can stand for many pairs: with the others as good as off.
MASKS = {"where": np.ones(SHAPE, bool), "weights": np.ones(4, np.float32)}
ONE_NUMBER = {"pos_weight": np.float32(1), "label_smoothing": np.float32(0)}
ONE_A_CLASS = {**ONE_NUMBER, "class_weights": np.ones(5, np.float32), "pos_weight": np.ones(5, np.float32)}
FOCUSED = {**ONE_A_CLASS, "focal_gamma": np.float32(0), "focal_alpha": np.float32(0.5)}
PROGRAMS = {
    f"{name}, masked" if masked else name: {**off, **(MASKS if masked else {})}
    for name, off in (("weighted", ONE_NUMBER), ("weighted by class", ONE_A_CLASS), ("focal", FOCUSED))
    for masked in (False, True)
}


PROGRAMS_OF_REDUCTION = {"mean": list(PROGRAMS), "none": [name for name in PROGRAMS if "masked" in name]}


def first_program_of(options: dict, reduction: str) -> str:
    def takes(off: dict) -> bool:
        return all(name in off and np.shape(number) in ((), off[name].shape) for name, number in options.items())

    return next(program for program in PROGRAMS_OF_REDUCTION[reduction] if takes(PROGRAMS[program]))


def formula(x, a, *, where=None, weights=None, reduction="mean", **options):
    """The reduced loss as papers write it."""
    losses = binary_formula(x, a, **options)
    if weights is not None:
        losses = losses * weights[:, None, None]
    if where is not None:
        losses = jnp.where(where, losses, 0)
    if reduction == "none":
        return losses
    n = x.shape[0] if where is None else where.any((1, 2)).sum()
    return losses.sum() / n


def scalar_of(loss, reduction, where):
    """A scalar function of all operands by name."""

    def scalar(operands):
        rest = {name: operand for name, operand in operands.items() if name not in "xa"}
        value = loss(operands["x"], operands["a"], **rest, **where, reduction=reduction)
        return jnp.sum(value * jnp.cos(jnp.arange(value.size).reshape(value.shape)))

    return scalar


def derivatives(scalar, operands, tangents):
    """Value, gradients of all operands, forward mode along all of them, and second derivatives."""
    (value, gradients), (value_dot, gradients_dot) = jax.jvp(jax.value_and_grad(scalar), (operands,), (tangents,))
    return {"value": {"": value}, "gradient": gradients, "jvp": {"": value_dot}, "hvp": gradients_dot}


@functools.cache
def ours(reduction):
    def run(operands, where, tangents):
        scalar = scalar_of(BINARY, reduction, where)
        alone = {"value": scalar(operands), "jvp": jax.jvp(scalar, (operands,), (tangents,))[1]}
        return derivatives(scalar, operands, tangents), alone

    return jax.jit(run, compiler_options=QUICKLY)


@functools.cache
def of_formula(reduction):
    def run(operands, where, tangents):
        return derivatives(scalar_of(formula, reduction, where), operands, tangents)

    return jax.jit(run, compiler_options=QUICKLY)


def exactly(reduction, operands, where, tangents):
    """The formula's derivatives, by one program for all sets of options: those that are not there change nothing.

    But for focal_alpha, which halves everything where it is not there.
    """
    everything = {**FOCUSED, "weights": MASKS["weights"]}
    whole = {name: np.broadcast_to(operands.get(name, off), np.shape(off)) for name, off in everything.items()}
    dots = {name: np.broadcast_to(tangents.get(name, np.float32(0)), np.shape(off)) for name, off in everything.items()}
    with jax.enable_x64(True):
        exact = jax.tree.map(np.float64, ({**operands, **whole}, {**tangents, **dots}))
        results = of_formula(reduction)(exact[0], {"where": where.get("where", MASKS["where"])}, exact[1])
    factor = 1 if "focal_alpha" in operands else 2
    return jax.tree.map(lambda result: factor * np.asarray(result), results)


@pytest.mark.parametrize(
    ("program", "reduction"),
    [(program, reduction) for reduction, programs in PROGRAMS_OF_REDUCTION.items() for program in programs],
)
def test_alone_and_in_pairs(program, reduction):
    """Every option with every other one, against the formula in float64."""
    x, a = EVERYTHING.sample(SHAPE, scale=1)
    v = EVERYTHING.sample(SHAPE, seed=1, scale=1)[0]
    of_pairs = [functools.reduce(dict.__or__, (ON[name] for name in pair)) for pair in PAIRS]
    of_program = [options for options in of_pairs if first_program_of(options, reduction) == program]
    assert of_program
    for on in of_program:
        options = {
            name: np.broadcast_to(on[name], number.shape) if name in on else number
            for name, number in PROGRAMS[program].items()
        }
        where = {name: options.pop(name) for name in ("where",) if name in options}
        operands = {"x": x, "a": a, **options}
        tangents = {"x": v, "a": 0.5 * v, **{name: number + np.float32(0.25) for name, number in options.items()}}
        actual, alone = ours(reduction)(operands, where, tangents)
        expected = exactly(reduction, operands, where, tangents)

        def check(result, ideal, what, on=on):
            ideal = ideal if np.shape(result) == ideal.shape else ideal.sum()  # a number that classes share
            tolerance.assert_close(
                result,
                ideal,
                f"{what} with {on}",
                operations=tolerance.OPERATIONS_OF_HIGHER_ORDER,
                terms=x.size,
                magnitude=1 / SHAPE[0] if reduction == "mean" else 1,
            )

        for what, results in actual.items():
            for name, result in results.items():
                check(result, expected[what][name], f"{what} {name}")
        for what, result in alone.items():
            check(result, expected[what][""], f"{what} alone")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_types(dtype, reduction):
    """Everything at once, against the definition in NumPy; also of logits beyond the clip."""
    assert_agrees(EVERYTHING, *EVERYTHING.sample((6, 37), dtype, scale=10), reduction=reduction)


@pytest.mark.parametrize("shape", [(7,), (6, 1), (1, 1023), (33, 5), (2, 3, 20_001)], ids=str)
def test_shapes(shape):
    """Weights of classes that fill vectors, that do not, and that begin anew within one."""
    x, a = EVERYTHING.sample(shape)
    assert_agrees(EVERYTHING, x, a)
    weights = np.linspace(0.5, 2, shape[0], dtype=np.float32)
    assert_agrees(EVERYTHING, x, a, weights=weights, where=np.arange(shape[0]) % 3 > 0)
    where = np.random.default_rng(0).random(shape) < 0.6
    assert_agrees(EVERYTHING, np.where(where, x, np.nan), a, where=where, clip=None)


def test_a_logit_without_axes():
    loss = functools.partial(jaxloss.binary_cross_entropy, pos_weight=2.0, focal_gamma=1.0)
    tolerance.assert_close(loss(np.float32(0.5), 1), loss(np.float32([0.5]), np.int32([1])), "a scalar")


COMBINATIONS = [
    {"pos_weight": 2.0},
    {"focal_gamma": 2.0},
    {"focal_gamma": 0.25, "focal_alpha": 0.25, "pos_weight": 0.5},
    {"focal_alpha": 1.0},
    {"focal_gamma": 3.0, "label_smoothing": 0.25, "class_weights": np.float32([1.5])},
]


@pytest.mark.usefixtures("path")
def test_float32_options_of_float64_logits():
    """They are float64 before anything is made of them, such as 1 − α or a product of weights."""
    options = {"class_weights": per_class(5) / 3, "pos_weight": np.float32(1.7), "focal_alpha": np.float32(0.3)}
    x, a = Case(BINARY, "probabilities").sample((4, 5), "float64")
    exact = {name: option.astype(np.float64) for name, option in options.items()}
    terms = oracles.binary_cross_entropy_with_options(x, a, 1e-7, **exact)
    with jax.enable_x64(True):
        losses = jaxloss.binary_cross_entropy(x, a, reduction="none", **options)
        gradient = jaxloss.d_binary_cross_entropy(x, a, reduction="sum", **options)
    for actual, (expected, size) in ((losses, terms.loss), (gradient, terms.of_prediction)):
        error = tolerance.bound(expected, size, computed=np.float64, stored=np.float64)
        tolerance.assert_within(actual, expected, error, "of float64")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: "-".join(options))
def test_ends_of_the_type(options, dtype):
    """Logits that are infinite, as large as can be, or nearly nothing, with hard and soft targets."""
    largest, least = finfo(dtype).max, finfo(dtype).smallest_normal
    logits = np.array([np.inf, -np.inf, largest, -largest, 90, -90, 17, -17, least, 0])
    x = np.concatenate([logits] * 3)[:, None].astype(dtype)
    a = np.repeat([1, 0, 0.25], 10)[:, None].astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        losses, gradient = (
            np.asarray(function(jnp.asarray(x), jnp.asarray(a), reduction="none", **options))
            for function in (jaxloss.binary_cross_entropy, jaxloss.d_binary_cross_entropy)
        )
        (summed, by_kernel) = jax.value_and_grad(jaxloss.binary_cross_entropy)(
            jnp.asarray(x), jnp.asarray(a), reduction="sum", **options
        )
    with np.errstate(all="ignore"):
        exact = oracles.binary_cross_entropy_with_options(
            x.astype(np.float64), a.astype(np.float64), 1e-7, **{"class_weights": 1.0, **options}
        )
    computed = tolerance.arithmetic(dtype)
    for actual, (ideal, size), terms in (
        (losses, exact.loss, 1),
        (gradient, exact.of_prediction, 1),
        (np.asarray(by_kernel), exact.of_prediction, 1),
        (np.asarray(summed), tuple(part.sum() for part in exact.loss), x.size),
    ):
        error = tolerance.bound(ideal, size, computed=computed, stored=actual.dtype, terms=terms)
        tolerance.assert_within(actual, ideal, error, "an end")


@pytest.mark.parametrize("options", COMBINATIONS[:-1], ids=lambda options: "-".join(options))  # no smoothed target
def test_certain_logits_that_are_right_have_no_derivatives(options):
    """Exactly: neither value nor gradient, of logits and of numbers, nor a second derivative; all are finite."""
    x, a = np.float32([[np.inf], [-np.inf], [500]]), np.float32([[1], [0], [1]])
    names = list(options)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
    def everything_of(reduction, x, *numbers):
        def loss(x, *numbers):
            named = dict(zip(names, numbers, strict=True))
            return jaxloss.binary_cross_entropy(x, a, clip=None, reduction=reduction, **named).sum()

        places = tuple(range(1 + len(numbers)))
        gradients = jax.grad(loss, places)(x, *numbers)
        second = jax.grad(lambda x: jax.grad(loss)(x, *numbers).sum())(x)
        mixed = jax.grad(lambda *numbers: jax.grad(loss)(x, *numbers).sum(), places[:-1])(*numbers) if numbers else ()
        return loss(x, *numbers), gradients, second, mixed

    for reduction in ("sum", "none"):
        for result in jax.tree.leaves(everything_of(reduction, x, *(options[name] for name in names))):
            assert (np.asarray(result) == 0).all(), result


def test_hard_targets_in_every_derivative():
    """Where q is that of one class alone, the derivatives with respect to target and smoothing go on."""
    x = np.float32([[-3, -0.5, 0, 0.5, 3, 12]])
    a = np.float32([[1, 0, 1, 0, 1, 1]])

    def derivatives(loss, x, a):
        def scalar(x, a, gamma):
            return loss(x, a, focal_gamma=gamma, reduction="none").sum()

        gradient = jax.grad(scalar, (0, 1, 2))
        return [gradient(x, a, 1.5), jax.jvp(gradient, (x, a, 1.5), (jnp.cos(x), jnp.sin(x), 0.5))[1]]

    compiled = functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)(derivatives)
    actual = compiled(functools.partial(BINARY, clip=None), x, a)
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, compiled(formula_of_2_axes, np.float64(x), np.float64(a)))
    for ours, exact in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        tolerance.assert_close(ours, exact, "a derivative", operations=tolerance.OPERATIONS_OF_HIGHER_ORDER)


def formula_of_2_axes(x, a, *, focal_gamma, reduction):
    del reduction
    return binary_formula(x, a, focal_gamma=focal_gamma)


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint8"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignore_index(dtype, reduction):
    """Elements, together with those that `where` leaves out, are as if masked; examples of no other element do not count."""
    case = Case(BINARY_WITH_EVERYTHING, "integers")
    x, a = case.sample((5, 7), target_dtype=dtype)
    ignored = np.random.default_rng(2).random((5, 7)) < 0.4
    ignored[2] = True
    where = np.array([True, True, True, False, True])
    marker = 255 if dtype == "uint8" else -1
    marked = np.where(ignored, marker, a).astype(dtype)
    hidden = np.where(ignored, np.nan, x)
    for counted, mask in ((~ignored, {}), (~ignored & where[:, None], {"where": where})):
        expected = case.expected(x, a, where=counted, reduction=reduction)
        loss = functools.partial(case.loss, ignore_index=marker, reduction=reduction, **mask)
        value = loss(hidden, marked)
        gradient = jax.grad(lambda x, loss=loss: loss(x, marked).sum())(hidden)
        for actual, exact in ((value, expected.value), (gradient, expected.of_prediction)):
            error = tolerance.bound(*exact, computed=np.float32, stored=np.float32, terms=x.size)
            tolerance.assert_within(actual, exact[0], error, "a loss of ignored elements")
        assert (np.asarray(gradient)[~counted] == 0).all()


def test_ignore_index_that_the_type_cannot_hold():
    x, a = Case(BINARY, "integers").sample((3, 4), target_dtype="uint8")
    assert jaxloss.binary_cross_entropy(x, a, ignore_index=-100) == jaxloss.binary_cross_entropy(x, a)


PLAIN, WEIGHTED, FOCAL = (f"jaxloss_{name}binary_cross_entropy_value_and_grad" for name in ("", "weighted_", "focal_"))


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, PLAIN),
        ({"label_smoothing": 0}, PLAIN),
        ({"label_smoothing": 0.0, "focal_gamma": None, "pos_weight": None}, PLAIN),
        ({"focal_gamma": 0.0}, PLAIN),
        ({"label_smoothing": 0.5}, WEIGHTED),
        ({"pos_weight": 3.0}, WEIGHTED),
        ({"class_weights": per_class(64), "pos_weight": per_class(64)}, WEIGHTED),
        ({"focal_gamma": 2.0}, FOCAL),
        ({"focal_alpha": 0.25}, FOCAL),
        (everything(64), FOCAL),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_options_that_are_off_cost_nothing(options, target):
    x, a = EVERYTHING.sample((16, 64))
    module = jax.jit(jax.value_and_grad(functools.partial(BINARY, **options))).lower(x, a).compile()
    assert custom_call_targets(module) == [target]
    assert of_size(module, x.size) == ["custom-call"]


def test_traced_numbers_compile_once_and_in_one_call():
    x, a = EVERYTHING.sample((16, 64))
    traced = []

    @jit_quickly
    def step(x, a, options):
        traced.append(options)
        return jax.value_and_grad(lambda x: BINARY(x, a, **options))(x)

    options = jax.tree.map(np.asarray, everything(64))
    others = {name: (0.5 * number).astype(number.dtype) for name, number in options.items()}
    module = step.lower(x, a, options).compile()
    assert custom_call_targets(module) == [FOCAL]
    assert of_size(module, x.size) == ["custom-call"]
    traced.clear()
    assert step(x, a, options)[0] != step(x, a, others)[0]
    assert len(traced) <= 1


def test_numbers_may_be_of_python_or_arrays():
    x, a = EVERYTHING.sample((3, 5))
    numbers = everything(5)
    arrays = {name: jnp.asarray(number) for name, number in numbers.items()}
    assert jaxloss.binary_cross_entropy(x, a, **numbers) == jaxloss.binary_cross_entropy(x, a, **arrays)
    of_positive = functools.partial(jaxloss.binary_cross_entropy, x, a, pos_weight=per_class(5), focal_gamma=1.5)
    assert of_positive() == of_positive(class_weights=np.ones(5, np.float32))
    lists = {**numbers, "class_weights": numbers["class_weights"].tolist(), "pos_weight": 2}
    assert np.isfinite(jaxloss.binary_cross_entropy(x, a, **lists))
    traced = jax.jit(lambda number: jaxloss.binary_cross_entropy(x, a, label_smoothing=number, focal_gamma=number))(0.0)
    tolerance.assert_close(traced, jaxloss.binary_cross_entropy(x, a), "options that are traced and 0")


def test_batches_of_options():
    """A model of each row of a stack, with options of its own."""
    x, a = EVERYTHING.sample((4, 5))
    xs, targets = np.stack([x, -x]), np.stack([a, 1 - a])
    stacked = {name: np.stack([number, 0.5 * number]) for name, number in everything(5).items()}
    where = np.random.default_rng(3).random((2, 4, 5)) < 0.7

    def loss(x, a, options, where):
        return BINARY(x, a, where=where, **options)

    value_and_grad = jax.value_and_grad(loss, (0, 2))
    of_one = jax.jit(value_and_grad, compiler_options=QUICKLY)
    gradient = jax.jit(jax.vmap(value_and_grad), compiler_options=QUICKLY)(xs, targets, stacked, where)
    for i in range(2):
        options = {name: numbers[i].astype(np.float32) for name, numbers in stacked.items()}
        alone = of_one(xs[i], targets[i], options, where[i])
        for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(alone), strict=True):
            tolerance.assert_close(one[i], other, "one of a batch", terms=20, magnitude=1)


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
@meshes.AXIS_TYPES
def test_weights_of_classes_are_split_with_the_classes(axis_type):
    """So are their gradients; between the devices travel numbers of one a row or a class."""
    x, a = EVERYTHING.sample((16, 3, 64))
    mesh = meshes.mesh(axis_type)
    options = everything(64)

    def loss(x, class_weights, pos_weight, a):
        return BINARY(x, a, **{**options, "class_weights": class_weights, "pos_weight": pos_weight})

    operands = (x, options["class_weights"], np.ascontiguousarray(options["pos_weight"]), a)
    value_and_grad = jax.value_and_grad(loss, (0, 1, 2))
    expected = jit_quickly(value_and_grad)(*operands)
    with jax.set_mesh(mesh):
        of_logits, of_classes = PartitionSpec("d", None, "v"), PartitionSpec("v")
        specs = (of_logits, of_classes, of_classes, of_logits)
        placed = [jax.device_put(t, NamedSharding(mesh, spec)) for t, spec in zip(operands, specs, strict=True)]
        compiled = jit_quickly(value_and_grad).lower(*placed).compile()
        results = compiled(*placed)
    for kind, size in collectives(compiled):
        assert kind == "all-reduce"
        assert size <= 64
    for operand, gradient in zip(placed, results[1], strict=False):
        assert gradient.sharding.is_equivalent_to(operand.sharding, operand.ndim)
    for one, other in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        tolerance.assert_close(one, other, "a result on a mesh", terms=x.size)


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
def test_numbers_that_every_device_of_a_shard_map_holds():
    """Each of their gradients is the sum of what the devices have, whichever is inside of the other."""
    x, a = EVERYTHING.sample((16, 5))
    mesh = meshes.mesh()
    rows, all_of_it = PartitionSpec("d"), PartitionSpec()
    options = jax.tree.map(jnp.asarray, everything(5))

    def loss(x, a, options):
        return BINARY(x, a, reduction="sum", **options)

    def value_and_grad(x, a, options):
        value, gradients = jax.value_and_grad(loss, (0, 2))(x, a, options)
        return jax.lax.psum(value, "d"), gradients

    specs = (rows, rows, all_of_it)
    split = functools.partial(jax.shard_map, mesh=mesh, in_specs=specs)
    inside = split(value_and_grad, out_specs=(all_of_it, (rows, all_of_it)))
    outside = split(lambda *operands: jax.lax.psum(loss(*operands), "d"), out_specs=all_of_it)
    results = jit_quickly(lambda *operands: (inside(*operands), jax.value_and_grad(outside, (0, 2))(*operands)))(
        x, a, options
    )
    expected = jax.jit(jax.value_and_grad(loss, (0, 2)), compiler_options=QUICKLY)(x, a, options)
    for result in results:
        for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            tolerance.assert_close(one, other, "a result of a shard_map", terms=x.size, magnitude=1)


X = np.zeros((2, 3), np.float32)
WRONG = [
    ({"label_smoothing": -0.1}, ValueError, ("label_smoothing", "-0.1", "from 0 to 1")),
    ({"label_smoothing": 1.5}, ValueError, ("label_smoothing", "1.5", "from 0 to 1")),
    ({"label_smoothing": None}, TypeError, ("label_smoothing", "None", "0")),
    ({"label_smoothing": X}, ValueError, ("label_smoothing", "(2, 3)", "scalar")),
    ({"label_smoothing": 1j}, TypeError, ("label_smoothing", "complex", "from 0 to 1")),
    ({"focal_gamma": -1}, ValueError, ("focal_gamma", "-1", "at least 0")),
    ({"focal_gamma": np.array(-2.0)}, ValueError, ("focal_gamma", "-2.0", "at least 0")),
    ({"focal_gamma": float("inf")}, ValueError, ("focal_gamma", "inf", "at least 0")),
    ({"focal_alpha": 1.01}, ValueError, ("focal_alpha", "1.01", "from 0 to 1")),
    ({"focal_alpha": True}, TypeError, ("focal_alpha", "bool")),
    ({"pos_weight": -2.0}, ValueError, ("pos_weight", "-2.0", "at least 0")),
    ({"pos_weight": np.ones(2, np.float32)}, ValueError, ("pos_weight", "(2,)", "(2, 3)", "(3,)", "scalar")),
    ({"pos_weight": X}, ValueError, ("pos_weight", "(2, 3)", "(3,)")),
    ({"class_weights": np.ones(2, np.float32)}, ValueError, ("class_weights", "(2,)", "(2, 3)", "(3,)")),
    ({"class_weights": 2.0}, ValueError, ("class_weights", "()", "(3,)")),
    ({"class_weights": np.ones(3, bool)}, TypeError, ("class_weights", "bool")),
    ({"ignore_index": -100}, ValueError, ("ignore_index", "-100", "float32", "integer", "where=")),
]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("options", "error", "words"), WRONG)
def test_wrong_options(options, error, words, gradient):
    function = jaxloss.d_binary_cross_entropy if gradient else jaxloss.binary_cross_entropy
    with pytest.raises(error) as raised:
        function(X, X, **options)
    for word in words:
        assert word in str(raised.value)


def test_wrong_ignore_index():
    with pytest.raises(TypeError, match="ignore_index has type float"):
        jaxloss.binary_cross_entropy(X, X.astype(np.int32), ignore_index=1.0)
    with pytest.raises(ValueError, match="bool"):
        jaxloss.binary_cross_entropy(X, X > 0, ignore_index=1)


def test_weights_of_the_classes_of_a_scalar():
    with pytest.raises(ValueError, match=r"class_weights.*axis of classes"):
        jaxloss.binary_cross_entropy(np.float32(0), 1, class_weights=[1.0])
