"""Binary and multi-label losses."""

from __future__ import annotations

# Some annotations of jax.numpy are partial.
# pyright: reportUnknownMemberType=false
import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss import formulas
from jaxloss._arrays import Array, inlined
from jaxloss._autodiff.tangents import BOUNDED
from jaxloss._checks import arguments as _arguments
from jaxloss._checks import debug as _debug
from jaxloss._checks import examples as _examples
from jaxloss._checks import parameters as _parameters
from jaxloss._checks.arrays import array, of_dtype
from jaxloss._checks.debug import watched
from jaxloss._docs.described import described
from jaxloss._docs.losses import ELEMENTS, GRADIENT
from jaxloss._rows import elementwise as _elementwise
from jaxloss._rows.weights import along_rows, leading
from jaxloss._types import FROM_0_TO_1, NOT_NEGATIVE, Reduction
from jaxloss.formulas import real


@functools.cache
def _plain(clip: float) -> _elementwise.Elementwise:
    return _elementwise.Elementwise(
        name="binary_cross_entropy",
        value=functools.partial(formulas.binary_cross_entropy, clip=clip),
        d_value=formulas.d_binary_cross_entropy,
        d_value_of_target=formulas.d_binary_cross_entropy_of_target,
        constants=(clip,),
        float16_weight=BOUNDED,
    )


@functools.cache
def _weighted(clip: float, features: tuple[int, ...]) -> _elementwise.Elementwise:
    """Of the parameters `formulas.weighted_binary_cross_entropy` has."""
    return _elementwise.Elementwise(
        name="weighted_binary_cross_entropy",
        value=functools.partial(formulas.weighted_binary_cross_entropy, clip=clip),
        d_value=formulas.d_weighted_binary_cross_entropy,
        d_value_of_target=formulas.d_weighted_binary_cross_entropy_of_target,
        unclipped=functools.partial(formulas.weighted_binary_cross_entropy, clip=None),
        constants=(clip,),
        float16_weight=BOUNDED,
        per_feature=features,
    )


@functools.cache
def _focal(clip: float, features: tuple[int, ...]) -> _elementwise.Elementwise:
    """Of the parameters `formulas.focal_binary_cross_entropy` has."""
    return _elementwise.Elementwise(
        name="focal_binary_cross_entropy",
        value=functools.partial(formulas.focal_binary_cross_entropy, clip=clip),
        d_value=formulas.d_focal_binary_cross_entropy,
        unclipped=functools.partial(formulas.focal_binary_cross_entropy, clip=None),
        constants=(clip,),
        float16_weight=BOUNDED,
        per_feature=features,
    )


@watched(_debug.binary)
@described(ELEMENTS)
def binary_cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    focal_gamma: ArrayLike | None = None,
    focal_alpha: ArrayLike | None = None,
    clip: float | None = 1e-7,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""Binary cross entropy, with the sigmoid inside.

    $$\frac1n \sum -a \log t - (1 - a) \log(1 - t), \quad t = \sigma(x),
      \qquad \frac{\partial}{\partial x} = \frac{t - a}{n}$$

    The sum is over all elements. <batch size>

    With all options (class weights $c$, `pos_weight` $p$, `label_smoothing` $\epsilon$, `focal_gamma` $\gamma$ and
    `focal_alpha` $\alpha$), an element's loss is

    $$c\, \alpha_t\, q^\gamma \left(-p\, a' \log t - (1 - a') \log(1 - t)\right), \quad
      a' = a (1 - \epsilon) + \tfrac12 \epsilon, \quad q = a' (1 - t) + (1 - a') t, \quad
      \alpha_t = \alpha a' + (1 - \alpha)(1 - a')$$

    Args:
        logits: $x$, <elements> Infinite logits that agree with the target are fine.
        target: probabilities $a$, of the same shape; integers and booleans are probabilities 0 and 1.
        ignore_index: elements whose target, of an integer type, is this number are masked, as by `where`.
        class_weights: `[C]` numbers $c$ for the indices of the last axis of `logits`; $n$ stays the same. Default: 1.
        pos_weight: a number $p$, or `[C]` of them, that the loss of the positive class is multiplied by. Default: 1.
        label_smoothing: a number $\epsilon$ in [0, 1], how far the target is moved to ½. Default: 0.
        focal_gamma: a number $\gamma \ge 0$: the larger it is, the less the elements count that are right
            already.
            Default: 0.
        focal_alpha: a number $\alpha$ in [0, 1], the weight of the positive class; $1 - \alpha$ is that of the negative
            one. Default: no such factor.
        clip: $-\log t$ and $-\log(1 - t)$ in the value are those of $t$ clipped to `[clip, 1 - clip]`. The gradient is
            never clipped, so that a saturated prediction still learns. None for the exact value.

    Returns:
        <Returns> Options that are numbers may be traced: another value compiles nothing.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> logits, target = jnp.array([0.0, 2.0]), jnp.array([1, 0])
    >>> print(jaxloss.binary_cross_entropy(logits, target))
    1.41004
    >>> print(jax.grad(jaxloss.binary_cross_entropy)(logits, target))
    [-0.25    0.44040]
    >>> print(jaxloss.binary_cross_entropy(logits, target, focal_gamma=2.0, focal_alpha=0.25))
    0.64044

    Sources: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.3.2; T.-Y. Lin et al., *Focal
    Loss for Dense Object Detection* (2017).
    """
    options = (class_weights, pos_weight, label_smoothing, focal_gamma, focal_alpha)
    x, a, examples = _checked(logits, target, where, ignore_index, weights, reduction, normalizer)
    loss, parameters = _loss(_arguments.clip_value(clip, 0.5), x, *options)
    return _elementwise.value(loss, x, a, examples, parameters)


@watched(_debug.binary)
@described(GRADIENT, of=binary_cross_entropy)
def d_binary_cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    focal_gamma: ArrayLike | None = None,
    focal_alpha: ArrayLike | None = None,
    clip: float | None = 1e-7,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    r"""The gradient of `binary_cross_entropy` with respect to `logits`, without options $(\sigma(x) - a) / n$.

    <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_binary_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([1, 0])))
    [-0.25  0.25]
    """
    options = (class_weights, pos_weight, label_smoothing, focal_gamma, focal_alpha)
    x, a, examples = _checked(logits, target, where, ignore_index, weights, reduction, normalizer)
    loss, parameters = _loss(_arguments.clip_value(clip, 0.5), x, *options)
    return of_dtype(_elementwise.gradient(loss, x, a, examples, parameters), array("logits", logits).dtype)


def _checked(
    logits: ArrayLike,
    target: ArrayLike,
    where: ArrayLike | None,
    ignore_index: int | None,
    weights: ArrayLike | None,
    reduction: Reduction,
    normalizer: ArrayLike | None,
):
    """Logits and target in types that have kernels, and the examples."""
    logits = _arguments.prediction("logits", logits, "target", target)
    target, counted = _arguments.elements("target", target, ignore_index)
    examples = _examples.checked(where, weights, reduction, normalizer)
    target, logits = _arguments.probabilities(target, "logits", logits)
    if counted is not None:
        if examples.where is not None:
            where = leading("where", examples.where, logits.shape, min(1, logits.ndim), logits.ndim)
            counted = counted & along_rows(where, logits.shape)
        examples = dataclasses.replace(examples, where=counted)
    return logits, target, examples


def _loss(
    clip: float,
    x: Array,
    class_weights: ArrayLike | None,
    pos_weight: ArrayLike | None,
    label_smoothing: ArrayLike,
    focal_gamma: ArrayLike | None,
    focal_alpha: ArrayLike | None,
):
    """The loss that has what these options ask for, and its parameters."""
    smoothing = _parameters.number("label_smoothing", label_smoothing, FROM_0_TO_1)
    smooth, focus = not _is_zero(label_smoothing), not (focal_gamma is None or _is_zero(focal_gamma))
    gamma = _parameters.number("focal_gamma", 0.0 if focal_gamma is None else focal_gamma, NOT_NEGATIVE)
    alpha = None
    if focal_alpha is not None:
        alpha = _parameters.number("focal_alpha", focal_alpha, FROM_0_TO_1)
    # In the type of the arithmetic before anything is made of them: 1 − α of a float32 α is not that of a float64 loss.
    given = (
        None if number is None else number.astype(real(x).dtype)
        for number in (*_weights(class_weights, pos_weight, x), alpha)
    )
    if_one, if_zero, *alphas = _of_both_classes(*given)

    weighted = class_weights is not None or pos_weight is not None
    if not (weighted or smooth or focus or focal_alpha is not None):
        return _plain(clip), ()
    features = tuple(place for place, weight in enumerate((if_one, if_zero)) if weight.ndim)
    if not focus and focal_alpha is None:
        return _weighted(clip, features), (if_one, if_zero, smoothing)
    return _focal(clip, features), (if_one, if_zero, smoothing, gamma, *alphas)


def _is_zero(option: object) -> bool:
    """Whether an option is a Python number that turns it off."""
    return isinstance(option, int | float) and option == 0


@inlined()
def _of_both_classes(of_class: Array | None, positive: Array | None, alpha: Array | None) -> tuple[Array, ...]:
    """What the losses of the positive and of the negative class are multiplied by; and alphas of the focal loss."""
    one = jnp.ones(())
    of_class = one if of_class is None else of_class
    if_one = of_class if positive is None else of_class * positive
    return if_one, of_class, *((one, one) if alpha is None else (alpha, 1 - alpha))


def _weights(
    class_weights: ArrayLike | None, pos_weight: ArrayLike | None, x: Array
) -> tuple[Array | None, Array | None]:
    """The weights of all elements of a class, and of its positive ones, None for 1: scalars, or one for each class."""
    of_class = None if class_weights is None else _parameters.per_class("class_weights", class_weights, x)
    if pos_weight is None:
        return of_class, None
    if isinstance(pos_weight, int | float | np.generic) or array("pos_weight", pos_weight).ndim == 0:
        positive = _parameters.number("pos_weight", pos_weight, NOT_NEGATIVE)
    else:
        positive = _parameters.per_class("pos_weight", pos_weight, x, ", or a scalar")
    return of_class, positive
