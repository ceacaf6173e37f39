"""Checks at run time: what they find, under which transforms, and that they cost nothing where nobody asks for them."""

import logging
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cross_entropy_options as samples
import jaxloss
from jaxloss._checks import debug
from public_calls import CALLS, IDS
from quickly import jit_quickly

NAN, INF = np.nan, np.inf
Z, A = np.zeros((3, 4), np.float32), np.full((3, 4), 0.25, np.float32)
LABELS = np.int32([0, 1, 3])
HIDDEN, KERNEL = np.ones((3, 2), np.float32), np.ones((2, 4), np.float32)


def but(x, place, value):
    x = x.copy()
    x[place] = value
    return x


WRONG = [  # function, operands, what the message holds
    ("categorical_cross_entropy", (Z, but(LABELS, 1, 4)), {}, ["target of row 1 is 4", "a class index from 0 to 3"]),
    ("categorical_cross_entropy", (Z, but(LABELS, 2, -1)), {"ignore_index": -100}, ["target of row 2 is -1"]),
    ("categorical_cross_entropy", (Z, LABELS), {"num_classes": 3}, ["target of row 2 is 3", "0 to 2"]),
    (
        "categorical_cross_entropy",
        (np.zeros((3, 3), np.float32), LABELS),
        {"axis": 0},
        ["target of row 2 is 3", "0 to 2"],
    ),
    ("categorical_cross_entropy", (but(Z, (2, 1), NAN), LABELS), {}, ["largest of logits of row 2 is nan", "finite"]),
    ("categorical_cross_entropy", (but(Z, (1, 1), INF), LABELS), {}, ["largest of logits of row 1 is inf"]),
    ("categorical_cross_entropy", (but(Z, 1, -INF), LABELS), {}, ["largest of logits of row 1 is -inf"]),
    ("d_categorical_cross_entropy", (Z, but(A, (1, 0), 0.5)), {}, ["sum of target of row 1 is 1.25", "expected 1"]),
    ("categorical_cross_entropy", (Z, but(A, (1, slice(2)), [-0.25, 0.75])), {}, ["least of target of row 1 is -0.25"]),
    ("categorical_cross_entropy_with_stats", (Z, LABELS), {"weights": np.float32([1, NAN, 1])}, ["weights of index 1"]),
    (
        "categorical_cross_entropy",
        (Z, LABELS),
        {"margin": np.float32([1, INF, 1])},
        ["margin of row 1 is inf", "expected a finite number"],
    ),
    ("log_prob", (Z, but(LABELS, 0, 9)), {}, ["labels of row 0 is 9"]),
    ("entropy", (but(Z, (0, 0), NAN),), {}, ["logits of row 0 is nan"]),
    ("binary_cross_entropy", (Z, but(A, (1, 2), 1.5)), {}, ["target of element 1, 2 is 1.5", "from 0 to 1"]),
    ("d_binary_cross_entropy", (but(Z, (1, 2), NAN), A), {}, ["logits of element 1, 2 is nan"]),
    ("binary_cross_entropy", (Z, np.full((3, 4), 2)), {"ignore_index": -1}, ["element 0, 0 is 2", "(11 more)"]),
    ("mse", (but(Z, (0, 3), NAN), A), {}, ["pred of element 0, 3 is nan"]),
    ("d_mae", (Z, but(A, (0, 3), NAN)), {}, ["target of element 0, 3 is nan"]),
    ("poisson_nll", (Z, but(A, (0, 3), -1)), {}, ["target of element 0, 3 is -1.0", "at least 0"]),
    ("gaussian_nll", (Z, A, but(A + 1, (0, 3), 0)), {}, ["variance of element 0, 3 is 0.0", "greater than 0"]),
    ("d_gaussian_nll", (Z, A, np.float32([[1], [1], [-1]])), {}, ["variance of element 2, 0 is -1.0", "(3 more)"]),
    ("mse", (Z, A), {"normalizer": np.float32(0)}, ["normalizer is 0.0", "other than 0"]),
    ("kl_divergence", (Z, A * 2), {}, ["sum of target of row 0 is 2.0", "(2 more)"]),
    (
        "kl_divergence",
        (Z, but(A, (1, 0), -1)),
        {},
        ["target of row 1 is -1.0", "at least 0; write target_type='logits'"],
    ),
    (
        "categorical_cross_entropy",
        (A, but(A, (1, 0), -1)),
        {},
        ["target of row 1 is -1.0", "logits and target swapped?"],
    ),
    ("jensen_shannon", (Z, but(Z, (1, 0), NAN)), {}, ["largest of teacher_logits of row 1 is nan"]),
    ("linear_cross_entropy", (HIDDEN, KERNEL, but(LABELS, 1, 4)), {}, ["labels of row 1 is 4"]),
    ("linear_cross_entropy", (HIDDEN, KERNEL, but(LABELS, 1, 4)), {"shift": 1}, ["labels of row 0 is 4"]),
    (
        "linear_log_prob",
        (HIDDEN, but(KERNEL, (0, 2), NAN), LABELS),
        {},
        ["linear_log_prob", "kernel", "index 2 is nan"],
    ),
    ("linear_cross_entropy", (but(HIDDEN, (1, 1), NAN), KERNEL, LABELS), {}, ["largest of hidden of row 1 is nan"]),
]
TRACED = {
    "huber": {"delta": -1.0},
    "quantile": {"q": 1.0},
    "binary_cross_entropy": {"label_smoothing": 2.0, "focal_gamma": -1.0, "focal_alpha": 2.0, "pos_weight": -1.0},
    "categorical_cross_entropy": {name: samples.outside(name)[-1] for name in samples.NUMBERS},
    "jensen_shannon": {"beta": 1.0, "temperature": 0.0},
}


@pytest.fixture(autouse=True)
def quiet():
    """What is found is logged, too."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def message(function, *operands) -> str:
    """What is said when it runs with checks; nothing if all is right."""
    try:
        with jaxloss.debug_checks():
            jax.block_until_ready(function(*operands))
    except ValueError as error:
        return str(error)
    return ""


def unchecked(function, *operands) -> None:
    """Nobody asks."""
    jax.block_until_ready(function(*operands))
    jax.effects_barrier()
    assert not debug._found


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(("name", "operands", "options", "words"), WRONG)
def test_what_is_wrong_is_named(name, operands, options, words, jitted):
    function = getattr(jaxloss, name)

    def call(*operands):
        return function(*operands, **options)

    call = jit_quickly(call) if jitted else call
    unchecked(call, *operands)
    said = message(call, *operands)
    unchecked(call, *operands)
    for word in (f"jaxloss.{name}: ", *words):
        assert word in said


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in TRACED for option in TRACED[name]])
def test_traced_options(name, option):
    target = LABELS if name.startswith("categorical") else A
    loss = jit_quickly(lambda number: getattr(jaxloss, name)(Z, target, **{option: number}))
    said = message(loss, TRACED[name][option])
    assert message(loss, 0.5) == ""
    assert f"jaxloss.{name}: {option} is {TRACED[name][option]}: expected a " in said


def test_what_is_left_out_may_hold_anything():
    """By a mask of rows, of elements or beside an axis of classes, by an index, and by a shift."""
    some = np.array([True, False, True])
    with jaxloss.debug_checks():
        jaxloss.categorical_cross_entropy(but(Z, 1, NAN), but(LABELS, 1, 9), where=some)
        jaxloss.categorical_cross_entropy(but(Z, 1, NAN), but(LABELS, 1, 9), where=some[:, None])
        jaxloss.categorical_cross_entropy(but(Z, 1, NAN).T.copy(), but(LABELS, 1, 9) % 9, where=some[None], axis=0)
        jaxloss.categorical_cross_entropy(but(Z, 1, NAN), but(LABELS, 1, -100), ignore_index=-100)
        jaxloss.categorical_cross_entropy(Z, LABELS, margin=np.float32([0.5, INF, 0.5]), where=some)
        jaxloss.categorical_cross_entropy(but(Z, 0, -INF)[1:], LABELS[1:])
        jaxloss.categorical_cross_entropy(but(Z, (0, 1), -INF), LABELS)
        jaxloss.binary_cross_entropy(but(Z, (1, 0), NAN), but(A, (1, 2), 3), where=some)
        jaxloss.binary_cross_entropy(but(Z, (1, 0), NAN), but(A, (1, 0), 3), where=but(Z == 0, (1, 0), False))
        jaxloss.binary_cross_entropy(Z, but(np.ones((3, 4), int), (1, 0), -1), ignore_index=-1)
        jaxloss.linear_cross_entropy(but(HIDDEN, 2, NAN), KERNEL, but(LABELS, 0, 9), shift=1)
        with jaxloss.debug_checks(False):
            jaxloss.mse(but(Z, 0, NAN), A)


@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_right_calls_are_quiet_and_the_same_module_without(call):
    """Also of what was traced with checks before; and with them the value is the same."""
    lowered = jax.jit(call.__call__).lower(call.operands).as_text()
    assert "callback" not in lowered
    if not call.name.startswith(("optax", "mixed")):
        bare = jax.jit(lambda operands: call.function.__wrapped__(**operands, **call.static))
        assert lowered.count("\n") == bare.lower(call.operands).as_text().count("\n")
        with jaxloss.debug_checks():
            assert "callback" in str(jax.make_jaxpr(call.__call__)(call.operands))
    assert jax.jit(call.__call__).lower(call.operands).as_text() == lowered


def test_a_function_that_was_jitted_before():
    """It is traced anew within, and outside runs what it was; in any other thread, too."""
    loss = jax.jit(jaxloss.categorical_cross_entropy)
    wrong = but(LABELS, 1, 4)
    unchecked(loss, Z, wrong)
    for _ in range(2):
        assert "target of row 1 is 4" in message(loss, Z, wrong)
        assert "target of row 1 is 4" in message(jax.value_and_grad(loss), Z, wrong)
        assert message(loss, Z, LABELS) == ""
        with jaxloss.debug_checks():
            thread = threading.Thread(target=lambda: unchecked(loss, Z, wrong))
            thread.start()
            thread.join()
        unchecked(loss, Z, wrong)


def test_what_is_found_is_logged_at_once_and_an_error_of_the_body_is_its_own(caplog):
    logging.disable(logging.NOTSET)
    loss, wrong = jit_quickly(jaxloss.categorical_cross_entropy), but(LABELS, 1, 4)

    def body():
        for _ in range(2):
            loss(Z, wrong)
            jax.effects_barrier()
        assert [record.name for record in caplog.records] == ["jaxloss"]
        assert "target of row 1 is 4" in caplog.text
        raise KeyError

    with pytest.raises(KeyError), jaxloss.debug_checks():
        body()
    with jaxloss.debug_checks():  # which is not told of it
        pass


TRANSFORMS = {
    "grad": lambda loss: jax.grad(loss),
    "jvp": lambda loss: lambda x, a: jax.jvp(lambda x: loss(x, a), (x,), (x,)),
    "vmap": lambda loss: lambda x, a: jax.vmap(loss)(jnp.stack([x, x]), jnp.stack([a, a])),
    "vmap of one": lambda loss: lambda x, a: jax.vmap(loss, (0, None))(jnp.stack([x, x]), a),
    "vmap_grad": lambda loss: lambda x, a: jax.vmap(jax.grad(loss), (None, 0))(x, jnp.stack([a, a])),
    "hessian": lambda loss: jax.hessian(loss),
    "checkpoint": lambda loss: jax.grad(jax.checkpoint(loss)),
    "scan": lambda loss: lambda x, a: jax.lax.scan(lambda c, x: (c + loss(x, a), None), 0.0, jnp.stack([x, x])),
    "cond": lambda loss: lambda x, a: jax.lax.cond(x.sum() == 0, loss, lambda x, a: 0.0, x, a),
}
PAIRS = {
    "categorical_cross_entropy": (Z, LABELS, but(LABELS, 1, 4)),
    "binary_cross_entropy": (Z, A, but(A, (1, 2), 1.5)),
    "kl_divergence": (Z, A, A * 2),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", PAIRS)
def test_transforms(name, transform):
    x, right, wrong = PAIRS[name]
    program = jit_quickly(TRANSFORMS[transform](getattr(jaxloss, name)))
    plain = jax.tree.leaves(program(x, right))
    with jaxloss.debug_checks():
        checked = jax.tree.leaves(program(x, right))
    assert f"jaxloss.{name}: " in message(program, x, wrong)
    for a, b in zip(plain, checked, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.several_devices
@pytest.mark.parametrize("by_hand", [False, True], ids=["jit", "shard_map"])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec(None, "x")], ids=["rows", "classes"])
@pytest.mark.parametrize("name", PAIRS)
def test_meshes(name, spec, axis_type, by_hand):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(axis_type,))
    loss, (x, right, wrong) = getattr(jaxloss, name), PAIRS[name]
    options = {}
    if by_hand and spec == PartitionSpec(None, "x"):
        if name.startswith("binary"):
            pytest.skip("has no axis_name")
        options = {"axis_name": "x"}
    x, right, wrong = (np.concatenate([array, array])[:4] for array in (x, right, wrong))
    of_target = spec if right.ndim == 2 else PartitionSpec(*spec[:1])

    def program(x, a):
        value, gradient = jax.value_and_grad(lambda x: loss(x, a, reduction="sum", **options))(x)
        return (value if options or not by_hand else jax.lax.psum(value, "x")), gradient

    if by_hand:
        program = jax.shard_map(program, mesh=mesh, in_specs=(spec, of_target), out_specs=(PartitionSpec(), spec))
    program = jit_quickly(program)
    placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in ((x, spec), (right, of_target), (wrong, of_target))]
    expected = program(*placed[:2])
    with jaxloss.debug_checks():
        np.testing.assert_array_equal(program(*placed[:2])[1], expected[1])
    assert f"jaxloss.{name}: " in message(program, placed[0], placed[2])


@pytest.mark.parametrize("enabled", [abs, "off", 1, None], ids=str)
def test_it_is_switched_by_a_boolean(enabled):
    hint = "; write @jaxloss.debug_checks()" if callable(enabled) else ""
    with pytest.raises(
        TypeError, match=re.escape(f"enabled has type {type(enabled).__name__}: expected True or False{hint}")
    ):
        jaxloss.debug_checks(enabled)
