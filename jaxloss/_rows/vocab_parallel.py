"""Cross entropy of rows whose classes are split over devices: each has a slice, and they exchange one number a row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, along, is_masked
from jaxloss._ffi import cross_entropy as calls
from jaxloss._rows.labels import (
    BESIDE_A_LABEL,
    WEIGHTS,
    Totals,
    label_logits,
    labels_and_shares,
    logits_at,
    parts_of_totals,
    totals_of,
    with_label_gradients,
    with_z_loss,
)
from jaxloss._spec import STATS, Objective, options_that_change


def local_shard(
    objective: Objective,
    axes: tuple[str, ...],
    logits,
    target,
    row_weight,
    *parameters,
    width: int | None = None,
):
    """The same operands for this device's slice of the classes: labels that are elsewhere are -1.

    `width`: how many classes the slice has, if what logits have beyond it is padding.
    """
    if not axes:
        return logits, target, row_weight, *parameters
    width = logits.shape[-1] if width is None else width
    begin = jax.lax.axis_index(axes) * width
    options = objective.options(parameters)
    if "num_classes" in options:
        options["num_classes"] = jnp.clip(options["num_classes"] - begin, 0, width)

    def here(labels):
        return jnp.where(formulas.in_range(labels - begin, width), labels - begin, -1)

    if jnp.issubdtype(target.dtype, jnp.integer):
        target = here(target)
    if "second_label" in options:
        options["second_label"] = here(options["second_label"])
    return logits, target, row_weight, *options.values()


def vocab_parallel(objective, axes, names, logits, target, row_weight, *parameters) -> tuple[Array, ...]:
    """The results that are named, of whole rows (the gradient of the slice), from this device's slice of the classes.

    Only numbers of one a row are exchanged: the maximum, and then at once what else a loss of labels is made of. The
    gradient waits for both, so that nothing reads the logits any more when it takes their place.
    """
    options = objective.options(parameters)
    statistics, local = _local_statistics(objective, logits, target, row_weight, options)
    maximum = jax.lax.pmax(statistics["maximum"], axes)
    add_up = functools.partial(jax.lax.psum, axis_name=axes)
    labels = labels_and_shares(target, options)
    rest, leading = formulas.sums_of_slice(maximum, statistics["maximum"], jnp.expm1(statistics["log_sum"]))
    summed = {"rest": rest, "leading": leading}
    for place, (label, _) in enumerate(labels):
        z, here = logits_at(logits, label, options, is_label=True)
        z = formulas.with_maximum(z[..., None], maximum, options)[..., 0]
        summed[f"logit {place}"] = jnp.where(here, z - maximum, 0)
    summed |= parts_of_totals(objective, logits, target, options)
    summed = dict(zip(summed, add_up(tuple(summed.values())), strict=True))
    log_sum = formulas.log_of_sums(summed["rest"], summed["leading"])
    totals = totals_of(logits, target, options, summed)
    results = {"maximum": maximum, "log_sum": log_sum}

    def nll_of_labels(clip: float) -> Array:
        losses = jnp.zeros_like(maximum)
        for place, (_, of_target) in enumerate(labels):
            nll = formulas.nll(summed[f"logit {place}"], log_sum, clip)
            losses = losses + jnp.where(of_target != 0, of_target * nll, 0)
        return losses

    if labels and not formulas.only(options, *WEIGHTS):
        losses = nll_of_labels(objective.clip)
    else:
        losses = add_up(_slice_losses(objective, logits, target, options, maximum, log_sum))
    if "z_loss" in options:
        lse, z_loss = maximum + log_sum, along(options["z_loss"], maximum)
        losses = losses + jnp.where(z_loss == 0, 0, z_loss * lse * lse)
    counted = totals.valid & formulas.has_softmax(log_sum)
    results["losses"] = jnp.where(counted, losses, jnp.nan)

    if objective.details:
        given = {name: option for name, option in options.items() if name not in WEIGHTS}
        exact = dataclasses.replace(objective, clip=0.0, parameters=tuple(given))
        nll = nll_of_labels(0.0) if labels else add_up(_slice_losses(exact, logits, target, given, maximum, log_sum))
        results["nll"] = jnp.where(counted, nll, jnp.nan)
        log_share = statistics["maximum"] - maximum + statistics["log_sum"] - log_sum
        results["entropy"] = add_up(_slice_entropy(log_share, local["entropy"]))
        begin = jax.lax.axis_index(axes) * logits.shape[-1]
        leads = statistics["maximum"] == maximum
        if formulas.only(options, *options_that_change("label")):
            largest, here = logits_at(logits, local["predicted"], options, is_label=False)
            largest = jnp.where(here & ~jnp.isnan(largest), largest, -jnp.inf)
            leads = largest == jax.lax.pmax(largest, axes)
        first = jnp.where(leads, local["predicted"] + begin, jnp.iinfo(jnp.int32).max)
        results["predicted"] = jax.lax.pmin(first.astype(jnp.int32), axes)
        results["rank"] = _whole_ranks(objective, axes, logits, target, options)

    out = along(is_masked(row_weight), losses)
    of_masked_row = {"predicted": -1, "rank": objective.classes_of(logits.shape[-1])}
    results = {name: jnp.where(out, of_masked_row.get(name, 0), result) for name, result in results.items()}
    if "gradient" in names:
        of_rows = (results["maximum"], results["log_sum"], totals)
        results["gradient"] = known_gradient(objective, options, logits, target, row_weight, *of_rows)
    return tuple(results[name] for name in names)


def known_gradient(objective, options, logits, target, row_weight, maximum, log_sum, totals: Totals) -> Array:
    """The gradient of rows, or of a slice of each, of which the statistics and `whole_targets` are known."""
    if not objective.parameters:
        total = jnp.where(totals.valid, totals.total, 0)
        return calls.cross_entropy_grad(
            logits, target, row_weight, maximum, log_sum, total, in_place=objective.in_place
        )
    weight = jnp.where(totals.valid, along(row_weight, maximum), 0)
    of_labels = label_logits(logits, target, options) if formulas.only(options, *BESIDE_A_LABEL) else []
    if objective.in_place:
        # They have to be read before the gradient takes the place of the logits: a kernel waits for what it is given.
        # Of a row with a NaN all is NaN, and a compiler does not know that.
        for x in of_labels:
            log_sum = jnp.where(jnp.isnan(x[..., 0]), jnp.nan, log_sum)
    total = with_z_loss(totals.total, options, maximum, log_sum)
    gradient = calls.cross_entropy_with_options_grad(
        *(logits, target, weight, options, maximum, log_sum, total),
        classes=objective.classes_of(logits.shape[-1]),
        in_place=objective.in_place,
    )
    if not of_labels:
        return gradient
    of_rows = (weight, maximum, log_sum, totals)
    return with_label_gradients(objective, options, gradient, of_labels, target, *of_rows)


def _local_statistics(objective: Objective, logits, target, row_weight, options):
    """The statistics of this device's slice, and its details if there are any."""
    names = ("losses", *objective.stats)
    if options or objective.details:
        results = calls.cross_entropy_with_options(
            "value_and_stats",
            names,
            *(logits, target, row_weight, options),
            clip=objective.clip,
            classes=objective.classes_of(logits.shape[-1]),
        )
    else:
        results = calls.cross_entropy(names, logits, target, row_weight, clip=objective.clip)
    named = dict(zip(names, results, strict=True))
    return {name: named[name] for name in STATS}, named


def _slice_losses(objective: Objective, logits, target, options, maximum, log_sum) -> Array:
    """What the classes of a slice add to the losses of their rows, of which each may be a target."""
    z = formulas.with_maximum(formulas.scaled_logits(logits, target, options), maximum, options)
    targets = formulas.class_targets(logits, target, options, objective.classes_of(logits.shape[-1]))
    nll = formulas.nll(z - maximum[..., None], log_sum[..., None], objective.clip)
    return jnp.sum(jnp.where(targets == 0, 0, targets * nll), -1)


def _slice_entropy(log_share: Array, entropy: Array) -> Array:
    """What a slice adds to the entropy of its rows, of whose probability it has a share with this logarithm."""
    none = jnp.isneginf(log_share)
    return jnp.where(none, 0, jnp.exp(log_share) * (entropy - jnp.where(none, 0, log_share)))


def _whole_ranks(objective: Objective, axes, logits, target, options) -> Array:
    """The rank of each row's label among the classes of all slices: one more pass over the logits."""
    if not jnp.issubdtype(target.dtype, jnp.integer):
        return jnp.full(logits.shape[:-1], objective.classes_of(logits.shape[-1]), jnp.int32)
    z, here = logits_at(logits, target, options, is_label=False)
    begin = jax.lax.axis_index(axes) * logits.shape[-1]
    of_label = jax.lax.psum(jnp.where(here, z, 0), axes)[..., None]
    index = jax.lax.psum(jnp.where(here, target + begin, 0), axes)[..., None]
    z = formulas.scaled_logits(logits, None, options)
    classes = jax.lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1) + begin
    # The label itself never counts: what is computed twice, here and above, may differ in its last bit.
    ahead = ((z > of_label) | ((z == of_label) & (classes < index))) & (classes != index)
    ahead &= formulas.counted_classes(logits, options)  # a label may be masked, too: by a bias of -inf
    before = jax.lax.psum(jnp.sum(ahead, -1, dtype=jnp.int32), axes)
    has_label = jax.lax.psum(here.astype(jnp.int32), axes) > 0
    return jnp.where(has_label, before, objective.classes_of(logits.shape[-1])).astype(jnp.int32)
