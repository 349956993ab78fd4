"""Numba kernels of the read-out of a linear CV; see `openmm_geomgnn.cv.readouts`.

M window atoms, R tokens, H channels, d components. chi has the 2H features [x, |v|] of token after token, or of all tokens
pooled. All sums are in double precision.
"""

import math

import numpy as np
from numba import njit

from openmm_geomgnn.cv.readouts.cache import keep_compiled


@njit(error_model="numpy")
def read_out(
    x: np.ndarray,
    v: np.ndarray,
    own: np.ndarray,
    token: np.ndarray,
    share: np.ndarray,
    pooled: float,
    epsilon2: float,
    mean: np.ndarray,
    projection: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate psi (d,), and vectors (R, 3, H) and norms (R, H) of the tokens, which `read_out_vjp` takes.

    own (n,): the window atoms that count; token (n,): where; share (R,): factor of each token's sum. pooled: factor of the
    tokens' features in the chi (2H,) of all of them, or 0 for features side by side.
    """
    hidden = x.shape[1]
    vectors, norms = np.zeros((share.shape[0], 3, hidden)), np.empty((share.shape[0], hidden))
    chi, psi = np.zeros(mean.shape[0]), np.zeros(projection.shape[1])
    for k in range(own.shape[0]):
        m, r = own[k], token[k]
        place = 0 if pooled else 2 * r * hidden
        factor = share[r] * pooled if pooled else share[r]
        for c in range(hidden):
            chi[place + c] += factor * x[m, c]
        for d in range(3):
            for c in range(hidden):
                vectors[r, d, c] += share[r] * v[m, d, c]
    for r in range(vectors.shape[0]):
        place = hidden if pooled else (2 * r + 1) * hidden
        factor = pooled if pooled else 1.0
        for c in range(hidden):
            a, b, e = vectors[r, 0, c], vectors[r, 1, c], vectors[r, 2, c]
            norms[r, c] = math.sqrt(a * a + b * b + e * e + epsilon2)
            chi[place + c] += factor * norms[r, c]
    for k in range(chi.shape[0]):
        for d in range(psi.shape[0]):
            psi[d] += (chi[k] - mean[k]) * projection[k, d]
    return psi, vectors, norms


@njit(error_model="numpy")
def read_out_vjp(
    weights: np.ndarray,
    x: np.ndarray,
    own: np.ndarray,
    token: np.ndarray,
    share: np.ndarray,
    pooled: float,
    projection: np.ndarray,
    vectors: np.ndarray,
    norms: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients by x (M, H) and v (M, 3, H) of the product of the weights (d,) and psi."""
    atoms, hidden = x.shape
    g_x, g_v = np.zeros((atoms, hidden), x.dtype), np.zeros((atoms, 3, hidden), x.dtype)
    g_chi = np.zeros(projection.shape[0])
    for k in range(g_chi.shape[0]):
        for d in range(weights.shape[0]):
            g_chi[k] += projection[k, d] * weights[d]
    g_scalars, g_norms = np.empty_like(norms), np.empty_like(norms)
    for r in range(share.shape[0]):
        place = 0 if pooled else 2 * r * hidden
        factor = share[r] * pooled if pooled else share[r]
        for c in range(hidden):
            g_scalars[r, c] = factor * g_chi[place + c]
            g_norms[r, c] = factor * g_chi[place + hidden + c] / norms[r, c]
    for k in range(own.shape[0]):
        m, r = own[k], token[k]
        for c in range(hidden):
            g_x[m, c] = g_scalars[r, c]
        for d in range(3):
            for c in range(hidden):
                g_v[m, d, c] = g_norms[r, c] * vectors[r, d, c]
    return g_x, g_v


keep_compiled(read_out)
keep_compiled(read_out_vjp)
