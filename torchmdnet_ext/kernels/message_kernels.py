"""Numba kernels of the messages of an equivariant transformer and of their vector-Jacobian product, for training.

Every pair of atoms is visited once for both directions. Nothing of the size of the pairs times the channels is ever stored:
a radial filter is put together from four rows of a table when it is needed, and its gradient goes straight back to them.

Sizes: N atoms, P pairs, H channels in `heads` of `width` channels (a multiple of WIDTH), T rows of the table. Arrays, all
C-contiguous and of one type: qkv (N, 5H) with queries, keys and values of an atom; table (T, 4H) with the filters of keys
and of values; in both, the values of a head are `width` scalars, gates and radial values. geometry (P, GEOMETRY) holds, for
each pair, four weights of the rows of the table from `row` on, in steps of `step` rows, the factor of the attention, the
factor of the vectors and the unit vector from i to j. attention (P, 2, sides) keeps factor * silu(a) and factor * silu'(a)
for all heads of the message to i, then of that to j; `sides` is 2 * heads, rounded up to whole lanes.

`heads`, `width` and `step` are the lengths of tuples: the compiler knows the numbers then, and has fewer addresses to keep.
"""

from pathlib import Path
from typing import Any

from numba import njit

from torchmdnet_ext.kernels import lanes
from torchmdnet_ext.kernels.cache import keep_compiled
from torchmdnet_ext.kernels.lanes import WIDTH, broadcast8, exp8, increase, load8, splat8, store, total8

SOURCES = (Path(__file__), Path(lanes.__file__))
GEOMETRY = 9
kernel: Any = njit(error_model="numpy", nogil=True)


@kernel
def _filter(table, f, step, c0, c1, c2, c3):
    one, two = load8(table, f) * c0 + load8(table, f + step) * c1, load8(table, f + 2 * step) * c2
    return one + (two + load8(table, f + 3 * step) * c3)


@kernel
def _filter_vjp(g_table, f, step, c0, c1, c2, c3, gradient):
    increase(g_table, f, gradient * c0)
    increase(g_table, f + step, gradient * c1)
    increase(g_table, f + 2 * step, gradient * c2)
    increase(g_table, f + 3 * step, gradient * c3)


@kernel
def _activate(attention, geometry, stride, pairs, sides):
    """Replace a by factor * silu(a) and factor * silu'(a), in a loop of its own, so that exps of many pairs overlap."""
    one, zero = splat8(attention, 1.0), splat8(attention, 0.0)
    for p in range(pairs):
        factor = broadcast8(geometry, p * stride + 4)
        for a in range(2 * p * sides, (2 * p + 1) * sides, WIDTH):
            value = load8(attention, a)
            s = one / (one + exp8(zero - value))
            value = value * s
            store(attention, a, value * factor)
            store(attention, a + sides, (s + value * (one - s)) * factor)


@kernel
def _attend(i, j, row, step, geometry, table, qkv, heads, width, attention):
    """Attention of all pairs, in both directions."""
    heads, width, sides = len(heads), len(width), attention.shape[2]
    channels = heads * width
    step, zero = len(step) * 4 * channels, splat8(table, 0.0)
    for p in range(i.shape[0]):
        g = p * GEOMETRY
        c0, c1 = broadcast8(geometry, g), broadcast8(geometry, g + 1)
        c2, c3 = broadcast8(geometry, g + 2), broadcast8(geometry, g + 3)
        f, qi, qj = row[p] * 4 * channels, i[p] * 5 * channels, j[p] * 5 * channels
        for h in range(heads):
            ai, aj = zero, zero
            for _ in range(0, width, WIDTH):
                key = _filter(table, f, step, c0, c1, c2, c3)
                ai = ai + load8(qkv, qi) * load8(qkv, qj + channels) * key
                aj = aj + load8(qkv, qj) * load8(qkv, qi + channels) * key
                f, qi, qj = f + WIDTH, qi + WIDTH, qj + WIDTH
            attention[p, 0, h] = total8(ai)
            attention[p, 0, heads + h] = total8(aj)
        for h in range(2 * heads, sides):
            attention[p, 0, h] = 0.0
    _activate(attention, geometry, GEOMETRY, i.shape[0], sides)


@kernel
def _self_attend(geometry, table, f0, qkv, heads, width, attention):
    """Attention of every atom to itself, as of pairs whose second direction is not used."""
    heads, width, sides = len(heads), len(width), attention.shape[2]
    channels = heads * width
    for m in range(qkv.shape[0]):
        f, q = f0, m * 5 * channels
        for h in range(heads):
            a = splat8(table, 0.0)
            for _ in range(0, width, WIDTH):
                a = a + load8(qkv, q) * load8(qkv, q + channels) * load8(table, f)
                f, q = f + WIDTH, q + WIDTH
            attention[m, 0, h] = total8(a)
        for h in range(heads, sides):
            attention[m, 0, h] = 0.0
    _activate(attention, geometry, 0, qkv.shape[0], sides)


@kernel
def _messages(i, j, row, step, geometry, table, qkv, vec, gated, heads, width, attention, total_x, total_v):
    """Add the messages of all pairs to total_x (N, H) and total_v (N, 3, H). Without `gated`, vec is taken to be 0."""
    heads, width, sides = len(heads), len(width), attention.shape[2]
    channels = heads * width
    step, zero = len(step) * 4 * channels, splat8(table, 0.0)
    for p in range(i.shape[0]):
        g = p * GEOMETRY
        c0, c1 = broadcast8(geometry, g), broadcast8(geometry, g + 1)
        c2, c3 = broadcast8(geometry, g + 2), broadcast8(geometry, g + 3)
        w = broadcast8(geometry, g + 5)
        ux, uy, uz = broadcast8(geometry, g + 6), broadcast8(geometry, g + 7), broadcast8(geometry, g + 8)
        ux, uy, uz = ux * w, uy * w, uz * w
        f, a = row[p] * 4 * channels + channels, 2 * p * sides
        qi, qj = i[p] * 5 * channels + 2 * channels, j[p] * 5 * channels + 2 * channels
        xi, xj, vi, vj = i[p] * channels, j[p] * channels, i[p] * 3 * channels, j[p] * 3 * channels
        for h in range(heads):
            ai, aj = broadcast8(attention, a + h), broadcast8(attention, a + heads + h)
            for _ in range(0, width, WIDTH):
                scalar = _filter(table, f, step, c0, c1, c2, c3)
                increase(total_x, xi, load8(qkv, qj) * scalar * ai)
                increase(total_x, xj, load8(qkv, qi) * scalar * aj)
                radial = _filter(table, f + 2 * width, step, c0, c1, c2, c3)
                ri, rj = load8(qkv, qj + 2 * width) * radial, load8(qkv, qi + 2 * width) * radial
                if gated:
                    gate = _filter(table, f + width, step, c0, c1, c2, c3) * w
                    gi, gj = load8(qkv, qj + width) * gate, load8(qkv, qi + width) * gate
                    increase(total_v, vi, ri * ux + gi * load8(vec, vj))
                    increase(total_v, vi + channels, ri * uy + gi * load8(vec, vj + channels))
                    increase(total_v, vi + 2 * channels, ri * uz + gi * load8(vec, vj + 2 * channels))
                    increase(total_v, vj, gj * load8(vec, vi) - rj * ux)
                    increase(total_v, vj + channels, gj * load8(vec, vi + channels) - rj * uy)
                    increase(total_v, vj + 2 * channels, gj * load8(vec, vi + 2 * channels) - rj * uz)
                else:
                    increase(total_v, vi, ri * ux)
                    increase(total_v, vi + channels, ri * uy)
                    increase(total_v, vi + 2 * channels, ri * uz)
                    increase(total_v, vj, zero - rj * ux)
                    increase(total_v, vj + channels, zero - rj * uy)
                    increase(total_v, vj + 2 * channels, zero - rj * uz)
                f, qi, qj = f + WIDTH, qi + WIDTH, qj + WIDTH
                xi, xj, vi, vj = xi + WIDTH, xj + WIDTH, vi + WIDTH, vj + WIDTH
            f, qi, qj = f + 2 * width, qi + 2 * width, qj + 2 * width


@kernel
def _self_messages(geometry, table, f0, qkv, vec, gated, heads, width, attention, total_x, total_v):
    """Set the totals to the messages of every atom to itself, which have no direction."""
    heads, width, sides = len(heads), len(width), attention.shape[2]
    channels = heads * width
    zero = splat8(table, 0.0)
    w = broadcast8(geometry, 5)
    for m in range(qkv.shape[0]):
        f, q, a = f0 + channels, m * 5 * channels + 2 * channels, 2 * m * sides
        x, v = m * channels, m * 3 * channels
        for h in range(heads):
            factor = broadcast8(attention, a + h)
            for _ in range(0, width, WIDTH):
                store(total_x, x, load8(qkv, q) * load8(table, f) * factor)
                if gated:
                    gate = load8(qkv, q + width) * load8(table, f + width) * w
                    store(total_v, v, gate * load8(vec, v))
                    store(total_v, v + channels, gate * load8(vec, v + channels))
                    store(total_v, v + 2 * channels, gate * load8(vec, v + 2 * channels))
                else:
                    store(total_v, v, zero)
                    store(total_v, v + channels, zero)
                    store(total_v, v + 2 * channels, zero)
                f, q, x, v = f + WIDTH, q + WIDTH, x + WIDTH, v + WIDTH
            f, q = f + 2 * width, q + 2 * width


@kernel
def _messages_vjp(
    i, j, row, step, geometry, table, qkv, vec, gated, heads, width, attention, g_x, g_v, g_qkv, g_vec, g_table
):  # fmt: skip
    """Add to the gradients with respect to qkv, vec and the table, from those of the totals."""
    heads, width, sides = len(heads), len(width), attention.shape[2]
    channels = heads * width
    step, zero = len(step) * 4 * channels, splat8(table, 0.0)
    for p in range(i.shape[0]):
        g = p * GEOMETRY
        c0, c1 = broadcast8(geometry, g), broadcast8(geometry, g + 1)
        c2, c3 = broadcast8(geometry, g + 2), broadcast8(geometry, g + 3)
        w = broadcast8(geometry, g + 5)
        ux, uy, uz = broadcast8(geometry, g + 6), broadcast8(geometry, g + 7), broadcast8(geometry, g + 8)
        ux, uy, uz = ux * w, uy * w, uz * w
        f, a = row[p] * 4 * channels + channels, 2 * p * sides
        qi, qj = i[p] * 5 * channels + 2 * channels, j[p] * 5 * channels + 2 * channels
        xi, xj, vi, vj = i[p] * channels, j[p] * channels, i[p] * 3 * channels, j[p] * 3 * channels
        fk, ki, kj = row[p] * 4 * channels, i[p] * 5 * channels, j[p] * 5 * channels
        for h in range(heads):
            ai, aj = broadcast8(attention, a + h), broadcast8(attention, a + heads + h)
            ei, ej = zero, zero
            for _ in range(0, width, WIDTH):
                scalar = _filter(table, f, step, c0, c1, c2, c3)
                gi, gj = load8(g_x, xi), load8(g_x, xj)
                mi, mj = gi * load8(qkv, qj), gj * load8(qkv, qi)
                ei, ej = ei + mi * scalar, ej + mj * scalar
                _filter_vjp(g_table, f, step, c0, c1, c2, c3, mi * ai + mj * aj)
                increase(g_qkv, qj, gi * scalar * ai)
                increase(g_qkv, qi, gj * scalar * aj)
                ix, iy, iz = load8(g_v, vi), load8(g_v, vi + channels), load8(g_v, vi + 2 * channels)
                jx, jy, jz = load8(g_v, vj), load8(g_v, vj + channels), load8(g_v, vj + 2 * channels)
                radial = _filter(table, f + 2 * width, step, c0, c1, c2, c3)
                di, dj = ix * ux + iy * uy + iz * uz, zero - (jx * ux + jy * uy + jz * uz)
                ri, rj = load8(qkv, qj + 2 * width), load8(qkv, qi + 2 * width)
                _filter_vjp(g_table, f + 2 * width, step, c0, c1, c2, c3, di * ri + dj * rj)
                increase(g_qkv, qj + 2 * width, di * radial)
                increase(g_qkv, qi + 2 * width, dj * radial)
                if gated:
                    gate = _filter(table, f + width, step, c0, c1, c2, c3) * w
                    di = ix * load8(vec, vj) + iy * load8(vec, vj + channels) + iz * load8(vec, vj + 2 * channels)
                    dj = jx * load8(vec, vi) + jy * load8(vec, vi + channels) + jz * load8(vec, vi + 2 * channels)
                    ri, rj = load8(qkv, qj + width), load8(qkv, qi + width)
                    _filter_vjp(g_table, f + width, step, c0, c1, c2, c3, (di * ri + dj * rj) * w)
                    increase(g_qkv, qj + width, di * gate)
                    increase(g_qkv, qi + width, dj * gate)
                    ri, rj = ri * gate, rj * gate
                    increase(g_vec, vj, ix * ri)
                    increase(g_vec, vj + channels, iy * ri)
                    increase(g_vec, vj + 2 * channels, iz * ri)
                    increase(g_vec, vi, jx * rj)
                    increase(g_vec, vi + channels, jy * rj)
                    increase(g_vec, vi + 2 * channels, jz * rj)
                f, qi, qj = f + WIDTH, qi + WIDTH, qj + WIDTH
                xi, xj, vi, vj = xi + WIDTH, xj + WIDTH, vi + WIDTH, vj + WIDTH
            f, qi, qj = f + 2 * width, qi + 2 * width, qj + 2 * width
            ei = splat8(table, total8(ei)) * broadcast8(attention, a + sides + h)
            ej = splat8(table, total8(ej)) * broadcast8(attention, a + sides + heads + h)
            for _ in range(0, width, WIDTH):
                key = _filter(table, fk, step, c0, c1, c2, c3)
                pi, pj = load8(qkv, ki) * ei, load8(qkv, kj) * ej
                ri, rj = load8(qkv, ki + channels), load8(qkv, kj + channels)
                _filter_vjp(g_table, fk, step, c0, c1, c2, c3, pi * rj + pj * ri)
                increase(g_qkv, ki, ei * key * rj)
                increase(g_qkv, kj, ej * key * ri)
                increase(g_qkv, ki + channels, pj * key)
                increase(g_qkv, kj + channels, pi * key)
                fk, ki, kj = fk + WIDTH, ki + WIDTH, kj + WIDTH


@kernel
def _self_messages_vjp(geometry, table, f0, qkv, vec, gated, heads, width, attention, g_x, g_v, g_qkv, g_vec, g_table):
    """Set the gradients with respect to qkv and vec and add to that with respect to the table."""
    heads, width, sides = len(heads), len(width), attention.shape[2]
    channels = heads * width
    zero = splat8(table, 0.0)
    w = broadcast8(geometry, 5)
    for m in range(qkv.shape[0]):
        f, q, a = f0 + channels, m * 5 * channels + 2 * channels, 2 * m * sides
        x, v, fk, k = m * channels, m * 3 * channels, f0, m * 5 * channels
        for h in range(heads):
            factor, e = broadcast8(attention, a + h), zero
            for _ in range(0, width, WIDTH):
                scalar, gx = load8(table, f), load8(g_x, x)
                message = gx * load8(qkv, q)
                e = e + message * scalar
                increase(g_table, f, message * factor)
                store(g_qkv, q, gx * scalar * factor)
                store(g_qkv, q + 2 * width, zero)
                if gated:
                    gate = load8(table, f + width) * w
                    gx, gy, gz = load8(g_v, v), load8(g_v, v + channels), load8(g_v, v + 2 * channels)
                    inner = gx * load8(vec, v) + gy * load8(vec, v + channels) + gz * load8(vec, v + 2 * channels)
                    value = load8(qkv, q + width)
                    increase(g_table, f + width, inner * value * w)
                    store(g_qkv, q + width, inner * gate)
                    gate = value * gate
                    store(g_vec, v, gx * gate)
                    store(g_vec, v + channels, gy * gate)
                    store(g_vec, v + 2 * channels, gz * gate)
                else:
                    store(g_qkv, q + width, zero)
                f, q, x, v = f + WIDTH, q + WIDTH, x + WIDTH, v + WIDTH
            f, q = f + 2 * width, q + 2 * width
            e = splat8(table, total8(e)) * broadcast8(attention, a + sides + h)
            for _ in range(0, width, WIDTH):
                query, key, filtered = load8(qkv, k), load8(qkv, k + channels), load8(table, fk) * e
                increase(g_table, fk, query * key * e)
                store(g_qkv, k, filtered * key)
                store(g_qkv, k + channels, filtered * query)
                fk, k = fk + WIDTH, k + WIDTH


@kernel
def attention_messages(
    i, j, row, step, geometry, self_row, self_geometry, table, qkv, vec, gated, heads, width,
    attention, self_attention, total_x, total_v,
):  # fmt: skip
    """Fill total_x (N, H), total_v (N, 3, H) and both attentions.

    self_row and self_geometry (1, GEOMETRY) are those of the messages of atoms to themselves.
    """
    f0 = self_row * table.shape[1]
    _self_attend(self_geometry, table, f0, qkv, heads, width, self_attention)
    _self_messages(self_geometry, table, f0, qkv, vec, gated, heads, width, self_attention, total_x, total_v)
    _attend(i, j, row, step, geometry, table, qkv, heads, width, attention)
    _messages(i, j, row, step, geometry, table, qkv, vec, gated, heads, width, attention, total_x, total_v)


@kernel
def attention_messages_vjp(
    i, j, row, step, geometry, self_row, self_geometry, table, qkv, vec, gated, heads, width,
    attention, self_attention, g_x, g_v, g_qkv, g_vec, g_table,
):  # fmt: skip
    """Fill g_qkv (N, 5H), g_table (T, 4H) and, where `gated`, g_vec (N, 3, H)."""
    f0 = self_row * table.shape[1]
    g_table[:] = 0.0
    _self_messages_vjp(
        self_geometry, table, f0, qkv, vec, gated, heads, width, self_attention, g_x, g_v, g_qkv, g_vec, g_table
    )
    _messages_vjp(
        i, j, row, step, geometry, table, qkv, vec, gated, heads, width, attention, g_x, g_v, g_qkv, g_vec, g_table
    )


keep_compiled(attention_messages, SOURCES)
keep_compiled(attention_messages_vjp, SOURCES)
