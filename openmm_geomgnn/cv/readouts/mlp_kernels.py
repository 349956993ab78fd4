"""Numba kernels of the read-out of a CV with a `mixers.MLPMixer`; sizes and arrays as in `mixer_arguments`."""

import numpy as np

from openmm_geomgnn.cv.readouts.cache import keep_compiled
from openmm_geomgnn.cv.readouts.mixer_arguments import MLPKept, mlp_shapes
from openmm_geomgnn.cv.readouts.mixer_kernels import (
    kernel,
    make_features,
    make_features_vjp,
    part_of,
    read_rows,
    read_rows_vjp,
    silu_slope,
)
from torchmdnet_ext.compiled.node_kernels import layer_norm, layer_norm_vjp, matmul, silu
from torchmdnet_ext.kernels.lanes import PANEL, load16, splat16, store

_shapes = kernel(mlp_shapes)


@kernel
def _parts(memory, sizes):
    shapes = _shapes(sizes)
    vectors, start = part_of(memory, 0, shapes.vectors)
    norms, start = part_of(memory, start, shapes.norms)
    rows, start = part_of(memory, start, shapes.rows)
    scores, start = part_of(memory, start, shapes.scores)
    pooled, start = part_of(memory, start, shapes.pooled)
    last, start = part_of(memory, start, shapes.last)
    normed, start = part_of(memory, start, shapes.normed)
    inverse, start = part_of(memory, start, shapes.inverse)
    return MLPKept(vectors, norms, rows, scores, pooled, last, normed, inverse)


@kernel
def mlp(x, v, w, size):
    """psi (d,), and what `mlp_vjp` takes: an array of `size` numbers, all that `mlp_shapes` adds up to."""
    sizes, bias = w.sizes, w.bias
    tokens, width = sizes.tokens, sizes.width
    memory = np.empty(size, bias.dtype)
    kept = _parts(memory, sizes)
    rows, normed = kept.rows, kept.normed
    features, product = np.empty((tokens, sizes.features), bias.dtype), np.empty((tokens, width), bias.dtype)
    make_features(x, v, w.input, kept.vectors, kept.norms, features)
    for layer in range(sizes.layers):
        b0, y0 = layer * width, layer * tokens * width
        if layer == 0:
            matmul(features, 0, tokens, sizes.features, w.first, 0, width, bias, b0, product, 0, False)
        else:
            matmul(rows, 0, tokens, width, w.later, (layer - 1) * width * width, width, bias, b0, product, 0, False)
        layer_norm(product, 0, tokens, width, w.present, sizes.channels, w.epsilon, normed, y0, kept.inverse, layer)
        for r in range(0, tokens * width, width):
            for c in range(0, width, PANEL):
                y = load16(normed, y0 + r + c) * load16(w.gain, b0 + c) + load16(w.shift, b0 + c)
                store(rows, r + c, silu(y))
    return read_rows(rows, sizes.pool, w.output, kept.scores, kept.pooled, kept.last), memory


@kernel
def mlp_vjp(weights, w, memory):
    """Gradients (M, H) by x and (M, 3, H) by v of the product of weights (d,) and psi."""
    sizes, gain, zeros = w.sizes, w.gain, w.output.zeros
    tokens, width, hidden = sizes.tokens, sizes.width, sizes.hidden
    kept = _parts(memory, sizes)
    normed = kept.normed
    g_rows, g_product = np.empty_like(kept.rows), np.empty_like(kept.rows)
    g_features = np.empty((tokens, sizes.features), gain.dtype)
    read_rows_vjp(weights, kept.rows, sizes.pool, w.output, kept.scores, kept.pooled, kept.last, g_rows)
    one = splat16(gain, 1.0)
    for layer in range(sizes.layers - 1, -1, -1):
        b0, y0 = layer * width, layer * tokens * width
        for r in range(0, tokens * width, width):
            for c in range(0, width, PANEL):
                slope = silu_slope(load16(normed, y0 + r + c) * load16(gain, b0 + c) + load16(w.shift, b0 + c), one)
                store(g_rows, r + c, load16(g_rows, r + c) * slope * load16(gain, b0 + c))
        g_product[:] = 0
        layer_norm_vjp(g_rows, tokens, width, w.present, sizes.channels, normed, y0, kept.inverse, layer, g_product)
        if layer == 0:
            matmul(
                g_product, 0, tokens, width, w.first_transposed, 0, sizes.features, zeros, 0, g_features, 0, False
            )  # fmt: skip
        else:
            place = (layer - 1) * width * width
            matmul(g_product, 0, tokens, width, w.later_transposed, place, width, zeros, 0, g_rows, 0, False)
    g_x, g_v = np.empty((sizes.atoms, hidden), gain.dtype), np.empty((sizes.atoms, 3, hidden), gain.dtype)
    make_features_vjp(g_features, w.input, kept.vectors, kept.norms, g_x, g_v)
    return g_x, g_v


keep_compiled(mlp)
keep_compiled(mlp_vjp)
