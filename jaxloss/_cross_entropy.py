"""Cross entropy as row-wise ops: a row is all classes of an example, and they may be split over devices."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxloss import _cross_entropy_calls as calls
from jaxloss import _pair, formulas
from jaxloss._calls import Array, along, taken_out
from jaxloss._cross_entropy_calls import DETAILS, STATS
from jaxloss._examples import Examples, row_weight
from jaxloss._pair import RowLoss, row_dot, varying_like
from jaxloss._rows import Op, row_wise


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is compiled into a cross entropy.

    Attributes:
        clip: 0 for none.
        parameters: the names of the options that are on, a subset of `calls.PARAMETERS` in its order. Without any, and
            without details, the kernels are those without options.
        classes: how many classes a row has, padding apart.
        details: whether statistics are asked for.
        axes: the mesh axes that an enclosing `shard_map` has split the classes over: logits, a target of probabilities
            and class weights are the slice of this device, losses and statistics are the whole row's.
        in_place: a gradient may overwrite the logits, which whoever made them needs no more.
    """

    clip: float
    parameters: tuple[str, ...]
    classes: int
    details: bool = False
    axes: tuple[str, ...] = ()
    in_place: bool = False

    @property
    def stats(self) -> tuple[str, ...]:
        """The names of the statistics of a row."""
        return (*STATS, *DETAILS) if self.details else STATS

    def options(self, parameters: Sequence[Array]) -> dict[str, Array]:
        """The parameters by name."""
        return dict(zip(self.parameters, parameters, strict=True))


Operands = tuple[Array, Array, tuple[Array, ...]]
"""Logits `[..., V]`, target, and the parameters that the objective names."""


@functools.partial(jax.jit, static_argnums=0, inline=True)
def value(objective: Objective, operands: Operands, examples: Examples) -> Array:
    """The reduced loss; an example is a row."""
    reduced = _pair.weighted_rows if examples.reduction == "none" else _pair.weighted_sum
    return reduced(row_loss(objective))(*_weighed(objective, operands, examples))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def value_and_stats(objective: Objective, operands: Operands, examples: Examples) -> tuple[Array, dict[str, Array]]:
    """The reduced loss, and the statistics of each row by name."""
    reduced = _pair.weighted_rows if examples.reduction == "none" else _pair.weighted_sum
    loss, *stats = reduced(row_loss(objective), with_stats=True)(*_weighed(objective, operands, examples))
    return loss, dict(zip(objective.stats, stats, strict=True))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def gradient(objective: Objective, operands: Operands, examples: Examples) -> Array:
    """The gradient of the reduced loss with respect to the logits, which no clip changes."""
    return _pair.value_and_grad(row_loss(objective))(*_weighed(objective, operands, examples))[-1]


def _weighed(objective: Objective, operands: Operands, examples: Examples) -> tuple[Array, ...]:
    logits, target, parameters = operands
    rank = logits.ndim - 1
    weight = row_weight(examples, logits.shape, formulas.real(logits).dtype, example_rank=rank, row_rank=rank)
    return of_slice(objective, objective.axes, logits, target, weight, *parameters)


def _row_rank(logits, *_) -> int:
    return len(logits.shape) - 1


@functools.cache
def row_loss(objective: Objective) -> RowLoss:
    """The cross entropy of rows, of operands as `_weighed` gives them. The statistics are `objective.stats`."""
    plain = not objective.parameters and not objective.details
    features = tuple(3 + place for place, name in enumerate(objective.parameters) if name == "class_weights")

    def op(purpose: str, names: tuple[str, ...]) -> Op:
        def whole(logits, target, row_weight, *parameters):
            if plain:
                function = getattr(calls, f"cross_entropy_{purpose}")
                in_place = {"in_place": objective.in_place} if "gradient" in names else {}
                return function(logits, target, row_weight, clip=objective.clip, **in_place)
            return calls.cross_entropy_with_options(
                purpose,
                names,
                *(logits, target, row_weight, objective.options(parameters)),
                clip=objective.clip,
                classes=objective.classes,
                in_place=objective.in_place,
            )

        def split(axes, *operands):
            return _of_split_rows(objective, axes, names, *of_slice(objective, axes, *operands))

        in_slices = functools.partial(_of_split_rows, objective, objective.axes, names)
        return row_wise(in_slices if objective.axes else whole, split, _row_rank, features)

    stats = objective.stats
    return RowLoss(
        row_rank=_row_rank,
        value=op("value", ("losses",)),
        value_and_stats=op("value_and_stats", ("losses", *stats)),
        value_and_grad=op("value_and_grad", ("losses", *(stats if objective.details else ()), "gradient")),
        derivative=functools.partial(_derivative, objective),
        tangents=functools.partial(_tangents, objective),
        grad_gives_stats=objective.details,
        features=features,
        split_axes=objective.axes,
    )


# ---- classes split over devices --------------------------------------------------------------------------------------


def of_slice(objective: Objective, axes: tuple[str, ...], logits, target, row_weight, *parameters):
    """The same operands for this device's slice of the classes: labels that are elsewhere are -1."""
    if not axes:
        return logits, target, row_weight, *parameters
    width = logits.shape[-1]
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


def _of_split_rows(objective, axes, names, logits, target, row_weight, *parameters) -> tuple[Array, ...]:
    """The results that are named, of whole rows (the gradient of the slice), from this device's slice of the classes.

    Only numbers of one a row are exchanged.
    """
    options = objective.options(parameters)
    statistics, local = _local_statistics(objective, logits, target, row_weight, options)
    maximum = jax.lax.pmax(statistics["maximum"], axes)
    share = jnp.exp(statistics["maximum"] - maximum + statistics["log_sum"])  # of the sum of exponentials
    log_sum = jnp.log(jax.lax.psum(share, axes))
    valid, total = _whole_targets(objective, axes, logits, target, options)
    add_up = functools.partial(jax.lax.psum, axis_name=axes)
    results = {"maximum": maximum, "log_sum": log_sum}

    losses = add_up(_slice_losses(objective, logits, target, options, maximum, log_sum))
    if "z_loss" in options:
        lse, z_loss = maximum + log_sum, along(options["z_loss"], maximum)
        losses = losses + jnp.where(z_loss == 0, 0, z_loss * lse * lse)
        total = total + jnp.where(z_loss == 0, 0, 2 * z_loss * lse)
    results["losses"] = jnp.where(valid, losses, jnp.nan)

    if objective.details:
        given = {name: option for name, option in options.items() if name not in ("class_weights", "label_smoothing")}
        exact = dataclasses.replace(objective, clip=0.0, parameters=tuple(given))
        results["nll"] = jnp.where(
            valid, add_up(_slice_losses(exact, logits, target, given, maximum, log_sum)), jnp.nan
        )
        results["entropy"] = add_up(_slice_entropy(share, log_sum, local["entropy"]))
        begin = jax.lax.axis_index(axes) * logits.shape[-1]
        first = jnp.where(statistics["maximum"] == maximum, local["predicted"] + begin, jnp.iinfo(jnp.int32).max)
        results["predicted"] = jax.lax.pmin(first.astype(jnp.int32), axes)
        results["rank"] = _whole_ranks(objective, axes, logits, target, options)

    out = along(taken_out(row_weight), losses)
    of_row_taken_out = {"predicted": -1, "rank": objective.classes}
    results = {name: jnp.where(out, of_row_taken_out.get(name, 0), result) for name, result in results.items()}
    if "gradient" in names:
        maximum, log_sum = results["maximum"], results["log_sum"]
        if objective.parameters:
            weight = jnp.where(valid, along(row_weight, losses), 0)
            results["gradient"] = calls.cross_entropy_with_options_grad(
                *(logits, target, weight, options, maximum, log_sum, total),
                classes=objective.classes,
                in_place=objective.in_place,
            )
        else:
            total = jnp.where(valid, total, 0)
            results["gradient"] = calls.cross_entropy_grad(
                logits, target, row_weight, maximum, log_sum, total, in_place=objective.in_place
            )
    return tuple(results[name] for name in names)


def _local_statistics(objective: Objective, logits, target, row_weight, options):
    """The statistics of this device's slice, and its details if there are any."""
    names = ("losses", *objective.stats)
    if options or objective.details:
        results = calls.cross_entropy_with_options(
            "value_and_stats",
            names,
            *(logits, target, row_weight, options),
            clip=objective.clip,
            classes=objective.classes,
        )
    else:
        results = calls.cross_entropy_value_and_stats(logits, target, row_weight, clip=objective.clip)
    named = dict(zip(names, results, strict=True))
    return {name: named[name] for name in STATS}, named


def _whole_targets(objective: Objective, axes, logits, target, options) -> tuple[Array, Array]:
    """Whether each row's labels are classes, and what the target of the whole row sums to."""
    add_up = functools.partial(jax.lax.psum, axis_name=axes) if axes else lambda x: x
    labels = [target] if jnp.issubdtype(target.dtype, jnp.integer) else []
    if "second_label" in options:
        labels.append(options["second_label"])
    valid = jnp.ones(logits.shape[:-1], bool)
    for label in labels:
        here = formulas.valid_rows(logits, label, _only(options, "num_classes"))
        valid = valid & (add_up(here.astype(jnp.int32)) > 0 if axes else here)
    if labels and "class_weights" not in options:
        return valid, jnp.ones(valid.shape, formulas.real(logits).dtype)  # without going along the classes
    return valid, add_up(formulas.class_targets(logits, target, options, objective.classes).sum(-1))


def _only(options: Mapping[str, Array], *names: str) -> dict[str, Array]:
    return {name: option for name, option in options.items() if name in names}


def _slice_losses(objective: Objective, logits, target, options, maximum, log_sum) -> Array:
    """What the classes of a slice add to the losses of their rows."""
    if not jnp.issubdtype(target.dtype, jnp.integer) or "label_smoothing" in options or "class_weights" in options:
        z_minus_maximum = formulas.scaled_logits(logits, options) - maximum[..., None]
        targets = formulas.class_targets(logits, target, options, objective.classes)
        nll = formulas.nll(z_minus_maximum, log_sum[..., None], objective.clip)
        return jnp.sum(jnp.where(targets == 0, 0, targets * nll), -1)
    labels = {"first": (target, 1.0)}
    if "second_label" in options:
        mix = along(options["mix"], maximum)
        labels = {"first": (target, mix), "second": (options["second_label"], 1 - mix)}
    losses = jnp.zeros_like(maximum)
    for label, share in labels.values():
        z, here = _logits_at(logits, label, options)
        nll = formulas.nll(z - maximum, log_sum, objective.clip)
        losses = losses + jnp.where(here & (share != 0), share * nll, 0)
    return losses


def _logits_at(logits, label, options) -> tuple[Array, Array]:
    """The scaled logit of each row's label, and whether it is one of these classes."""
    here = formulas.valid_rows(logits, label, _only(options, "num_classes"))
    at_label = jnp.take_along_axis(logits, jnp.where(here, label, 0)[..., None], -1)
    return formulas.scaled_logits(at_label, _only(options, "softcap", "temperature"))[..., 0], here


def _slice_entropy(share, log_sum, entropy) -> Array:
    """What a slice adds to the entropy of its rows, of which it holds `share` of the exponentials."""
    probability = share * jnp.exp(-log_sum)
    return jnp.where(share == 0, 0, probability * (entropy - jnp.log(jnp.where(share == 0, 1, probability))))


def _whole_ranks(objective: Objective, axes, logits, target, options) -> Array:
    """The rank of each row's label among the classes of all slices: one more pass over the logits."""
    if not jnp.issubdtype(target.dtype, jnp.integer):
        return jnp.full(logits.shape[:-1], objective.classes, jnp.int32)
    z, here = _logits_at(logits, target, options)
    begin = jax.lax.axis_index(axes) * logits.shape[-1]
    of_label = jax.lax.psum(jnp.where(here, z, 0), axes)[..., None]
    index = jax.lax.psum(jnp.where(here, target + begin, 0), axes)[..., None]
    z = formulas.scaled_logits(logits, options)
    earlier = jax.lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1) + begin < index
    before = jax.lax.psum(jnp.sum((z > of_label) | ((z == of_label) & earlier), -1, dtype=jnp.int32), axes)
    has_label = jax.lax.psum(here.astype(jnp.int32), axes) > 0
    return jnp.where(has_label, before, objective.classes).astype(jnp.int32)


# ---- derivatives -----------------------------------------------------------------------------------------------------


def _z_derivative(objective: Objective, operands, stats) -> Array:
    """The derivative of the losses with respect to the scaled logits."""
    (logits, target, _, *parameters), (maximum, log_sum, *_) = operands, stats
    options = objective.options(parameters)
    valid, total = _whole_targets(objective, objective.axes, logits, target, options)
    if "z_loss" in options:
        z_loss, lse = along(options["z_loss"], maximum), maximum + log_sum
        total = total + jnp.where(z_loss == 0, 0, 2 * z_loss * lse)
    targets = formulas.class_targets(logits, target, options, objective.classes)
    difference = _softmax(objective, operands, stats) * total[..., None] - targets
    return jnp.where(valid[..., None], difference, 0)


def _softmax(objective: Objective, operands, stats) -> Array:
    logits, _, _, *parameters = operands
    maximum, log_sum, *_ = stats
    z = formulas.scaled_logits(logits, objective.options(parameters))
    return jnp.exp(z - maximum[..., None] - log_sum[..., None])


def _derivative(objective: Objective, operands, stats) -> Array:
    logits, _, _, *parameters = operands
    options = objective.options(parameters)
    return _z_derivative(objective, operands, stats) * formulas.logit_slopes(logits, options)


def _along_live(function, operands: Mapping[str, Array], dots: Mapping[str, Array | None]):
    """The derivative of `function` of operands along those that have a tangent; None where none has."""
    live = {name: operands[name] for name, dot in dots.items() if dot is not None and name in operands}
    if not live:
        return None
    tangents = {name: dots[name] for name in live}
    return jax.jvp(lambda live: function({**operands, **live}), (live,), (tangents,))[1]


def _tangents(objective: Objective, operands, losses, stats, dots):
    """The tangents of losses and statistics: of the unclipped loss, through scaled logits and targets."""
    logits, target, _, *parameters = operands
    options = objective.options(parameters)
    named = {"logits": logits, "target": target, **options}
    named_dots = {"logits": dots[0], "target": dots[1], **objective.options(dots[3:])}
    maximum, log_sum, *details = stats
    rank = losses.ndim

    def of_z(operands):
        return formulas.scaled_logits(operands["logits"], operands)

    def of_targets(operands):
        return formulas.class_targets(logits, operands["target"], operands, objective.classes)

    def of_given(operands):
        return formulas.given_targets(logits, operands["target"], operands)

    def of_labels(operands):
        """Above 0 at every label, also at one whose share is 0."""
        return formulas.given_targets(logits, target, {**operands, "mix": jnp.full_like(maximum, 0.5)})

    def summed(*terms) -> Array:
        """The sum of the terms, each ⟨derivative, tangent⟩ of rows."""
        dot = functools.reduce(jnp.add, [row_dot(a, b, rank) for a, b in terms], jnp.zeros_like(losses))
        return varying_like(losses, dot)

    z = of_z(named)
    z_dot = _along_live(of_z, named, {"logits": named_dots["logits"]})
    # A masked class moves with no parameter.
    unmasked = {**named, "logits": jnp.where(jnp.isneginf(z), 0, logits)}
    of_parameters = _along_live(of_z, unmasked, {name: named_dots.get(name) for name in ("softcap", "temperature")})
    if of_parameters is not None:
        of_parameters = jnp.where(jnp.isneginf(z), 0, of_parameters)
        z_dot = of_parameters if z_dot is None else z_dot + of_parameters
    given_dots = {name: named_dots.get(name) for name in ("target", "mix")}
    weighing_dots = {name: named_dots.get(name) for name in ("class_weights", "label_smoothing")}
    nll = log_sum[..., None] - (z - maximum[..., None])

    def nll_where_targeted(target_of_class: Array) -> Array:
        """Without the infinite ones of masked classes that are no target, which have no part in any sum."""
        if jnp.issubdtype(target.dtype, jnp.integer):
            return jnp.where(jnp.isinf(nll) & (target_of_class == 0), 0, nll)
        return jnp.where(formulas.counted_classes(z, options), nll, 0)

    given_nll = nll_where_targeted(of_labels(named))
    of_targets_dots = []
    for of, along_dots in ((given_nll, given_dots), (nll_where_targeted(of_targets(named)), weighing_dots)):
        b_dot = _along_live(of_targets, named, along_dots)
        if b_dot is not None:
            valid, _ = _whole_targets(objective, objective.axes, logits, target, options)
            of_targets_dots.append((of, jnp.where(valid[..., None], b_dot, 0)))
    a_dot = _along_live(of_given, named, given_dots)

    terms = []
    if z_dot is not None:
        terms.append((_z_derivative(objective, operands, stats), z_dot))
    terms += of_targets_dots
    losses_dot = summed(*terms)
    if named_dots.get("z_loss") is not None:
        lse = maximum + log_sum
        losses_dot = losses_dot + lse * lse * along(named_dots["z_loss"], lse)

    # All of the log-sum-exp's tangent is given to one of its two terms: only their sum has a meaning.
    softmax = _softmax(objective, operands, stats)
    log_sum_dot = None if z_dot is None else summed((softmax, z_dot))
    if not objective.details:
        return losses_dot, None, log_sum_dot

    entropy, entropy_dot = details[1], None
    valid, _ = _whole_targets(objective, objective.axes, logits, target, options)
    terms = []
    if z_dot is not None:
        log_softmax = jnp.where(softmax == 0, 0, z - maximum[..., None] - log_sum[..., None])
        of_entropy = -softmax * (log_softmax + entropy[..., None])
        entropy_dot = summed((of_entropy, z_dot))
        given = formulas.given_targets(logits, target, options)
        total = varying_like(losses, given.sum(-1))
        terms.append((jnp.where(valid[..., None], softmax * total[..., None] - given, 0), z_dot))
    if a_dot is not None:
        terms.append((given_nll, jnp.where(valid[..., None], a_dot, 0)))
    nll_dot = summed(*terms) if terms else None
    return losses_dot, None, log_sum_dot, nll_dot, entropy_dot, None, None
