"""Linear cross entropy against float64: values, gradients of every operand, types, options, statistics, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import cross_entropy_options as samples
import jaxloss
import tolerance
from jaxloss._arrays import MASKED
from jaxloss._linear import autodiff, local
from jaxloss._linear.split import Split
from linear_oracle import expected, sample
from test_cross_entropy_options import exact_rows

TOKENS, WIDTH, CLASSES = (4, 5), 6, 37
N = 20


def check(actual, exact, what, computed=np.float32, terms=CLASSES):
    error = tolerance.bound(*exact, computed=computed, stored=np.asarray(actual).dtype, terms=terms)
    tolerance.assert_within(actual, exact[0], error, what)


def differentiated(s, *, kernel_axis=-1, with_bias=True, cotangent=None, **options):
    """The loss, and its gradients with respect to hidden states, kernel and bias (if any)."""
    kernel = s.kernel if kernel_axis == -1 else s.kernel.T

    def loss(hidden, kernel, *bias):
        bias = bias[0] if bias else None
        out = jaxloss.linear_cross_entropy(hidden, kernel, s.labels, bias=bias, kernel_axis=kernel_axis, **options)
        return (out if cotangent is None else jnp.sum(out * cotangent)), out

    operands = (s.hidden, kernel, s.bias)[: 3 if with_bias else 2]
    run = jax.jit(lambda operands: jax.value_and_grad(loss, tuple(range(len(operands))), has_aux=True)(*operands))
    (_, out), (of_hidden, of_kernel, *of_bias) = run(operands)
    return out, (of_hidden, of_kernel if kernel_axis == -1 else of_kernel.T, *of_bias)


def check_all(s, results, exact, out, what):
    value, gradients = results
    check(value, out, f"{what}: value", terms=N * CLASSES)
    for name, gradient in zip(("of_hidden", "of_kernel", "of_bias"), gradients, strict=False):
        check(gradient, getattr(exact, name), f"{what}: {name}", terms=N * CLASSES)


# The ways to call it, each with the tokens it keeps and what multiplies their losses.
KEPT = np.arange(N).reshape(TOKENS) % 4 > 0
WEIGHTS = np.linspace(0.25, 2, N, dtype=np.float32).reshape(TOKENS)
CALLS = {
    "plain": ({"with_bias": False}, None, 1 / N),
    "bias": ({}, None, 1 / N),
    "chunks of one": ({"chunk_size": 1}, None, 1 / N),
    "one chunk": ({"chunk_size": 100}, None, 1 / N),
    "even chunks": ({"chunk_size": 5}, None, 1 / N),
    "classes first": ({"kernel_axis": 0, "chunk_size": 6}, None, 1 / N),
    "sum, weights": ({"reduction": "sum", "weights": WEIGHTS}, None, WEIGHTS),
    "where": ({"where": KEPT}, KEPT, 1 / KEPT.sum()),
    "normalizer": ({"normalizer": 7.0, "where": KEPT, "weights": WEIGHTS}, KEPT, WEIGHTS / 7),
}


@pytest.mark.parametrize("call", CALLS)
def test_value_and_gradients(call):
    options, keep, cotangent = CALLS[call]
    s = sample(TOKENS, WIDTH, CLASSES)
    exact = expected(s, cotangent, keep, with_bias=options.get("with_bias", True))
    losses, size = exact.losses
    out = (losses * cotangent).sum(), (size * np.abs(cotangent)).sum()
    check_all(s, differentiated(s, **{"chunk_size": 7, **options}), exact, out, call)


@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)])
def test_unreduced_losses_and_their_gradients(wanted):
    s, cotangent = sample(TOKENS, WIDTH, CLASSES), np.cos(np.arange(N)).reshape(TOKENS)
    exact = expected(s, cotangent, KEPT, with_bias=False)

    def losses(*live):
        operands = [s.hidden, s.kernel]
        for place, operand in zip(wanted, live, strict=True):
            operands[place] = operand
        return jaxloss.linear_cross_entropy(*operands, s.labels, where=KEPT, reduction="none", chunk_size=6)

    def run(*live):
        out, pull = jax.vjp(losses, *live)
        return out, pull(jnp.asarray(cotangent, out.dtype))

    out, gradients = jax.jit(run)(*((s.hidden, s.kernel)[place] for place in wanted))
    check(out, exact.losses, "losses")
    for place, gradient in zip(wanted, gradients, strict=True):
        check(gradient, (exact.of_hidden, exact.of_kernel)[place], f"gradient {place}", terms=N * CLASSES)


def test_log_prob_is_the_negative_loss():
    s = sample(TOKENS, WIDTH, CLASSES)
    exact, size = expected(s, 1, KEPT, with_bias=False).losses
    out = jaxloss.linear_log_prob(s.hidden, s.kernel, s.labels, where=KEPT)
    check(out, (-exact, size), "log probabilities")
    assert not np.signbit(np.asarray(out)[~KEPT]).any()


@pytest.mark.parametrize("chunk", [3, 4, 20])
def test_tokens_left_out_are_not_seen(chunk):
    """By mask, label and shift at once, over NaN; chunks of 3 and 4 are left out as a whole."""
    s = sample(TOKENS, WIDTH, CLASSES)
    labels = s.labels.copy()
    labels[1] = -100
    keep = np.ones(TOKENS, bool)
    keep[0, :] = keep[2, 3] = False
    shifted = np.concatenate([labels[:, 1:], np.full((4, 1), -100)], 1)
    kept = keep & (shifted != -100)
    s = dataclasses.replace(s, hidden=np.where(kept[..., None], s.hidden, np.nan), labels=labels)
    exact = expected(dataclasses.replace(s, labels=shifted), 1 / kept.sum(), kept)
    losses, size = exact.losses
    results = differentiated(s, where=keep, ignore_index=-100, shift=1, chunk_size=chunk)
    check_all(s, results, exact, (losses.sum() / kept.sum(), size.sum() / kept.sum()), "with holes")
    assert (np.asarray(results[1][0])[~kept] == 0).all()


def test_many_chunks_of_which_some_are_left_out():
    """They keep their order: the last one, which overlaps the one before, has zeros where the results of that are to be."""
    s, keep = sample((103,), WIDTH, CLASSES), np.arange(103) // 3 % 5 != 2
    exact = expected(s, 1 / keep.sum(), keep, with_bias=False)
    losses, size = exact.losses
    out = jaxloss.linear_cross_entropy(s.hidden, s.kernel, s.labels, where=keep, reduction="none", chunk_size=3)
    check(out, (losses, size), "losses")
    results = differentiated(s, where=keep, chunk_size=3, with_bias=False)
    check_all(s, results, exact, (losses.sum() / keep.sum(), size.sum() / keep.sum()), "many chunks")


def test_chunks_that_are_left_out_take_no_work(monkeypatch):
    plans, worked = [], []
    value, of_chunk = autodiff.value, local.Work.row_operands
    monkeypatch.setattr(autodiff, "value", lambda plan, *operands: plans.append(plan) or value(plan, *operands))
    monkeypatch.setattr(local.Work, "row_operands", lambda *a: worked.append(1) or of_chunk(*a))
    s, keep = sample((20,), WIDTH, CLASSES), np.arange(20) >= 12
    jaxloss.linear_cross_entropy(s.hidden, s.kernel, s.labels, where=keep, chunk_size=4)
    worked.clear()
    with jax.disable_jit():  # loops run in Python
        weight = jnp.where(keep, 1, MASKED).astype(jnp.float32)
        operands = (s.hidden, s.kernel, s.labels, weight)
        (losses,) = local.losses(plans[0], True, Split(), False, *map(jnp.asarray, operands))
    assert len(worked) == 2
    assert ((np.asarray(losses) > 0) == keep).all()


@pytest.mark.parametrize("tokens", [(), (0,), (1,), (2, 0)])
def test_few_tokens(tokens):
    s = sample(tokens, WIDTH, CLASSES)
    exact = expected(s, 1, with_bias=False)
    value, gradients = differentiated(s, reduction="sum", with_bias=False)
    check(value, (exact.losses[0].sum(), exact.losses[1].sum()), "value")
    for gradient, of in zip(gradients, (exact.of_hidden, exact.of_kernel), strict=True):
        check(gradient, of, "gradient")


@pytest.mark.parametrize("option", ["weights", "normalizer"])
def test_gradients_of_multipliers(option):
    s = sample(TOKENS, WIDTH, CLASSES)
    losses, size = expected(s, 1, with_bias=False).losses
    start = WEIGHTS if option == "weights" else np.float32(7)

    def loss(number):
        return jaxloss.linear_cross_entropy(s.hidden, s.kernel, s.labels, chunk_size=7, **{option: number})

    gradient = jax.jit(jax.grad(loss))(start)
    if option == "weights":
        check(gradient, (losses / N, size / N), "gradient of the weights")
    else:
        check(gradient, (-losses.sum() / 49, size.sum() / 49), "gradient of the normalizer", terms=N * CLASSES)


# ---- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kernel_dtype"),
    [("float64", "float64"), ("bfloat16", "float32"), ("float16", "bfloat16"), ("bfloat16", "float64")],
)
def test_products_of_mixed_types_are_in_the_wider_one(dtype, kernel_dtype):
    with jax.enable_x64("float64" in kernel_dtype):
        s = sample(TOKENS, WIDTH, CLASSES, dtype=dtype, kernel_dtype=kernel_dtype)
        exact = expected(s, 1 / N, with_bias=False)
        value, gradients = differentiated(s, with_bias=False, chunk_size=6)
        computed = np.float64 if kernel_dtype == "float64" else np.float32
        assert value.dtype == computed
        assert [g.dtype.name for g in gradients] == [dtype, kernel_dtype]
        for gradient, of in zip(gradients, (exact.of_hidden, exact.of_kernel), strict=True):
            check(gradient, of, "gradient", computed=computed, terms=N * CLASSES)


def _whole(s):
    """The computation with whole logits in the operands' type, its gradients' products summed in float32."""

    def run(hidden, kernel):
        logits = jax.lax.dot_general(hidden, kernel, (((1,), (0,)), ((), ())), preferred_element_type=hidden.dtype)
        loss, d_logits = jax.value_and_grad(jaxloss.categorical_cross_entropy)(logits, s.labels, clip=None)
        of_hidden = jax.lax.dot_general(d_logits, kernel, (((1,), (1,)), ((), ())), preferred_element_type=hidden.dtype)
        of_kernel = jax.lax.dot_general(hidden, d_logits, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return loss, of_hidden, of_kernel.astype(kernel.dtype)

    return jax.jit(run)(s.hidden, s.kernel)


def _rms(error):
    return np.sqrt(np.mean(np.square(np.asarray(error, np.float64))))


@pytest.mark.parametrize(
    ("chunks", "dtype", "accumulate_dtype"),
    [
        *((chunks, "bfloat16", "float32") for chunks in (1, 2, 3, 7, 64)),
        *((chunks, "bfloat16", "bfloat16") for chunks in (7, 64)),
        (7, "float16", "float32"),
    ],
)
def test_16_bit_error_is_that_of_whole_logits(chunks, dtype, accumulate_dtype):
    """However many chunks the gradient of the kernel is summed over."""
    size = 8
    s = sample((size * chunks,), 16, 24, dtype=dtype, scale=2.0)
    exact = expected(s, 1 / (size * chunks), with_bias=False)
    ours = differentiated(s, with_bias=False, chunk_size=size, accumulate_dtype=accumulate_dtype)
    value, of_hidden, of_kernel = ours[0], *ours[1]
    whole = _whole(s)
    exact_value = exact.losses[0].mean()
    # Each rounds the same logits, then sums in an order of its own.
    assert abs(float(value) - exact_value) <= abs(float(whole[0]) - exact_value) + 1e-6 * exact.losses[1].mean()
    for actual, peer, (of, _) in ((of_hidden, whole[1], exact.of_hidden), (of_kernel, whole[2], exact.of_kernel)):
        error = _rms(np.asarray(actual, np.float64) - of)
        allowed = 1.05 * _rms(np.asarray(peer, np.float64) - of)
        if actual is of_kernel and accumulate_dtype == "bfloat16":
            # Each partial sum is rounded, by a third of half an epsilon in the mean square.
            rounding = float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps) / 2 / np.sqrt(3)
            allowed += rounding * np.sqrt(chunks + 1) * _rms(of)
        assert error <= allowed, (error, allowed)


# ---- options and statistics ------------------------------------------------------------------------------------------

PARAMETERS = samples.on(samples.TRACED, CLASSES)


def _exact_rows(hidden, kernel, parameters, s, counted):
    return exact_rows(
        hidden.reshape(N, WIDTH) @ kernel, s.labels.reshape(N), None, **parameters, num_classes=counted
    ).reshape(TOKENS)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_options(reduction):
    s, counted = sample(TOKENS, WIDTH, CLASSES), CLASSES - 4
    s = dataclasses.replace(s, labels=s.labels % counted)
    cotangent = np.cos(np.arange(N)).reshape(TOKENS) if reduction == "none" else 1 / N

    def loss(hidden, kernel, parameters):
        options = {"reduction": reduction, "num_classes": counted, "chunk_size": 7}
        out = jaxloss.linear_cross_entropy(hidden, kernel, s.labels, **parameters, **options)
        return jnp.sum(out * cotangent) if reduction == "none" else out

    results = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(s.hidden, s.kernel, PARAMETERS)
    with jax.enable_x64(True):
        as_exact = jax.tree.map(lambda x: x.astype(np.float64), (s.hidden, s.kernel, PARAMETERS))
        formula = lambda *o: jnp.sum(_exact_rows(*o, s, counted) * cotangent)  # noqa: E731
        exact = jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(formula, (0, 1, 2)))(*as_exact))
    for actual, ideal in zip(jax.tree.leaves(results), jax.tree.leaves(exact), strict=True):
        tolerance.assert_close(actual, ideal, "a result", operations=64, terms=N * CLASSES, magnitude=1)


def test_statistics():
    s, kept = sample(TOKENS, WIDTH, CLASSES), KEPT

    def run(hidden, kernel):
        def loss(hidden, kernel):
            out, stats = jaxloss.linear_cross_entropy_with_stats(hidden, kernel, s.labels, where=kept, chunk_size=3)
            return out + jnp.sum(stats.lse * stats.entropy), stats

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, kernel)

    (value, stats), gradients = jax.jit(run)(s.hidden, s.kernel)

    with jax.enable_x64(True):

        def formula(hidden, kernel):
            log_softmax = jax.nn.log_softmax(hidden @ kernel)
            nll = -jnp.take_along_axis(log_softmax, s.labels[..., None], -1)[..., 0]
            lse = jax.nn.logsumexp(hidden @ kernel, axis=-1)
            entropy = -jnp.sum(jnp.exp(log_softmax) * log_softmax, -1)
            nll, lse, entropy = (jnp.where(kept, x, 0) for x in (nll, lse, entropy))
            return nll.sum() / kept.sum() + jnp.sum(lse * entropy), (nll, lse, entropy)

        exact = jax.value_and_grad(formula, (0, 1), has_aux=True)(
            s.hidden.astype(np.float64), s.kernel.astype(np.float64)
        )
        (exact_value, exact_stats), exact_gradients = jax.tree.map(np.asarray, exact)
    actual = (value, stats.nll, stats.lse, stats.entropy, *gradients)
    for ours, ideal in zip(actual, (exact_value, *exact_stats, *exact_gradients), strict=True):
        tolerance.assert_close(ours, ideal, "a result", operations=64, terms=N * CLASSES, magnitude=1)
    logits = s.hidden @ s.kernel
    of_label = np.take_along_axis(logits, s.labels[..., None], -1)
    assert (np.asarray(stats.predicted) == np.where(kept, logits.argmax(-1), -1)).all()
    assert (np.asarray(stats.rank) == np.where(kept, (logits > of_label).sum(-1), CLASSES)).all()


def test_a_label_out_of_range_is_nan_and_has_no_gradient():
    s = sample((6,), WIDTH, CLASSES)
    s = dataclasses.replace(s, labels=np.array([0, 36, 37, -1, 2**30, 5], np.int32))
    out, (of_hidden, of_kernel) = differentiated(
        s, reduction="none", cotangent=np.ones(6, np.float32), with_bias=False, chunk_size=4
    )
    wrong = np.array([False, False, True, True, True, False])
    assert (np.isnan(out) == wrong).all()
    assert (np.asarray(of_hidden)[wrong] == 0).all()
    check(of_kernel, expected(s, ~wrong, ~wrong, with_bias=False).of_kernel, "gradient of the kernel", terms=CLASSES)


# ---- errors ----------------------------------------------------------------------------------------------------------

H, W, Y = np.ones((4, 3), np.float32), np.ones((3, 5), np.float32), np.zeros(4, np.int32)
ERRORS = {
    "contraction": ((H, W.T, Y), {}, ValueError, r"kernel has shape \(5, 3\), hidden \(4, 3\): expected \[D, V\]"),
    "kernel rank": ((H, W[0], Y), {}, ValueError, r"kernel has shape \(5,\): expected two axes"),
    "kernel axis": ((H, W, Y), {"kernel_axis": 2}, ValueError, "kernel_axis is 2, kernel has 2 axes"),
    "float labels": ((H, W, Y * 1.0), {}, TypeError, "labels has dtype float.*: expected an integer type"),
    "labels' shape": ((H, W, Y[:3]), {}, ValueError, r"labels has shape \(3,\), hidden \(4, 3\): expected \(4,\)"),
    "integer hidden": ((H.astype(int), W, Y), {}, TypeError, "hidden has dtype int"),
    "bias": ((H, W, Y), {"bias": np.ones(4, np.float32)}, ValueError, r"bias has shape \(4,\), kernel \(3, 5\)"),
    "chunk": ((H, W, Y), {"chunk_size": 0}, ValueError, "chunk_size is 0: expected at least 1, or None"),
    "chunk type": ((H, W, Y), {"chunk_size": 1.5}, TypeError, "chunk_size has type float: expected int"),
    "shift": ((H, W, Y), {"shift": -1}, ValueError, "shift is -1: expected 0 or more"),
    "shift of one": ((H[0], W, np.int32(0)), {"shift": 1}, ValueError, r"shift is 1, labels has shape \(\)"),
    "where": ((H, W, Y), {"where": np.ones(3, bool)}, ValueError, r"where has shape \(3,\)"),
    "accumulate": ((H, W, Y), {"accumulate_dtype": int}, TypeError, "accumulate_dtype is int64: expected a floating"),
    "axis": ((H, W, Y), {"axis_name": "v"}, ValueError, "axis_name is 'v', but kernel does not vary over 'v'"),
    "class weights": ((H, W, Y), {"class_weights": np.ones(4)}, ValueError, r"class_weights has shape \(4,\)"),
    "normalizer": ((H, W, Y), {"normalizer": "tokens"}, ValueError, "normalizer is 'tokens'"),
    "reduction": ((H, W, Y), {"reduction": "max"}, ValueError, "reduction is 'max'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_was_found(name):
    operands, options, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        jaxloss.linear_cross_entropy(*operands, **options)


def test_the_clip_is_what_differs_from_whole_logits():
    """By default this loss is exact, and that of whole logits is not above −log 1e-7; with the same clip they are one."""
    hidden, kernel, labels = np.array([[30.0, 0.0]], np.float32), np.eye(2, dtype=np.float32), np.array([1])
    losses = {
        clip: (
            jaxloss.linear_cross_entropy(hidden, kernel, labels, **clip_of),
            jaxloss.categorical_cross_entropy(hidden @ kernel, labels, **clip_of),
        )
        for clip, clip_of in (("default", {}), ("none", {"clip": None}), ("1e-7", {"clip": 1e-7}))
    }
    tolerance.assert_ulps(losses["default"], (30.0, 16.118096), 8)
    tolerance.assert_ulps(losses["none"], (30.0, 30.0), 8)
    tolerance.assert_ulps(losses["1e-7"], (16.118096, 16.118096), 8)


def test_second_order_with_nan_in_masked_tokens():
    s = sample((10,), WIDTH, CLASSES)
    keep = np.arange(10) % 3 > 0

    def of_kernel(hidden, kernel):
        def loss(kernel):
            return jaxloss.linear_cross_entropy(hidden, kernel, s.labels, where=keep, chunk_size=4)

        return jax.grad(lambda kernel: jnp.sum(jax.grad(loss)(kernel) ** 2))(kernel)

    masked = np.where(keep[:, None], s.hidden, np.nan)
    np.testing.assert_array_equal(jax.jit(of_kernel)(masked, s.kernel), jax.jit(of_kernel)(s.hidden, s.kernel))


def test_a_bias_of_another_type_than_the_logits():
    s = sample((10,), WIDTH, CLASSES, dtype="float64")

    def of_bias(bias):
        def loss(bias):
            return jaxloss.linear_cross_entropy(s.hidden, s.kernel, s.labels, bias=bias, chunk_size=4)

        return jax.grad(loss)(bias)

    with jax.enable_x64(True):
        narrow, wide = (jax.jit(of_bias)(s.bias.astype(dtype)) for dtype in ("float32", "float64"))
    assert (narrow.dtype, wide.dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)


@pytest.mark.parametrize("function", ["linear_log_prob", "linear_cross_entropy"])
def test_the_gradient_of_a_16_bit_bias_is_summed_over_chunks_in_float32(function):
    tokens = 2048
    hidden, kernel, bias = jnp.ones((tokens, 1), "bfloat16"), jnp.zeros((1, 2), "bfloat16"), jnp.zeros(2, "bfloat16")

    def total(bias, chunk_size):
        options = {"bias": bias, "chunk_size": chunk_size}
        if function == "linear_cross_entropy":
            options["reduction"] = "none"
        return getattr(jaxloss, function)(hidden, kernel, np.zeros(tokens, np.int32), **options).sum()

    for chunk_size in (1, 16, None):
        gradient = jax.jit(jax.grad(total), static_argnums=1)(bias, chunk_size)
        assert np.abs(gradient.astype(np.float32)).tolist() == [tokens / 2] * 2
