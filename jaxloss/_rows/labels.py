"""The labels of rows whose classes may be split over devices: their targets, and the gradient at their classes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, along, weighted
from jaxloss._rows.few_classes import at_classes, class_weights_at, written
from jaxloss._spec import Objective, options_that_change

WEIGHTS, OF_LOGITS = options_that_change("weights"), options_that_change("logits", "label")

BESIDE_A_LABEL = ("second_label", "label_smoothing", "z_loss")
"""Options with which the softmax of a row is multiplied by more than what its label is given. Weights alone are not."""


class Totals(NamedTuple):
    """What the target of whole rows sums to.

    Attributes:
        valid: whether the labels are classes.
        of_labels: what the class of each label is given for being the label; none where the target is probabilities.
        of_classes: the sum of what else classes are given: probabilities, or the smoothing of labels.
    """

    valid: Array
    of_labels: tuple[Array, ...]
    of_classes: Array

    @property
    def total(self) -> Array:
        return sum(self.of_labels, start=self.of_classes)


def labels_and_shares(target, options) -> list[tuple[Array, Array | float]]:
    """The class indices of each row, with their shares of the target; none if the target is probabilities."""
    if not jnp.issubdtype(target.dtype, jnp.integer):
        return []
    if "second_label" not in options:
        return [(target, 1.0)]
    mix = along(options["mix"], target)
    return [(target, mix), (options["second_label"], 1 - mix)]


def is_here(logits, index, options) -> Array:
    """Whether it is the index of one of these classes."""
    return formulas.valid_rows(logits, index, formulas.only(options, "num_classes"))


def logits_at(logits, index, options, *, is_label: bool) -> tuple[Array, Array]:
    """The scaled logit of one class of each row, as a label's or as others', and whether it is one of these classes."""
    here = is_here(logits, index, options)
    at_index = at_classes(logits, index[..., None], here[..., None])
    return _scaled(at_index, options, is_label=is_label)[..., 0], here


def _scaled(at_index, options, *, is_label: bool) -> Array:
    """The scaled logits of one class of each row, `[rows..., 1]`."""
    label = jnp.zeros(at_index.shape[:-1], jnp.int32) if is_label else None
    return formulas.scaled_logits(at_index, label, formulas.only(options, *OF_LOGITS))


# ---- what targets sum to ---------------------------------------------------------------------------------------------


def whole_targets(objective: Objective, axes, logits, target, options) -> Totals:
    """What the target of each whole row sums to, of classes that these axes have split."""
    summed = parts_of_totals(objective, logits, target, options)
    return totals_of(logits, target, options, jax.lax.psum(summed, axes) if axes else summed)


def parts_of_totals(objective: Objective, logits, target, options) -> dict[str, Array]:
    """Numbers of rows by name, of which the devices that have split the classes add up their own."""
    dtype, classes, parts = formulas.real(logits).dtype, objective.classes_of(logits.shape[-1]), {}
    labels = labels_and_shares(target, options)
    for place, (label, _) in enumerate(labels):
        here = is_here(logits, label, options)
        parts[f"known {place}"] = here.astype(dtype)
        if "class_weights" in options:
            weight = class_weights_at(options["class_weights"], label[..., None], here[..., None])[..., 0]
            parts[f"weight {place}"] = jnp.where(here, weight, 0)
    if not labels:
        parts["classes"] = formulas.target_totals(logits, target, options, classes)
    elif "label_smoothing" in options:
        without = {name: option for name, option in options.items() if name not in ("second_label", "mix")}
        parts["classes"] = formulas.target_totals(logits, jnp.full_like(target, -1), without, classes)
    return parts


def totals_of(logits, target, options, summed: dict[str, Array]) -> Totals:
    """From the `parts_of_totals` of all devices."""
    dtype, valid, of_labels = formulas.real(logits).dtype, jnp.ones(logits.shape[:-1], bool), []
    for place, (_, share) in enumerate(labels_and_shares(target, options)):
        valid = valid & (summed[f"known {place}"] > 0)
        of_label = jnp.broadcast_to(jnp.asarray(share, dtype), valid.shape)
        if "label_smoothing" in options:
            of_label = (1 - along(options["label_smoothing"], of_label)) * of_label
        if "class_weights" in options:
            of_label = of_label * summed[f"weight {place}"]
        of_labels.append(of_label)
    of_classes = summed.get("classes")
    return Totals(valid, tuple(of_labels), jnp.zeros(valid.shape, dtype) if of_classes is None else of_classes)


def with_z_loss(total: Array, options, maximum: Array, log_sum: Array) -> Array:
    """What the softmax is multiplied by in the derivative, from what the target of each row sums to."""
    if "z_loss" not in options:
        return total
    return total + z_loss_total(options, maximum, log_sum)


def z_loss_total(options, maximum: Array, log_sum: Array) -> Array:
    """What the z-loss adds to it."""
    return 2 * along(options["z_loss"], maximum) * (maximum + log_sum)


# ---- the gradient at the classes of labels ---------------------------------------------------------------------------


def label_logits(logits, target, options) -> list[Array]:
    """The logits of the labels, `[rows..., 1]`, of any class for those that are elsewhere."""
    labels = [label[..., None] for label, _ in labels_and_shares(target, options)]
    return [at_classes(logits, label, is_here(logits, label, options)) for label in labels]


def with_label_gradients(
    objective: Objective, options, gradient, x_of_labels, target, row_weight, maximum, log_sum, totals: Totals
) -> Array:
    """The gradient `[rows..., V]` with that at the classes of labels written anew, from their `label_logits`.

    Kernels that take the sum of a target do not have what of it is not the label's own, which may be little.
    """
    dtype, classes = maximum.dtype, objective.classes_of(gradient.shape[-1])
    labels = [label for label, _ in labels_and_shares(target, options)]
    here = [is_here(gradient, label, options) for label in labels]
    derivatives = []
    for place, (label, x) in enumerate(zip(labels, x_of_labels, strict=True)):
        z = _scaled(x, options, is_label=True)
        own, others = totals.of_labels[place], totals.of_classes
        if "label_smoothing" in options:
            smoothing = along(options["label_smoothing"], own) / classes * ~jnp.isneginf(z[..., 0])
            if "class_weights" in options:
                weights = class_weights_at(options["class_weights"], label[..., None], here[place][..., None])
                smoothing = smoothing * weights[..., 0].astype(dtype)
            own, others = own + smoothing, others - smoothing
        for of_other, other, other_here in zip(totals.of_labels, labels, here, strict=True):
            if other is not label:
                same = here[place] & other_here & (label == other)
                own, others = own + jnp.where(same, of_other, 0), others + jnp.where(same, 0, of_other)
        others = with_z_loss(others, options, maximum, log_sum)
        total = with_z_loss(totals.total, options, maximum, log_sum)
        nll = log_sum[..., None] - (formulas.with_maximum(z, maximum, options) - maximum[..., None])
        derivative = formulas.label_derivative(nll, total[..., None], own[..., None], others[..., None])
        slopes = formulas.logit_slopes(x, formulas.only(options, "softcap", "temperature"))
        derivatives.append(weighted(row_weight, derivative * slopes))
    index, is_known = (jnp.stack(of_labels, -1) for of_labels in (labels, here))
    return written(gradient, index, is_known, jnp.concatenate(derivatives, -1))
