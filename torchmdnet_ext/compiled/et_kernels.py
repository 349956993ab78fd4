"""The equivariant transformer and its vector-Jacobian product, put together from the kernels of atoms and of pairs.

Layer 0 is simple: vec is 0 and queries, keys and values depend on the element only. Sizes as in `pair_kernels`; index 0 of
`normed` and `inverse` belongs to the norm of the output, index 0 of the weights to layer 1.
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
from torchmdnet_ext.compiled.pair_kernels import (
    attend,
    filters,
    messages,
    messages_vjp,
    near_pairs,
    neighbours,
    scatter_gradient,
    self_messages,
    self_messages_vjp,
)
from torchmdnet_ext.kernels.lanes import WIDTH


@njit(error_model="numpy")
def forward(
    keep, pos, first, second, all_starts, pair_i, pair_j, start_x, start_qkv, out_x, out_v,
    cutoff, share, steepness, alpha, table, groups, depth, present, features, epsilon,
    start_w, qkv_w, qkv_b, vec_w, o_w, o_b, self_filters, zeros, out_gain, out_bias, order,
    row_i, row_j, node, geometry, starts, near_i, near_j, values, slopes,
    qkv, normed, inverse, vec, projected, mixed, attention, self_attention,
    x, total_x, total_v,
):  # fmt: skip
    """Fill out_x (M, H) and out_v (M, 3, H); returns the number of rows within the cutoff, -1 if `pos` is not finite.

    first, second, all_starts, pair_i, pair_j: as in `near_pairs`. Filters are made for a batch of rows at a time, as many as
    `values` has room for, so that they stay in the fastest cache; keeping them for `backward` took longer.

    keep: 1 leaves what `backward` needs of every layer in the arrays from `qkv` to `self_attention`; 0 lets layers overwrite
    one another, in arrays for one layer (qkv, normed and vec: for two) that may be made for more atoms and pairs.
    """
    atoms, channels, layers = start_x.shape[0], start_x.shape[1], table.shape[0]
    size = atoms * channels
    rows = neighbours(pos, first, second, cutoff, share, steepness, alpha, table.shape[1], row_i, row_j, node, geometry)
    if rows < 0:
        out_x[:] = np.nan
        out_v[:] = np.nan
        return rows
    near_pairs(rows, row_i, row_j, first, second, all_starts, pair_i, pair_j, starts, near_i, near_j)
    batch = values.shape[0]
    set_zero(total_x, 0, size)
    set_zero(total_v, 0, 3 * size)
    copy_lanes(start_qkv, 0, qkv, 0, 5 * size)
    for r0 in range(0, rows, batch):
        r1 = min(r0 + batch, rows)
        filters(r0, r1, node, geometry, table, 0, groups * depth, False, values, slopes, False)
        attend(r0, r1, starts, near_i, near_j, values, qkv, 0, attention, 0, groups, depth)
        messages(
            r0, r1, starts, near_i, near_j, geometry, values, qkv, 0, vec, 0, attention, 0, groups, depth, False,
            total_x, total_v,
        )  # fmt: skip
    copy_lanes(total_v, 0, vec, 3 * size, 3 * size)
    copy_lanes(start_x, 0, x, 0, size)
    matmul(total_x, 0, atoms, channels, start_w, 0, channels, zeros, 0, x, 0, True)
    if not keep:
        copy_lanes(vec, 3 * size, vec, 0, 3 * size)
    for layer in range(1, layers):
        last, place = layer - 1, layer * keep
        part = layer if keep else 1  # of qkv and normed, whose first part is not of a layer
        qkv0, vec0, mixed0, projected0 = part * 5 * size, place * 3 * size, place * 3 * size, place * 9 * size
        square = channels * channels
        a0 = place * attention.shape[1] * groups * 4 * WIDTH
        layer_norm(x, 0, atoms, channels, present, features, epsilon, normed, part * size, inverse, layer)
        matmul(
            normed, part * size, atoms, channels, qkv_w, last * 5 * square, 5 * channels,
            qkv_b, last * 5 * channels, qkv, qkv0, False,
        )  # fmt: skip
        matmul(
            vec, vec0, 3 * atoms, channels, vec_w, last * 3 * square, 3 * channels, zeros, 0, projected, projected0, False
        )
        self_messages(
            atoms, self_filters[layer:], 0, qkv, qkv0, vec, vec0, self_attention[place:], groups, depth, total_x, total_v
        )
        for r0 in range(0, rows, batch):
            r1 = min(r0 + batch, rows)
            filters(r0, r1, node, geometry, table, layer, groups * depth, True, values, slopes, False)
            attend(r0, r1, starts, near_i, near_j, values, qkv, qkv0, attention, a0, groups, depth)
            messages(
                r0, r1, starts, near_i, near_j, geometry, values, qkv, qkv0, vec, vec0, attention, a0, groups, depth, True,
                total_x, total_v,
            )  # fmt: skip
        matmul(
            total_x, 0, atoms, channels, o_w, last * 3 * square, 3 * channels, o_b, last * 3 * channels, mixed, mixed0, False
        )
        update(atoms, 3, channels, mixed, mixed0, projected, projected0, 3 * channels, vec, vec0, total_v, x)
        if not keep:
            copy_lanes(vec, 3 * size, vec, 0, 3 * size)
    last = layers * keep
    layer_norm(x, 0, atoms, channels, present, features, epsilon, normed, 0, inverse, 0)
    for m in range(atoms):
        for c in range(order.shape[0]):
            out_x[m, c] = normed[0, m, order[c]] * out_gain[c] + out_bias[c]
            for d in range(3):
                out_v[m, d, c] = vec[last, m, d, order[c]]
    return rows


@njit(error_model="numpy")
def backward(
    rows, g_out_x, g_out_v, table, groups, depth, present, features,
    start_w_t, qkv_w_t, vec_w_t, o_w_t, self_filters, zeros, out_gain, order,
    row_i, row_j, node, geometry, starts, near_i, near_j, values, slopes,
    qkv, normed, inverse, vec, projected, mixed, attention, self_attention,
    g_x, g_v, g_vec, g_total, g_normed, g_qkv, g_mixed, g_projected, g_row, g_pos,
):  # fmt: skip
    """Fill g_pos (n, 3), float64, from the gradients with respect to the outputs of the last `forward`."""
    g_pos[:] = 0.0
    if rows < 0:
        g_pos[:] = np.nan
        return
    atoms, channels, layers = g_x.shape[0], g_x.shape[1], table.shape[0]
    size, square = atoms * channels, channels * channels
    g_row[:rows] = 0.0
    batch = values.shape[0]
    set_zero(g_x, 0, size)
    for m in range(atoms):
        for c in range(order.shape[0]):
            g_normed[m, order[c]] = g_out_x[m, c] * out_gain[c]
            for d in range(3):
                g_v[m, d, order[c]] = g_out_v[m, d, c]
    layer_norm_vjp(g_normed, atoms, channels, present, features, normed, 0, inverse, 0, g_x)
    for layer in range(layers - 1, 0, -1):
        last = layer - 1
        qkv0, vec0, mixed0, projected0 = layer * 5 * size, layer * 3 * size, layer * 3 * size, layer * 9 * size
        update_vjp(atoms, 3, channels, mixed, mixed0, projected, projected0, 3 * channels, g_x, g_v, g_mixed, g_projected)
        matmul(g_mixed, 0, atoms, 3 * channels, o_w_t, last * 3 * square, channels, zeros, 0, g_total, 0, False)
        copy_lanes(g_v, 0, g_vec, 0, 3 * size)
        matmul(g_projected, 0, 3 * atoms, 3 * channels, vec_w_t, last * 3 * square, channels, zeros, 0, g_vec, 0, True)
        self_messages_vjp(
            atoms, self_filters, layer, qkv, qkv0, vec, vec0, self_attention, groups, depth, g_total, g_v, g_qkv, g_vec
        )
        a0 = layer * attention.shape[1] * groups * 4 * WIDTH
        for r0 in range(0, rows, batch):
            r1 = min(r0 + batch, rows)
            filters(r0, r1, node, geometry, table, layer, groups * depth, True, values, slopes, True)
            messages_vjp(
                r0, r1, starts, near_i, near_j, geometry, values, slopes, qkv, qkv0, vec, vec0, attention, a0, groups, depth,
                True, g_total, g_v, g_qkv, g_vec, g_row,
            )  # fmt: skip
        matmul(g_qkv, 0, atoms, 5 * channels, qkv_w_t, last * 5 * square, channels, zeros, 0, g_normed, 0, False)
        layer_norm_vjp(g_normed, atoms, channels, present, features, normed, layer * size, inverse, layer, g_x)
        g_v, g_vec = g_vec, g_v
    matmul(g_x, 0, atoms, channels, start_w_t, 0, channels, zeros, 0, g_total, 0, False)
    for r0 in range(0, rows, batch):
        r1 = min(r0 + batch, rows)
        filters(r0, r1, node, geometry, table, 0, groups * depth, False, values, slopes, True)
        messages_vjp(
            r0, r1, starts, near_i, near_j, geometry, values, slopes, qkv, 0, vec, 0, attention, 0, groups, depth, False,
            g_total, g_v, g_qkv, g_vec, g_row,
        )  # fmt: skip
    scatter_gradient(rows, row_i, row_j, geometry, g_row, g_pos)


keep_compiled(forward)
keep_compiled(backward)
