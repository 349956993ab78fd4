"""Numba kernels of the read-out of a CV with a mixer that has weights; see `openmm_geomgnn.cv.readouts.compiled`.

M window atoms, R tokens, H channels, d components. F features of a token, width W of a mixer and D of its last hidden layer
are padded with zeros to whole panels. All weights are in one array; arguments named like `x0` are offsets into the array
`x`. What a vector-Jacobian product needs of an evaluation is in the array that the evaluation returned.
"""

import math

import numpy as np
from numba import njit

from openmm_geomgnn.cv.readouts.cache import keep_compiled
from torchmdnet_ext.compiled.lane_functions import sigmoid
from torchmdnet_ext.compiled.node_kernels import layer_norm, layer_norm_vjp, matmul, silu
from torchmdnet_ext.kernels.lanes import PANEL, load16, splat16, store

# sums in any order, which vector instructions need; not "nnan" and "ninf", so that what is not finite stays so
summing = njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
kernel = njit(error_model="numpy")

FLATTEN, SUM, MEAN, ATTENTION = range(4)
SIZES, OFFSETS = 10, 9  # at the beginning of a plan, see `mlp`
START = SIZES + OFFSETS


@summing
def make_features(x, v, own, token, share, epsilon2, w, mean0, scale0, vectors, norms, features):
    """Fill vectors (R, 3, H) and norms (R, H) of the tokens, and features (R, F): (those - mean) * scale.

    own (n,): the window atoms that count; token (n,): where; share (R,): factor of each token's sum. mean and scale are
    (R, 2 * H).
    """
    hidden = x.shape[1]
    vectors[:] = 0
    features[:] = 0
    for k in range(own.shape[0]):
        m, r = own[k], token[k]
        factor = share[r]
        for c in range(hidden):
            features[r, c] += factor * x[m, c]
        for d in range(3):
            for c in range(hidden):
                vectors[r, d, c] += factor * v[m, d, c]
    for r in range(features.shape[0]):
        for c in range(hidden):
            a, b, e = vectors[r, 0, c], vectors[r, 1, c], vectors[r, 2, c]
            norms[r, c] = math.sqrt(a * a + b * b + e * e + epsilon2)
            features[r, hidden + c] = norms[r, c]
        place = r * 2 * hidden
        for c in range(2 * hidden):
            features[r, c] = (features[r, c] - w[mean0 + place + c]) * w[scale0 + place + c]


@summing
def make_features_vjp(g_features, own, token, share, w, scale0, vectors, norms, g_x, g_v):
    """Fill g_x (M, H) and g_v (M, 3, H); g_features (R, F) is overwritten."""
    hidden = g_x.shape[1]
    if own.shape[0] < g_x.shape[0]:
        g_x[:] = 0
        g_v[:] = 0
    for r in range(g_features.shape[0]):
        place, factor = scale0 + r * 2 * hidden, share[r]
        for c in range(hidden):
            g_features[r, c] *= factor * w[place + c]
            g_features[r, hidden + c] *= factor * w[place + hidden + c] / norms[r, c]
    for k in range(own.shape[0]):
        m, r = own[k], token[k]
        for c in range(hidden):
            g_x[m, c] = g_features[r, c]
        for d in range(3):
            for c in range(hidden):
                g_v[m, d, c] = g_features[r, hidden + c] * vectors[r, d, c]


@kernel
def silu_slope(z, one):
    s = sigmoid(z)
    return s * (one + z * (one - s))


@summing
def pool(rows, kind, w, score0, scores, pooled):
    """Fill pooled (W,) from rows (R, W), and for attention the weights `scores` (R,) of the rows; not for flatten."""
    tokens, width = rows.shape
    if kind == ATTENTION:
        top = -np.inf
        for r in range(tokens):
            total = 0.0  # the bias is the same for all rows, so it has no effect
            for c in range(width):
                total += rows[r, c] * w[score0 + c]
            scores[r] = total
            top = max(top, total)
        total = 0.0
        for r in range(tokens):
            scores[r] = math.exp(scores[r] - top)
            total += scores[r]
        for r in range(tokens):
            scores[r] /= total
    else:
        scores[:] = 1.0 / tokens if kind == MEAN else 1.0
    pooled[:] = 0
    for r in range(tokens):
        for c in range(width):
            pooled[c] += scores[r] * rows[r, c]


@summing
def pool_vjp(g_pooled, rows, kind, w, score0, scores, g_rows):
    """Fill g_rows (R, W)."""
    tokens, width = rows.shape
    mean = 0.0
    for r in range(tokens):
        along = 0.0
        for c in range(width):
            along += g_pooled[c] * rows[r, c]
        mean += scores[r] * along
    for r in range(tokens):
        for c in range(width):
            g_rows[r, c] = scores[r] * g_pooled[c]
        if kind == ATTENTION:
            along = 0.0
            for c in range(width):
                along += g_pooled[c] * rows[r, c]
            for c in range(width):
                g_rows[r, c] += scores[r] * (along - mean) * w[score0 + c]


@kernel
def read_rows(rows, kind, w, at, head, scores, pooled, hidden):
    """psi (d,) of rows (R, W): pooled, a layer with silu, and the matrix and shift `head` (D + 1, d) in double precision.

    Fills pooled (W,), which flatten does without, and hidden (D,): the last layer before its silu. at: offsets into `w` of
    that layer's weight and bias, the weights of attention's scores, the transposed weight, and zeros.
    """
    columns = hidden.shape[0]
    if kind == FLATTEN:
        matmul(rows, 0, 1, rows.size, w, at[0], columns, w, at[1], hidden, 0, False)
    else:
        pool(rows, kind, w, at[2], scores, pooled)
        matmul(pooled, 0, 1, pooled.size, w, at[0], columns, w, at[1], hidden, 0, False)
    active = np.empty_like(hidden)
    for c in range(0, columns, PANEL):
        store(active, c, silu(load16(hidden, c)))
    psi = head[columns].copy()
    for c in range(columns):
        for k in range(psi.shape[0]):
            psi[k] += active[c] * head[c, k]
    return psi


@kernel
def read_rows_vjp(weights, rows, kind, w, at, head, scores, pooled, hidden, g_rows):
    """Fill g_rows (R, W) from the weights (d,) of the components."""
    columns = hidden.shape[0]
    g_hidden = np.empty_like(hidden)
    for c in range(columns):
        total = 0.0
        for k in range(weights.shape[0]):
            total += head[c, k] * weights[k]
        g_hidden[c] = total
    one = splat16(w, 1.0)
    for c in range(0, columns, PANEL):
        store(g_hidden, c, load16(g_hidden, c) * silu_slope(load16(hidden, c), one))
    if kind == FLATTEN:
        matmul(g_hidden, 0, 1, columns, w, at[3], g_rows.size, w, at[4], g_rows, 0, False)
    else:
        g_pooled = np.empty_like(pooled)
        matmul(g_hidden, 0, 1, columns, w, at[3], pooled.size, w, at[4], g_pooled, 0, False)
        pool_vjp(g_pooled, rows, kind, w, at[2], scores, g_rows)


@kernel
def parts_of(plan, w):
    """Own atoms, their tokens, sizes, offsets and layers of a plan, and the share of each token; see `mlp`."""
    shape, at = plan[:SIZES], plan[SIZES:START]
    own, tokens = shape[0], shape[1]
    layers = plan[START + 2 * own :]
    share = w[at[0] : at[0] + tokens]
    return plan[START : START + own], plan[START + own : START + 2 * own], shape, at, layers, share


@kernel
def room(kept, start, *sizes):
    """A part of an array, and where the next one begins."""
    size = 1
    for one in sizes:
        size *= one
    return kept[start : start + size].reshape(sizes), start + size


@kernel
def input_room(kept, tokens, hidden):
    """The parts of what is kept that the beginning needs: vectors and norms of the tokens; and where others begin."""
    vectors, start = room(kept, 0, tokens, 3, hidden)
    norms, start = room(kept, start, tokens, hidden)
    return vectors, norms, start


@kernel
def end_room(kept, start, tokens, width, deep):
    """The parts of what is kept that the end needs: rows, scores, pooled rows and the last hidden layer; as above."""
    rows, start = room(kept, start, tokens, width)
    scores, start = room(kept, start, tokens)
    pooled, start = room(kept, start, width)
    hidden, start = room(kept, start, deep)
    return rows, scores, pooled, hidden, start


@kernel
def mlp_room(kept, start, depth, tokens, width):
    normed, start = room(kept, start, depth, tokens, width)
    inverse, start = room(kept, start, depth, tokens)
    return normed, inverse, start


@kernel
def mlp(x, v, plan, w, head, size, norm_epsilon2, epsilon):
    """psi (d,) of a `mixers.MLPMixer`, and what `mlp_vjp` takes: an array of `size` numbers.

    plan: SIZES sizes, which are the number of window atoms that count, R, M, padded F, padded W, W, padded D, kind of pool,
    number of layers and H; OFFSETS offsets into `w`: of the tokens' shares, mean, scale, the mask of channels that are no
    padding, then those of `read_rows`; atoms that count, their tokens; of each layer the offsets of weight, bias, gain and
    bias of LayerNorm, and transposed weight. norm_epsilon2: of the norms of vectors; epsilon: of LayerNorm.
    """
    own, token, shape, at, layers, share = parts_of(plan, w)
    tokens, wide, width, depth = shape[1], shape[3], shape[4], shape[8]
    kept = np.empty(size, w.dtype)
    vectors, norms, start = input_room(kept, tokens, x.shape[1])
    rows, scores, pooled, hidden, start = end_room(kept, start, tokens, width, shape[6])
    normed, inverse, _ = mlp_room(kept, start, depth, tokens, width)
    features, product = np.empty((tokens, wide), w.dtype), np.empty((tokens, width), w.dtype)
    make_features(x, v, own, token, share, norm_epsilon2, w, at[1], at[2], vectors, norms, features)
    present = w[at[3] : at[3] + width]
    for layer in range(depth):
        weight, bias, gain, shift = layers[5 * layer], layers[5 * layer + 1], layers[5 * layer + 2], layers[5 * layer + 3]
        if layer == 0:
            matmul(features, 0, tokens, wide, w, weight, width, w, bias, product, 0, False)
        else:
            matmul(rows, 0, tokens, width, w, weight, width, w, bias, product, 0, False)
        y0 = layer * tokens * width
        layer_norm(product, 0, tokens, width, present, shape[5], epsilon, normed, y0, inverse, layer)
        for r in range(0, tokens * width, width):
            for c in range(0, width, PANEL):
                store(rows, r + c, silu(load16(normed, y0 + r + c) * load16(w, gain + c) + load16(w, shift + c)))
    return read_rows(rows, shape[7], w, at[4:], head, scores, pooled, hidden), kept


@kernel
def mlp_vjp(weights, plan, w, head, kept):
    """Gradients (M, H) by x and (M, 3, H) by v of the product of weights (d,) and psi."""
    own, token, shape, at, layers, share = parts_of(plan, w)
    tokens, wide, width, depth, channels = shape[1], shape[3], shape[4], shape[8], shape[9]
    vectors, norms, start = input_room(kept, tokens, channels)
    rows, scores, pooled, hidden, start = end_room(kept, start, tokens, width, shape[6])
    normed, inverse, _ = mlp_room(kept, start, depth, tokens, width)
    g_rows, g_product = np.empty_like(rows), np.empty_like(rows)
    g_features = np.empty((tokens, wide), w.dtype)
    read_rows_vjp(weights, rows, shape[7], w, at[4:], head, scores, pooled, hidden, g_rows)
    present, one = w[at[3] : at[3] + width], splat16(w, 1.0)
    for layer in range(depth - 1, -1, -1):
        gain, shift, transposed = layers[5 * layer + 2], layers[5 * layer + 3], layers[5 * layer + 4]
        y0 = layer * tokens * width
        for r in range(0, tokens * width, width):
            for c in range(0, width, PANEL):
                slope = silu_slope(load16(normed, y0 + r + c) * load16(w, gain + c) + load16(w, shift + c), one)
                store(g_rows, r + c, load16(g_rows, r + c) * slope * load16(w, gain + c))
        g_product[:] = 0
        layer_norm_vjp(g_rows, tokens, width, present, shape[5], normed, y0, inverse, layer, g_product)
        if layer == 0:
            matmul(g_product, 0, tokens, width, w, transposed, wide, w, at[8], g_features, 0, False)
        else:
            matmul(g_product, 0, tokens, width, w, transposed, width, w, at[8], g_rows, 0, False)
    g_x, g_v = np.empty((shape[2], channels), w.dtype), np.empty((shape[2], 3, channels), w.dtype)
    make_features_vjp(g_features, own, token, share, w, at[2], vectors, norms, g_x, g_v)
    return g_x, g_v


keep_compiled(mlp)
keep_compiled(mlp_vjp)
