"""Exported programs whose number of classes, or of rows and classes, is a symbol until they are called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import cross_entropy_options as samples
import jaxloss
import tolerance
from jaxloss import optax as drop_ins
from losses import ELEMENTWISE
from quickly import QUICKLY

pytestmark = pytest.mark.cpu_only

WIDTH = 4  # of hidden states
OPTIONS = samples.numbers()
cross_entropy, linear = jaxloss.categorical_cross_entropy, jaxloss.linear_cross_entropy


def with_gradient(loss, places=0):
    return jax.value_and_grad(lambda *operands: loss(*operands).sum(), places)


def second_order(loss):
    return lambda x, *rest: jax.jvp(jax.grad(lambda x: loss(x, *rest).sum()), (x,), (x,))


def by_weights(x, labels, weights, **options):
    return cross_entropy(x, labels, class_weights=weights, normalizer="weights", **options)


def unreduced(x, labels):
    return cross_entropy(x, labels, reduction="none")


def linear_with_options(hidden, kernel, labels, weights):
    return linear(hidden, kernel, labels, bias=weights, class_weights=weights, normalizer="weights", **OPTIONS)


def binary_with_options(x, a, weights):
    return jaxloss.binary_cross_entropy(
        x, a, class_weights=weights, pos_weight=weights, label_smoothing=0.125, focal_gamma=1.5, focal_alpha=0.375
    )


PROGRAMS = {
    "labels": {
        "mean": ("x labels", with_gradient(cross_entropy)),
        "none": ("x labels", with_gradient(unreduced)),
        "value": ("x labels", cross_entropy),
        "gradient": ("x labels", jaxloss.d_categorical_cross_entropy),
        "axis": ("classes_first labels", with_gradient(lambda x, y: cross_entropy(x, y, axis=0))),
        "unsigned": ("x labels", with_gradient(lambda x, y: cross_entropy(x, y.astype(jnp.uint32)))),
        "left out": (
            "x labels",
            with_gradient(lambda x, y: cross_entropy(x, y, ignore_index=1, where=y > 0, weights=y)),
        ),
        "vmap": ("x labels", jax.vmap(jax.grad(cross_entropy))),
        "second order": ("x labels", second_order(cross_entropy)),
        "second order, none": ("x labels", second_order(unreduced)),
    },
    "options": {
        "probabilities": ("x a", with_gradient(cross_entropy, (0, 1))),
        "smoothing": ("x labels", with_gradient(lambda x, y: cross_entropy(x, y, label_smoothing=0.125))),
        "all": ("x labels weights", with_gradient(lambda *o: by_weights(*o, **OPTIONS), (0, 2))),
        "all, second order": ("x labels weights", second_order(lambda *o: by_weights(*o, **OPTIONS))),
        "padding": ("x labels", with_gradient(lambda x, y: cross_entropy(x, y, num_classes=3, label_smoothing=0.125))),
        "mixed": ("x labels", with_gradient(lambda x, y: cross_entropy(x, (y, y[::-1], 0.25), label_smoothing=0.125))),
    },
    "statistics": {
        "all": ("x labels", jaxloss.categorical_cross_entropy_with_stats),
        "gradient": ("x labels", with_gradient(lambda *o: jaxloss.categorical_cross_entropy_with_stats(*o)[1].nll)),
        "left out": ("x labels", lambda x, y: jaxloss.categorical_cross_entropy_with_stats(x, y, where=y > 0)),
        "log_prob": ("x labels", with_gradient(jaxloss.log_prob)),
        "entropy": ("x", with_gradient(jaxloss.entropy)),
    },
    "divergences": {
        "kl of logits": ("x a", with_gradient(lambda x, a: jaxloss.kl_divergence(x, a, target_type="logits"))),
        "kl": ("x a", with_gradient(jaxloss.kl_divergence, (0, 1))),
        "js": ("x a", with_gradient(jaxloss.jensen_shannon, (0, 1))),
        "js, none": ("x a", with_gradient(lambda x, a: jaxloss.jensen_shannon(x, a, reduction="none"))),
    },
    "elementwise": {
        **{loss.name: ("x a", with_gradient(loss)) for loss in ELEMENTWISE},
        "mse, none": ("x a", with_gradient(lambda x, a: jaxloss.mse(x, a, reduction="none"))),
        "mse of a vector": ("weights weights", with_gradient(jaxloss.mse)),
        "mae, left out": ("x a", with_gradient(lambda x, a: jaxloss.mae(x, a, where=x > 0))),
        "gaussian": ("x a", with_gradient(lambda x, a: jaxloss.gaussian_nll(x, a, x * x + 1))),
        "binary": ("x a", with_gradient(jaxloss.binary_cross_entropy)),
        "binary with options": ("x a weights", with_gradient(binary_with_options)),
    },
    "linear": {
        "mean": ("hidden kernel labels", with_gradient(linear, (0, 1))),
        "none": ("hidden kernel labels", with_gradient(lambda *o: linear(*o, reduction="none"), (0, 1))),
        "classes first": ("hidden table labels", with_gradient(lambda *o: linear(*o, kernel_axis=0), (0, 1))),
        "shift": ("hidden kernel labels", with_gradient(lambda *o: linear(*o, shift=1), (0, 1))),
        "options": ("hidden kernel labels weights", with_gradient(linear_with_options, (0, 1, 3))),
        "statistics": ("hidden kernel labels", jaxloss.linear_cross_entropy_with_stats),
    },
    "drop-ins": {
        "probabilities": ("x a", with_gradient(drop_ins.softmax_cross_entropy)),
        "labels": ("x labels", with_gradient(drop_ins.softmax_cross_entropy_with_integer_labels)),
        "binary": ("x a", with_gradient(drop_ins.sigmoid_binary_cross_entropy)),
        "poly": ("x a", with_gradient(drop_ins.poly_loss_cross_entropy)),
        "ranking": ("x a", with_gradient(drop_ins.ranking_softmax_loss)),
        "smoothing": ("a", lambda a: drop_ins.smooth_labels(a, 0.125)),
        "kl": ("x a", with_gradient(drop_ins.kl_divergence)),
    },
}


def shapes(rows, classes) -> dict[str, tuple]:
    return {
        "x": (rows, classes),
        "a": (rows, classes),
        "classes_first": (classes, rows),
        "labels": (rows,),
        "weights": (classes,),
        "hidden": (rows, WIDTH),
        "kernel": (WIDTH, classes),
        "table": (classes, WIDTH),
    }


def sample(rows: int, classes: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(rows)
    found = {
        name: generator.uniform(0.125, 1, shape).astype(np.float32) for name, shape in shapes(rows, classes).items()
    }
    return found | {"labels": generator.integers(0, classes, rows, np.int32)}


@pytest.mark.parametrize(("family", "rows"), [*((family, "r") for family in PROGRAMS), ("labels", 5), ("linear", 5)])
def test_any_number_of_classes(family, rows):
    def everything(operands):
        return {name: run(*(operands[o] for o in names.split())) for name, (names, run) in PROGRAMS[family].items()}

    scope = export.SymbolicScope(("v >= 3",))
    classes = export.symbolic_shape("v", scope=scope)[0]
    symbolic = shapes(export.symbolic_shape(rows, scope=scope)[0] if isinstance(rows, str) else rows, classes)
    specs = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32 if name == "labels" else jnp.float32)
        for name, shape in symbolic.items()
    }
    artefact = export.export(jax.jit(everything), disabled_checks=jaxloss.export_checks())(specs)
    for sizes in ((5, 7), (rows if isinstance(rows, int) else 3, 130)):
        operands = sample(*sizes)
        exported, direct = (jax.jit(run, compiler_options=QUICKLY)(operands) for run in (artefact.call, everything))
        for (path, result), expected in zip(jax.tree.leaves_with_path(exported), jax.tree.leaves(direct), strict=True):
            what = f"{jax.tree_util.keystr(path)} of {sizes}"
            if result.dtype == jnp.int32:
                np.testing.assert_array_equal(result, expected, what)
            else:
                tolerance.assert_close(result, expected, what, terms=sizes[0] * sizes[1], magnitude=1)


def test_kernels_are_called():
    """Of any number of classes as of a known one, with smoothing and statistics too."""
    classes = export.symbolic_shape("v")[0]
    x, labels = jax.ShapeDtypeStruct((5, classes), jnp.float32), jax.ShapeDtypeStruct((5,), jnp.int32)

    def loss(x, labels):
        return jaxloss.categorical_cross_entropy_with_stats(x, labels, label_smoothing=0.125)

    artefact = export.export(jax.jit(loss), platforms=["cpu"], disabled_checks=jaxloss.export_checks())(x, labels)
    assert "jaxloss_cross_entropy_with_options_value_and_stats" in artefact.mlir_module()


def test_padding_beyond_what_is_known_to_be_there_is_an_error():
    classes = export.symbolic_shape("v")[0]
    x, labels = jax.ShapeDtypeStruct((5, classes), jnp.float32), jax.ShapeDtypeStruct((5,), jnp.int32)
    step = jax.jit(lambda x, labels: cross_entropy(x, labels, num_classes=3))
    with pytest.raises(ValueError, match=r"num_classes is 3, logits has v classes.*constraints=\('v >= 3',\)"):
        export.export(step, disabled_checks=jaxloss.export_checks())(x, labels)


def test_classes_that_devices_share_are_for_the_formula():
    """No kernel can be told how many classes all devices have. (JAX itself runs no such program yet.)"""
    mesh = jax.make_mesh((2,), ("v",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    split, rows = jax.P(None, "v"), jax.P()

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(split, rows), out_specs=rows)
    def step(x, labels):
        return cross_entropy(x, labels, axis_name="v", **OPTIONS)

    for classes, calls in ((8, True), (export.symbolic_shape("2*v")[0], False)):
        specs = (
            jax.ShapeDtypeStruct((5, classes), jnp.float32, sharding=jax.NamedSharding(mesh, split)),
            jax.ShapeDtypeStruct((5,), jnp.int32, sharding=jax.NamedSharding(mesh, rows)),
        )
        artefact = export.export(step, disabled_checks=jaxloss.export_checks())(*specs)
        assert ("jaxloss_cross_entropy_with_options" in artefact.mlir_module()) == calls
