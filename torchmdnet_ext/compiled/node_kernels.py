"""Numba kernels of everything that happens at single atoms: matrix products, layer norms, residuals.

Arrays are C-contiguous; arguments named like `x0` are offsets into the array `x`, in elements.
M atoms, S = 3 or 8 components of vectors, C channels (padded to whole panels).
"""

import math

from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.compiled.lane_functions import sigmoid
from torchmdnet_ext.kernels.lanes import (
    PANEL,
    WIDTH,
    increase,
    load8,
    load16,
    product1,
    product2,
    product3,
    product4,
    product5,
    product6,
    splat8,
    splat16,
    store,
    total8,
)

MOST_ROWS = 6  # of a block of `matmul`: their totals stay in registers


@kernel
def silu(value):
    """The product of a value and its sigmoid."""
    return value * sigmoid(value)


@kernel
def matmul(a, a0, rows, inner, packed, w0, columns, bias, b0, out, out0, add, activate=False):
    """`out` (rows, columns) = a (rows, inner) @ packed + bias, or += without the bias where `add` is set.

    With `activate`, the silu of that (not with `add`). `packed` (columns / PANEL, inner, PANEL) holds panels of columns;
    a0, w0, b0, out0 are offsets.
    """
    blocks = (rows + MOST_ROWS - 1) // MOST_ROWS
    for panel in range(columns // PANEL):
        w, o, m = w0 + panel * inner * PANEL, out0 + panel * PANEL, 0
        start = splat16(out, 0.0) if add else load16(bias, b0 + panel * PANEL)
        for left in range(blocks, 0, -1):
            # blocks of about as many rows: one of a single row would take as long as one of four
            count = (rows - m + left - 1) // left
            s, r = a0 + m * inner, o + m * columns
            if count == 6:
                product6(a, s, inner, packed, w, start, out, r, columns, add)
            elif count == 5:
                product5(a, s, inner, packed, w, start, out, r, columns, add)
            elif count == 4:
                product4(a, s, inner, packed, w, start, out, r, columns, add)
            elif count == 3:
                product3(a, s, inner, packed, w, start, out, r, columns, add)
            elif count == 2:
                product2(a, s, inner, packed, w, start, out, r, columns, add)
            else:
                product1(a, s, inner, packed, w, start, out, r, columns, add)
            m += count
        if activate:
            for r in range(o, o + rows * columns, columns):
                store(out, r, silu(load16(out, r)))


@kernel
def layer_norm(x, x0, atoms, channels, present, features, epsilon, out, out0, inverse, row):
    """Without the affine part; `present` (C,) is 0 on padding, `features` the number of true channels."""
    for m in range(atoms):
        start = x0 + m * channels
        total = splat8(x, 0.0)
        for c in range(0, channels, WIDTH):
            total = total + load8(x, start + c)
        mean = splat8(x, total8(total) / features)
        total = splat8(x, 0.0)
        for c in range(0, channels, WIDTH):
            d = (load8(x, start + c) - mean) * load8(present, c)
            total = total + d * d
            store(out, out0 + m * channels + c, d)
        scale = 1.0 / math.sqrt(total8(total) / features + epsilon)
        inverse[row, m] = scale
        s = splat8(x, scale)
        for c in range(0, channels, WIDTH):
            store(out, out0 + m * channels + c, load8(out, out0 + m * channels + c) * s)


@kernel
def layer_norm_vjp(g, atoms, channels, present, features, y, y0, inverse, row, out):
    """`out` += gradient with respect to the input, from that of the output `g` (M, C) and the output `y`."""
    for m in range(atoms):
        start = m * channels
        plain, projected = splat8(g, 0.0), splat8(g, 0.0)
        for c in range(0, channels, WIDTH):
            gc = load8(g, start + c)
            plain = plain + gc
            projected = projected + gc * load8(y, y0 + start + c)
        mean, along = splat8(g, total8(plain) / features), splat8(g, total8(projected) / features)
        s = splat8(g, inverse[row, m])
        for c in range(0, channels, WIDTH):
            d = load8(g, start + c) - mean - load8(y, y0 + start + c) * along
            increase(out, start + c, d * s * load8(present, c))


@kernel
def update(atoms, components, channels, mixed, mixed0, projected, p0, width, vec, vec0, total_v, x):
    """Residuals: x += vec_dot * o2 + o3 in place, the next layer's vec = vec + vec3 * o1 + total_v.

    mixed (M, 3C) is o; projected (M, S, width) starts with vec1, vec2, vec3.
    """
    next0 = vec0 + atoms * components * channels
    for m in range(atoms):
        for c in range(0, channels, PANEL):
            o = mixed0 + m * 3 * channels + c
            o1 = load16(mixed, o)
            dot = splat16(x, 0.0)
            for component in range(components):
                p = p0 + (m * components + component) * width + c
                v = (m * components + component) * channels + c
                dot = dot + load16(projected, p) * load16(projected, p + channels)
                new = load16(vec, vec0 + v) + load16(total_v, v) + load16(projected, p + 2 * channels) * o1
                store(vec, next0 + v, new)
            increase(x, m * channels + c, dot * load16(mixed, o + channels) + load16(mixed, o + 2 * channels))


@kernel
def update_vjp(atoms, components, channels, mixed, mixed0, projected, p0, width, g_x, g_vec, g_mixed, g_projected):
    """Fill g_mixed (M, 3C), and of g_projected (M, S, width) the first three parts."""
    for m in range(atoms):
        for c in range(0, channels, PANEL):
            o = m * 3 * channels + c
            o1, o2 = load16(mixed, mixed0 + o), load16(mixed, mixed0 + o + channels)
            gx = load16(g_x, m * channels + c)
            g_dot = gx * o2
            dot, g1 = splat16(g_x, 0.0), splat16(g_x, 0.0)
            for component in range(components):
                p = (m * components + component) * width + c
                v1, v2 = load16(projected, p0 + p), load16(projected, p0 + p + channels)
                gv = load16(g_vec, (m * components + component) * channels + c)
                dot = dot + v1 * v2
                g1 = g1 + gv * load16(projected, p0 + p + 2 * channels)
                store(g_projected, p, g_dot * v2)
                store(g_projected, p + channels, g_dot * v1)
                store(g_projected, p + 2 * channels, gv * o1)
            store(g_mixed, o, g1)
            store(g_mixed, o + channels, gx * dot)
            store(g_mixed, o + 2 * channels, gx)


@kernel
def copy_lanes(source, source0, out, out0, count):
    """Copy whole lanes: `count` numbers."""
    for c in range(0, count, WIDTH):
        store(out, out0 + c, load8(source, source0 + c))


@kernel
def set_zero(out, out0, count):
    """Set whole lanes to zero: `count` numbers."""
    for c in range(0, count, WIDTH):
        store(out, out0 + c, splat8(out, 0.0))
