"""What a pass over the logits says of each row: `categorical_cross_entropy_with_stats`, `log_prob` and `entropy`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cross_entropy_options as options_of_tests
import jaxloss
import tolerance
from jaxloss import formulas
from modules import custom_call_targets, of_size
from quickly import jit_quickly

ROWS, CLASSES = 7, 41
SETTINGS = {
    "plain": {},
    "options": {"label_smoothing": 0.1, "z_loss": 0.02, "softcap": 5.0, "temperature": 1.5, "num_classes": 33},
}
settings = pytest.mark.parametrize("setting", SETTINGS)


def sample(shape=(ROWS, CLASSES), dtype="float32", seed=0, counted=33):
    rng = np.random.default_rng(seed)
    x = (3 * rng.normal(size=shape)).astype(dtype)
    return x, rng.integers(0, min(counted, shape[-1]), shape[:-1], np.int32)


def scaled(x, softcap=None, temperature=1.0, num_classes=None, **_):
    """The logits that the loss sees, without padding."""
    z = x[..., :num_classes]
    if softcap is not None:
        z = softcap * jnp.tanh(z / softcap)
    return z / temperature


def exact_stats(x, labels, **options):
    """The differentiable statistics in plain `jax.numpy`."""
    log_softmax = jax.nn.log_softmax(scaled(x, **options))
    return {
        "nll": -jnp.take_along_axis(log_softmax, labels[..., None], -1)[..., 0],
        "lse": jax.nn.logsumexp(scaled(x, **options), axis=-1),
        "entropy": -(jnp.exp(log_softmax) * log_softmax).sum(-1),
    }


def close(actual, expected, what, dtype="float32", terms=CLASSES, operations=tolerance.OPERATIONS):
    computed = tolerance.arithmetic(dtype)
    tolerance.assert_close(actual, expected, what, computed=computed, terms=terms, operations=operations, magnitude=1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("shape", [(ROWS, CLASSES), (50, 10), (3, 5000), (2, 3, 64)], ids=str)
@settings
def test_values(setting, shape, dtype):
    options = {**SETTINGS[setting]}
    if options:
        options["num_classes"] = max(1, shape[-1] - 8)
    x, labels = sample(shape, dtype, counted=options.get("num_classes", shape[-1]))
    with jax.enable_x64(dtype == "float64"):
        loss, stats = jit_quickly(
            lambda x: jaxloss.categorical_cross_entropy_with_stats(x, labels, reduction="none", **options)
        )(x)
        alone = jaxloss.categorical_cross_entropy(x, labels, reduction="none", **options)
    close(loss, alone, "the loss beside the statistics", dtype, shape[-1])
    with jax.enable_x64(True):
        z = np.asarray(scaled(x.astype(np.float64), **options))
        expected = jax.tree.map(np.asarray, exact_stats(x.astype(np.float64), labels, **options))
    for name, exact in expected.items():
        actual = getattr(stats, name)
        assert actual.dtype == tolerance.arithmetic(dtype)
        close(actual, exact, name, dtype, shape[-1])
    close(stats.target_probability, np.exp(-expected["nll"]), "target_probability", dtype, shape[-1])
    close(stats.z_loss, options.get("z_loss", 0) * expected["lse"] ** 2, "z_loss", dtype, shape[-1])
    # Rounding of scaled logits may make equal ones differ, or the reverse: the order is that of numbers near enough.
    margin = 8 * tolerance.epsilon(tolerance.arithmetic(dtype)) * np.abs(z).max()
    of_label = np.take_along_axis(z, labels[..., None], -1)
    assert ((z > of_label + margin).sum(-1) <= stats.rank).all()
    assert (stats.rank <= (z >= of_label - margin).sum(-1) - 1).all()
    at_predicted = np.take_along_axis(z, np.asarray(stats.predicted)[..., None], -1)[..., 0]
    assert (at_predicted >= z.max(-1) - margin).all()
    assert ((np.asarray(stats.rank) == 0) == (np.asarray(stats.predicted) == labels)).all()


def test_equal_logits_are_ranked_in_order():
    """Many are equal, as in bfloat16: rank and prediction agree with a stable sort, so top-k accuracy counts no tie twice."""
    x = np.random.default_rng(0).integers(-2, 2, (200, 37)).astype(np.float32)
    x[3], x[4] = 0, -np.inf
    order = np.argsort(-x, axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1, kind="stable")
    for dtype in ("float32", "bfloat16"):
        for label in (0, 5, 36):
            _, stats = jaxloss.categorical_cross_entropy_with_stats(
                x.astype(dtype), np.full(200, label, np.int32), reduction="none"
            )
            results = formulas.cross_entropy_results(
                x.astype(dtype), np.full(200, label, np.int32), {}, None, x.shape[1]
            )
            for predicted, ranks in ((stats.predicted, stats.rank), (results["predicted"], results["rank"])):
                np.testing.assert_array_equal(predicted, order[:, 0])
                np.testing.assert_array_equal(ranks, rank[:, label])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@settings
def test_derivatives_of_each_and_of_all_with_the_loss(setting, reduction):
    """In both reductions: what a tangent adds to rows is an operation of its own, whose transpose is a kernel."""
    options = SETTINGS[setting]
    x, labels = sample()
    v = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    weights = {name: np.cos(np.arange(ROWS) + i).astype("f") for i, name in enumerate(("nll", "lse", "entropy"))}
    temperature = np.float32(options.get("temperature", 1.5))
    rest = {name: option for name, option in options.items() if name != "temperature"}

    def of_one(name, stats):
        return (weights[name] * stats[name]).sum()

    def ours(name, x, temperature):
        loss, stats = jaxloss.categorical_cross_entropy_with_stats(
            x, labels, clip=None, temperature=temperature, reduction=reduction, **rest
        )
        if name != "all":
            return of_one(name, stats._asdict())
        return loss.mean() + sum(of_one(each, stats._asdict()) for each in weights)

    def exact(name, x, temperature):
        stats = exact_stats(x, labels, temperature=temperature, **rest)
        if name != "all":
            return of_one(name, stats)
        smoothing = options.get("label_smoothing", 0)
        log_softmax = jax.nn.log_softmax(scaled(x, temperature=temperature, **rest))
        losses = (1 - smoothing) * stats["nll"] - smoothing * log_softmax.mean(-1)
        loss = (losses + options.get("z_loss", 0) * stats["lse"] ** 2).mean()
        return loss + sum(of_one(each, stats) for each in weights)

    def derivatives(function):
        def of_all(x, temperature, v):
            results = {}
            for name in (*weights, "all"):

                def of(x, temperature, name=name):
                    return function(name, x, temperature)

                results[name] = jax.value_and_grad(of, (0, 1))(x, temperature)
                results[f"hvp of {name}"] = jax.jvp(
                    jax.grad(of, (0, 1)), (x, temperature), (v, jnp.ones_like(temperature))
                )[1]
            return results

        return jit_quickly(of_all)

    actual = derivatives(ours)(x, temperature, v)
    with jax.enable_x64(True):
        wide = (t.astype(np.float64) for t in (x, temperature, v))
        expected = jax.tree.map(np.asarray, derivatives(exact)(*wide))
    for name, results in actual.items():
        operations = tolerance.OPERATIONS_OF_HIGHER_ORDER if "hvp" in name else tolerance.OPERATIONS
        for result, exact_result in zip(jax.tree.leaves(results), jax.tree.leaves(expected[name]), strict=True):
            close(result, exact_result, f"{name}, {setting}", terms=x.size, operations=operations)


def test_gradients_stop_at_the_others():
    x, labels = sample()

    def others(x):
        _, stats = jaxloss.categorical_cross_entropy_with_stats(x, labels, z_loss=0.1)
        return (stats.z_loss + stats.target_probability + stats.rank + stats.predicted).sum()

    assert (jax.grad(others)(x) == 0).all()


@pytest.mark.parametrize("kind", ["probabilities", "mixed"])
def test_targets_that_are_no_label(kind):
    x, labels = sample()
    rng = np.random.default_rng(2)
    a, mix = rng.random(x.shape).astype(np.float32), np.float32(0.3)
    others = rng.integers(0, CLASSES, ROWS, np.int32)
    if kind == "mixed":
        a = mix * np.eye(CLASSES, dtype="f")[labels] + (1 - mix) * np.eye(CLASSES, dtype="f")[others]
    target = a if kind == "probabilities" else (labels, others, mix)

    def ours(x, a, mix):
        target = a if kind == "probabilities" else (labels, others, mix)
        _, stats = jaxloss.categorical_cross_entropy_with_stats(x, target)
        return (np.cos(np.arange(ROWS)) * stats.nll).sum()

    def exact(x, a, mix):
        if kind == "mixed":
            a = mix * np.eye(CLASSES)[labels] + (1 - mix) * np.eye(CLASSES)[others]
        return -(np.cos(np.arange(ROWS)) * (a * jax.nn.log_softmax(x)).sum(-1)).sum()

    actual = jax.value_and_grad(ours, (0, 1, 2))(x, a, mix)
    with jax.enable_x64(True):
        wide = (t.astype(np.float64) for t in (x, a, mix))
        expected = jax.tree.map(np.asarray, jax.value_and_grad(exact, (0, 1, 2))(*wide))
    for result, exact_result in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        close(result, exact_result, kind, terms=x.size)
    _, stats = jaxloss.categorical_cross_entropy_with_stats(x, target)
    if kind == "probabilities":
        assert (stats.rank == CLASSES).all()
    np.testing.assert_array_equal(stats.predicted, x.argmax(-1))


def test_rows_that_do_not_count_or_have_no_label():
    x, labels = sample()
    labels[1], labels[2] = -100, CLASSES
    x[3] = np.nan
    where = np.arange(ROWS) != 3
    _, stats = jaxloss.categorical_cross_entropy_with_stats(x, labels, where=where, ignore_index=-100)
    for row in (1, 3):
        of_row = {name: stat[row] for name, stat in stats._asdict().items()}
        assert of_row.pop("predicted") == -1
        assert of_row.pop("rank") == CLASSES  # among the top k for no k
        assert all(value == 0 for value in of_row.values()), of_row
    assert np.isnan(stats.nll[2])
    assert stats.rank[2] == CLASSES
    assert stats.predicted[2] == x[2].argmax()
    gradient = jax.grad(
        lambda x: jaxloss.categorical_cross_entropy_with_stats(x, labels, where=where, ignore_index=-100)[1].nll.sum()
    )(x)
    assert (gradient[1:4] == 0).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("which", ["all", "last"])
@pytest.mark.parametrize("rows", [1, 33, 129])
def test_masked_rows_whose_weight_a_vector_shares(rows, which):
    """Rows of few classes are lanes of vectors: of a scalar mask, or of a last row alone, all lanes have one weight."""
    x, labels = np.ones((rows, 7), np.float32), np.zeros(rows, int)
    masked = np.ones(rows, bool) if which == "all" else np.arange(rows) == rows - 1
    where = np.array(False) if which == "all" else ~masked
    x[masked] = np.nan

    def of(x):
        _, stats = jaxloss.categorical_cross_entropy_with_stats(x, labels, where=where, z_loss=0.1, reduction="none")
        return (stats.entropy + stats.nll + stats.lse).sum(), stats

    gradient, stats = jax.grad(of, has_aux=True)(x)
    assert (gradient[masked] == 0).all()
    of_masked = {name: stat[masked] for name, stat in stats._asdict().items()}
    assert (of_masked.pop("predicted") == -1).all()
    assert (of_masked.pop("rank") == 7).all()
    assert all((stat == 0).all() for stat in of_masked.values()), of_masked


def test_an_inner_axis_of_classes():
    x = np.random.default_rng(0).normal(size=(4, 9, 3)).astype(np.float32)
    labels = np.zeros((4, 3), np.int32)
    _, inner = jaxloss.categorical_cross_entropy_with_stats(x, labels, axis=1)
    _, last = jaxloss.categorical_cross_entropy_with_stats(np.moveaxis(x, 1, -1), labels)
    jax.tree.map(np.testing.assert_array_equal, inner, last)
    np.testing.assert_array_equal(jaxloss.entropy(x, axis=1), last.entropy)
    close(jaxloss.log_prob(x, labels, axis=1), -last.nll, "log_prob")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_pass_gives_loss_gradient_and_statistics(dtype):
    x, labels = sample(dtype=dtype)

    def step(x):
        return jax.value_and_grad(jaxloss.categorical_cross_entropy_with_stats, has_aux=True)(x, labels, z_loss=1e-4)

    compiled = jax.jit(step).lower(x).compile()
    assert custom_call_targets(compiled) == ["jaxloss_cross_entropy_with_options_value_and_grad"]
    assert of_size(compiled, x.size) == ["custom-call"]


def test_log_prob_and_entropy():
    x, labels = sample()
    where = np.arange(ROWS) != 2
    options = {"softcap": 5.0, "temperature": 1.5, "num_classes": 33}

    def ours(x):
        return jaxloss.log_prob(x, labels, where=where, **options), jaxloss.entropy(x, where=where, **options)

    def exact(x):
        stats = exact_stats(x, labels, **options)
        return jnp.where(where, -stats["nll"], 0), jnp.where(where, stats["entropy"], 0)

    cotangents = tuple(np.cos(np.arange(ROWS) + i).astype(np.float32) for i in range(2))
    results, pull = jax.vjp(ours, x)
    gradient = pull(cotangents)[0]
    with jax.enable_x64(True):
        exact_results, exact_pull = jax.vjp(exact, x.astype(np.float64))
        exact_gradient = exact_pull(tuple(c.astype(np.float64) for c in cotangents))[0]
        exact_results = jax.tree.map(np.asarray, exact_results)
    for result, of_formula in zip((*results, gradient), (*exact_results, exact_gradient), strict=True):
        close(result, of_formula, "of log_prob or entropy", terms=x.size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_statistics_of_logits_whose_differences_overflow(dtype, path):
    """What is infinitely far from the largest logit adds 0 to an entropy, not NaN."""
    x64 = dtype == "float64"
    huge = np.array(0.9 * float(jnp.finfo(dtype).max)).astype(dtype)
    x = np.array([[-1, 1, -1, 0], [1, -1, 0, -1], [-1, -1, -1, -1], [1, -1, 1, 1]]).astype(dtype) * huge
    labels = np.array([1, 0, 2, 3], np.int32)
    with jax.enable_x64(x64):
        for order in (slice(None), slice(None, None, -1)):
            _, stats = jaxloss.categorical_cross_entropy_with_stats(
                x[:, order], labels if order.step is None else 3 - labels, reduction="none"
            )
            ways = np.array([1, 1, 4, 3])
            tolerance.assert_ulps(stats.entropy, np.log(ways), 16)
            tolerance.assert_ulps(stats.nll, np.log(ways), 16)


def test_entropy_of_masked_and_of_certain_rows():
    x = np.float32([[0, -np.inf, 0], [1000, 0, -1000], [0, 0, 0]])
    close(jaxloss.entropy(x), np.log([2, 1, 3]), "entropy")
    assert np.isfinite(jax.grad(lambda x: jaxloss.entropy(x).sum())(x)).all()


@pytest.mark.parametrize("name", options_of_tests.NUMBERS)
def test_masked_rows_have_no_part_in_derivatives_of_options(name):
    """Value and derivative are those of the other rows alone, of the statistics as of the loss."""
    (x, labels), keep = sample(), np.arange(ROWS) % 2 == 0

    def results(x, labels, **masking):
        def summed(number):
            loss, stats = jaxloss.categorical_cross_entropy_with_stats(
                x, labels, reduction="sum", **{name: number}, **masking
            )
            return loss + stats.nll.sum() + 2 * stats.entropy.sum() + 3 * stats.lse.sum()

        return jit_quickly(jax.value_and_grad(summed))(np.float32(options_of_tests.SAMPLES[name].on))

    for actual, expected in zip(results(x, labels, where=keep), results(x[keep], labels[keep]), strict=True):
        close(actual, expected, name, operations=tolerance.OPERATIONS_OF_HIGHER_ORDER)
