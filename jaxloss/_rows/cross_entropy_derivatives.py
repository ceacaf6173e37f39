"""The derivatives of cross entropy of rows: of losses and statistics, by logits, targets and parameters.

Each is of operands as `_rows.cross_entropy` has them, and of the statistics of whole rows: maximum and logarithm of the
sum first, of classes that may be split over the devices of `objective.axes`.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, along, is_masked
from jaxloss._autodiff.row_loss import Operands
from jaxloss._autodiff.tangents import row_dot, tangent_of, varying_like
from jaxloss._rows.labels import BESIDE_A_LABEL, whole_targets, with_z_loss
from jaxloss._spec import Objective, options_that_change


def grad_of_stats(objective: Objective, stats, logits, target, row_weight, options, of_lse, of_entropy) -> Array:
    """The gradient of rows' losses, log-sum-exps and entropies, times these weights of each, as a formula."""
    operands = Operands(logits, target, row_weight, tuple(options.values()))
    of_scaled = d_scaled_logits(objective, operands, stats, row_weight, of_lse, of_entropy)
    gradient = of_scaled * formulas.logit_slopes(logits, options)
    return jnp.where(is_masked(row_weight)[..., None], 0, gradient).astype(logits.dtype)


def scaled_logits(objective: Objective, operands: Operands, maximum: Array) -> Array:
    """As the options make them, beside the maximum that is known."""
    options = objective.options(operands.parameters)
    return formulas.with_maximum(formulas.scaled_logits(operands.x, operands.target, options), maximum, options)


def z_derivative(objective: Objective, operands: Operands, stats: Sequence[Array]) -> Array:
    """The derivative of the losses with respect to the scaled logits."""
    (logits, target, _, parameters), (maximum, log_sum, *_) = operands, stats
    options = objective.options(parameters)
    totals = whole_targets(objective, objective.axes, logits, target, options)
    total = with_z_loss(totals.total, options, maximum, log_sum)
    targets = formulas.class_targets(logits, target, options, objective.classes_of(logits.shape[-1]))
    z, beyond = scaled_logits(objective, operands, maximum), None
    if not totals.of_labels or formulas.only(options, *BESIDE_A_LABEL):
        beyond = with_z_loss(_without_largest(objective, z, maximum, targets), options, maximum, log_sum)
    difference = formulas.softmax_minus_target(z, maximum, log_sum, total, targets, beyond)
    return jnp.where(totals.valid[..., None], difference, 0)


def _without_largest(objective: Objective, z: Array, maximum: Array, targets: Array) -> Array:
    """What the targets of a row sum to without that of the largest logit, as no difference of sums."""
    summed = jnp.sum(jnp.where(z == maximum[..., None], 0, targets), -1)
    return jax.lax.psum(summed, objective.axes) if objective.axes else summed


def row_softmax(objective: Objective, operands: Operands, stats: Sequence[Array]) -> Array:
    maximum, log_sum, *_ = stats
    return formulas.softmax_of(scaled_logits(objective, operands, maximum), maximum, log_sum)


def above_mean(objective: Objective, z: Array, softmax: Array, maximum: Array) -> Array:
    """How far each scaled logit is above the mean of its row, weighted by the softmax.

    Times −softmax it is the derivative of the entropy. In log p + H, which is the same, the logarithm of the sum
    cancels, and leaves its rounding.
    """
    below = jnp.where(softmax == 0, 0, z - maximum[..., None])
    mean = (softmax * below).sum(-1, keepdims=True)
    return below - (jax.lax.psum(mean, objective.axes) if objective.axes else mean)


def d_scaled_logits(
    objective: Objective,
    operands: Operands,
    stats: Sequence[Array],
    of_nll: Array | None,
    of_lse: Array | None,
    of_entropy: Array | None,
) -> Array:
    """The gradient with respect to the scaled logits of rows, from those of a row's nll, log-sum-exp and entropy.

    `stats` are maximum and logarithm of the sum, of whole rows; None stands for a gradient of zero.
    """
    maximum = stats[0]
    gradient = jnp.zeros(operands.x.shape, maximum.dtype)
    if of_nll is not None:
        gradient = of_nll[..., None] * z_derivative(objective, operands, stats)
    if of_lse is None and of_entropy is None:
        return gradient
    softmax = row_softmax(objective, operands, stats)
    factor = jnp.zeros_like(maximum)[..., None] if of_lse is None else of_lse[..., None]
    if of_entropy is not None:
        z = scaled_logits(objective, operands, maximum)
        factor = factor - of_entropy[..., None] * above_mean(objective, z, softmax, maximum)
    return gradient + softmax * factor


def d_numbers(objective: Objective, operands: Operands, of_scaled: Array, places: Sequence[int]) -> tuple[Array, ...]:
    """The gradients with respect to the parameters at these places, softcap or temperature, of all rows together.

    Of classes that are split over devices they are this device's share.
    """
    z = formulas.scaled_logits(operands.x, operands.target, objective.options(operands.parameters))
    # A masked class moves with no parameter.
    masked = jnp.isneginf(z)
    unmasked = jnp.where(masked, 0, operands.x)

    def of_numbers(*numbers):
        parameters = list(operands.parameters)
        for place, number in zip(places, numbers, strict=True):
            parameters[place] = number
        return formulas.scaled_logits(unmasked, operands.target, objective.options(parameters))

    _, pull = jax.vjp(of_numbers, *(operands.parameters[place] for place in places))
    return pull(jnp.where(masked, 0, of_scaled))


def _along(function, operands: Mapping[str, Array], tangents: Mapping[str, Array | None]):
    """The tangent of what `function` of operands gives along those of some of them; None where these are all zero."""
    tangents = {name: tangents.get(name) for name in operands}
    if all(tangent is None for tangent in tangents.values()):
        return None
    return tangent_of(function, (operands,), (tangents,))


def row_tangents(objective: Objective, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands):
    """The tangents of losses and statistics: of the unclipped loss, through scaled logits and targets."""
    logits, target, _, parameters = operands
    options = objective.options(parameters)
    named = {"logits": logits, "target": target, **options}
    named_tangents = {"logits": tangents.x, "target": tangents.target, **objective.options(tangents.parameters)}
    maximum, log_sum, *_ = stats
    rank = losses.ndim

    def of_z(operands):
        return formulas.scaled_logits(operands["logits"], target, operands)

    def of_targets(operands):
        return formulas.class_targets(logits, operands["target"], operands, objective.classes_of(logits.shape[-1]))

    def of_given(operands):
        return formulas.given_targets(logits, operands["target"], operands)

    def of_labels(operands):
        """Above 0 at every label, also at one whose share is 0."""
        return formulas.given_targets(logits, target, {**operands, "mix": jnp.full_like(maximum, 0.5)})

    def summed(*terms) -> Array:
        """The sum of the terms, each ⟨derivative, tangent⟩ of rows."""
        tangent = functools.reduce(jnp.add, [row_dot(a, b, rank) for a, b in terms], jnp.zeros_like(losses))
        return varying_like(losses, tangent)

    z = formulas.with_maximum(of_z(named), maximum, options)
    z_tangent = _along(of_z, named, {"logits": named_tangents["logits"]})
    # A masked class moves with no parameter.
    unmasked = {**named, "logits": jnp.where(jnp.isneginf(z), 0, logits)}
    z_parameters = options_that_change("logits", "label")
    of_parameters = _along(of_z, unmasked, {name: named_tangents.get(name) for name in z_parameters})
    if of_parameters is not None:
        of_parameters = jnp.where(jnp.isneginf(z), 0, of_parameters)
        z_tangent = of_parameters if z_tangent is None else z_tangent + of_parameters
    given_tangents = {name: named_tangents.get(name) for name in ("target", "mix")}
    weighing_tangents = {name: named_tangents.get(name) for name in options_that_change("weights")}
    nll = log_sum[..., None] - (z - maximum[..., None])

    def nll_where_targeted(target_of_class: Array) -> Array:
        """Without the infinite ones of masked classes that are no target, which have no part in any sum."""
        if jnp.issubdtype(target.dtype, jnp.integer):
            return jnp.where(jnp.isinf(nll) & (target_of_class == 0), 0, nll)
        return jnp.where(formulas.counted_classes(z, options), nll, 0)

    given_nll = nll_where_targeted(of_labels(named))
    of_targets_tangents = []
    for of, along_tangents in ((given_nll, given_tangents), (nll_where_targeted(of_targets(named)), weighing_tangents)):
        b_tangent = _along(of_targets, named, along_tangents)
        if b_tangent is not None:
            valid = whole_targets(objective, objective.axes, logits, target, options).valid
            of_targets_tangents.append((of, jnp.where(valid[..., None], b_tangent, 0)))
    a_tangent = _along(of_given, named, given_tangents)

    terms = []
    if z_tangent is not None:
        terms.append((z_derivative(objective, operands, stats), z_tangent))
    terms += of_targets_tangents
    losses_tangent = summed(*terms)
    if named_tangents.get("z_loss") is not None:
        lse = maximum + log_sum
        losses_tangent = losses_tangent + lse * lse * along(named_tangents["z_loss"], lse)

    # All of the log-sum-exp's tangent is given to one of its two terms: only their sum has a meaning.
    softmax = row_softmax(objective, operands, stats)
    log_sum_tangent = None if z_tangent is None else summed((softmax, z_tangent))
    if not objective.details:
        return losses_tangent, None, log_sum_tangent

    entropy_tangent = None
    valid = whole_targets(objective, objective.axes, logits, target, options).valid
    terms = []
    if z_tangent is not None:
        of_entropy = -softmax * above_mean(objective, z, softmax, maximum)
        entropy_tangent = summed((of_entropy, z_tangent))
        given = formulas.given_targets(logits, target, options)
        total = varying_like(losses, given.sum(-1))
        beyond = _without_largest(objective, z, maximum, given) if "second_label" in options else None
        of_nll = formulas.softmax_minus_target(z, maximum, log_sum, total, given, beyond)
        terms.append((jnp.where(valid[..., None], of_nll, 0), z_tangent))
    if a_tangent is not None:
        terms.append((given_nll, jnp.where(valid[..., None], a_tangent, 0)))
    nll_tangent = summed(*terms) if terms else None
    return losses_tangent, None, log_sum_tangent, nll_tangent, entropy_tangent, None, None
