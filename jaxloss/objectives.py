r"""Objectives of reinforcement learning and of preferences, for `linear_objective`.

Each function here makes an `Objective`: what `linear_objective` is given, followed by the data that it names. With
$\log \pi_t$ the log-probability of token $t$ of a sequence $y$, $m_t$ its mask, $|y| = \sum_t m_t$ and sums over
unmasked tokens only, each states what it is of one sequence, or of one pair. What `linear_objective` returns is the
sum over the batch divided by its `normalizer`: each objective says which one gives the mean of its paper.

Data of a sequence is an array `[sequences]`, data of a token `[sequences, T]`; nothing is broadcast. What masked tokens
hold does not matter. Their numbers, such as `beta`, are scalars; they may be traced, and are differentiated. A Python
number is compiled in: one that changes from step to step is better an array.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._checks.objective_data import (
    as_wide,
    is_of_sequences,
    number_of_objective,
    of_sequences,
    of_tokens,
    require_sequences,
    widened,
)
from jaxloss._linear.traced import Tokens
from jaxloss._types import FINITE, FROM_0_TO_1, NOT_NEGATIVE, POSITIVE, Per

Array = jax.Array
Number = float | Array

__all__ = [
    "Objective",
    "Tokens",
    "cispo",
    "dpo",
    "grpo",
    "gspo",
    "ipo",
    "kto",
    "orpo",
    "ppo",
    "reinforce",
    "simpo",
]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A function of a block of tokens, and what a block is.

    Attributes:
        function: from `Tokens` and the blocks of the data to a scalar.
        group: how many adjacent sequences a block has.
        per: `"sequence"` for blocks of whole sequences, `"token"` for those of single tokens.
    """

    function: Callable[..., Array]
    group: int = 1
    per: Per = "sequence"

    def __call__(self, tokens: Tokens, *data: Array) -> Array:
        """The value of a block."""
        return self.function(tokens, *data)


# ---- what they are made of -------------------------------------------------------------------------------------------


def _epsilons(epsilon: ArrayLike, epsilon_high: ArrayLike | None) -> tuple[Number, Number]:
    low = number_of_objective("epsilon", epsilon, NOT_NEGATIVE)
    return low, low if epsilon_high is None else number_of_objective("epsilon_high", epsilon_high, NOT_NEGATIVE)


def _sum(tokens: Tokens, x: Array) -> Array:
    """Over each sequence's tokens."""
    return jnp.where(tokens.mask, x, 0).sum(-1)


def _mean(tokens: Tokens, x: Array, otherwise: str = "") -> Array:
    """The mean over each sequence's tokens, 0 where all are masked; `otherwise`: what else to do without sequences."""
    require_sequences(tokens, f"means over sequences{otherwise}")
    return _sum(tokens, x) / jnp.maximum(tokens.mask.sum(-1), 1)


def _known_zero(x: ArrayLike) -> bool:
    return isinstance(x, float) and x == 0.0


def _bonus(tokens: Tokens, coefficient: ArrayLike) -> ArrayLike:
    """That of the entropy; without one, the entropy is not computed."""
    return 0.0 if _known_zero(coefficient) else coefficient * tokens.entropy


def _bounds(tokens: Tokens, epsilons: tuple[Number, Number]) -> tuple[Number, Number]:
    """Those of a ratio."""
    return 1 - as_wide(tokens, epsilons[0]), 1 + as_wide(tokens, epsilons[1])


def _clipped(log_ratio: Array, advantage: Array, bounds: tuple[Number, Number]) -> Array:
    """The clipped surrogate min(r A, clip(r) A) of the logarithm of r.

    Where the clip holds, r has no part in it: of one that overflows it would be 0 · ∞. Beside an advantage of 0 it
    holds on both sides.
    """
    low, high = bounds
    ratio = jnp.exp(log_ratio)
    above = ratio > high
    clips = jnp.where(advantage == 0, above | (ratio < low), jnp.where(advantage > 0, above, ratio < low))
    ratio = jnp.exp(jnp.where(clips, 0, log_ratio))
    return jnp.where(clips, jnp.where(above, high, low), ratio) * advantage


def _log_ratio(name: str, tokens: Tokens, of_before: Array) -> Array:
    """Of the policy to another one, of each token."""
    return tokens.log_prob - of_tokens(name, tokens, of_before, ("tokens",))


def _log_ratio_of_sequences(tokens: Tokens, reference_log_prob: Array) -> Array:
    """Of the policy to the reference, of each sequence."""
    require_sequences(tokens, "an objective of whole sequences")
    if not is_of_sequences("reference_log_prob", tokens, reference_log_prob):
        reference_log_prob = _sum(tokens, widened(tokens, reference_log_prob))
    return tokens.log_prob.sum(-1) - reference_log_prob


def _chosen_and_rejected(of_sequences: Array) -> tuple[Array, Array]:
    if of_sequences.shape[0] % 2:
        raise ValueError(f"group is {of_sequences.shape[0]}: expected an even number, for pairs of sequences")
    return of_sequences[0::2], of_sequences[1::2]


def _margin(tokens: Tokens, reference_log_prob: Array) -> Array:
    """How much further than the rejected sequence the policy has moved towards the chosen one."""
    chosen, rejected = _chosen_and_rejected(_log_ratio_of_sequences(tokens, reference_log_prob))
    return chosen - rejected


# ---- reinforcement learning ------------------------------------------------------------------------------------------


def reinforce(entropy_bonus: ArrayLike = 0.0) -> Objective:
    r"""Policy gradient: $-\sum_t (A_t \log \pi_t + c H_t)$. Data: `advantages`, of tokens or of sequences.

    The mean over tokens is that of `normalizer="tokens"`. With `per="token"`, advantages are those of tokens.

    Args:
        entropy_bonus: $c$.

    Returns:
        An objective of `(tokens, advantages)`.

    Source: R. Williams, *Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning*
    (1992).
    """
    bonus = number_of_objective("entropy_bonus", entropy_bonus, FINITE)

    def objective(tokens: Tokens, advantages: Array) -> Array:
        advantages = of_tokens("advantages", tokens, advantages)
        return -(advantages * tokens.log_prob + _bonus(tokens, bonus)).sum()

    return Objective(objective)


def ppo(epsilon: ArrayLike = 0.2, epsilon_high: ArrayLike | None = None, entropy_bonus: ArrayLike = 0.0) -> Objective:
    r"""PPO: $-\sum_t (\min(r_t A_t, \mathrm{clip}(r_t, 1 - \epsilon, 1 + \epsilon') A_t) + c H_t)$.

    $r_t = \pi_t / \pi^\mathrm{old}_t$. The mean over tokens is that of `normalizer="tokens"`. With `per="token"`,
    advantages are those of tokens.

    Args:
        epsilon: $\epsilon$.
        epsilon_high: $\epsilon'$. Default: $\epsilon$.
        entropy_bonus: $c$.

    Returns:
        An objective of `(tokens, advantages, old_log_prob)`: advantages of tokens or of sequences, log-probabilities of
        tokens.

    Source: J. Schulman et al., *Proximal Policy Optimization Algorithms* (2017), arXiv:1707.06347.
    """
    epsilons, bonus = _epsilons(epsilon, epsilon_high), number_of_objective("entropy_bonus", entropy_bonus, FINITE)

    def objective(tokens: Tokens, advantages: Array, old_log_prob: Array) -> Array:
        log_ratio = _log_ratio("old_log_prob", tokens, old_log_prob)
        surrogate = _clipped(log_ratio, of_tokens("advantages", tokens, advantages), _bounds(tokens, epsilons))
        return -(surrogate + _bonus(tokens, bonus)).sum()

    return Objective(objective)


def grpo(
    epsilon: ArrayLike = 0.2,
    epsilon_high: ArrayLike | None = None,
    beta: ArrayLike = 0.0,
    entropy_bonus: ArrayLike = 0.0,
    length_normalized: bool = True,
) -> Objective:
    r"""GRPO: $-\sum_t (\min(r_t A, \mathrm{clip}(r_t, 1 - \epsilon, 1 + \epsilon') A) + c H_t - \beta k_t) / |y|$.

    $r_t = \pi_t / \pi^\mathrm{old}_t$, and $k_t = \rho_t - \log \rho_t - 1$ with $\rho_t = \pi^\mathrm{ref}_t / \pi_t$
    estimates the divergence from a reference policy. The mean over sequences is that of `normalizer="sequences"`.

    Args:
        epsilon: $\epsilon$.
        epsilon_high: $\epsilon'$. Default: $\epsilon$.
        beta: $\beta$. With the number 0, there are no log-probabilities of a reference.
        entropy_bonus: $c$.
        length_normalized: whether there is the factor $1 / |y|$. Without it, as in DAPO and Dr. GRPO, each token counts
            alike: the mean over them is that of `normalizer="tokens"`, and `per="token"` may be said, with advantages
            of tokens.

    Returns:
        An objective of `(tokens, advantages, old_log_prob, reference_log_prob)`: advantages of sequences or of tokens,
        log-probabilities of tokens; without the last for `beta=0.0`.

    Source: Z. Shao et al., *DeepSeekMath* (2024), arXiv:2402.03300; for the estimator J. Schulman, *Approximating KL
    Divergence* (2020).
    """
    epsilons, bonus = _epsilons(epsilon, epsilon_high), number_of_objective("entropy_bonus", entropy_bonus, FINITE)
    of_divergence = number_of_objective("beta", beta, NOT_NEGATIVE)
    with_reference = not _known_zero(of_divergence)

    def objective(tokens: Tokens, advantages: Array, old_log_prob: Array, *reference_log_prob: Array) -> Array:
        if len(reference_log_prob) != with_reference:
            raise TypeError(
                f"beta is {beta}, and there are {2 + len(reference_log_prob)} arrays of data: expected advantages, "
                f"old_log_prob{', reference_log_prob' if with_reference else ''}"
            )
        log_ratio = _log_ratio("old_log_prob", tokens, old_log_prob)
        surrogate = _clipped(log_ratio, of_tokens("advantages", tokens, advantages), _bounds(tokens, epsilons))
        total = surrogate + _bonus(tokens, bonus)
        for of_reference in reference_log_prob:
            log_ratio = -_log_ratio("reference_log_prob", tokens, of_reference)
            total -= of_divergence * (jnp.expm1(log_ratio) - log_ratio)
        if length_normalized:
            total = _mean(tokens, total, ", or length_normalized=False")
        return -total.sum()

    return Objective(objective)


def cispo(epsilon_high: ArrayLike = 5.0, epsilon: ArrayLike | None = None, entropy_bonus: ArrayLike = 0.0) -> Objective:
    r"""CISPO: $-\sum_t (\mathrm{sg}(\mathrm{clip}(r_t, 1 - \epsilon, 1 + \epsilon')) A_t \log \pi_t + c H_t)$.

    $r_t = \pi_t / \pi^\mathrm{old}_t$, and sg stops the gradient: the weights are clipped, and no token is dropped. The
    mean over tokens is that of `normalizer="tokens"`. With `per="token"`, advantages are those of tokens.

    Args:
        epsilon_high: $\epsilon'$.
        epsilon: $\epsilon$. Default: no lower bound, as in the paper.
        entropy_bonus: $c$.

    Returns:
        An objective of `(tokens, advantages, old_log_prob)`: advantages of tokens or of sequences, log-probabilities of
        tokens.

    Source: MiniMax, *MiniMax-M1* (2025), arXiv:2506.13585.
    """
    bonus = number_of_objective("entropy_bonus", entropy_bonus, FINITE)
    low = jnp.inf if epsilon is None else number_of_objective("epsilon", epsilon, NOT_NEGATIVE)
    epsilons = low, number_of_objective("epsilon_high", epsilon_high, NOT_NEGATIVE)

    def objective(tokens: Tokens, advantages: Array, old_log_prob: Array) -> Array:
        ratio = jnp.exp(_log_ratio("old_log_prob", tokens, old_log_prob))
        weight = jax.lax.stop_gradient(jnp.clip(ratio, *_bounds(tokens, epsilons)))
        advantages = of_tokens("advantages", tokens, advantages)
        return -(weight * advantages * tokens.log_prob + _bonus(tokens, bonus)).sum()

    return Objective(objective)


def gspo(epsilon: ArrayLike = 3e-4, epsilon_high: ArrayLike | None = 4e-4) -> Objective:
    r"""GSPO: $-\min(s A, \mathrm{clip}(s, 1 - \epsilon, 1 + \epsilon') A)$, with one ratio a sequence.

    $s = \exp \frac1{|y|} \sum_t \log (\pi_t / \pi^\mathrm{old}_t)$. The mean over sequences is that of
    `normalizer="sequences"`.

    Args:
        epsilon: $\epsilon$.
        epsilon_high: $\epsilon'$. None for $\epsilon$.

    Returns:
        An objective of `(tokens, advantages, old_log_prob)`: advantages of sequences, log-probabilities of tokens.

    Source: C. Zheng et al., *Group Sequence Policy Optimization* (2025), arXiv:2507.18071.
    """
    epsilons = _epsilons(epsilon, epsilon_high)

    def objective(tokens: Tokens, advantages: Array, old_log_prob: Array) -> Array:
        advantages = of_sequences("advantages", tokens, advantages)
        log_ratio = _mean(tokens, _log_ratio("old_log_prob", tokens, old_log_prob))
        return -jnp.where(tokens.mask.any(-1), _clipped(log_ratio, advantages, _bounds(tokens, epsilons)), 0).sum()

    return Objective(objective)


# ---- preferences -----------------------------------------------------------------------------------------------------


def dpo(beta: ArrayLike = 0.1, smoothing: ArrayLike = 0.0) -> Objective:
    r"""DPO: $-(1 - \varepsilon) \log \sigma(\beta \Delta) - \varepsilon \log \sigma(-\beta \Delta)$ of a pair.

    $\Delta = \log \frac{\pi(y_w)}{\pi_\mathrm{ref}(y_w)} - \log \frac{\pi(y_l)}{\pi_\mathrm{ref}(y_l)}$, of the chosen
    sequence $w$ and the rejected one $l$ after it. The mean over pairs is that of `normalizer="groups"`.

    Args:
        beta: $\beta$.
        smoothing: $\varepsilon$, the chance that a preference is the wrong way round.

    Returns:
        An objective of `(tokens, reference_log_prob)`, of sequences (the sums of their tokens) or of tokens.

    Sources: R. Rafailov et al., *Direct Preference Optimization* (2023), arXiv:2305.18290; E. Mitchell, *A note on DPO
    with noisy preferences & relationship to IPO* (2023), for the smoothing.
    """
    scale, of_wrong = (
        number_of_objective("beta", beta, POSITIVE),
        number_of_objective("smoothing", smoothing, FROM_0_TO_1),
    )

    def objective(tokens: Tokens, reference_log_prob: Array) -> Array:
        margin = scale * _margin(tokens, reference_log_prob)
        of_right = 1 - as_wide(tokens, of_wrong)
        return -(of_right * jax.nn.log_sigmoid(margin) + of_wrong * jax.nn.log_sigmoid(-margin)).sum()

    return Objective(objective, group=2)


def ipo(tau: ArrayLike = 0.1) -> Objective:
    r"""IPO: $(\Delta - \frac{1}{2\tau})^2$ of a pair, with $\Delta$ as in `dpo`.

    The chosen sequence comes before the rejected one. The mean over pairs is that of `normalizer="groups"`.

    Args:
        tau: $\tau$.

    Returns:
        An objective of `(tokens, reference_log_prob)`, of sequences (the sums of their tokens) or of tokens.

    Source: M. Azar et al., *A General Theoretical Paradigm to Understand Learning from Human Preferences* (2023),
    arXiv:2310.12036.
    """
    of_wanted = number_of_objective("tau", tau, POSITIVE)

    def objective(tokens: Tokens, reference_log_prob: Array) -> Array:
        wanted = 1 / (2 * as_wide(tokens, of_wanted))
        return ((_margin(tokens, reference_log_prob) - wanted) ** 2).sum()

    return Objective(objective, group=2)


def kto(beta: ArrayLike = 0.1, desirable_weight: ArrayLike = 1.0, undesirable_weight: ArrayLike = 1.0) -> Objective:
    r"""KTO: $\lambda_D (1 - \sigma(\beta (\rho - z)))$, and $\lambda_U (1 - \sigma(\beta (z - \rho)))$ if undesirable.

    $\rho = \log (\pi(y) / \pi_\mathrm{ref}(y))$, and $z$ is the divergence of the policy from the reference, which the
    paper estimates from mismatched answers of the batch, not below 0; no gradient flows through it. The mean over
    sequences is that of `normalizer="sequences"`.

    Args:
        beta: $\beta$.
        desirable_weight: $\lambda_D$.
        undesirable_weight: $\lambda_U$.

    Returns:
        An objective of `(tokens, desirable, reference_log_prob, divergence)`: booleans of sequences, log-probabilities
        of sequences (the sums of their tokens) or of tokens, and $z$ of sequences, the same for all.

    Source: K. Ethayarajh et al., *KTO: Model Alignment as Prospect Theoretic Optimization* (2024), arXiv:2402.01306.
    """
    scale = number_of_objective("beta", beta, POSITIVE)
    weights = (
        number_of_objective("desirable_weight", desirable_weight, NOT_NEGATIVE),
        number_of_objective("undesirable_weight", undesirable_weight, NOT_NEGATIVE),
    )

    def objective(tokens: Tokens, desirable: Array, reference_log_prob: Array, divergence: Array) -> Array:
        if desirable.dtype != jnp.bool_:
            raise TypeError(f"desirable has dtype {desirable.dtype}: expected booleans")
        desirable = of_sequences("desirable", tokens, desirable)
        log_ratio = _log_ratio_of_sequences(tokens, reference_log_prob)
        gain = log_ratio - of_sequences("divergence", tokens, jax.lax.stop_gradient(divergence))
        there = tokens.mask.any(-1)
        gain = scale * jnp.where(there, gain, 0)  # the data of a sequence without tokens may be NaN
        # 1 − σ(x) = σ(−x), of which an exponential has a derivative that stays exact where σ rounds to 1.
        of_desirable, of_undesirable = (jnp.exp(jax.nn.log_sigmoid(x)) for x in (-gain, gain))
        of_desirable, of_undesirable = weights[0] * of_desirable, weights[1] * of_undesirable
        return jnp.where(there, jnp.where(desirable, of_desirable, of_undesirable), 0).sum()

    return Objective(objective)


def simpo(beta: ArrayLike = 2.0, gamma: ArrayLike = 0.5) -> Objective:
    r"""SimPO: $-\log \sigma(\frac{\beta}{|y_w|} \log \pi(y_w) - \frac{\beta}{|y_l|} \log \pi(y_l) - \gamma)$ of a pair.

    The chosen sequence comes before the rejected one. The mean over pairs is that of `normalizer="groups"`.

    Args:
        beta: $\beta$.
        gamma: $\gamma$, the margin.

    Returns:
        An objective of `(tokens)`.

    Source: Y. Meng et al., *SimPO: Simple Preference Optimization with a Reference-Free Reward* (2024),
    arXiv:2405.14734.
    """
    scale, margin = number_of_objective("beta", beta, POSITIVE), number_of_objective("gamma", gamma, FINITE)

    def objective(tokens: Tokens) -> Array:
        chosen, rejected = _chosen_and_rejected(_mean(tokens, tokens.log_prob))
        return -jax.nn.log_sigmoid(scale * (chosen - rejected) - margin).sum()

    return Objective(objective, group=2)


def orpo(weight: ArrayLike = 0.1) -> Objective:
    r"""ORPO: $-\log P_w - \lambda \log \sigma(\log \frac{P_w}{1 - P_w} - \log \frac{P_l}{1 - P_l})$ of a pair.

    $\log P = \frac1{|y|} \sum_t \log \pi_t$. The chosen sequence comes before the rejected one. The mean over pairs is
    that of `normalizer="groups"`.

    Args:
        weight: $\lambda$.

    Returns:
        An objective of `(tokens)`.

    Source: J. Hong et al., *ORPO: Monolithic Preference Optimization without Reference Model* (2024),
    arXiv:2403.07691.
    """
    of_odds = number_of_objective("weight", weight, NOT_NEGATIVE)

    def log_odds(log_p: Array) -> Array:
        log_p = jnp.minimum(log_p, -1e-7)  # of a probability that rounds to 1, odds that are finite
        return log_p - jnp.log(-jnp.expm1(log_p))

    def objective(tokens: Tokens) -> Array:
        chosen, rejected = _chosen_and_rejected(_mean(tokens, tokens.log_prob))
        return -(chosen + of_odds * jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected))).sum()

    return Objective(objective, group=2)
