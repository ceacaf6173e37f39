"""Every wrong argument is an error in Python, before anything is traced, that names it, what was expected and what was found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from losses import BINARY, CATEGORICAL, LOSSES, Case

X = np.zeros((8, 4), np.float32)
LABELS = np.zeros(8, np.int32)
TARGET = {loss.name: LABELS if loss.by_rows else X for loss in LOSSES}

every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
both_functions = pytest.mark.parametrize("gradient", [False, True], ids=["value", "gradient"])


def assert_raises(error, words, loss, *operands, gradient=False, **options):
    """The error holds all the words, eagerly and under jit."""
    function = loss.gradient if gradient else loss
    for call in (function, lambda *operands, **options: jax.jit(lambda: function(*operands, **options))()):
        with pytest.raises(error) as raised:
            call(*operands, **options)
        for word in words:
            assert word in str(raised.value)


@both_functions
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "float8_e4m3fn"])
@every_loss
def test_prediction_of_another_type(loss, dtype, gradient):
    words = (loss.prediction, dtype, "float32", "bfloat16")
    assert_raises(TypeError, words, loss, jnp.zeros((8, 4), dtype), TARGET[loss.name], gradient=gradient)


@both_functions
@pytest.mark.parametrize("shape", [(8, 3), (8,), (8, 4, 1), (), (1, 4)])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_target_of_another_shape(loss, shape, gradient):
    assert_raises(ValueError, ("target", str(shape), "(8, 4)"), loss, X, np.zeros(shape, np.float32), gradient=gradient)


@both_functions
@pytest.mark.parametrize("shape", [(8, 4), (4,), (8, 1), ()])
def test_labels_of_another_shape(shape, gradient):
    words = ("target", str(shape), "(8, 4)", "(8,)", "class indices", "probabilities")
    assert_raises(ValueError, words, CATEGORICAL, X, np.zeros(shape, np.int32), gradient=gradient)


@both_functions
@every_loss
def test_target_of_another_type(loss, gradient):
    assert_raises(TypeError, ("target", "complex64"), loss, X, X.astype(np.complex64), gradient=gradient)


@both_functions
def test_boolean_classes(gradient):
    words = ("target", "bool", "class indices", "probabilities")
    assert_raises(TypeError, words, CATEGORICAL, X, X > 0, gradient=gradient)
    assert_raises(TypeError, words, CATEGORICAL, X, LABELS > 0, gradient=gradient)


@both_functions
@every_loss
def test_reduction(loss, gradient):
    for reduction in ("average", None, 3):
        words = ("reduction", repr(reduction), "'mean'", "'sum'", "'none'")
        assert_raises(ValueError, words, loss, X, TARGET[loss.name], reduction=reduction, gradient=gradient)


@both_functions
@every_loss
def test_where_of_another_type(loss, gradient):
    for dtype in ("int32", "float32"):
        words = ("where", dtype, "bool")
        assert_raises(TypeError, words, loss, X, TARGET[loss.name], where=np.ones(8, dtype), gradient=gradient)


@both_functions
@pytest.mark.parametrize("option", ["where", "weights"])
@every_loss
def test_option_of_another_shape(loss, option, gradient):
    for shape in ((7,), (8, 3), (1, 8, 4), (2, 4)):
        words = (option, str(shape), "(8, 4)", "(8,)")
        options = {option: np.ones(shape, bool if option == "where" else np.float32)}
        assert_raises(ValueError, words, loss, X, TARGET[loss.name], **options, gradient=gradient)


@both_functions
@pytest.mark.parametrize("option", ["where", "weights"])
@pytest.mark.parametrize(
    ("by_rows", "size", "shape", "advice"),
    [
        # The first would have been about features, and the last two about positions, where as long as the examples.
        (False, (2, 3, 4), (2, 3), ["[..., None]"]),
        (False, (3, 3, 3), (3, 3), ["[..., None]", "[None]"]),
        (False, (2, 3, 4), (3, 4), ["[None]"]),
        (False, (2, 3, 4), (4,), ["[None, None]"]),
        (False, (2, 3), (3,), ["[None]"]),
        (False, (2, 3), (1,), ["[..., None]", "[None]"]),
        (True, (2, 3, 4), (2,), ["[..., None, None]"]),
        (True, (2, 3, 4), (2, 1), ["[..., None]"]),
        (True, (3, 3, 4), (3, 1), ["[..., None]", "[None]"]),
        (True, (2, 3, 4), (1, 3), ["[..., None]"]),
        (True, (2, 3, 4), (3, 1), ["[None]"]),
        (True, (2, 3, 4), (3,), []),
    ],
    ids=str,
)
def test_an_option_of_other_axes_is_no_guess(option, by_rows, size, shape, advice, gradient):
    """Not the shape of the examples and not one axis for each: the error says what to write."""
    loss, x = CATEGORICAL if by_rows else LOSSES[0], np.zeros(size, np.float32)
    given = np.ones(shape, bool if option == "where" else np.float32)
    examples = size[:-1] if by_rows else size[:1]
    target = np.zeros(examples, np.int32) if by_rows else x
    words = (f"{option} has shape {shape}", str(size), str(examples), *(option + index for index in advice))
    assert_raises(ValueError, words, loss, x, target, **{option: given}, gradient=gradient)
    function = loss.gradient if gradient else loss
    for index in advice:  # and what it says is taken
        function(x, target, **{option: eval("x" + index, {}, {"x": given})})
    if not advice:
        with pytest.raises(ValueError, match=option) as raised:
            function(x, target, **{option: given})
        assert "write" not in str(raised.value)


@both_functions
@pytest.mark.parametrize("option", ["where", "weights"])
def test_option_that_tells_classes_apart(option, gradient):
    for shape in ((8, 4), (4,), (1, 4)):
        options = {option: np.ones(shape, bool if option == "where" else np.float32)}
        words = (option, str(shape), "(8,)", "classes")
        assert_raises(ValueError, words, CATEGORICAL, X, LABELS, **options, gradient=gradient)


@both_functions
@every_loss
def test_numbers_of_another_type(loss, gradient):
    a = TARGET[loss.name]
    for dtype in ("bool", "complex64"):
        assert_raises(TypeError, ("weights", dtype), loss, X, a, weights=np.ones(8, dtype), gradient=gradient)
        assert_raises(TypeError, ("normalizer", dtype), loss, X, a, normalizer=np.ones((), dtype), gradient=gradient)


@both_functions
@every_loss
def test_normalizer(loss, gradient):
    a = TARGET[loss.name]
    words = ("normalizer", "(8,)", "scalar")
    assert_raises(ValueError, words, loss, X, a, normalizer=np.ones(8, np.float32), gradient=gradient)
    for reduction in ("sum", "none"):
        words = ("normalizer", "'mean'", repr(reduction))
        assert_raises(ValueError, words, loss, X, a, normalizer=2.0, reduction=reduction, gradient=gradient)


@both_functions
@pytest.mark.parametrize(("loss", "upper"), [(CATEGORICAL, 1), (BINARY, 0.5)], ids=["categorical", "binary"])
def test_clip(loss, upper, gradient):
    for clip in (0, -1e-7, upper, 2, np.nan, np.inf, "small"):
        assert_raises(
            ValueError, ("clip", repr(clip), "0", str(upper)), loss, X, TARGET[loss.name], clip=clip, gradient=gradient
        )


@both_functions
def test_axis(gradient):
    for axis in (2, -3):
        assert_raises(
            ValueError, ("axis", str(axis), "2", "-2", "1"), CATEGORICAL, X, LABELS, axis=axis, gradient=gradient
        )


@both_functions
def test_logits_without_an_axis(gradient):
    words = ("logits", "()", "classes")
    assert_raises(ValueError, words, CATEGORICAL, np.float32(1), np.int32(0), gradient=gradient)


@both_functions
def test_ignore_index(gradient):
    words = ("ignore_index", "-100", "float32", "class indices")
    assert_raises(ValueError, words, CATEGORICAL, X, X, ignore_index=-100, gradient=gradient)
    for value, kind in ((1.0, "float"), (True, "bool"), ("0", "str")):
        assert_raises(
            TypeError, ("ignore_index", kind, "int"), CATEGORICAL, X, LABELS, ignore_index=value, gradient=gradient
        )


@every_loss
def test_options_are_keywords(loss):
    with pytest.raises(TypeError, match="positional"):
        getattr(jaxloss, loss.name)(X, TARGET[loss.name], None)


def test_gradient_with_respect_to_what_is_not_a_number():
    case = Case(CATEGORICAL, "indices")
    with pytest.raises(TypeError, match="int32"):
        jax.grad(case.loss, 1)(X, LABELS)
