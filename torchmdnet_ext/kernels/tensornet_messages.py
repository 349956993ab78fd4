"""Numba kernels of TensorNet's messages and products, and of their vector-Jacobian products, for training.

Nothing of the size of the pairs times the channels is stored: a filter is put together from four rows of a table where it is
needed, and its gradient goes straight back to them. Tensors are (9, N, C): the atoms of all components of a part follow one
another. Sizes and arrays, all C-contiguous: N atoms, C channels (whole panels), E directed edges sorted by target, P pairs.

edges : (first (N + 1,), source (E,), pair (E,), parts (E, 8))
    `first[i]` to `first[i + 1]` are the edges of atom i; `parts` are the antisymmetric and the symmetric components.
filters : (row (P,), step, coefficient (P, 4), table (T, 3C), self_row, self_weight)
    Four rows of the table from `row` on, `step` numbers apart, with their coefficients; those of an atom itself.
"""

import math
from pathlib import Path
from typing import Any

from numba import njit

from torchmdnet_ext.compiled import jit, tensornet_nodes
from torchmdnet_ext.compiled.tensornet_nodes import (
    anticommutator,
    damped_vjp,
    damping,
    dot9,
    load9,
    scaled9,
    store9,
    sum9,
    transposed,
)
from torchmdnet_ext.kernels import lanes
from torchmdnet_ext.kernels.cache import keep_compiled
from torchmdnet_ext.kernels.lanes import PANEL, broadcast16, increase, load16, splat16, store

SOURCES = (Path(__file__), Path(lanes.__file__), Path(jit.__file__), Path(tensornet_nodes.__file__))
PARTS = 8  # numbers of `parts` for each edge
ROOT3 = math.sqrt(3.0)
kernel: Any = njit(error_model="numpy", nogil=True)


@kernel
def _filter(table, f, step, coefficient, k):
    one = load16(table, f) * broadcast16(coefficient, k) + load16(table, f + step) * broadcast16(coefficient, k + 1)
    two = load16(table, f + 2 * step) * broadcast16(coefficient, k + 2)
    return one + (two + load16(table, f + 3 * step) * broadcast16(coefficient, k + 3))


@kernel
def _filter_vjp(g_table, f, step, coefficient, k, gradient):
    increase(g_table, f, gradient * broadcast16(coefficient, k))
    increase(g_table, f + step, gradient * broadcast16(coefficient, k + 1))
    increase(g_table, f + 2 * step, gradient * broadcast16(coefficient, k + 2))
    increase(g_table, f + 3 * step, gradient * broadcast16(coefficient, k + 3))


@kernel
def embed(edges, filters, centre, neighbour, x, squared):
    """Fill x (9, N, C), the first tensors, and their squared norms (N, C).

    centre, neighbour (N, C): what the elements of both ends of an edge add to its factor.
    """
    first, source, pair, parts = edges
    row, step, coefficient, table, self_row, self_weight = filters
    atoms, channels = centre.shape
    stride, zero, root3 = atoms * channels, splat16(x, 0.0), splat16(x, ROOT3)
    own = splat16(x, self_weight)
    for c in range(0, channels, PANEL):
        for i in range(atoms):
            at = i * channels + c
            mine = load16(centre, at)
            x0 = load16(table, self_row * 3 * channels + c) * own * (mine + load16(neighbour, at))
            x1, x2, x3, x4, x5, x6, x7, x8 = zero, zero, zero, zero, zero, zero, zero, zero
            for e in range(first[i], first[i + 1]):
                p, d = pair[e], e * PARTS
                f, k = row[p] * 3 * channels + c, 4 * p
                both = mine + load16(neighbour, source[e] * channels + c)
                x0 = x0 + _filter(table, f, step, coefficient, k) * both
                skew = _filter(table, f + channels, step, coefficient, k) * both
                symmetric = _filter(table, f + 2 * channels, step, coefficient, k) * both
                x1 = x1 + skew * broadcast16(parts, d)
                x2 = x2 + skew * broadcast16(parts, d + 1)
                x3 = x3 + skew * broadcast16(parts, d + 2)
                x4 = x4 + symmetric * broadcast16(parts, d + 3)
                x5 = x5 + symmetric * broadcast16(parts, d + 4)
                x6 = x6 + symmetric * broadcast16(parts, d + 5)
                x7 = x7 + symmetric * broadcast16(parts, d + 6)
                x8 = x8 + symmetric * broadcast16(parts, d + 7)
            tensor = x0 * root3, x1, x2, x3, x4, x5, x6, x7, x8
            store9(x, at, stride, tensor)
            store(squared, at, dot9(tensor, tensor))


@kernel
def embed_vjp(edges, filters, centre, neighbour, x, g_x, g_squared, g_centre, g_neighbour, g_table):
    """Fill g_centre and g_neighbour (N, C) and g_table, from the gradients with respect to the outputs of `embed`."""
    first, source, pair, parts = edges
    row, step, coefficient, table, self_row, self_weight = filters
    atoms, channels = centre.shape
    stride, zero, root3 = atoms * channels, splat16(x, 0.0), splat16(x, ROOT3)
    own = splat16(x, self_weight)
    g_table[:] = 0.0
    g_neighbour[:] = 0.0
    for c in range(0, channels, PANEL):
        loop = self_row * 3 * channels + c
        for i in range(atoms):
            at = i * channels + c
            twice = load16(g_squared, at) + load16(g_squared, at)
            g = sum9(load9(g_x, at, stride), scaled9(load9(x, at, stride), twice, twice, twice))
            g0, mine = g[0] * root3, load16(centre, at)
            along = load16(table, loop) * own * g0
            increase(g_table, loop, own * g0 * (mine + load16(neighbour, at)))
            increase(g_neighbour, at, along)
            total = along
            for e in range(first[i], first[i + 1]):
                p, d, j = pair[e], e * PARTS, source[e] * channels + c
                f, k = row[p] * 3 * channels + c, 4 * p
                both = mine + load16(neighbour, j)
                skew = g[1] * broadcast16(parts, d) + g[2] * broadcast16(parts, d + 1) + g[3] * broadcast16(parts, d + 2)
                symmetric = g[4] * broadcast16(parts, d + 3) + g[5] * broadcast16(parts, d + 4)
                symmetric = symmetric + g[6] * broadcast16(parts, d + 5) + g[7] * broadcast16(parts, d + 6)
                symmetric = symmetric + g[8] * broadcast16(parts, d + 7)
                along = _filter(table, f, step, coefficient, k) * g0
                along = along + _filter(table, f + channels, step, coefficient, k) * skew
                along = along + _filter(table, f + 2 * channels, step, coefficient, k) * symmetric
                _filter_vjp(g_table, f, step, coefficient, k, g0 * both)
                _filter_vjp(g_table, f + channels, step, coefficient, k, skew * both)
                _filter_vjp(g_table, f + 2 * channels, step, coefficient, k, symmetric * both)
                increase(g_neighbour, j, along)
                total = total + along
            store(g_centre, at, total + zero)


@kernel
def first_tensors(mixed, factors, damped, scale):
    """Fill `damped` (9, N, C), `mixed` times a factor for each part, factors (N, 3C), and then damped by scale (N, C)."""
    atoms, channels = scale.shape
    stride = atoms * channels
    for m in range(atoms):
        for c in range(0, channels, PANEL):
            at, k = m * channels + c, m * 3 * channels + c
            unit, skew, symmetric = load16(factors, k), load16(factors, k + channels), load16(factors, k + 2 * channels)
            new = scaled9(load9(mixed, at, stride), unit, skew, symmetric)
            s = damping(mixed, new)
            store9(damped, at, stride, scaled9(new, s, s, s))
            store(scale, at, s)


@kernel
def first_tensors_vjp(mixed, factors, damped, scale, g, g_mixed, g_factors):
    """Fill g_mixed and g_factors from g (9, N, C)."""
    atoms, channels = scale.shape
    stride = atoms * channels
    for m in range(atoms):
        for c in range(0, channels, PANEL):
            at, k = m * channels + c, m * 3 * channels + c
            gx = damped_vjp(load9(damped, at, stride), load16(scale, at), load9(g, at, stride))
            own = load9(mixed, at, stride)
            unit, skew, symmetric = load16(factors, k), load16(factors, k + channels), load16(factors, k + 2 * channels)
            store9(g_mixed, at, stride, scaled9(gx, unit, skew, symmetric))
            store(g_factors, k, gx[0] * own[0])
            store(g_factors, k + channels, gx[1] * own[1] + gx[2] * own[2] + gx[3] * own[3])
            inner = gx[4] * own[4] + gx[5] * own[5] + gx[6] * own[6] + gx[7] * own[7] + gx[8] * own[8]
            store(g_factors, k + 2 * channels, inner)


@kernel
def exchange(edges, filters, charge, y, message, damped, scale):
    """Messages, and the damped products of them with the atoms' own tensors: charge (N,) times YM + MY."""
    first, source, pair, _ = edges
    row, step, coefficient, table, self_row, self_weight = filters
    atoms, channels = scale.shape
    stride, own = atoms * channels, splat16(y, self_weight)
    for c in range(0, channels, PANEL):
        k = self_row * 3 * channels + c
        unit0, skew0 = load16(table, k) * own, load16(table, k + channels) * own
        symmetric0 = load16(table, k + 2 * channels) * own
        for i in range(atoms):
            at = i * channels + c
            mine = load9(y, at, stride)
            m0, m1, m2, m3, m4, m5, m6, m7, m8 = scaled9(mine, unit0, skew0, symmetric0)
            for e in range(first[i], first[i + 1]):
                p, j = pair[e], source[e] * channels + c
                f, k = row[p] * 3 * channels + c, 4 * p
                unit = _filter(table, f, step, coefficient, k)
                skew = _filter(table, f + channels, step, coefficient, k)
                symmetric = _filter(table, f + 2 * channels, step, coefficient, k)
                m0 = m0 + unit * load16(y, j)
                m1 = m1 + skew * load16(y, j + stride)
                m2 = m2 + skew * load16(y, j + 2 * stride)
                m3 = m3 + skew * load16(y, j + 3 * stride)
                m4 = m4 + symmetric * load16(y, j + 4 * stride)
                m5 = m5 + symmetric * load16(y, j + 5 * stride)
                m6 = m6 + symmetric * load16(y, j + 6 * stride)
                m7 = m7 + symmetric * load16(y, j + 7 * stride)
                m8 = m8 + symmetric * load16(y, j + 8 * stride)
            received = m0, m1, m2, m3, m4, m5, m6, m7, m8
            store9(message, at, stride, received)
            q = broadcast16(charge, i)
            product = scaled9(anticommutator(y, mine, received), q, q, q)
            s = damping(y, product)
            store9(damped, at, stride, scaled9(product, s, s, s))
            store(scale, at, s)


@kernel
def _products_vjp(charge, y, message, damped, scale, g, g_message, g_y):
    """Back through the damped products: fill g_message and the part of g_y that does not go through the messages."""
    atoms, channels = scale.shape
    stride, zero = atoms * channels, splat16(g, 0.0)
    for m in range(atoms):
        q = broadcast16(charge, m)
        for c in range(0, channels, PANEL):
            at = m * channels + c
            gu = damped_vjp(load9(damped, at, stride), load16(scale, at), load9(g, at, stride))
            gu = scaled9(gu, q, q, q)
            store9(g_message, at, stride, anticommutator(g, gu, transposed(zero, load9(y, at, stride))))
            store9(g_y, at, stride, anticommutator(g, gu, transposed(zero, load9(message, at, stride))))


@kernel
def exchange_vjp(edges, filters, charge, y, message, damped, scale, g, g_message, g_y, g_table):
    """Fill g_y (9, N, C) and g_table from g, the gradient with respect to the damped products; g_message is scratch."""
    _products_vjp(charge, y, message, damped, scale, g, g_message, g_y)
    first, source, pair, _ = edges
    row, step, coefficient, table, self_row, self_weight = filters
    atoms, channels = scale.shape
    stride, own = atoms * channels, splat16(y, self_weight)
    g_table[:] = 0.0
    for c in range(0, channels, PANEL):
        loop = self_row * 3 * channels + c
        unit0, skew0 = load16(table, loop) * own, load16(table, loop + channels) * own
        symmetric0 = load16(table, loop + 2 * channels) * own
        for i in range(atoms):
            at = i * channels + c
            mine, of = load9(y, at, stride), load9(g_message, at, stride)
            total = sum9(load9(g_y, at, stride), scaled9(of, unit0, skew0, symmetric0))
            g0, g1, g2, g3, g4, g5, g6, g7, g8 = total
            increase(g_table, loop, own * (mine[0] * of[0]))
            increase(g_table, loop + channels, own * (mine[1] * of[1] + mine[2] * of[2] + mine[3] * of[3]))
            inner = mine[4] * of[4] + mine[5] * of[5] + mine[6] * of[6] + mine[7] * of[7] + mine[8] * of[8]
            increase(g_table, loop + 2 * channels, own * inner)
            for e in range(first[i], first[i + 1]):
                p = pair[e]
                f, k = row[p] * 3 * channels + c, 4 * p
                # messages are symmetric: what atom i gets back from j is what j got from i
                of = load9(g_message, source[e] * channels + c, stride)
                unit = _filter(table, f, step, coefficient, k)
                skew = _filter(table, f + channels, step, coefficient, k)
                symmetric = _filter(table, f + 2 * channels, step, coefficient, k)
                g0, g1, g2, g3 = g0 + unit * of[0], g1 + skew * of[1], g2 + skew * of[2], g3 + skew * of[3]
                g4, g5, g6 = g4 + symmetric * of[4], g5 + symmetric * of[5], g6 + symmetric * of[6]
                g7, g8 = g7 + symmetric * of[7], g8 + symmetric * of[8]
                _filter_vjp(g_table, f, step, coefficient, k, mine[0] * of[0])
                inner = mine[1] * of[1] + mine[2] * of[2] + mine[3] * of[3]
                _filter_vjp(g_table, f + channels, step, coefficient, k, inner)
                inner = mine[4] * of[4] + mine[5] * of[5] + mine[6] * of[6] + mine[7] * of[7] + mine[8] * of[8]
                _filter_vjp(g_table, f + 2 * channels, step, coefficient, k, inner)
            store9(g_y, at, stride, (g0, g1, g2, g3, g4, g5, g6, g7, g8))


@kernel
def next_tensors(charge, x, update, new, scale, last):
    """Fill `new` (9, N, C) with X + U + charge U^2, damped by `scale` (N, C), or as it is after the last layer."""
    atoms, channels = scale.shape
    stride, half = atoms * channels, splat16(x, 0.5)
    for m in range(atoms):
        q = half * broadcast16(charge, m)
        for c in range(0, channels, PANEL):
            at = m * channels + c
            u = load9(update, at, stride)
            y = sum9(sum9(load9(x, at, stride), u), scaled9(anticommutator(x, u, u), q, q, q))
            if last:
                store9(new, at, stride, y)
            else:
                s = damping(x, y)
                store9(new, at, stride, scaled9(y, s, s, s))
                store(scale, at, s)


@kernel
def next_tensors_vjp(charge, update, new, scale, last, g, g_x, g_update):
    """Fill g_x and g_update (9, N, C) from g, the gradient with respect to `new`."""
    atoms, channels = scale.shape
    stride, zero = atoms * channels, splat16(g, 0.0)
    for m in range(atoms):
        q = broadcast16(charge, m)
        for c in range(0, channels, PANEL):
            at = m * channels + c
            gx, u = load9(g, at, stride), load9(update, at, stride)
            if not last:
                gx = damped_vjp(load9(new, at, stride), load16(scale, at), gx)
            store9(g_x, at, stride, gx)
            squared = anticommutator(g, scaled9(gx, q, q, q), transposed(zero, u))
            store9(g_update, at, stride, sum9(gx, squared))


for _function in (
    embed, embed_vjp, first_tensors, first_tensors_vjp, exchange, exchange_vjp, next_tensors, next_tensors_vjp,
):  # fmt: skip
    keep_compiled(_function, SOURCES)
