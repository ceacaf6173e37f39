"""The losses in extended precision, in forms in which nothing cancels: right relative to themselves, however small.

Every function takes rows `[N, V]` of numbers that float64 holds. Of two numbers whose difference is meant, the one that
is 1 less something is never formed.
"""

import dataclasses
import functools

import ml_dtypes
import numpy as np

Array = np.ndarray


def extended(x) -> Array:
    """Numbers of any type."""
    x = np.asarray(x)
    return x.astype(np.float32 if x.dtype in (ml_dtypes.bfloat16, np.float16) else x.dtype).astype(np.longdouble)


# ---- two classes -----------------------------------------------------------------------------------------------------


def binary_cross_entropy(x, a) -> tuple[Array, Array, Array]:
    """Losses of elements, their derivatives, and the larger of the two numbers that these are the difference of."""
    x, a = extended(x), extended(a)
    decay = np.exp(-np.abs(x))
    smaller = decay / (1 + decay)
    value = np.log1p(decay) + a * np.maximum(-x, 0) + (1 - a) * np.maximum(x, 0)
    return value, np.where(x < 0, smaller - a, (1 - a) - smaller), np.maximum(smaller, np.where(x < 0, a, 1 - a))


# ---- rows of classes -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Softmax:
    """A row's probabilities, and what is as small as they are far from 0 and 1."""

    logits: Array

    @functools.cached_property
    def rows(self) -> Array:
        return np.arange(len(self.logits))

    @functools.cached_property
    def leader(self) -> Array:
        return self.logits.argmax(1)

    @functools.cached_property
    def below(self) -> Array:
        """How far each logit is below the row's largest."""
        return self.logits[self.rows, self.leader][:, None] - self.logits

    @functools.cached_property
    def exponentials(self) -> Array:
        return np.exp(-self.below)

    @functools.cached_property
    def rest(self) -> Array:
        """The sum of the exponentials without the leader's, which is 1."""
        return self.without_leader(self.exponentials)

    def without_leader(self, numbers: Array) -> Array:
        """The sum of a row's numbers without the leader's."""
        numbers = numbers.copy()
        numbers[self.rows, self.leader] = 0
        return numbers.sum(1)

    @functools.cached_property
    def log_sum(self) -> Array:
        """Less the largest logit."""
        return np.log1p(self.rest)

    @functools.cached_property
    def nll(self) -> Array:
        """Of each class."""
        return self.below + self.log_sum[:, None]

    @functools.cached_property
    def probability(self) -> Array:
        return self.exponentials / (1 + self.rest)[:, None]

    @functools.cached_property
    def missing(self) -> Array:
        """1 less the probability of each class."""
        missing = 1 - self.probability
        missing[self.rows, self.leader] = self.rest / (1 + self.rest)
        return missing

    @functools.cached_property
    def mean_below(self) -> Array:
        """The mean of `below` over all classes, by their probability."""
        return (self.probability * self.below).sum(1)

    @functools.cached_property
    def entropy(self) -> Array:
        return self.log_sum + self.mean_below

    @functools.cached_property
    def entropy_gradient(self) -> Array:
        """The entropy's derivative with respect to each logit."""
        return self.probability * (self.below - self.mean_below[:, None])


def cross_entropy_of_labels(s: Softmax, labels) -> tuple[Array, Array]:
    """Losses and gradients of rows."""
    gradient = s.probability.copy()
    gradient[s.rows, labels] = -s.missing[s.rows, labels]
    return s.nll[s.rows, labels], gradient


def cross_entropy_of_probabilities(s: Softmax, a) -> tuple[Array, Array]:
    """Losses and gradients of rows; the target need not sum to 1."""
    a = extended(a)
    others = a.sum(1)[:, None] - a
    others[s.rows, s.leader] = s.without_leader(a)
    return (a * s.nll).sum(1), s.probability * others - a * s.missing


# ---- divergences -----------------------------------------------------------------------------------------------------


def log_ratio(s: Softmax, teacher: Softmax) -> Array:
    """The logarithm of student's over teacher's probabilities."""
    between = (s.logits.max(1) - teacher.logits.max(1))[:, None]
    # Of a class that both are sure of, the difference of the sums is all there is, however small.
    return ((s.logits - teacher.logits) - between) - (s.log_sum - teacher.log_sum)[:, None]


def kl_divergence(s: Softmax, teacher: Softmax) -> tuple[Array, Array]:
    """Of a teacher's logits: losses and gradients of rows."""
    d = log_ratio(s, teacher)
    above = np.expm1(d)
    series = d * d * (1 / np.longdouble(2) + d * (1 / np.longdouble(6) + d * (1 / np.longdouble(24) + d / 120)))
    losses = (teacher.probability * np.where(np.abs(d) < 1e-4, series, above - d)).sum(1)
    return losses, teacher.probability * above


def kl_divergence_of_probabilities(s: Softmax, a) -> tuple[Array, Array, Array]:
    """Losses and gradients of rows, and the sum of the sizes of what a loss is made of."""
    a = extended(a)
    log_a = np.log(np.where(a == 0, 1, a))
    gradient = cross_entropy_of_probabilities(s, a)[1]
    return (a * (log_a + s.nll)).sum(1), gradient, (a * (np.abs(log_a) + s.nll)).sum(1)


def jensen_shannon(s: Softmax, teacher: Softmax, beta: float) -> tuple[Array, Array, Array]:
    """Of a teacher's logits: losses and gradients of rows, and the larger of the two numbers that a gradient subtracts."""
    d = log_ratio(s, teacher)
    b = np.longdouble(beta)
    a = 1 - b
    u = np.expm1(d)
    p_over_m = -np.log1p(b * np.expm1(-d))
    q_over_m = -np.log1p(a * u)
    small = a * b * (u**2 / 2 - (1 + a) * u**3 / 6 + (1 + a + a**2) * u**4 / 12 - (1 + a + a**2 + a**3) * u**5 / 20)
    direct = b * teacher.probability * q_over_m + a * s.probability * p_over_m
    losses = np.where(np.abs(u) < 1e-4, teacher.probability * small, direct).sum(1)
    mean = (s.probability * p_over_m).sum(1)[:, None]
    return losses, a * s.probability * (p_over_m - mean), a * s.probability * np.maximum(np.abs(p_over_m), np.abs(mean))
