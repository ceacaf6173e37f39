#!/usr/bin/env bash
# keras 3.15.1 on jax 0.10.2: a loss object, and so every loss given to compile(), converts integer labels to the type of the loss,
# keras.config.floatx(). In bfloat16 the label 257 becomes 256: a prediction that is right has the loss of one that is wrong, and
# trains towards class 256. The loss function of the same name, and the accuracy, get it right.
# Seen: "bfloat16: object [0.0, 20.0, 0.0, 20.0], function [0.0, 0.0, 0.0, 0.0]".
. "$(dirname "$0")/fresh_environment.sh" jax==0.10.2 keras==3.15.1
export KERAS_BACKEND=jax
run - <<'PY'
import jax
import keras
import numpy as np

print("keras", keras.__version__, "jax", jax.__version__)
labels = np.array([256, 257, 258, 259])
logits = 20 * np.eye(512, dtype=np.float32)[labels]  # sure of the right class
seen = {}
for dtype in ("float32", "bfloat16"):
    keras.config.set_floatx(dtype)
    of_object = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)(labels, logits)
    of_function = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    seen[dtype] = [abs(np.round(np.asarray(x, np.float64), 3)).tolist() for x in (of_object, of_function)]
    print(f"{dtype}: object {seen[dtype][0]}, function {seen[dtype][1]}")

right, wrong = [0.0] * 4, [0.0, 20.0, 0.0, 20.0]
assert seen["float32"] == [right, right]
assert seen["bfloat16"] == [wrong, right], "labels are kept now: this finding is out of date"
PY
