"""The programs that a row of `benchmarks.loss_table` times: jaxloss, and the same by XLA.

XLA's are optax's formulas in float32, as one writes them.
"""

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import optax

import jaxloss
from benchmarks import limits
from benchmarks.loss_table import Work
from benchmarks.timing import Program

STEPS = 16
STEP_SIZE = 0.1
# Beyond, XLA spends minutes on folding a constant out of the gradient of optax's formula for labels: it is given that
# for probabilities, all of them 0 but one, which it computes in one kernel.
MANY_ROWS = 2**16


def _mse(x, a):
    return optax.l2_loss(x.astype(jnp.float32), a.astype(jnp.float32)).sum() / x.shape[0]


def _binary(x, a):
    return optax.sigmoid_binary_cross_entropy(x.astype(jnp.float32), a.astype(jnp.float32)).sum() / x.shape[0]


def _categorical_rows(x, a):
    x = x.astype(jnp.float32)
    if a.ndim == 1 and len(a) > MANY_ROWS:
        a = jax.nn.one_hot(a, x.shape[-1])
    if a.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(x, a)
    return optax.softmax_cross_entropy(x, a.astype(jnp.float32))


OPTIONS = {
    "z_loss": {"z_loss": 1e-4},
    "temperature": {"temperature": 0.7},
    "label_smoothing": {"label_smoothing": 0.1},
    "class_weights": {"class_weights": 0.5},  # an array in which every class has this weight
    "softcap": {"softcap": 30.0},
}
OPTIONS["all"] = functools.reduce(dict.__or__, OPTIONS.values())


def _with_options(x, a, options, loss):
    """The mean with options; an array of class weights is made of their number, where XLA cannot see it."""
    if "class_weights" in options:
        weights = jax.lax.optimization_barrier(jnp.full(x.shape[1], options["class_weights"], jnp.float32))
        options = options | {"class_weights": weights}
    return loss(x, a, **options)


def _options_by_xla(x, a, *, z_loss=0, temperature=1, label_smoothing=0, class_weights=None, softcap=None):
    """Cross entropy of labels with options, in as many lines of `jax.numpy` as they need."""
    x = x.astype(jnp.float32)
    if softcap is not None:
        x = softcap * jnp.tanh(x / softcap)
    if temperature != 1:
        x = x / temperature
    lse = jax.nn.logsumexp(x, axis=-1)
    if len(a) > MANY_ROWS:
        losses = lse - (jax.nn.one_hot(a, x.shape[-1]) * x).sum(axis=-1)
    else:
        losses = lse - jnp.take_along_axis(x, a[:, None], axis=-1)[:, 0]
    smoothed = 0
    if label_smoothing:
        losses = (1 - label_smoothing) * losses
        of_classes = lse[:, None] - x
        if class_weights is not None:
            of_classes = of_classes * class_weights
        smoothed = label_smoothing * of_classes.mean(axis=-1)
    if class_weights is not None:
        losses = losses * class_weights[a]
    losses = losses + smoothed
    if z_loss:
        losses = losses + z_loss * lse * lse
    return losses.mean()


def _statistics_by_xla(x, a):
    """The mean, and of each row its negative log-likelihood, lse, entropy, prediction and rank."""
    x = x.astype(jnp.float32)
    lse = jax.nn.logsumexp(x, axis=-1)
    of_label = jnp.take_along_axis(x, a[:, None], axis=-1)
    p = jnp.exp(x - lse[:, None])
    entropy = lse - (p * x).sum(axis=-1)
    before = jnp.arange(x.shape[1]) < a[:, None]
    rank = ((x > of_label) | ((x == of_label) & before)).sum(axis=-1)
    nll = lse - of_label[:, 0]
    return nll.mean(), jax.lax.stop_gradient((nll, lse, entropy, x.argmax(axis=-1), rank))


def _entropy_by_xla(x, a):
    del a
    log_p = jax.nn.log_softmax(x.astype(jnp.float32))
    return -(jnp.exp(log_p) * log_p).sum(axis=-1).mean()


def _policy(x, a):
    """The loss of a policy gradient: probabilities of the actions taken, and a bonus for entropy."""
    losses, stats = jaxloss.categorical_cross_entropy_with_stats(x, a, clip=None, reduction="none")
    return -(jnp.exp(-losses) + 0.01 * stats.entropy).mean()


def _policy_by_xla(x, a):
    log_p = jax.nn.log_softmax(x.astype(jnp.float32))
    of_action = jnp.take_along_axis(log_p, a[:, None], axis=-1)[:, 0]
    return -(jnp.exp(of_action) - 0.01 * (jnp.exp(log_p) * log_p).sum(axis=-1)).mean()


def _kl_by_xla(x, a):
    log_t, log_a = (jax.nn.log_softmax(y.astype(jnp.float32)) for y in (x, jax.lax.stop_gradient(a)))
    return (jnp.exp(log_a) * (log_a - log_t)).sum(axis=-1).mean()


def _jensen_shannon_by_xla(x, a):
    log_t, log_a = (jax.nn.log_softmax(y.astype(jnp.float32)) for y in (x, jax.lax.stop_gradient(a)))
    t, a = jnp.exp(log_t), jnp.exp(log_a)
    log_m = jnp.log((t + a) / 2)
    return ((a * (log_a - log_m) + t * (log_t - log_m)) / 2).sum(axis=-1).mean()


MEANS = {
    "jaxloss": {
        "mse": jaxloss.mse,
        "binary": jaxloss.binary_cross_entropy,
        "categorical": jaxloss.categorical_cross_entropy,
        "entropy": lambda x, a: jaxloss.entropy(x).mean(),
        "policy": _policy,
        "KL": functools.partial(jaxloss.kl_divergence, target_type="logits"),
        "Jensen-Shannon": functools.partial(jaxloss.jensen_shannon, target_type="logits"),
    },
    "xla": {
        "mse": _mse,
        "binary": _binary,
        "categorical": lambda x, a: _categorical_rows(x, a).mean(),
        "entropy": _entropy_by_xla,
        "policy": _policy_by_xla,
        "KL": _kl_by_xla,
        "Jensen-Shannon": _jensen_shannon_by_xla,
    },
}
STATISTICS = "categorical with statistics"
MEANS["jaxloss"][STATISTICS] = jaxloss.categorical_cross_entropy_with_stats
MEANS["xla"][STATISTICS] = _statistics_by_xla
_unclipped = functools.partial(jaxloss.categorical_cross_entropy, clip=None)  # as the others compute it
for who, loss in (("jaxloss", _unclipped), ("xla", _options_by_xla)):
    for name, options in OPTIONS.items():
        MEANS[who][f"categorical with {name}"] = functools.partial(_with_options, options=options, loss=loss)
ROWS = {
    "jaxloss": functools.partial(jaxloss.categorical_cross_entropy, reduction="none"),
    "xla": _categorical_rows,
}


def _steps(loss: Callable) -> Callable:
    """Gradient steps one after the other in one program.

    Barriers stand for the model that is between two losses: without them XLA makes one kernel of 16 steps of `_mse`.
    """

    def run(x, a):
        for _ in range(STEPS):
            x = jax.lax.optimization_barrier(x - STEP_SIZE * jax.grad(loss)(x, a))
        return x

    return run


def _rows_vjp(rows: Callable) -> Callable:
    def run(x, a, cotangent):
        losses, pull = jax.vjp(lambda x: rows(x, a), x)
        return losses, pull(cotangent)

    return run


def _function(work: Work, who: str, what: str) -> Callable:
    loss = MEANS[who][work.loss]
    if what == "rows_vjp":
        return _rows_vjp(ROWS[who])
    return {"value": lambda: loss, "grad": lambda: jax.grad(loss), "step": lambda: _steps(loss)}.get(
        what, lambda: jax.value_and_grad(loss, has_aux=work.loss == STATISTICS)
    )()


def _operands(work: Work, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Random logits of deviation 3, and a random target."""
    keys = jax.random.split(key)
    x = (3 * jax.random.normal(keys[0], work.shape)).astype(work.dtype)
    if work.target == "labels":
        return x, jax.random.randint(keys[1], work.shape[:1], 0, work.shape[1])
    if work.target == "teacher":
        return x, (3 * jax.random.normal(keys[1], work.shape)).astype(work.dtype)
    a = jax.random.uniform(keys[1], work.shape)
    return x, (a / a.sum(-1, keepdims=True) if work.loss == "categorical" else a).astype(work.dtype)


class Compiled:
    """The programs of a row as executables, made from shapes alone, and so on as many threads as there are rows."""

    def __init__(self, work: Work):
        self.work = work
        key = jax.eval_shape(jax.random.key, 0)
        make = functools.partial(_operands, work)
        x, a = jax.eval_shape(make, key)
        cotangent = jax.ShapeDtypeStruct(work.shape[:1], jnp.float32)
        self._make = jax.jit(make).lower(key).compile()
        self.executables = {}
        for who in ("jaxloss",) if work.part == "portable" else MEANS:
            for what in work.goals:
                function = jax.jit(_function(work, who, what))
                operands = (x, a, cotangent) if what == "rows_vjp" else (x, a)
                self.executables[who, what] = function.lower(*operands).compile()

    def temporary_bytes(self) -> int | None:
        """Of value and gradient by jaxloss, beside operands and results."""
        for what in ("value_and_grad", "call"):
            if executable := self.executables.get(("jaxloss", what)):
                return executable.memory_analysis().temp_size_in_bytes
        return None

    def operands(self) -> list[tuple[jax.Array, jax.Array]]:
        """So many sets of them that none is found in a cache, unless the work is a launch."""
        count = 1 if self.work.part == "launch" else limits.sets_of_operands(self.work.read_bytes)
        return [self._make(key) for key in jax.random.split(jax.random.key(0), count)]

    def programs(self, operands: list[tuple[jax.Array, jax.Array]]) -> dict[tuple[str, str], Program]:
        """By who and what."""
        cotangent = jnp.linspace(0.5, 1.5, self.work.shape[0], dtype=jnp.float32)

        def program(what, executable):
            turns = itertools.cycle([(*each, cotangent) if what == "rows_vjp" else each for each in operands])
            return Program(lambda: executable(*next(turns)))

        return {(who, what): program(what, executable) for (who, what), executable in self.executables.items()}


def compiled(rows: list[Work], threads: int) -> list[Compiled | Exception]:
    """Each row's executables, or what kept them from being made."""

    def attempt(work):
        try:
            return Compiled(work)
        except Exception as error:  # the other rows are worth measuring
            return error

    with ThreadPoolExecutor(threads) as pool:
        of_limits = {
            each
            for work in rows
            if work.part != "launch"
            for each in limits.compilations(work.shape, work.dtype, work.numeric_operands)
        }
        for each in of_limits:
            pool.submit(*each)  # one that fails does so again when its row is measured
        return list(pool.map(attempt, rows))
