"""Linear distillation against the formula of whole logits: values, every gradient, options, transforms, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import distillation_formula
import jaxloss
from distillation_formula import KINDS, loss_of
from quickly import jit_quickly
from tolerance import assert_trees_near

assert_near = functools.partial(assert_trees_near, least=1e-3)

TOKENS, WIDTH, TEACHER_WIDTH, CLASSES = (2, 5), 4, 6, 13
RNG = np.random.default_rng(0)
ARRAYS = distillation_formula.operands(TOKENS, WIDTH, TEACHER_WIDTH, CLASSES)
LABELS = ARRAYS.pop("labels")
MASK = RNG.random(TOKENS) > 0.3
TEACHER = ("teacher_hidden", "teacher_kernel", "teacher_bias", "teacher_softcap")
NUMBERS = {
    "temperature": np.float32(1.3),
    "weights": RNG.normal(size=TOKENS).astype(np.float32),
    "normalizer": np.float32(7),
}
BETA = {"beta": np.float32(0.3)}
OF_LABELS = {"soft_weight": np.float32(0.6), "hard_weight": np.float32(1.7)}
CAPS = {"softcap": np.float32(1.5), "teacher_softcap": np.float32(2.5)}
CAPPED = [("forward", False), ("js", True)]
CELLS = [(kind, with_labels) for kind in KINDS for with_labels in (False, True)]
cells = pytest.mark.parametrize(("kind", "with_labels"), CELLS)


def operands_of(kind, with_labels):
    caps = CAPS if (kind, with_labels) in CAPPED else {}
    return ARRAYS | NUMBERS | caps | (BETA if kind == "js" else {}) | (OF_LABELS if with_labels else {})


TANGENTS = {
    name: 0.3 * RNG.normal(size=np.shape(x)).astype(np.float32) * (name not in TEACHER)
    for name, x in operands_of("js", True).items()
}


def ours(kind, with_labels, chunk_size=4, **options):
    """A function of operands; what is masked is not looked at."""
    labels = {"labels": np.where(MASK, LABELS, -1), "ignore_index": -1} if with_labels else {"where": MASK}

    def loss(o):
        hidden, teacher_hidden = (jnp.where(MASK[..., None], o[name], jnp.nan) for name in ("hidden", "teacher_hidden"))
        given = {**o, "hidden": hidden, "teacher_hidden": teacher_hidden}
        return loss_of(kind, chunk_size=chunk_size, **labels, **options)(**given)

    return loss


def exact(kind, with_labels):
    labels = {"labels": LABELS} if with_labels else {}
    return lambda o: distillation_formula.formula(kind, {**o, **labels}, MASK)


def in_float64(function, operands):
    """What the function gives of operands that are widened."""
    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray, jit_quickly(function)(jax.tree.map(lambda x: np.asarray(x, np.float64), operands))
        )


@pytest.fixture(scope="module")
def expected():
    """Values and gradients of all cells."""
    return {cell: in_float64(jax.value_and_grad(exact(*cell)), operands_of(*cell)) for cell in CELLS}


@cells
def test_value_and_gradients(kind, with_labels, expected):
    """With respect to every number, too. The teacher is frozen."""
    operands = operands_of(kind, with_labels)
    value, gradients = jax.jit(jax.value_and_grad(ours(kind, with_labels)))(operands)
    assert_near((value, gradients), expected[kind, with_labels])
    assert value.dtype == jnp.float32
    assert all(not gradients[name].any() for name in TEACHER if name in gradients)
    alone = jax.jit(ours(kind, with_labels))(operands)
    assert_near(alone, expected[kind, with_labels][0])


@pytest.mark.parametrize(("kind", "chunk_size"), [("forward", 5), ("reverse", 1), ("js", None)])
def test_chunks(kind, chunk_size, expected):
    """Those that divide the tokens, those of one token, and one of all."""
    result = jax.jit(jax.value_and_grad(ours(kind, True, chunk_size)))(operands_of(kind, True))
    assert_near(result, expected[kind, True])


TYPES = [  # of the student, of the teacher, and how near
    ("bfloat16", "bfloat16", 2**-5),
    ("bfloat16", "float32", 2**-6),
    ("float16", "bfloat16", 2**-6),
    ("float16", "float16", 2**-8),
    ("float32", "float16", 2**-8),
    ("float32", "float64", 1e-5),
    ("float64", "float64", 1e-12),
]


@pytest.mark.parametrize(("dtype", "teacher_dtype", "share"), TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_types(kind, dtype, teacher_dtype, share, expected):
    """Rounded are hidden states, kernels, logits and their gradient; losses of float16 are scaled as for training."""
    scale, wide = (2.0**-12 if dtype == "float16" else 1.0), "float64" in (dtype, teacher_dtype)
    operands = operands_of(kind, True)
    for name in ("hidden", "kernel"):
        operands[name] = operands[name].astype(dtype)
        operands[f"teacher_{name}"] = operands[f"teacher_{name}"].astype(teacher_dtype)
    if dtype == "float64":
        operands = {name: np.asarray(x, np.float64) for name, x in operands.items()}
    loss = ours(kind, True)
    with jax.enable_x64(wide):
        value, gradients = jax.jit(jax.value_and_grad(lambda o: scale * loss(o)))(operands)
        assert value.dtype == ("float64" if wide else "float32")
        assert {name: gradients[name].dtype for name in operands} == {name: x.dtype for name, x in operands.items()}
        assert_near(value / scale, expected[kind, True][0], of_largest=share)
        for name in ("hidden", "kernel", "bias"):
            assert_near(
                np.asarray(gradients[name], np.float64) / scale, expected[kind, True][1][name], of_largest=share
            )


def along(function):
    return lambda o: jax.jvp(function, (o,), ({name: TANGENTS[name].astype(x.dtype) for name, x in o.items()},))[1]


def dotted(gradients):
    return sum(jnp.vdot(gradient, TANGENTS[name]) for name, gradient in gradients.items())


TRANSFORMS = {
    "jvp_of_scaled": lambda f: along(lambda o: 3 * f(o) ** 2),
    "forward_over_reverse": lambda f: along(jax.grad(f)),
    "reverse_over_reverse": lambda f: jax.grad(lambda o: dotted(jax.grad(f)(o))),
    "vmap_grad": lambda f: (
        lambda o: jax.vmap(lambda own: jax.grad(f)({**o, **own}))(
            {name: jnp.stack([o[name], 0.5 * o[name]]) for name in ("hidden", "teacher_hidden", "bias")}
        )
    ),
    "vmap_grad_of_hidden": lambda f: (
        lambda o: jax.vmap(jax.grad(lambda hidden: f({**o, "hidden": hidden})))(
            jnp.stack([o["hidden"], 0.5 * o["hidden"]])
        )
    ),
    "grad_of_scan": lambda f: jax.grad(
        lambda o: jax.lax.scan(
            lambda c, x: (c + jax.checkpoint(f)({**o, "bias": x}), None),
            jnp.zeros((), o["bias"].dtype),
            jnp.stack([o["bias"]] * 2),
        )[0]
    ),
}


@pytest.mark.parametrize("cell", [("forward", False), ("reverse", True), ("js", True)], ids=str)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name, cell):
    transform, operands = TRANSFORMS[name], operands_of(*cell)
    actual = jax.jit(transform(ours(*cell)))(operands)
    assert_near(actual, in_float64(transform(exact(*cell)), operands), of_largest=1e-4)


@pytest.mark.parametrize("cell", [("forward", True), ("reverse", False), ("js", False)], ids=str)
def test_unreduced(cell):
    """Losses, and gradients of hidden states alone and of all, for a cotangent of each token."""
    factor, operands = np.cos(np.arange(10)).reshape(TOKENS).astype(np.float32), operands_of(*cell)
    del operands["normalizer"]

    def total(o):
        losses = ours(*cell, reduction="none")(o)
        assert losses.shape == TOKENS
        return (factor * losses).sum()

    def expected(o):
        return exact(*cell)({**o, "weights": o["weights"] * factor, "normalizer": 1.0})

    result = jax.jit(jax.value_and_grad(total))(operands)
    assert_near(result, in_float64(jax.value_and_grad(expected), operands))
    alone = jax.jit(jax.grad(lambda hidden: total({**operands, "hidden": hidden})))(operands["hidden"])
    assert_near(alone, result[1]["hidden"])
    heads = jnp.stack([operands["hidden"], 2 * operands["hidden"]])
    losses = jax.jit(jax.vmap(lambda hidden: ours(*cell, reduction="none")({**operands, "hidden": hidden})))(heads)
    assert_near(losses[0], ours(*cell, reduction="none")(operands))


@pytest.mark.parametrize("kind", KINDS)
def test_padded_classes_and_kernels_of_classes_first(kind):
    """What is padded, and may be NaN in the student's bias, has gradient 0; a label there is none."""
    classes = 9
    operands = ARRAYS | {name: x.copy() for name, x in ARRAYS.items() if "bias" in name}
    operands["bias"][classes:] = np.nan
    operands["teacher_bias"][classes:] = 50
    operands |= CAPS if kind == "forward" else {}
    labels = np.minimum(LABELS, classes - 1)
    names = ("kernel", "bias", "teacher_kernel", "teacher_bias")

    def ours(o):
        turned = {**o, "kernel": o["kernel"].T, "teacher_kernel": o["teacher_kernel"].T}
        options = {"num_classes": classes, "kernel_axis": 0, "teacher_kernel_axis": -2, "chunk_size": 4}
        return loss_of(kind, **options)(**turned, labels=labels, temperature=2.0)

    def exact(o):
        cut = {**o, "labels": labels, **{name: o[name][..., :classes] for name in names}}
        return distillation_formula.formula(kind, cut, np.ones(TOKENS, bool), temperature=2.0)

    assert_near(jax.jit(jax.value_and_grad(ours))(operands), in_float64(jax.value_and_grad(exact), operands))
    given = {**operands, "labels": np.full(TOKENS, classes, np.int32)}
    assert jnp.isnan(loss_of(kind, num_classes=classes)(**given))


def whole(kind, x, y, **options):
    """The same loss of whole logits, of this library."""
    if kind == "js":
        return jaxloss.jensen_shannon(x, y, **options)
    return jaxloss.kl_divergence(*((x, y) if kind == "forward" else (y, x)), target_type="logits", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite(kind):
    """NaN, Inf and masked classes of a student or a teacher are what they are in whole logits, and stay in their row."""
    eye = np.eye(4, dtype=np.float32)
    x, y = (RNG.normal(size=(7, 4)).astype(np.float32) for _ in range(2))
    x[0, 1], y[1, 2], x[2, 3], y[3, 0] = np.nan, np.nan, np.inf, np.inf
    bias = np.zeros(4, np.float32)
    bias[3] = -np.inf  # of both: a class whose probability is 0

    def losses(x, y):
        return loss_of(kind, chunk_size=3, reduction="none")(x, eye, y, eye, bias=bias, teacher_bias=bias)

    def of_whole(x, y):
        return whole(kind, jnp.dot(x, eye) + bias, jnp.dot(y, eye) + bias, reduction="none")

    for f in (losses, of_whole):
        assert np.isnan(f(x, y)).tolist() == [True] * 4 + [False] * 3
    np.testing.assert_allclose(losses(x, y), of_whole(x, y), rtol=1e-5)
    gradients = [jax.grad(lambda x, f=f: f(x, y)[4:].sum())(x)[4:] for f in (losses, of_whole)]
    assert_near(*gradients)
    bias = np.float32([0, 0, 0, -np.inf])
    teacher = loss_of(kind, reduction="none")(x[4:], eye, y[4:], eye, teacher_bias=bias)
    assert_near(np.nan_to_num(teacher), np.nan_to_num(whole(kind, x[4:], y[4:] + bias, reduction="none")))


def test_weights_as_normalizer_and_shift():
    weights = np.abs(NUMBERS["weights"])
    by_weights = loss_of("forward", normalizer="weights", labels=LABELS, shift=1)(**ARRAYS, weights=weights)
    cut = {name: x[:, :-1] if "hidden" in name else x for name, x in ARRAYS.items()}
    losses = loss_of("forward", reduction="none", labels=LABELS[:, 1:])(**cut)
    assert_near(by_weights, (losses * weights[:, :-1]).sum() / weights[:, :-1].sum())


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,)])
def test_shapes_of_tokens(shape):
    arrays = distillation_formula.operands(shape, WIDTH, TEACHER_WIDTH, CLASSES)
    value, gradient = jax.value_and_grad(lambda h: loss_of("js", chunk_size=2)(**{**arrays, "hidden": h}))(
        arrays["hidden"]
    )
    assert gradient.shape == arrays["hidden"].shape
    expected = distillation_formula.formula("js", arrays, np.ones(shape, bool)) if np.prod(shape) else 0.0
    assert_near(value, expected)


def test_what_the_parts_are():
    """With labels, that of two functions."""
    soft = loss_of("js", temperature=2.0)(**ARRAYS)
    hard = jaxloss.linear_cross_entropy(ARRAYS["hidden"], ARRAYS["kernel"], LABELS, bias=ARRAYS["bias"])
    both = loss_of("js", temperature=2.0)(**ARRAYS, labels=LABELS, soft_weight=0.25, hard_weight=3)
    assert_near(both, 0.25 * soft + 3 * hard)
    out_of_range = loss_of("forward", reduction="none")(**ARRAYS, labels=np.where(MASK, LABELS, CLASSES))
    assert (np.isnan(out_of_range) == ~MASK).all()


def test_in_debug_checks():
    bad = {**ARRAYS, "teacher_hidden": np.full_like(ARRAYS["teacher_hidden"], np.nan)}
    with (
        pytest.raises(ValueError, match=r"linear_kl_divergence: labels of row 0, 0 is 99: expected"),
        jaxloss.debug_checks(),
    ):
        loss_of("forward")(**ARRAYS, labels=np.full(TOKENS, 99))
    with pytest.raises(ValueError, match=r"largest of teacher_hidden of row 0, 0 is nan"), jaxloss.debug_checks():
        loss_of("js")(**bad)


H, W, G, U = (ARRAYS[name] for name in ("hidden", "kernel", "teacher_hidden", "teacher_kernel"))
ERRORS = {
    "direction": ("forward", {"direction": "sideways"}, ValueError, "direction is 'sideways': expected one of 'forward', 'reverse'"),
    "beta": ("js", {"beta": 0}, ValueError, "beta is 0: .*for the forward divergence.*call linear_kl_divergence with direction='forward'"),
    "other beta": ("js", {"beta": 1.0}, ValueError, "call linear_kl_divergence with direction='reverse'"),
    "no beta": ("js", {"beta": None}, TypeError, "beta is None: expected a number between 0 and 1"),
    "temperature": ("js", {"temperature": 0}, ValueError, "temperature is 0: expected a finite number greater than 0"),
    "tokens": ("js", {"teacher_hidden": G[:1]}, ValueError, r"teacher_hidden has shape \(1, 5, 6\), hidden \(2, 5, 4\): expected equal shapes but"),
    "teacher's kernel": ("forward", {"teacher_kernel": U.T}, ValueError, r"teacher_kernel has shape \(13, 6\), teacher_hidden \(2, 5, 6\): expected \[D, V\].*write teacher_kernel_axis=0"),
    "teacher's axis": ("forward", {"teacher_kernel_axis": 2}, ValueError, "teacher_kernel_axis is 2, teacher_kernel has 2 axes"),
    "kernel": ("forward", {"kernel": W[:3]}, ValueError, r"kernel has shape \(3, 13\), hidden \(2, 5, 4\): expected \[D, V\]"),
    "classes": ("forward", {"teacher_kernel": np.pad(U, ((0, 0), (0, 3)))}, ValueError, r"teacher_kernel has shape \(6, 16\), of 16 classes, kernel \(4, 13\), of 13: expected equally many; write teacher_kernel\[:, :13\]"),
    "fewer classes": ("js", {"teacher_kernel": U[:, :9]}, ValueError, r"write kernel\[:, :9\] if those beyond are padding"),
    "teacher's bias": ("js", {"teacher_bias": np.zeros(4)}, ValueError, r"teacher_bias has shape \(4,\), teacher_kernel \(6, 13\): expected \(13,\)"),
    "dtype": ("forward", {"teacher_hidden": G.astype(int)}, TypeError, "teacher_hidden has dtype int.*expected one of bfloat16"),
    "labels": ("forward", {"labels": LABELS[:1]}, ValueError, r"labels has shape \(1, 5\), hidden \(2, 5, 4\): expected \(2, 5\)"),
    "labels of floats": ("forward", {"labels": LABELS * 1.0}, TypeError, "labels has dtype float.*write labels.astype"),
    "no labels": ("forward", {"ignore_index": -1}, ValueError, "ignore_index is given, labels is None: expected labels"),
    "shift without labels": ("js", {"shift": 1}, ValueError, "shift is given, labels is None"),
    "hard weight without labels": ("js", {"hard_weight": 0.5}, ValueError, "hard_weight is given, labels is None"),
    "hard weight": ("js", {"hard_weight": np.inf, "labels": LABELS}, ValueError, "hard_weight is inf: expected a finite number"),
    "num_classes": ("js", {"num_classes": 14}, ValueError, "num_classes is 14, kernel has 13 classes: expected from 1 to 13"),
    "chunk_size": ("js", {"chunk_size": 0}, ValueError, "chunk_size is 0: expected at least 1, or None"),
    "where": ("js", {"where": MASK[0]}, ValueError, r"where has shape \(5,\), hidden "),
    "normalizer": ("js", {"normalizer": "tokens"}, ValueError, "normalizer is 'tokens': expected a number or 'weights'"),
    "axis_name": ("js", {"axis_name": "v"}, ValueError, "axis_name is 'v', but kernel does not vary over 'v'"),
    "a name of Liger's": ("js", {"weight_hard_loss": 0.5}, TypeError, "did you mean hard_weight?"),
    "an option": ("js", {"z_loss": 3.0}, TypeError, "unexpected keyword argument 'z_loss'"),
    "softcap": ("js", {"softcap": 0}, ValueError, "softcap is 0: expected a finite number greater than 0, or None for none"),
    "teacher's softcap": ("forward", {"teacher_softcap": np.ones(3)}, ValueError, r"teacher_softcap has shape \(3,\): expected a scalar"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    kind, given, error, message = ERRORS[name]
    function = jaxloss.linear_jensen_shannon if kind == "js" else jaxloss.linear_kl_divergence
    with pytest.raises(error, match=message):
        function(**{"hidden": H, "kernel": W, "teacher_hidden": G, "teacher_kernel": U, **given})


@pytest.mark.cpu_only
def test_export_with_a_symbolic_number_of_tokens():
    """Chunks need not divide it; other platforms than those with kernels get the formula."""
    given = distillation_formula.operands((10,), WIDTH, TEACHER_WIDTH, CLASSES)
    names = ("hidden", "teacher_hidden", "labels")

    def run(hidden, teacher_hidden, labels):
        operands = {**given, "teacher_hidden": teacher_hidden, "labels": labels}
        return jax.value_and_grad(lambda h: loss_of("js", chunk_size=4)(**{**operands, "hidden": h}))(hidden)

    (tokens,) = export.symbolic_shape("tokens")
    shapes = [jax.ShapeDtypeStruct((tokens, *given[name].shape[1:]), given[name].dtype) for name in names]
    exported = export.export(jax.jit(run), platforms=["cpu", "tpu"], disabled_checks=jaxloss.export_checks())(*shapes)
    for count in (3, 8, 10):
        operands = [given[name][:count] for name in names]
        assert_near(exported.call(*operands), jax.jit(run)(*operands))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_large_logits_of_16_bits(direction, dtype):
    """The gradient's formula takes the logits that the kernel took, not those that XLA rounded for it.

    Between two of 16 bits near 60 a softmax grows by e^0.25; it is then no distribution of the row's.
    """
    rng, tokens, width, classes = np.random.default_rng(1), 4, 16, 64
    hidden, teacher_hidden = (jnp.asarray(20 * rng.standard_normal((tokens, width)), dtype) for _ in range(2))
    kernel, teacher_kernel = (jnp.asarray(rng.standard_normal((width, classes)) / 2, dtype) for _ in range(2))

    def loss(hidden):
        return jaxloss.linear_kl_divergence(hidden, kernel, teacher_hidden, teacher_kernel, direction=direction)

    def log_softmax(hidden, kernel):
        logits = np.asarray(hidden @ kernel, np.float64)  # rounded, for it is an array of its own
        logits = logits - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(hidden, kernel), log_softmax(teacher_hidden, teacher_kernel)
    p, q = np.exp(log_p), np.exp(log_q)
    above = log_p - log_q - (p * (log_p - log_q)).sum(-1, keepdims=True)
    exact = ((p - q) if direction == "forward" else p * above) / tokens @ np.asarray(kernel, np.float64).T
    share = 16 * float(jnp.finfo(dtype).eps)
    assert_near(jax.jit(jax.grad(loss))(hidden), exact, share)
    along = jax.jit(lambda x: jax.jvp(loss, (x,), (jnp.ones_like(x),))[1])(hidden)
    np.testing.assert_allclose(along, exact.sum(), rtol=0, atol=share * np.abs(exact).sum())
