"""Numba kernels of the messages between atoms and of their vector-Jacobian product.

Channels are ordered in blocks of `WIDTH` lanes: a block holds one channel of each of `WIDTH` heads, and the `depth` blocks
of one group of heads follow one another. So sums over the channels of a head are sums over blocks, lane by lane.
Sizes: M window atoms, P pairs of them, U rows, C channels (padded), B = C / WIDTH blocks, G groups of heads,
L layers. Arrays: table (L, intervals, B, 4 filters, 4 powers of t, WIDTH); values and slopes of filters (rows, B, 4 filters,
WIDTH), of which row r0 is the first; qkv (L, M, B, 5, WIDTH) from the offset qkv0 on; vec (L + 1, M, 3, C) from vec0 on.

The same two atoms may be a pair in several windows. What depends on their distance is computed once, for a row of
`et_arguments.NearPairs`; the pairs of window atoms of a row are those from starts[row] to starts[row + 1].
"""

import math

from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.kernels.lanes import (
    WIDTH,
    cubic8,
    exp8,
    increase,
    load8,
    prefetch,
    slope8,
    splat8,
    store,
    total8,
)

# numbers of one block of channels: queries, keys, scalar, gate and radial values of an atom lie side by side ...
K, V, G, R, QKV = WIDTH, 2 * WIDTH, 3 * WIDTH, 4 * WIDTH, 5 * WIDTH
# ... so do the filters of keys, scalars, gates and radial vectors, and in the table their cubics (four coefficients each)
SCALAR, GATE, RADIAL, FILTERS = WIDTH, 2 * WIDTH, 3 * WIDTH, 4 * WIDTH
LINE = 16  # numbers of a cache line, in single precision


@kernel
def neighbours(pos, pair_i, pair_j, radial, near):
    """Fill `near`, the pairs closer than the cutoff, and return their number; -1 if a position is not finite."""
    for m in range(pos.shape[0]):
        if not math.isfinite(pos[m, 0] + pos[m, 1] + pos[m, 2]):
            return -1
    n = 0
    cutoff, steepness, alpha, intervals = radial.cutoff, radial.steepness, radial.alpha, radial.intervals
    geometry = near.geometry
    linear = (1.0 - radial.share) / cutoff
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
        near.i[n], near.j[n], near.node[n] = i, j, k
        geometry[n, 0] = s - k
        geometry[n, 1] = (steepness * alpha * decay + linear) * intervals
        geometry[n, 2] = inverse
        geometry[n, 3], geometry[n, 4], geometry[n, 5] = x * inverse, y * inverse, z * inverse
        n += 1
    return n


@kernel
def near_pairs(rows, candidates, pairs):
    """Fill in the pairs of window atoms of those rows that `neighbours` found to be near, which keep their order."""
    row = n = 0
    near, first, second = pairs.rows, candidates.first, candidates.second
    pairs.starts[0] = 0
    for u in range(first.shape[0]):
        if row < rows and near.i[row] == first[u] and near.j[row] == second[u]:
            for p in range(candidates.starts[u], candidates.starts[u + 1]):
                pairs.i[n], pairs.j[n] = candidates.i[p], candidates.j[p]
                n += 1
            row += 1
            pairs.starts[row] = n


@kernel
def filters(r0, r1, near, table, layer, blocks, gated, values, slopes, sloped):
    """Values, and where `sloped` is set slopes by t, of the filters of rows r0 to r1.

    Without `gated` those of the gates are left out.
    """
    size, node, geometry = blocks * FILTERS, near.node, near.geometry
    for row in range(r0, r1):
        t = splat8(table, geometry[row, 0])
        f = (layer * table.shape[1] + node[row]) * size * 4
        # the table is larger than the fast caches: fetch the next row while this one is computed
        ahead = (layer * table.shape[1] + node[min(row + 1, r1 - 1)]) * size * 4
        out = (row - r0) * size
        for c in range(0, size, FILTERS):
            for line in range(0, 4 * FILTERS, LINE):
                prefetch(table, ahead + 4 * c + line)
            for part in range(0, FILTERS, WIDTH):
                if gated or part != GATE:
                    at = f + 4 * (c + part)
                    value = cubic8(table, at, t)
                    if sloped:
                        slope = slope8(table, at, t)
                        store(slopes, out + c + part, slope)
                    store(values, out + c + part, value)


@kernel
def attend(r0, r1, pairs, values, qkv, qkv0, attention, a0, groups, depth):
    """Attention of the pairs of rows r0 to r1 in both directions.

    Fills `attention` (P, G, 4, WIDTH) from a0 on with silu(a) and its derivative: to i, to j, derivative of that to i, to j.
    """
    blocks = groups * depth
    starts, near_i, near_j = pairs.starts, pairs.i, pairs.j
    one, zero = splat8(values, 1.0), splat8(values, 0.0)
    for row in range(r0, r1):
        for p in range(starts[row], starts[row + 1]):
            f = (row - r0) * blocks * FILTERS
            i, j = qkv0 + near_i[p] * blocks * QKV, qkv0 + near_j[p] * blocks * QKV
            for g in range(groups):
                ai, aj = zero, zero
                for _ in range(depth):
                    key = load8(values, f)
                    ai = ai + load8(qkv, i) * load8(qkv, j + K) * key
                    aj = aj + load8(qkv, j) * load8(qkv, i + K) * key
                    f, i, j = f + FILTERS, i + QKV, j + QKV
                store(attention, a0 + (p * groups + g) * 4 * WIDTH, ai)
                store(attention, a0 + (p * groups + g) * 4 * WIDTH + WIDTH, aj)
    # a loop of its own: the long chain of exp overlaps between pairs
    for a in range(a0 + starts[r0] * groups * 4 * WIDTH, a0 + starts[r1] * groups * 4 * WIDTH, 4 * WIDTH):
        for side in (a, a + WIDTH):
            value = load8(attention, side)
            s = one / (one + exp8(zero - value))
            value = value * s
            store(attention, side, value)
            store(attention, side + 2 * WIDTH, s + value * (one - s))


@kernel
def messages(
    r0, r1, pairs, values, qkv, qkv0, vec, vec0, attention, a0, groups, depth, gated, total_x, total_v
):  # fmt: skip
    """Add the messages of the pairs of rows r0 to r1, in both directions, to total_x (M, C) and total_v (M, 3, C).

    `attention` is that of `attend`. Without `gated` vec is taken to be 0.
    """
    blocks = groups * depth
    channels = blocks * WIDTH
    starts, near_i, near_j, geometry = pairs.starts, pairs.i, pairs.j, pairs.rows.geometry
    zero = splat8(values, 0.0)
    for row in range(r0, r1):
        ux, uy, uz = splat8(values, geometry[row, 3]), splat8(values, geometry[row, 4]), splat8(values, geometry[row, 5])
        for p in range(starts[row], starts[row + 1]):
            i, j = near_i[p], near_j[p]
            f, a = (row - r0) * blocks * FILTERS, a0 + p * groups * 4 * WIDTH
            qi, qj = qkv0 + i * blocks * QKV, qkv0 + j * blocks * QKV
            xi, xj = i * channels, j * channels
            vi, vj = i * 3 * channels, j * 3 * channels
            for _ in range(groups):
                ai, aj = load8(attention, a), load8(attention, a + WIDTH)
                a += 4 * WIDTH
                for _ in range(depth):
                    scalar, radial = load8(values, f + SCALAR), load8(values, f + RADIAL)
                    increase(total_x, xi, load8(qkv, qj + V) * scalar * ai)
                    increase(total_x, xj, load8(qkv, qi + V) * scalar * aj)
                    ri, rj = load8(qkv, qj + R) * radial, load8(qkv, qi + R) * radial
                    if gated:
                        gate = load8(values, f + GATE)
                        gi, gj = load8(qkv, qj + G) * gate, load8(qkv, qi + G) * gate
                        wi, wj = vec0 + vi, vec0 + vj
                        increase(total_v, vi, ri * ux + gi * load8(vec, wj))
                        increase(total_v, vi + channels, ri * uy + gi * load8(vec, wj + channels))
                        increase(total_v, vi + 2 * channels, ri * uz + gi * load8(vec, wj + 2 * channels))
                        increase(total_v, vj, gj * load8(vec, wi) - rj * ux)
                        increase(total_v, vj + channels, gj * load8(vec, wi + channels) - rj * uy)
                        increase(total_v, vj + 2 * channels, gj * load8(vec, wi + 2 * channels) - rj * uz)
                    else:
                        increase(total_v, vi, ri * ux)
                        increase(total_v, vi + channels, ri * uy)
                        increase(total_v, vi + 2 * channels, ri * uz)
                        increase(total_v, vj, zero - rj * ux)
                        increase(total_v, vj + channels, zero - rj * uy)
                        increase(total_v, vj + 2 * channels, zero - rj * uz)
                    f, qi, qj = f + FILTERS, qi + QKV, qj + QKV
                    xi, xj, vi, vj = xi + WIDTH, xj + WIDTH, vi + WIDTH, vj + WIDTH


@kernel
def messages_vjp(
    r0, r1, pairs, values, slopes, qkv, qkv0, vec, vec0, attention, a0, groups, depth, gated, g_x, g_v, g_qkv, g_vec, g_row,
):  # fmt: skip
    """Gradients of the messages of rows r0 to r1 from those of the totals, g_x (M, C) and g_v (M, 3, C).

    Adds to g_row (U, 4), float64, with respect to t and to the unit vector, and where `gated` is set to g_qkv (M, 5C) and
    g_vec (M, 3, C); otherwise q, k, v are constants and vec is 0.
    """
    blocks = groups * depth
    channels = blocks * WIDTH
    starts, near_i, near_j, geometry = pairs.starts, pairs.i, pairs.j, pairs.rows.geometry
    zero = splat8(values, 0.0)
    for row in range(r0, r1):
        ux, uy, uz = splat8(values, geometry[row, 3]), splat8(values, geometry[row, 4]), splat8(values, geometry[row, 5])
        gt, gux, guy, guz = zero, zero, zero, zero
        for p in range(starts[row], starts[row + 1]):
            i, j = near_i[p], near_j[p]
            f, a = (row - r0) * blocks * FILTERS, a0 + p * groups * 4 * WIDTH
            qi, qj = i * blocks * QKV, j * blocks * QKV
            xi, xj = i * channels, j * channels
            vi, vj = i * 3 * channels, j * 3 * channels
            for _ in range(groups):
                ai, aj = load8(attention, a), load8(attention, a + WIDTH)
                ei, ej = zero, zero
                for _ in range(depth):
                    si, sj = qkv0 + qj, qkv0 + qi  # sources of the messages to i and to j
                    scalar = load8(values, f + SCALAR)
                    gi, gj = load8(g_x, xi), load8(g_x, xj)
                    mi, mj = gi * load8(qkv, si + V), gj * load8(qkv, sj + V)
                    ei, ej = ei + mi * scalar, ej + mj * scalar
                    gt = gt + (mi * ai + mj * aj) * load8(slopes, f + SCALAR)
                    ix, iy, iz = load8(g_v, vi), load8(g_v, vi + channels), load8(g_v, vi + 2 * channels)
                    jx, jy, jz = load8(g_v, vj), load8(g_v, vj + channels), load8(g_v, vj + 2 * channels)
                    radial = load8(values, f + RADIAL)
                    di, dj = ix * ux + iy * uy + iz * uz, zero - (jx * ux + jy * uy + jz * uz)
                    ri, rj = load8(qkv, si + R), load8(qkv, sj + R)
                    gt = gt + (di * ri + dj * rj) * load8(slopes, f + RADIAL)
                    ri, rj = ri * radial, rj * radial
                    gux, guy, guz = gux + ix * ri - jx * rj, guy + iy * ri - jy * rj, guz + iz * ri - jz * rj
                    if gated:
                        increase(g_qkv, qj + V, gi * scalar * ai)
                        increase(g_qkv, qi + V, gj * scalar * aj)
                        increase(g_qkv, qj + R, di * radial)
                        increase(g_qkv, qi + R, dj * radial)
                        gate = load8(values, f + GATE)
                        wi, wj = vec0 + vi, vec0 + vj
                        di = ix * load8(vec, wj) + iy * load8(vec, wj + channels) + iz * load8(vec, wj + 2 * channels)
                        dj = jx * load8(vec, wi) + jy * load8(vec, wi + channels) + jz * load8(vec, wi + 2 * channels)
                        ri, rj = load8(qkv, si + G), load8(qkv, sj + G)
                        gt = gt + (di * ri + dj * rj) * load8(slopes, f + GATE)
                        increase(g_qkv, qj + G, di * gate)
                        increase(g_qkv, qi + G, dj * gate)
                        ri, rj = ri * gate, rj * gate
                        increase(g_vec, vj, ix * ri)
                        increase(g_vec, vj + channels, iy * ri)
                        increase(g_vec, vj + 2 * channels, iz * ri)
                        increase(g_vec, vi, jx * rj)
                        increase(g_vec, vi + channels, jy * rj)
                        increase(g_vec, vi + 2 * channels, jz * rj)
                    f, qi, qj = f + FILTERS, qi + QKV, qj + QKV
                    xi, xj, vi, vj = xi + WIDTH, xj + WIDTH, vi + WIDTH, vj + WIDTH
                ei, ej = ei * load8(attention, a + 2 * WIDTH), ej * load8(attention, a + 3 * WIDTH)
                a += 4 * WIDTH
                # the same blocks again, now that the gradient of their sum is known
                f, qi, qj = f - depth * FILTERS, qi - depth * QKV, qj - depth * QKV
                for _ in range(depth):
                    pi, pj = load8(qkv, qkv0 + qi) * ei, load8(qkv, qkv0 + qj) * ej
                    ki, kj = load8(qkv, qkv0 + qi + K), load8(qkv, qkv0 + qj + K)
                    gt = gt + (pi * kj + pj * ki) * load8(slopes, f)
                    if gated:
                        key = load8(values, f)
                        increase(g_qkv, qi, ei * key * kj)
                        increase(g_qkv, qj, ej * key * ki)
                        increase(g_qkv, qi + K, pj * key)
                        increase(g_qkv, qj + K, pi * key)
                    f, qi, qj = f + FILTERS, qi + QKV, qj + QKV
        g_row[row, 0] += total8(gt)
        g_row[row, 1] += total8(gux)
        g_row[row, 2] += total8(guy)
        g_row[row, 3] += total8(guz)


@kernel
def self_messages(atoms, filters, layer, qkv, qkv0, vec, vec0, attention, groups, depth, total_x, total_v):
    """Set the totals to the messages of every atom to itself; filters (L, B, 4, WIDTH) at distance 0."""
    blocks = groups * depth
    channels = blocks * WIDTH
    one, zero = splat8(filters, 1.0), splat8(filters, 0.0)
    for m in range(atoms):
        for g in range(groups):
            a = zero
            for b in range(g * depth, (g + 1) * depth):
                q, f = qkv0 + (m * blocks + b) * QKV, (layer * blocks + b) * 4 * WIDTH
                a = a + load8(qkv, q) * load8(qkv, q + K) * load8(filters, f)
            s = one / (one + exp8(zero - a))
            a = a * s
            keep = ((layer * atoms + m) * groups + g) * 2 * WIDTH
            store(attention, keep, a)
            store(attention, keep + WIDTH, s + a * (one - s))
            for b in range(g * depth, (g + 1) * depth):
                q, f = qkv0 + (m * blocks + b) * QKV, (layer * blocks + b) * 4 * WIDTH
                store(total_x, m * channels + b * WIDTH, load8(qkv, q + V) * load8(filters, f + WIDTH) * a)
                gate = load8(qkv, q + G) * load8(filters, f + 2 * WIDTH)
                for d in range(3):
                    v = (m * 3 + d) * channels + b * WIDTH
                    store(total_v, v, gate * load8(vec, vec0 + v))


@kernel
def self_messages_vjp(atoms, filters, layer, qkv, qkv0, vec, vec0, attention, groups, depth, g_x, g_v, g_qkv, g_vec):
    """Set g_qkv (M, 5C) and add to g_vec (M, 3, C)."""
    blocks = groups * depth
    channels = blocks * WIDTH
    zero = splat8(filters, 0.0)
    for m in range(atoms):
        for g in range(groups):
            keep = ((layer * atoms + m) * groups + g) * 2 * WIDTH
            a, e = load8(attention, keep), zero
            for b in range(g * depth, (g + 1) * depth):
                q, f = (m * blocks + b) * QKV, (layer * blocks + b) * 4 * WIDTH
                x = load8(g_x, m * channels + b * WIDTH) * load8(filters, f + WIDTH)
                e = e + x * load8(qkv, qkv0 + q + V)
                gate_filter = load8(filters, f + 2 * WIDTH)
                gate, inner = load8(qkv, qkv0 + q + G) * gate_filter, zero
                for d in range(3):
                    v = (m * 3 + d) * channels + b * WIDTH
                    gv = load8(g_v, v)
                    inner = inner + gv * load8(vec, vec0 + v)
                    increase(g_vec, v, gv * gate)
                store(g_qkv, q + V, x * a)
                store(g_qkv, q + G, inner * gate_filter)
                store(g_qkv, q + R, zero)
            e = e * load8(attention, keep + WIDTH)
            for b in range(g * depth, (g + 1) * depth):
                q, f = (m * blocks + b) * QKV, (layer * blocks + b) * 4 * WIDTH
                key = e * load8(filters, f)
                store(g_qkv, q, key * load8(qkv, qkv0 + q + K))
                store(g_qkv, q + K, key * load8(qkv, qkv0 + q))


@kernel
def scatter_gradient(n, near, g_pair, g_pos):
    """Gradient with respect to the positions from that of the near pairs with respect to t and to the unit vectors."""
    near_i, near_j, geometry = near.i, near.j, near.geometry
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
