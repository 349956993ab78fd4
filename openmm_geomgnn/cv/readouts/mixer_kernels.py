"""Numba kernels that the read-outs of all mixers with weights share: features of tokens, pooling, projection.

Sizes and arrays as in `mixer_arguments`.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from openmm_geomgnn.cv.readouts.mixer_arguments import ATTENTION, FLATTEN, MEAN, Input, Output
from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.compiled.lane_functions import sigmoid
from torchmdnet_ext.compiled.node_kernels import matmul, silu
from torchmdnet_ext.kernels.lanes import PANEL, load16, splat16, store

# sums in any order, which vector instructions need; not "nnan" and "ninf", so that what is not finite stays so
summing = njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz"}, _nrt=False)


@summing
def make_features(
    x: np.ndarray, v: np.ndarray, input: Input, vectors: np.ndarray, norms: np.ndarray, features: np.ndarray
) -> None:
    """Fill vectors (R, 3, H) and norms (R, H) of the tokens, and features (R, F): (those - mean) * scale."""
    own, token, share, mean, scale, epsilon2 = input
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
            features[r, c] = (features[r, c] - mean[place + c]) * scale[place + c]


@summing
def make_features_vjp(
    g_features: np.ndarray, input: Input, vectors: np.ndarray, norms: np.ndarray, g_x: np.ndarray, g_v: np.ndarray
) -> None:
    """Fill g_x (M, H) and g_v (M, 3, H); g_features (R, F) is overwritten."""
    own, token, scale = input.own, input.token, input.scale
    hidden = g_x.shape[1]
    if own.shape[0] < g_x.shape[0]:
        g_x[:] = 0
        g_v[:] = 0
    for r in range(g_features.shape[0]):
        place, factor = r * 2 * hidden, input.share[r]
        for c in range(hidden):
            g_features[r, c] *= factor * scale[place + c]
            g_features[r, hidden + c] *= factor * scale[place + hidden + c] / norms[r, c]
    for k in range(own.shape[0]):
        m, r = own[k], token[k]
        for c in range(hidden):
            g_x[m, c] = g_features[r, c]
        for d in range(3):
            for c in range(hidden):
                g_v[m, d, c] = g_features[r, hidden + c] * vectors[r, d, c]


@kernel
def silu_slope(z: Any, one: Any) -> Any:
    """Evaluate the derivative of silu; `one` is 1 in all lanes of z."""
    s = sigmoid(z)
    return s * (one + z * (one - s))


@summing
def pool(rows: np.ndarray, kind: int, score: np.ndarray, scores: np.ndarray, pooled: np.ndarray) -> None:
    """Fill pooled (W,) from rows (R, W), and for attention the weights `scores` (R,) of the rows; not for flatten."""
    tokens, width = rows.shape
    if kind == ATTENTION:
        top = -np.inf
        for r in range(tokens):
            total = 0.0  # the bias is the same for all rows, so it has no effect
            for c in range(width):
                total += rows[r, c] * score[c]
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
def pool_vjp(
    g_pooled: np.ndarray, rows: np.ndarray, kind: int, score: np.ndarray, scores: np.ndarray, g_rows: np.ndarray
) -> None:
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
                g_rows[r, c] += scores[r] * (along - mean) * score[c]


@kernel
def read_rows(
    rows: np.ndarray,
    kind: int,
    output: Output,
    scores: np.ndarray,
    pooled: np.ndarray,
    last: np.ndarray,
    active: np.ndarray,
    psi: np.ndarray,
) -> None:
    """Fill psi (d,) from rows (R, W): pooled, a layer with silu, and a projection in double precision.

    Also fills pooled (W,), which flatten does without, and last (D,), the layer before its silu; active (D,) is for work.
    """
    columns = last.shape[0]
    if kind == FLATTEN:
        matmul(rows, 0, 1, rows.size, output.weight, 0, columns, output.bias, 0, last, 0, False)
    else:
        pool(rows, kind, output.score, scores, pooled)
        matmul(pooled, 0, 1, pooled.size, output.weight, 0, columns, output.bias, 0, last, 0, False)
    for c in range(0, columns, PANEL):
        store(active, c, silu(load16(last, c)))
    for k in range(psi.shape[0]):
        psi[k] = output.projection[columns, k]
    for c in range(columns):
        for k in range(psi.shape[0]):
            psi[k] += active[c] * output.projection[c, k]


@kernel
def read_rows_vjp(
    weights: np.ndarray,
    rows: np.ndarray,
    kind: int,
    output: Output,
    scores: np.ndarray,
    pooled: np.ndarray,
    last: np.ndarray,
    g_pooled: np.ndarray,
    g_last: np.ndarray,
    g_rows: np.ndarray,
) -> None:
    """Fill g_rows (R, W) from the weights (d,) of the components; g_pooled (W,) and g_last (D,) are for work."""
    columns = last.shape[0]
    for c in range(columns):
        total = 0.0
        for k in range(weights.shape[0]):
            total += output.projection[c, k] * weights[k]
        g_last[c] = total
    one = splat16(last, 1.0)
    for c in range(0, columns, PANEL):
        store(g_last, c, load16(g_last, c) * silu_slope(load16(last, c), one))
    if kind == FLATTEN:
        matmul(g_last, 0, 1, columns, output.transposed, 0, g_rows.size, output.zeros, 0, g_rows, 0, False)
    else:
        matmul(g_last, 0, 1, columns, output.transposed, 0, pooled.size, output.zeros, 0, g_pooled, 0, False)
        pool_vjp(g_pooled, rows, kind, output.score, scores, g_rows)


@kernel
def part_of(memory: np.ndarray, start: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """The part of an array from `start` on, and where the next one begins."""
    size = 1
    for one in shape:
        size *= one
    return memory[start : start + size].reshape(shape), start + size
