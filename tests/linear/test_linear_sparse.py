"""Linear cross entropy of some classes of each token: as that of whole logits, in the products and memory of labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxloss
import meshes
import tolerance
from linear_oracle import sample
from modules import exchanged, of_size
from quickly import jit_quickly
from test_linear_compiled import CHUNK, WIDTH, N, assert_products_and_memory, compiled, products
from test_linear_compiled import CLASSES as WIDE

P = PartitionSpec
SEQUENCES, LENGTH, FEATURES, CLASSES, K = 8, 3, 5, 14, 3
S = sample((SEQUENCES, LENGTH), FEATURES, CLASSES)
RNG = np.random.default_rng(0)
INDICES = np.argsort(RNG.random((SEQUENCES, LENGTH, CLASSES)), -1)[..., :K].astype(np.int32)
SHARES = RNG.dirichlet(np.ones(K + 1), (SEQUENCES, LENGTH))[..., :K].astype(np.float32)
INDICES[0, 0], SHARES[0, 0] = -1, 0
OPERANDS = S.hidden, S.kernel, S.bias
ALL = (0, 1, 2)
WEIGHTS = np.cos(np.arange(SEQUENCES * LENGTH)).reshape(SEQUENCES, LENGTH).astype(np.float32)
OPTIONS = {
    "plain": {},
    "spread": {"remainder": "spread"},
    "masked": {"where": WEIGHTS > -0.5, "weights": WEIGHTS, "normalizer": "weights"},
    "with options": {"remainder": "spread", "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "temperature": 1.3},
    "class weights": {"class_weights": np.linspace(0.5, 2, CLASSES).astype(np.float32), "normalizer": "weights"},
    "padded": {"remainder": "spread", "num_classes": CLASSES - 1},
    "clipped": {"clip": 0.1, "remainder": "spread"},
}
LISTED = np.minimum(INDICES, CLASSES - 2), SHARES


def ours(hidden, kernel, bias, target=LISTED, **options):
    return jaxloss.linear_cross_entropy(hidden, kernel, target, bias=bias, **{"chunk_size": 5, **options})


def whole(hidden, kernel, bias, target=LISTED, **options):
    return jaxloss.categorical_cross_entropy(hidden @ kernel + bias, target, **{"clip": None, **options})


assert_near = functools.partial(tolerance.assert_trees_near, of_largest=5e-6)


def programs(loss, options):
    """Value and gradients, reduced and not, a second derivative, and a batch."""

    def mean(*operands):
        return loss(*operands, **options)

    def rows(*operands):
        unreduced = {name: option for name, option in options.items() if name != "normalizer"}
        return (loss(*operands, reduction="none", **unreduced) * WEIGHTS).sum()

    def run(*operands):
        batch = jax.vmap(jax.value_and_grad(mean, ALL), (0, None, None))
        return [
            *(jax.value_and_grad(f, ALL)(*operands) for f in (mean, rows)),
            jax.jvp(jax.grad(mean, ALL), operands, operands),
            batch(jnp.stack([operands[0], 0.5 * operands[0]]), *operands[1:]),
        ]

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("with options",) else [pytest.mark.slow]) for name in OPTIONS]
)
def test_as_of_whole_logits(name):
    actual, expected = (jit_quickly(programs(loss, OPTIONS[name]))(*OPERANDS) for loss in (ours, whole))
    assert_near(actual, expected, of_largest=2e-5)


def test_shift():
    """The classes that a token is to predict are those of the next place."""
    shifted = jax.value_and_grad(ours, ALL)(*OPERANDS, (INDICES, SHARES), shift=1)

    def by_hand(hidden, *rest):
        return whole(hidden[:, :-1], *rest, (INDICES[:, 1:], SHARES[:, 1:]))

    assert_near(shifted, jax.value_and_grad(by_hand, ALL)(*OPERANDS))


def test_a_frozen_teacher():
    gradient = jax.grad(lambda shares: ours(*OPERANDS, (INDICES, shares)))(SHARES)
    assert (gradient == 0).all()


@pytest.mark.parametrize("remainder", ["drop", "spread"])
def test_products_and_memory(remainder):
    """Those of labels: the listed logits are read, and their gradient is written, where a chunk's are."""
    s = sample((N,), WIDTH, WIDE)
    indices = np.argsort(RNG.random((N, WIDE)), -1)[:, :K].astype(np.int32)
    shares = np.full((N, K), 0.25, np.float32)

    def loss(hidden, kernel, indices, shares):
        return jaxloss.linear_cross_entropy(hidden, kernel, (indices, shares), chunk_size=CHUNK, remainder=remainder)

    module = compiled(jax.value_and_grad(loss, (0, 1)), s.hidden, s.kernel, indices, shares)
    if remainder == "drop":
        assert_products_and_memory(module, 3)
    assert products(module) == 3
    assert of_size(module, N * WIDE) == [], "logits are whole"


PLACEMENTS = {
    "tokens": (P("d"), P()),
    "fsdp": (P("d"), P("d")),
    "classes": (P(), P(None, "v")),
    "both": (P("d"), P(None, "v")),
}


@pytest.mark.several_devices
@meshes.AXIS_TYPES
@pytest.mark.parametrize(
    "placement", [pytest.param(name, marks=[] if name in ("both",) else [pytest.mark.slow]) for name in PLACEMENTS]
)
def test_placements(placement, axis_type):
    if not meshes.count():
        pytest.skip("jax has fewer devices than a mesh needs")
    options = {"remainder": "spread", "z_loss": 0.01}
    s = sample((SEQUENCES, LENGTH), 8, 16)
    operands = s.hidden, s.kernel, s.bias

    def run(loss):
        def of(hidden, kernel, bias, indices, shares):
            f = lambda *o: loss(*o, (indices, shares), **options)  # noqa: E731
            given = hidden, kernel, bias
            return jax.value_and_grad(f, ALL)(*given), jax.jvp(jax.grad(f, ALL), given, given)[1]

        return jit_quickly(of)

    expected = run(whole)(*operands, *LISTED)
    mesh = meshes.mesh(axis_type, meshes.axes_of(*PLACEMENTS[placement]))
    hidden, kernel = PLACEMENTS[placement]
    tokens = P(*hidden[:1])
    with jax.set_mesh(mesh):
        given = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip((*operands, *LISTED), (hidden, kernel, P(*kernel[1:]), tokens, tokens), strict=True)
        ]
        module = run(ours).lower(*given).compile()
        results = module(*given)
    assert_near(results, expected, of_largest=2e-5)
    if placement == "fsdp" and mesh.shape["d"] > 1:
        assert exchanged(module)["all-gather", 8 * 16] >= 1


@pytest.mark.several_devices
def test_axis_name():
    if not meshes.count():
        pytest.skip("jax has fewer devices than a mesh needs")
    mesh = meshes.mesh(axes=("v",))
    options = {"remainder": "spread", "label_smoothing": 0.1}

    def split(hidden, kernel, bias):
        def local(hidden, kernel, bias):
            return ours(hidden, kernel, bias, axis_name="v", **options)

        return jax.shard_map(local, mesh=mesh, in_specs=(P(), P(None, "v"), P("v")), out_specs=P())(
            hidden, kernel, bias
        )

    results = [jit_quickly(jax.value_and_grad(f, ALL))(*OPERANDS) for f in (split, lambda *o: whole(*o, **options))]
    assert_near(*results)


ERRORS = {
    "shape": (
        (INDICES[0], SHARES[0]),
        {},
        ValueError,
        r"^labels\[0\] has shape \(3, 3\), hidden \(8, 3, 5\): expected \(8, 3, K\) class",
    ),
    "type": ((SHARES, SHARES), {}, TypeError, r"^labels\[0\] has dtype float32: expected an integer type"),
    "unequal": (
        (INDICES, SHARES[..., :1]),
        {},
        ValueError,
        r"^labels\[1\] has shape \(8, 3, 1\), labels\[0\] \(8, 3, 3\)",
    ),
    "three": (
        (INDICES, SHARES, 1),
        {},
        ValueError,
        r"^labels is a tuple of 3: expected an array of class indices, or \(indices, prob",
    ),
    "ignore_index": (
        LISTED,
        {"ignore_index": 1},
        ValueError,
        r"^ignore_index is 1, labels list classes: expected None",
    ),
    "margin": (LISTED, {"margin": 0.2}, ValueError, r"^margin changes the logit of one label, labels lists classes"),
    "remainder": (
        S.labels,
        {"remainder": "spread"},
        ValueError,
        r"^remainder is 'spread': expected 'drop', for the labels is no pair",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    labels, options, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        jaxloss.linear_cross_entropy(S.hidden, S.kernel, labels, **options)


@pytest.mark.parametrize("function", ["linear_log_prob", "linear_cross_entropy_with_stats"])
def test_functions_of_labels_alone(function):
    with pytest.raises(TypeError, match="labels is a tuple of 2: expected an array of class indices"):
        getattr(jaxloss, function)(S.hidden, S.kernel, LISTED)


def test_debug_checks():
    with (
        pytest.raises(ValueError, match=r"labels\[0\] of row .* is -6: expected a class index"),
        jaxloss.debug_checks(),
    ):
        ours(*OPERANDS, (np.where(INDICES < 0, 0, -INDICES), SHARES))
    with jaxloss.debug_checks():
        ours(*OPERANDS, shift=1)
