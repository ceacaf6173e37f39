"""What a handler's call gives, in float64 from its operands alone: losses and gradients of the calls that are taken."""

import functools

import numpy as np

import losses
import oracles
import tolerance
from jaxloss._ffi import library
from jaxloss._spec import OPTIONS
from trust.mutations import CONSTANTS, OF_FOCAL

ELEMENTS = {loss.name: loss for loss in losses.ELEMENTWISE}
Exact = tuple[np.ndarray, np.ndarray]


def error_of(target: str, operands: list[np.ndarray], results: list[np.ndarray], attributes: dict) -> tuple[str, bool]:
    """What is wrong with losses and gradient of a call that was taken, and whether anything could be compared."""
    name = target.removeprefix("jaxloss_").removesuffix(f"_v{library.CALLING_CONVENTION}")
    if any(not np.isfinite(operand.astype(np.float64)).all() for operand in operands):
        return "", False  # a mutation gave an array of another kind, whose numbers are any
    with np.errstate(all="ignore"):
        if name.startswith("cross_entropy_with_options"):
            found = list(_with_options(operands, results, attributes))
        elif name == "cross_entropy_grad":
            found = list(_of_known_rows(operands, results))
        elif name.startswith("cross_entropy"):
            found = list(_cross_entropy(operands, results, attributes))
        elif "_of_logits" in name or "_of_probabilities" in name:
            found = list(_divergence(name, operands, results))
        else:
            found = list(_elementwise(name, operands, results, attributes))
    dtype = tolerance.arithmetic(operands[0].dtype)
    for what, actual, (value, size) in found:
        bound = tolerance.bound(
            value,
            size,
            computed=dtype,
            stored=actual.dtype,
            operations=2 * tolerance.OPERATIONS,
            terms=max(1, operands[0].size),
        )
        try:
            tolerance.assert_within(actual, value, bound, what)
        except AssertionError as error:
            return str(error), True
    return "", bool(found)


def _wide(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == np.int32 else x.astype(np.float64)


def _per_row(weight: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
    """Numbers of the first axes of the rows, one for each row."""
    return np.broadcast_to(weight.astype(np.float64).reshape(weight.shape + (1,) * (len(rows) - weight.ndim)), rows)


def _masked(pair: Exact, weight: np.ndarray, times_weight: bool) -> Exact:
    """0 where the weight is −0, and elsewhere times the weight if that is asked for."""
    along = weight.reshape(weight.shape + (1,) * (pair[0].ndim - weight.ndim))
    masked = (along == 0) & np.signbit(along)
    factor = along if times_weight else np.ones_like(along)
    return np.where(masked, 0, pair[0] * factor), np.where(masked, 0, pair[1] * abs(factor))


def _elementwise(name: str, operands, results, attributes):
    x, a, weight, *parameters = map(_wide, operands)
    rows = weight.shape
    name = name.removesuffix("_value").removesuffix("_value_and_grad")
    numbers = [p.reshape((*p.shape[:-1], *(1,) * (x.ndim - p.ndim), p.shape[-1]) if x.ndim else ()) for p in parameters]
    if any((number <= 0).any() for number in numbers):
        return  # outside the range of every one of them
    if name in ELEMENTS:
        given = dict(zip((key for key, _ in ELEMENTS[name].parameters), numbers, strict=True))
        terms = ELEMENTS[name].elements(x, a, None, **given)
    else:
        clip = float(attributes["constants"][0])
        options = {}
        if parameters:  # which are the same for all
            for_one, for_zero, smoothing, gamma, alpha, _ = OF_FOCAL
            options = {"class_weights": for_zero, "pos_weight": for_one / for_zero, "label_smoothing": smoothing}
            if name.startswith("focal"):
                options |= {"focal_gamma": gamma, "focal_alpha": alpha}
            if any((p != number).any() for p, number in zip(parameters, OF_FOCAL, strict=False)):
                return  # two of them were exchanged
        if not 0 <= clip < 0.5:
            return  # of which the handler knows nothing: it is the functor's
        if (a < 0).any() or (a > 1).any():
            return
        terms = oracles.binary_cross_entropy_with_options(x, a, clip or None, **options)
    axes = tuple(range(len(rows), x.ndim))
    yield "loss", results[0].astype(np.float64).sum(-1), _masked(tuple(t.sum(axes) for t in terms.loss), weight, False)
    if len(results) > 1:
        yield "gradient", results[1], _masked(terms.of_prediction, weight, True)


def _cross_entropy(operands, results, attributes):
    x, a, weight = map(_wide, operands)
    weight = _per_row(weight, x.shape[:-1])
    terms = oracles.categorical_cross_entropy(x, a, float(attributes["clip"]) or None)
    yield "loss", results[0], _masked(terms.loss, weight, False)
    if len(results) == 2:
        yield "gradient", results[1], _masked(terms.of_prediction, weight, True)
    if len(results) == 3 and x.shape[-1]:
        largest = x.max(-1)
        yield "max", results[1], _masked((largest, 0 * largest), weight, False)
        log_sum = np.log(np.exp(x - largest[..., None]).sum(-1))
        yield "log_sum", results[2], _masked((log_sum, 1 + log_sum), weight, False)


def _of_known_rows(operands, results):
    x, a, weight, largest, log_sum, total = map(_wide, operands)
    classes = x.shape[-1]
    if a.dtype == np.int32:
        a = np.where((a >= 0) & (a < classes), a, -1)
        a = (np.arange(classes) == a[..., None]).astype(np.float64)
    exponent = x - largest[..., None] - log_sum[..., None]
    powers = np.exp(exponent) * total[..., None]
    size = abs(powers) * (1 + abs(x) + abs(largest[..., None]) + abs(log_sum[..., None])) + abs(a)
    pair = powers - a, size
    rows = x.shape[:-1]
    valid = np.ones(rows, bool) if operands[1].dtype != np.int32 else a.any(-1)
    if operands[1].dtype == np.int32 and not (valid.all() and (total == 1).all()):
        return  # of a label callers give the total 1, of one that is no class 0
    yield "gradient", results[0], _masked(pair, _per_row(weight, rows), True)


def _with_options(operands, results, attributes):
    x, a, weight = map(_wide, operands[:3])
    given, wanted = int(attributes["given"]), int(attributes["wanted"])
    names = [name for place, name in enumerate(OPTIONS) if given >> place & 1]
    if given >> len(OPTIONS) or "second_label" in names or "mix" in names:
        return
    options = dict(zip(names, map(_wide, operands[3:]), strict=False))
    classes = x.shape[-1]
    counted = options.pop("num_classes", np.zeros(0, np.int32))
    if counted.size or int(attributes["smoothed_classes"]) not in (0, classes):
        return  # rows of different widths
    weights = options.pop("class_weights", None)
    if any((number != CONSTANTS[name]).any() for name, number in options.items()):
        return  # two of them were exchanged
    elements = functools.partial(
        oracles.categorical_cross_entropy_with_options, **{name: CONSTANTS[name] for name in options}
    )
    if weights is not None:
        shape = (*weights.shape[:-1], *(1,) * (x.ndim - weights.ndim), weights.shape[-1])
        elements = functools.partial(elements, class_weights=weights.reshape(shape))
    terms, weight = elements(x, a, float(attributes["clip"]) or None), _per_row(weight, x.shape[:-1])
    if wanted & 1:
        yield "loss", results[0], _masked(terms.loss, weight, False)
    if wanted >> 7 & 1:
        yield "gradient", results[-1], _masked(terms.of_prediction, weight, True)


def _divergence(name: str, operands, results):
    x, a, weight, scale, *parameters = map(_wide, operands)
    if (scale != CONSTANTS["scale"]).any() or any((p != CONSTANTS["beta"]).any() for p in parameters):
        return
    elements = oracles.jensen_shannon if name.startswith("jensen") else oracles.kl_divergence
    options = {"beta": CONSTANTS["beta"]} if parameters else {}
    kind = "logits" if "of_logits" in name else "probabilities"
    if kind == "probabilities" and (a < 0).any():
        return
    terms = elements(x, a, target_type=kind, temperature=1 / CONSTANTS["scale"], **options)
    weight = _per_row(weight, x.shape[:-1])
    yield "loss", results[0], _masked(terms.loss, weight, False)
    if name.endswith("and_grad"):
        yield "gradient", results[1], _masked(terms.of_prediction, weight, True)
