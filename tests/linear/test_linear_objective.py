"""`linear_objective` against the formula of whole logits: values, every gradient, masks, blocks, transforms, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from linear_oracle import sample
from objective_formula import formula
from quickly import jit_quickly

S, T, WIDTH, CLASSES = 6, 5, 4, 13
SAMPLE = sample((S, T), WIDTH, CLASSES)
RNG = np.random.default_rng(0)
MASK = RNG.random((S, T)) > 0.3
MASK[2] = False  # a sequence that is masked altogether, and with chunks of one sequence a chunk
HIDDEN = np.where(MASK[..., None], SAMPLE.hidden, np.nan)  # what is masked is not looked at
OPERANDS = {
    "hidden": SAMPLE.hidden,
    "kernel": SAMPLE.kernel,
    "bias": SAMPLE.bias,
    "advantages": RNG.normal(size=S).astype(np.float32),
    "old": RNG.normal(size=(S, T)).astype(np.float32) * 0.3 - 2.5,
    "softcap": np.float32(5),
    "temperature": np.float32(1.3),
    "coefficient": np.float32(1.7),
}
TANGENTS = {name: 0.3 * RNG.normal(size=np.shape(x)).astype(np.float32) for name, x in OPERANDS.items()}


def clipped(tokens, advantages, old):
    """What depends on all of `Tokens` and on two kinds of data; and a sum beside it."""
    ratio = jnp.exp(tokens.log_prob - old)
    surrogate = jnp.minimum(ratio * advantages[:, None], jnp.clip(ratio, 0.8, 1.2) * advantages[:, None])
    of_tokens = jnp.where(tokens.mask, surrogate + 0.1 * tokens.entropy + 0.01 * tokens.lse**2, 0)
    count = tokens.mask.sum(1)
    return -(of_tokens.sum(1) / jnp.maximum(count, 1)).sum(), {"tokens": count.sum(), "entropy": tokens.entropy.sum()}


def by_coefficient(coefficient):
    def objective(*block):
        value, aux = clipped(*block)
        return coefficient * value, aux

    return objective


def ours(operands, chunk_size=10, **options):
    o = dict(operands)
    hidden, kernel, old, coefficient, advantages = map(o.pop, ("hidden", "kernel", "old", "coefficient", "advantages"))
    objective, settings = by_coefficient(coefficient), {"normalizer": "sequences", "has_aux": True, **o, **options}
    hidden = jnp.where(MASK[..., None], hidden, jnp.nan)
    return jaxloss.linear_objective(
        hidden, kernel, SAMPLE.labels, objective, advantages, old, where=MASK, chunk_size=chunk_size, **settings
    )


def exact(operands):
    o = dict(operands)
    hidden, kernel, old, coefficient, advantages = map(o.pop, ("hidden", "kernel", "old", "coefficient", "advantages"))
    objective = by_coefficient(coefficient)
    return formula(hidden, kernel, SAMPLE.labels, objective, advantages, old, mask=MASK, n=MASK.any(1).sum(), **o)


def assert_near(actual, expected, operations=tolerance.OPERATIONS):
    """Within so many operations, by the largest number of each array; both are in the same type, so either errs."""
    tolerance.assert_trees_close(actual, expected, operations=2 * operations, terms=S * T * CLASSES)


def with_gradients(function):
    return jit_quickly(jax.value_and_grad(function, has_aux=True))


@pytest.fixture(scope="module")
def expected():
    return with_gradients(exact)(OPERANDS)


@pytest.mark.parametrize("chunk_size", [1, 10, 20, None])
def test_value_and_gradients(chunk_size, expected):
    """Of chunks that are too small for a block, that divide the sequences, that do not, and of one chunk."""
    (value, aux), gradients = with_gradients(lambda o: ours(o, chunk_size))(OPERANDS)
    assert_near(((value, aux), gradients), expected)
    assert value.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits(dtype, expected):
    """Rounded are hidden states, kernel, logits and their gradient; the loss of float16 is scaled as for training."""
    scale = 2.0**-12 if dtype == "float16" else 1.0

    def scaled(o):
        rounded = {**o, **{name: o[name].astype(dtype) for name in ("hidden", "kernel")}}
        value, aux = ours(rounded)
        return scale * value, aux

    (value, _), gradients = with_gradients(scaled)(OPERANDS)
    results = jax.tree.map(lambda x: x / scale, (value, gradients))
    roundings = {"computed": dtype, "operations": 4 / 2, "terms": 0}  # four of half an epsilon
    tolerance.assert_trees_close(results, (expected[0][0], expected[1]), **roundings)


def along(function):
    return lambda o: jax.jvp(function, (o,), (TANGENTS,))[1]


TRANSFORMS = {
    "jvp_of_scaled": lambda f: along(lambda o: 3 * f(o) ** 2),
    "forward_over_reverse": lambda f: along(jax.grad(f)),
    "reverse_over_reverse": lambda f: jax.grad(
        lambda o: sum(map(jnp.vdot, jax.tree.leaves(jax.grad(f)(o)), jax.tree.leaves(TANGENTS)))
    ),
    "vmap_grad": lambda f: (
        lambda o: jax.vmap(
            lambda hidden, advantages, coefficient: jax.grad(f)(
                {**o, "hidden": hidden, "advantages": advantages, "coefficient": coefficient}
            )
        )(*(jnp.stack([o[name], 0.5 * o[name]]) for name in ("hidden", "advantages", "coefficient")))
    ),
    "grad_of_scan": lambda f: jax.grad(
        lambda o: jax.lax.scan(
            lambda c, x: (c + jax.checkpoint(f)({**o, "bias": x}), None), 0.0, jnp.stack([o["bias"]] * 2)
        )[0]
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name):
    transform = TRANSFORMS[name]
    results = jit_quickly(lambda o: [transform(lambda o, f=f: f(o)[0])(o) for f in (ours, exact)])(OPERANDS)
    assert_near(*results, tolerance.OPERATIONS_OF_HIGHER_ORDER)


def test_eager_and_without_options():
    def objective(tokens):
        return (tokens.log_prob * tokens.lse).sum()

    value = jaxloss.linear_objective(SAMPLE.hidden, SAMPLE.kernel, SAMPLE.labels, objective)
    assert_near(value, formula(SAMPLE.hidden, SAMPLE.kernel, SAMPLE.labels, objective, mask=np.ones((S, T), bool)))

    def with_flag(tokens):
        return (objective(tokens), tokens.lse.max() > 0)

    _, count = jaxloss.linear_objective(SAMPLE.hidden, SAMPLE.kernel, SAMPLE.labels, with_flag, has_aux=True)
    assert (count.dtype, int(count)) == (jnp.int32, S)


def test_an_objective_of_primitives_that_jax_lowers_itself():
    """`jnp.frexp`, which is one in newer versions."""

    def objective(tokens):
        return (tokens.log_prob * jnp.frexp(tokens.lse)[1]).sum()

    def f(h):
        return jaxloss.linear_objective(h, SAMPLE.kernel, SAMPLE.labels, objective)

    def exact(h):
        return formula(h, SAMPLE.kernel, SAMPLE.labels, objective, mask=np.ones((S, T), bool))

    assert_near(jit_quickly(jax.value_and_grad(f))(SAMPLE.hidden), jax.value_and_grad(exact)(SAMPLE.hidden))


def test_what_an_eager_call_closes_over_may_change():
    """Numbers, arrays, those in functions that are jitted, and rules of derivatives that the same function may have."""
    factor, slope = 1.0, 1.0
    array = np.ones(T, np.float32)

    def scaled(x):
        return x

    def objective(tokens):
        with_rule = jax.custom_jvp(scaled)
        rule_slope = slope
        with_rule.defjvp(lambda primals, tangents: (with_rule(*primals), rule_slope * tangents[0]))
        return with_rule(factor * jax.jit(lambda x: (array * x).sum())(tokens.log_prob))

    def call():
        def f(h):
            return jaxloss.linear_objective(h, SAMPLE.kernel, SAMPLE.labels, objective)

        return f(SAMPLE.hidden), jax.grad(f)(SAMPLE.hidden)

    first = call()
    factor = 2.0
    assert_near(call(), (2 * first[0], 2 * first[1]))
    array[:] = 3
    assert_near(call(), (6 * first[0], 6 * first[1]))
    slope = 0.5
    assert_near(call(), (6 * first[0], 3 * first[1]))


def test_blocks_of_single_tokens():
    def objective(tokens, advantages):
        return -(jnp.exp(tokens.log_prob) * advantages + 0.1 * tokens.entropy).sum()

    advantages = OPERANDS["old"]
    labels = np.where(MASK, SAMPLE.labels, -100)

    def per_token(hidden, kernel, advantages):
        options = {"ignore_index": -100, "per": "token", "normalizer": "tokens", "chunk_size": 7}
        return jaxloss.linear_objective(hidden, kernel, labels, objective, advantages, **options)

    def whole(hidden, kernel, advantages):
        def masked(tokens, advantages):
            return objective(tokens, jnp.where(tokens.mask, advantages, 0))

        return formula(hidden, kernel, SAMPLE.labels, masked, advantages, mask=MASK, n=MASK.sum())

    ours, exact = (jit_quickly(jax.value_and_grad(f, (0, 1, 2))) for f in (per_token, whole))
    assert_near(ours(HIDDEN, SAMPLE.kernel, advantages), exact(SAMPLE.hidden, SAMPLE.kernel, advantages))


def test_blocks_of_several_sequences():
    """A pair whose tokens are all masked counts 0, although its loss would not be 0."""
    reference, mask = np.linspace(-3, -1, S, dtype=np.float32), MASK.copy()
    mask[3] = False

    def pairs(tokens, reference):
        chosen, rejected = (tokens.log_prob.sum(1) - reference).reshape(-1, 2).T
        return -jax.nn.log_sigmoid(
            0.5 * (chosen - rejected)
        ).mean()  # of one pair: the result does not depend on how many there are

    def ours(hidden, kernel, reference):
        options = {"where": mask, "group": 2, "normalizer": "groups", "chunk_size": 20}
        return jaxloss.linear_objective(hidden, kernel, SAMPLE.labels, pairs, reference, **options)

    def exact(hidden, kernel, reference):
        return formula(hidden, kernel, SAMPLE.labels, pairs, reference, mask=mask, group=2)

    results = [
        jit_quickly(jax.value_and_grad(f, (0, 1, 2)))(SAMPLE.hidden, SAMPLE.kernel, reference) for f in (ours, exact)
    ]
    assert_near(*results)
    assert (np.asarray(results[0][1][2])[2:4] == 0).all()


def test_what_is_undefined_for_no_token_does_no_harm():
    """Neither its value nor its gradients, which 0 times infinity would spoil."""

    def ratio(scale):
        return lambda tokens, data: scale * (tokens.log_prob.sum(1) * data / tokens.mask.sum(1)).sum()

    def loss(hidden, data, scale):
        options = {"where": MASK, "chunk_size": 3 * T}
        return jaxloss.linear_objective(hidden, SAMPLE.kernel, SAMPLE.labels, ratio(scale), data, **options)

    data = np.where(MASK.any(1), OPERANDS["advantages"], np.nan).astype(np.float32)
    results = jit_quickly(jax.value_and_grad(loss, (0, 1, 2)))(HIDDEN, data, 2.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))


@pytest.mark.parametrize(
    ("shape", "per", "value"),
    [
        ((), "token", True),
        ((T,), "sequence", True),
        ((2, 3, T), "sequence", True),
        ((0, T), "sequence", False),
        ((2, 0), "sequence", False),
    ],
)
def test_shapes_of_tokens(shape, per, value):
    s = sample(shape, WIDTH, CLASSES, seed=1)
    leading = shape if per == "token" else shape[:-1]
    data = np.linspace(1, 2, int(np.prod(leading)), dtype=np.float32).reshape(leading)

    def objective(tokens, data):
        return (tokens.log_prob.sum(-1) * data).sum()

    def f(h, data):
        return jaxloss.linear_objective(h, s.kernel, s.labels, objective, data, per=per, normalizer="tokens")

    result, gradients = jit_quickly(jax.value_and_grad(f, (0, 1)))(s.hidden, data)
    log_prob = jaxloss.linear_log_prob(s.hidden, s.kernel, s.labels)
    log_prob = log_prob if per == "token" else log_prob.sum(-1)
    assert_near(result, (log_prob * data).sum() / max(1, np.prod(shape)))
    assert [x.shape for x in gradients] == [s.hidden.shape, data.shape]
    assert (result != 0) == value


def test_shift():
    def objective(tokens, old):
        return (jnp.exp(tokens.log_prob - old) * tokens.mask).sum()

    old = OPERANDS["old"]
    shifted = jaxloss.linear_objective(SAMPLE.hidden, SAMPLE.kernel, SAMPLE.labels, objective, old, shift=1)
    apart = (SAMPLE.hidden[:, :-1], SAMPLE.kernel, SAMPLE.labels[:, 1:], objective, old[:, :-1])
    assert_near(shifted, jaxloss.linear_objective(*apart))


def test_padded_classes_and_a_kernel_of_classes_first():
    """With labels below the number of classes; what is padded has gradient 0."""
    classes, labels = 9, SAMPLE.labels % 9
    padded = SAMPLE.kernel.copy()
    padded[:, classes:] = 50

    def objective(tokens):
        return (tokens.log_prob * tokens.entropy + tokens.lse).sum()

    def ours(hidden, kernel, temperature):
        options = {
            "kernel_axis": 0,
            "num_classes": classes,
            "temperature": temperature,
            "softcap": 3.0,
            "chunk_size": 10,
        }
        return jaxloss.linear_objective(hidden, kernel.T, labels, objective, **options)

    def exact(hidden, kernel, temperature):
        options = {"mask": np.ones((S, T), bool), "temperature": temperature, "softcap": 3.0}
        return formula(hidden, kernel[:, :classes], labels, objective, **options)

    operands = (SAMPLE.hidden, padded, np.float32(1.5))
    assert_near(*(jit_quickly(jax.value_and_grad(f, (0, 1, 2)))(*operands) for f in (ours, exact)))


def test_in_float64():
    with jax.enable_x64(True):
        operands = {name: np.asarray(x, np.float64) for name, x in OPERANDS.items() if name != "softcap"}
        results = [with_gradients(f)(operands) for f in (ours, exact)]
        assert results[0][0][0].dtype == jnp.float64
        # What the temperature's gradient is the sum of, logits times their gradients, cancels.
        assert_near(*results, tolerance.OPERATIONS_OF_HIGHER_ORDER)


def test_in_debug_checks():
    with (
        pytest.raises(ValueError, match=r"linear_objective: labels of row 0, 0 is 99: expected"),
        jaxloss.debug_checks(),
    ):
        jaxloss.linear_objective(SAMPLE.hidden, SAMPLE.kernel, np.full((S, T), 99), lambda tokens: tokens.lse.sum())


def total(tokens, *data):
    return tokens.log_prob.sum()


ERRORS = {
    "no function": ({"objective": 3}, TypeError, "objective has type int: expected a function"),
    "per": ({"per": "row"}, ValueError, "per is 'row': expected one of 'sequence', 'token'"),
    "group": (
        {"group": 4},
        ValueError,
        r"group is 4, labels has shape \(6, 5\): expected a multiple of 4 along axis 0, of sequences",
    ),
    "no group": ({"group": 0}, ValueError, "group is 0: expected at least 1"),
    "group of tokens": (
        {"group": 2, "per": "token"},
        ValueError,
        "group is 2, per is 'token': expected per='sequence'",
    ),
    "data": (
        {"data": np.zeros((5, T))},
        ValueError,
        r"data\[0\] has shape \(5, 5\), labels \(6, 5\): expected the leading axes of the sequences \(6,\)",
    ),
    "a scalar": ({"data": 1.0}, ValueError, r"data\[0\] has shape \(\).*write jnp.broadcast_to"),
    "data of tokens": (
        {"data": np.zeros(S), "per": "token"},
        ValueError,
        r"data\[0\] has shape \(6,\), labels \(6, 5\): expected the leading axes \(6, 5\)",
    ),
    "no data": ({"data": "advantages"}, TypeError, r"data\[0\] has type str"),
    "no scalar": (
        {"objective": lambda tokens, data: tokens.log_prob},
        ValueError,
        r"objective returns an array of shape \(1, 5\): expected a scalar; write .sum",
    ),
    "nothing": ({"objective": lambda tokens, data: None}, TypeError, "objective returns a NoneType: expected a scalar"),
    "an integer": (
        {"objective": lambda tokens, data: tokens.mask.sum()},
        TypeError,
        "objective returns a scalar of dtype int32: expected a floating",
    ),
    "no aux": ({"has_aux": True}, TypeError, r"objective returns a .*: expected \(value, aux\), as has_aux=True says"),
    "aux": ({"objective": lambda tokens, data: (tokens.log_prob.sum(), 0)}, TypeError, "write has_aux=True"),
    "normalizer": (
        {"normalizer": "mean"},
        ValueError,
        "normalizer is 'mean': expected one of 'tokens', 'sequences', 'groups'",
    ),
    "sequences of tokens": (
        {"normalizer": "sequences", "per": "token", "data": np.zeros((S, T))},
        ValueError,
        "normalizer is 'sequences', per is 'token'",
    ),
    "an array of them": ({"normalizer": np.ones(3)}, ValueError, r"normalizer has shape \(3,\): expected a scalar"),
    "hidden": ({"hidden": SAMPLE.hidden[:4]}, ValueError, "labels has shape"),
    "an option": ({"clip": 0.1}, TypeError, "unexpected keyword argument 'clip'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    given, error, message = ERRORS[name]
    options = dict(given)
    hidden, objective, data = (
        options.pop(key, default)
        for key, default in (("hidden", SAMPLE.hidden), ("objective", total), ("data", np.zeros(S)))
    )
    with pytest.raises(error, match=message):
        jaxloss.linear_objective(hidden, SAMPLE.kernel, SAMPLE.labels, objective, data, **options)
