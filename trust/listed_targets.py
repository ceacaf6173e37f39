"""Random calls with a target of a few classes of each row, or of mixed labels: the oracle's is that of all classes.

A class that a target does not name has none of it; where the rest is spread, an equal part. Gradients of what a target
has are gathered from those of all classes.
"""

import dataclasses
from typing import ClassVar

import numpy as np

import losses
from trust import calls
from trust.calls import Drawn
from trust.configurations import MULTIPLIERS, SUBJECTS, LossConfiguration, of_losses
from trust.exact import Exact, Pair

OF_ALL_CLASSES = tuple(
    subject for subject in SUBJECTS if subject.case.target == "probabilities" and subject.case.loss.by_rows
)
OF_MIXED = tuple(subject for subject in OF_ALL_CLASSES if subject.case.loss is losses.CATEGORICAL)
OF_LISTED = tuple(
    subject
    for subject in OF_ALL_CLASSES
    if subject.function == "" and subject.case.loss.name in ("categorical_cross_entropy", "kl_divergence")
)
MOST_LISTED = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewClasses(LossConfiguration):
    """A call whose target names classes, `indices` of a further axis; their part of it is the operand `a`."""

    of_examples: ClassVar = ("x", "a", "indices", "labels", "others", *MULTIPLIERS)

    def drawn(self, rng: np.random.Generator, count: int) -> Drawn:
        drawn = super().drawn(rng, count)
        operands = {**drawn.operands, **self._target(rng, count)}
        if self.static.get("remainder") == "spread":  # of which a masked class takes none: a rule that is not here
            x = operands["x"]
            operands["x"] = np.where(np.isneginf(x.astype(np.float64)), np.asarray(0, x.dtype), x)
        if {"class_weights", "z_loss"} <= set(operands):
            # A target of nothing weighs 10⁻²⁰ beside a z-loss, and leaves a rounding of that.
            weights = operands["class_weights"]
            operands["class_weights"] = np.where(weights == 0, np.asarray(1, weights.dtype), weights)
        tangents = {**drawn.tangents, "a": rng.standard_normal(operands["a"].shape).astype(operands["a"].dtype)}
        return dataclasses.replace(
            drawn, operands=dict(sorted(operands.items())), tangents=dict(sorted(tangents.items()))
        )

    def of_all_classes(self, draw: Drawn) -> tuple[np.ndarray, np.ndarray]:
        """What each class has of the target, along a last axis, and whether the target does not name it."""
        indices, share = self._named(draw)
        of_all = np.zeros((*indices.shape[:-1], self.classes))
        where = (*np.indices(indices.shape)[:-1], indices)
        np.add.at(of_all, where, share)
        others = np.ones(of_all.shape, bool)
        others[where] = False
        return of_all, others

    def exact(self, draw: Drawn, x: np.ndarray | None = None) -> Exact:
        indices, _ = self._named(draw)
        of_all, others = self.of_all_classes(draw)
        if self.static.get("remainder") == "spread":
            count = np.maximum(others.sum(-1, keepdims=True), 1)
            of_all += others * np.maximum(1 - of_all.sum(-1, keepdims=True), 0) / count
        operands = {**draw.operands, "a": np.moveaxis(of_all, -1, self._class_axis)}
        found = super().exact(dataclasses.replace(draw, operands=operands), x)
        of_classes = [np.moveaxis(part, self._class_axis, -1) for part in found.gradients["a"]]
        with np.errstate(invalid="ignore"):
            of_named = [np.take_along_axis(part, indices, -1) for part in of_classes]
            if self.static.get("remainder") == "spread":
                of_rest = [(others * part).sum(-1, keepdims=True) / count for part in of_classes]
                of_named = [of_named[0] - of_rest[0], of_named[1] + of_rest[1]]
            gradients = {**found.gradients, "a": self._gathered(draw, (of_named[0], of_named[1]))}
        return dataclasses.replace(found, gradients=gradients)

    def _pattern(self, rng: np.random.Generator) -> str:
        pattern = super()._pattern(rng)
        # Where all listed classes are improbable, the loss errs by a rounding of theirs: mended.toml.
        far = pattern in ("wide", "special", "ends") and self.static.get("remainder") == "spread"
        return "ordinary" if far else pattern

    @property
    def _class_axis(self) -> int:
        """Of many calls."""
        return self.axis % len(self.shape) + 1

    @property
    def _counted(self) -> int:
        return self.static.get("num_classes", self.classes)

    def terms(self, what: str, exact: Exact) -> int:
        return exact.terms if what.endswith(" a") else super().terms(what, exact)

    def _target(self, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        """The operands that it has in place of a target of all classes."""
        raise NotImplementedError

    def _named(self, draw: Drawn) -> tuple[np.ndarray, np.ndarray]:
        """The classes that are named, along a last axis, and the share of each."""
        raise NotImplementedError

    def _gathered(self, draw: Drawn, of_named: Pair) -> Pair:
        """The gradient of the operand `a`, from those of the shares."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed(FewClasses):
    """Class indices and their probabilities, `listed` of each row."""

    listed: int

    @property
    def kind(self) -> str:
        return "listed"

    @property
    def arguments(self) -> tuple[str, ...]:
        return "x", "indices", "a"

    @property
    def places(self) -> tuple[str, ...]:
        return "operands['x']", "(operands['indices'], operands['a'])"

    def exact(self, draw: Drawn, x: np.ndarray | None = None) -> Exact:
        found = super().exact(draw, x)
        if self.case.loss.name == "kl_divergence" and "temperature" in self.numbers:
            found = self._of_rounded_scores(found, draw, x)
        if "z_loss" in self.numbers or self.static.get("remainder") == "spread":
            return found
        # Beside a target of nothing, only the classes that are listed tell that there is no softmax: mended.toml.
        of_all, others = self.of_all_classes(draw)
        weights = draw.operands.get("class_weights", np.ones((1, 1)))  # of each call
        weights = weights.reshape(len(weights), *(1,) * (of_all.ndim - 2), -1)
        nothing = ~np.any(of_all * weights, axis=-1, keepdims=True) & others
        value, size = found.gradients["x"]
        of_x = np.where(np.moveaxis(nothing, -1, self._class_axis) & np.isnan(value), 0, value), size
        return dataclasses.replace(found, gradients={**found.gradients, "x": of_x})

    def _of_rounded_scores(self, found: Exact, draw: Drawn, x: np.ndarray | None) -> Exact:
        """With the error that a cross entropy has, as which a divergence from listed classes is computed.

        A logit over a temperature is rounded there before the largest is subtracted, in the divergence of all classes
        after that.
        """
        (subject,) = (of for of in OF_LISTED if of.case.loss is losses.CATEGORICAL)
        of_cross_entropy = super(Listed, dataclasses.replace(self, subject=subject)).exact(draw, x)

        def widened(pair: Pair, other: Pair) -> Pair:
            return pair[0], np.maximum(pair[1], other[1])

        gradients = {**found.gradients, "x": widened(found.gradients["x"], of_cross_entropy.gradients["x"])}
        value = widened(found.value, of_cross_entropy.value)
        return dataclasses.replace(found, gradients=gradients, value=value)

    def _target(self, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        order = rng.random((count, *self.units, self._counted)).argsort(-1)
        indices = order[..., : self.listed].astype(np.int32)
        if self.listed > 1 and rng.random() < 0.2:
            indices[..., -1] = indices[..., 0]
        # Their sum is below 1: at it, the rest has a kink.
        some = rng.random(indices.shape) < 0.85
        some[..., 0] = True  # of a target of nothing, and no softmax, the oracle of divergences says 0
        share = rng.uniform(0.01, 1, indices.shape) / (self.listed + 1) * some
        axis = self._class_axis
        share = share.astype(self.target_dtype or self.dtype)
        return {"indices": np.moveaxis(indices, -1, axis), "a": np.moveaxis(share, -1, axis)}

    def _named(self, draw: Drawn) -> tuple[np.ndarray, np.ndarray]:
        indices, share = (np.moveaxis(draw.operands[name], self._class_axis, -1) for name in ("indices", "a"))
        return indices, share.astype(np.float64)

    def _gathered(self, draw: Drawn, of_named: Pair) -> Pair:
        value, size = (np.moveaxis(part, -1, self._class_axis) for part in of_named)
        return value, size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed(FewClasses):
    """Labels, other labels and the share of the first: of all rows, or of each."""

    of_rows: bool

    @property
    def kind(self) -> str:
        return "mixed"

    @property
    def arguments(self) -> tuple[str, ...]:
        return "x", "labels", "others", "a"

    @property
    def places(self) -> tuple[str, ...]:
        return "operands['x']", "(operands['labels'], operands['others'], operands['a'])"

    def _target(self, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        labels, others = rng.integers(0, self._counted, (2, count, *self.units)).astype(np.int32)
        share = rng.random((count, *(self.units if self.of_rows else ()))).astype(np.float32)
        return {"labels": labels, "others": others, "a": share}

    def _named(self, draw: Drawn) -> tuple[np.ndarray, np.ndarray]:
        labels, others, share = (draw.operands[name] for name in ("labels", "others", "a"))
        share = share.astype(np.float64).reshape(share.shape + (1,) * (labels.ndim - share.ndim))
        share = np.broadcast_to(share, labels.shape)
        return np.stack([labels, others], -1), np.stack([share, 1 - share], -1)

    def _gathered(self, draw: Drawn, of_named: Pair) -> Pair:
        value, size = of_named[0][..., 0] - of_named[0][..., 1], of_named[1].sum(-1)
        own = tuple(range(draw.operands["a"].ndim, value.ndim))
        return value.sum(own), size.sum(own)


def of_few_classes(rng: np.random.Generator, by_formula: bool) -> FewClasses:
    """A random one."""
    chance, pick = calls.choices(rng)
    mixed = chance(0.4)
    base = of_losses(rng, by_formula, OF_MIXED if mixed else OF_LISTED)
    given = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    if mixed:
        return Mixed(**{**given, "target_dtype": None}, of_rows=chance(0.5))
    counted = base.static.get("num_classes", base.classes)
    given["static"] = {name: option for name, option in base.static.items() if name != "target_type"}
    if "label_smoothing" in base.numbers:  # with which it takes no class weights
        given["numbers"] = tuple(name for name in base.numbers if name != "class_weights")
    if chance(0.4) and "num_classes" not in base.static and "class_weights" not in given["numbers"]:
        given["static"]["remainder"] = "spread"
    return Listed(**given, listed=min(counted, pick(range(1, MOST_LISTED + 1))))
