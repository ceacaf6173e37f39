"""Objectives of reinforcement learning in float64, from their papers' equations, with their derivatives.

`log_r` is the logarithm of a ratio r of probabilities.
"""

import dataclasses

import numpy as np

from trust.balls import MOST, Array, Ball, Objective, Tokens


@dataclasses.dataclass(frozen=True)
class _Surrogate:
    """min(r A, clip(r, 1 − ε, 1 + ε′) A), and its derivatives."""

    value: Ball
    of_log_r: Ball
    of_advantages: Ball
    of_epsilon: Ball
    of_epsilon_high: Ball

    @classmethod
    def of(cls, log_r: Ball, advantages: Array, epsilon: float, epsilon_high: float) -> "_Surrogate":
        low, high = 1 - epsilon, 1 + epsilon_high
        with np.errstate(divide="ignore", invalid="ignore"):
            kinks = [float(kink) for kink in np.log([low, high]) if np.isfinite(kink)]

        def clipped(x):
            return np.clip(np.exp(x), low, high)

        def holds(x):
            """Where the minimum is that of the clipped ratio, and not of the ratio itself."""
            return above(x) | below(x)

        def below(x):
            return (advantages < 0) & (np.exp(x) < low)

        def above(x):
            return (advantages > 0) & (np.exp(x) > high)

        of_advantages = log_r.of(lambda x: np.where(holds(x), clipped(x), np.exp(x)), *kinks)
        # Beside an advantage of 0 the minimum is the one of the two or the other, which is rounded, too.
        of_clipped = clipped(log_r.at)
        between = abs(of_clipped) + abs(of_clipped - np.exp(log_r.at)) / log_r.unit
        size = of_advantages.size + np.where(advantages == 0, between, 0)
        of_advantages = dataclasses.replace(of_advantages, size=np.minimum(size, MOST))
        return cls(
            log_r.of(lambda x: np.minimum(np.exp(x) * advantages, clipped(x) * advantages), *kinks),
            log_r.of(lambda x: np.where(holds(x), 0, np.exp(x)) * advantages, *kinks),
            of_advantages,
            log_r.of(lambda x: np.where(below(x), -advantages, 0), *kinks),
            log_r.of(lambda x: np.where(above(x), advantages, 0), *kinks),
        )

    def of_numbers(self, factor: Array, epsilon_high: float | None) -> dict[str, Ball]:
        """Those of ε and ε′, which is ε where there is no other."""
        low, high = self.of_epsilon * factor, self.of_epsilon_high * factor
        return {"epsilon": low + high} if epsilon_high is None else {"epsilon": low, "epsilon_high": high}


def reinforce(tokens: Tokens, data: dict[str, Array], entropy_bonus: float = 0.0) -> Objective:
    """−Σ (A log π + c H)."""
    advantages = tokens.each(data["advantages"])
    return Objective(
        value=-(tokens.log_prob * advantages + tokens.entropy * entropy_bonus),
        of_log_prob=Ball(-advantages, abs(advantages), tokens.log_prob.unit),
        of_entropy=-entropy_bonus,
        of_data={"advantages": tokens.like(data["advantages"], -tokens.log_prob)},
        of_numbers={"entropy_bonus": -tokens.entropy},
    )


def ppo(
    tokens: Tokens,
    data: dict[str, Array],
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    entropy_bonus: float = 0.0,
) -> Objective:
    """−Σ (min(r A, clip(r) A) + c H)."""
    return grpo(tokens, data, epsilon, epsilon_high, 0.0, entropy_bonus, length_normalized=False)


def grpo(
    tokens: Tokens,
    data: dict[str, Array],
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
    entropy_bonus: float = 0.0,
    length_normalized: bool = True,
) -> Objective:
    """−Σ (min(r A, clip(r) A) + c H − β k) / |y|, with k = ρ − log ρ − 1."""
    factor = -(tokens.share if length_normalized else tokens.mask.astype(np.float64))
    log_r = tokens.log_prob - tokens.each(data["old_log_prob"])
    high = epsilon if epsilon_high is None else epsilon_high
    surrogate = _Surrogate.of(log_r, tokens.each(data["advantages"]), epsilon, high)
    value, of_log_prob = surrogate.value + tokens.entropy * entropy_bonus, surrogate.of_log_r
    of_data = {
        "advantages": tokens.like(data["advantages"], surrogate.of_advantages * factor),
        "old_log_prob": -surrogate.of_log_r * factor,
    }
    of_numbers = surrogate.of_numbers(factor, epsilon_high) | {"entropy_bonus": tokens.entropy * factor}
    if "reference_log_prob" in data:
        log_rho = -tokens.log_prob + tokens.each(data["reference_log_prob"])
        k, of_log_rho = log_rho.of(lambda x: np.expm1(x) - x, 0.0), log_rho.of(np.expm1)
        value, of_log_prob = value - k * beta, of_log_prob + of_log_rho * beta
        of_data["reference_log_prob"] = -of_log_rho * (beta * factor)
        of_numbers["beta"] = -k * factor
    return Objective(value * factor, of_log_prob * factor, entropy_bonus * factor, of_data, of_numbers)


def cispo(
    tokens: Tokens,
    data: dict[str, Array],
    epsilon_high: float = 5.0,
    epsilon: float | None = None,
    entropy_bonus: float = 0.0,
) -> Objective:
    """−Σ (w A log π + c H), with w = clip(r), which no derivative follows."""
    low = -np.inf if epsilon is None else 1 - epsilon
    log_r = tokens.stopped - tokens.each(data["old_log_prob"])
    advantages = tokens.each(data["advantages"])
    weight = log_r.of(lambda x: np.clip(np.exp(x), low, 1 + epsilon_high)) * tokens.mask
    nothing = weight * 0
    return Objective(
        value=-(weight * advantages * tokens.log_prob + tokens.entropy * entropy_bonus),
        of_log_prob=-weight * advantages,
        of_entropy=-entropy_bonus,
        of_data={
            "advantages": tokens.like(data["advantages"], -weight * tokens.log_prob),
            "old_log_prob": nothing,
        },
        of_numbers={"epsilon_high": nothing, "epsilon": nothing, "entropy_bonus": -tokens.entropy},
    )


def gspo(tokens: Tokens, data: dict[str, Array], epsilon: float = 3e-4, epsilon_high: float | None = 4e-4) -> Objective:
    """−min(s A, clip(s) A), with s = exp mean log r."""
    log_r = ((tokens.log_prob - tokens.each(data["old_log_prob"])) * tokens.share).sum(-1)
    there = -1.0 * tokens.there
    high = epsilon if epsilon_high is None else epsilon_high
    surrogate = _Surrogate.of(log_r, np.where(tokens.there, data["advantages"], 0), epsilon, high)
    of_log_prob = (surrogate.of_log_r * there)[..., None] * tokens.share
    return Objective(
        value=surrogate.value * there,
        of_log_prob=of_log_prob,
        of_entropy=0.0,
        of_data={"advantages": surrogate.of_advantages * there, "old_log_prob": -of_log_prob},
        of_numbers=surrogate.of_numbers(there, epsilon_high),
    )
