"""The equivariant transformer and its vector-Jacobian product, put together from the kernels of atoms and of pairs.

Layer 0 is simple: vec is 0 and queries, keys and values depend on the element only. Sizes and arrays as in `et_arguments`;
index 0 of `normed` and `inverse` belongs to the norm of the output, index 0 of the weights to layer 1.
"""

import numpy as np

from torchmdnet_ext.compiled.cache import keep_compiled
from torchmdnet_ext.compiled.jit import kernel
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


@kernel
def _exchange(layer, place, gated, rows, shared, kept, qkv0, vec0, total_x, total_v):
    """Add the messages of all pairs in a layer to the totals.

    Filters are made for a batch of rows at a time, as many as `kept.values` has room for, so that they stay in the fastest
    cache; keeping them for `backward` took longer.
    """
    groups, depth, batch = shared.groups, shared.depth, kept.values.shape[0]
    a0 = place * kept.attention.shape[1] * groups * 4 * WIDTH
    for r0 in range(0, rows, batch):
        r1 = min(r0 + batch, rows)
        filters(
            r0,
            r1,
            kept.pairs.rows,
            shared.radial.coefficients,
            layer,
            groups * depth,
            gated,
            kept.values,
            kept.slopes,
            False,
        )
        attend(r0, r1, kept.pairs, kept.values, kept.qkv, qkv0, kept.attention, a0, groups, depth)
        messages(
            r0, r1, kept.pairs, kept.values, kept.qkv, qkv0, kept.vec, vec0, kept.attention, a0, groups, depth, gated,
            total_x, total_v,
        )  # fmt: skip


@kernel
def _exchange_vjp(layer, gated, rows, shared, kept, qkv0, vec0, g_total, g_v, g_qkv, g_vec, g_rows):
    """Back through the messages of all pairs in a layer, as `pair_kernels.messages_vjp`."""
    groups, depth, batch = shared.groups, shared.depth, kept.values.shape[0]
    a0 = layer * kept.attention.shape[1] * groups * 4 * WIDTH
    for r0 in range(0, rows, batch):
        r1 = min(r0 + batch, rows)
        filters(
            r0, r1, kept.pairs.rows, shared.radial.coefficients, layer, groups * depth, gated, kept.values, kept.slopes, True
        )
        messages_vjp(
            r0, r1, kept.pairs, kept.values, kept.slopes, kept.qkv, qkv0, kept.vec, vec0, kept.attention, a0, groups, depth,
            gated, g_total, g_v, g_qkv, g_vec, g_rows,
        )  # fmt: skip


@kernel
def forward(keep, pos, candidates, start_x, start_qkv, out_x, out_v, shared, weights, kept, work):
    """Fill out_x (M, H) and out_v (M, 3, H); returns the number of rows within the cutoff, -1 if `pos` is not finite.

    keep: 1 leaves what `backward` needs of every layer in `kept`; 0 lets layers overwrite one another there, in arrays for
    one layer (qkv, normed and vec: for two) that may be made for more atoms and pairs. start_x (M, C) and start_qkv (M, 5C)
    are what the elements of the atoms give in layer 0.
    """
    atoms, channels = start_x.shape
    layers, size, square = shared.self_filters.shape[0], atoms * channels, channels * channels
    present, features, zeros, epsilon = shared.present, shared.features, shared.zeros, weights.epsilon
    vec, x, total_x, total_v = kept.vec, work.x, work.total_x, work.total_v
    rows = neighbours(pos, candidates.first, candidates.second, shared.radial, kept.pairs.rows)
    if rows < 0:
        out_x[:] = np.nan
        out_v[:] = np.nan
        return rows
    near_pairs(rows, candidates, kept.pairs)
    set_zero(total_x, 0, size)
    set_zero(total_v, 0, 3 * size)
    copy_lanes(start_qkv, 0, kept.qkv, 0, 5 * size)
    _exchange(0, 0, False, rows, shared, kept, 0, 0, total_x, total_v)
    copy_lanes(total_v, 0, vec, 3 * size, 3 * size)
    copy_lanes(start_x, 0, x, 0, size)
    matmul(total_x, 0, atoms, channels, weights.start, 0, channels, zeros, 0, x, 0, True)
    if not keep:
        copy_lanes(vec, 3 * size, vec, 0, 3 * size)
    for layer in range(1, layers):
        last, place = layer - 1, layer * keep
        part = layer if keep else 1  # of qkv and normed, whose first part is not of a layer
        qkv0, vec0, mixed0, projected0 = part * 5 * size, place * 3 * size, place * 3 * size, place * 9 * size
        layer_norm(x, 0, atoms, channels, present, features, epsilon, kept.normed, part * size, kept.inverse, layer)
        matmul(
            kept.normed, part * size, atoms, channels, weights.qkv, last * 5 * square, 5 * channels,
            weights.qkv_bias, last * 5 * channels, kept.qkv, qkv0, False,
        )  # fmt: skip
        matmul(
            vec, vec0, 3 * atoms, channels, weights.vec, last * 3 * square, 3 * channels, zeros, 0,
            kept.projected, projected0, False,
        )  # fmt: skip
        self_messages(
            atoms, shared.self_filters[layer:], 0, kept.qkv, qkv0, vec, vec0, kept.self_attention[place:],
            shared.groups, shared.depth, total_x, total_v,
        )  # fmt: skip
        _exchange(layer, place, True, rows, shared, kept, qkv0, vec0, total_x, total_v)
        matmul(
            total_x, 0, atoms, channels, weights.o, last * 3 * square, 3 * channels, weights.o_bias, last * 3 * channels,
            kept.mixed, mixed0, False,
        )  # fmt: skip
        update(atoms, 3, channels, kept.mixed, mixed0, kept.projected, projected0, 3 * channels, vec, vec0, total_v, x)
        if not keep:
            copy_lanes(vec, 3 * size, vec, 0, 3 * size)
    layer_norm(x, 0, atoms, channels, present, features, epsilon, kept.normed, 0, kept.inverse, 0)
    for m in range(atoms):
        for c in range(shared.order.shape[0]):
            out_x[m, c] = kept.normed[0, m, shared.order[c]] * shared.gain[c] + weights.bias[c]
            for d in range(3):
                out_v[m, d, c] = vec[layers * keep, m, d, shared.order[c]]
    return rows


@kernel
def backward(rows, g_out_x, g_out_v, shared, weights, kept, work, g_pos):
    """Fill g_pos (n, 3), float64, from the gradients with respect to the outputs of the last `forward`."""
    g_pos[:] = 0.0
    if rows < 0:
        g_pos[:] = np.nan
        return
    atoms, channels = work.x.shape
    layers, size, square = shared.self_filters.shape[0], atoms * channels, channels * channels
    present, features, zeros, groups, depth = shared.present, shared.features, shared.zeros, shared.groups, shared.depth
    g_x, g_v, g_vec, g_total, g_normed, g_qkv = work.x, work.v, work.vec, work.total, work.normed, work.qkv
    work.rows[:rows] = 0.0
    set_zero(g_x, 0, size)
    for m in range(atoms):
        for c in range(shared.order.shape[0]):
            g_normed[m, shared.order[c]] = g_out_x[m, c] * shared.gain[c]
            for d in range(3):
                g_v[m, d, shared.order[c]] = g_out_v[m, d, c]
    layer_norm_vjp(g_normed, atoms, channels, present, features, kept.normed, 0, kept.inverse, 0, g_x)
    for layer in range(layers - 1, 0, -1):
        last = layer - 1
        qkv0, vec0, mixed0, projected0 = layer * 5 * size, layer * 3 * size, layer * 3 * size, layer * 9 * size
        update_vjp(
            atoms, 3, channels, kept.mixed, mixed0, kept.projected, projected0, 3 * channels, g_x, g_v,
            work.mixed, work.projected,
        )  # fmt: skip
        matmul(work.mixed, 0, atoms, 3 * channels, weights.o, last * 3 * square, channels, zeros, 0, g_total, 0, False)
        copy_lanes(g_v, 0, g_vec, 0, 3 * size)
        matmul(
            work.projected, 0, 3 * atoms, 3 * channels, weights.vec, last * 3 * square, channels, zeros, 0, g_vec, 0, True
        )
        self_messages_vjp(
            atoms, shared.self_filters, layer, kept.qkv, qkv0, kept.vec, vec0, kept.self_attention, groups, depth,
            g_total, g_v, g_qkv, g_vec,
        )  # fmt: skip
        _exchange_vjp(layer, True, rows, shared, kept, qkv0, vec0, g_total, g_v, g_qkv, g_vec, work.rows)
        matmul(g_qkv, 0, atoms, 5 * channels, weights.qkv, last * 5 * square, channels, zeros, 0, g_normed, 0, False)
        layer_norm_vjp(g_normed, atoms, channels, present, features, kept.normed, layer * size, kept.inverse, layer, g_x)
        g_v, g_vec = g_vec, g_v
    matmul(g_x, 0, atoms, channels, weights.start, 0, channels, zeros, 0, g_total, 0, False)
    _exchange_vjp(0, False, rows, shared, kept, 0, 0, g_total, g_v, g_qkv, g_vec, work.rows)
    scatter_gradient(rows, kept.pairs.rows, work.rows, g_pos)


keep_compiled(forward)
keep_compiled(backward)
