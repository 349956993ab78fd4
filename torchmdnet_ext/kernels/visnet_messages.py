"""Numba kernels of ViSNet's messages and edge updates, and of their vector-Jacobian products, for training.

Edges come in chunks that stay in the cache while they are processed from start to end, between products of matrices that the
caller makes. A chunk has both directions of some pairs, or self loops: edges e0 ... e0 + count - 1 of all. Their features
are rows of their own or, up to the first update, one row for both directions: then the edges of the first direction use the
`rows` lines of the chunk in their order, and those of the second use them again.

Sizes: N atoms, E edges, S = 3 or 8 components of vectors, C channels in `heads` of a multiple of WIDTH channels. Arrays, all
C-contiguous and of one type: edge (E, 2 + S) with the factor of the attention, that of the message and the direction;
qkv (N, 3C); vec (N, S, C); projected (N, S, 2C or with vertex geometry 4C), the vectors of the edge update, of target and
source and of the target twice. Of a chunk: linear (rows, 2C, 3C or 4C), linear maps of the edge features before the
activation (keys, values, update); product (count, heads), the attention before the activation; message (count, C);
factors (count, C or 2C), what multiplies directions and, where there are vectors, those, before the activation. `gated`: vec
is not 0. Gradients have the prefix `g_`; those of arrays over atoms are added to.
"""

from pathlib import Path
from typing import Any

from numba import njit

from torchmdnet_ext.compiled import jit, lane_functions
from torchmdnet_ext.compiled.lane_functions import sigmoid
from torchmdnet_ext.kernels import lanes
from torchmdnet_ext.kernels.cache import keep_compiled
from torchmdnet_ext.kernels.lanes import WIDTH, broadcast8, increase, load8, splat8, store, total8

SOURCES = (Path(__file__), Path(lanes.__file__), Path(jit.__file__), Path(lane_functions.__file__))
kernel: Any = njit(error_model="numpy", nogil=True)


@kernel
def _add_and_activate(rows, width, linear, bias, active):
    """Add the bias to `linear` (rows, width), and fill `active` with silu of that."""
    for k in range(0, rows * width, width):
        for c in range(0, width, WIDTH):
            value = load8(linear, k + c) + load8(bias, c)
            store(linear, k + c, value)
            store(active, k + c, value * sigmoid(value))


@kernel
def _activate(count, linear, active, slope):
    """Fill `active` with silu of `count` numbers, and `slope` with its derivatives."""
    one = splat8(linear, 1.0)
    for k in range(0, count, WIDTH):
        value = load8(linear, k)
        s = sigmoid(value)
        value = value * s
        store(active, k, value)
        store(slope, k, s + value * (one - s))


@kernel
def attend(e0, rows, source, target, edge, qkv, linear, bias, active, product, attention, message):
    """Fill product, message and `active`, silu of the linear maps, to which the bias is added.

    attention (at least count * heads, in whole lanes) is scratch.
    """
    count, heads = product.shape
    channels, width, stride = message.shape[1], linear.shape[1], edge.shape[1]
    head = channels // heads
    _add_and_activate(rows, width, linear, bias, active)
    for k in range(count):
        q, key = target[e0 + k] * 3 * channels, source[e0 + k] * 3 * channels + channels
        at = (k if k < rows else k - rows) * width
        for h in range(heads):
            total = splat8(qkv, 0.0)
            for _ in range(0, head, WIDTH):
                total = total + load8(qkv, q) * load8(qkv, key) * load8(active, at)
                q, key, at = q + WIDTH, key + WIDTH, at + WIDTH
            product[k, h] = total8(total)
            attention[k * heads + h] = product[k, h]
    for k in range(0, count * heads, WIDTH):
        a = load8(attention, k)
        store(attention, k, a * sigmoid(a))
    for k in range(count):
        cut = broadcast8(edge, (e0 + k) * stride)
        value, out = source[e0 + k] * 3 * channels + 2 * channels, k * channels
        at = (k if k < rows else k - rows) * width + channels
        for h in range(heads):
            a = broadcast8(attention, k * heads + h) * cut
            for _ in range(0, head, WIDTH):
                store(message, out, load8(qkv, value) * load8(active, at) * a)
                value, at, out = value + WIDTH, at + WIDTH, out + WIDTH


@kernel
def collect(e0, source, target, edge, vec, gated, message, factors, bias, active, total_x, total_v):
    """Add a chunk's messages to total_x (N, C) and total_v (N, S, C); the bias is added to `factors`."""
    count, channels = message.shape
    width, stride = factors.shape[1], edge.shape[1]
    components = stride - 2
    _add_and_activate(count, width, factors, bias, active)
    for k in range(count):
        line = (e0 + k) * stride
        envelope = broadcast8(edge, line + 1)
        x, v, j = target[e0 + k] * channels, target[e0 + k] * components * channels, source[e0 + k] * components * channels
        for c in range(0, channels, WIDTH):
            increase(total_x, x + c, load8(message, k * channels + c) * envelope)
            along = load8(active, k * width + c) * envelope
            if gated:
                gate = load8(active, k * width + channels + c) * envelope
                for component in range(components):
                    at = component * channels + c
                    part = along * broadcast8(edge, line + 2 + component) + gate * load8(vec, j + at)
                    increase(total_v, v + at, part)
            else:
                for component in range(components):
                    increase(total_v, v + component * channels + c, along * broadcast8(edge, line + 2 + component))


@kernel
def _rejected(projected, a, b, step, edge, line, components):
    """The products w . w' and w . d and w' . d of vectors w and w' at a and b, `step` apart, and of the direction d.

    From the first the parts along the direction are taken: (w - (w.d) d) . (w' - (w'.d) d) = w.w' - (2 - d.d) (w.d) (w'.d),
    and d.d is 1 for vectors and 2 with degree 2; then the others are 0.
    """
    dot, da, db = splat8(projected, 0.0), splat8(projected, 0.0), splat8(projected, 0.0)
    for component in range(components):
        wa, wb = load8(projected, a + component * step), load8(projected, b + component * step)
        direction = broadcast8(edge, line + component)
        dot, da, db = dot + wa * wb, da + wa * direction, db + wb * direction
    along = splat8(projected, 1.0 if components == 3 else 0.0)
    return dot - along * da * db, along * da, along * db


@kernel
def update_edges(e0, rows, source, target, edge, projected, active, old, new):
    """Fill new (count, C), the edge features of the next layer, from old (rows, C)."""
    count, channels = new.shape
    width, stride, components, step = active.shape[1], edge.shape[1], edge.shape[1] - 2, projected.shape[2]
    for k in range(count):
        i, j = target[e0 + k] * components * step, source[e0 + k] * components * step
        line, row = (e0 + k) * stride + 2, k if k < rows else k - rows
        f = row * width + 2 * channels
        for c in range(0, channels, WIDTH):
            dot, _, _ = _rejected(projected, i + c, j + channels + c, step, edge, line, components)
            change = load8(active, f + c) * dot
            if width > 3 * channels:
                dot, _, _ = _rejected(projected, i + 2 * channels + c, i + 3 * channels + c, step, edge, line, components)
                change = change + load8(active, f + channels + c) * dot
            store(new, k * channels + c, load8(old, row * channels + c) + change)


@kernel
def collect_vjp(
    e0, source, target, edge, vec, gated, factors, active, slope, g_x, g_v, g_message, g_factors, g_bias, g_vec
):  # fmt: skip
    """Fill g_factors, before the activation, and g_message, without what goes through the factors; add to g_bias, g_vec."""
    count, channels = g_message.shape
    width, stride = factors.shape[1], edge.shape[1]
    components = stride - 2
    _activate(count * width, factors, active, slope)
    for k in range(count):
        line = (e0 + k) * stride
        envelope = broadcast8(edge, line + 1)
        x, v, j = target[e0 + k] * channels, target[e0 + k] * components * channels, source[e0 + k] * components * channels
        for c in range(0, channels, WIDTH):
            store(g_message, k * channels + c, load8(g_x, x + c) * envelope)
            at = k * width + c
            along, inner = splat8(edge, 0.0), splat8(edge, 0.0)
            if gated:
                gate = load8(active, at + channels) * envelope
                for component in range(components):
                    n = component * channels + c
                    g = load8(g_v, v + n)
                    along = along + g * broadcast8(edge, line + 2 + component)
                    inner = inner + g * load8(vec, j + n)
                    increase(g_vec, j + n, g * gate)
                inner = inner * envelope * load8(slope, at + channels)
                store(g_factors, at + channels, inner)
                increase(g_bias, channels + c, inner)
            else:
                for component in range(components):
                    along = along + load8(g_v, v + component * channels + c) * broadcast8(edge, line + 2 + component)
            along = along * envelope * load8(slope, at)
            store(g_factors, at, along)
            increase(g_bias, c, along)


@kernel
def _dot_vjp(g, at, a, b, step, edge, line, components, projected, active, slope, g_projected):
    """Back through one factor of the edge update times the product of vectors at a and b; the gradient of the factor."""
    dot, da, db = _rejected(projected, a, b, step, edge, line, components)
    g_dot = g * load8(active, at)
    for component in range(components):
        n = component * step
        wa, wb = load8(projected, a + n), load8(projected, b + n)
        direction = broadcast8(edge, line + component)
        increase(g_projected, a + n, g_dot * (wb - db * direction))
        increase(g_projected, b + n, g_dot * (wa - da * direction))
    return g * dot * load8(slope, at)


@kernel
def update_edges_vjp(
    e0, rows, source, target, edge, projected, active, slope, g_new, g_linear, g_old, g_projected
):  # fmt: skip
    """Set the update's part of g_linear, and g_old (rows, C) to the sum of g_new; add to g_projected.

    `active` and `slope` are those that `attend_vjp` has filled in.
    """
    count, channels = g_new.shape
    width, stride, components, step = active.shape[1], edge.shape[1], edge.shape[1] - 2, projected.shape[2]
    for k in range(count):
        i, j = target[e0 + k] * components * step, source[e0 + k] * components * step
        line, row = (e0 + k) * stride + 2, k if k < rows else k - rows
        again = k >= rows
        for c in range(0, channels, WIDTH):
            g, f, out = load8(g_new, k * channels + c), row * width + 2 * channels + c, row * channels + c
            a, b = i + c, j + channels + c
            one = _dot_vjp(g, f, a, b, step, edge, line, components, projected, active, slope, g_projected)
            if again:
                increase(g_linear, f, one)
                increase(g_old, out, g)
            else:
                store(g_linear, f, one)
                store(g_old, out, g)
            if width > 3 * channels:
                f += channels
                a, b = i + 2 * channels + c, i + 3 * channels + c
                one = _dot_vjp(g, f, a, b, step, edge, line, components, projected, active, slope, g_projected)
                if again:
                    increase(g_linear, f, one)
                else:
                    store(g_linear, f, one)


@kernel
def attend_vjp(
    e0, rows, source, target, edge, qkv, linear, active, slope, product, attention, g_message, g_linear, g_qkv
):  # fmt: skip
    """Fill the parts of keys and values of g_linear, before the activation, and `active` and `slope`; add to g_qkv.

    attention (2, at least count * heads, in whole lanes) is scratch.
    """
    count, heads = product.shape
    channels, width, stride = g_message.shape[1], linear.shape[1], edge.shape[1]
    head, half = channels // heads, attention.shape[1]
    one = splat8(linear, 1.0)
    _activate(rows * width, linear, active, slope)
    for k in range(count):
        for h in range(heads):
            attention[0, k * heads + h] = product[k, h]
    for k in range(0, count * heads, WIDTH):
        a = load8(attention, k)
        s = sigmoid(a)
        a = a * s
        store(attention, k, a)
        store(attention, half + k, s + a * (one - s))
    for k in range(count):
        cut = broadcast8(edge, (e0 + k) * stride)
        i, j = target[e0 + k] * 3 * channels, source[e0 + k] * 3 * channels
        line, again = (k if k < rows else k - rows) * width, k >= rows
        for h in range(heads):
            c0 = h * head
            weight, g_weight = broadcast8(attention, k * heads + h) * cut, splat8(linear, 0.0)
            for c in range(c0, c0 + head, WIDTH):
                value, of_edge = load8(qkv, j + 2 * channels + c), load8(active, line + channels + c)
                gm = load8(g_message, k * channels + c)
                g_weight = g_weight + gm * value * of_edge
                gm = gm * weight
                increase(g_qkv, j + 2 * channels + c, gm * of_edge)
                g_value = gm * value * load8(slope, line + channels + c)
                if again:
                    increase(g_linear, line + channels + c, g_value)
                else:
                    store(g_linear, line + channels + c, g_value)
            g_product = splat8(linear, total8(g_weight)) * cut * broadcast8(attention, half + k * heads + h)
            for c in range(c0, c0 + head, WIDTH):
                q, key, of_edge = load8(qkv, i + c), load8(qkv, j + channels + c), load8(active, line + c)
                g_both = g_product * of_edge
                increase(g_qkv, i + c, g_both * key)
                increase(g_qkv, j + channels + c, g_both * q)
                g_key = g_product * q * key * load8(slope, line + c)
                if again:
                    increase(g_linear, line + c, g_key)
                else:
                    store(g_linear, line + c, g_key)


for _function in (attend, collect, update_edges, collect_vjp, update_edges_vjp, attend_vjp):
    keep_compiled(_function, SOURCES)
