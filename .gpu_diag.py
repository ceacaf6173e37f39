import sys; sys.path[:0] = ['tests/support', 'tests/losses', 'tests']
import numpy as np, jax, jax.numpy as jnp, jaxloss
import extended_precision
from tolerance import ulp_errors
import test_small_losses as t
x, labels = t.confident_rows(1000, jnp.float32)
softmax = extended_precision.Softmax(extended_precision.extended(x))
expected = softmax.entropy_gradient
scale = softmax.probability * np.maximum(softmax.below, softmax.mean_below[:, None])
for name, f in (("stats", lambda x: jaxloss.categorical_cross_entropy_with_stats(x, labels, clip=None, reduction="none")[1].entropy.sum()), ("entropy", lambda x: jaxloss.entropy(x).sum())):
    g = np.asarray(jax.jit(jax.grad(f))(x))
    e = np.asarray(ulp_errors(jnp.asarray(g), expected, scale)); a = t.allowed(x, labels)
    bad = np.argwhere(e > a[:, None])
    print(name, 'bad', len(bad), 'worst ratio', (e / a[:, None]).max())
    for r in sorted(set(bad[:, 0])):
        cols = bad[bad[:, 0] == r][:, 1]
        c = cols[np.argmax(e[r, cols])]
        print('row', r, 'gap', t.GAPS[r // 3], 'allowed', a[r], 'n', len(cols), 'worst at', c, 'label', labels[r], 'error', e[r, c], 'x', x[r, c], 'found', g[r, c], 'expected', float(expected[r, c]), 'scale', float(scale[r, c]), 'mean', float(softmax.mean_below[r]))
