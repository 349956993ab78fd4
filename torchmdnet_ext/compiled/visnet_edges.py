"""Numba kernels of what ViSNet does with a tile of directed edges, between the matrix products.

Channels are ordered as in `pair_kernels`: blocks of `WIDTH` heads, an even number `depth` of blocks for each group of heads,
so a panel of 16 lanes holds two channels of each of 8 heads. A tile is the edges e0 ... e0 + count - 1; arrays of a tile
have one line for each edge. `filters` holds silu of the linear maps of the edge features side by side (keys, values,
update), with one line for each edge of the tile, or in a layer that shares edge features one for each row. Sizes and arrays
as in `visnet_arguments`.
"""

from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.compiled.lane_functions import fold, sigmoid
from torchmdnet_ext.kernels.lanes import PANEL, broadcast16, load16, splat16, store


@kernel
def attend(e0, count, graph, layer, sizes, qkv, filters, product, message):
    """Fill product (T, G, 16), the products of queries and keys summed over each head, and message (T, C)."""
    source, target, row, edge = graph.source, graph.target, graph.row, graph.edge
    groups, components, channels, panels = sizes.groups, sizes.components, sizes.channels, sizes.depth // 2
    qkv0, width, shared = 3 * layer.scalars0, layer.edge_width, layer.shared
    for k in range(count):
        q, key = qkv0 + target[e0 + k] * 3 * channels, qkv0 + source[e0 + k] * 3 * channels + channels
        at = (row[e0 + k] if shared else k) * width
        for g in range(groups):
            total = splat16(filters, 0.0)
            for _ in range(panels):
                total = total + load16(qkv, q) * load16(qkv, key) * load16(filters, at)
                q, key, at = q + PANEL, key + PANEL, at + PANEL
            store(product, (k * groups + g) * PANEL, fold(total))
    # a loop of its own: the long chain of the sigmoid overlaps between edges
    for k in range(count):
        cut = broadcast16(edge, (e0 + k) * (2 + components))
        value = qkv0 + source[e0 + k] * 3 * channels + 2 * channels
        at = (row[e0 + k] if shared else k) * width + channels
        out = k * channels
        for g in range(groups):
            a = load16(product, (k * groups + g) * PANEL)
            a = a * sigmoid(a) * cut
            for _ in range(panels):
                store(message, out, load16(qkv, value) * load16(filters, at) * a)
                value, at, out = value + PANEL, at + PANEL, out + PANEL


@kernel
def collect(e0, count, graph, layer, sizes, message, factors, vec, total_x, total_v):
    """Add a tile's messages to total_x (M, C) and total_v (M, S, C).

    factors (T, 2C) holds what multiplies directions and vectors; where a layer is not gated vec is 0 and `factors` (T, C)
    has the first only.
    """
    source, target, edge = graph.source, graph.target, graph.edge
    components, channels = sizes.components, sizes.channels
    width, stride, gated, vec0 = layer.message_width, 2 + components, layer.gated, layer.vectors0
    k = 0
    while k < count:
        i, end = target[e0 + k], k + 1
        while end < count and target[e0 + end] == i:
            end += 1
        for c in range(0, channels, PANEL):
            total = load16(total_x, i * channels + c)
            for n in range(k, end):
                total = total + load16(message, n * channels + c) * broadcast16(edge, (e0 + n) * stride + 1)
            store(total_x, i * channels + c, total)
        for component in range(components):
            for c in range(0, channels, PANEL):
                out = (i * components + component) * channels + c
                total = load16(total_v, out)
                for n in range(k, end):
                    line = (e0 + n) * stride
                    part = load16(factors, n * width + c) * broadcast16(edge, line + 2 + component)
                    if gated:
                        v = vec0 + (source[e0 + n] * components + component) * channels + c
                        part = part + load16(factors, n * width + channels + c) * load16(vec, v)
                    total = total + part * broadcast16(edge, line + 1)
                store(total_v, out, total)
        k = end


@kernel
def rejected_product(projected, a, b, step, edge, line, components):
    """The products w . w' and w . d and w' . d of the vectors w and w' at a and b, `step` apart, and of the direction d."""
    dot, da, db = splat16(projected, 0.0), splat16(projected, 0.0), splat16(projected, 0.0)
    for component in range(components):
        wa, wb = load16(projected, a + component * step), load16(projected, b + component * step)
        direction = broadcast16(edge, line + component)
        dot, da, db = dot + wa * wb, da + wa * direction, db + wb * direction
    # (w - (w.d) d) . (w' - (w'.d) d) = w.w' - (2 - d.d) (w.d) (w'.d), and d.d is 1 for vectors and 2 with degree 2
    along = splat16(projected, 1.0 if components == 3 else 0.0)
    return dot - along * da * db, along * da, along * db


@kernel
def update_edges(e0, count, graph, layer, sizes, projected, filters, old, new):
    """Edge features of the next layer: new (E, C) = old + silu(f) * (w_i . w_j without their parts along the direction).

    projected (M, S, BC) holds w_i of targets from 3C on and w_j of sources behind it. With `vertex` there is a second
    factor and product, of two vectors of the target, behind those. `old` has lines as `filters` has them.
    """
    source, target, row, edge = graph.source, graph.target, graph.row, graph.edge
    components, channels, vertex = sizes.components, sizes.channels, sizes.vertex
    shared, width, step, p0 = layer.shared, layer.edge_width, layer.vector_width, layer.projected0
    old0, new0 = layer.features0, layer.next_features0
    for k in range(count):
        i, j = p0 + target[e0 + k] * components * step, p0 + source[e0 + k] * components * step
        line = (e0 + k) * (2 + components) + 2
        at = row[e0 + k] if shared else e0 + k
        f = (row[e0 + k] if shared else k) * width + 2 * channels
        for c in range(0, channels, PANEL):
            product, _, _ = rejected_product(
                projected, i + 3 * channels + c, j + 4 * channels + c, step, edge, line, components
            )  # fmt: skip
            change = load16(filters, f + c) * product
            if vertex:
                product, _, _ = rejected_product(
                    projected, i + 5 * channels + c, i + 6 * channels + c, step, edge, line, components
                )  # fmt: skip
                change = change + load16(filters, f + channels + c) * product
            store(new, new0 + (e0 + k) * channels + c, load16(old, old0 + at * channels + c) + change)
