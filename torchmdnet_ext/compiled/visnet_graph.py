"""Numba kernels of ViSNet's graph: directed edges, and the embeddings of atoms and pairs that depend on distances.

Sizes and arrays as in `visnet_arguments`, with n pairs within the cutoff. The rows are these pairs, then self loops.
Arrays are C-contiguous.
"""

import math

from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.kernels.lanes import PANEL, cubic8, increase, load16, slope8, splat16, store, total8

ROW = 8 * PANEL  # coefficients of one panel of channels: cubics of the neighbour embedding and of the edge embedding
EDGE = 4 * PANEL  # where the second of them starts
SQRT3 = math.sqrt(3.0)


@kernel
def cutoffs(n, atoms, geometry, cutoff, width, decay):
    """Fill decay (rows, 4), float64: cosine cutoff, envelope (1 where `width` is 0), and their slopes in 1/angstrom."""
    for p in range(n):
        r = 1.0 / geometry[p, 2] if geometry[p, 2] > 0.0 else 0.0
        decay[p, 0] = 0.5 * (math.cos(math.pi * r / cutoff) + 1.0)
        decay[p, 2] = -0.5 * math.pi / cutoff * math.sin(math.pi * r / cutoff)
        u = (r - (cutoff - width)) / width if width > 0.0 else 0.0
        if u > 0.0:
            decay[p, 1] = 1.0 - u * u * u * (10.0 - 15.0 * u + 6.0 * u * u)
            decay[p, 3] = -30.0 * u * u * (1.0 - u) * (1.0 - u) / width
        else:
            decay[p, 1], decay[p, 3] = 1.0, 0.0
    for p in range(n, n + atoms):
        decay[p, 0], decay[p, 1], decay[p, 2], decay[p, 3] = 1.0, 1.0, 0.0, 0.0


@kernel
def direct(n, atoms, graph, components):
    """Fill in the directed edges from the near pairs and their decay."""
    near_i, near_j, geometry, decay = graph.near.i, graph.near.j, graph.near.geometry, graph.decay
    first, source, target, row, edge = graph.first, graph.source, graph.target, graph.row, graph.edge
    first[: atoms + 1] = 1
    first[0] = 0
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
            source[e], target[e], row[e] = j, i, p
            edge[e, 0], edge[e, 1] = decay[p, 0], decay[p, 1]
            x, y, z = sign * geometry[p, 3], sign * geometry[p, 4], sign * geometry[p, 5]
            edge[e, 2], edge[e, 3], edge[e, 4] = x, y, z
            if components == 8:
                edge[e, 5], edge[e, 6], edge[e, 8] = SQRT3 * x * z, SQRT3 * x * y, SQRT3 * y * z
                edge[e, 7] = y * y - 0.5 * (x * x + z * z)
                edge[e, 9] = 0.5 * SQRT3 * (z * z - x * x)
    for m in range(atoms):
        e = first[m]
        source[e], target[e], row[e] = m, m, n + m
        edge[e, 0], edge[e, 1] = 1.0, 1.0
        for k in range(components):
            edge[e, 2 + k] = 0.0


@kernel
def gather_neighbours(n, near, table, channels, neighbour, total):
    """`total` (M, C) += the neighbour embedding's messages; `neighbour` (M, C) is the embedding of every atom's element."""
    blocks = channels // PANEL
    near_i, near_j, node, geometry = near.i, near.j, near.node, near.geometry
    for p in range(n):
        t = splat16(table, geometry[p, 0])
        f, i, j = node[p] * blocks * ROW, near_i[p] * channels, near_j[p] * channels
        for _ in range(blocks):
            weight = cubic8(table, f, t)
            increase(total, i, weight * load16(neighbour, j))
            increase(total, j, weight * load16(neighbour, i))
            f, i, j = f + ROW, i + PANEL, j + PANEL


@kernel
def gather_neighbours_vjp(n, near, table, channels, neighbour, g_total, g_pair):
    """g_pair (P, 4)[:, 0] += gradient with respect to the place t in the table, from g_total (M, C)."""
    blocks = channels // PANEL
    near_i, near_j, node, geometry = near.i, near.j, near.node, near.geometry
    for p in range(n):
        t = splat16(table, geometry[p, 0])
        f, i, j = node[p] * blocks * ROW, near_i[p] * channels, near_j[p] * channels
        gradient = splat16(table, 0.0)
        for _ in range(blocks):
            both = load16(g_total, i) * load16(neighbour, j) + load16(g_total, j) * load16(neighbour, i)
            gradient = gradient + slope8(table, f, t) * both
            f, i, j = f + ROW, i + PANEL, j + PANEL
        g_pair[p, 0] += total8(gradient)


@kernel
def embed_edges(n, atoms, near, table, loop, channels, x, f):
    """Fill f (rows, C) = (x_i + x_j) * filter; `loop` (C,) is the filter of self loops."""
    blocks = channels // PANEL
    near_i, near_j, node, geometry = near.i, near.j, near.node, near.geometry
    for p in range(n):
        t = splat16(table, geometry[p, 0])
        k, i, j = node[p] * blocks * ROW + EDGE, near_i[p] * channels, near_j[p] * channels
        for c in range(0, channels, PANEL):
            store(f, p * channels + c, (load16(x, i + c) + load16(x, j + c)) * cubic8(table, k, t))
            k += ROW
    for m in range(atoms):
        for c in range(0, channels, PANEL):
            own = load16(x, m * channels + c)
            store(f, (n + m) * channels + c, (own + own) * load16(loop, c))


@kernel
def embed_edges_vjp(n, atoms, near, table, loop, channels, x, g_f, g_x, g_pair):
    """g_x (M, C) += gradient with respect to x; g_pair[:, 0] += that with respect to t, from g_f (rows, C)."""
    blocks = channels // PANEL
    near_i, near_j, node, geometry = near.i, near.j, near.node, near.geometry
    for p in range(n):
        t = splat16(table, geometry[p, 0])
        k, i, j = node[p] * blocks * ROW + EDGE, near_i[p] * channels, near_j[p] * channels
        gradient = splat16(table, 0.0)
        for c in range(0, channels, PANEL):
            g = load16(g_f, p * channels + c)
            gradient = gradient + g * (load16(x, i + c) + load16(x, j + c)) * slope8(table, k, t)
            both = g * cubic8(table, k, t)
            increase(g_x, i + c, both)
            increase(g_x, j + c, both)
            k += ROW
        g_pair[p, 0] += total8(gradient)
    for m in range(atoms):
        for c in range(0, channels, PANEL):
            both = load16(g_f, (n + m) * channels + c) * load16(loop, c)
            increase(g_x, m * channels + c, both + both)


@kernel
def edges_vjp(edges, n, graph, components, g_edge, g_pair):
    """g_pair (P, 4) += gradients with respect to t and to the unit vector, from g_edge (E, 2 + S), float64."""
    near_i, geometry, decay, row, target = graph.near.i, graph.near.geometry, graph.decay, graph.row, graph.target
    for e in range(edges):
        p = row[e]
        if p >= n:
            continue
        g_pair[p, 0] += (g_edge[e, 0] * decay[p, 2] + g_edge[e, 1] * decay[p, 3]) / geometry[p, 1]
        x, y, z = g_edge[e, 2], g_edge[e, 3], g_edge[e, 4]
        sign = 1.0 if target[e] == near_i[p] else -1.0
        if components == 8:
            ux, uy, uz = sign * geometry[p, 3], sign * geometry[p, 4], sign * geometry[p, 5]
            x += SQRT3 * (uz * g_edge[e, 5] + uy * g_edge[e, 6] - ux * g_edge[e, 9]) - ux * g_edge[e, 7]
            y += SQRT3 * (ux * g_edge[e, 6] + uz * g_edge[e, 8]) + 2.0 * uy * g_edge[e, 7]
            z += SQRT3 * (ux * g_edge[e, 5] + uy * g_edge[e, 8] + uz * g_edge[e, 9]) - uz * g_edge[e, 7]
        g_pair[p, 1] += sign * x
        g_pair[p, 2] += sign * y
        g_pair[p, 3] += sign * z
