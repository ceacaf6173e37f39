"""`axis_name=`: the caller's shard_map has split the vocabulary; every transform gives what the unsplit loss gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
import meshes
import tolerance
from losses import MATRIX
from modules import exchanged
from quickly import jit_quickly
from transforms import HIGHER_ORDER, TRANSFORMS, TRANSFORMS_OF_TARGET, Operands

pytestmark = meshes.several_devices

SHAPE = (8, 24)
ROWS = [case for case in MATRIX if case.loss.by_rows]
# How the classes and the rows are split over the mesh axes d and v.
SPLITS = {"classes": ("v", None), "classes_twice": (("d", "v"), None), "both": ("v", "d")}
NAMES = ("value_and_grad", "vmap_grad", "grad_vmap", "jvp", "linearize", "scan_checkpoint", "checkpoint")
NAMES += ("forward_over_reverse", "reverse_over_reverse", "reverse_over_forward", "third_order")
NAMES_OF_TARGET = ("value_and_grad_of_both", "jvp_of_both", "mixed_forward_over_reverse")


def mesh_of(split="classes"):
    return meshes.mesh(axes=meshes.axes_of(P(*SPLITS[split])))


def in_slices(case, split, reduction):
    """The loss of whole arrays without a clip, computed in a shard_map that holds slices of them."""
    classes, rows = SPLITS[split]
    exact = {"clip": None} if case.loss.has_clip else {}

    def loss(x, a):
        target_spec = P(rows) if a.ndim == 1 else P(rows, classes)

        def of_slice(x, a):
            n = float(SHAPE[0]) if reduction == "mean" else None
            losses = case.loss(x, a, axis_name=classes, reduction=reduction, normalizer=n, **exact)
            return losses if reduction == "none" or rows is None else jax.lax.psum(losses, rows)

        out = P(rows) if reduction == "none" else P()
        specs = (P(rows, classes), target_spec)
        return contracted(jax.shard_map(of_slice, mesh=mesh_of(split), in_specs=specs, out_specs=out)(x, a))

    return loss


def contracted(losses):
    return jnp.sum(losses * jnp.cos(jnp.arange(losses.size)).reshape(losses.shape).astype(losses.dtype))


def operands(case) -> Operands:
    (x, a), (v, w), (y, b) = (case.sample(SHAPE, seed=seed, scale=1) for seed in range(3))
    return Operands(x, a, v, w if case.of_target else a, np.stack([x, y]), np.stack([a, b]))


CELLS = [
    pytest.param(case, name, id=f"{case}-{name}")
    for case in ROWS
    for name in (*NAMES, *(NAMES_OF_TARGET if case.of_target else ()))
]


@pytest.mark.parametrize(
    ("split", "reduction"), [("classes", "mean"), ("classes_twice", "mean"), ("both", "mean"), ("both", "none")]
)
@pytest.mark.parametrize(("case", "name"), CELLS)
def test_agrees_with_the_formula(case, name, split, reduction):
    transform, o = {**TRANSFORMS, **TRANSFORMS_OF_TARGET}[name], operands(case)
    actual = jit_quickly(lambda o: transform(in_slices(case, split, reduction), o))(o)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact = jax.tree.map(lambda t: t if t.dtype.kind == "i" else t.astype(np.float64), o)
        formula = lambda x, a: contracted(case.formula(x, a, reduction=reduction))  # noqa: E731
        run = jit_quickly(lambda o: transform(formula, o))
        expected = jax.tree.map(np.asarray, run(exact))
    operations = tolerance.OPERATIONS_OF_HIGHER_ORDER if name in HIGHER_ORDER else tolerance.OPERATIONS
    for ours, ideal in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        tolerance.assert_close(
            ours,
            ideal,
            name,
            operations=operations,
            terms=ours.size,
            magnitude=1 if reduction == "none" else 1 / SHAPE[0],
        )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", ROWS)
def test_exchanges_only_numbers_of_one_a_row(case, split):
    (classes, rows), mesh = SPLITS[split], mesh_of(split)
    x, a = case.sample(SHAPE)
    place = lambda t, *spec: jax.device_put(t, NamedSharding(mesh, P(*spec)))  # noqa: E731
    x, a = place(x, rows, classes), place(a, rows) if a.ndim == 1 else place(a, rows, classes)
    compiled = jit_quickly(jax.value_and_grad(in_slices(case, split, "mean"))).lower(x, a).compile()
    found = exchanged(compiled)
    assert found or split == "both"  # of two devices, each holds whole rows
    for kind, size in found:
        assert kind == "all-reduce", (kind, size)
        assert size <= SHAPE[0]
    assert compiled(x, a)[1].sharding.is_equivalent_to(x.sharding, x.ndim)


def test_a_label_is_an_index_of_the_whole_vocabulary():
    x, _ = ROWS[0].sample(SHAPE)
    labels = np.array([0, 11, 12, 23, 24, -1, 5, 2**30], np.int32)
    expected = jaxloss.categorical_cross_entropy(x, labels, reduction="none")
    assert np.isnan(expected).tolist() == [False, False, False, False, True, True, False, True]

    def rows(x):
        spec = P(None, "v")
        of_slice = lambda x: jaxloss.categorical_cross_entropy(x, labels, axis_name="v", reduction="none")  # noqa: E731
        return jax.shard_map(of_slice, mesh=mesh_of(), in_specs=spec, out_specs=P())(x)

    error = tolerance.bound(expected, np.nanmax(expected), computed=np.float32, stored=np.float32)
    tolerance.assert_within(rows(x), expected, error, "losses of rows")
    gradient = jax.grad(lambda x: jnp.where(np.isnan(expected), 0, rows(x)).sum())(x)
    assert (np.asarray(gradient)[[4, 5, 7]] == 0).all()


@pytest.mark.parametrize("check_vma", [True, False])
def test_an_axis_that_does_not_split_the_classes_is_an_error(check_vma):
    x, a = ROWS[0].sample(SHAPE)
    with pytest.raises(ValueError, match=r"axis_name is 'v', but logits does not vary over 'v'.*check_vma=True"):
        jaxloss.categorical_cross_entropy(x, a, axis_name="v")
    split = P("d") if check_vma else P(None, "v")  # unchecked types do not say what an array varies over
    with pytest.raises(ValueError, match=r"axis_name is 'v', but logits does not vary over 'v'"):
        jax.shard_map(
            lambda x: jaxloss.categorical_cross_entropy(x, np.zeros(x.shape[0], np.int32), axis_name="v"),
            mesh=mesh_of(),
            in_specs=split,
            out_specs=P(),
            check_vma=check_vma,
        )(x)
