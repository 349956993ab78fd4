"""ViSNet, put together from the kernels of atoms, of the graph and of tiles of edges.

Layer 0 is simple: vectors are 0. Edge features are the same in both directions of a pair in the layers 0 and 1 (`shared`):
their projections are computed once for each row. The last layer has no edge update.
"""

import numpy as np
from numba import njit

from torchmdnet_ext.compiled.cache import keep_compiled
from torchmdnet_ext.compiled.node_kernels import (
    copy_lanes,
    layer_norm,
    layer_norm_vjp,
    matmul,
    set_zero,
    update,
    update_vjp,
)
from torchmdnet_ext.compiled.pair_kernels import neighbours, scatter_gradient
from torchmdnet_ext.compiled.visnet_edges import attend, collect, update_edges
from torchmdnet_ext.compiled.visnet_edges_vjp import activate, activate_only, attend_vjp, collect_vjp, update_edges_vjp
from torchmdnet_ext.compiled.visnet_graph import (
    cutoffs,
    direct,
    edges_vjp,
    embed_edges,
    embed_edges_vjp,
    gather_neighbours,
    gather_neighbours_vjp,
)
from torchmdnet_ext.compiled.visnet_nodes import norm_vectors, norm_vectors_vjp

TILE = 48  # edges whose projections are in the first- and second-level cache at once; whole blocks of `matmul`


@njit(error_model="numpy")
def forward(
    keep, pos, pair_i, pair_j, start_x, neighbour, out_x, out_v,
    cutoff, share, steepness, alpha, envelope_width, table, groups, depth, components, layers,
    present, features, epsilon, max_min, vertex, start_w, loop, qkv_w, qkv_b, edge_w, edge_b, message_w, message_b, vec_w,
    o_w, o_b, vec_weight, zeros, out_gain, out_bias, order,
    near_i, near_j, node, geometry, decay, first, source, target, row, edge,
    x0, f0, f, normed, inverse, qkv, vec, vec_normed, projected, mixed, hold, edge_in, message_in,
    x, total_x, total_v, d, product, message, s, norm,
):  # fmt: skip
    """Fill out_x (M, H) and out_v (M, 3, H); returns the number of pairs within the cutoff, -1 if `pos` is not finite.

    keep: 1 leaves what `backward` needs of every layer in the arrays from `x0` to `mixed`; 0 lets layers overwrite one
    another in f, qkv, projected and mixed. hold: 1 leaves the projections of edge features and messages as well, before
    their activation, in edge_in and message_in; 0 uses those for one tile. All arrays may be made for more atoms and pairs.
    """
    atoms, channels = start_x.shape[0], start_x.shape[1]
    size, square = atoms * channels, channels * channels
    edge_parts, vec_parts = (4, 7) if vertex else (3, 5)  # linear maps of edge features and of vectors, side by side
    n = neighbours(pos, pair_i, pair_j, cutoff, share, steepness, alpha, table.shape[0], near_i, near_j, node, geometry)
    if n < 0:
        out_x[:] = np.nan
        out_v[:] = np.nan
        return n
    rows, edges = n + atoms, 2 * n + atoms
    cutoffs(n, atoms, geometry, cutoff, envelope_width, decay)
    direct(n, atoms, near_i, near_j, geometry, decay, components, first, source, target, row, edge)
    set_zero(total_x, 0, size)
    gather_neighbours(n, near_i, near_j, node, geometry, table, channels, neighbour, total_x)
    copy_lanes(start_x, 0, x, 0, size)
    matmul(total_x, 0, atoms, channels, start_w, 0, channels, zeros, 0, x, 0, True)
    copy_lanes(x, 0, x0, 0, size)
    embed_edges(n, atoms, near_i, near_j, node, geometry, table, loop, channels, x, f0)
    set_zero(vec, 0, components * size)
    set_zero(projected, 0, components * vec_parts * size)
    for layer in range(layers):
        last, gated, shared, place = layer == layers - 1, layer > 0, layer < 2, layer * keep
        qkv0, vec0, p0 = place * 3 * size, layer * components * size, place * components * vec_parts * size
        width = (2 if last or layer == 0 else edge_parts) * channels
        s_width = (2 if gated else 1) * channels
        vec_width = (3 if last else vec_parts) * channels
        layer_norm(x, 0, atoms, channels, present, features, epsilon, normed, layer * size, inverse, layer)
        matmul(
            normed, layer * size, atoms, channels, qkv_w, layer * 3 * square, 3 * channels,
            qkv_b, layer * 3 * channels, qkv, qkv0, False,
        )  # fmt: skip
        if gated:
            norm_vectors(
                vec, vec0, atoms, components, channels, present, vec_weight, layer * channels, max_min,
                vec_normed, vec0, norm,
            )  # fmt: skip
            matmul(
                vec_normed, vec0, components * atoms, channels, vec_w, layer * vec_parts * square, vec_width, zeros, 0,
                projected, p0, False,
            )  # fmt: skip
        set_zero(total_x, 0, size)
        set_zero(total_v, 0, components * size)
        f_at = 0 if shared else (layer - 2) * keep * f.shape[1] * channels
        if shared:
            for r in range(0, rows, TILE):
                count, at = min(TILE, rows - r), hold * (layer * edges * edge_parts * channels + r * width)
                matmul(
                    f0, r * channels, count, channels, edge_w, layer * edge_parts * square, width,
                    edge_b, layer * edge_parts * channels, edge_in, at, False,
                )  # fmt: skip
                activate_only(count * width, edge_in, at, d, r * width)
        for e in range(0, edges, TILE):
            count = min(TILE, edges - e)
            if not shared:
                at = hold * (layer * edges * edge_parts * channels + e * width)
                matmul(
                    f, f_at + e * channels, count, channels, edge_w, layer * edge_parts * square, width,
                    edge_b, layer * edge_parts * channels, edge_in, at, False,
                )  # fmt: skip
                activate_only(count * width, edge_in, at, d, 0)
            attend(
                e, count, source, target, row, shared, edge, components, qkv, qkv0, d, width, groups, depth, product, message
            )
            at = hold * (layer * edges * 2 * channels + e * s_width)
            matmul(
                message, 0, count, channels, message_w, layer * 2 * square, s_width, message_b, layer * 2 * channels,
                message_in, at, False,
            )  # fmt: skip
            activate_only(count * s_width, message_in, at, s, 0)
            collect(
                e, count, source, target, edge, components, channels, message, s, gated, vec_normed, vec0, total_x, total_v
            )
            if gated and not last:
                update_edges(
                    e, count, source, target, row, shared, edge, components, channels, vertex, projected, p0, vec_width,
                    d, width, f0 if shared else f, f_at, f, (layer - 1) * keep * f.shape[1] * channels,
                )  # fmt: skip
        matmul(
            total_x, 0, atoms, channels, o_w, layer * 3 * square, 3 * channels, o_b, layer * 3 * channels,
            mixed, place * 3 * size, False,
        )  # fmt: skip
        update(atoms, components, channels, mixed, place * 3 * size, projected, p0, vec_width, vec, vec0, total_v, x)
    layer_norm(x, 0, atoms, channels, present, features, epsilon, normed, layers * size, inverse, layers)
    norm_vectors(
        vec, layers * components * size, atoms, components, channels, present, vec_weight, layers * channels, max_min,
        vec_normed, layers * components * size, norm,
    )  # fmt: skip
    # by offsets, as all else: the arrays may be made for more atoms
    last_x, last_v = normed.reshape(-1)[layers * size :], vec_normed.reshape(-1)[layers * components * size :]
    for m in range(atoms):
        for c in range(order.shape[0]):
            out_x[m, c] = last_x[m * channels + order[c]] * out_gain[c] + out_bias[c]
            for component in range(3):
                out_v[m, component, c] = last_v[(m * components + component) * channels + order[c]]
    return n


@njit(error_model="numpy")
def backward(
    n, g_out_x, g_out_v, table, groups, depth, components, layers, present, features, max_min, vertex,
    neighbour, start_w_t, loop, qkv_w_t, edge_w, edge_b, edge_w_t, message_w, message_b, message_w_t, vec_w_t, o_w_t,
    vec_weight, zeros, out_gain, order,
    near_i, near_j, node, geometry, decay, first, source, target, row, edge,
    x0, f0, f, normed, inverse, qkv, vec, vec_normed, projected, mixed, hold, edge_in, message_in,
    d, slope, g_d, product, message, g_message, s, s_slope, g_s, norm,
    g_x, g_vec, g_total, g_node, g_vec_normed, g_qkv, g_mixed, g_projected, g_f0, g_f, g_edge, g_pair, g_pos,
):  # fmt: skip
    """Fill g_pos (M, 3), float64, from the gradients with respect to the outputs of the last `forward`.

    Without `hold` the projections of edge features and messages are computed again.
    """
    g_pos[:] = 0.0
    if n < 0:
        g_pos[:] = np.nan
        return
    atoms, channels = g_x.shape[0], g_x.shape[1]
    size, square = atoms * channels, channels * channels
    edge_parts, vec_parts = (4, 7) if vertex else (3, 5)  # linear maps of edge features and of vectors, side by side
    rows, edges = n + atoms, 2 * n + atoms
    g_pair[:n] = 0.0
    g_edge[:edges] = 0.0
    set_zero(g_f0, 0, rows * channels)
    set_zero(g_f, 0, edges * channels)
    set_zero(g_x, 0, size)
    set_zero(g_vec, 0, components * size)
    set_zero(g_vec_normed, 0, components * size)
    for m in range(atoms):
        for c in range(order.shape[0]):
            g_node[m, order[c]] = g_out_x[m, c] * out_gain[c]
            for component in range(3):
                g_vec_normed[m, component, order[c]] = g_out_v[m, component, c]
    layer_norm_vjp(g_node, atoms, channels, present, features, normed, layers * size, inverse, layers, g_x)
    norm_vectors_vjp(
        g_vec_normed, vec, layers * components * size, atoms, components, channels, present,
        vec_weight, layers * channels, max_min, norm, g_vec,
    )  # fmt: skip
    for layer in range(layers - 1, -1, -1):
        last, gated, shared = layer == layers - 1, layer > 0, layer < 2
        qkv0, vec0, p0 = layer * 3 * size, layer * components * size, layer * components * vec_parts * size
        width = (2 if last or layer == 0 else edge_parts) * channels
        s_width = (2 if gated else 1) * channels
        vec_width = (3 if last else vec_parts) * channels
        set_zero(g_projected, 0, components * atoms * vec_width)
        set_zero(g_vec_normed, 0, components * size)
        set_zero(g_qkv, 0, 3 * size)
        update_vjp(
            atoms, components, channels, mixed, layer * 3 * size, projected, p0, vec_width, g_x, g_vec, g_mixed, g_projected
        )
        matmul(g_mixed, 0, atoms, 3 * channels, o_w_t, layer * 3 * square, channels, zeros, 0, g_total, 0, False)
        f_at = 0 if shared else (layer - 2) * f.shape[1] * channels
        if shared:
            set_zero(g_d, 0, rows * width)
            for r in range(0, rows, TILE):
                count, at = min(TILE, rows - r), hold * (layer * edges * edge_parts * channels + r * width)
                if not hold:
                    matmul(
                        f0, r * channels, count, channels, edge_w, layer * edge_parts * square, width,
                        edge_b, layer * edge_parts * channels, edge_in, 0, False,
                    )  # fmt: skip
                activate(count * width, edge_in, at, d, r * width, slope, r * width)
        for e in range(0, edges, TILE):
            count = min(TILE, edges - e)
            if not shared:
                if not hold:
                    matmul(
                        f, f_at + e * channels, count, channels, edge_w, layer * edge_parts * square, width,
                        edge_b, layer * edge_parts * channels, edge_in, 0, False,
                    )  # fmt: skip
                activate(
                    count * width, edge_in, hold * (layer * edges * edge_parts * channels + e * width), d, 0, slope, 0
                )  # fmt: skip
            attend(
                e, count, source, target, row, shared, edge, components, qkv, qkv0, d, width, groups, depth, product, message
            )
            if not hold:
                matmul(
                    message, 0, count, channels, message_w, layer * 2 * square, s_width,
                    message_b, layer * 2 * channels, message_in, 0, False,
                )  # fmt: skip
            activate(count * s_width, message_in, hold * (layer * edges * 2 * channels + e * s_width), s, 0, s_slope, 0)
            collect_vjp(
                e, count, source, target, edge, components, channels, message, s, s_slope, gated, vec_normed, vec0,
                g_total, g_vec, g_message, g_s, g_vec_normed, g_edge,
            )  # fmt: skip
            matmul(g_s, 0, count, s_width, message_w_t, layer * 2 * square, channels, zeros, 0, g_message, 0, True)
            attend_vjp(
                e, count, source, target, row, shared, edge, components, qkv, qkv0, d, slope, width, groups, depth, product,
                g_message, g_qkv, g_d, g_edge,
            )  # fmt: skip
            if gated and not last:
                update_edges_vjp(
                    e, count, source, target, row, shared, edge, components, channels, vertex, projected, p0, vec_width,
                    d, slope, width, g_f, g_projected, g_d, g_f0, g_edge,
                )  # fmt: skip
            if not shared:
                at = layer * edge_parts * square
                matmul(g_d, 0, count, width, edge_w_t, at, channels, zeros, 0, g_f, e * channels, True)
        if shared:
            matmul(g_d, 0, rows, width, edge_w_t, layer * edge_parts * square, channels, zeros, 0, g_f0, 0, True)
        matmul(g_qkv, 0, atoms, 3 * channels, qkv_w_t, layer * 3 * square, channels, zeros, 0, g_node, 0, False)
        layer_norm_vjp(g_node, atoms, channels, present, features, normed, layer * size, inverse, layer, g_x)
        if gated:
            matmul(
                g_projected, 0, components * atoms, vec_width, vec_w_t, layer * vec_parts * square, channels, zeros, 0,
                g_vec_normed, 0, True,
            )  # fmt: skip
            norm_vectors_vjp(
                g_vec_normed, vec, vec0, atoms, components, channels, present, vec_weight, layer * channels, max_min,
                norm, g_vec,
            )  # fmt: skip
    embed_edges_vjp(n, atoms, near_i, near_j, node, geometry, table, loop, channels, x0, g_f0, g_x, g_pair)
    matmul(g_x, 0, atoms, channels, start_w_t, 0, channels, zeros, 0, g_total, 0, False)
    gather_neighbours_vjp(n, near_i, near_j, node, geometry, table, channels, neighbour, g_total, g_pair)
    edges_vjp(edges, n, row, near_i, geometry, decay, target, components, g_edge, g_pair)
    scatter_gradient(n, near_i, near_j, geometry, g_pair, g_pos)


keep_compiled(forward)
keep_compiled(backward)
