"""Cross entropy as a loss of rows: a row is all classes of an example, and they may be split over devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, along, inlined, is_masked, sizes_known
from jaxloss._autodiff.pair import weighted_rows, weighted_sum
from jaxloss._autodiff.row_loss import Operands, Outputs, RowLoss, value_and_grad
from jaxloss._autodiff.tangents import BOUNDED, row_dot, tangent_of, totals, varying_like
from jaxloss._ffi import cross_entropy as calls
from jaxloss._rows import long_rows
from jaxloss._rows.labels import BESIDE_A_LABEL, whole_targets, with_z_loss
from jaxloss._rows.vocab_parallel import known_gradient, local_shard, vocab_parallel
from jaxloss._rows.weights import Examples, row_weight
from jaxloss._spec import OPTIONS, Objective, options_that_change

MANY_BYTES = 2**26
"""From so many of logits on, all of short rows, a GPU sums losses where it computes them: then all of it is at work."""

SHORT_BYTES = 512
"""The most of a short row, where only the value is wanted."""

SHORT_BYTES_WITH_GRAD = {2: 128, 4: 64}
"""Where the gradient is wanted too, by the bytes of a logit: longer rows are faster whole in registers."""

Given = tuple[Array, Array, tuple[Array, ...]]
"""Logits `[..., V]`, target, and the parameters that the objective names."""


@inlined(static_argnums=0)
def value(objective: Objective, given: Given, examples: Examples) -> Array:
    """The reduced loss; an example is a row."""
    return _reduced(examples)(CrossEntropy(objective))(_operands(objective, given, examples))[0]


@inlined(static_argnums=0)
def value_and_stats(objective: Objective, given: Given, examples: Examples) -> tuple[Array, dict[str, Array]]:
    """The reduced loss, and the statistics of each row by name."""
    reduced = _reduced(examples)(CrossEntropy(objective), with_stats=True)
    loss, *stats = reduced(_operands(objective, given, examples))
    return loss, dict(zip(objective.stats, stats, strict=True))


@inlined(static_argnums=0)
def gradient(objective: Objective, given: Given, examples: Examples) -> Array:
    """The gradient of the reduced loss with respect to the logits, which no clip changes."""
    return value_and_grad(CrossEntropy(objective))(_operands(objective, given, examples))[-1]


def _reduced(examples: Examples) -> Callable:
    return weighted_rows if examples.reduction == "none" else weighted_sum


def _operands(objective: Objective, given: Given, examples: Examples) -> Operands:
    logits, target, parameters = given
    rank = logits.ndim - 1
    weight = row_weight(examples, logits.shape, formulas.real(logits).dtype, example_rank=rank, row_rank=rank)
    return Operands.of(local_shard(objective, objective.axes, logits, target, weight, *parameters))


@dataclasses.dataclass(frozen=True)
class CrossEntropy(RowLoss):
    """The cross entropy of rows of logits, of operands as `_operands` gives them. It has `objective.stats`."""

    objective: Objective

    has_vjp = True
    float16_weight = BOUNDED

    @property
    def vjp_stats(self) -> tuple[int, ...]:
        if not self.objective.details:
            return ()
        names = ("log_sum", "nll", "entropy") if self._nll_is_unclipped_loss else ("log_sum", "entropy")
        return tuple(self.objective.stats.index(name) for name in names)

    @property
    def _nll_is_unclipped_loss(self) -> bool:
        return not set(self.objective.parameters) & set(options_that_change("weights", "loss"))

    @property
    def split_axes(self) -> tuple[str, ...]:
        return self.objective.axes

    @property
    def stats(self) -> int:
        return len(self.objective.stats)

    @property
    def gives_stats_with_gradient(self) -> bool:
        return self.objective.details

    @property
    def features(self) -> tuple[int, ...]:
        return tuple(place for place, name in enumerate(self.objective.parameters) if OPTIONS[name].per_class)

    @property
    def _plain(self) -> bool:
        """Whether the kernels without options compute it."""
        return not self.objective.parameters and not self.objective.details

    def _results(self, outputs: Outputs) -> tuple[str, ...]:
        """The results of rows that the outputs are, or are made of."""
        with_stats = outputs is Outputs.VALUE_AND_STATS
        with_gradient = outputs in (Outputs.VALUE_AND_GRAD, Outputs.TOTAL_AND_GRAD)
        stats = self.objective.stats if with_stats or (with_gradient and self.objective.details) else ()
        return "losses", *stats, *(("gradient",) if with_gradient else ())

    def row_rank(self, outputs: Outputs, operands: Operands) -> int:
        if outputs in (Outputs.TOTAL, Outputs.TOTAL_AND_GRAD):
            return len(operands.row_weight.shape)
        return len(operands.x.shape) - 1

    def forward(self, outputs: Outputs, operands: Operands) -> tuple[Array, ...]:
        objective, names = self.objective, self._results(outputs)
        logits, target, row_weight, parameters = operands
        if outputs in (Outputs.TOTAL, Outputs.TOTAL_AND_GRAD):
            if row_weight.ndim == 0:
                return self._total("gradient" in names, operands)
            of_rows = Outputs.VALUE if outputs is Outputs.TOTAL else Outputs.VALUE_AND_GRAD
            losses, *gradient = self.forward(of_rows, operands)
            return totals(row_weight, losses), *gradient
        if objective.axes:
            return vocab_parallel(objective, objective.axes, names, *operands.flat)
        each = long_rows.slices(logits) if self._plain and jnp.issubdtype(target.dtype, jnp.integer) else 1
        if each > 1:
            return long_rows.results(objective, names, each, logits, target, row_weight)
        if self._plain:
            in_place = objective.in_place
            return calls.cross_entropy(names, logits, target, row_weight, clip=objective.clip, in_place=in_place)
        return calls.cross_entropy_with_options(
            outputs,
            names,
            *(logits, target, row_weight, objective.options(parameters)),
            clip=objective.clip,
            classes=objective.classes_of(logits.shape[-1]),
            in_place=objective.in_place,
        )

    def _total(self, with_gradient: bool, operands: Operands) -> tuple[Array, ...]:
        objective, clip = self.objective, self.objective.clip
        logits, target, row_weight, parameters = operands
        if self._plain:
            return calls.cross_entropy_total(with_gradient, logits, target, row_weight, clip=clip)
        options, classes = objective.options(parameters), objective.classes_of(logits.shape[-1])
        operands = (logits, target, row_weight, options)
        return calls.cross_entropy_with_options_total(with_gradient, *operands, clip=clip, classes=classes)

    def partition(self, outputs: Outputs, axes, last_axes, operands: Operands) -> tuple[Array, ...]:
        if outputs not in (Outputs.TOTAL, Outputs.TOTAL_AND_GRAD):
            return self._of_shards(outputs, last_axes, operands)
        if last_axes:
            losses, *gradient = self._of_shards(outputs, last_axes, operands)
            total = totals(operands.row_weight, losses)
        else:
            total, *gradient = self.forward(outputs, operands)
        return jax.lax.psum(total, axes), *gradient

    def on(self, axes: tuple[str, ...]) -> "CrossEntropy":
        """The loss where these axes, too, have split the classes, within what its own have left of them."""
        return CrossEntropy(dataclasses.replace(self.objective, axes=self.objective.axes + axes))

    def _of_shards(self, outputs: Outputs, axes: tuple[str, ...], operands: Operands) -> tuple[Array, ...]:
        on_axes = self.on(axes).objective
        local = local_shard(self.objective, axes, *operands.flat)
        return vocab_parallel(on_axes, on_axes.axes, self._results(outputs), *local)

    def sums(self, with_gradient: bool, operands: Operands) -> bool:
        """Rather than the losses of rows, a kernel writes their sum where rows are many and short."""
        logits, target, _, parameters = operands
        itemsize = logits.dtype.itemsize
        has_labels = jnp.issubdtype(target.dtype, jnp.integer)
        options = self.objective.options(parameters)
        if self.objective.details or not _are_summed(options) or self.objective.axes or self.objective.in_place:
            return False
        if itemsize not in SHORT_BYTES_WITH_GRAD or not has_labels or not sizes_known(logits):
            return False
        row_bytes = logits.shape[-1] * itemsize
        short = row_bytes <= (SHORT_BYTES_WITH_GRAD[itemsize] if with_gradient else SHORT_BYTES)
        return short and logits.size * itemsize >= MANY_BYTES

    def vjp(self, axes: tuple[str, ...], operands: Operands, stats: Sequence[Array]) -> Array:
        maximum, log_sum, *_ = stats
        logits, target, row_weight, *parameters = local_shard(self.objective, axes, *operands.flat)
        on_axes, options = self.on(axes).objective, self.objective.options(parameters)
        if not on_axes.axes and formulas.only(options, *BESIDE_A_LABEL):
            # A kernel that finds a row's statistics anew knows what its target sums to, and what of that is a label's.
            alone = CrossEntropy(dataclasses.replace(on_axes, details=False))
            return alone.forward(Outputs.VALUE_AND_GRAD, operands)[-1]
        of_rows = (maximum, log_sum, whole_targets(on_axes, on_axes.axes, logits, target, options))
        return known_gradient(on_axes, options, logits, target, row_weight, *of_rows)

    def stats_vjp(
        self, axes: tuple[str, ...], operands: Operands, stats: Sequence[Array], weights: Sequence[Array]
    ) -> Array:
        of_lse, *of_nll, of_entropy = weights
        logits, target, row_weight, parameters = Operands.of(local_shard(self.objective, axes, *operands.flat))
        if of_nll:  # its gradient is that of the loss
            row_weight = jnp.where(is_masked(row_weight), row_weight, row_weight + of_nll[0])
        objective = self.on(axes).objective
        given = (logits, target, row_weight, objective.options(parameters), of_lse, of_entropy)
        if objective.axes:
            return _grad_of_stats(objective, stats[:2], *given)
        return calls.cross_entropy_with_options_stats_grad(
            functools.partial(_grad_of_stats, objective),
            *(stats[:2], *given),
            classes=objective.classes_of(logits.shape[-1]),
            in_place=objective.in_place,
        )

    def stats_derivatives(self, operands: Operands, stats: Sequence[Array]) -> tuple[Array, ...]:
        maximum = stats[0]
        softmax = _softmax(self.objective, operands, stats)
        options = self.objective.options(operands.parameters)
        z = _scaled_logits(self.objective, operands, maximum)
        of_entropy = -softmax * _above_mean(self.objective, z, softmax, maximum)
        of_nll = (_z_derivative(self.objective, operands, stats),) if self._nll_is_unclipped_loss else ()
        slopes = formulas.logit_slopes(operands.x, options)
        return tuple(derivative * slopes for derivative in (softmax, *of_nll, of_entropy))

    def derivative(self, operands: Operands, stats: Sequence[Array]) -> Array:
        options = self.objective.options(operands.parameters)
        return _z_derivative(self.objective, operands, stats) * formulas.logit_slopes(operands.x, options)

    def jvp(self, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands):
        return _tangents(self.objective, operands, losses, stats, tangents)


# ---- derivatives -----------------------------------------------------------------------------------------------------


def _are_summed(options: Mapping[str, Array]) -> bool:
    """Whether the kernel has these options that sums losses: those of rows which are alike, but for their labels."""
    of_labels = options_that_change("target")
    alike = (name in of_labels or x.ndim == int(OPTIONS[name].per_class) for name, x in options.items())
    return "softcap" not in options and all(alike)


def _grad_of_stats(objective: Objective, stats, logits, target, row_weight, options, of_lse, of_entropy) -> Array:
    """The gradient of rows' losses, log-sum-exps and entropies, times these weights of each, as a formula."""
    operands = Operands(logits, target, row_weight, tuple(options.values()))
    of_scaled = d_scaled_logits(objective, operands, stats, row_weight, of_lse, of_entropy)
    gradient = of_scaled * formulas.logit_slopes(logits, options)
    return jnp.where(is_masked(row_weight)[..., None], 0, gradient).astype(logits.dtype)


def _scaled_logits(objective: Objective, operands: Operands, maximum: Array) -> Array:
    """As the options make them, beside the maximum that is known."""
    options = objective.options(operands.parameters)
    return formulas.with_maximum(formulas.scaled_logits(operands.x, operands.target, options), maximum, options)


def _z_derivative(objective: Objective, operands: Operands, stats: Sequence[Array]) -> Array:
    """The derivative of the losses with respect to the scaled logits."""
    (logits, target, _, parameters), (maximum, log_sum, *_) = operands, stats
    options = objective.options(parameters)
    totals = whole_targets(objective, objective.axes, logits, target, options)
    total = with_z_loss(totals.total, options, maximum, log_sum)
    targets = formulas.class_targets(logits, target, options, objective.classes_of(logits.shape[-1]))
    z, beyond = _scaled_logits(objective, operands, maximum), None
    if not totals.of_labels or formulas.only(options, *BESIDE_A_LABEL):
        beyond = with_z_loss(_without_largest(objective, z, maximum, targets), options, maximum, log_sum)
    difference = formulas.softmax_minus_target(z, maximum, log_sum, total, targets, beyond)
    return jnp.where(totals.valid[..., None], difference, 0)


def _without_largest(objective: Objective, z: Array, maximum: Array, targets: Array) -> Array:
    """What the targets of a row sum to without that of the largest logit, as no difference of sums."""
    summed = jnp.sum(jnp.where(z == maximum[..., None], 0, targets), -1)
    return jax.lax.psum(summed, objective.axes) if objective.axes else summed


def _softmax(objective: Objective, operands: Operands, stats: Sequence[Array]) -> Array:
    maximum, log_sum, *_ = stats
    return formulas.softmax_of(_scaled_logits(objective, operands, maximum), maximum, log_sum)


def _above_mean(objective: Objective, z: Array, softmax: Array, maximum: Array) -> Array:
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
        gradient = of_nll[..., None] * _z_derivative(objective, operands, stats)
    if of_lse is None and of_entropy is None:
        return gradient
    softmax = _softmax(objective, operands, stats)
    factor = jnp.zeros_like(maximum)[..., None] if of_lse is None else of_lse[..., None]
    if of_entropy is not None:
        z = _scaled_logits(objective, operands, maximum)
        factor = factor - of_entropy[..., None] * _above_mean(objective, z, softmax, maximum)
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


def _tangents(objective: Objective, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands):
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

    entropy_tangent = None
    valid = whole_targets(objective, objective.axes, logits, target, options).valid
    terms = []
    if z_tangent is not None:
        of_entropy = -softmax * _above_mean(objective, z, softmax, maximum)
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
