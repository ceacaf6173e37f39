"""Every wrong argument is an error in Python, before anything is traced, that names it, what was expected and what was found."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import optax as drop_ins
from jaxloss._checks import keywords
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


POSITIONAL = {
    "reduction": ("mse", (X, X, "sum"), "write reduction='sum'"),
    "of a gradient": ("d_mse", (X, X, "none"), "write reduction='none'"),
    "target type": ("kl_divergence", (X, X, "logits"), "write target_type='logits'"),
    "mask": ("binary_cross_entropy", (X, X, X > 0), "write where=..."),
    "axis": ("categorical_cross_entropy", (X, LABELS, 1), "write axis=1"),
    "two": ("categorical_cross_entropy", (X, LABELS, 1, "sum"), "write axis=1, reduction='sum'"),
    "number": ("huber", (X, X, 2.0), "write delta=2.0"),
    "required": ("quantile", (X, X, 0.5), "write q=0.5"),
    "any": ("mse", (X, X, X), "write its options as keywords: where, weights, reduction, normalizer"),
    "another string": ("mse", (X, X, "Sum"), "write its options as keywords: where, weights, reduction, normalizer"),
    "bool": (
        "entropy",
        (X, True),
        "write its options as keywords: axis, where, softcap, temperature, num_classes, axis_name",
    ),
    "float": (
        "entropy",
        (X, 2.0),
        "write its options as keywords: axis, where, softcap, temperature, num_classes, axis_name",
    ),
    "two of one kind": (
        "entropy",
        (X, 0, 1),
        "write its options as keywords: axis, where, softcap, temperature, num_classes, axis_name",
    ),
}


@pytest.mark.parametrize(("name", "operands", "advice"), POSITIONAL.values(), ids=POSITIONAL)
def test_an_option_without_its_name(name, operands, advice):
    takes = {"entropy": 1}.get(name, 2)
    plural = "s" if takes > 1 else ""
    message = f"{name}() takes {takes} positional argument{plural} but {len(operands)} were given: {advice}"
    assert raised(TypeError, name, operands, {}) == message


HIDDEN, KERNEL = np.zeros((8, 3), np.float32), np.zeros((3, 4), np.float32)
ONE_HOT = np.eye(4, dtype=np.int32)[LABELS]
IMAGES, PIXELS = np.zeros((2, 5, 6, 7), np.float32), np.zeros((2, 6, 7), np.int32)
KINDS = "expected one of bfloat16, float16, float32, float64"
TARGETS = "expected (8,) class indices (an integer type) or (8, 4) probabilities (a floating-point type)"
IMAGE_TARGETS = "class indices (an integer type) or (2, 5, 6, 7) probabilities (a floating-point type)"
REDUCTIONS = "expected one of 'mean', 'sum', 'none'"
SUMS = "expected a floating-point type (bfloat16, float16, float32 or float64)"
LOGITS = "expected None or float32"
PRECISIONS = "expected what jax.lax.dot_general takes: None, 'default', 'high', 'highest', two of the last three, a jax.lax.DotAlgorithm or one of its presets"
TOKENS, EXAMPLES = (
    np.zeros((2, 4, 3), np.float32),
    "expected the shape of the examples (8,), or an axis for each of the prediction's, as long or 1",
)


def raised(error, name, operands, options) -> str:
    """The message of the error, which is the same under jit."""
    function, messages = getattr(jaxloss, name), set()
    for call in (function, lambda *operands, **options: jax.jit(lambda: function(*operands, **options))()):
        with pytest.raises(error) as found:
            call(*operands, **options)
        messages.add(str(found.value))
    (message,) = messages
    return message


WHOLE = {
    # What is no array.
    "None as prediction": ("mse", (None, X), {}, "pred is None: expected an array"),
    "None as target": ("kl_divergence", (X, None), {}, "target is None: expected an array"),
    "None as labels": ("linear_cross_entropy", (HIDDEN, KERNEL, None), {}, "labels is None: expected an array"),
    "a string": ("categorical_cross_entropy", ("x", LABELS), {}, "logits has type str: expected an array"),
    "a list of strings": ("mse", (X, ["a", "b"]), {}, "target has type list with one of type str in it: expected an array"),
    "an array of strings": ("mse", (X, np.array(["a"])), {}, "target has type ndarray of dtype <U1: expected an array"),
    "None in a list of lists": ("mse", ([[1.0, None]], X), {}, "pred has type list with one of type NoneType in it: expected an array"),
    "an array of records": ("mse", (X, np.zeros(8, [("a", "f4")])), {}, "target has type ndarray of dtype [('a', '<f4')], which is no array (Error interpreting argument to stage as a JAX value. The problematic value is of type <class 'numpy.ndarray'> and was passed to stage at position 0.): expected an array"),
    "a number too large": ("mse", (10**400, 1.0), {}, "pred has type int, which is no array: expected an array"),
    "a ragged list": ("mse", ([[1.0, 2.0], [3.0]], X), {}, "pred has type list, of unequal lengths: expected an array"),
    "a ragged list of arrays": ("mse", (X, [np.ones(2), np.ones(3)]), {}, "target has type list, of unequal lengths: expected an array"),
    "a list and a number": ("mse", (X, ([1.0], 2.0)), {}, "target has type tuple, of unequal lengths: expected an array"),
    "objects": ("mse", (X, np.array([1.0, None], object)), {}, "target has type ndarray of dtype object: expected an array"),
    "None as option": ("kl_divergence", (X, X), {"temperature": None}, "temperature is None: expected a finite number greater than 0"),
    # Axes.
    **{
        f"axis {axis!r} of {name}": (name, (X, *operands), {"axis": axis}, f"axis {found}: expected int")
        for name, *operands in (
            ("categorical_cross_entropy", LABELS),
            ("d_kl_divergence", X),
            ("jensen_shannon", X),
            ("log_prob", LABELS),
            ("entropy",),
        )
        for axis, found in (
            (1.0, "has type float"),
            ("1", "has type str"),
            (True, "has type bool"),
            ((0, 1), "has type tuple"),
            (None, "is None"),
            (np.array(1.0), "has type ndarray of dtype float64"),
        )
    },
    "kernel axis": ("linear_log_prob", (HIDDEN, KERNEL, LABELS), {"kernel_axis": (0,)}, "kernel_axis has type tuple: expected int"),
    "a mesh axis": ("entropy", (X,), {"axis_name": 3}, "axis_name has type int: expected str or a tuple of them, or None"),
    # Swapped operands.
    "swapped": ("categorical_cross_entropy", (LABELS, X), {}, f"logits has dtype int32: {KINDS}; target has dtype float32: are the two swapped?"),
    "swapped, of labels": ("log_prob", (LABELS, X), {}, f"logits has dtype int32: {KINDS}; labels has dtype float32: are the two swapped?"),
    "swapped, of equal shapes": ("binary_cross_entropy", (ONE_HOT, X), {}, f"logits has dtype int32: {KINDS}; target has dtype float32: are the two swapped?"),
    "swapped, of a regression": ("d_mse", (ONE_HOT, X), {}, f"pred has dtype int32: {KINDS}; target has dtype float32: are the two swapped?"),
    "swapped, of a teacher": ("jensen_shannon", (ONE_HOT, X), {}, f"student_logits has dtype int32: {KINDS}; teacher_logits has dtype float32: are the two swapped?"),
    "not swapped": ("mse", (ONE_HOT, ONE_HOT), {}, f"pred has dtype int32: {KINDS}"),
    "kernel and labels swapped": ("linear_cross_entropy", (HIDDEN, LABELS, KERNEL), {}, f"kernel has dtype int32: {KINDS}; labels has dtype float32: are the two swapped?"),
    "hidden and labels swapped": ("linear_cross_entropy", (LABELS, KERNEL, HIDDEN), {}, f"hidden has dtype int32: {KINDS}; labels has dtype float32: are the two swapped?"),
    "hidden and kernel swapped": ("linear_cross_entropy", (KERNEL, HIDDEN, LABELS), {}, "kernel has shape (8, 3), hidden (3, 4): expected [D, V] for [..., D]; are the two swapped?"),
    # Shapes that other libraries take.
    "a transposed kernel": ("linear_cross_entropy", (HIDDEN, KERNEL.T, LABELS), {}, "kernel has shape (4, 3), hidden (8, 3): expected [D, V] for [..., D]; write kernel_axis=0 for [V, D]"),
    "a kernel that is not transposed": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"kernel_axis": 0}, "kernel has shape (3, 4), hidden (8, 3): expected [V, D] with kernel_axis=0 for [..., D]; write kernel_axis=-1 for [D, V]"),
    "a kernel of another width": ("linear_cross_entropy", (HIDDEN, KERNEL[:2], LABELS), {}, "kernel has shape (2, 4), hidden (8, 3): expected [D, V] for [..., D]"),
    "images": ("categorical_cross_entropy", (IMAGES, PIXELS), {}, f"target has shape (2, 6, 7) and dtype int32, logits (2, 5, 6, 7): expected (2, 5, 6) {IMAGE_TARGETS}; write axis=1 if there are 5 classes"),
    "images, with their axis": ("categorical_cross_entropy", (IMAGES, PIXELS[:1]), {"axis": 1}, f"target has shape (1, 6, 7) and dtype int32, logits (2, 5, 6, 7): expected (2, 6, 7) {IMAGE_TARGETS}"),
    "probabilities of images with the classes last": ("categorical_cross_entropy", (IMAGES, jnp.moveaxis(IMAGES, 1, -1)), {"axis": 1}, f"target has shape (2, 6, 7, 5) and dtype float32, logits (2, 5, 6, 7): expected (2, 6, 7) {IMAGE_TARGETS}; write jnp.moveaxis(target, -1, 1) if its classes are last"),
    "log_prob of images": ("log_prob", (IMAGES, PIXELS), {}, "labels has shape (2, 6, 7) and dtype int32, logits (2, 5, 6, 7): expected (2, 5, 6) class indices (an integer type); write axis=1 if there are 5 classes"),
    "one-hot integers": ("categorical_cross_entropy", (X, ONE_HOT), {}, f"target has shape (8, 4) and dtype int32, logits (8, 4): {TARGETS}; write target.argmax(1) if it is one-hot"),
    "one-hot labels": ("linear_cross_entropy", (HIDDEN, KERNEL, ONE_HOT), {}, "labels has shape (8, 4), hidden (8, 3): expected (8,); write labels.argmax(-1) if they are one-hot"),
    "floating-point indices": ("categorical_cross_entropy", (X, X[:, 0]), {}, f"target has shape (8,) and dtype float32, logits (8, 4): {TARGETS}; write target.astype(int) if these are class indices"),
    "a column of indices": ("categorical_cross_entropy", (X, LABELS[:, None]), {}, f"target has shape (8, 1) and dtype int32, logits (8, 4): {TARGETS}; write target[..., 0]"),
    "a column of floating-point indices": ("categorical_cross_entropy", (X, X[:, :1]), {}, f"target has shape (8, 1) and dtype float32, logits (8, 4): {TARGETS}; write target[..., 0].astype(int) if these are class indices"),
    "a column of predictions": ("mse", (X[:, :1], X[:, 0]), {}, "target has shape (8,), pred (8, 1): expected equal shapes; write target[..., None] if its last axis is missing"),
    "a column of targets": ("mse", (X[:, 0], X[:, :1]), {}, "target has shape (8, 1), pred (8,): expected equal shapes; write target[..., 0]"),
    "indices for probabilities": ("kl_divergence", (X, LABELS), {}, "target has shape (8,), logits (8, 4): expected equal shapes; write jax.nn.one_hot(target, 4) if these are class indices"),
    "indices for a teacher's logits": ("jensen_shannon", (X, LABELS), {}, "teacher_logits has shape (8,), student_logits (8, 4): expected equal shapes"),
    "logits of examples": ("categorical_cross_entropy", (X[:, 0], LABELS), {}, "target has shape (8,) and dtype int32, logits (8,): expected () class indices (an integer type) or (8,) probabilities (a floating-point type); write target.argmax(0) if it is one-hot, or call binary_cross_entropy if each logit is an example"),
    "one-hot booleans": ("categorical_cross_entropy", (IMAGES, IMAGES > 0), {"axis": 1}, "target has dtype bool: expected an integer type for class indices or a floating-point type for probabilities; write target.argmax(1) if it is one-hot"),
    "boolean classes": ("categorical_cross_entropy", (X, LABELS > 0), {}, "target has dtype bool: expected an integer type for class indices or a floating-point type for probabilities; write target.astype(int) if these are classes"),
    "floating-point labels": ("log_prob", (X, X[:, 0]), {}, "labels has dtype float32: expected an integer type, of class indices; write labels.astype(int) if these are class indices"),
    "a column of floating-point labels": ("linear_cross_entropy", (HIDDEN, KERNEL, HIDDEN[:, :1]), {}, "labels has dtype float32: expected an integer type, of class indices; write labels[..., 0].astype(int) if these are class indices"),
    "probabilities for labels": ("log_prob", (IMAGES, IMAGES), {"axis": 1}, "labels has dtype float32: expected an integer type, of class indices; write labels.argmax(1) if it is one-hot"),
    "complex labels": ("log_prob", (X, X[:, 0] + 0j), {}, "labels has dtype complex64: expected an integer type, of class indices"),
    "complex, and not swapped": ("mse", (X + 0j, X), {}, f"pred has dtype complex64: {KINDS}"),
    "a column of labels": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS[:, None]), {}, "labels has shape (8, 1), hidden (8, 3): expected (8,); write labels[..., 0]"),
    "labels that are shifted": ("linear_cross_entropy", (TOKENS, KERNEL, np.zeros((2, 3), np.int32)), {}, "labels has shape (2, 3), hidden (2, 4, 3): expected (2, 4); write hidden[..., :-1, :] if the labels are shifted, or give all labels and shift=1"),
    "hidden states without the last": ("linear_cross_entropy", (TOKENS[:, :-1], KERNEL, np.zeros((2, 4), np.int32)), {"shift": 1}, "labels has shape (2, 4), hidden (2, 3, 3): expected (2, 3); give all hidden states and shift=1, or write labels[..., 1:] and no shift if the last one is left out"),
    "a kernel that is hidden states": ("linear_cross_entropy", (KERNEL, TOKENS, LABELS), {}, "kernel has shape (2, 4, 3): expected two axes, of features and of classes; are hidden and kernel swapped?"),
    "a kernel of three axes": ("linear_cross_entropy", (HIDDEN, KERNEL[None], LABELS), {}, "kernel has shape (1, 3, 4): expected two axes, of features and of classes"),
    # Mixed labels.
    "four": ("categorical_cross_entropy", (X, (LABELS, LABELS, 0.5, 0.5)), {}, "target is a tuple of 4: expected (labels, other labels, share of the first) or (indices, probabilities); write jnp.asarray(target) if it is an array"),
    "two of three": ("categorical_cross_entropy", (X, (LABELS, LABELS)), {}, "target is a tuple of 2: expected (labels, other labels, share of the first) or (indices, probabilities); write jnp.asarray(target) if it is an array"),
    "a tuple of labels": ("categorical_cross_entropy", (X[:3], (0, 1, 2)), {}, "target[0] has shape () and dtype int32, logits (3, 4): expected (3,) class indices (an integer type)"),
    "a list for a tuple": ("categorical_cross_entropy", (X, [LABELS, LABELS, 0.5]), {}, "target has type list: expected an array or a tuple; write tuple(target) to mix labels"),
    "None among them": ("categorical_cross_entropy", (X, (LABELS, None, 0.5)), {}, "target[1] is None: expected an array"),
    "other labels of another shape": ("categorical_cross_entropy", (X, (LABELS, LABELS[:7], 0.5)), {}, "target[1] has shape (7,) and dtype int32, logits (8, 4): expected (8,) class indices (an integer type)"),
    # Masks and weights.
    "a mask of numbers": ("mse", (X, X), {"where": X[:, 0]}, "where has dtype float32: expected bool; write where != 0"),
    "weights that are a mask": ("mse", (X, X), {"weights": LABELS > 0}, "weights has dtype bool: expected a floating-point or integer type; where= takes booleans"),
    "a mask of classes": ("entropy", (X,), {"where": X > 0}, f"where has shape (8, 4), the prediction (8, 4): {EXAMPLES} and 1 along the classes; to mask classes, give them a logit of -Inf"),
    "a mask of one row's classes": ("entropy", (X,), {"where": X[0] > 0}, f"where has shape (4,), the prediction (8, 4): {EXAMPLES} and 1 along the classes; to mask classes, give them a logit of -Inf"),
    "weights of classes": ("kl_divergence", (X, X), {"weights": X[0]}, f"weights has shape (4,), the prediction (8, 4): {EXAMPLES} and 1 along the classes"),
    "class weights of rows": ("categorical_cross_entropy", (X, LABELS), {"class_weights": X[:, 0]}, "class_weights has shape (8,), logits has 4 classes: expected (4,), one number per class; weights= takes one per row"),
    "a column of a mask": ("mse", (X[:, 0], X[:, 0]), {"where": X[:, :1] > 0}, f"where has shape (8, 1), the prediction (8,): {EXAMPLES}; write where[..., 0]"),
    # Options of other kinds.
    "a mesh axis that is no string": ("entropy", (X,), {"axis_name": ("x", 1)}, "axis_name has type int: expected str or a tuple of them, or None"),
    "a type that is an array": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"accumulate_dtype": X}, f"accumulate_dtype has type ndarray of dtype float32: {SUMS}"),
    "a type of 8 bits": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"accumulate_dtype": "float8_e4m3fn"}, f"accumulate_dtype is float8_e4m3fn: {SUMS}"),
    "logits of an array": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"logits_dtype": X}, f"logits_dtype has type ndarray of dtype float32: {LOGITS}"),
    "narrower logits": ("linear_log_prob", (HIDDEN, KERNEL, LABELS), {"logits_dtype": "bfloat16"}, f"logits_dtype is bfloat16, hidden @ kernel has dtype float32: {LOGITS}"),
    "logits of integers": ("linear_objective", (HIDDEN, KERNEL, LABELS, sum), {"logits_dtype": np.int32}, f"logits_dtype is int32, hidden @ kernel has dtype float32: {LOGITS}"),
    "logits of no type": ("linear_cross_entropy_with_stats", (HIDDEN, KERNEL, LABELS), {"logits_dtype": "flaot32"}, f"logits_dtype is flaot32, hidden @ kernel has dtype float32: {LOGITS}"),
    "logits that are not enabled": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"logits_dtype": "float64"}, f"logits_dtype is float64, hidden @ kernel has dtype float32: {LOGITS}"),
    "no precision": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"precision": "hgih"}, f"precision is 'hgih': {PRECISIONS}"),
    "no two precisions": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"precision": ["high", [1]]}, f"precision is ['high', [1]]: {PRECISIONS}"),
    "a number of bits": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"precision": 32}, f"precision has type int: {PRECISIONS}"),
    # Keywords that are not there.
    "a typing error": ("mse", (X, X), {"reductoin": "sum"}, "mse() got an unexpected keyword argument 'reductoin': did you mean reduction?"),
    "a mask of optax's": ("categorical_cross_entropy", (X, LABELS), {"mask": LABELS > 0}, "categorical_cross_entropy() got an unexpected keyword argument 'mask': did you mean where?"),
    "an axis of a kernel": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"axis": 0}, "linear_cross_entropy() got an unexpected keyword argument 'axis': did you mean kernel_axis?"),
    "weights of torch's": ("binary_cross_entropy", (X, X), {"weight": X[0]}, "binary_cross_entropy() got an unexpected keyword argument 'weight': did you mean class_weights?"),
    "a switch of Keras's": ("categorical_cross_entropy", (X, LABELS), {"from_logits": True}, "categorical_cross_entropy() got an unexpected keyword argument 'from_logits': the softmax or sigmoid is inside always: pass logits, and leave it out"),
    "that switch, where a target may be logits": ("kl_divergence", (X, X), {"from_logits": True}, "kl_divergence() got an unexpected keyword argument 'from_logits': did you mean target_type?"),
    "that switch, where nothing is logits": ("mse", (X, X), {"from_logits": True}, "mse() got an unexpected keyword argument 'from_logits': its options are where, weights, reduction, normalizer"),
    "a beta of torch's": ("huber", (X, X), {"beta": 1.0}, "huber() got an unexpected keyword argument 'beta': did you mean delta?"),
    "a count of tokens": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"num_items_in_batch": 8}, "linear_cross_entropy() got an unexpected keyword argument 'num_items_in_batch': did you mean normalizer?"),
    "weights of another kind": ("mse", (X, X), {"weight": X[0]}, "mse() got an unexpected keyword argument 'weight': did you mean weights?"),
    "a logarithm of torch's": ("kl_divergence", (X, X), {"log_target": True}, "kl_divergence() got an unexpected keyword argument 'log_target': did you mean target_type?"),
    "a kernel of Liger's": ("linear_cross_entropy", (HIDDEN,), {"lin_weight": KERNEL, "labels": LABELS}, "linear_cross_entropy() got an unexpected keyword argument 'lin_weight': did you mean kernel?"),
    "an operand of another loss": ("log_prob", (X,), {"target": LABELS}, "log_prob() got an unexpected keyword argument 'target': did you mean labels?"),
    "no option at all": ("log_prob", (X, LABELS), {"reduction": "sum"}, "log_prob() got an unexpected keyword argument 'reduction': its options are axis, where, softcap, temperature, num_classes, axis_name"),
    "a reduction that is an array": ("mse", (X, X), {"reduction": np.zeros(2)}, f"reduction is array([0., 0.]): {REDUCTIONS}"),
    "a target type that is an array": ("kl_divergence", (X, X), {"target_type": np.zeros(2)}, "target_type is array([0., 0.]): expected one of 'probabilities', 'logits'"),
    "a clip that is an array": ("binary_cross_entropy", (X, X), {"clip": jnp.float32(0.1)}, "clip has type Array of dtype float32: expected a number between 0 and 0.5, or None"),
    "ignore_index": ("categorical_cross_entropy", (X, LABELS), {"ignore_index": "0"}, "ignore_index has type str: expected int"),
    "a normalizer of other losses": ("mse", (X, X), {"normalizer": "weights"}, "normalizer is 'weights': expected a number or a scalar array"),
    "no name of a type": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"accumulate_dtype": "flaot32"}, f"accumulate_dtype is flaot32: {SUMS}"),
    "no type": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), {"accumulate_dtype": None}, f"accumulate_dtype is None: {SUMS}"),
}  # fmt: skip


OF_ARRAYS = {
    case: entry
    for case, entry in WHOLE.items()
    if all(isinstance(x, np.ndarray) and x.dtype.kind in "fiub" for x in entry[1])
}
WITHIN = {
    "jit": lambda function, operands: jax.jit(function)(*operands),
    "vmap": lambda function, operands: jax.vmap(function)(*(np.stack([x, x]) for x in operands)),
    "grad": lambda function, operands: jax.vjp(function, *operands),
}


@pytest.mark.parametrize("transform", WITHIN)
@pytest.mark.parametrize(("name", "operands", "options", "message"), OF_ARRAYS.values(), ids=OF_ARRAYS)
def test_the_whole_message_of_traced_operands(name, operands, options, message, transform):
    with pytest.raises((TypeError, ValueError)) as found:
        WITHIN[transform](lambda *operands: getattr(jaxloss, name)(*operands, **options), operands)
    assert str(found.value) == message


@pytest.mark.parametrize(("name", "operands", "options", "message"), WHOLE.values(), ids=WHOLE)
def test_the_whole_message(name, operands, options, message):
    assert raised((TypeError, ValueError), name, operands, options) == message


TRACED = {
    "axis": ("categorical_cross_entropy", (X, LABELS), "int"),
    "num_classes": ("categorical_cross_entropy", (X, LABELS), "int"),
    "ignore_index": ("categorical_cross_entropy", (X, LABELS), "int"),
    "clip": ("categorical_cross_entropy", (X, LABELS), "a number between 0 and 1, or None"),
    "axis_name": ("categorical_cross_entropy", (X, LABELS), "str or a tuple of them, or None"),
    "reduction": ("mse", (X, X), "one of 'mean', 'sum', 'none'"),
    "target_type": ("kl_divergence", (X, X), "one of 'probabilities', 'logits'"),
    "kernel_axis": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), "int"),
    "shift": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), "int"),
    "chunk_size": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), "int"),
    "accumulate_dtype": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), SUMS.removeprefix("expected ")),
    "logits_dtype": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), LOGITS.removeprefix("expected ")),
    "precision": ("linear_cross_entropy", (HIDDEN, KERNEL, LABELS), PRECISIONS.removeprefix("expected ")),
}


@pytest.mark.parametrize("option", TRACED)
def test_a_traced_option_that_is_static(option):
    name, operands, expected = TRACED[option]
    with pytest.raises(TypeError) as found:
        jax.jit(lambda x: getattr(jaxloss, name)(*operands, **{option: x}))(1)
    assert str(found.value) == f"{option} is traced: expected {expected}; name it in static_argnames of jax.jit"


REDUCE = "expected a function of losses and where=, such as jax.numpy.sum, or None"
DROP_INS = {
    "axis": ("softmax_cross_entropy", (X, X), {"axis": 1.0}, "axis has type float: expected int"),
    "one of several axes": ("kl_divergence", (X, X), {"axis": (0, "a")}, "axis has type str: expected int"),
    "an array": ("smooth_labels", (X, 0.1), {"axis": np.array(1)}, "axis has type ndarray of dtype int64: expected int"),
    "too many": ("l2_loss", (X, X, X), {}, "l2_loss(): too many positional arguments"),
    "too few": ("softmax_cross_entropy", (X,), {}, "softmax_cross_entropy(): missing a required argument: 'labels'"),
    "another": ("huber_loss", (X, X), {"beta": 1.0}, "huber_loss(): got an unexpected keyword argument 'beta'"),
    "one-hot labels": ("softmax_cross_entropy_with_integer_labels", (X, ONE_HOT), {}, "labels has shape (8, 4), logits (8, 4): expected (8,); softmax_cross_entropy takes one-hot labels"),
    "a column of labels": ("softmax_cross_entropy_with_integer_labels", (X, LABELS[:, None]), {}, "labels has shape (8, 1), logits (8, 4): expected (8,); write labels[..., 0]"),
    "probabilities": ("softmax_cross_entropy_with_integer_labels", (X, X), {}, "labels has dtype float32: expected an integer type, of class indices; softmax_cross_entropy takes probabilities"),
    "floating-point indices": ("softmax_cross_entropy_with_integer_labels", (X, X[:, 0]), {}, "labels has dtype float32: expected an integer type, of class indices; write labels.astype(int) if these are class indices"),
    "all axes of indices": ("softmax_cross_entropy_with_integer_labels", (X, LABELS), {"axis": None}, "axis is None: expected int or a tuple of int"),
    "an axis too far": ("kl_divergence", (X, X), {"axis": 2}, "axis is 2, the operands have 2 axes: expected one from -2 to 1"),
    "an axis of labels too far": ("smooth_labels", (X, 0.1), {"axis": -3}, "axis is -3, labels has 2 axes: expected one from -2 to 1"),
    "an axis twice": ("smooth_labels", (X, 0.1), {"axis": (1, -1)}, "axis is (1, -1): expected no axis twice"),
    "an axis of nothing": ("kl_divergence", (0.0, 1.0), {}, "axis is -1, the operands have 0 axes: expected None"),
    "signs that are booleans": ("perceptron_loss", (X > 0, X), {}, "predictor_outputs has dtype bool: expected a real type other than bool"),
    "a reduction that is a string": ("ranking_softmax_loss", (X, X), {"reduce_fn": "mean"}, f"reduce_fn has type str: {REDUCE}"),
    "a reduction without where": ("ranking_softmax_loss", (X, X), {"reduce_fn": lambda x: x.sum()}, f"reduce_fn cannot be called so (got an unexpected keyword argument 'where'): {REDUCE}"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "operands", "options", "message"), DROP_INS.values(), ids=DROP_INS)
def test_drop_ins(name, operands, options, message):
    with pytest.raises((TypeError, ValueError)) as found:
        getattr(drop_ins, name)(*operands, **options)
    assert str(found.value) == message


def test_gradient_with_respect_to_what_is_not_a_number():
    case = Case(CATEGORICAL, "indices")
    with pytest.raises(TypeError, match="int32"):
        jax.grad(case.loss, 1)(X, LABELS)


def test_every_argument_of_another_library_is_one_of_ours():
    ours = {name for function in jaxloss.__all__ for name in parameters_of(getattr(jaxloss, function))}
    meant = {name for names in keywords._ELSEWHERE.values() for name in names}
    assert meant <= ours, meant - ours


def parameters_of(function) -> list[str]:
    return list(inspect.signature(function).parameters) if inspect.isfunction(function) else []
