"""What `linear_objective` compiles to: the products that cross entropy has, no array of whole logits, memory of a chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import objectives
from linear_oracle import sample
from modules import custom_call_targets, of_size, temporary_bytes
from test_linear_compiled import CHUNK, CLASSES, WIDTH, N, assert_products_and_memory, compiled

LENGTH = CHUNK // 2
SEQUENCES = N // LENGTH
GRPO = objectives.grpo(beta=0.04, entropy_bonus=0.01)
WITHOUT_ENTROPY = objectives.grpo(beta=0.04)


def loss(objective, **options):
    def of(hidden, kernel, labels, *data):
        options_of_all = {"chunk_size": CHUNK, "normalizer": "sequences", **options}
        return jaxloss.linear_objective(hidden, kernel, labels, objective, *data, **options_of_all)

    return of


def operands(sequences=SEQUENCES):
    s = sample((sequences, LENGTH), WIDTH, CLASSES)
    of_tokens = np.full((sequences, LENGTH), -5, np.float32)
    return s.hidden, s.kernel, s.labels, np.ones(sequences, np.float32), of_tokens, of_tokens


def with_constant_bonus(tokens, advantages, *_):
    """Its derivatives are no functions of the tokens' statistics."""
    return -(advantages[:, None] * tokens.log_prob + 0.01 * tokens.entropy + 0.1 * tokens.lse).sum()


def masked(hidden, kernel, labels, *data):
    return jax.value_and_grad(loss(GRPO, ignore_index=3, shift=1), (0, 1))(hidden, kernel, labels, *data)


PRODUCTS = {
    "value": (loss(GRPO), 1),
    "hidden alone": (jax.value_and_grad(loss(GRPO)), 2),
    "kernel alone": (jax.value_and_grad(loss(GRPO), 1), 2),
    "both": (jax.value_and_grad(loss(GRPO), (0, 1)), 3),
    "data too": (jax.value_and_grad(loss(GRPO), (0, 1, 3, 4, 5)), 3),
    "data alone": (jax.value_and_grad(loss(GRPO), 3), 1),
    "masked": (masked, 3),
    "constant bonus": (jax.value_and_grad(loss(with_constant_bonus), (0, 1)), 3),
    "with options": (jax.value_and_grad(loss(GRPO, softcap=30.0, temperature=0.7), (0, 1)), 3),
    "scaled": (jax.value_and_grad(lambda *o: 3 * loss(GRPO)(*o) ** 2, (0, 1)), 3),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_memory(name):
    function, count = PRODUCTS[name]
    assert_products_and_memory(compiled(function, *operands()), count)


@pytest.mark.parametrize(
    ("objective", "targets"),
    [
        (GRPO, ["cross_entropy_with_options_stats_grad", "cross_entropy_with_options_value_and_stats"]),
        (WITHOUT_ENTROPY, ["cross_entropy_grad", "cross_entropy_value_and_stats"]),
    ],
)
def test_statistics_and_gradient_come_from_a_call_each(objective, targets):
    """An objective that does not look at the entropy does not pay for it."""
    module = compiled(jax.value_and_grad(loss(objective), (0, 1)), *operands())
    assert sorted(custom_call_targets(module)) == [f"jaxloss_{target}" for target in targets]


def test_memory_does_not_grow_with_tokens():
    sizes = []
    for sequences in (SEQUENCES, 16 * SEQUENCES, 16 * SEQUENCES - 1):
        module = compiled(jax.value_and_grad(loss(GRPO), (0, 1)), *operands(sequences))
        sizes.append(temporary_bytes(module) - 16 * sequences * LENGTH)  # labels, weights
    assert max(sizes[1:]) <= sizes[0] + 4096


def test_an_eager_call_is_compiled_once():
    before = jaxloss._linear.objective.value._cache_size()
    for factor in (1.0, 1.0, 2.0):

        def objective(tokens, *_, factor=factor):
            return (factor * tokens.log_prob).sum()

        jaxloss.linear_objective(*operands()[:3], objective)
    assert jaxloss._linear.objective.value._cache_size() == before + 2


def test_second_order_keeps_no_logits():
    hidden, kernel, labels, *data = operands(8 * SEQUENCES)

    def hvp(hidden, kernel):
        return jax.jvp(jax.grad(lambda *o: loss(GRPO)(*o, labels, *data), (0, 1)), (hidden, kernel), (hidden, kernel))

    assert of_size(compiled(hvp, hidden, kernel), 8 * N * CLASSES) == []
    assert jnp.isfinite(jax.jit(hvp)(hidden, kernel)[1][0]).all()
