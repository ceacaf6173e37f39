"""The table of losses. Every test that is about all losses is generated from it; a new loss is one more entry."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import cross_entropy_options as samples
import jaxloss
import oracles
from jaxloss import formulas

FLOATS = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True)
class Loss:
    """A public loss.

    Attributes:
        name: of the function in `jaxloss`; its gradient is `d_<name>`, and the C functions of the founding losses are the same.
        prediction: the name of its first argument.
        by_rows: an example is a row of classes, not an index of the first axis.
        elements: its oracle.
        formula: the unreduced loss in plain `jax.numpy`, without a clip, for `jax.grad` and everything else to transform.
        in_modules: the family of its custom call targets.
        has_clip: it takes `clip=`.
    """

    name: str
    prediction: str
    by_rows: bool
    elements: Callable[..., oracles.Terms]
    formula: Callable[..., jax.Array]
    in_modules: str
    has_clip: bool

    def __call__(self, x, a, **options) -> jax.Array:
        return getattr(jaxloss, self.name)(x, a, **options)

    def gradient(self, x, a, **options) -> jax.Array:
        return getattr(jaxloss, f"d_{self.name}")(x, a, **options)


def _row_formula(x, a):
    nll = -jax.nn.log_softmax(x)
    if jnp.issubdtype(a.dtype, jnp.integer):
        a = jax.nn.one_hot(a, x.shape[-1], dtype=x.dtype)
    return jnp.einsum("...v,...v->...", a, nll)


@dataclasses.dataclass(frozen=True)
class Elementwise(Loss):
    """A regression loss, of the functor of that name in `cuda/maths/elementwise.h`.

    Attributes:
        value: its formula, of prediction, target and parameters.
        derivative: that of the derivative with respect to the prediction.
        parameters: the numbers besides, by name, and what tests call the loss with where they say nothing else.
        bounded: whether the gradient is of bounded errors alone.
    """

    value: Callable[..., jax.Array]
    derivative: Callable[..., jax.Array]
    parameters: tuple[tuple[str, float], ...]
    bounded: bool

    def __call__(self, x, a, **options) -> jax.Array:
        return super().__call__(x, a, **dict(self.parameters) | options)

    def gradient(self, x, a, **options) -> jax.Array:
        return super().gradient(x, a, **dict(self.parameters) | options)


def _elementwise(
    name: str,
    formula: Callable[..., jax.Array],
    of_library: str = "",
    *,
    prediction: str = "pred",
    bounded: bool = False,
    **parameters: float,
) -> Elementwise:
    """`of_library`: what the formula is called there, if that is not the name."""
    of_library = of_library or name
    return Elementwise(
        name=name,
        prediction=prediction,
        by_rows=False,
        elements=functools.partial(getattr(oracles, of_library), **parameters),
        formula=functools.partial(formula, **parameters),
        in_modules=f"jaxloss_{name}",
        has_clip=False,
        value=getattr(formulas, of_library),
        derivative=getattr(formulas, f"d_{of_library}"),
        parameters=tuple(parameters.items()),
        bounded=bounded,
    )


MSE = _elementwise("mse", lambda x, a: 0.5 * (x - a) ** 2, "squared_error")
MAE = _elementwise("mae", lambda x, a: jnp.abs(x - a), "absolute_error", bounded=True)
HUBER = _elementwise(
    "huber",
    lambda x, a, delta: jnp.where(jnp.abs(x - a) <= delta, 0.5 * (x - a) ** 2, delta * (jnp.abs(x - a) - 0.5 * delta)),
    bounded=True,
    delta=1.25,
)
LOG_COSH = _elementwise("log_cosh", lambda x, a: jnp.log(jnp.cosh(x - a)), bounded=True)
QUANTILE = _elementwise("quantile", lambda x, a, q: jnp.maximum(q * (a - x), (q - 1) * (a - x)), bounded=True, q=0.75)
POISSON = _elementwise("poisson_nll", lambda x, a: jnp.exp(x) - a * x, prediction="log_rate")
GAUSSIAN = _elementwise(
    "gaussian_nll",
    lambda x, a, variance: 0.5 * (jnp.log(variance) + (x - a) ** 2 / variance),
    prediction="mean",
    variance=0.75,
)

ELEMENTWISE = (MSE, MAE, HUBER, LOG_COSH, QUANTILE, POISSON, GAUSSIAN)
"""The regression losses. An entry puts a loss through the tests of formulas, handlers, types, options and transforms."""


BINARY = Loss(
    name="binary_cross_entropy",
    prediction="logits",
    by_rows=False,
    elements=oracles.binary_cross_entropy,
    formula=lambda x, a: a * jax.nn.softplus(-x) + (1 - a) * jax.nn.softplus(x),
    in_modules="jaxloss_binary_cross_entropy",
    has_clip=True,
)
CATEGORICAL = Loss(
    name="categorical_cross_entropy",
    prediction="logits",
    by_rows=True,
    elements=oracles.categorical_cross_entropy,
    formula=_row_formula,
    in_modules="jaxloss_cross_entropy",
    has_clip=True,
)


@dataclasses.dataclass(frozen=True)
class Sum(Loss):
    """A sum of losses, each with a factor and the options that make it."""

    parts: tuple[tuple[Loss, float, tuple[tuple[str, float], ...]], ...]

    def __call__(self, x, a, **options) -> jax.Array:
        return sum(factor * loss(x, a, **dict(made), **options) for loss, factor, made in self.parts)

    def gradient(self, x, a, **options) -> jax.Array:
        return sum(factor * loss.gradient(x, a, **dict(made), **options) for loss, factor, made in self.parts)


def _sum(name: str, parts: tuple[tuple[Loss, float, tuple[tuple[str, float], ...]], ...]) -> Sum:
    return Sum(
        name=name,
        prediction="pred",
        by_rows=False,
        elements=oracles.weighted_sum_of(
            {functools.partial(loss.elements, **dict(made)): factor for loss, factor, made in parts}
        ),
        formula=lambda x, a: sum(factor * loss.formula(x, a, **dict(made)) for loss, factor, made in parts),
        in_modules="jaxloss",
        has_clip=False,
        parts=parts,
    )


REGRESSION = _sum(
    "regression",
    ((MAE, 0.125, ()), (HUBER, 0.5, (("delta", 0.75),)), (LOG_COSH, 0.5, ()), (QUANTILE, 0.25, (("q", 0.25),))),
)
"""The losses of errors in one program."""


def binary_formula(
    x,
    a,
    *,
    class_weights=1.0,
    pos_weight=1.0,
    label_smoothing=0.0,
    focal_gamma=0.0,
    focal_alpha=None,
):
    """The binary cross entropy with its options, as papers write it."""
    a = a * (1 - label_smoothing) + label_smoothing / 2
    t = jax.nn.sigmoid(x)
    nll = pos_weight * a * jax.nn.softplus(-x) + (1 - a) * jax.nn.softplus(x)
    alpha = 1.0 if focal_alpha is None else focal_alpha * a + (1 - focal_alpha) * (1 - a)
    return class_weights * alpha * (a * (1 - t) + (1 - a) * t) ** focal_gamma * nll


def per_class(classes: int) -> np.ndarray:
    """A weight for each class that every floating-point type holds."""
    return (0.5 + np.arange(classes) % 7 / 8).astype(np.float32)


def everything(classes: int) -> dict:
    """All options of the binary cross entropy; every type holds them."""
    return {
        "class_weights": per_class(classes),
        "pos_weight": per_class(classes)[::-1],
        "label_smoothing": 0.125,
        "focal_gamma": 1.5,
        "focal_alpha": 0.375,
    }


@dataclasses.dataclass(frozen=True)
class WithEverything(Loss):
    """The binary cross entropy with all its options."""

    def __call__(self, x, a, **options) -> jax.Array:
        return BINARY(x, a, **everything(x.shape[-1]), **options)

    def gradient(self, x, a, **options) -> jax.Array:
        return BINARY.gradient(x, a, **everything(x.shape[-1]), **options)


BINARY_WITH_EVERYTHING = WithEverything(
    name="binary_cross_entropy_with_everything",
    prediction="logits",
    by_rows=False,
    elements=lambda x, a, clip: oracles.binary_cross_entropy_with_options(x, a, clip, **everything(x.shape[-1])),
    formula=lambda x, a: binary_formula(x, a, **everything(x.shape[-1])),
    in_modules="jaxloss_focal_binary_cross_entropy",
    has_clip=True,
)
LOSSES = (MSE, BINARY, CATEGORICAL, MAE, HUBER, LOG_COSH)
"""Those that may be called with a prediction and a target alone."""


def _numbers_for(a) -> dict[str, float]:
    """The options that are numbers and for that kind of target."""
    return samples.numbers("indices" if jnp.issubdtype(a.dtype, jnp.integer) else "probabilities")


@dataclasses.dataclass(frozen=True)
class CategoricalWithOptions(Loss):
    """The categorical cross entropy with the options that are numbers."""

    def __call__(self, x, a, **options) -> jax.Array:
        return CATEGORICAL(x, a, **_numbers_for(a), **options)

    def gradient(self, x, a, **options) -> jax.Array:
        return CATEGORICAL.gradient(x, a, **_numbers_for(a), **options)


def _row_formula_with_options(x, a):
    options = _numbers_for(a)
    smoothing, cap = options["label_smoothing"], options["softcap"]
    if jnp.issubdtype(a.dtype, jnp.integer):
        a = jax.nn.one_hot(a, x.shape[-1], dtype=x.dtype)
    z = (cap * jnp.tanh(x / cap) - options.get("margin", 0) * a) / options["temperature"]
    losses = _row_formula(z, (1 - smoothing) * a + smoothing / x.shape[-1])
    return losses + options["z_loss"] * jax.nn.logsumexp(z, axis=-1) ** 2


CATEGORICAL_WITH_OPTIONS = CategoricalWithOptions(
    name="categorical_cross_entropy_with_options",
    prediction="logits",
    by_rows=True,
    elements=lambda x, a, clip: oracles.categorical_cross_entropy_with_options(x, a, clip, **_numbers_for(a)),
    formula=_row_formula_with_options,
    in_modules="jaxloss_cross_entropy_with_options",
    has_clip=True,
)


@dataclasses.dataclass(frozen=True)
class Distillation(Loss):
    """The divergences together, for each has its transforms from the same layers: of a student's logits and a teacher's.

    The Kullback-Leibler divergence takes the teacher's logits as they are, the Jensen-Shannon divergence as probabilities
    that do not sum to 1, so that both divergences, and both kinds of teacher, are in every test.
    """

    def __call__(self, x, a, **options) -> jax.Array:
        return self._weighted(jaxloss.kl_divergence, jaxloss.jensen_shannon, x, a, options)

    def gradient(self, x, a, **options) -> jax.Array:
        return self._weighted(jaxloss.d_kl_divergence, jaxloss.d_jensen_shannon, x, a, options)

    @staticmethod
    def _weighted(kl, js, x, a, options):
        wide = a if a.dtype == jnp.float64 else a.astype(jnp.float32)
        of_logits = kl(x, a, target_type="logits", temperature=1.5, **options)
        return of_logits + js(x, jnp.exp(wide) / 8, target_type="probabilities", beta=0.3, **options)


def _distillation_formula(x, a):
    log_t, log_a = jax.nn.log_softmax(x / 1.5), jax.nn.log_softmax(a / 1.5)
    log_p, log_q = jax.nn.log_softmax(x), a - jnp.log(8.0)
    log_m = jnp.log(0.3 * jnp.exp(log_q) + 0.7 * jnp.exp(log_p))
    terms = (
        (jnp.exp(log_a), log_a - log_t),
        (0.3 * jnp.exp(log_q), log_q - log_m),
        (0.7 * jnp.exp(log_p), log_p - log_m),
    )
    return sum(jnp.einsum("...v,...v->...", p, log_ratio) for p, log_ratio in terms)


DISTILLATION = Distillation(
    name="distillation",
    prediction="logits",
    by_rows=True,
    elements=oracles.distillation,
    formula=_distillation_formula,
    in_modules="jaxloss",
    has_clip=False,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss with one kind of target: `numbers`, `logits`, `probabilities`, `booleans`, `integers` or `indices`."""

    loss: Loss
    target: str

    def __str__(self) -> str:
        return f"{self.loss.name}-{self.target}"

    @property
    def of_target(self) -> bool:
        """Whether there is a gradient with respect to the target."""
        return self.target in ("numbers", "logits", "probabilities")

    def target_shape(self, shape: tuple[int, ...], axis: int = -1) -> tuple[int, ...]:
        if self.target != "indices":
            return shape
        axis %= len(shape)
        return shape[:axis] + shape[axis + 1 :]

    def sample(
        self,
        shape: tuple[int, ...],
        dtype="float32",
        *,
        target_dtype=None,
        axis: int = -1,
        seed: int = 0,
        scale: float = 3.0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """A prediction of that shape and a target for it."""
        rng = np.random.default_rng(seed)
        x = (scale * rng.standard_normal(shape)).astype(dtype)
        target_shape = self.target_shape(shape, axis)
        match self.target:
            case "numbers" | "logits":
                a = scale * rng.standard_normal(target_shape)
            case "probabilities" if self.loss.by_rows:  # they do not sum to one: the gradient is t Σa − a
                a = rng.random(target_shape) / max(1, shape[axis])
            case "probabilities":
                a = rng.random(target_shape)
            case "booleans":
                a, target_dtype = rng.random(target_shape) < 0.5, target_dtype or bool
            case "integers":
                a, target_dtype = rng.integers(0, 2, target_shape), target_dtype or np.int32
            case "indices":
                a, target_dtype = rng.integers(0, max(1, shape[axis]), target_shape), target_dtype or np.int32
        return np.asarray(x), np.asarray(a, np.dtype(target_dtype or dtype))

    def expected(self, x, a, **options) -> oracles.Expected:
        return oracles.reduced(self.loss.elements, x, a, by_rows=self.loss.by_rows, **options)

    def formula(self, x, a, *, reduction="mean", weights=None, where=None, normalizer=None) -> jax.Array:
        """The reduced loss in plain `jax.numpy`, without a clip; `weights` and `where` have the shape of its losses."""
        losses = self.loss.formula(x, a)
        if weights is not None:
            losses = losses * weights
        if where is not None:
            losses = jnp.where(where, losses, 0)
        if reduction == "none":
            return losses
        if reduction == "sum":
            return losses.sum()
        if normalizer is not None:
            return losses.sum() / normalizer
        if where is not None:
            counted = where if self.loss.by_rows else where.any(tuple(range(1, x.ndim)))
            return losses.sum() / counted.sum()
        return losses.sum() / (losses.size if self.loss.by_rows else x.shape[0] if x.ndim else 1)


CASES = (
    Case(MSE, "numbers"),
    Case(BINARY, "probabilities"),
    Case(CATEGORICAL, "indices"),
    Case(CATEGORICAL, "probabilities"),
)
"""A loss with each kind of target that has a kernel of its own."""

MATRIX = (
    *CASES,
    Case(REGRESSION, "numbers"),
    Case(BINARY_WITH_EVERYTHING, "probabilities"),
    Case(CATEGORICAL_WITH_OPTIONS, "indices"),
    Case(CATEGORICAL_WITH_OPTIONS, "probabilities"),
    Case(DISTILLATION, "logits"),
)
"""What is put through every transform and every placement: the others in one program, so that the suite stays quick."""

ALL_CASES = (*CASES, Case(MSE, "integers"), Case(BINARY, "booleans"), Case(BINARY, "integers"))
"""And with each that is converted to another."""

REDUCTIONS = ("mean", "sum", "none")


def finfo(dtype):
    return ml_dtypes.finfo(dtype)
