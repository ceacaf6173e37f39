"""GRPO on a toy task: a tiny policy learns to answer a prompt with its digits in reverse, from a reward alone.

Of each prompt a group of answers is sampled; an answer's advantage is its reward, standardised in its group. The policy
ends, like a language model, in hidden states and an output layer: `linear_objective` with `objectives.grpo` takes
these, and never materializes the logits. docs/recipes.md has the formula.

    python -m examples.grpo --quick
"""

import jax
import jax.numpy as jnp
import optax

import examples
import jaxloss
from jaxloss import objectives

DIGITS, LENGTH, WIDTH = 8, 5, 16
PROMPTS, GROUP = 32, 16
EPOCHS, GRPO = 2, objectives.grpo(epsilon=0.2, beta=0.002)


def hidden_of_prompts(params, prompts):
    """What the prompts [n, T] add to the hidden state [n, T, D] of each token."""
    one_hot = jax.nn.one_hot(prompts, DIGITS).reshape(len(prompts), -1)
    return jnp.einsum("nf,tfd->ntd", one_hot, params["prompt"])


def hidden_of(params, prompts, answers):
    """Hidden states [n, T, D] that predict each token, given the prompt and the token before it."""
    before = jnp.pad(answers[:, :-1], ((0, 0), (1, 0)), constant_values=DIGITS)
    return hidden_of_prompts(params, prompts) + params["before"][before]


def sampled(params, prompts, key):
    """An answer [n, T] to each prompt."""

    def token(before, given):
        hidden, key = given
        token = jax.random.categorical(key, (hidden + params["before"][before]) @ params["output"])
        return token, token

    start = jnp.full(len(prompts), DIGITS)
    given = jnp.moveaxis(hidden_of_prompts(params, prompts), 1, 0), jax.random.split(key, LENGTH)
    return jax.lax.scan(token, start, given)[1].T


def loss(params, prompts, answers, *data):
    """The objective of GRPO, and the mean entropy of the policy."""

    def with_entropy(tokens, *data):
        return GRPO(tokens, *data), tokens.entropy.sum()

    operands = hidden_of(params, prompts, answers), params["output"], answers, with_entropy
    value, entropy = jaxloss.linear_objective(*operands, *data, normalizer="sequences", has_aux=True)
    return value, entropy / answers.size


def main(quick: bool = False) -> list[float]:
    """Trains, and returns the mean reward of each step."""
    optimiser = optax.adam(0.01)
    params = {
        "prompt": jnp.zeros((LENGTH, LENGTH * DIGITS, WIDTH)),
        "before": jnp.zeros((DIGITS + 1, WIDTH)),
        "output": jax.random.normal(jax.random.key(0), (WIDTH, DIGITS)) / WIDTH**0.5,
    }
    reference, state, rewards = params, optimiser.init(params), []

    @jax.jit
    def step(params, state, key):
        of_prompt, of_answer = jax.random.split(key)
        prompts = jnp.repeat(jax.random.randint(of_prompt, (PROMPTS, LENGTH), 0, DIGITS), GROUP, axis=0)
        answers = sampled(params, prompts, of_answer)
        reward = (answers == prompts[:, ::-1]).mean(1)
        groups = reward.reshape(PROMPTS, GROUP)
        deviation = groups.std(1, keepdims=True) + 1e-6
        advantages = ((groups - groups.mean(1, keepdims=True)) / deviation).ravel()
        of_policies = ((hidden_of(p, prompts, answers), p["output"], answers) for p in (params, reference))
        log_probs = [jaxloss.linear_log_prob(*operands) for operands in of_policies]

        def epoch(carry, _):
            params, state = carry
            gradient, entropy = jax.grad(loss, has_aux=True)(params, prompts, answers, advantages, *log_probs)
            update, state = optimiser.update(gradient, state)
            return (optax.apply_updates(params, update), state), entropy

        (params, state), entropies = jax.lax.scan(epoch, (params, state), None, length=EPOCHS)
        return params, state, reward.mean(), entropies[0]

    for number in range(60 if quick else 200):
        params, state, reward, entropy = step(params, state, jax.random.key(number))
        rewards.append(float(reward))
        if number % 10 == 9:
            bar = "█" * round(40 * rewards[-1])
            print(f"step {number + 1:3d}, entropy {entropy:.2f}, reward {rewards[-1]:.2f} {bar}")
    return rewards


if __name__ == "__main__":
    main(examples.quick())
