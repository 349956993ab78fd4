"""Numba kernels of the messages between atoms and of their vector-Jacobian product.

Channels are ordered in blocks of `WIDTH` lanes: a block holds one channel of each of `WIDTH` heads, and the `depth` blocks
of one group of heads follow one another. So sums over the channels of a head are sums over blocks, lane by lane.
Sizes: M atoms, P pairs, C channels (padded), B = C / WIDTH blocks, G groups of heads, L layers.
"""

import math

from numba import njit

from openmm_geomgnn.engines.lanes import WIDTH, cubic8, exp8, increase, load8, slope8, splat8, store, total8

kernel = njit(error_model="numpy")
CUBIC = 4 * WIDTH  # numbers of one block of a table: four coefficients for every lane


@kernel
def neighbours(pos, pair_i, pair_j, cutoff, share, steepness, alpha, intervals, near_i, near_j, node, geometry):
    """Pairs closer than the cutoff and where they are in the table; -1 if a position is not finite.

    geometry (P, 6), float64: t in the interval `node`, dt/dr, 1/r, unit vector from i to j (0 at r = 0).
    """
    for m in range(pos.shape[0]):
        if not math.isfinite(pos[m, 0] + pos[m, 1] + pos[m, 2]):
            return -1
    n = 0
    linear = (1.0 - share) / cutoff
    for p in range(pair_i.shape[0]):
        i, j = pair_i[p], pair_j[p]
        x, y, z = pos[j, 0] - pos[i, 0], pos[j, 1] - pos[i, 1], pos[j, 2] - pos[i, 2]
        squared = x * x + y * y + z * z
        if squared >= cutoff * cutoff:
            continue
        r = math.sqrt(squared)
        decay = math.exp(-alpha * r)
        s = (steepness * (1.0 - decay) + linear * r) * intervals
        k = min(int(s), intervals - 1)
        inverse = 1.0 / r if r > 0.0 else 0.0
        near_i[n], near_j[n], node[n] = i, j, k
        geometry[n, 0] = s - k
        geometry[n, 1] = (steepness * alpha * decay + linear) * intervals
        geometry[n, 2] = inverse
        geometry[n, 3], geometry[n, 4], geometry[n, 5] = x * inverse, y * inverse, z * inverse
        n += 1
    return n


@kernel
def messages(
    n, near_i, near_j, node, geometry, table, layer, qkv, qkv0, vec, vec0, attention, groups, depth, gated, total_x, total_v
):
    """Add the messages of all pairs, in both directions, to total_x (M, C) and total_v (M, 3, C).

    `attention` (L, P, G, 4, WIDTH) keeps silu(a) and its derivative for both directions. Without `gated` vec is 0.
    """
    channels = groups * depth * WIDTH
    filters = groups * depth * CUBIC  # numbers of one filter in a row of the table
    one = splat8(table, 1.0)
    zero = splat8(table, 0.0)
    for p in range(n):
        i, j = near_i[p], near_j[p]
        t = splat8(table, geometry[p, 0])
        ux, uy, uz = splat8(table, geometry[p, 3]), splat8(table, geometry[p, 4]), splat8(table, geometry[p, 5])
        row = (layer * table.shape[1] + node[p]) * 4 * filters
        qi, qj = qkv0 + i * 5 * channels, qkv0 + j * 5 * channels
        vi, vj = vec0 + i * 3 * channels, vec0 + j * 3 * channels
        for g in range(groups):
            ai, aj = zero, zero
            for b in range(g * depth, (g + 1) * depth):
                c = b * WIDTH
                f = cubic8(table, row + b * CUBIC, t)
                ai = ai + load8(qkv, qi + c) * load8(qkv, qj + channels + c) * f
                aj = aj + load8(qkv, qj + c) * load8(qkv, qi + channels + c) * f
            si, sj = one / (one + exp8(zero - ai)), one / (one + exp8(zero - aj))
            ai, aj = ai * si, aj * sj
            keep = ((layer * attention.shape[1] + p) * groups + g) * 4 * WIDTH
            store(attention, keep, ai)
            store(attention, keep + WIDTH, aj)
            store(attention, keep + 2 * WIDTH, si + ai * (one - si))
            store(attention, keep + 3 * WIDTH, sj + aj * (one - sj))
            for b in range(g * depth, (g + 1) * depth):
                c = b * WIDTH
                f = cubic8(table, row + filters + b * CUBIC, t)
                increase(total_x, i * channels + c, load8(qkv, qj + 2 * channels + c) * f * ai)
                increase(total_x, j * channels + c, load8(qkv, qi + 2 * channels + c) * f * aj)
                f = cubic8(table, row + 3 * filters + b * CUBIC, t)
                ri, rj = load8(qkv, qj + 4 * channels + c) * f, load8(qkv, qi + 4 * channels + c) * f
                ti, tj = i * 3 * channels + c, j * 3 * channels + c
                if gated:
                    f = cubic8(table, row + 2 * filters + b * CUBIC, t)
                    gi, gj = load8(qkv, qj + 3 * channels + c) * f, load8(qkv, qi + 3 * channels + c) * f
                    increase(total_v, ti, ri * ux + gi * load8(vec, vj + c))
                    increase(total_v, ti + channels, ri * uy + gi * load8(vec, vj + channels + c))
                    increase(total_v, ti + 2 * channels, ri * uz + gi * load8(vec, vj + 2 * channels + c))
                    increase(total_v, tj, gj * load8(vec, vi + c) - rj * ux)
                    increase(total_v, tj + channels, gj * load8(vec, vi + channels + c) - rj * uy)
                    increase(total_v, tj + 2 * channels, gj * load8(vec, vi + 2 * channels + c) - rj * uz)
                else:
                    increase(total_v, ti, ri * ux)
                    increase(total_v, ti + channels, ri * uy)
                    increase(total_v, ti + 2 * channels, ri * uz)
                    increase(total_v, tj, zero - rj * ux)
                    increase(total_v, tj + channels, zero - rj * uy)
                    increase(total_v, tj + 2 * channels, zero - rj * uz)


@kernel
def messages_vjp(
    n, near_i, near_j, node, geometry, table, layer, qkv, qkv0, vec, vec0, attention, groups, depth, gated,
    g_x, g_v, g_qkv, g_vec, g_pair,
):  # fmt: skip
    """Gradients of the messages from those of the totals, g_x (M, C) and g_v (M, 3, C).

    Adds to g_pair (P, 4), float64, with respect to t and to the unit vector, and where `gated` is set to g_qkv (M, 5C) and
    g_vec (M, 3, C); otherwise q, k, v are constants and vec is 0.
    """
    channels = groups * depth * WIDTH
    filters = groups * depth * CUBIC
    zero = splat8(table, 0.0)
    for p in range(n):
        i, j = near_i[p], near_j[p]
        t = splat8(table, geometry[p, 0])
        ux, uy, uz = splat8(table, geometry[p, 3]), splat8(table, geometry[p, 4]), splat8(table, geometry[p, 5])
        row = (layer * table.shape[1] + node[p]) * 4 * filters
        qi, qj = i * 5 * channels, j * 5 * channels
        vi, vj = i * 3 * channels, j * 3 * channels
        gt, gux, guy, guz = zero, zero, zero, zero
        for g in range(groups):
            keep = ((layer * attention.shape[1] + p) * groups + g) * 4 * WIDTH
            ai, aj = load8(attention, keep), load8(attention, keep + WIDTH)
            ei, ej = zero, zero
            for b in range(g * depth, (g + 1) * depth):
                c = b * WIDTH
                at = row + filters + b * CUBIC
                f, df = cubic8(table, at, t), slope8(table, at, t)
                xi, xj = load8(g_x, i * channels + c), load8(g_x, j * channels + c)
                source_i, source_j = qkv0 + qj + c, qkv0 + qi + c  # of the messages to i and to j
                mi = xi * load8(qkv, source_i + 2 * channels)
                mj = xj * load8(qkv, source_j + 2 * channels)
                ei, ej = ei + mi * f, ej + mj * f
                gt = gt + (mi * ai + mj * aj) * df
                ix, iy, iz = load8(g_v, vi + c), load8(g_v, vi + channels + c), load8(g_v, vi + 2 * channels + c)
                jx, jy, jz = load8(g_v, vj + c), load8(g_v, vj + channels + c), load8(g_v, vj + 2 * channels + c)
                at = row + 3 * filters + b * CUBIC
                fr, df = cubic8(table, at, t), slope8(table, at, t)
                ri, rj = load8(qkv, source_i + 4 * channels), load8(qkv, source_j + 4 * channels)
                di, dj = ix * ux + iy * uy + iz * uz, zero - (jx * ux + jy * uy + jz * uz)
                gt = gt + (di * ri + dj * rj) * df
                ri, rj = ri * fr, rj * fr
                gux, guy, guz = gux + ix * ri - jx * rj, guy + iy * ri - jy * rj, guz + iz * ri - jz * rj
                if gated:
                    increase(g_qkv, qj + 2 * channels + c, xi * f * ai)
                    increase(g_qkv, qi + 2 * channels + c, xj * f * aj)
                    increase(g_qkv, qj + 4 * channels + c, di * fr)
                    increase(g_qkv, qi + 4 * channels + c, dj * fr)
                    at = row + 2 * filters + b * CUBIC
                    f, df = cubic8(table, at, t), slope8(table, at, t)
                    wi, wj = vec0 + vi + c, vec0 + vj + c
                    di = ix * load8(vec, wj) + iy * load8(vec, wj + channels) + iz * load8(vec, wj + 2 * channels)
                    dj = jx * load8(vec, wi) + jy * load8(vec, wi + channels) + jz * load8(vec, wi + 2 * channels)
                    ri, rj = load8(qkv, source_i + 3 * channels), load8(qkv, source_j + 3 * channels)
                    gt = gt + (di * ri + dj * rj) * df
                    increase(g_qkv, qj + 3 * channels + c, di * f)
                    increase(g_qkv, qi + 3 * channels + c, dj * f)
                    ri, rj = ri * f, rj * f
                    increase(g_vec, vj + c, ix * ri)
                    increase(g_vec, vj + channels + c, iy * ri)
                    increase(g_vec, vj + 2 * channels + c, iz * ri)
                    increase(g_vec, vi + c, jx * rj)
                    increase(g_vec, vi + channels + c, jy * rj)
                    increase(g_vec, vi + 2 * channels + c, jz * rj)
            ei, ej = ei * load8(attention, keep + 2 * WIDTH), ej * load8(attention, keep + 3 * WIDTH)
            for b in range(g * depth, (g + 1) * depth):
                c = b * WIDTH
                at = row + b * CUBIC
                query_i, query_j = load8(qkv, qkv0 + qi + c), load8(qkv, qkv0 + qj + c)
                key_i, key_j = load8(qkv, qkv0 + qi + channels + c), load8(qkv, qkv0 + qj + channels + c)
                gt = gt + (ei * query_i * key_j + ej * query_j * key_i) * slope8(table, at, t)
                if gated:
                    f = cubic8(table, at, t)
                    fi, fj = ei * f, ej * f
                    increase(g_qkv, qi + c, fi * key_j)
                    increase(g_qkv, qj + c, fj * key_i)
                    increase(g_qkv, qi + channels + c, fj * query_j)
                    increase(g_qkv, qj + channels + c, fi * query_i)
        g_pair[p, 0] += total8(gt)
        g_pair[p, 1] += total8(gux)
        g_pair[p, 2] += total8(guy)
        g_pair[p, 3] += total8(guz)


@kernel
def self_messages(atoms, filters, layer, qkv, qkv0, vec, vec0, attention, groups, depth, total_x, total_v):
    """Set the totals to the messages of every atom to itself; filters (L, 4, C) at distance 0."""
    channels = groups * depth * WIDTH
    one, zero = splat8(filters, 1.0), splat8(filters, 0.0)
    f0 = layer * 4 * channels
    for m in range(atoms):
        q, v = qkv0 + m * 5 * channels, vec0 + m * 3 * channels
        for g in range(groups):
            a = zero
            for c in range(g * depth * WIDTH, (g + 1) * depth * WIDTH, WIDTH):
                a = a + load8(qkv, q + c) * load8(qkv, q + channels + c) * load8(filters, f0 + c)
            s = one / (one + exp8(zero - a))
            a = a * s
            keep = ((layer * atoms + m) * groups + g) * 2 * WIDTH
            store(attention, keep, a)
            store(attention, keep + WIDTH, s + a * (one - s))
            for c in range(g * depth * WIDTH, (g + 1) * depth * WIDTH, WIDTH):
                store(total_x, m * channels + c, load8(qkv, q + 2 * channels + c) * load8(filters, f0 + channels + c) * a)
                gate = load8(qkv, q + 3 * channels + c) * load8(filters, f0 + 2 * channels + c)
                for d in range(c, 3 * channels, channels):
                    store(total_v, m * 3 * channels + d, gate * load8(vec, v + d))


@kernel
def self_messages_vjp(
    atoms, filters, layer, qkv, qkv0, vec, vec0, attention, groups, depth, g_x, g_v, g_qkv, g_vec
):  # fmt: skip
    """Set g_qkv (M, 5C) and add to g_vec (M, 3, C)."""
    channels = groups * depth * WIDTH
    zero = splat8(filters, 0.0)
    f0 = layer * 4 * channels
    for m in range(atoms):
        q, v, w = m * 5 * channels, m * 3 * channels, vec0 + m * 3 * channels
        for g in range(groups):
            keep = ((layer * atoms + m) * groups + g) * 2 * WIDTH
            a, e = load8(attention, keep), zero
            for c in range(g * depth * WIDTH, (g + 1) * depth * WIDTH, WIDTH):
                x = load8(g_x, m * channels + c) * load8(filters, f0 + channels + c)
                e = e + x * load8(qkv, qkv0 + q + 2 * channels + c)
                store(g_qkv, q + 2 * channels + c, x * a)
                f = load8(filters, f0 + 2 * channels + c)
                gate, inner = load8(qkv, qkv0 + q + 3 * channels + c) * f, zero
                for d in range(c, 3 * channels, channels):
                    gv = load8(g_v, v + d)
                    inner = inner + gv * load8(vec, w + d)
                    increase(g_vec, v + d, gv * gate)
                store(g_qkv, q + 3 * channels + c, inner * f)
                store(g_qkv, q + 4 * channels + c, zero)
            e = e * load8(attention, keep + WIDTH)
            for c in range(g * depth * WIDTH, (g + 1) * depth * WIDTH, WIDTH):
                f = e * load8(filters, f0 + c)
                store(g_qkv, q + c, f * load8(qkv, qkv0 + q + channels + c))
                store(g_qkv, q + channels + c, f * load8(qkv, qkv0 + q + c))


@kernel
def scatter_gradient(n, near_i, near_j, geometry, g_pair, g_pos):
    """Gradient with respect to the positions from that with respect to t and to the unit vectors."""
    for p in range(n):
        i, j = near_i[p], near_j[p]
        ux, uy, uz = geometry[p, 3], geometry[p, 4], geometry[p, 5]
        along = g_pair[p, 1] * ux + g_pair[p, 2] * uy + g_pair[p, 3] * uz
        radial = g_pair[p, 0] * geometry[p, 1]
        inverse = geometry[p, 2]
        dx = radial * ux + (g_pair[p, 1] - along * ux) * inverse
        dy = radial * uy + (g_pair[p, 2] - along * uy) * inverse
        dz = radial * uz + (g_pair[p, 3] - along * uz) * inverse
        g_pos[i, 0] -= dx
        g_pos[i, 1] -= dy
        g_pos[i, 2] -= dz
        g_pos[j, 0] += dx
        g_pos[j, 1] += dy
        g_pos[j, 2] += dz
