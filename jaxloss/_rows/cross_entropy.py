"""Cross entropy as row-wise ops: a row is all classes of an example, and they may be split over devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, along, inlined, sizes_known
from jaxloss._autodiff import pair
from jaxloss._autodiff.pair import RowLoss
from jaxloss._autodiff.tangents import BOUNDED, row_dot, totals, varying_like
from jaxloss._ffi import cross_entropy as calls
from jaxloss._partitioning.meshes import Entry
from jaxloss._partitioning.partitioned import Call, Op
from jaxloss._partitioning.row_wise import RowWise, rank_of_weight
from jaxloss._rows import long_rows
from jaxloss._rows.vocab_parallel import known_gradient, local_shard, vocab_parallel, whole_targets
from jaxloss._rows.weights import Examples, row_weight
from jaxloss._spec import OPTIONS, Objective, options_that_change

MANY_BYTES = 2**26
"""From so many of logits on, all of short rows, a GPU sums losses where it computes them: then all of it is at work."""

SHORT_BYTES = 512
"""The most of a short row, where only the value is wanted."""

SHORT_BYTES_WITH_GRAD = {2: 128, 4: 64}
"""Where the gradient is wanted too, by the bytes of a logit: longer rows are faster whole in registers."""

Operands = tuple[Array, Array, tuple[Array, ...]]
"""Logits `[..., V]`, target, and the parameters that the objective names."""


@inlined(static_argnums=0)
def value(objective: Objective, operands: Operands, examples: Examples) -> Array:
    """The reduced loss; an example is a row."""
    reduced = pair.weighted_rows if examples.reduction == "none" else pair.weighted_sum
    return reduced(row_loss(objective))(*_weighed(objective, operands, examples))


@inlined(static_argnums=0)
def value_and_stats(objective: Objective, operands: Operands, examples: Examples) -> tuple[Array, dict[str, Array]]:
    """The reduced loss, and the statistics of each row by name."""
    reduced = pair.weighted_rows if examples.reduction == "none" else pair.weighted_sum
    loss, *stats = reduced(row_loss(objective), with_stats=True)(*_weighed(objective, operands, examples))
    return loss, dict(zip(objective.stats, stats, strict=True))


@inlined(static_argnums=0)
def gradient(objective: Objective, operands: Operands, examples: Examples) -> Array:
    """The gradient of the reduced loss with respect to the logits, which no clip changes."""
    return pair.value_and_grad(row_loss(objective))(*_weighed(objective, operands, examples))[-1]


def _weighed(objective: Objective, operands: Operands, examples: Examples) -> tuple[Array, ...]:
    logits, target, parameters = operands
    rank = logits.ndim - 1
    weight = row_weight(examples, logits.shape, formulas.real(logits).dtype, example_rank=rank, row_rank=rank)
    return local_shard(objective, objective.axes, logits, target, weight, *parameters)


def _row_rank(logits, *_) -> int:
    return len(logits.shape) - 1


@functools.cache
def row_loss(objective: Objective) -> RowLoss:
    """The cross entropy of rows, of operands as `_weighed` gives them. The statistics are `objective.stats`."""
    plain = not objective.parameters and not objective.details
    features = tuple(3 + place for place, name in enumerate(objective.parameters) if OPTIONS[name].per_class)

    def whole(purpose: str, names: tuple[str, ...], logits, target, row_weight, *parameters):
        each = long_rows.slices(logits) if plain and jnp.issubdtype(target.dtype, jnp.integer) else 1
        if each > 1:
            return long_rows.results(objective, names, each, logits, target, row_weight)
        if plain:
            function = getattr(calls, f"cross_entropy_{purpose}")
            in_place = {"in_place": objective.in_place} if "gradient" in names else {}
            return function(logits, target, row_weight, clip=objective.clip, **in_place)
        return calls.cross_entropy_with_options(
            purpose,
            names,
            *(logits, target, row_weight, objective.options(parameters)),
            clip=objective.clip,
            classes=objective.classes_of(logits.shape[-1]),
            in_place=objective.in_place,
        )

    def split(names: tuple[str, ...], axes, *operands):
        """Of classes that `axes` split too, within what `objective.axes` have left of them."""
        on_axes = dataclasses.replace(objective, axes=objective.axes + axes)
        return vocab_parallel(on_axes, on_axes.axes, names, *local_shard(objective, axes, *operands))

    def row_wise(attribute: str, local: Op, split: Op, rank: Callable[..., int] = _row_rank, **options) -> RowWise:
        return RowWise((__name__, (objective, attribute)), local, split, rank, **options)

    def op(purpose: str, names: tuple[str, ...]) -> RowWise:
        in_slices = functools.partial(vocab_parallel, objective, objective.axes, names)
        local = in_slices if objective.axes else functools.partial(whole, purpose, names)
        return row_wise(purpose, local, functools.partial(split, names), features=features)

    def grad(axes, *operands_and_stats):
        operands, (maximum, log_sum, *_) = operands_and_stats[: -len(stats)], operands_and_stats[-len(stats) :]
        logits, target, row_weight, *parameters = local_shard(objective, axes, *operands)
        options = objective.options(parameters)
        on_axes = dataclasses.replace(objective, axes=objective.axes + axes)
        of_rows = (maximum, log_sum, *whole_targets(on_axes, on_axes.axes, logits, target, options))
        return (known_gradient(on_axes, options, logits, target, row_weight, *of_rows),)

    def total(attribute: str, purpose: str, names: tuple[str, ...]) -> RowWise:
        def local(*operands):
            row_weight = operands[2]
            if row_weight.ndim == 0:
                return calls.cross_entropy_total(purpose, *operands, clip=objective.clip)
            losses, *gradient = whole(purpose, names, *operands)
            return totals(row_weight, losses), *gradient

        def on_mesh(axes, class_axes, *operands):
            if class_axes:
                losses, *gradient = split(names, class_axes, *operands)
                of_device = totals(operands[2], losses)
            else:
                of_device, *gradient = local(*operands)
            return jax.lax.psum(of_device, axes), *gradient

        return row_wise(attribute, local, on_mesh, rank_of_weight, passes_last_axes=True)

    stats = objective.stats
    sums_rows = plain and not objective.axes and not objective.in_place
    return RowLoss(
        row_rank=_row_rank,
        value=op("value", ("losses",)),
        value_and_stats=op("value_and_stats", ("losses", *stats)),
        value_and_grad=op("value_and_grad", ("losses", *(stats if objective.details else ()), "gradient")),
        derivative=functools.partial(_derivative, objective),
        tangents=functools.partial(_tangents, objective),
        grad_gives_stats=objective.details,
        grad=row_wise("grad", functools.partial(grad, ()), grad, features=features),
        stats=len(stats),
        sums=_many_short_rows if sums_rows else lambda *_: False,
        total=total("total", "value", ("losses",)) if sums_rows else None,
        total_and_grad=total("total_and_grad", "value_and_grad", ("losses", "gradient")) if sums_rows else None,
        features=features,
        split_axes=objective.axes,
        float16_weight=BOUNDED,
    )


def partitioned(objective: Objective, attribute: str, outer: tuple[Entry, ...]) -> Call:
    """The call of that description."""
    return getattr(row_loss(objective), attribute).call(outer)


def _many_short_rows(with_grad: bool, logits: Array, target: Array, _: Array) -> bool:
    itemsize = logits.dtype.itemsize
    has_labels = jnp.issubdtype(target.dtype, jnp.integer)
    if itemsize not in SHORT_BYTES_WITH_GRAD or not has_labels or not sizes_known(logits):
        return False
    row_bytes = logits.shape[-1] * itemsize
    short = row_bytes <= (SHORT_BYTES_WITH_GRAD[itemsize] if with_grad else SHORT_BYTES)
    return short and logits.size * itemsize >= MANY_BYTES


# ---- derivatives -----------------------------------------------------------------------------------------------------


def _z_derivative(objective: Objective, operands, stats) -> Array:
    """The derivative of the losses with respect to the scaled logits."""
    (logits, target, _, *parameters), (maximum, log_sum, *_) = operands, stats
    options = objective.options(parameters)
    valid, total = whole_targets(objective, objective.axes, logits, target, options)
    if "z_loss" in options:
        z_loss, lse = along(options["z_loss"], maximum), maximum + log_sum
        total = total + jnp.where(z_loss == 0, 0, 2 * z_loss * lse)
    targets = formulas.class_targets(logits, target, options, objective.classes_of(logits.shape[-1]))
    z = formulas.scaled_logits(logits, target, options)
    difference = formulas.softmax_minus_target(z, maximum, log_sum, total, targets)
    return jnp.where(valid[..., None], difference, 0)


def _softmax(objective: Objective, operands, stats) -> Array:
    logits, target, _, *parameters = operands
    maximum, log_sum, *_ = stats
    z = formulas.scaled_logits(logits, target, objective.options(parameters))
    return formulas.softmax_of(z, maximum, log_sum)


def _derivative(objective: Objective, operands, stats) -> Array:
    logits, _, _, *parameters = operands
    options = objective.options(parameters)
    return _z_derivative(objective, operands, stats) * formulas.logit_slopes(logits, options)


def _along_live(function, operands: Mapping[str, Array], tangents: Mapping[str, Array | None]):
    """The derivative of `function` of operands along those that have a tangent; None where none has."""
    nonzero = {name: operands[name] for name, tangent in tangents.items() if tangent is not None and name in operands}
    if not nonzero:
        return None
    tangents = {name: tangents[name] for name in nonzero}
    return jax.jvp(lambda nonzero: function({**operands, **nonzero}), (nonzero,), (tangents,))[1]


def _tangents(objective: Objective, operands, losses, stats, tangents):
    """The tangents of losses and statistics: of the unclipped loss, through scaled logits and targets."""
    logits, target, _, *parameters = operands
    options = objective.options(parameters)
    named = {"logits": logits, "target": target, **options}
    named_tangents = {"logits": tangents[0], "target": tangents[1], **objective.options(tangents[3:])}
    maximum, log_sum, *details = stats
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

    z = of_z(named)
    z_tangent = _along_live(of_z, named, {"logits": named_tangents["logits"]})
    # A masked class moves with no parameter.
    unmasked = {**named, "logits": jnp.where(jnp.isneginf(z), 0, logits)}
    z_parameters = options_that_change("logits", "label")
    of_parameters = _along_live(of_z, unmasked, {name: named_tangents.get(name) for name in z_parameters})
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
        b_tangent = _along_live(of_targets, named, along_tangents)
        if b_tangent is not None:
            valid, _ = whole_targets(objective, objective.axes, logits, target, options)
            of_targets_tangents.append((of, jnp.where(valid[..., None], b_tangent, 0)))
    a_tangent = _along_live(of_given, named, given_tangents)

    terms = []
    if z_tangent is not None:
        terms.append((_z_derivative(objective, operands, stats), z_tangent))
    terms += of_targets_tangents
    losses_tangent = summed(*terms)
    if named_tangents.get("z_loss") is not None:
        lse = maximum + log_sum
        losses_tangent = losses_tangent + lse * lse * along(named_tangents["z_loss"], lse)

    # All of the log-sum-exp's tangent is given to one of its two terms: only their sum has a meaning.
    softmax = _softmax(objective, operands, stats)
    log_sum_tangent = None if z_tangent is None else summed((softmax, z_tangent))
    if not objective.details:
        return losses_tangent, None, log_sum_tangent

    entropy, entropy_tangent = details[1], None
    valid, _ = whole_targets(objective, objective.axes, logits, target, options)
    terms = []
    if z_tangent is not None:
        log_softmax = jnp.where(softmax == 0, 0, z - maximum[..., None] - log_sum[..., None])
        of_entropy = -softmax * (log_softmax + entropy[..., None])
        entropy_tangent = summed((of_entropy, z_tangent))
        given = formulas.given_targets(logits, target, options)
        total = varying_like(losses, given.sum(-1))
        of_nll = formulas.softmax_minus_target(z, maximum, log_sum, total, given)
        terms.append((jnp.where(valid[..., None], of_nll, 0), z_tangent))
    if a_tangent is not None:
        terms.append((given_nll, jnp.where(valid[..., None], a_tangent, 0)))
    nll_tangent = summed(*terms) if terms else None
    return losses_tangent, None, log_sum_tangent, nll_tangent, entropy_tangent, None, None
