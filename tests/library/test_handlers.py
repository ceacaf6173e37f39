"""Custom calls made by hand with the wrong buffers are refused: memory is never trusted to a caller.

Each target is called with what it expects, and then with each buffer in turn of another type, rank or size.
"""

import jax
import numpy as np
import pytest

import tolerance
from handler_calls import CALLS, F32, ON_A_GPU_ALONE, ONE, ROWS, S32, Call, X
from jaxloss._ffi import library
from jaxloss._spec import OPTIONS
from losses import ELEMENTWISE, MSE


def assert_refused(calls: list[Call], match: str) -> None:
    """That each of these calls is an error. They are branches of one program, which takes as long to compile as one call.

    Their operands are the program's: constants would be copied, for which XLA makes code.
    """
    operands = {buffer: np.zeros(*buffer) for call in calls for buffer in call.operands}

    def branch(call: Call):
        def run(given):
            call.staged(*(given[buffer] for buffer in call.operands))
            return np.int32(0)

        return run

    @jax.jit
    def run(place, values):
        given = dict(zip(operands, values, strict=True))
        return jax.lax.switch(place, [lambda given: np.int32(0), *map(branch, calls)], given)

    values = list(operands.values())
    assert run(0, values) == 0
    for place in range(1, len(calls) + 1):
        with pytest.raises(jax.errors.JaxRuntimeError, match=match):
            jax.block_until_ready(run(place, values))
    assert run(0, values) == 0  # JAX keeps the effects of the last such program: `effects_barrier` would tell the error


IDS = [f"{call.target}-{i}" for i, call in enumerate(CALLS)]
FEWER_AXES = ("row_weight", *OPTIONS, "scale", "beta")
"""What may have fewer axes than the rows."""
OTHER_TYPES = ("int8", "bool", "int32", "uint32", "float16", "complex64")


def spoilt(call: Call, name: str):
    """The buffer of that name, of every other type, size and rank that makes the call wrong."""
    shape, dtype = call.buffers[name]
    for other in OTHER_TYPES:
        if other != dtype and not (name in ("prediction", "logits") and other == "float16"):
            yield shape, other
    shapes = [(*shape, 2), (2, *shape)]
    if shape:
        shapes += [(shape[0] + 1, *shape[1:]), (shape[0] - 1, *shape[1:])]
    if name == "sums":  # of as many parts as are wanted
        yield from ((other, dtype) for other in ((7, 2), (2, 7), ()))
        return
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
    if name not in FEWER_AXES:
        shapes += [shape[1:], ()]
    shapes = [other for other in shapes if other != shape]
    yield from ((shape, dtype) for shape in shapes)


def test_every_target_is_here():
    here = CALLS + (ON_A_GPU_ALONE if "cuda" in library.PLATFORMS else [])
    assert {call.name for call in here} == set(library.TARGETS)


@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_the_right_buffers_are_taken(call):
    call()


# Handlers are templates: one target of a family, or two, has every buffer spoilt; of the others, those that differ.
FAMILIES = (
    *(loss.name for loss in ELEMENTWISE if loss is not MSE),
    *("weighted", "focal", "kl_divergence", "jensen_shannon"),
)
SPOILT = [
    pytest.param(call, name, id=f"{i}-{name}")
    for call, i in zip(CALLS, IDS, strict=True)
    for name in call.buffers
    if not any(loss in call.target for loss in FAMILIES)
    or call.target == "jaxloss_jensen_shannon_of_logits_value_and_grad"
    or (call.target == "jaxloss_focal_binary_cross_entropy_value_and_grad" and name.startswith("parameter"))
    or ("scale" in call.buffers and name == "target")
]


@pytest.mark.parametrize(("call", "name"), SPOILT)
def test_a_wrong_buffer_is_refused(call, name):
    wrong = [call.but(buffers={**call.buffers, name: buffer}) for buffer in spoilt(call, name)]
    assert_refused(wrong, r"INVALID_ARGUMENT.*jaxloss")


@pytest.mark.parametrize("call", [call for call in CALLS if "prediction" in call.buffers], ids=lambda call: call.target)
def test_a_wrong_number_of_parameters_is_refused(call):
    more = {"prediction": X, "target": X, "row_weight": ((4,), F32), "one more": ONE}
    fewer = {name: buffer for name, buffer in call.buffers.items() if name != "parameter 0"}
    wrong = [buffers for buffers in ({**more, **call.buffers}, fewer) if len(buffers) != len(call.buffers)]
    assert_refused([call.but(buffers=buffers) for buffers in wrong], r"INVALID_ARGUMENT.*jaxloss.*parameters")


@pytest.mark.parametrize("call", [call for call in CALLS if "logits" in call.buffers], ids=lambda call: call.target)
def test_logits_without_classes_are_refused(call):
    scalars = {name: ((), dtype) for name, (_, dtype) in call.buffers.items()}
    assert_refused([call.but(buffers=scalars)], r"INVALID_ARGUMENT.*jaxloss")


@pytest.mark.parametrize("call", [call for call in CALLS if call.attributes], ids=lambda call: call.target)
def test_wrong_attributes_are_refused(call):
    wrong = []
    for name in call.attributes:
        others = {other: value for other, value in call.attributes.items() if other != name}
        of_other_types = ({}, {name: np.float32(1)}, {name: "x"}, {name: np.zeros(3)})
        wrong += [call.but(attributes={**others, **attribute}) for attribute in of_other_types]
    assert_refused(wrong, "INVALID_ARGUMENT")


@pytest.mark.parametrize("call", [call for call in CALLS if "clip" in call.attributes], ids=lambda call: call.target)
def test_a_clip_out_of_range_is_refused(call):
    wrong = [call.with_attributes(clip=np.float64(clip)) for clip in (np.nan, -1.0, 1.0, np.inf)]
    assert_refused(wrong, r"INVALID_ARGUMENT.*jaxloss.*clip is")
    call.with_attributes(clip=np.float64(0))()


@pytest.mark.parametrize("call", [call for call in CALLS if "given" in call.attributes], ids=lambda call: call.target)
def test_parameters_and_results_must_be_those_that_are_named(call):
    """Fewer or more than the bits say, bits that mean nothing, and results that do not go together."""
    given, wanted = (int(call.attributes[name]) for name in ("given", "wanted"))
    wrong = [
        {"given": given ^ 16},
        {"given": given | 1 << len(OPTIONS) + 5},
        {"wanted": wanted | 1 << 9},
        {"smoothed_classes": -1},
    ]
    wrong += [{"wanted": wanted ^ bit} for bit in (1, 8, 64, 128, 256)] + [{"given": given ^ 1 << len(OPTIONS)}]
    calls = [call.with_attributes(**{name: np.int64(bits) for name, bits in changed.items()}) for changed in wrong]
    assert_refused(calls, "INVALID_ARGUMENT")


@pytest.mark.parametrize("call", CALLS[:4], ids=IDS[:4])
def test_a_loss_may_have_more_parts_than_there_are_elements(call):
    """However many parts a caller asks for, each element is in one of them and none outside is read."""
    for parts in (1, 2, 7, 100):
        losses = call.but(buffers={**call.buffers, "loss": ((4, parts), F32)})()[0]
        assert losses.shape == (4, parts)
        tolerance.assert_ulps(losses.sum(-1), call()[0].sum(-1), 16)


@pytest.mark.parametrize("call", [call for call in CALLS if "scale" in call.buffers], ids=lambda call: call.target)
def test_a_wrong_number_of_parameters_or_statistics_is_refused(call):
    names = list(call.buffers)
    after_scale = names.index("scale") + 1
    more = {**{name: call.buffers[name] for name in names[:after_scale]}, "another": ROWS, **call.buffers}
    spare = [more]
    if "beta" in call.buffers:
        spare.append({name: buffer for name, buffer in call.buffers.items() if name != "beta"})
    assert_refused([call.but(buffers=buffers) for buffers in spare], r"INVALID_ARGUMENT.*jaxloss.*parameters")
    without_total = {name: buffer for name, buffer in call.buffers.items() if name != "total"}
    fewer = call.but(buffers=without_total, results=call.results - 1)
    assert_refused([fewer], r"INVALID_ARGUMENT.*jaxloss.*statistics")
