"""The options of cross entropy, alone and in pairs, against one formula in float64 that has them all.

An option that is off has a number that changes nothing there (a softcap of 1e9, a temperature of 1), so the formula is
compiled once a kind of target, and each set of options of jaxloss is compared with it: value, every gradient, forward mode
and second order.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cross_entropy_options as samples
import jaxloss
import tolerance
from jaxloss._spec import OPTIONS
from modules import custom_call_targets, of_size
from quickly import QUICKLY, jit_quickly

ROWS, CLASSES, COUNTED = 6, 37, 30
TRACED = samples.TRACED
ON = samples.on(samples.ARGUMENTS, CLASSES) | {"normalizer": "weights"}
OFF = samples.neutral(CLASSES) | {"normalizer": None}
assert ON["num_classes"] == COUNTED
SETS = [*itertools.combinations(ON, 1), *itertools.combinations(ON, 2)]
CELLS = [
    (kind, names)
    for kind in samples.TARGETS
    for names in (*SETS, tuple(ON))
    if names == tuple(ON) or all(samples.applies(name, kind) for name in names)
]
targets = pytest.mark.parametrize("kind", samples.TARGETS)


def sample(kind, dtype="float32", shape=(ROWS, CLASSES), seed=0):
    """Logits, a target, the share of its first labels or None, and a tangent of the logits."""
    rng = np.random.default_rng(seed)
    x, v = (rng.normal(size=shape) * scale for scale in (3, 1))
    labels, others = (rng.integers(0, min(COUNTED, shape[-1]), shape[:-1], np.int32) for _ in range(2))
    target = {
        "indices": labels,
        "probabilities": (rng.random(shape) / shape[-1]).astype(dtype),
        "mixed": (labels, others),
    }
    mix = rng.random(shape[:-1]).astype(np.float32) if kind == "mixed" else None
    return x.astype(dtype), target[kind], mix, v.astype(dtype)


def whole_target(target, mix):
    return target if mix is None else (*target, mix)


def exact_rows(
    x, target, mix, class_weights, label_smoothing, z_loss, softcap, margin, temperature, num_classes, clip=None
):
    """Each row's loss in plain `jax.numpy`."""
    counted = jnp.arange(x.shape[-1]) < num_classes
    a = exact_target(x, target, mix)
    lowered = softcap * jnp.tanh(x / softcap) - jnp.asarray(margin)[..., None] * a
    z = jnp.where(counted, lowered / temperature, -jnp.inf)
    log_softmax = jax.nn.log_softmax(z)
    b = jnp.where(counted, class_weights * ((1 - label_smoothing) * a + label_smoothing / num_classes), 0)
    nll = jnp.where(counted, -jnp.where(counted, log_softmax, 0), 0)
    if clip:
        nll = jnp.minimum(nll, -np.log(clip))
    return (b * nll).sum(-1) + z_loss * jax.nn.logsumexp(z, axis=-1) ** 2


def exact_target(x, target, mix):
    def one_hot(labels):
        return jax.nn.one_hot(labels, x.shape[-1], dtype=x.dtype)

    if mix is not None:
        return mix[..., None] * one_hot(target[0]) + (1 - mix[..., None]) * one_hot(target[1])
    return one_hot(target) if jnp.issubdtype(target.dtype, jnp.integer) else target


def derivatives(loss, operands, along):
    """Value and gradients of the operands that `along` has directions of, and along these: forward mode, second order."""

    def of_live(live):
        return loss({**operands, **live})

    live = {name: operands[name] for name in along}
    value, gradients = jax.value_and_grad(of_live)(live)
    forward, second = jax.value_and_grad(lambda live: jax.jvp(of_live, (live,), (along,))[1])(live)
    return {"value": {"": value}, "gradient": gradients, "jvp": {"": forward}, "hvp": second}


@functools.cache
def exactly(by_weights):
    """The formula's derivatives with respect to everything, compiled once a kind of target for all sets of options."""

    def loss(operands):
        x, target, mix = operands["x"], operands["target"], operands.get("mix")
        options = {name: operands[name] for name in (*TRACED, "num_classes")}
        if not by_weights:
            return exact_rows(x, target, mix, **options).mean()
        counted = jnp.where(jnp.arange(x.shape[-1]) < options["num_classes"], exact_target(x, target, mix), 0)
        return exact_rows(x, target, mix, **options).sum() / (counted * options["class_weights"]).sum()

    return jax.jit(lambda operands, along: derivatives(loss, operands, along), compiler_options=QUICKLY)


def wide(tree):
    return jax.tree.map(lambda t: t if np.asarray(t).dtype.kind in "iub" else np.asarray(t, np.float64), tree)


def check(actual, expected, what, computed=np.float32, terms=ROWS * CLASSES):
    for name in ("value", "gradient", "jvp", "hvp"):
        operations = tolerance.OPERATIONS if name in ("value", "gradient") else tolerance.OPERATIONS_OF_HIGHER_ORDER
        for place, ours in actual[name].items():
            tolerance.assert_close(
                ours,
                expected[name][place],
                f"{name} {place} of {what}",
                computed=computed,
                operations=operations,
                terms=terms,
                magnitude=1.0,
            )


@pytest.mark.parametrize(("kind", "names"), CELLS, ids=[f"{kind}-{'-'.join(names)}" for kind, names in CELLS])
def test_alone_and_in_pairs(kind, names):
    names = [name for name in names if samples.applies(name, kind)]
    x, target, mix, v = sample(kind)
    traced = {name: ON[name] for name in names if name in TRACED}
    static = {name: ON[name] for name in names if name not in TRACED}
    operands = {"x": x, "target": target, **({} if mix is None else {"mix": mix}), **traced}
    live = [name for name, t in operands.items() if name != "target" or kind == "probabilities"]
    along = {name: np.cos(np.arange(operands[name].size)).reshape(operands[name].shape) for name in live} | {"x": v}
    along = {name: direction.astype(np.float32) for name, direction in along.items()}

    def ours(operands):
        options = {name: operands[name] for name in traced}
        target = whole_target(operands["target"], operands.get("mix"))
        return jaxloss.categorical_cross_entropy(operands["x"], target, clip=None, **options, **static)

    run = jax.jit(lambda operands, along: derivatives(ours, operands, along), compiler_options=QUICKLY)
    actual = run(operands, along)
    with jax.enable_x64(True):
        options = {name: operands.get(name, static.get(name, OFF[name])) for name in (*TRACED, "num_classes")}
        everywhere = {name: np.zeros_like(OFF[name]) for name in TRACED} | along
        expected = exactly("normalizer" in names)(wide({**operands, **options}), wide(everywhere))
    check(actual, expected, names)


# ---- everything at once ----------------------------------------------------------------------------------------------


def everything(kind, **but):
    return samples.on(samples.ARGUMENTS, CLASSES, kind) | but


def exactly_everything(kind, **but):
    """And neutral numbers for what is of other kinds of targets."""
    return {name: OFF[name] for name in samples.ARGUMENTS} | everything(kind, **but)


@functools.partial(jax.jit, static_argnames="clip", compiler_options=QUICKLY)
def exact_losses_and_gradient(x, target, mix, options, cotangent, clip):
    """Each row's loss with that clip, and the gradient of Σ cotangent · loss without one."""
    _, pull = jax.vjp(lambda x: exact_rows(x, target, mix, **options), x)
    return exact_rows(x, target, mix, **options, clip=clip), pull(cotangent)[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@targets
def test_types(kind, dtype):
    x, target, mix, _ = sample(kind, dtype)
    with jax.enable_x64(dtype == "float64"):
        of_x = jax.jit(
            jax.value_and_grad(
                lambda x: jaxloss.categorical_cross_entropy(x, whole_target(target, mix), clip=None, **everything(kind))
            ),
            compiler_options=QUICKLY,
        )(x)
    with jax.enable_x64(True):
        ones = np.ones(ROWS)
        losses, gradient = exact_losses_and_gradient(
            *wide((x, target, mix, exactly_everything(kind), ones / ROWS)), None
        )
        expected = losses.mean(), gradient
    computed = tolerance.arithmetic(dtype)
    assert (of_x[0].dtype, of_x[1].dtype) == (computed, x.dtype)
    for actual, exact in zip(of_x, expected, strict=True):
        tolerance.assert_close(actual, exact, dtype, computed=computed, terms=x.size, magnitude=1.0)


@pytest.mark.parametrize("shape", [(5, 1), (33, 2), (9, 10), (3, 64), (2, 65), (4, 1000), (2, 4099), (0, 7)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@targets
def test_widths(kind, dtype, shape):
    """Rows of every length, unreduced, with a where and weights, of which some are 0; what is left out holds NaN."""
    but = {"num_classes": max(1, shape[-1] - 3), "class_weights": np.linspace(0.5, 2, shape[-1]).astype("f")}
    options = everything(kind, **but)
    rng = np.random.default_rng(1)
    x, target, mix, _ = sample(kind, dtype, shape)
    if kind != "probabilities":
        target = jax.tree.map(lambda t: t % options["num_classes"], target)
    where, weights = np.arange(shape[0]) % 3 != 1, np.resize(np.float32([1, 0.5, -2, 0]), shape[0])
    cotangent = rng.normal(size=shape[0]).astype(np.float32)
    clean = wide(x)
    x[~where] = np.nan
    x[:, options["num_classes"] :] = np.nan

    def of_rows(x):
        return jaxloss.categorical_cross_entropy(
            x, whole_target(target, mix), where=where, weights=weights, clip=1e-2, reduction="none", **options
        )

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(x):
        gradient = jaxloss.d_categorical_cross_entropy(
            x, whole_target(target, mix), where=where, weights=weights * cotangent, reduction="sum", **options
        )
        return of_rows(x), gradient, jax.vjp(of_rows, x)[1](cotangent)[0]

    losses, gradient, pulled = run(x)
    with jax.enable_x64(True):
        operands = (
            clean,
            *wide((target, mix, exactly_everything(kind, **but))),
            where * wide(weights) * wide(cotangent),
        )
        unweighted, expected_gradient = exact_losses_and_gradient(*operands, 1e-2)
        expected = np.where(where, wide(weights) * unweighted, 0)
        expected_gradient = np.asarray(expected_gradient)
    tolerance.assert_close(losses, expected, "losses", terms=shape[-1], magnitude=1.0)
    for actual in (gradient, pulled):
        assert (np.asarray(actual, np.float32)[:, options["num_classes"] :] == 0).all()
        assert (np.asarray(actual, np.float32)[~where] == 0).all()
        tolerance.assert_close(actual, expected_gradient, "gradient", terms=shape[-1], magnitude=1.0)


def test_padding_may_hold_anything_and_nothing_else_notices():
    x, labels, _, v = sample("indices")
    poisoned = x.copy()
    poisoned[:, COUNTED:] = np.resize(np.float32([np.nan, np.inf, -np.inf, 3e38]), (ROWS, CLASSES - COUNTED))

    def of(options):
        def loss(x):
            return jaxloss.categorical_cross_entropy(x, labels, label_smoothing=0.1, softcap=5.0, **options)

        return jax.jit(
            lambda x, v: (*jax.value_and_grad(loss)(x), *jax.jvp(jax.grad(loss), (x,), (v,))),
            compiler_options=QUICKLY,
        )

    padded = of({"num_classes": COUNTED})(poisoned, v)
    narrow = of({})(x[:, :COUNTED], v[:, :COUNTED])
    for ours, exact in zip(padded, narrow, strict=True):
        if np.ndim(ours):
            assert (ours[:, COUNTED:] == 0).all()
            ours = ours[:, :COUNTED]
        tolerance.assert_close(ours, exact, "a result of padded logits", terms=CLASSES, magnitude=1.0)


def test_labels_among_the_padding_and_beyond_are_out_of_range():
    x, labels, _, _ = sample("indices")
    for wrong in (COUNTED, CLASSES - 1, CLASSES, -1):
        labels[2] = wrong
        losses = jaxloss.categorical_cross_entropy(x, labels, num_classes=COUNTED, z_loss=0.1, reduction="none")
        gradient = jaxloss.d_categorical_cross_entropy(x, labels, num_classes=COUNTED, z_loss=0.1)
        assert np.isnan(losses[2])
        assert np.isfinite(np.delete(losses, 2)).all()
        assert (gradient[2] == 0).all()
        mixed = jaxloss.categorical_cross_entropy(x, (labels, labels * 0, 0.5), num_classes=COUNTED, reduction="none")
        assert np.isnan(mixed[2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infinite_logits_of_classes_that_are_no_target(smoothing):
    """Masked classes, which nothing is smoothed over: they take no part in anything, and no derivative is NaN."""
    x, labels, _, v = sample("indices")
    x[:, 5] = -np.inf
    labels[labels == 5] = 6
    others = (labels + 7) % 30
    others[others == 5] = 4

    def loss(x, temperature, mix):
        options = {"temperature": temperature, "z_loss": 0.1, "label_smoothing": smoothing}
        return jaxloss.categorical_cross_entropy(x, (labels, others, mix), **options)

    operands = (x, np.float32(2), np.float32(0.3))
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)), compiler_options=QUICKLY)(*operands)
    assert all(np.isfinite(g).all() for g in gradients)
    assert (gradients[0][:, 5] == 0).all()
    along = jax.grad(lambda x: jax.jvp(lambda x: loss(x, *operands[1:]), (x,), (v,))[1])
    assert np.isfinite(jax.jit(along, compiler_options=QUICKLY)(x)).all()
    exact = jaxloss.categorical_cross_entropy(x, labels, label_smoothing=smoothing, clip=None)
    assert np.isfinite(exact)


def test_an_offset_of_all_logits_costs_no_digits():
    x, labels, _, _ = sample("indices")
    x = np.round(x * 64) / 64  # so that the sum is exact
    options = {"label_smoothing": 0.1, "class_weights": ON["class_weights"], "clip": None}
    near, far = (jaxloss.categorical_cross_entropy(x + np.float32(c), labels, **options) for c in (0, 1e4))
    tolerance.assert_close(far, near, "a loss far from 0", terms=CLASSES)


# ---- numbers that are traced -----------------------------------------------------------------------------------------


def test_a_schedule_does_not_compile_anew():
    x, labels, _, _ = sample("indices")

    @jax.jit
    def step(x, options):
        return jax.value_and_grad(jaxloss.categorical_cross_entropy)(x, labels, **options)

    for i in range(3):
        step(x, {name: ON[name] * (1 + i) for name in TRACED})
    assert step._cache_size() == 1


def test_batched_options():
    """Each member of a batch has numbers of its own."""
    x, labels, _, _ = sample("indices")
    batch = {name: np.stack([ON[name] * factor for factor in (1, 0.5, 2)]).astype(np.float32) for name in TRACED}

    def gradients(options):
        def loss(x, options):
            return jaxloss.categorical_cross_entropy(x, labels, clip=None, **options)

        return jax.value_and_grad(loss, (0, 1))(x, options)

    batched = jit_quickly(jax.vmap(gradients))(batch)
    of_one = jit_quickly(gradients)
    one_by_one = [of_one({name: numbers[i] for name, numbers in batch.items()}) for i in range(3)]
    expected = jax.tree.map(lambda *results: np.stack(results), *one_by_one)
    for ours, exact in zip(jax.tree.leaves(batched), jax.tree.leaves(expected), strict=True):
        tolerance.assert_close(ours, exact, "a result of a batch", terms=x.size, magnitude=1.0)


# ---- the compiled module ---------------------------------------------------------------------------------------------


def compiled(function, *operands):
    return jax.jit(function).lower(*operands).compile()


def test_options_that_are_off_leave_the_kernel_of_before():
    x, labels, _, _ = sample("indices")
    off = {name: OPTIONS[name].off for name in samples.ARGUMENTS} | {"z_loss": 0, "num_classes": CLASSES}
    module = compiled(lambda x: jax.value_and_grad(jaxloss.categorical_cross_entropy)(x, labels, **off), x)
    assert custom_call_targets(module) == ["jaxloss_cross_entropy_value_and_grad"]


@targets
def test_options_that_are_on_are_one_call(kind):
    x, target, mix, _ = sample(kind)

    def loss(x, target, options):
        return jaxloss.categorical_cross_entropy(x, whole_target(target, mix), num_classes=COUNTED, **options)

    traced = samples.on(TRACED, CLASSES, kind)
    module = compiled(jax.value_and_grad(loss), x, target, traced)
    assert custom_call_targets(module) == ["jaxloss_cross_entropy_with_options_value_and_grad"]
    assert of_size(module, x.size) == ["custom-call"]
    module = compiled(loss, x, target, traced)
    assert custom_call_targets(module) == ["jaxloss_cross_entropy_with_options_value"]
    assert of_size(module, x.size) == []


# ---- the mean of the weights -----------------------------------------------------------------------------------------


def test_normalizer_of_weights():
    """What torch calls the mean: with where and weights too; its gradients count the weights in the divisor."""
    x, labels, _, _ = sample("indices")
    where, weights = np.arange(ROWS) != 2, np.linspace(0.5, 1, ROWS, dtype=np.float32)

    def ours(x, class_weights, weights):
        return jaxloss.categorical_cross_entropy(
            x, labels, class_weights=class_weights, weights=weights, where=where, normalizer="weights", clip=None
        )

    def exact(x, class_weights, weights):
        rest = {name: OFF[name] for name in (*TRACED[1:], "num_classes")}
        losses = exact_rows(x, labels, None, class_weights, **rest)
        counted = where * weights
        return (counted * losses).sum() / (counted * class_weights[labels]).sum()

    operands = (x, ON["class_weights"], weights)
    actual = jax.jit(jax.value_and_grad(ours, range(3)), compiler_options=QUICKLY)(*operands)
    with jax.enable_x64(True):
        of_formula = jax.jit(jax.value_and_grad(exact, range(3)), compiler_options=QUICKLY)
        expected = jax.tree.map(np.asarray, of_formula(*wide(operands)))
    for value, ideal in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        tolerance.assert_close(value, ideal, "a result of torch's mean", terms=x.size, magnitude=1.0)
    assert ours(x, 0 * ON["class_weights"], weights) == 0  # a mean over nothing


# ---- errors ----------------------------------------------------------------------------------------------------------

X, LABELS = np.zeros((4, 8), np.float32), np.zeros(4, np.int32)
WRONG = [
    ({"label_smoothing": 1.5}, ValueError, ("label_smoothing", "1.5", "from 0 to 1")),
    ({"label_smoothing": -0.1}, ValueError, ("label_smoothing", "-0.1", "from 0 to 1")),
    ({"label_smoothing": np.zeros(4)}, ValueError, ("label_smoothing", "(4,)", "scalar")),
    ({"label_smoothing": "a bit"}, TypeError, ("label_smoothing", "str", "number")),
    ({"z_loss": -1.0}, ValueError, ("z_loss", "-1.0", "at least 0")),
    ({"z_loss": np.nan}, ValueError, ("z_loss", "nan")),
    ({"softcap": 0.0}, ValueError, ("softcap", "0.0", "greater than 0")),
    ({"softcap": -30}, ValueError, ("softcap", "-30", "greater than 0", "None")),
    ({"temperature": 0}, ValueError, ("temperature", "0", "greater than 0")),
    ({"temperature": np.inf}, ValueError, ("temperature", "inf")),
    ({"temperature": np.ones(4)}, ValueError, ("temperature", "(4,)", "scalar")),
    ({"temperature": np.ones((), bool)}, TypeError, ("temperature", "bool")),
    ({"class_weights": np.ones(7)}, ValueError, ("class_weights", "(7,)", "(8,)")),
    ({"class_weights": np.ones((4, 8))}, ValueError, ("class_weights", "(4, 8)", "(8,)")),
    ({"class_weights": np.ones(8, bool)}, TypeError, ("class_weights", "bool")),
    ({"class_weights": np.ones(7), "num_classes": 5}, ValueError, ("class_weights", "(7,)", "(5,)", "(8,)")),
    ({"num_classes": 9}, ValueError, ("num_classes", "9", "8")),
    ({"num_classes": 0}, ValueError, ("num_classes", "0", "1 to 8")),
    ({"num_classes": 5.0}, TypeError, ("num_classes", "float", "int")),
    ({"normalizer": "examples"}, ValueError, ("normalizer", "'examples'", "'weights'")),
    ({"normalizer": "weights", "reduction": "sum"}, ValueError, ("normalizer", "reduction", "'sum'")),
    ({"margin": np.inf}, ValueError, ("margin", "inf", "a finite number")),
    ({"margin": np.ones(3)}, ValueError, ("margin", "(3,)", "(4,)")),
    ({"margin": np.ones(8)}, ValueError, ("margin", "(8,)", "(4,)")),
    ({"margin": "wide"}, TypeError, ("margin", "str", "number")),
    ({"margin": 0.5, "target": X}, ValueError, ("margin", "label", "float32", "class indices")),
    ({"margin": 0.5, "target": (LABELS, LABELS, 0.5)}, ValueError, ("margin", "label", "mixed", "class indices")),
    ({"target": (LABELS, LABELS)}, ValueError, ("target", "tuple of 2", "share")),
    ({"target": (LABELS, LABELS, 1.5)}, ValueError, ("share", "1.5", "from 0 to 1")),
    ({"target": (LABELS, LABELS, np.ones(3, np.float32))}, ValueError, ("share", "(3,)", "(4,)")),
    ({"target": (LABELS, X, 0.5)}, TypeError, ("target", "float32", "class indices")),
    ({"target": (X, X, 0.5)}, ValueError, ("target", "float32", "class indices")),
    ({"target": (LABELS, LABELS[:3], 0.5)}, ValueError, ("target", "(3,)", "(4, 8)")),
    ({"target": (LABELS, LABELS, 0.5), "ignore_index": 3}, ValueError, ("ignore_index", "3", "where=")),
]


@pytest.mark.parametrize(("options", "error", "words"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_errors(options, error, words):
    options = {"target": LABELS} | options
    target = options.pop("target")
    functions = (
        jaxloss.categorical_cross_entropy,
        jaxloss.d_categorical_cross_entropy,
        jaxloss.categorical_cross_entropy_with_stats,
    )
    for function in functions:

        def jitted(*operands, function=function, **options):
            return jax.jit(lambda: function(*operands, **options))()

        for call in (function, jitted):
            with pytest.raises(error) as raised:
                call(X, target, **options)
            for word in words:
                assert word in str(raised.value)


def test_errors_of_log_prob_and_entropy():
    with pytest.raises(TypeError, match="labels has dtype float32"):
        jaxloss.log_prob(X, X)
    with pytest.raises(ValueError, match="temperature is 0"):
        jaxloss.log_prob(X, LABELS, temperature=0.0)
    with pytest.raises(TypeError, match="logits has dtype int32"):
        jaxloss.entropy(X.astype(np.int32))
    with pytest.raises(ValueError, match="softcap is -1"):
        jaxloss.entropy(X, softcap=-1.0)
