"""Random arrays for a configuration: ordinary numbers, and those at which arithmetic has its corners."""

import dataclasses

import ml_dtypes
import numpy as np

import losses
from trust.configurations import OPTIONS, Configuration

PATTERNS = ("ordinary", "ordinary", "wide", "tiny", "ties", "special", "masked classes", "ends")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The operands of one call.

    Attributes:
        pattern: the kind of numbers that prediction and target are.
        operands: by name, in the order of the alphabet, which is how a dictionary comes out of `jit`.
        tangents: a direction for each floating-point operand that is no option.
        cotangent: of the shape of the value.
    """

    pattern: str
    operands: dict[str, np.ndarray]
    tangents: dict[str, np.ndarray]
    cotangent: np.ndarray


def drawn(configuration: Configuration, rng: np.random.Generator) -> Drawn:
    """Operands of a call of that configuration."""
    pattern = str(rng.choice(PATTERNS))
    # A sum beyond the largest number is infinite, though the mean is not; so is a rate, less a product.
    if pattern == "ends" and (configuration.static["reduction"] == "mean" or configuration.case.loss is losses.POISSON):
        pattern = "wide"
    if pattern == "masked classes" and not _may_mask_classes(configuration):
        pattern = "ordinary"
    case, shape, axis = configuration.case, configuration.shape, configuration.axis
    x, a = case.sample(shape, "float64", axis=axis, seed=int(rng.integers(2**31)), target_dtype=_wide(configuration))
    infinite = configuration.case.loss is not losses.POISSON
    if pattern != "ordinary":
        # An infinite rate less a product is -Inf in what XLA makes of it: findings/overflow_of_exp_in_a_fusion.sh.
        x = _patterned(pattern, rng, x, configuration.dtype, infinite)
    if pattern in ("wide", "tiny", "ties", "special") and case.target in ("numbers", "logits"):
        a = _patterned(pattern, rng, a, configuration.target_dtype or configuration.dtype, infinite)
    if case.target == "logits":  # of a class that the student has masked the teacher has no share that float32 holds
        a = np.where(np.isneginf(x), -np.inf, a)
    if pattern == "ties" and case.target == "numbers":
        a = np.where(rng.random(a.shape) < 0.5, x, a)
    if case.target == "probabilities":
        a = np.where(rng.random(a.shape) < 0.2, rng.choice([0.0, 1.0], a.shape), a)
    if case.target == "indices" and rng.random() < 0.3:
        strangers = rng.choice([-1, shape[axis], 100, -128], a.shape)
        a = np.where(rng.random(a.shape) < 0.2, strangers, a)
    if configuration.case.loss is losses.POISSON:  # so that no rate is beyond the end of float16
        x = np.where(x > 8, 8, x)
    with np.errstate(all="ignore"):
        x = x.astype(configuration.dtype)
        a = a.astype(_target_dtype(configuration))
    operands = {"a": a, "x": x}
    for name in configuration.numbers:
        operands[name] = OPTIONS[name](rng, configuration.classes)
    if "focal_alpha" in operands and pattern == "special":  # whether it removes a NaN nobody has said
        operands["focal_alpha"] = np.clip(operands["focal_alpha"], np.float32(0.1), np.float32(0.9))
    if "label_smoothing" in operands:  # which a masked class does not take: a rule that the oracle has not
        operands["x"] = np.where(np.isneginf(x), np.asarray(0, x.dtype), x)
    if "where" in configuration.shapes:
        operands["where"] = rng.random(configuration.shapes["where"]) < rng.choice([0.0, 0.5, 0.8, 1.0])
    if "weights" in configuration.shapes:
        # 0 × ∞ is nothing that the losses promise anything about.
        zeros = [0.0, -0.0] if pattern in ("ordinary", "tiny", "ties") else []
        numbers = [*zeros, 0.5, 1.0, 3.0, *([-2.0] if pattern != "ends" else [])]
        operands["weights"] = rng.choice(numbers, configuration.shapes["weights"]).astype("float32")
    if configuration.with_normalizer:
        operands["normalizer"] = np.float32(rng.uniform(0.5, 20))
    operands = {name: np.asarray(operands[name]) for name in sorted(operands)}
    tangents = {
        name: np.asarray(rng.standard_normal(operand.shape)).astype(operand.dtype)
        for name, operand in operands.items()
        if is_real(operand) and name in ("x", "a", "weights", "normalizer")
    }
    units = _units(configuration) if configuration.static["reduction"] == "none" else ()
    # Powers of two: what was rounded to 16 bits is multiplied by them exactly.
    cotangent = rng.choice([0.5, 1.0, -1.0, 2.0], units).astype(np.float32)
    return Drawn(pattern, operands, tangents, np.asarray(cotangent))


def is_real(array: np.ndarray) -> bool:
    """Whether it has a floating-point type."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _units(configuration: Configuration) -> tuple[int, ...]:
    """The shape of unreduced losses."""
    if not configuration.case.loss.by_rows:
        return configuration.shape
    axis = configuration.axis % len(configuration.shape)
    return tuple(size for i, size in enumerate(configuration.shape) if i != axis)


def _may_mask_classes(configuration: Configuration) -> bool:
    # A masked class takes no smoothing, and the margin of a masked label is nothing: rules that the oracle has not.
    rules = {"label_smoothing", "margin"} & set(configuration.numbers)
    return configuration.case.loss.by_rows and configuration.case.target == "indices" and not rules


def _target_dtype(configuration: Configuration):
    """That of the target."""
    if configuration.target_dtype:
        return configuration.target_dtype
    kinds = {"indices": "int32", "integers": "int32", "booleans": "bool"}
    return kinds.get(configuration.case.target, configuration.dtype)


def _wide(configuration: Configuration):
    """The type that a target is drawn in."""
    kinds = {"indices": "int64", "integers": "int64", "booleans": "bool"}
    return kinds.get(configuration.case.target, "float64")


def _patterned(pattern: str, rng: np.random.Generator, x: np.ndarray, dtype: str, infinite: bool = True) -> np.ndarray:
    finfo = ml_dtypes.finfo(dtype)
    # Of float64 those of which the oracle, in the same type, has squares; of the others those that options do not take
    # beyond the end.
    most, least = (
        min(float(finfo.max) / (1 if dtype == "float16" else 1e4), 1e100),
        max(float(finfo.smallest_normal), 1e-100),
    )
    match pattern:
        case "wide":
            return np.clip(x * 10 ** rng.uniform(0, 1.5 if dtype == "float16" else 3.5), -most, most)
        case "tiny":
            return x * max(1e4 * least, 10 ** rng.uniform(-40, -1))  # so that differences are not flushed to zero
        case "ties":
            return np.round(x)
        case "special":
            numbers = [np.nan, np.inf, -np.inf, 0.0, -0.0, 4 * least, 87.0, -104.0, 50.0 if dtype == "float16" else 1e4]
            if not infinite:
                numbers.remove(np.inf)
            return np.where(rng.random(x.shape) < 0.1, rng.choice(numbers, x.shape), x)
        case "masked classes":
            return np.where(rng.random(x.shape) < 0.3, -np.inf, x)
        case "ends":
            return np.where(rng.random(x.shape) < 0.3, rng.choice([most, -most, most / 2], x.shape), x)
    raise ValueError(pattern)
