"""Widths that are padded for tensor cores: where they are, and that no result of any kind can tell.

Every program is compared with itself at the widths that it has, on which all other tests of linear losses check it.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cross_entropy_options as samples
import jaxloss
import meshes
import tolerance
from jaxloss._linear import alignment
from linear_oracle import sample

P = PartitionSpec
N, WIDTH, CLASSES, CHUNK = 20, 7, 37, 6
S = sample((N,), WIDTH, CLASSES)
KEPT = np.arange(N) % 4 > 0


def assert_same(actual, plain, what, terms=N * CLASSES):
    """Two results of one program: floating-point numbers as sums in another order differ, all others to the bit."""
    for ours, other in zip(jax.tree.leaves(actual), jax.tree.leaves(plain), strict=True):
        assert ours.shape == other.shape
        assert ours.dtype == other.dtype
        if jnp.issubdtype(ours.dtype, jnp.floating):
            tolerance.assert_close(ours, other, what, operations=64, terms=terms, magnitude=1)
        else:
            np.testing.assert_array_equal(ours, other, what)


@pytest.fixture
def each_way(monkeypatch):
    """From a function and operands to its results on padded widths, and on those that it has."""

    def results(function, *operands):
        found = []
        for aligned in (True, False):
            monkeypatch.setattr(alignment, "forced", aligned)
            found.append(jax.jit(lambda *operands: function(*operands))(*operands))
        return found

    return results


# ---- which are -------------------------------------------------------------------------------------------------------

ALIGNED = {
    "odd classes": ((16384, 2048, 50257, "bfloat16"), True),
    "classes of 4": ((16384, 2048, 50260, "float16"), True),
    "odd features": ((16384, 2047, 50264, "bfloat16"), True),
    "few tokens": ((511, 2048, 50257, "bfloat16"), False),
    "enough tokens": ((512, 2048, 50257, "bfloat16"), True),
    "no tokens": ((0, 2048, 50257, "bfloat16"), False),
    "aligned": ((16384, 2048, 50264, "bfloat16"), False),
    "float32": ((16384, 2048, 50257, "float32"), False),
    "float64": ((16384, 2048, 50257, "float64"), False),
    "few classes": ((16384, 2048, 127, "bfloat16"), False),
    "few features": ((16384, 65, 50257, "bfloat16"), False),
}


@pytest.mark.parametrize("case", ALIGNED)
def test_where_widths_are_padded(case):
    arguments, expected = ALIGNED[case]
    assert alignment.aligning_platforms(*arguments) == (("cuda",) if expected else ())


def test_sizes_that_only_a_call_knows_are_not_padded():
    (size,) = jax.export.symbolic_shape("size")
    for place in range(3):
        sizes = [16384, 2048, 50257]
        sizes[place] = size
        assert alignment.aligning_platforms(*sizes, "bfloat16") == ()


def of_tokens(tokens, width, classes, kernel_axis, dtype="bfloat16"):
    """The shapes of operands."""
    kernel = (width, classes) if kernel_axis else (classes, width)
    shapes = ((tokens, width), dtype), (kernel, dtype), ((tokens,), "int32")
    return [jax.ShapeDtypeStruct(*each) for each in shapes]


def loss(hidden, kernel, labels, **options):
    return jaxloss.linear_cross_entropy(hidden, kernel, labels, **{"chunk_size": 256, **options})


def rows(hidden, kernel, labels, **options):
    return jnp.sum(jnp.sin(jaxloss.linear_log_prob(hidden, kernel, labels, **{"chunk_size": 256, **options})))


def of_statistics(tokens):
    return (tokens.log_prob * tokens.lse - tokens.entropy).sum()


def objective(hidden, kernel, labels, **options):
    return jaxloss.linear_objective(
        hidden, kernel, labels, of_statistics, per="token", **{"chunk_size": 256, **options}
    )


PROGRAMS = {
    "mean": jax.value_and_grad(loss, (0, 1)),
    "value": loss,
    "rows": jax.value_and_grad(rows, (0, 1)),
    "objective": jax.value_and_grad(objective, (0, 1)),
}


def assert_summed_alike(actual, expected) -> None:
    """Results of products that add up in another order, and of sums over classes and tokens; integers are equal."""
    if jnp.issubdtype(actual.dtype, jnp.integer):
        np.testing.assert_array_equal(actual, expected)
    else:
        tolerance.assert_close(actual, expected, "the result", terms=WIDTH + CLASSES + N)


WIDTHS = {"classes": (136, 1001), "features": (135, 1008), "both": (131, 1001)}


@pytest.mark.cpu_only
@pytest.mark.parametrize("kernel_axis", [-1, 0])
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_products_on_a_gpu_have_aligned_widths(program, widths, kernel_axis):
    shapes = of_tokens(600, *WIDTHS[widths], kernel_axis)
    step = jax.jit(lambda *operands: PROGRAMS[program](*operands, kernel_axis=kernel_axis))
    text = step.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    products = re.findall(r"dot_general .*: \((.*)\) -> (.*)", text)
    assert len(products) >= 1
    for product in products:
        features_and_classes = {int(size) for size in re.findall(r"(\d+)x", " ".join(product))} - {600, 256, 200}
        assert features_and_classes <= {136, 1008}


def test_padding_is_to_a_multiple_of_64_where_that_is_little():
    widths = {50257: 50304, 50264: 50264, 32001: 32064, 4099: 4160, 2001: 2008, 135: 136, 136: 136}
    assert {width: width + alignment.padding(width) for width in widths} == widths


@pytest.mark.cpu_only
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_cpu_compiles_what_it_compiles_without(program, monkeypatch):
    def instructions(aligned):
        monkeypatch.setattr(alignment, "forced", aligned)
        step = jax.jit(lambda *operands: PROGRAMS[program](*operands))
        text = step.lower(*of_tokens(600, *WIDTHS["both"], -1)).compile().as_text()
        return re.findall(r" = (\S+ [\w-]+)\(", text)

    assert instructions(None) == instructions(False) != instructions(True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kernel_axis", [-1, 0])
@pytest.mark.parametrize("program", PROGRAMS)
def test_aligned_widths_are_one_program(program, kernel_axis, dtype, monkeypatch):
    shapes = of_tokens(600, 136, 1008, kernel_axis, dtype)
    texts = set()
    for aligned in (None, True, False):
        monkeypatch.setattr(alignment, "forced", aligned)
        step = jax.jit(lambda *operands: PROGRAMS[program](*operands, kernel_axis=kernel_axis))
        texts.add(step.lower(*shapes).as_text())
    assert len(texts) == 1


@pytest.mark.cpu_only
@pytest.mark.parametrize("kernel_axis", [-1, 0])
def test_memory_is_one_kernel_more(kernel_axis, monkeypatch):
    """In one chunk; and in many where, as of 16-bit operands, the sum has a type of its own."""
    shapes = of_tokens(256, 128, 2001, kernel_axis, "float32")
    temporary = {}
    for aligned in (True, False):
        monkeypatch.setattr(alignment, "forced", aligned)
        step = jax.jit(lambda *operands: PROGRAMS["mean"](*operands, kernel_axis=kernel_axis))
        temporary[aligned] = step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert temporary[True] <= temporary[False] + 4 * (128 * 2008 + 256 * 8)


# ---- that nothing can tell -------------------------------------------------------------------------------------------

ON = samples.on(samples.TRACED, CLASSES)
CALLS = {
    "plain": {},
    "classes first": {"kernel_axis": 0},
    "one chunk": {"chunk_size": 100},
    "masked": {"where": KEPT},
    "weighted": {"weights": np.linspace(0, 2, N, dtype=np.float32), "reduction": "sum"},
    "shift": {"shift": 1, "ignore_index": 3},
    "num_classes": {"num_classes": CLASSES - 4, "label_smoothing": 0.125},
    "by weights": {"class_weights": ON["class_weights"], "normalizer": "weights"},
    "clip": {"clip": 0.05},
    **{name: {name: value} for name, value in ON.items()},
    "all": {**ON, "num_classes": CLASSES - 4},
}


@pytest.mark.parametrize("call", CALLS)
def test_options(call, each_way):
    given = {"chunk_size": CHUNK, **CALLS[call]}
    kernel = S.kernel.T if given.get("kernel_axis") == 0 else S.kernel
    traced = {name: jnp.asarray(given.pop(name)) for name in samples.TRACED if name in given}

    def run(hidden, kernel, bias, traced):
        def of(hidden, kernel, bias, traced):
            loss, stats = jaxloss.linear_cross_entropy_with_stats(
                hidden, kernel, S.labels, bias=bias, **traced, **given
            )
            return loss + jnp.sum(jnp.where(KEPT, stats.lse * stats.entropy + jnp.sin(stats.nll), 0)), stats

        def alone(hidden, kernel, bias, traced):
            return jaxloss.linear_cross_entropy(hidden, kernel, S.labels, bias=bias, **traced, **given)

        by = (0, 1, 2, 3)
        gradients = jax.value_and_grad(of, by, has_aux=True)(hidden, kernel, bias, traced)
        return gradients, jax.value_and_grad(alone, by)(hidden, kernel, bias, traced)

    assert_same(*each_way(run, S.hidden, kernel, S.bias, traced), call)


def test_a_label_out_of_range_is_no_class_of_the_padding(each_way):
    labels = np.array([0, 36, 37, 38, 39, 40, -1, 2**30], np.int32)

    def run(hidden, kernel):
        return jaxloss.linear_cross_entropy(hidden, kernel, labels, reduction="none")

    padded, plain = each_way(run, S.hidden[:8], S.kernel)
    assert np.isnan(padded).tolist() == np.isnan(plain).tolist() == [False, False, *[True] * 6]


def test_what_is_not_finite(each_way):
    """Of tokens that are masked, and classes that a bias masks: labels among them too."""
    hidden = np.where(KEPT[:, None], S.hidden, np.nan)
    bias = np.where(np.isin(np.arange(CLASSES), [0, S.labels[1], CLASSES - 1]), -np.inf, S.bias)

    def run(hidden, kernel, bias):
        def of(hidden, kernel):
            return jaxloss.linear_cross_entropy_with_stats(
                hidden, kernel, S.labels, bias=bias, where=KEPT, chunk_size=CHUNK, label_smoothing=0.0, clip=1e-3
            )

        return jax.value_and_grad(of, (0, 1), has_aux=True)(hidden, kernel)

    padded, plain = each_way(run, hidden, S.kernel, bias)
    assert not np.isfinite(plain[0][1].nll).all()
    for ours, other in zip(jax.tree.leaves(padded), jax.tree.leaves(plain), strict=True):
        assert_summed_alike(ours, other)


TRANSFORMS = {
    "rows": lambda f, o: jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a, "none"))), (0, 1, 2))(*o),
    "rows of hidden": lambda f, o: jax.vjp(lambda h: f(h, *o[1:], "none"), o[0])[1](jnp.cos(jnp.arange(N) * 1.0)),
    "jvp": lambda f, o: jax.jvp(lambda *a: f(*a, "none"), o, jax.tree.map(jnp.cos, o)),
    "hvp": lambda f, o: jax.jvp(jax.grad(lambda *a: f(*a, "mean"), (0, 1, 2)), o, jax.tree.map(jnp.cos, o)),
    "reverse over reverse": lambda f, o: jax.grad(
        lambda *a: sum(jnp.vdot(g, g) for g in jax.grad(lambda *b: f(*b, "mean"), (0, 1, 2))(*a)), (0, 1, 2)
    )(*o),
    "vmap": lambda f, o: jax.vmap(jax.value_and_grad(lambda *a: f(*a, "mean"), (0, 1, 2)))(
        *(jnp.stack([x, 2 * x]) for x in o)
    ),
    "vmap of hidden": lambda f, o: jax.vmap(lambda h: f(h, *o[1:], "none"))(jnp.stack([o[0], 2 * o[0]])),
    "checkpoint": lambda f, o: jax.grad(jax.checkpoint(lambda *a: f(*a, "mean")), (0, 1, 2))(*o),
}


def ours(hidden, kernel, bias, reduction):
    options = {"reduction": reduction, "chunk_size": CHUNK, "softcap": 4.0, "where": KEPT}
    return jaxloss.linear_cross_entropy(hidden, kernel, S.labels, bias=bias, **options)


def of_objective(hidden, kernel, bias, reduction):
    total = jaxloss.linear_objective(
        *(hidden[None], kernel, S.labels[None], of_statistics),
        bias=bias,
        softcap=4.0,
        where=KEPT[None],
        chunk_size=CHUNK,
    )
    # Of hundreds, the sine that `TRANSFORMS` take would be mostly the total's rounding.
    return total / 16 if reduction == "mean" else total / 16 * jnp.ones(N)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("function", [ours, of_objective])
def test_transforms(function, name, each_way):
    def run(*operands):
        return TRANSFORMS[name](function, operands)

    assert_same(*each_way(run, *map(jnp.asarray, (S.hidden, S.kernel, S.bias))), name, terms=N * N * CLASSES)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_platform_decides_once_it_is_known(dtype, monkeypatch, retraced):
    """Through the choice that is made as a program is lowered, in every order of derivatives."""
    s = sample((N,), WIDTH, CLASSES, dtype=dtype)

    def run(hidden, kernel, bias):
        of_objective = jax.value_and_grad(objective, (0, 1))(hidden, kernel, s.labels, bias=bias, chunk_size=CHUNK)
        return of_objective, [TRANSFORMS[name](ours, (hidden, kernel, bias)) for name in ("rows", "hvp", "vmap")]

    plain = jax.jit(run)(s.hidden, s.kernel, s.bias)
    jax.clear_caches()
    monkeypatch.setattr(alignment, "aligning_platforms", lambda *_: ("cpu", "cuda"))
    lowered = jax.jit(run).lower(s.hidden, s.kernel, s.bias)
    assert re.search(rf"dot_general .*x{CLASSES}x", lowered.as_text()) is None
    padded = lowered.compile()(s.hidden, s.kernel, s.bias)
    for actual, of in zip(jax.tree.leaves(padded), jax.tree.leaves(plain), strict=True):
        # The same 16-bit numbers are summed in another order, and then rounded.
        actual, of = (np.asarray(x, np.float32) for x in (actual, of))
        np.testing.assert_allclose(actual, of, rtol=0.05, atol=0.02 * max(1e-3, np.abs(of).max()))


# ---- on several devices ----------------------------------------------------------------------------------------------


@pytest.fixture
def split():
    """A vocabulary whose slices are odd, on two devices or four."""
    classes = 11 * meshes.mesh(axes=("v",)).shape["v"]
    return sample((8, 6), WIDTH, classes)


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
@pytest.mark.parametrize("options", [{}, {"num_classes": 9}, {"num_classes": 15, "label_smoothing": 0.125}, ON])
def test_axis_name(split, options, each_way):
    mesh, classes = meshes.mesh(axes=("v",)), split.kernel.shape[1]
    if options.get("num_classes", 0) > classes:
        pytest.skip("there are as many classes on a larger mesh only")
    options = {name: value for name, value in options.items() if name != "class_weights"}
    labels = split.labels % options.get("num_classes", classes)
    bias = np.where(np.arange(classes) % 5 == 2, -np.inf, split.bias)
    weights = np.linspace(0.5, 2, classes, dtype=np.float32)

    def run(hidden, kernel, bias, weights):
        def local(hidden, kernel, bias, weights, labels):
            given = {"bias": bias, "class_weights": weights, "axis_name": "v", "chunk_size": CHUNK, "where": labels > 0}

            def of(hidden, kernel):
                loss, stats = jaxloss.linear_cross_entropy_with_stats(
                    hidden, kernel, labels, reduction="sum", **given, **options
                )
                return loss + jnp.sum(jnp.where(jnp.isfinite(stats.nll), stats.lse + stats.entropy, 0)), stats

            (value, stats), gradients = jax.value_and_grad(of, (0, 1), has_aux=True)(hidden, kernel)
            return jax.lax.psum(value, "d"), stats, (gradients[0], jax.lax.psum(gradients[1], "d"))

        specs = P("d"), P(None, "v"), P("v"), P("v"), P("d")
        results = P(), P("d"), (P("d"), P(None, "v"))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=results, check_vma=True)(
            hidden, kernel, bias, weights, labels
        )

    def whole(hidden, kernel, bias, weights):
        return jaxloss.linear_cross_entropy_with_stats(
            *(hidden, kernel, labels), bias=bias, class_weights=weights, where=labels > 0, reduction="sum", **options
        )[1]

    operands = split.hidden, split.kernel, bias, weights
    padded, plain = each_way(run, *operands)
    for actual, of in zip(jax.tree.leaves(padded), jax.tree.leaves(plain), strict=True):
        assert_summed_alike(actual, of)
    stats = jax.jit(whole)(*operands)
    np.testing.assert_array_equal(padded[1].predicted, stats.predicted)
    np.testing.assert_array_equal(padded[1].rank, stats.rank)


PLACEMENTS = {
    "classes": (P(), P(None, "v")),
    "batch and classes": (P("d"), P(None, "v")),
    "fsdp and classes": (P("d"), P("d", "v")),
    "fsdp over classes": (P("d"), P(None, "d")),
    "fsdp over both": (P(("d", "v")), P(None, ("d", "v"))),
}


@pytest.mark.several_devices
@pytest.mark.skipif(meshes.count() == 0, reason="jax has fewer devices than a mesh needs")
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("tokens", [(8, 2), (8, 24)], ids=["few", "many"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placements(placement, tokens, axis_type, each_way):
    """Few tokens are re-sharded. The features are odd too where nothing splits them."""
    hidden, kernel = PLACEMENTS[placement]
    mesh = meshes.mesh(axis_type, meshes.axes_of(hidden, kernel))
    devices = mesh.devices.size
    s = sample(tokens, 12 if kernel[0] else 7, 5 * devices if tokens[1] > 2 else 25 * devices)
    specs = hidden, kernel, P(*hidden[:1]), P(*kernel[1:])

    def run(hidden, kernel, labels, bias):
        def loss(hidden, kernel, bias, reduction):
            options = {"bias": bias, "reduction": reduction, "chunk_size": 8}
            return jaxloss.linear_cross_entropy_with_stats(hidden, kernel, labels, **options)

        def of_rows(*operands):
            losses, stats = loss(*operands, "none")
            return jnp.sum(losses * jnp.cos(labels) + stats.entropy)

        summed = jax.value_and_grad(lambda *o: loss(*o, "mean"), (0, 1, 2), has_aux=True)(hidden, kernel, bias)
        return summed, jax.grad(of_rows, (0, 1, 2))(hidden, kernel, bias)

    with jax.set_mesh(mesh):
        arrays = zip((s.hidden, s.kernel, s.labels, s.bias), specs, strict=True)
        operands = [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in arrays]
        padded, plain = each_way(run, *operands)
    assert_same(jax.device_get(padded), jax.device_get(plain), placement)
    assert padded[0][1][1].sharding == plain[0][1][1].sharding
