"""Distillation losses: divergences of a student's probabilities from a teacher's."""

from __future__ import annotations

from typing import Any, Unpack

from jax.typing import ArrayLike

from jaxloss import formulas
from jaxloss._arrays import Array
from jaxloss._checks import classes as _classes
from jaxloss._checks import debug as _debug
from jaxloss._checks import teacher as _teacher
from jaxloss._checks.arrays import array, axis_moved, of_dtype
from jaxloss._checks.debug import watched
from jaxloss._docs.described import described
from jaxloss._docs.losses import DIVERGENCES, GRADIENT
from jaxloss._rows import divergence as _divergence
from jaxloss._rows.divergence import Divergence
from jaxloss._types import AxisName, Reduction, Remainder, SoftTarget, TargetType


@watched(_debug.divergence)
@described(DIVERGENCES)
def kl_divergence(
    logits: ArrayLike,
    target: SoftTarget,
    *,
    target_type: TargetType = "probabilities",
    axis: int = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
    remainder: Remainder = "drop",
    axis_name: AxisName = None,
) -> Array:
    r"""Kullback-Leibler divergence of the softmax of logits from a target distribution.

    $$\mathrm{KL}(a \| t) = \frac1n \sum a_i \log\frac{a_i}{t_i}, \quad t = \mathrm{softmax}(x / T),
      \qquad \frac{\partial}{\partial x_i} = \frac{t_i - a_i}{n T}$$

    <batch size> A term whose $a_i$ is 0 is 0. Where a target $a$ does not sum to 1, the gradient is
    $(t_i \sum_j a_j - a_i) / (n T)$.

    The gradient falls like $1 / T^2$ at high temperatures. The factor $T^2$ that makes up for it is not included:
    multiply the loss by `temperature**2` to have it.

    Args:
        logits: $x$, `[..., V]`, the student's; <dtypes>. A class whose logit is -Inf is masked: its probability and,
            where the target has none for it either, its gradient are 0; else the loss is infinite.
        target: the teacher's probabilities $a$, `[..., V]`; or the teacher's logits $y$, `[..., V]`, of which
            $a = \mathrm{softmax}(y / T)$. Or, for a teacher of whom the likeliest classes are stored, `(indices,
            probabilities)`: K class indices of each row and their probabilities, of the shape of `logits` with K in
            the place of V. Equal indices of a row add up; an index that is not in `[0, V)` makes the row's loss NaN
            and its gradient 0, unless its probability is 0.
        target_type: which of the two the target is, `"probabilities"` or `"logits"`.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[1.0, 1.0, 0.0]])
    >>> print(jaxloss.kl_divergence(student, teacher, target_type="logits"))
    0.12329
    >>> print(jaxloss.kl_divergence(student, jnp.array([[0.5, 0.5, 0.0]])))
    0.21446
    >>> print(jax.grad(jaxloss.kl_divergence)(student, jnp.array([[0.5, 0.5, 0.0]])))
    [[ 0.16524 -0.25527  0.09003]]

    Source: G. Hinton, O. Vinyals, J. Dean, *Distilling the Knowledge in a Neural Network* (2015), arXiv:1503.02531.
    """
    given = _teacher.Arguments(
        axis=axis,
        where=where,
        weights=weights,
        temperature=temperature,
        reduction=reduction,
        normalizer=normalizer,
        axis_name=axis_name,
    )
    if isinstance(target, tuple) or remainder != "drop":
        sparse = _of_some_classes(logits, target, target_type, remainder, **given)
        return sparse.value
    checked = _teacher.checked("logits", logits, "target", target, target_type, **given)
    divergence = Divergence("kl_divergence", formulas.kl_terms, target_type == "logits")
    return _divergence.value(divergence, *checked.all)


@watched(_debug.divergence)
@described(GRADIENT, of=kl_divergence)
def d_kl_divergence(
    logits: ArrayLike,
    target: SoftTarget,
    *,
    target_type: TargetType = "probabilities",
    axis: int = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
    remainder: Remainder = "drop",
    axis_name: AxisName = None,
) -> Array:
    r"""The gradient of `kl_divergence` with respect to `logits`: $(t_i \sum_j a_j - a_i) / (n T)$.

    Here $t = \mathrm{softmax}(x / T)$. <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_kl_divergence(jnp.zeros((1, 4)), jnp.array([[0.0, 1.0, 0.0, 0.0]])))
    [[ 0.25 -0.75  0.25  0.25]]
    """
    given = _teacher.Arguments(
        axis=axis,
        where=where,
        weights=weights,
        temperature=temperature,
        reduction=reduction,
        normalizer=normalizer,
        axis_name=axis_name,
    )
    if isinstance(target, tuple) or remainder != "drop":
        sparse = _of_some_classes(logits, target, target_type, remainder, **given)
        return of_dtype(axis_moved(sparse.gradient, -1, sparse.axis), array("logits", logits).dtype)
    checked = _teacher.checked("logits", logits, "target", target, target_type, **given)
    divergence = Divergence("kl_divergence", formulas.kl_terms, target_type == "logits")
    return checked.like_logits(_divergence.gradient(divergence, *checked.all))


@watched(_debug.divergence)
@described(DIVERGENCES)
def jensen_shannon(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    beta: ArrayLike = 0.5,
    target_type: TargetType = "logits",
    axis: int = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Generalised Jensen-Shannon divergence of a student's and a teacher's softmax.

    $$\mathrm{JSD}_\beta = \frac1n \sum \beta q_i \log\frac{q_i}{m_i} + (1 - \beta) p_i \log\frac{p_i}{m_i},
      \quad m = \beta q + (1 - \beta) p$$
    $$\frac{\partial}{\partial x_i} = \frac{1 - \beta}{n T} p_i
      \Big(\log\frac{p_i}{m_i} - \sum_j p_j \log\frac{p_j}{m_j}\Big)$$

    with the student's $p = \mathrm{softmax}(x / T)$ and the teacher's $q = \mathrm{softmax}(y / T)$. It is finite for
    all finite logits, at most $\log 2$ for $\beta = \frac12$, and 0 only for equal distributions. <batch size>

    The divergence vanishes as $\beta$ goes to 0 or 1, so these are no values of it. What other libraries return there
    is the limit of its quotient with $\beta$ or $1 - \beta$: for 0 the forward divergence
    `kl_divergence(student_logits, teacher_logits, target_type="logits")`, for 1 the reverse one,
    `kl_divergence(teacher_logits, student_logits, target_type="logits")`, both differentiable with respect to either.

    A factor $T^2$ is not included: multiply the loss by `temperature**2` to have it.

    Args:
        student_logits: $x$, `[..., V]`; <dtypes>. A class whose logit is -Inf is masked: its probability and gradient
            are 0.
        teacher_logits: $y$, `[..., V]`; or, with `target_type="probabilities"`, the teacher's probabilities $q$.
        beta: $\beta$, the teacher's share of the mixture, <number> strictly between 0 and 1. A JAX array that is not
            between them makes every loss NaN. What is small of second order in a small $\beta$ is computed of numbers
            that are not: in float32 the relative error is about $4 \cdot 10^{-9} / \beta$.
        target_type: `"logits"` or `"probabilities"`: what the teacher is given as.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[1.0, 1.0, 0.0]])
    >>> print(jaxloss.jensen_shannon(student, teacher))
    0.03005
    >>> print(jaxloss.jensen_shannon(student, teacher, beta=0.9))
    0.01076
    >>> print(jax.grad(jaxloss.jensen_shannon)(student, teacher))
    [[ 0.05692 -0.04161 -0.01531]]

    Source: R. Agarwal et al., *On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes*
    (2024), arXiv:2306.13649, equation 2.
    """
    given = _teacher.Arguments(
        axis=axis,
        where=where,
        weights=weights,
        temperature=temperature,
        reduction=reduction,
        normalizer=normalizer,
        axis_name=axis_name,
    )
    _, operands = _jensen_shannon(student_logits, teacher_logits, beta, target_type, **given)
    return _divergence.value(*operands)


@watched(_debug.divergence)
@described(GRADIENT, of=jensen_shannon)
def d_jensen_shannon(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    beta: ArrayLike = 0.5,
    target_type: TargetType = "logits",
    axis: int = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""The gradient of `jensen_shannon` with respect to `student_logits`.

    <batch size>

    >>> import jax.numpy as jnp
    >>> import jaxloss
    >>> print(jaxloss.d_jensen_shannon(jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[1.0, 1.0, 0.0]])))
    [[ 0.05692 -0.04161 -0.01531]]
    """
    given = _teacher.Arguments(
        axis=axis,
        where=where,
        weights=weights,
        temperature=temperature,
        reduction=reduction,
        normalizer=normalizer,
        axis_name=axis_name,
    )
    checked, operands = _jensen_shannon(student_logits, teacher_logits, beta, target_type, **given)
    return checked.like_logits(_divergence.gradient(*operands))


def _jensen_shannon(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    beta: ArrayLike,
    target_type: TargetType,
    **given: Unpack[_teacher.Arguments],
) -> tuple[_teacher.Operands, tuple[Any, ...]]:
    """What was checked, and the divergence with all that its value and its gradient are of."""
    checked = _teacher.checked("student_logits", student_logits, "teacher_logits", teacher_logits, target_type, **given)
    divergence = Divergence("jensen_shannon", formulas.js_terms, target_type == "logits")
    return checked, (divergence, *checked.all, _teacher.beta_array(beta, checked.scale.dtype))


def _of_some_classes(
    logits: ArrayLike,
    target: SoftTarget,
    target_type: TargetType,
    remainder: Remainder,
    **given: Unpack[_teacher.Arguments],
) -> _classes.Classes:
    """The arguments of the divergence from a target that lists some classes of each row."""
    _teacher.probabilities_of_classes(target, target_type, given["normalizer"], remainder)
    return _classes.checked(
        logits,
        target,
        {"temperature": given["temperature"]},
        axis=given["axis"],
        where=given["where"],
        weights=given["weights"],
        reduction=given["reduction"],
        normalizer=given["normalizer"],
        axis_name=given["axis_name"],
        remainder=remainder,
        divergence=True,
    )
