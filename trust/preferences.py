"""Objectives of preferences in float64, from their papers' equations, with their derivatives.

Pairs are a chosen sequence and a rejected one after it, along the axis of sequences.
"""

from collections.abc import Callable

import numpy as np

from trust.balls import Array, Ball, Objective, Tokens


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def _less_of_reference(tokens: Tokens, of_reference: Array) -> tuple[Ball, Callable[[Ball], Ball]]:
    """log π(y) − log π_ref(y) of sequences, and the derivative with respect to what the reference is given as."""
    if of_reference.ndim == tokens.mask.ndim:
        of_sequences = (tokens.log_prob - tokens.each(of_reference)).sum(-1)
        return of_sequences, lambda of_each: -of_each[..., None] * tokens.mask
    return tokens.log_prob.sum(-1) - of_reference, lambda of_each: -of_each


def _difference(of_sequences: Ball) -> Ball:
    """Of the chosen sequence and the rejected one."""
    return of_sequences[..., 0::2] - of_sequences[..., 1::2]


def _transposed(of_chosen: Ball, of_rejected: Ball) -> Ball:
    """Of sequences, from what chosen and rejected ones have."""
    shape = (*of_chosen.at.shape[:-1], -1)
    at, size = (
        np.stack([getattr(of_chosen, part), getattr(of_rejected, part)], -1).reshape(shape) for part in ("at", "size")
    )
    return Ball(at, size, of_chosen.unit)


def _pairs_there(tokens: Tokens) -> Array:
    """The pairs that have a token."""
    return tokens.there[..., 0::2] | tokens.there[..., 1::2]


def _of_margin(
    tokens: Tokens, data: dict[str, Array], scale: float, value: Callable[[Ball], Ball], slope: Callable[[Ball], Ball]
) -> tuple[Objective, Ball, Ball]:
    """Of the difference of two log-ratios, times a scale; with that difference and the slope."""
    log_ratio, of_reference = _less_of_reference(tokens, data["reference_log_prob"])
    difference, there = _difference(log_ratio), _pairs_there(tokens)
    of_margin = slope(difference * scale) * there
    of_sequences = _transposed(of_margin * scale, -of_margin * scale)
    objective = Objective(
        value=value(difference * scale) * there,
        of_log_prob=of_sequences[..., None] * tokens.mask,
        of_entropy=0.0,
        of_data={"reference_log_prob": of_reference(of_sequences)},
        of_numbers={},
    )
    return objective, difference, of_margin


def dpo(tokens: Tokens, data: dict[str, Array], beta: float = 0.1, smoothing: float = 0.0) -> Objective:
    """−(1 − ε) log σ(β Δ) − ε log σ(−β Δ)."""

    def value(margin: Ball) -> Ball:
        falling, rising = margin.of(lambda m: np.logaddexp(0, -m)), margin.of(lambda m: np.logaddexp(0, m))
        return falling * (1 - smoothing) + rising * smoothing

    def slope(margin: Ball) -> Ball:
        return margin.of(lambda m: smoothing * _sigmoid(m) - (1 - smoothing) * _sigmoid(-m))

    objective, difference, of_margin = _of_margin(tokens, data, beta, value, slope)
    objective.of_numbers["beta"] = of_margin * difference
    objective.of_numbers["smoothing"] = difference * (beta * _pairs_there(tokens))
    return objective


def ipo(tokens: Tokens, data: dict[str, Array], tau: float = 0.1) -> Objective:
    """(Δ − 1 / (2 τ))²."""
    wanted = 1 / (2 * tau)
    objective, _, of_margin = _of_margin(
        tokens, data, 1.0, lambda m: (m - wanted) * (m - wanted), lambda m: (m - wanted) * 2.0
    )
    objective.of_numbers["tau"] = of_margin * (wanted / tau)
    return objective


def kto(
    tokens: Tokens,
    data: dict[str, Array],
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Objective:
    """λ_D (1 − σ(β (ρ − z))), and λ_U (1 − σ(β (z − ρ))) if undesirable."""
    log_ratio, of_reference = _less_of_reference(tokens, data["reference_log_prob"])
    desirable, there = data["desirable"], tokens.there
    gain = log_ratio - data["divergence"]
    sign = np.where(desirable, -1.0, 1.0)
    weight = np.where(desirable, desirable_weight, undesirable_weight) * there
    # 1 − σ(x) = σ(−x); its slope is the largest where the gain is 0.
    lost = (gain * (sign * beta)).of(_sigmoid)
    of_gain = (gain * beta).of(lambda g: _sigmoid(g) * _sigmoid(-g), 0.0) * (sign * weight)
    of_sequences = of_gain * beta
    return Objective(
        value=lost * weight,
        of_log_prob=of_sequences[..., None] * tokens.mask,
        of_entropy=0.0,
        of_data={
            "reference_log_prob": of_reference(of_sequences),
            "divergence": of_gain * 0.0,
        },
        of_numbers={
            "beta": of_gain * gain,
            "desirable_weight": lost * (desirable & there),
            "undesirable_weight": lost * (~desirable & there),
        },
    )


def _of_means(tokens: Tokens, of_chosen: Ball, of_rejected: Ball) -> Ball:
    """The derivative with respect to tokens, of that with respect to their sequences' means."""
    return _transposed(of_chosen, of_rejected)[..., None] * tokens.share


def simpo(tokens: Tokens, data: dict[str, Array], beta: float = 2.0, gamma: float = 0.5) -> Objective:
    """−log σ(β mean log π_w − β mean log π_l − γ)."""
    del data
    difference, there = _difference((tokens.log_prob * tokens.share).sum(-1)), _pairs_there(tokens)
    margin = difference * beta - gamma
    slope = margin.of(lambda m: -_sigmoid(-m)) * there
    return Objective(
        value=margin.of(lambda m: np.logaddexp(0, -m)) * there,
        of_log_prob=_of_means(tokens, slope * beta, -slope * beta),
        of_entropy=0.0,
        of_data={},
        of_numbers={"beta": slope * difference, "gamma": -slope},
    )


MOST_LOG_P = -1e-7
"""Of a probability that rounds to 1, odds are those of this logarithm, which are finite."""


def _log_odds(log_p: Array) -> Array:
    log_p = np.minimum(log_p, MOST_LOG_P)
    return log_p - np.log(-np.expm1(log_p))


def _d_log_odds(log_p: Array) -> Array:
    return np.where(log_p < MOST_LOG_P, -1 / np.expm1(np.minimum(log_p, MOST_LOG_P)), 0)


def orpo(tokens: Tokens, data: dict[str, Array], weight: float = 0.1) -> Objective:
    """−log P_w − λ log σ(log P_w / (1 − P_w) − log P_l / (1 − P_l)), with log P = mean log π."""
    del data
    log_p, there = (tokens.log_prob * tokens.share).sum(-1), _pairs_there(tokens)
    difference = _difference(log_p.of(_log_odds, MOST_LOG_P))
    slopes = log_p.of(_d_log_odds, MOST_LOG_P)
    lost, slope = difference.of(lambda d: np.logaddexp(0, -d)) * there, difference.of(lambda d: _sigmoid(-d)) * there
    of_chosen, of_rejected = slope * slopes[..., 0::2] * -weight, slope * slopes[..., 1::2] * weight
    return Objective(
        value=-log_p[..., 0::2] * there + lost * weight,
        of_log_prob=_of_means(tokens, of_chosen - 1.0 * there, of_rejected),
        of_entropy=0.0,
        of_data={},
        of_numbers={"weight": lost},
    )
