"""Cross entropy as a loss of rows: a row is all classes of an example, and they may be split over devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxloss import formulas
from jaxloss._arrays import Array, inlined, is_masked, sizes_known
from jaxloss._autodiff.pair import weighted_rows, weighted_sum
from jaxloss._autodiff.row_loss import Operands, Outputs, RowLoss, value_and_grad
from jaxloss._autodiff.tangents import BOUNDED, totals
from jaxloss._ffi import cross_entropy as calls
from jaxloss._rows import cross_entropy_derivatives as derivatives
from jaxloss._rows import long_rows
from jaxloss._rows.labels import BESIDE_A_LABEL, whole_targets
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
        given = (logits, target, row_weight, options)
        return calls.cross_entropy_with_options_total(with_gradient, *given, clip=clip, classes=classes)

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
            return derivatives.grad_of_stats(objective, stats[:2], *given)
        return calls.cross_entropy_with_options_stats_grad(
            functools.partial(derivatives.grad_of_stats, objective),
            *(stats[:2], *given),
            classes=objective.classes_of(logits.shape[-1]),
            in_place=objective.in_place,
        )

    def stats_derivatives(self, operands: Operands, stats: Sequence[Array]) -> tuple[Array, ...]:
        maximum = stats[0]
        softmax = derivatives.row_softmax(self.objective, operands, stats)
        options = self.objective.options(operands.parameters)
        z = derivatives.scaled_logits(self.objective, operands, maximum)
        of_entropy = -softmax * derivatives.above_mean(self.objective, z, softmax, maximum)
        of_nll = (derivatives.z_derivative(self.objective, operands, stats),) if self._nll_is_unclipped_loss else ()
        slopes = formulas.logit_slopes(operands.x, options)
        return tuple(derivative * slopes for derivative in (softmax, *of_nll, of_entropy))

    def derivative(self, operands: Operands, stats: Sequence[Array]) -> Array:
        options = self.objective.options(operands.parameters)
        return derivatives.z_derivative(self.objective, operands, stats) * formulas.logit_slopes(operands.x, options)

    def jvp(self, operands: Operands, losses: Array, stats: Sequence[Array], tangents: Operands):
        return derivatives.row_tangents(self.objective, operands, losses, stats, tangents)


def _are_summed(options: Mapping[str, Array]) -> bool:
    """Whether the kernel has these options that sums losses: those of rows which are alike, but for their labels."""
    of_labels = options_that_change("target")
    alike = (name in of_labels or x.ndim == int(OPTIONS[name].per_class) for name, x in options.items())
    return "softcap" not in options and all(alike)
