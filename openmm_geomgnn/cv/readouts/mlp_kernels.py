"""Numba kernels of the read-out of a CV with a `mixers.MLPMixer`; sizes and arrays as in `mixer_arguments`."""

import numpy as np

from openmm_geomgnn.cv.readouts.cache import keep_compiled
from openmm_geomgnn.cv.readouts.mixer_arguments import MLPKept, MLPWeights, MLPWork, Sizes, mlp_kept_shapes, mlp_work_shapes
from openmm_geomgnn.cv.readouts.mixer_kernels import (
    make_features,
    make_features_vjp,
    part_of,
    read_rows,
    read_rows_vjp,
    silu_slope,
)
from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.compiled.node_kernels import layer_norm, layer_norm_vjp, matmul, silu
from torchmdnet_ext.kernels.lanes import PANEL, load16, splat16, store

_kept_shapes, _work_shapes = kernel(mlp_kept_shapes), kernel(mlp_work_shapes)


@kernel
def _kept_parts(memory: np.ndarray, sizes: Sizes) -> MLPKept:
    shapes = _kept_shapes(sizes)
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
def _work_parts(memory: np.ndarray, sizes: Sizes) -> MLPWork:
    shapes = _work_shapes(sizes)
    features, start = part_of(memory, 0, shapes.features)
    product, start = part_of(memory, start, shapes.product)
    rows, start = part_of(memory, start, shapes.rows)
    pooled, start = part_of(memory, start, shapes.pooled)
    last, start = part_of(memory, start, shapes.last)
    return MLPWork(features, product, rows, pooled, last)


@kernel
def mlp(x: np.ndarray, v: np.ndarray, w: MLPWeights, memory: np.ndarray, work_memory: np.ndarray, psi: np.ndarray) -> None:
    """Fill psi (d,), and `memory`, of the size of all `mlp_kept_shapes`, with what `mlp_vjp` takes."""
    sizes, bias = w.sizes, w.bias
    tokens, width = sizes.tokens, sizes.width
    kept, work = _kept_parts(memory, sizes), _work_parts(work_memory, sizes)
    rows, normed = kept.rows, kept.normed
    make_features(x, v, w.input, kept.vectors, kept.norms, work.features)
    for layer in range(sizes.layers):
        b0, y0 = layer * width, layer * tokens * width
        if layer == 0:
            matmul(work.features, 0, tokens, sizes.features, w.first, 0, width, bias, b0, work.product, 0, False)
        else:
            place = (layer - 1) * width * width
            matmul(rows, 0, tokens, width, w.later, place, width, bias, b0, work.product, 0, False)
        layer_norm(work.product, 0, tokens, width, w.present, sizes.channels, w.epsilon, normed, y0, kept.inverse, layer)
        for r in range(0, tokens * width, width):
            for c in range(0, width, PANEL):
                y = load16(normed, y0 + r + c) * load16(w.gain, b0 + c) + load16(w.shift, b0 + c)
                store(rows, r + c, silu(y))
    read_rows(rows, sizes.pool, w.output, kept.scores, kept.pooled, kept.last, work.last, psi)


@kernel
def mlp_vjp(
    weights: np.ndarray, w: MLPWeights, memory: np.ndarray, work_memory: np.ndarray, g_x: np.ndarray, g_v: np.ndarray
) -> None:
    """Fill the gradients (M, H) by x and (M, 3, H) by v of the product of weights (d,) and psi."""
    sizes, gain, zeros = w.sizes, w.gain, w.output.zeros
    tokens, width = sizes.tokens, sizes.width
    kept, g = _kept_parts(memory, sizes), _work_parts(work_memory, sizes)
    normed = kept.normed
    read_rows_vjp(weights, kept.rows, sizes.pool, w.output, kept.scores, kept.pooled, kept.last, g.pooled, g.last, g.rows)
    one = splat16(gain, 1.0)
    for layer in range(sizes.layers - 1, -1, -1):
        b0, y0 = layer * width, layer * tokens * width
        for r in range(0, tokens * width, width):
            for c in range(0, width, PANEL):
                slope = silu_slope(load16(normed, y0 + r + c) * load16(gain, b0 + c) + load16(w.shift, b0 + c), one)
                store(g.rows, r + c, load16(g.rows, r + c) * slope * load16(gain, b0 + c))
        g.product[:] = 0
        layer_norm_vjp(g.rows, tokens, width, w.present, sizes.channels, normed, y0, kept.inverse, layer, g.product)
        if layer == 0:
            matmul(g.product, 0, tokens, width, w.first_transposed, 0, sizes.features, zeros, 0, g.features, 0, False)
        else:
            place = (layer - 1) * width * width
            matmul(g.product, 0, tokens, width, w.later_transposed, place, width, zeros, 0, g.rows, 0, False)
    make_features_vjp(g.features, w.input, kept.vectors, kept.norms, g_x, g_v)


keep_compiled(mlp)
keep_compiled(mlp_vjp)
