"""Numba kernels of TensorNet's messages between atoms.

Sizes and arrays as in `tensornet_arguments`, with n pairs within the cutoff; edges are sorted by target. The filters of a
layer are (B, n, 3, 16): a panel of channels is done with before the next, so that its tensors stay in the first-level cache.
"""

import math

from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.compiled.tensornet_nodes import anticommutator, damping, dot9, load9, scaled9, store9
from torchmdnet_ext.kernels.lanes import (
    PANEL,
    broadcast16,
    cubic8,
    increase,
    load16,
    slope8,
    splat16,
    store,
    total8,
)

LINE = 3 * PANEL  # filters of one pair and panel, of the three parts
DIRECTION = 8  # numbers of the antisymmetric and of the symmetric part of an edge
ROOT2, ROOT6 = math.sqrt(2.0), math.sqrt(6.0)


@kernel
def direct(n, atoms, graph):
    """Fill in the directed edges from the near pairs: `first[m]` to `first[m + 1]` are those of atom m."""
    near_i, near_j, geometry = graph.near.i, graph.near.j, graph.near.geometry
    first, source, row, edge = graph.first, graph.source, graph.row, graph.edge
    first[: atoms + 1] = 0
    for p in range(n):
        first[near_i[p] + 1] += 1
        first[near_j[p] + 1] += 1
    for m in range(atoms):
        first[m + 1] += first[m]
    # `first[m]` moves on while edges of m are filled in and ends at the start of those of m + 1
    for p in range(n):
        for side in range(2):
            i, j = (near_i[p], near_j[p]) if side == 0 else (near_j[p], near_i[p])
            sign = 1.0 - 2.0 * side
            e = first[i]
            first[i] += 1
            source[e], row[e] = j, p
            x, y, z = sign * geometry[p, 3], sign * geometry[p, 4], sign * geometry[p, 5]
            edge[e, 0], edge[e, 1], edge[e, 2] = x, y, z
            edge[e, 3], edge[e, 4], edge[e, 5] = ROOT2 * y * z, ROOT2 * z * x, ROOT2 * x * y
            edge[e, 6], edge[e, 7] = (x * x - y * y) / ROOT2, (2.0 * z * z - x * x - y * y) / ROOT6
    for m in range(atoms, 0, -1):
        first[m] = first[m - 1]
    first[0] = 0


@kernel
def evaluate_filters(keep, n, near, table, layer, channels, f, slope, f0):
    """Fill f (B, n, 3, 16) from f0 on and, where `keep` is set, the derivatives with respect to the place in the table."""
    blocks, node, geometry = channels // PANEL, near.node, near.geometry
    for p in range(n):
        t = splat16(table, geometry[p, 0])
        at = (layer * table.shape[1] + node[p]) * blocks * 4 * LINE
        for b in range(blocks):
            out = f0 + (b * n + p) * LINE
            for k in range(3):
                store(f, out + k * PANEL, cubic8(table, at, t))
                if keep:
                    store(slope, out + k * PANEL, slope8(table, at, t))
                at += 4 * PANEL


@kernel
def embed(n, atoms, channels, graph, f, centre, neighbour, own, x, squared):
    """Fill x (9, M, C), the first tensors, and their squared norms (M, C).

    centre, neighbour (M, C): what the elements of both ends of an edge add to its factor. own (C,): the filter of an atom
    itself.
    """
    first, source, row, edge = graph.first, graph.source, graph.row, graph.edge
    step, zero = atoms * channels, splat16(x, 0.0)
    for b in range(channels // PANEL):
        c = b * PANEL
        for i in range(atoms):
            mine = load16(centre, i * channels + c)
            x0 = load16(own, c) * (mine + load16(neighbour, i * channels + c))
            x1, x2, x3, x4, x5, x6, x7, x8 = zero, zero, zero, zero, zero, zero, zero, zero
            for e in range(first[i], first[i + 1]):
                both = mine + load16(neighbour, source[e] * channels + c)
                k, d = (b * n + row[e]) * LINE, e * DIRECTION
                x0 = x0 + load16(f, k) * both
                skew, symmetric = load16(f, k + PANEL) * both, load16(f, k + 2 * PANEL) * both
                x1 = x1 + skew * broadcast16(edge, d)
                x2 = x2 + skew * broadcast16(edge, d + 1)
                x3 = x3 + skew * broadcast16(edge, d + 2)
                x4 = x4 + symmetric * broadcast16(edge, d + 3)
                x5 = x5 + symmetric * broadcast16(edge, d + 4)
                x6 = x6 + symmetric * broadcast16(edge, d + 5)
                x7 = x7 + symmetric * broadcast16(edge, d + 6)
                x8 = x8 + symmetric * broadcast16(edge, d + 7)
            tensor = x0, x1, x2, x3, x4, x5, x6, x7, x8
            store9(x, i * channels + c, step, tensor)
            store(squared, i * channels + c, dot9(tensor, tensor))


@kernel
def embed_vjp(n, atoms, channels, graph, f, slope, centre, neighbour, g, g_radial, g_pair):
    """Back to the distances and directions from g (9, M, C).

    Adds to g_radial (n, 16), lanes whose sum is the gradient with respect to the place in the table, and to g_pair (n, 4)
    from its second column on, float64, the gradient with respect to the unit vector.
    """
    first, source, row, edge, near_i = graph.first, graph.source, graph.row, graph.edge, graph.near.i
    step, zero = atoms * channels, splat16(g, 0.0)
    for i in range(atoms):
        for e in range(first[i], first[i + 1]):
            p, d = row[e], e * DIRECTION
            q1, q2, q3, q4, q5, q6, q7, q8 = zero, zero, zero, zero, zero, zero, zero, zero
            radial = zero
            for b in range(channels // PANEL):
                c, k = b * PANEL, (b * n + p) * LINE
                both = load16(centre, i * channels + c) + load16(neighbour, source[e] * channels + c)
                gx = load9(g, i * channels + c, step)
                skew, symmetric = load16(f, k + PANEL) * both, load16(f, k + 2 * PANEL) * both
                q1, q2, q3 = q1 + skew * gx[1], q2 + skew * gx[2], q3 + skew * gx[3]
                q4, q5, q6 = q4 + symmetric * gx[4], q5 + symmetric * gx[5], q6 + symmetric * gx[6]
                q7, q8 = q7 + symmetric * gx[7], q8 + symmetric * gx[8]
                along = load16(slope, k) * gx[0]
                inner = gx[1] * broadcast16(edge, d) + gx[2] * broadcast16(edge, d + 1) + gx[3] * broadcast16(edge, d + 2)
                along = along + load16(slope, k + PANEL) * inner
                inner = gx[4] * broadcast16(edge, d + 3) + gx[5] * broadcast16(edge, d + 4)
                inner = inner + gx[6] * broadcast16(edge, d + 5) + gx[7] * broadcast16(edge, d + 6)
                inner = inner + gx[8] * broadcast16(edge, d + 7)
                along = along + load16(slope, k + 2 * PANEL) * inner
                radial = radial + along * both
            increase(g_radial, p * PANEL, radial)
            x, y, z = edge[e, 0], edge[e, 1], edge[e, 2]
            yz, zx, xy, across, up = total8(q4), total8(q5), total8(q6), total8(q7) / ROOT2, total8(q8) / ROOT6
            sign = 1.0 if near_i[p] == i else -1.0
            g_pair[p, 1] += sign * (total8(q1) + ROOT2 * (z * zx + y * xy) + 2.0 * x * (across - up))
            g_pair[p, 2] += sign * (total8(q2) + ROOT2 * (z * yz + x * xy) - 2.0 * y * (across + up))
            g_pair[p, 3] += sign * (total8(q3) + ROOT2 * (y * yz + x * zx) + 4.0 * z * up)


@kernel
def exchange(n, atoms, channels, graph, f, f0, own, own0, y, message, damped, scale, place):
    """Messages, and the damped products of them with the atoms' own tensors: YM + MY.

    place: where the layer starts in scale (M, C), and a ninth of where it starts in y, message and damped (9, M, C).
    own (3, C) are the filters at the distance 0, of an atom itself.
    """
    first, source, row = graph.first, graph.source, graph.row
    step, layer = atoms * channels, 9 * place
    for b in range(channels // PANEL):
        c = b * PANEL
        for i in range(atoms):
            at = layer + i * channels + c
            mine = load9(y, at, step)
            k = own0 + c
            unit, skew, symmetric = load16(own, k), load16(own, k + channels), load16(own, k + 2 * channels)
            m0, m1, m2, m3, m4, m5, m6, m7, m8 = scaled9(mine, unit, skew, symmetric)
            for e in range(first[i], first[i + 1]):
                k, j = f0 + (b * n + row[e]) * LINE, layer + source[e] * channels + c
                unit, skew, symmetric = load16(f, k), load16(f, k + PANEL), load16(f, k + 2 * PANEL)
                m0 = m0 + unit * load16(y, j)
                m1 = m1 + skew * load16(y, j + step)
                m2 = m2 + skew * load16(y, j + 2 * step)
                m3 = m3 + skew * load16(y, j + 3 * step)
                m4 = m4 + symmetric * load16(y, j + 4 * step)
                m5 = m5 + symmetric * load16(y, j + 5 * step)
                m6 = m6 + symmetric * load16(y, j + 6 * step)
                m7 = m7 + symmetric * load16(y, j + 7 * step)
                m8 = m8 + symmetric * load16(y, j + 8 * step)
            received = m0, m1, m2, m3, m4, m5, m6, m7, m8
            store9(message, at, step, received)
            product = anticommutator(y, mine, received)
            s = damping(y, product)
            store9(damped, at, step, scaled9(product, s, s, s))
            store(scale, place + i * channels + c, s)


@kernel
def exchange_vjp(n, atoms, channels, graph, f, slope, f0, y, y0, g_message, g_y, g_radial):
    """Back through the messages: adds to g_y (9, M, C) and to g_radial (n, 16), as in `embed_vjp`."""
    first, source, row = graph.first, graph.source, graph.row
    step = atoms * channels
    for b in range(channels // PANEL):
        c = b * PANEL
        for i in range(atoms):
            at = i * channels + c
            mine = load9(y, y0 + at, step)
            g0, g1, g2, g3, g4, g5, g6, g7, g8 = load9(g_y, at, step)
            for e in range(first[i], first[i + 1]):
                k = f0 + (b * n + row[e]) * LINE
                # messages are symmetric: what atom i gets back from j is what j got from i
                of = load9(g_message, source[e] * channels + c, step)
                unit, skew, symmetric = load16(f, k), load16(f, k + PANEL), load16(f, k + 2 * PANEL)
                g0, g1, g2, g3 = g0 + unit * of[0], g1 + skew * of[1], g2 + skew * of[2], g3 + skew * of[3]
                g4, g5, g6 = g4 + symmetric * of[4], g5 + symmetric * of[5], g6 + symmetric * of[6]
                g7, g8 = g7 + symmetric * of[7], g8 + symmetric * of[8]
                along = load16(slope, k) * (mine[0] * of[0])
                along = along + load16(slope, k + PANEL) * (mine[1] * of[1] + mine[2] * of[2] + mine[3] * of[3])
                inner = mine[4] * of[4] + mine[5] * of[5] + mine[6] * of[6] + mine[7] * of[7] + mine[8] * of[8]
                along = along + load16(slope, k + 2 * PANEL) * inner
                increase(g_radial, row[e] * PANEL, along)
            store9(g_y, at, step, (g0, g1, g2, g3, g4, g5, g6, g7, g8))


@kernel
def add_radial(n, g_radial, g_pair):
    """g_pair[:, 0] = the sums over the lanes of g_radial (n, 16)."""
    for p in range(n):
        g_pair[p, 0] = total8(load16(g_radial, p * PANEL))
