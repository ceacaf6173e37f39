"""What the parameters of losses mean, by family.

An option of cross entropy has its one entry in `_CLASSES`; one that the loss has no derivative with respect to is also
named under `not differentiable`.
"""

from jaxloss._docs.described import table

_EVERY_LOSS = table(r"""
    result: loss
    masked: their <result> and gradient are exactly 0, even where they hold NaN
    where: a boolean mask, false for masked <unit>s: <masked>. <mask> <counted> Default: nothing is masked.
    weights: numbers that the losses of <unit>s are multiplied by, of the shapes that `where` may have; $n$ stays the
        same. Default: 1.
    reduction: `"mean"` divides the sum by $n$, `"sum"` does not, `"none"` returns the loss of each <unit>.
    normalizer: a number or scalar array that replaces $n$ in `"mean"`.
    dtypes: float32, bfloat16, float16 or float64
    Returns: A scalar, or for `"none"` <array>; float64 where <operands> are, else float32. The loss is differentiable
        with respect to <differentiable>. A mean over no <example> is 0.
    not differentiable: labels, axis, target_type, direction, kernel_axis, teacher_kernel_axis, where, ignore_index,
        num_classes, clip, reduction, remainder, objective, per, group, has_aux, shift, chunk_size, accumulate_dtype,
        logits_dtype, precision, axis_name
    TypeError: <operand> is not floating-point, or another argument is of the wrong kind.
    ValueError: shapes do not match, or an option has no such value.
    """)

ELEMENTS = table(
    r"""
    unit: element
    example: example
    batch size: $n$ is the batch size: the length of the first axis, not the number of elements.
    elements: `[n, ...]`, of any shape; <dtypes>. Each element of a 1-D or 0-D array is an example.
    array: an array like <operand>
    pred: predictions $x$, <elements>
    target: $a$, of the same shape; any real type.
    mask: Shape `[n]`, or as many axes as <operand>, each as long or of length 1, or `()`; nothing else broadcasts.
    counted: $n$ is then the number of examples of which any element is unmasked.
    """,
    _EVERY_LOSS,
)
"""Elementwise losses, whose examples are the indices of the first axis."""

_ROWS = table(
    r"""
    unit: row
    example: row
    batch size: An example is a row of logits along the class axis; $n$ is the number of rows.
    array: an array `[...]`
    mask: Shape `[...]`, or as many axes as <operand>, each as long or of length 1, and 1 for the classes, or `()`;
        nothing else broadcasts.
    counted: $n$ is then the number of unmasked <unit>s.
    split: the mesh axis, or axes, that an enclosing `jax.shard_map` (with `check_vma=True`, its default) has split the
        classes over
    remainder: of a target of some classes, what becomes of the probability that they lack: `"drop"` gives it to no
        class, `"spread"` an equal part to each of the others. A masked class takes none.
    whole: The loss is that of whole rows, the gradient that of the shard
    axis_name: <split>: <shards>. <whole>; the devices exchange only scalars per row.
    """,
    _EVERY_LOSS,
)

_CLASSES = table(
    r"""
    number: a number or traced scalar
    ignore_index: <unit>s whose class index is this are masked, as by `where`.
    class_weights: $w$, `[V]`: what each class's part of the target is multiplied by; $n$ stays the same, unless
        `normalizer` says otherwise. Default: 1.
    label_smoothing: $\varepsilon$, <number> from 0 to 1: the part of the target that is spread evenly over the classes.
        The share of a masked class is dropped.
    z_loss: $\zeta$, <number>, 0 or more: the square of each <unit>'s log-sum-exp, times $\zeta$, is added to its loss.
        Class weights do not multiply this term.
    softcap: $s$, <number> above 0: a logit $x$ becomes $s \tanh(x / s)$. It bounds masked logits too, to $-s$. None
        for no bound.
    margin: $m$, <number>, <of rows>: what the logit of the label is lowered by, after the softcap and before the
        temperature. <labels alone> Of cosines, with `temperature=1 / s`, it is the large margin cosine loss.
    of rows: or one per row, of the shapes that `where` may have
    labels alone: Only for a target of class indices that are not mixed.
    temperature: $T$, <number> above 0; it divides the logits after the softcap.
    num_classes: $K$, the number of classes, for <padded> beyond it. Padding counts as -Inf whatever it holds, gets
        gradient exactly 0 and takes no smoothing. Default: `V`.
    clip: the value is computed with $\max(t_i, \mathrm{clip})$ for each probability $t_i$. The gradient is never
        clipped, so that a saturated prediction still learns. <exact>
    exact: None for the exact value.
    normalizer: a number or scalar array that replaces $n$ in `"mean"`; or `"weights"`, for the sum, over the unmasked
        <unit>s, of `weights` times their label's class weight.
    """,
    _ROWS,
)

ROWS = table(
    r"""
    axis: the class axis of `logits`, and of a target of probabilities.
    padded: logits that are padded
    normalizer: <normalizer> For a target of probabilities, that class weight is $\sum_i w_i a_i$.
    shards: logits, probabilities and class weights are this device's shard, class indices and `num_classes` are those
        of the whole vocabulary
    Returns: <Returns> Of a target, probabilities are differentiable, and the share of mixed labels.
    """,
    _CLASSES,
)
"""Losses of rows of logits."""

TOKENS = table(
    r"""
    unit: token
    example: token
    batch size: An example is a token, one index of all axes of `hidden` but the last; $n$ is the number of tokens.
    padded: a `kernel` that is padded, with finite numbers,
    logits_dtype: the type of the logits, one that holds the type of `hidden @ kernel`, which is the default. A product
        of 16-bit operands is summed in float32: `jnp.float32` keeps these sums, where rounding them to bfloat16 costs a
        log-probability several hundredths. The logits' gradient (in forward mode, their tangent) is rounded to the
        type of `hidden @ kernel` before the products that it takes, which so stay on tensor cores.
    exact: None, the default, for the exact value.
    mask: Shape `[...]`. A chunk of masked tokens alone is skipped.
    of rows: the same for all tokens
    labels alone:
    axis_name: <split>: `kernel`, `bias` and class weights are this device's shard, labels and `num_classes` are those
        of the whole vocabulary. The devices exchange only scalars per token, and the gradient of `hidden`.
    Returns: A scalar, or for `"none"` <array>; float64 for float64 logits, else float32. The loss is differentiable
        with respect to <differentiable>. A mean over no token is 0.
    TypeError: `hidden` or `kernel` is not floating-point, or another argument is of the wrong kind.
    """,
    _CLASSES,
)
"""Losses of tokens, whose logits are never materialized."""

DIVERGENCES = table(
    r"""
    number: a number or scalar array
    temperature: $T$, <number> greater than 0, which divides the student's logits, and the teacher's where these are
        given. A JAX array that is not greater than 0 makes every loss NaN.
    axis: the class axis of student and teacher.
    shards: student and teacher are this device's shard
    Returns: <Returns> The derivative with respect to a probability that is 0 is given as 0.
    """,
    _ROWS,
)
"""Divergences of a student's rows from a teacher's."""

LINEAR_DIVERGENCES = table(
    r"""
    hidden: the student's $h$, `[..., D]`; <dtypes>.
    kernel: the student's $W$, `[D, V]`; its type is one of these too.
    teacher_hidden: the teacher's $h'$ of the same tokens, `[..., D']`; of any of these types.
    teacher_kernel: the teacher's $W'$, `[D', V]`, of the same classes in the same order.
    bias: the student's $b$, `[V]`. Default: none.
    teacher_bias: the teacher's $b'$, `[V]`. Default: none.
    kernel_axis: the class axis of `kernel`. With 0 it is `[V, D]`, like the table of an embedding.
    teacher_kernel_axis: the same of `teacher_kernel`.
    softcap: $s$, <number> above 0: a logit $x$ of the student, for the labels' loss too, becomes $s \tanh(x / s)$, as
        in `linear_cross_entropy`. Default: none.
    teacher_softcap: the same of the teacher's logits. It is not differentiated. Default: none.
    temperature: $T$, <number> above 0, which divides the logits of both, after the softcap. A JAX array that is not
        above 0 makes every loss NaN.
    labels: $y$, class indices `[...]` of an integer type: the loss of a token is then the soft weight times the
        divergence plus the hard weight times the cross entropy $-\log \mathrm{softmax}(h W + b)_y$ at a temperature of
        1, from the same logits. It is NaN for a label that is no class, unless that is `ignore_index`. Default: the
        divergence alone.
    shift: a token's label is `shift` places further along the last axis of `labels`, as in next-token prediction. The
        last `shift` tokens of each sequence are masked.
    ignore_index: <unit>s whose label is this are masked, as by `where`, for the divergence too.
    soft_weight: <number>, what the divergence is multiplied by where there are labels. Default: 1.
    hard_weight: <number>, what the cross entropy is multiplied by. Default: 1.
    padded: both kernels, if they are padded, with finite numbers,
    normalizer: a number or scalar array that replaces $n$ in `"mean"`; or `"weights"`, for the sum of `weights` over
        the unmasked <unit>s.
    chunk_size: how many tokens a device works on at a time. Default: as many as fill half a gigabyte with the logits
        of both, or two gigabytes where devices share tokens and each works on a shard of the vocabulary; at least
        3072.
    accumulate_dtype: the type that the gradient of `kernel` is summed in, over chunks and devices.
    logits_dtype: <logits_dtype> The logits of the teacher, where they are no wider, have it too.
    precision: that of the matrix products, as `jax.lax.dot_general` takes it.
    axis_name: <split>: both kernels and biases are this device's shard, labels and `num_classes` are those of the
        whole vocabulary. The devices exchange only scalars per token, and the gradient of `hidden`.
    Returns: A scalar, or for `"none"` <array>; float64 where any of hidden states and kernels are, else float32. The
        loss is differentiable with respect to <differentiable>. A mean over no token is 0.
    not differentiable: <not differentiable>, teacher_hidden, teacher_kernel, teacher_bias, teacher_softcap
    TypeError: hidden states or a kernel are not floating-point, or another argument is of the wrong kind.
    """,
    TOKENS,
)
"""Divergences of a student's tokens from a teacher's, whose logits are never materialized."""

PAIRS = table(
    r"""
    unit: row
    example: row
    a: embeddings $a_i$, `[n, D]`; <dtypes>. Nothing is normalized: rows should have unit length.
    b: embeddings $b_j$, `[n, D]`, the pair of each row of `a`; its type is one of these too.
    reduction: <reduction> The gradients of the first two are made with the value. Those of `"none"` wait for a
        cotangent of each row: the logits are then made a second time.
    scale: $s$, a number or scalar array; the paper learns its logarithm, from $\log 10$ on.
    bias: $c$, a number or scalar array; the paper learns it, from -10 on.
    array: an array `[n]`, of the sums over $j$
    chunk_size: how many rows of `a` a device works on at a time. Default: as many as fill half a gigabyte of logits; at
        least 2048.
    accumulate_dtype: the type that the gradient of `b` is summed in, over chunks and devices.
    precision: that of the matrix products, as `jax.lax.dot_general` takes it.
    axis_name: the mesh axis, or axes, over which an enclosing `jax.shard_map` (with `check_vma=True`, its default) has
        split the rows of `a` and `b`: each device gathers `b`, and the loss is that of all $n$ pairs, the same on every
        device, or for `"none"` those of the device's own rows. Default: the pairs of the device are all.
    TypeError: `a` or `b` is not floating-point, or another argument is of the wrong kind.
    """,
    _EVERY_LOSS,
)
"""Contrastive losses of pairs of embeddings."""

UNREDUCED = table(r"""
    result: result
    counted:
    whole: The result is that of whole rows, the gradient that of the shard
    Returns: An array `[...]`; float64 for float64 logits, else float32. It is differentiable with respect to
        <differentiable>.
    """)
"""What a result of each row or token, which is no loss, has in place of that."""

RESULTS_OF_ROWS = table(
    r"""
    axis: the class axis of `logits`.
    shards: `logits` are this device's shard, `num_classes` is that of the whole vocabulary
    """,
    ROWS,
    UNREDUCED,
)
"""Results of rows of logits that are no losses."""

GRADIENT = table(r"""
    masked: their gradient is exactly 0, even where they hold NaN
    reduction: `"mean"` divides by $n$; `"sum"` and `"none"` do not, and give the gradient of each <unit>'s own loss.
    clip: bounds the value of the loss only, and does not change the gradient.
    whole: The gradient is that of whole rows, for this shard
    Returns: An array like <operand>.
    """)
"""What the gradient of a loss has in place of that."""

STATISTICS = table(r"""
    masked: their loss, gradient and statistics are exactly 0, even where they hold NaN, but `predicted` is -1 and
        `rank` the number of classes
    clip: <clip> Statistics are never clipped.
    reduction: <reduction> Statistics are never reduced.
    Returns: The loss, a scalar or for `"none"` an array `[...]`, and `CrossEntropyStats` of arrays `[...]`. `nll`,
        `lse` and `entropy` are differentiable like the loss, alone or together with it; gradients stop at the others.
    """)
"""What a loss with statistics has in place of that."""

OBJECTIVE = table(
    r"""
    result: result
    masked: `log_prob`, `entropy` and `lse` are 0 there and `mask` is false; no gradient flows, even where `hidden`
        holds NaN
    counted:
    mask: Shape `[...]`. A block of masked tokens alone counts 0, whatever the objective makes of it, and a chunk of
        them is skipped.
    normalizer: what the sum is divided by: a number or scalar array; or the number of unmasked `"tokens"`, of
        `"sequences"` or of `"groups"` (blocks) that have an unmasked token. Default: 1. Nothing is divided by 0: the
        value is then 0. Of a batch that `jax.shard_map` splits, it is the number of the device.
    whole: Statistics are those of the whole rows, the gradient that of the shard
    Returns: A scalar, float64 for float64 logits, else float32; with `has_aux`, a pair of it and the auxiliary results,
        summed over the blocks, not divided, and not differentiable. It is differentiable with respect to
        <differentiable>, and to arrays that `objective` closes over.
    TypeError: `hidden` or `kernel` is not floating-point, `objective` returns no scalar, or another argument is of the
        wrong kind.
    """,
    TOKENS,
)
"""What a caller's objective of tokens has in place of that."""
