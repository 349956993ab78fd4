"""Vector-Jacobian products of the kernels in `visnet_edges`, for a tile of directed edges.

Gradients have the shapes of what they belong to and the prefix `g_`; those of arrays over atoms are added to. Slopes are
those of silu at the linear maps. All these are fields of `work`, a `visnet_arguments.BackwardWork`.
"""

from torchmdnet_ext.compiled.jit import kernel
from torchmdnet_ext.compiled.lane_functions import fold, sigmoid
from torchmdnet_ext.compiled.visnet_edges import rejected_product
from torchmdnet_ext.kernels.lanes import PANEL, broadcast16, increase, load16, splat16, store, total8


@kernel
def activate(count, x, x0, y, y0, slope, s0):
    """Fill y with silu of `count` numbers x, and `slope` with its derivatives; y may be x."""
    one = splat16(x, 1.0)
    for k in range(0, count, PANEL):
        value = load16(x, x0 + k)
        s = sigmoid(value)
        value = value * s
        store(y, y0 + k, value)
        store(slope, s0 + k, s + value * (one - s))


@kernel
def activate_only(count, x, x0, y, y0):
    """Fill y with silu of `count` numbers x."""
    for k in range(0, count, PANEL):
        value = load16(x, x0 + k)
        store(y, y0 + k, value * sigmoid(value))


@kernel
def collect_vjp(e0, count, graph, layer, sizes, vec, work):
    """Fill g_message (T, C), without what goes through the factors, and g_factors, the gradient before the activation."""
    source, target, edge = graph.source, graph.target, graph.edge
    components, channels = sizes.components, sizes.channels
    width, stride, gated, vec0 = layer.message_width, 2 + components, layer.gated, layer.vectors0
    s, s_slope, g_s, message, g_message = work.factors, work.factor_slopes, work.g_factors, work.message, work.g_message
    g_total_x, g_total_v, g_vec, g_edge = work.g_total, work.g_vec, work.g_vec_normed, work.g_edge
    for k in range(count):
        e = e0 + k
        i, j = target[e] * components * channels, source[e] * components * channels
        envelope = broadcast16(edge, e * stride + 1)
        g_envelope = splat16(s, 0.0)
        for c in range(0, channels, PANEL):
            at = k * width + c
            gx = load16(g_total_x, target[e] * channels + c)
            g_envelope = g_envelope + gx * load16(message, k * channels + c)
            store(g_message, k * channels + c, gx * envelope)
            along, inner = splat16(s, 0.0), splat16(s, 0.0)
            factor = load16(s, at + channels) * envelope if gated else along
            for component in range(components):
                v = component * channels + c
                gv = load16(g_total_v, i + v)
                along = along + gv * broadcast16(edge, e * stride + 2 + component)
                if gated:
                    inner = inner + gv * load16(vec, vec0 + j + v)
                    increase(g_vec, j + v, gv * factor)
            g_envelope = g_envelope + load16(s, at) * along
            store(g_s, at, along * envelope * load16(s_slope, at))
            if gated:
                g_envelope = g_envelope + load16(s, at + channels) * inner
                store(g_s, at + channels, inner * envelope * load16(s_slope, at + channels))
        g_edge[e, 1] += total8(g_envelope)
        for component in range(components):
            g_direction = splat16(s, 0.0)
            for c in range(0, channels, PANEL):
                g_direction = g_direction + load16(s, k * width + c) * load16(g_total_v, i + component * channels + c)
            g_edge[e, 2 + component] += total8(g_direction * envelope)


@kernel
def attend_vjp(e0, count, graph, layer, sizes, qkv, work):
    """Fill g_filters, the gradients of keys and values before the activation; where a layer is shared add to it."""
    source, target, row, edge = graph.source, graph.target, graph.row, graph.edge
    groups, components, channels, panels = sizes.groups, sizes.components, sizes.channels, sizes.depth // 2
    qkv0, width, shared = 3 * layer.scalars0, layer.edge_width, layer.shared
    d, slope, g_d, product = work.filters, work.filter_slopes, work.g_filters, work.product
    g_message, g_qkv, g_edge = work.g_message, work.g_qkv, work.g_edge
    one = splat16(d, 1.0)
    for k in range(count):
        i, j = target[e0 + k] * 3 * channels, source[e0 + k] * 3 * channels
        line = (row[e0 + k] if shared else k) * width
        cut = broadcast16(edge, (e0 + k) * (2 + components))
        g_cut = splat16(d, 0.0)
        c = 0
        for g in range(groups):
            a = load16(product, (k * groups + g) * PANEL)
            s = sigmoid(a)
            y = a * s
            weight, g_weight = y * cut, splat16(d, 0.0)
            for b in range(c, c + panels * PANEL, PANEL):
                value, of_edge = load16(qkv, qkv0 + j + 2 * channels + b), load16(d, line + channels + b)
                gm = load16(g_message, k * channels + b)
                g_weight = g_weight + gm * value * of_edge
                gm = gm * weight
                increase(g_qkv, j + 2 * channels + b, gm * of_edge)
                g_value = gm * value * load16(slope, line + channels + b)
                if shared:
                    increase(g_d, line + channels + b, g_value)
                else:
                    store(g_d, line + channels + b, g_value)
            g_weight = fold(g_weight)
            g_cut = g_cut + g_weight * y
            g_product = g_weight * cut * (s + y * (one - s))
            for b in range(c, c + panels * PANEL, PANEL):
                q, key, of_edge = load16(qkv, qkv0 + i + b), load16(qkv, qkv0 + j + channels + b), load16(d, line + b)
                g_both = g_product * of_edge
                increase(g_qkv, i + b, g_both * key)
                increase(g_qkv, j + channels + b, g_both * q)
                g_key = g_product * q * key * load16(slope, line + b)
                if shared:
                    increase(g_d, line + b, g_key)
                else:
                    store(g_d, line + b, g_key)
            c += panels * PANEL
        g_edge[e0 + k, 0] += 0.5 * total8(g_cut)  # every head is in two lanes


@kernel
def _product_vjp(g, a, b, f, e, layer, sizes, edge, projected, work):
    """Back through one factor, at f in `filters`, times one product of the update of an edge's features.

    a, b: places of the two vectors of the product among those of the layer.
    """
    components, step, p0 = sizes.components, layer.vector_width, layer.projected0
    d, slope, g_d, g_projected = work.filters, work.filter_slopes, work.g_filters, work.g_projected
    line = e * (2 + components) + 2
    product, da, db = rejected_product(projected, p0 + a, p0 + b, step, edge, line, components)
    g_factor = g * product * load16(slope, f)
    if layer.shared:
        increase(g_d, f, g_factor)
    else:
        store(g_d, f, g_factor)
    g = g * load16(d, f)
    for component in range(components):
        at = component * step
        wa, wb = load16(projected, p0 + a + at), load16(projected, p0 + b + at)
        direction = broadcast16(edge, line + component)
        increase(g_projected, a + at, g * (wb - db * direction))
        increase(g_projected, b + at, g * (wa - da * direction))
        work.g_edge[e, 2 + component] -= total8(g * (db * wa + da * wb))


@kernel
def update_edges_vjp(e0, count, graph, layer, sizes, projected, work):
    """The update's part of g_filters, from g_edge_features; a shared layer adds those to g_row_features as well."""
    edge, channels, step = graph.edge, sizes.channels, layer.vector_width
    for k in range(count):
        e = e0 + k
        row = graph.row[e]
        i, j = graph.target[e] * sizes.components * step, graph.source[e] * sizes.components * step
        f = (row if layer.shared else k) * layer.edge_width + 2 * channels
        for c in range(0, channels, PANEL):
            g = load16(work.g_edge_features, e * channels + c)
            if layer.shared:
                increase(work.g_row_features, row * channels + c, g)
            a, b = i + 3 * channels + c, j + 4 * channels + c
            _product_vjp(g, a, b, f + c, e, layer, sizes, edge, projected, work)
            if sizes.vertex:
                a, b = i + 5 * channels + c, i + 6 * channels + c
                _product_vjp(g, a, b, f + channels + c, e, layer, sizes, edge, projected, work)
