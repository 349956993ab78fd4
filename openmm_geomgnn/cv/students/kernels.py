"""A student and its vector-Jacobian product for one frame, compiled with Numba: in double precision, tens of microseconds.

The functions keep nothing between calls; what the product needs of an evaluation is what the evaluation returned.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from openmm_geomgnn.cv.students.coordinates import COLLINEAR, TOUCHING
from openmm_geomgnn.cv.students.network import BOUND
from torchmdnet_ext.kernels.cache import keep_compiled, signatures

# sums in any order, which vector instructions need; not "nnan" and "ninf", so that what is not finite stays so
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_SOURCES = [Path(__file__).with_name(f"{name}.py") for name in ("kernels", "coordinates", "network")]


def _compiled(function: Callable[..., Any]) -> Any:
    return keep_compiled(njit(fastmath=_FAST, error_model="numpy")(function), _SOURCES)


@njit(fastmath=_FAST, error_model="numpy", inline="always")
def _cross(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float, float]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@njit(fastmath=_FAST, error_model="numpy", inline="always")
def _dot(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(fastmath=_FAST, error_model="numpy", inline="always")
def _between(pos: np.ndarray, i: int, j: int) -> tuple[float, float, float]:
    return pos[j, 0] - pos[i, 0], pos[j, 1] - pos[i, 1], pos[j, 2] - pos[i, 2]


@njit(fastmath=_FAST, error_model="numpy")
def _layer(weight: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """tanh(W x + b)."""
    out = np.empty(len(bias))
    for row in range(len(bias)):
        total = bias[row]
        for column in range(len(x)):
            total += weight[row, column] * x[column]
        out[row] = math.tanh(total)
    return out


@njit(fastmath=_FAST, error_model="numpy")
def _add_transposed(weight: np.ndarray, gradient: np.ndarray, out: np.ndarray) -> None:
    """Add W^T g to `out`."""
    for row in range(len(gradient)):
        factor = gradient[row]
        for column in range(len(out)):
            out[column] += weight[row, column] * factor


@_compiled
def forward(
    pos: np.ndarray,
    torsions: np.ndarray,
    distances: np.ndarray,
    mean: np.ndarray,
    inverse_scale: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
    w3: np.ndarray,
    b3: np.ndarray,
    w0: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate s (d,) on positions (n, 3) in angstrom; and the bounded coordinates and the outputs of both hidden layers."""
    count = len(torsions)
    x = np.empty(len(mean))
    for t in range(count):
        a = _between(pos, torsions[t, 0], torsions[t, 1])
        b = _between(pos, torsions[t, 1], torsions[t, 2])
        c = _between(pos, torsions[t, 2], torsions[t, 3])
        m, n = _cross(a, b), _cross(b, c)
        scale = 1.0 / math.sqrt((_dot(m, m) + COLLINEAR) * (_dot(n, n) + COLLINEAR))
        x[t] = _dot(m, n) * scale
        x[count + t] = math.sqrt(_dot(b, b) + TOUCHING) * _dot(a, n) * scale
    for k in range(len(distances)):
        r = _between(pos, distances[k, 0], distances[k, 1])
        x[2 * count + k] = math.sqrt(_dot(r, r) + TOUCHING)
    for k in range(len(x)):
        z = (x[k] - mean[k]) * inverse_scale[k]
        x[k] = z / math.sqrt(1.0 + (z / BOUND) ** 2)
    h1 = _layer(w1, b1, x)
    h2 = _layer(w2, b2, h1)
    s = b3.copy()
    for component in range(len(s)):
        for k in range(len(h2)):
            s[component] += w3[component, k] * h2[k]
        for k in range(len(x)):
            s[component] += w0[component, k] * x[k]
    return s, x, h1, h2


@_compiled
def backward(
    pos: np.ndarray,
    weights: np.ndarray,
    x: np.ndarray,
    h1: np.ndarray,
    h2: np.ndarray,
    torsions: np.ndarray,
    distances: np.ndarray,
    inverse_scale: np.ndarray,
    w1: np.ndarray,
    w2: np.ndarray,
    w3: np.ndarray,
    w0: np.ndarray,
) -> np.ndarray:
    """Gradient (n, 3) of the product of weights (d,) and s, from what `forward` returned at these positions."""
    g2 = np.zeros(len(h2))
    _add_transposed(w3, weights, g2)
    for k in range(len(g2)):
        g2[k] *= 1.0 - h2[k] * h2[k]
    g1 = np.zeros(len(h1))
    _add_transposed(w2, g2, g1)
    for k in range(len(g1)):
        g1[k] *= 1.0 - h1[k] * h1[k]
    g = np.zeros(len(x))
    _add_transposed(w0, weights, g)
    _add_transposed(w1, g1, g)
    for k in range(len(g)):
        # 1 - (x / BOUND)^2 is 1 / (1 + (z / BOUND)^2)
        inside = max(1.0 - (x[k] / BOUND) ** 2, 0.0)
        g[k] *= inside * math.sqrt(inside) * inverse_scale[k]

    out = np.zeros(pos.shape)
    count = len(torsions)
    for t in range(count):
        i, j, k, p = torsions[t]
        a, b, c = _between(pos, i, j), _between(pos, j, k), _between(pos, k, p)
        m, n = _cross(a, b), _cross(b, c)
        mm, nn = _dot(m, m) + COLLINEAR, _dot(n, n) + COLLINEAR
        scale, length, triple = 1.0 / math.sqrt(mm * nn), math.sqrt(_dot(b, b) + TOUCHING), _dot(a, n)
        by_cosine, by_sine = g[t] * scale, g[count + t] * scale
        by_scale = by_cosine * _dot(m, n) + by_sine * length * triple
        along_m, along_n = by_scale / mm, by_scale / nn
        # gradients by m = a x b and n = b x c, then by a, b and c
        gm = (by_cosine * n[0] - along_m * m[0], by_cosine * n[1] - along_m * m[1], by_cosine * n[2] - along_m * m[2])
        turn = by_sine * length
        gn = (
            by_cosine * m[0] + turn * a[0] - along_n * n[0],
            by_cosine * m[1] + turn * a[1] - along_n * n[1],
            by_cosine * m[2] + turn * a[2] - along_n * n[2],
        )
        first, second, third, fourth = _cross(b, gm), _cross(gm, a), _cross(c, gn), _cross(gn, b)
        stretch = by_sine * triple / length
        for axis in range(3):
            ga = first[axis] + turn * n[axis]
            gb = second[axis] + third[axis] + stretch * b[axis]
            gc = fourth[axis]
            out[i, axis] -= ga
            out[j, axis] += ga - gb
            out[k, axis] += gb - gc
            out[p, axis] += gc
    for k in range(len(distances)):
        i, j = distances[k]
        r = _between(pos, i, j)
        pull = g[2 * count + k] / math.sqrt(_dot(r, r) + TOUCHING)
        for axis in range(3):
            out[i, axis] -= pull * r[axis]
            out[j, axis] += pull * r[axis]
    return out


def needs_compiling() -> bool:
    """Whether the first evaluation will take long, since the kernels are neither in this process nor in their folder."""
    return not (signatures(forward) and signatures(backward))
