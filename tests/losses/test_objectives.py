"""Each of `jaxloss.objectives` against its paper's equation, written with loops over sequences of whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
import tolerance
from jaxloss import objectives
from linear_oracle import sample
from objective_formula import statistics
from quickly import jit_quickly

S, T, WIDTH, CLASSES = 4, 5, 4, 11
SAMPLE = sample((S, T), WIDTH, CLASSES)
RNG = np.random.default_rng(0)
LENGTHS = (5, 3, 4, 2)
MASK = np.arange(T) < np.array(LENGTHS)[:, None]
LOG_PROB = np.asarray(statistics(SAMPLE.hidden, SAMPLE.kernel, SAMPLE.labels, MASK).log_prob)
ADVANTAGES = np.array([1.0, -0.5, 0.25, -2.0], np.float32)
# Near enough for ratios on both sides of each bound; what is masked is NaN.
OLD, REFERENCE = (
    np.where(MASK, LOG_PROB + scale * RNG.normal(size=(S, T)), np.nan).astype(np.float32) for scale in (0.3, 0.5)
)
CLOSE = np.where(MASK, LOG_PROB + 0.0005 * RNG.normal(size=(S, T)), np.nan).astype(np.float32)
OF_SEQUENCES = np.where(MASK, REFERENCE, 0).sum(1)
DESIRABLE, DIVERGENCE = np.array([True, False, False, True]), np.full(S, 0.3, np.float32)


def of_tokens(equation):
    """The sum over unmasked tokens of an equation of a token."""

    rows, places = np.nonzero(MASK)

    def total(tokens, *data):
        each = (x[rows] if x.ndim == 1 else x[rows, places] for x in (tokens.log_prob, tokens.entropy, *data))
        return jax.vmap(equation)(*each).sum()

    return total


def of_sequences(equation):
    """The sum over sequences of an equation of the unmasked tokens of one."""

    def total(tokens, *data):
        return sum(
            equation(
                tokens.log_prob[s, :length],
                tokens.entropy[s, :length],
                *(x[s] if x.ndim == 1 else x[s, :length] for x in data),
            )
            for s, length in enumerate(LENGTHS)
        )

    return total


def of_pairs(equation):
    """The same of the tokens of the chosen and the rejected sequence of a pair."""

    def total(tokens, *data):
        def cut(x, s):
            return x[s] if x.ndim == 1 else x[s, : LENGTHS[s]]

        return sum(
            equation(*(cut(x, s) for x in (tokens.log_prob, *data) for s in (begin, begin + 1))) for begin in (0, 2)
        )

    return total


def surrogate(r, a, low=0.2, high=0.2):
    return min_(r * a, jnp.where(r < 1 - low, 1 - low, jnp.where(r > 1 + high, 1 + high, r)) * a)


def min_(a, b):
    return jnp.where(a < b, a, b)


def sigma(x):
    return 1 / (1 + jnp.exp(-x))


def odds(log_prob):
    p = jnp.exp(log_prob.mean())
    return p / (1 - p)


def grpo_of_token(lp, h, a, old, ref):
    return surrogate(jnp.exp(lp - old), a, 0.2, 0.28) + 0.01 * h - 0.04 * (jnp.exp(ref - lp) - (ref - lp) - 1)


def kto(lp, h, good, ref, z):
    rho, z = lp.sum() - ref, jax.lax.stop_gradient(z)
    return jnp.where(good, 1.5 * (1 - sigma(0.3 * (rho - z))), 0.75 * (1 - sigma(0.3 * (z - rho))))


PAIR = {"normalizer": "groups"}
TOKENS, SEQUENCES = {"normalizer": "tokens"}, {"normalizer": "sequences"}
TOTALS = {"tokens": sum(LENGTHS), "sequences": S, "groups": 2}
# Each objective, its data, the equation, and how it is normalised.
CASES = {
    "reinforce": (objectives.reinforce(0.1), (ADVANTAGES,), of_tokens(lambda lp, h, a: -a * lp - 0.1 * h), TOKENS),
    "ppo": (
        objectives.ppo(0.2, 0.3, 0.01),
        (ADVANTAGES, OLD),
        of_tokens(lambda lp, h, a, old: -surrogate(jnp.exp(lp - old), a, 0.2, 0.3) - 0.01 * h),
        TOKENS,
    ),
    "ppo of tokens": (
        objectives.ppo(),
        (np.where(MASK, 1 + REFERENCE, np.nan), OLD),
        of_tokens(lambda lp, h, a, old: -surrogate(jnp.exp(lp - old), a)),
        {**TOKENS, "per": "token"},
    ),
    "grpo": (
        objectives.grpo(epsilon_high=0.28, beta=0.04, entropy_bonus=0.01),
        (ADVANTAGES, OLD, REFERENCE),
        of_sequences(lambda *x: -grpo_of_token(*x).mean()),
        SEQUENCES,
    ),
    "grpo without reference": (
        objectives.grpo(),
        (ADVANTAGES, OLD),
        of_sequences(lambda lp, h, a, old: -surrogate(jnp.exp(lp - old), a).mean()),
        SEQUENCES,
    ),
    "dapo": (
        objectives.grpo(epsilon_high=0.28, beta=0.04, entropy_bonus=0.01, length_normalized=False),
        (ADVANTAGES, OLD, REFERENCE),
        of_tokens(lambda *x: -grpo_of_token(*x)),
        TOKENS,
    ),
    "cispo": (
        objectives.cispo(0.1, entropy_bonus=0.01),
        (ADVANTAGES, OLD),
        of_tokens(lambda lp, h, a, old: -jax.lax.stop_gradient(min_(jnp.exp(lp - old), 1.1)) * a * lp - 0.01 * h),
        TOKENS,
    ),
    "gspo": (
        objectives.gspo(),
        (ADVANTAGES, CLOSE),
        of_sequences(lambda lp, h, a, old: -surrogate(jnp.exp((lp - old).mean()), a, 3e-4, 4e-4)),
        SEQUENCES,
    ),
    "dpo": (
        objectives.dpo(0.3, 0.1),
        (REFERENCE,),
        of_pairs(
            lambda w, lose, rw, rl: (
                -0.9 * jnp.log(sigma(0.3 * ((w - rw).sum() - (lose - rl).sum())))
                - 0.1 * jnp.log(sigma(-0.3 * ((w - rw).sum() - (lose - rl).sum())))
            )
        ),
        PAIR,
    ),
    "dpo of sequences": (
        objectives.dpo(),
        (OF_SEQUENCES,),
        of_pairs(lambda w, lose, rw, rl: -jnp.log(sigma(0.1 * (w.sum() - rw - lose.sum() + rl)))),
        PAIR,
    ),
    "ipo": (
        objectives.ipo(0.2),
        (REFERENCE,),
        of_pairs(lambda w, lose, rw, rl: ((w - rw).sum() - (lose - rl).sum() - 2.5) ** 2),
        PAIR,
    ),
    "kto": (objectives.kto(0.3, 1.5, 0.75), (DESIRABLE, OF_SEQUENCES, DIVERGENCE), of_sequences(kto), SEQUENCES),
    "simpo": (
        objectives.simpo(),
        (),
        of_pairs(lambda w, lose: -jnp.log(sigma(2 * w.mean() - 2 * lose.mean() - 0.5))),
        PAIR,
    ),
    "orpo": (
        objectives.orpo(0.25),
        (),
        of_pairs(lambda w, lose: -w.mean() - 0.25 * jnp.log(sigma(jnp.log(odds(w) / odds(lose))))),
        PAIR,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name):
    objective, data, equation, options = CASES[name]
    live = tuple(range(2 + len(data)))
    live = tuple(place for place in live if place < 2 or data[place - 2].dtype != bool)

    def ours(hidden, kernel, *data):
        every = np.where(MASK, SAMPLE.labels, -100)
        if options.get("per") == "token" and data[0].ndim == 1:
            data = (jnp.broadcast_to(data[0][:, None], MASK.shape), *data[1:])
        return jaxloss.linear_objective(
            hidden, kernel, every, objective, *data, ignore_index=-100, chunk_size=2 * T, **options
        )

    def exact(hidden, kernel, *data):
        return equation(statistics(hidden, kernel, SAMPLE.labels, MASK), *data) / TOTALS[options["normalizer"]]

    operands = (SAMPLE.hidden, SAMPLE.kernel, *data)
    value, gradients = jit_quickly(jax.value_and_grad(ours, live))(*operands)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(lambda x: x if x.dtype == bool else np.asarray(x, np.float64), operands)
        exact_value, exact_gradients = jit_quickly(jax.value_and_grad(exact, live))(*wide)
    # What tokens add to a value is of about 1, and may cancel.
    tolerance.assert_close(value, exact_value, "the value", terms=S * T, magnitude=1.0)
    without_masked = jax.tree.map(lambda x: np.where(np.isnan(x), 0, x), exact_gradients)  # of data
    tolerance.assert_trees_close(gradients, without_masked, terms=S * T)
    assert all(np.abs(x).max() > 0 for x in gradients[:2])


def test_masked_sequences_and_certain_ones():
    """Nothing is infinite where a sequence, or one of a pair, has no token, and where its probability rounds to 1."""
    mask = MASK & np.array([False, True, True, True])[:, None]
    labels = (SAMPLE.hidden @ SAMPLE.kernel).argmax(-1)

    def losses(hidden, kernel):
        cases = (CASES[name] for name in ("grpo", "gspo", "dpo", "kto", "simpo", "orpo"))
        return [
            jaxloss.linear_objective(hidden, kernel, labels, objective, *data, where=mask, **options)
            for objective, data, _, options in cases
        ]

    run = jit_quickly(lambda scale: jax.jacrev(losses, (0, 1))(scale * SAMPLE.hidden, SAMPLE.kernel))
    for scale in (1.0, 100.0):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(run(scale)))


def test_numbers_may_be_traced():
    def loss(beta):
        return jaxloss.linear_objective(SAMPLE.hidden, SAMPLE.kernel, SAMPLE.labels, objectives.simpo(beta, beta))

    value, slope = jit_quickly(jax.value_and_grad(loss))(2.0)
    np.testing.assert_allclose(slope, (loss(2.01) - loss(1.99)) / 0.02, rtol=1e-2)
    assert np.isfinite(value)


ERRORS = {
    "an odd number of sequences": (objectives.dpo(), 3, (np.zeros(3),), {}, ValueError, "group is 2, labels has shape"),
    "advantages of tokens": (
        objectives.gspo(),
        4,
        (OLD, OLD),
        {},
        ValueError,
        r"advantages has shape \[sequences, 5\]: expected \[sequences\], one number a sequence",
    ),
    "advantages with an axis of 1": (
        objectives.reinforce(),
        4,
        (ADVANTAGES[:, None],),
        {},
        ValueError,
        r"advantages has shape \[sequences, 1\]: expected \[sequences\], .* or \[sequences, 5\], one number a token",
    ),
    "a reference with an axis of 1": (
        objectives.dpo(),
        4,
        (ADVANTAGES[:, None],),
        {},
        ValueError,
        r"reference_log_prob has shape \[sequences, 1\]: expected",
    ),
    "log-probabilities of sequences": (
        objectives.ppo(),
        4,
        (ADVANTAGES, ADVANTAGES),
        {},
        ValueError,
        r"old_log_prob has shape \[sequences\]: expected \[sequences, 5\], one number a token",
    ),
    "log-probabilities without those a shift leaves out": (
        objectives.ppo(),
        4,
        (ADVANTAGES, OLD[:, :-1]),
        {"shift": 1},
        ValueError,
        r"old_log_prob has shape \[sequences, 4\]: expected \[sequences, 5\].*jnp.pad",
    ),
    "half a pair": (
        objectives.dpo(),
        4,
        (ADVANTAGES,),
        {"group": 1},
        ValueError,
        "group is 1: expected an even number",
    ),
    "a token of a pair": (
        objectives.simpo(),
        4,
        (),
        {"per": "token"},
        ValueError,
        "per is 'token': expected per='sequence'",
    ),
    "a token of a mean": (
        objectives.grpo(),
        4,
        (OLD, OLD),
        {"per": "token"},
        ValueError,
        "per is 'token': expected per='sequence', .* or length_normalized=False",
    ),
    "a sequence of a token": (
        objectives.kto(),
        4,
        (OLD > 0, OLD, OLD),
        {"per": "token"},
        ValueError,
        "desirable has shape .tokens.: expected per='sequence'",
    ),
    "signs": (
        objectives.kto(),
        4,
        (np.array([1, -1, 1, -1]), ADVANTAGES, ADVANTAGES),
        {},
        TypeError,
        "desirable has dtype int32: expected booleans",
    ),
    "not called": (objectives.dpo, 4, (ADVANTAGES,), {}, TypeError, r"beta has type Tokens: .*objectives.dpo\(\)"),
    "pairs of tokens": (objectives.simpo(), 4, (), {"per": "token", "group": 2}, ValueError, "per is 'token'"),
    "no reference": (
        objectives.grpo(beta=0.1),
        4,
        (ADVANTAGES, OLD),
        {},
        TypeError,
        "beta is 0.1, and there are 2 arrays of data: expected",
    ),
    "a reference": (
        objectives.grpo(),
        4,
        (ADVANTAGES, OLD, OLD),
        {},
        TypeError,
        "beta is 0.0, and there are 3 arrays of data: expected",
    ),
    "too few data": (objectives.ppo(), 4, (ADVANTAGES,), {}, TypeError, "old_log_prob"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    objective, sequences, data, options, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        jaxloss.linear_objective(
            SAMPLE.hidden[:sequences], SAMPLE.kernel, SAMPLE.labels[:sequences], objective, *data, **options
        )


NUMBERS = {
    "reinforce": ("entropy_bonus", np.inf),
    "ppo": ("epsilon", -0.1),
    "grpo": ("beta", -1.0),
    "cispo": ("epsilon_high", -1),
    "gspo": ("epsilon_high", np.float32(np.nan)),
    "dpo": ("smoothing", 1.5),
    "ipo": ("tau", 0),
    "kto": ("desirable_weight", -1.0),
    "simpo": ("beta", 0.0),
    "orpo": ("weight", -1.0),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_out_of_range(name):
    of, x = NUMBERS[name]
    make = getattr(objectives, name)
    with pytest.raises(ValueError, match=f"{of} is {x}: expected a"):
        make(**{of: x})
    with pytest.raises(TypeError, match=f"{of} .*: expected a"):
        make(**{of: "x"})
    with pytest.raises(ValueError, match=rf"{of} has shape \(5,\): expected a scalar"):
        make(**{of: np.full(5, 0.2)})


@pytest.mark.parametrize("zero", [0, 0.0, np.float32(0), np.float64(0), np.array(0.0)], ids=lambda x: type(x).__name__)
def test_every_zero_that_is_known_is_one(zero):
    """Then there is no reference."""
    objective = objectives.grpo(beta=zero, entropy_bonus=zero)
    operands = SAMPLE.hidden, SAMPLE.kernel, SAMPLE.labels
    assert np.isfinite(jaxloss.linear_objective(*operands, objective, ADVANTAGES, OLD, where=MASK))


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo"])
def test_ratios_that_overflow(name):
    """Where the clip holds, or an advantage is 0, a ratio beyond all numbers has no part in value or gradients."""
    old, advantages = np.where(MASK, LOG_PROB, np.nan), np.abs(ADVANTAGES) + 0.5
    old[0] -= 200
    advantages[1] = 0
    old[1, 1:3] = -np.inf

    def loss(hidden, kernel, epsilon):
        objective = getattr(objectives, name)(epsilon, epsilon)
        return jaxloss.linear_objective(hidden, kernel, SAMPLE.labels, objective, advantages, old, where=MASK)

    run = jit_quickly(jax.value_and_grad(loss, (0, 1)))
    value, gradients = run(SAMPLE.hidden, SAMPLE.kernel, 0.2)
    assert all(np.isfinite(x).all() for x in (value, *gradients))
    assert (np.asarray(gradients[0])[:2] == 0).all()
    assert np.abs(gradients[0][2:]).max() > 0


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo"])
def test_an_advantage_of_0(name):
    """The derivative with respect to it is that of r A, on both sides of 0, where the clip does not hold."""
    old, advantages = (CLOSE, np.zeros(S)) if name == "gspo" else (OLD, np.zeros((S, T)))

    def loss(advantages):
        objective = getattr(objectives, name)(2e-4 if name == "gspo" else 0.2)
        return jaxloss.linear_objective(
            SAMPLE.hidden, SAMPLE.kernel, SAMPLE.labels, objective, advantages, old, where=MASK
        )

    slope = -jit_quickly(jax.grad(loss))(advantages.astype(np.float32))
    log_ratio = np.where(MASK, LOG_PROB - old, 0)
    lengths = np.array(LENGTHS)
    ratio = np.exp(log_ratio.sum(1) / lengths) if name == "gspo" else np.exp(log_ratio) * MASK
    low, high = (1 - 2e-4, 1 + 4e-4) if name == "gspo" else (0.8, 1.2)
    inside = (ratio > low) & (ratio < high)
    assert 0 < inside.sum() < inside.size
    expected = ratio / (lengths[:, None] if name == "grpo" else 1)
    np.testing.assert_allclose(slope[inside], expected[inside], rtol=1e-5)


def test_kto_of_a_far_gain():
    """The gradient is as exact where the sigmoid rounds to 1 as where it is small."""
    gains = np.array([-30.0, -12.0, 12.0, 30.0])

    def loss(reference, desirable):
        data = desirable, reference, np.zeros(S, np.float32)
        return jaxloss.linear_objective(
            SAMPLE.hidden, SAMPLE.kernel, SAMPLE.labels, objectives.kto(1.0), *data, where=MASK
        )

    slope = jit_quickly(jax.grad(loss))
    reference = (np.where(MASK, LOG_PROB, 0).sum(1) - gains).astype(np.float32)
    expected = 1 / (2 + np.exp(gains) + np.exp(-gains))
    for desirable in (True, False):
        found = slope(reference, np.full(S, desirable))
        np.testing.assert_allclose(found, expected if desirable else -expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["gspo", "kto"])
def test_data_of_a_sequence_without_tokens(name):
    """In a group that has tokens, it may be NaN: its gradient is 0, and nothing else sees it."""
    mask = MASK & np.array([False, True, True, True])[:, None]
    make, data = getattr(objectives, name), (np.array([np.nan, 1, -1, 2], np.float32),)
    data = (*data, CLOSE) if name == "gspo" else (*data, DIVERGENCE)
    number = "epsilon" if name == "gspo" else "beta"

    def loss(hidden, x, number_of_it):
        each = (x, *data[1:]) if name == "gspo" else (DESIRABLE, x, *data[1:])
        objective = make(**{number: number_of_it})
        return jaxloss.linear_objective(hidden, SAMPLE.kernel, SAMPLE.labels, objective, *each, where=mask, group=2)

    value, gradients = jit_quickly(jax.value_and_grad(loss, (0, 1, 2)))(SAMPLE.hidden, data[0], 0.1)
    assert all(np.isfinite(x).all() for x in (value, *gradients))
    assert gradients[1][0] == 0


# Objectives that make something of a number or of data alone: numbers that float32 does not have exactly, and data but
# for KTO's booleans.
NARROW = {
    "ppo": ({"epsilon": 0.2, "epsilon_high": 0.3, "entropy_bonus": 0.1}, (ADVANTAGES, OLD)),
    "cispo": ({"epsilon_high": 0.3, "epsilon": 0.2, "entropy_bonus": 0.1}, (ADVANTAGES, OLD)),
    "gspo": ({"epsilon": 3e-4, "epsilon_high": 4e-4}, (ADVANTAGES, OLD)),
    "dpo": ({"beta": 0.3, "smoothing": 0.1}, (REFERENCE,)),
    "ipo": ({"tau": 0.3}, (REFERENCE,)),
    "kto": ({"beta": 0.3, "desirable_weight": 1.1, "undesirable_weight": 0.7}, (REFERENCE, DIVERGENCE)),
}


@pytest.mark.parametrize(("narrow", "wide"), [("float32", "float64"), ("bfloat16", "float32")])
def test_numbers_and_data_of_a_narrow_type(narrow, wide):
    """What is made of them, such as 1 − ε or a sum, is not rounded to their type, and their gradients only once."""

    def gradients(hidden, kernel, given):
        def loss(hidden, data, name):
            objective = getattr(objectives, name)(**given[name][0])
            data = (DESIRABLE, *data) if name == "kto" else data
            return jaxloss.linear_objective(hidden, kernel, SAMPLE.labels, objective, *data, where=MASK)

        return {name: jax.grad(loss, (0, 1))(hidden, given[name][1], name) for name in given}

    with jax.enable_x64(wide == "float64"):
        operands = SAMPLE.hidden.astype(wide), SAMPLE.kernel.astype(wide)
        given = jax.tree.map(lambda x: jax.numpy.asarray(x, narrow), NARROW)
        found, expected = (
            jit_quickly(gradients)(*operands, x) for x in (given, jax.tree.map(lambda x: x.astype(wide), given))
        )
    for name, exact in expected.items():
        tolerance.assert_trees_close(found[name], exact, computed=np.dtype(wide), terms=S * T, magnitude=1.0)
