"""GRPO on a toy task: a tiny policy learns to answer a prompt with its digits in reverse, from a reward alone.

Of each prompt a group of answers is sampled; an answer's advantage is its reward, standardised in its group. Log-
probabilities and entropies of the answers come from one call, `categorical_cross_entropy_with_stats`. docs/recipes.md
has the formula.

    python -m examples.grpo --quick
"""

import jax
import jax.numpy as jnp
import optax

import examples
import jaxloss

DIGITS, LENGTH = 8, 5
PROMPTS, GROUP = 32, 16
EPSILON, BETA, EPOCHS = 0.2, 0.002, 2


def of_prompts(params, prompts):
    """What the prompts [n, T] add to the logits [n, T, V] of each token of an answer."""
    one_hot = jax.nn.one_hot(prompts, DIGITS).reshape(len(prompts), -1)
    return jnp.einsum("nf,tfv->ntv", one_hot, params["prompt"])


def logits_of(params, prompts, answers):
    """Logits [n, T, V] of each token, given the prompt and the token before it."""
    before = jnp.pad(answers[:, :-1], ((0, 0), (1, 0)), constant_values=DIGITS)
    return of_prompts(params, prompts) + params["before"][before]


def sampled(params, prompts, key):
    """An answer [n, T] to each prompt."""

    def token(before, given):
        logits, key = given
        token = jax.random.categorical(key, logits + params["before"][before])
        return token, token

    start = jnp.full(len(prompts), DIGITS)
    given = jnp.moveaxis(of_prompts(params, prompts), 1, 0), jax.random.split(key, LENGTH)
    return jax.lax.scan(token, start, given)[1].T


def loss(params, reference, prompts, answers, old_log_prob, advantages):
    """The objective of GRPO, negative, and the entropy of the policy."""
    logits = logits_of(params, prompts, answers)
    _, stats = jaxloss.categorical_cross_entropy_with_stats(logits, answers, clip=None)
    ratio = jnp.exp(-stats.nll - old_log_prob)
    objective = jnp.minimum(
        ratio * advantages[:, None], jnp.clip(ratio, 1 - EPSILON, 1 + EPSILON) * advantages[:, None]
    )
    to_reference = jaxloss.log_prob(logits_of(reference, prompts, answers), answers) + stats.nll
    penalty = jnp.exp(to_reference) - to_reference - 1
    return (BETA * penalty - objective).mean(), stats.entropy.mean()


def main(quick: bool = False) -> list[float]:
    """Trains, and returns the mean reward of each step."""
    optimiser = optax.adam(0.03)
    params = {"prompt": jnp.zeros((LENGTH, LENGTH * DIGITS, DIGITS)), "before": jnp.zeros((DIGITS + 1, DIGITS))}
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
        old = jaxloss.log_prob(logits_of(params, prompts, answers), answers)

        def epoch(carry, _):
            params, state = carry
            gradient, entropy = jax.grad(loss, has_aux=True)(params, reference, prompts, answers, old, advantages)
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
