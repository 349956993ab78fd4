"""Numba kernels of the read-out of a CV with a `mixers.AttentionMixer`; sizes and arrays as in `mixer_arguments`."""

import math

import numpy as np

from openmm_geomgnn.cv.readouts.cache import keep_compiled
from openmm_geomgnn.cv.readouts.gelu_functions import gelu, gelu_slope
from openmm_geomgnn.cv.readouts.mixer_arguments import (
    AttentionKept,
    AttentionWeights,
    AttentionWork,
    Sizes,
    attention_kept_shapes,
    attention_work_shapes,
)
from openmm_geomgnn.cv.readouts.mixer_kernels import (
    make_features,
    make_features_vjp,
    part_of,
    read_rows,
    read_rows_vjp,
    summing,
)
from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.compiled.node_kernels import layer_norm, layer_norm_vjp, matmul
from torchmdnet_ext.kernels.lanes import PANEL, increase, load16, store

_kept_shapes, _work_shapes = kernel(attention_kept_shapes), kernel(attention_work_shapes)


@summing
def attend(qkv: np.ndarray, heads: int, depth: int, weights: np.ndarray, mixed: np.ndarray) -> None:
    """Fill weights (heads, R, R) and mixed (R, W) from queries, keys and values (R, 3, W) of `depth` channels a head."""
    tokens = mixed.shape[0]
    scale = 1.0 / math.sqrt(depth)
    mixed[:] = 0
    for h in range(heads):
        first, last = h * depth, (h + 1) * depth
        for r in range(tokens):
            top = -np.inf
            for s in range(tokens):
                total = qkv[0, 0, 0] * 0
                for c in range(first, last):
                    total += qkv[r, 0, c] * qkv[s, 1, c]
                weights[h, r, s] = total * scale
                top = max(top, weights[h, r, s])
            total = 0.0
            for s in range(tokens):
                weights[h, r, s] = math.exp(weights[h, r, s] - top)
                total += weights[h, r, s]
            for s in range(tokens):
                weights[h, r, s] /= total
                for c in range(first, last):
                    mixed[r, c] += weights[h, r, s] * qkv[s, 2, c]


@summing
def attend_vjp(
    g_mixed: np.ndarray, qkv: np.ndarray, heads: int, depth: int, weights: np.ndarray, slopes: np.ndarray, g_qkv: np.ndarray
) -> None:
    """Fill g_qkv (R, 3, W); slopes (R,) is for work."""
    tokens = g_mixed.shape[0]
    scale = 1.0 / math.sqrt(depth)
    g_qkv[:] = 0
    for h in range(heads):
        first, last = h * depth, (h + 1) * depth
        for r in range(tokens):
            mean = 0.0
            for s in range(tokens):
                total = g_mixed[0, 0] * 0
                for c in range(first, last):
                    total += g_mixed[r, c] * qkv[s, 2, c]
                slopes[s] = total
                mean += total * weights[h, r, s]
            for s in range(tokens):
                share = weights[h, r, s]
                slope = share * (slopes[s] - mean) * scale
                for c in range(first, last):
                    g_qkv[s, 2, c] += share * g_mixed[r, c]
                    g_qkv[r, 0, c] += slope * qkv[s, 1, c]
                    g_qkv[s, 1, c] += slope * qkv[r, 0, c]


@kernel
def add_rows(rows: np.ndarray, at: int, step: int, out: np.ndarray, count: int, columns: int) -> None:
    """Add to `out` (count, columns) those of `rows` from `at` on, the next row `step` further."""
    for r in range(count):
        for c in range(0, columns, PANEL):
            increase(out, r * columns + c, load16(rows, at + r * step + c))


@kernel
def _kept_parts(memory: np.ndarray, sizes: Sizes) -> AttentionKept:
    shapes = _kept_shapes(sizes)
    vectors, start = part_of(memory, 0, shapes.vectors)
    norms, start = part_of(memory, start, shapes.norms)
    rows, start = part_of(memory, start, shapes.rows)
    scores, start = part_of(memory, start, shapes.scores)
    pooled, start = part_of(memory, start, shapes.pooled)
    last, start = part_of(memory, start, shapes.last)
    normed, start = part_of(memory, start, shapes.normed)
    inverse, start = part_of(memory, start, shapes.inverse)
    qkv, start = part_of(memory, start, shapes.qkv)
    weights, start = part_of(memory, start, shapes.weights)
    feedforward, start = part_of(memory, start, shapes.feedforward)
    return AttentionKept(vectors, norms, rows, scores, pooled, last, normed, inverse, qkv, weights, feedforward)


@kernel
def _work_parts(memory: np.ndarray, sizes: Sizes) -> AttentionWork:
    shapes = _work_shapes(sizes)
    features, start = part_of(memory, 0, shapes.features)
    rows, start = part_of(memory, start, shapes.rows)
    mixed, start = part_of(memory, start, shapes.mixed)
    feedforward, start = part_of(memory, start, shapes.feedforward)
    pooled, start = part_of(memory, start, shapes.pooled)
    last, start = part_of(memory, start, shapes.last)
    qkv, start = part_of(memory, start, shapes.qkv)
    slopes, start = part_of(memory, start, shapes.slopes)
    return AttentionWork(features, rows, mixed, feedforward, pooled, last, qkv, slopes)


@kernel
def attention(
    x: np.ndarray, v: np.ndarray, w: AttentionWeights, memory: np.ndarray, work_memory: np.ndarray, psi: np.ndarray
) -> None:
    """Fill psi (d,), and `memory`, of the size of all `attention_kept_shapes`, with what `attention_vjp` takes."""
    sizes, zeros = w.sizes, w.output.zeros
    tokens, width, heads, wide, channels = sizes.tokens, sizes.width, sizes.heads, sizes.feedforward, sizes.channels
    each, square, deep = tokens * width, width * width, width * wide
    kept, work = _kept_parts(memory, sizes), _work_parts(work_memory, sizes)
    normed, inverse, qkv, rows = kept.normed, kept.inverse, kept.qkv, work.rows
    make_features(x, v, w.input, kept.vectors, kept.norms, work.features)
    matmul(work.features, 0, tokens, sizes.features, w.embed, 0, width, zeros, 0, rows, 0, False)
    add_rows(w.embed_bias, 0, width, rows, tokens, width)
    for layer in range(sizes.layers):
        first, second = 2 * layer, 2 * layer + 1
        layer_norm(rows, 0, tokens, width, w.present, channels, w.epsilon, normed, first * each, inverse, first)
        matmul(
            normed, first * each, tokens, width, w.qkv, layer * 3 * square, 3 * width, w.qkv_bias, layer * 3 * width,
            qkv, 3 * layer * each, False,
        )  # fmt: skip
        attend(qkv[layer], heads, channels // heads, kept.weights[layer], work.mixed)
        add_rows(w.out_bias, layer * width, 0, rows, tokens, width)
        matmul(work.mixed, 0, tokens, width, w.out, layer * square, width, zeros, 0, rows, 0, True)
        layer_norm(rows, 0, tokens, width, w.present, channels, w.epsilon, normed, second * each, inverse, second)
        b0 = layer * tokens * wide
        matmul(
            normed, second * each, tokens, width, w.up, layer * deep, wide, w.up_bias, layer * wide,
            kept.feedforward, b0, False,
        )  # fmt: skip
        for c in range(0, tokens * wide, PANEL):
            store(work.feedforward, c, gelu(load16(kept.feedforward, b0 + c)))
        add_rows(w.down_bias, layer * width, 0, rows, tokens, width)
        matmul(work.feedforward, 0, tokens, wide, w.down, layer * deep, width, zeros, 0, rows, 0, True)
    layer_norm(rows, 0, tokens, width, w.present, channels, w.epsilon, kept.rows, 0, inverse, 2 * sizes.layers)
    read_rows(kept.rows, sizes.pool, w.output, kept.scores, kept.pooled, kept.last, work.last, psi)


@kernel
def attention_vjp(
    weights: np.ndarray, w: AttentionWeights, memory: np.ndarray, work_memory: np.ndarray, g_x: np.ndarray, g_v: np.ndarray
) -> None:
    """Fill the gradients (M, H) by x and (M, 3, H) by v of the product of weights (d,) and psi."""
    sizes, present, zeros = w.sizes, w.present, w.output.zeros
    tokens, width, heads, wide, channels = sizes.tokens, sizes.width, sizes.heads, sizes.feedforward, sizes.channels
    each, square, deep = tokens * width, width * width, width * wide
    kept, g = _kept_parts(memory, sizes), _work_parts(work_memory, sizes)
    normed, inverse = kept.normed, kept.inverse
    g.rows[:] = 0
    read_rows_vjp(weights, kept.rows, sizes.pool, w.output, kept.scores, kept.pooled, kept.last, g.pooled, g.last, g.mixed)
    layer_norm_vjp(g.mixed, tokens, width, present, channels, kept.rows, 0, inverse, 2 * sizes.layers, g.rows)
    for layer in range(sizes.layers - 1, -1, -1):
        first, second, b0 = 2 * layer, 2 * layer + 1, layer * tokens * wide
        matmul(g.rows, 0, tokens, width, w.down_transposed, layer * deep, wide, zeros, 0, g.feedforward, 0, False)
        for c in range(0, tokens * wide, PANEL):
            store(g.feedforward, c, load16(g.feedforward, c) * gelu_slope(load16(kept.feedforward, b0 + c)))
        matmul(g.feedforward, 0, tokens, wide, w.up_transposed, layer * deep, width, zeros, 0, g.mixed, 0, False)
        layer_norm_vjp(g.mixed, tokens, width, present, channels, normed, second * each, inverse, second, g.rows)
        matmul(g.rows, 0, tokens, width, w.out_transposed, layer * square, width, zeros, 0, g.mixed, 0, False)
        attend_vjp(g.mixed, kept.qkv[layer], heads, channels // heads, kept.weights[layer], g.slopes, g.qkv)
        matmul(g.qkv, 0, tokens, 3 * width, w.qkv_transposed, layer * 3 * square, width, zeros, 0, g.mixed, 0, False)
        layer_norm_vjp(g.mixed, tokens, width, present, channels, normed, first * each, inverse, first, g.rows)
    matmul(g.rows, 0, tokens, width, w.embed_transposed, 0, sizes.features, zeros, 0, g.features, 0, False)
    make_features_vjp(g.features, w.input, kept.vectors, kept.norms, g_x, g_v)


keep_compiled(attention)
keep_compiled(attention_vjp)
