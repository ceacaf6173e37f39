"""Custom calls made by hand with the wrong buffers are refused: memory is never trusted to a caller.

Each target is called with what it expects, and then with each buffer in turn of another type, rank or size.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import _library

Buffer = tuple[tuple[int, ...], str]  # shape and type
F32, S32 = "float32", "int32"
X: Buffer = ((4, 3, 5), F32)
ROWS: Buffer = ((4, 3), F32)
ONE: Buffer = ((1,), F32)  # a parameter of all rows
FEATURES: Buffer = ((5,), F32)  # a parameter for each index of the last axis


@dataclasses.dataclass(frozen=True)
class Call:
    """A custom call: its buffers by name, of which the last ones are results, and its attributes."""

    target: str
    buffers: dict[str, Buffer]
    results: int
    attributes: dict

    def __call__(self, buffers=None, attributes=None):
        specs = list((buffers or self.buffers).values())
        split = len(specs) - self.results
        operands = [jnp.zeros(shape, dtype) for shape, dtype in specs[:split]]
        results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in specs[split:]]
        attributes = self.attributes if attributes is None else attributes
        outputs = jax.jit(lambda *operands: jax.ffi.ffi_call(self.target, results)(*operands, **attributes))(*operands)
        return jax.block_until_ready(outputs)


def elementwise(name: str, constants: tuple[float, ...] = (), parameters: tuple[Buffer, ...] = ()) -> list[Call]:
    operands = {"prediction": X, "target": X, "row_weight": ((4,), F32)}
    operands |= {f"parameter {i}": parameter for i, parameter in enumerate(parameters)}
    operands |= {"loss": ((4, 1), F32)}
    attributes = {"constants": np.array(constants, np.float64)}
    return [
        Call(f"jaxloss_{name}_value", operands, 1, attributes),
        Call(f"jaxloss_{name}_value_and_grad", {**operands, "gradient": X}, 2, attributes),
    ]


def cross_entropy(target: Buffer) -> list[Call]:
    operands = {"logits": X, "target": target, "row_weight": ROWS}
    clip = {"clip": np.float64(1e-7)}
    name = "jaxloss_cross_entropy"
    stats = {"max": ROWS, "log_sum": ROWS}
    return [
        Call(f"{name}_value", {**operands, "loss": ROWS}, 1, clip),
        Call(f"{name}_value_and_stats", {**operands, "loss": ROWS, **stats}, 3, clip),
        Call(f"{name}_value_and_grad", {**operands, "loss": ROWS, "gradient": X}, 2, clip),
        Call(f"{name}_grad", {**operands, **stats, "target_sum": ROWS, "gradient": X}, 1, {}),
    ]


CALLS = [
    *elementwise("mse"),
    *elementwise("binary_cross_entropy", (1e-7,)),
    *elementwise("mae"),
    *elementwise("log_cosh"),
    *elementwise("huber", (), (ONE,)),
    *elementwise("quantile", (), (((4, 1), F32),)),
    *elementwise("weighted_binary_cross_entropy", (1e-7,), (FEATURES, ONE, ((4, 5), F32))),
    *elementwise("focal_binary_cross_entropy", (1e-7,), (FEATURES, ONE, ((4, 1), F32), ONE, ONE, FEATURES)),
    *cross_entropy(((4, 3), S32)),
    *cross_entropy(X),
]
IDS = [f"{call.target}-{i}" for i, call in enumerate(CALLS)]
OTHER_TYPES = ("int8", "bool", "int32", "uint32", "float16", "complex64")


def spoilt(call: Call, name: str):
    """The buffer of that name, of every other type, size and rank that makes the call wrong."""
    shape, dtype = call.buffers[name]
    for other in OTHER_TYPES:
        if other != dtype and not (name in ("prediction", "logits") and other == "float16"):
            yield shape, other
    shapes = [(shape[0] + 1, *shape[1:]), (shape[0] - 1, *shape[1:]), (*shape, 2), (2, *shape)]
    if name.startswith("parameter"):
        shapes = [(*shape[:-1], 2), (*shape[:-1], 0), (3, *shape), (4, 3, 1), (4, 3, 5, 1), ()]
        yield from ((other, dtype) for other in shapes)
        return
    any_width = (name == "loss" and "prediction" in call.buffers) or (
        name == "logits" and call.buffers["target"][1] == S32 and "gradient" not in call.buffers
    )
    if len(shape) > 1:
        shapes.append((*shape[1:], shape[0]))
        if not any_width:  # the parts of an elementwise loss, and the classes that labels are counted in
            shapes.append((*shape[:-1], shape[-1] + 1))
    if name != "row_weight":  # it may have fewer axes
        shapes += [shape[1:], ()]
    yield from ((shape, dtype) for shape in shapes)


def test_every_target_is_here():
    assert {call.target for call in CALLS} == set(_library.TARGETS)


@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_the_right_buffers_are_taken(call):
    call()


# The elementwise losses have one handler, so two of them stand for all; and the one of most parameters for these.
SPOILT = [
    pytest.param(call, name, id=f"{i}-{name}")
    for call, i in zip(CALLS, IDS, strict=True)
    for name in call.buffers
    if (call.target == "jaxloss_focal_binary_cross_entropy_value_and_grad" and name.startswith("parameter"))
    or not any(loss in call.target for loss in ("mae", "log_cosh", "huber", "quantile", "weighted", "focal"))
]


@pytest.mark.parametrize(("call", "name"), SPOILT)
def test_a_wrong_buffer_is_refused(call, name):
    for buffer in spoilt(call, name):
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT.*jaxloss"):
            call({**call.buffers, name: buffer})


@pytest.mark.parametrize("call", [call for call in CALLS if "prediction" in call.buffers], ids=lambda call: call.target)
def test_a_wrong_number_of_parameters_is_refused(call):
    more = {"prediction": X, "target": X, "row_weight": ((4,), F32), "one more": ONE}
    fewer = {name: buffer for name, buffer in call.buffers.items() if name != "parameter 0"}
    for buffers in ({**more, **call.buffers}, fewer):
        if len(buffers) != len(call.buffers):
            with pytest.raises(jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT.*jaxloss.*parameters"):
                call(buffers)


@pytest.mark.parametrize("call", [call for call in CALLS if "logits" in call.buffers], ids=lambda call: call.target)
def test_logits_without_classes_are_refused(call):
    scalars = {name: ((), dtype) for name, (_, dtype) in call.buffers.items()}
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT.*jaxloss"):
        call(scalars)


@pytest.mark.parametrize("call", [call for call in CALLS if call.attributes], ids=lambda call: call.target)
def test_wrong_attributes_are_refused(call):
    (name,) = call.attributes
    for attributes in ({}, {name: np.float32(1)}, {name: "x"}, {name: np.zeros(3)}):
        with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
            call(attributes=attributes)


@pytest.mark.parametrize("call", CALLS[:4], ids=IDS[:4])
def test_a_loss_may_have_more_parts_than_there_are_elements(call):
    """However many parts a caller asks for, each element is in one of them and none outside is read."""
    for parts in (1, 2, 7, 100):
        losses = call({**call.buffers, "loss": ((4, parts), F32)})[0]
        assert losses.shape == (4, parts)
        np.testing.assert_allclose(losses.sum(-1), call()[0].sum(-1), rtol=1e-6)
