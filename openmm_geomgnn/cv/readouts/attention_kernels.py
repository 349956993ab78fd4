"""Numba kernels of the read-out of a CV with a `mixers.AttentionMixer`; names and arguments are those of `mixer_kernels`."""

import math

import numpy as np

from openmm_geomgnn.cv.readouts.cache import keep_compiled
from openmm_geomgnn.cv.readouts.gelu_functions import gelu, gelu_slope
from openmm_geomgnn.cv.readouts.mlp_kernels import (
    end_room,
    input_room,
    kernel,
    make_features,
    make_features_vjp,
    parts_of,
    read_rows,
    read_rows_vjp,
    room,
    summing,
)
from torchmdnet_ext.compiled.node_kernels import layer_norm, layer_norm_vjp, matmul
from torchmdnet_ext.kernels.lanes import PANEL, increase, load16, store

EMBEDDING, BLOCKS = 3, 12  # offsets in a plan, see `attention`


@summing
def attend(all_three, heads, depth, weights, mixed):
    """Fill weights (heads, R, R) and mixed (R, W) from queries, keys and values (R, 3, W) of `depth` channels a head."""
    tokens = mixed.shape[0]
    scale = 1.0 / math.sqrt(depth)
    mixed[:] = 0
    for h in range(heads):
        first, last = h * depth, (h + 1) * depth
        for r in range(tokens):
            top = -np.inf
            for s in range(tokens):
                total = all_three[0, 0, 0] * 0
                for c in range(first, last):
                    total += all_three[r, 0, c] * all_three[s, 1, c]
                weights[h, r, s] = total * scale
                top = max(top, weights[h, r, s])
            total = 0.0
            for s in range(tokens):
                weights[h, r, s] = math.exp(weights[h, r, s] - top)
                total += weights[h, r, s]
            for s in range(tokens):
                weights[h, r, s] /= total
                for c in range(first, last):
                    mixed[r, c] += weights[h, r, s] * all_three[s, 2, c]


@summing
def attend_vjp(g_mixed, all_three, heads, depth, weights, g_all_three):
    """Fill g_all_three (R, 3, W)."""
    tokens = g_mixed.shape[0]
    scale = 1.0 / math.sqrt(depth)
    slopes = np.empty(tokens, g_mixed.dtype)
    g_all_three[:] = 0
    for h in range(heads):
        first, last = h * depth, (h + 1) * depth
        for r in range(tokens):
            mean = 0.0
            for s in range(tokens):
                total = g_mixed[0, 0] * 0
                for c in range(first, last):
                    total += g_mixed[r, c] * all_three[s, 2, c]
                slopes[s] = total
                mean += total * weights[h, r, s]
            for s in range(tokens):
                share = weights[h, r, s]
                slope = share * (slopes[s] - mean) * scale
                for c in range(first, last):
                    g_all_three[s, 2, c] += share * g_mixed[r, c]
                    g_all_three[r, 0, c] += slope * all_three[s, 1, c]
                    g_all_three[s, 1, c] += slope * all_three[r, 0, c]


@kernel
def add_rows(w, w0, step, out, rows, columns):
    """out (rows, columns) += those of `w` from w0 on, the next row `step` further."""
    for r in range(rows):
        for c in range(0, columns, PANEL):
            increase(out, r * columns + c, load16(w, w0 + r * step + c))


@kernel
def layers_room(kept, start, depth, tokens, width, deep, heads):
    """The parts of what is kept that the layers need; LayerNorm's values are those of all layers and of the last one."""
    normed, start = room(kept, start, 2 * depth + 1, tokens, width)
    inverse, start = room(kept, start, 2 * depth + 1, tokens)
    all_three, start = room(kept, start, depth, tokens, 3, width)
    weights, start = room(kept, start, depth, heads, tokens, tokens)
    before, start = room(kept, start, depth, tokens, deep)
    return normed, inverse, all_three, weights, before


@kernel
def attention(x, v, plan, w, head, size, heads, deep, norm_epsilon2, epsilon):
    """psi (d,) of a `mixers.AttentionMixer`, and what `attention_vjp` takes: an array of `size` numbers.

    plan: as that of `mixer_kernels.mlp` but for the layers. Before them are EMBEDDING offsets: weight, transposed weight,
    and the biases of all tokens. Each layer has BLOCKS: weight and bias of queries, keys and values, of what follows the
    attention, and of both layers of the feed-forward network; then these four weights transposed. deep: padded width of the
    feed-forward network.
    """
    own, token, shape, at, layers, share = parts_of(plan, w)
    tokens, wide, width, true, depth = shape[1], shape[3], shape[4], shape[5], shape[8]
    kept = np.empty(size, w.dtype)
    vectors, norms, start = input_room(kept, tokens, x.shape[1])
    last, scores, pooled, hidden, start = end_room(kept, start, tokens, width, shape[6])
    normed, inverse, all_three, weights, before = layers_room(kept, start, depth, tokens, width, deep, heads)
    features, rows = np.empty((tokens, wide), w.dtype), np.empty((tokens, width), w.dtype)
    mixed, after = np.empty((tokens, width), w.dtype), np.empty((tokens, deep), w.dtype)
    make_features(x, v, own, token, share, norm_epsilon2, w, at[1], at[2], vectors, norms, features)
    zeros, present, each = at[8], w[at[3] : at[3] + width], tokens * width
    matmul(features, 0, tokens, wide, w, layers[0], width, w, zeros, rows, 0, False)
    add_rows(w, layers[2], width, rows, tokens, width)
    for layer in range(depth):
        a = layers[EMBEDDING + layer * BLOCKS :]
        layer_norm(rows, 0, tokens, width, present, true, epsilon, normed, 2 * layer * each, inverse, 2 * layer)
        matmul(normed, 2 * layer * each, tokens, width, w, a[0], 3 * width, w, a[1], all_three, 3 * layer * each, False)
        attend(all_three[layer], heads, true // heads, weights[layer], mixed)
        add_rows(w, a[3], 0, rows, tokens, width)
        matmul(mixed, 0, tokens, width, w, a[2], width, w, zeros, rows, 0, True)
        layer_norm(rows, 0, tokens, width, present, true, epsilon, normed, (2 * layer + 1) * each, inverse, 2 * layer + 1)
        b0 = layer * tokens * deep
        matmul(normed, (2 * layer + 1) * each, tokens, width, w, a[4], deep, w, a[5], before, b0, False)
        for c in range(0, tokens * deep, PANEL):
            store(after, c, gelu(load16(before, b0 + c)))
        add_rows(w, a[7], 0, rows, tokens, width)
        matmul(after, 0, tokens, deep, w, a[6], width, w, zeros, rows, 0, True)
    layer_norm(rows, 0, tokens, width, present, true, epsilon, last, 0, inverse, 2 * depth)
    return read_rows(last, shape[7], w, at[4:], head, scores, pooled, hidden), kept


@kernel
def attention_vjp(weights_of_psi, plan, w, head, heads, deep, kept):
    """Gradients (M, H) by x and (M, 3, H) by v of the product of weights (d,) and psi."""
    own, token, shape, at, layers, share = parts_of(plan, w)
    tokens, wide, width, true, depth, channels = shape[1], shape[3], shape[4], shape[5], shape[8], shape[9]
    vectors, norms, start = input_room(kept, tokens, channels)
    last, scores, pooled, hidden, start = end_room(kept, start, tokens, width, shape[6])
    normed, inverse, all_three, weights, before = layers_room(kept, start, depth, tokens, width, deep, heads)
    g_rows, g_part = np.zeros((tokens, width), w.dtype), np.empty((tokens, width), w.dtype)
    g_all_three, g_deep = np.empty((tokens, 3, width), w.dtype), np.empty((tokens, deep), w.dtype)
    g_features = np.empty((tokens, wide), w.dtype)
    read_rows_vjp(weights_of_psi, last, shape[7], w, at[4:], head, scores, pooled, hidden, g_part)
    zeros, present, each = at[8], w[at[3] : at[3] + width], tokens * width
    layer_norm_vjp(g_part, tokens, width, present, true, last, 0, inverse, 2 * depth, g_rows)
    for layer in range(depth - 1, -1, -1):
        a = layers[EMBEDDING + layer * BLOCKS :]
        b0 = layer * tokens * deep
        matmul(g_rows, 0, tokens, width, w, a[11], deep, w, zeros, g_deep, 0, False)
        for c in range(0, tokens * deep, PANEL):
            store(g_deep, c, load16(g_deep, c) * gelu_slope(load16(before, b0 + c)))
        matmul(g_deep, 0, tokens, deep, w, a[10], width, w, zeros, g_part, 0, False)
        layer_norm_vjp(g_part, tokens, width, present, true, normed, (2 * layer + 1) * each, inverse, 2 * layer + 1, g_rows)
        matmul(g_rows, 0, tokens, width, w, a[9], width, w, zeros, g_part, 0, False)
        attend_vjp(g_part, all_three[layer], heads, true // heads, weights[layer], g_all_three)
        matmul(g_all_three, 0, tokens, 3 * width, w, a[8], width, w, zeros, g_part, 0, False)
        layer_norm_vjp(g_part, tokens, width, present, true, normed, 2 * layer * each, inverse, 2 * layer, g_rows)
    matmul(g_rows, 0, tokens, width, w, layers[1], wide, w, zeros, g_features, 0, False)
    g_x, g_v = np.empty((shape[2], channels), w.dtype), np.empty((shape[2], 3, channels), w.dtype)
    make_features_vjp(g_features, own, token, share, w, at[2], vectors, norms, g_x, g_v)
    return g_x, g_v


keep_compiled(attention)
keep_compiled(attention_vjp)
