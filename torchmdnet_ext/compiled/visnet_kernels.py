"""ViSNet and its vector-Jacobian product, put together from the kernels of atoms, of the graph and of tiles of edges.

Sizes and arrays as in `visnet_arguments`, which also says what is special about some layers.
"""

import numpy as np

from torchmdnet_ext.compiled.cache import keep_compiled
from torchmdnet_ext.compiled.jit import kernel, step
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
from torchmdnet_ext.compiled.visnet_arguments import TILE, make_layer
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


@step
def _embed(n, atoms, start_x, neighbour, shared, weights, kept, work):
    """The graph, and what atoms and edges start with."""
    sizes, graph, x = shared.sizes, kept.graph, work.x
    size = atoms * sizes.channels
    cutoffs(n, atoms, graph.near.geometry, shared.radial.cutoff, weights.envelope_width, graph.decay)
    direct(n, atoms, graph, sizes.components)
    set_zero(work.total_x, 0, size)
    gather_neighbours(n, graph.near, shared.radial.coefficients, sizes.channels, neighbour, work.total_x)
    copy_lanes(start_x, 0, x, 0, size)
    matmul(work.total_x, 0, atoms, sizes.channels, weights.start, 0, sizes.channels, shared.zeros, 0, x, 0, True)
    copy_lanes(x, 0, kept.start_x, 0, size)
    embed_edges(
        n, atoms, graph.near, shared.radial.coefficients, shared.loop, sizes.channels, x, kept.row_features
    )  # fmt: skip
    set_zero(kept.vec, 0, sizes.components * size)
    set_zero(kept.projected, 0, sizes.components * sizes.vector_maps * size)


@step
def _norm_vectors(layer_number, at, atoms, shared, kept, norm):
    """The normed vectors of a layer, or where `layer_number` is that of none those of the output."""
    sizes = shared.sizes
    norm_vectors(
        kept.vec, at, atoms, sizes.components, sizes.channels, shared.present, shared.norm, layer_number * sizes.channels,
        sizes.max_min, kept.vec_normed, at, norm,
    )  # fmt: skip


@step
def _project_atoms(layer, atoms, shared, weights, kept, work):
    """Queries, keys and values, and the linear maps of vectors."""
    sizes, channels = shared.sizes, shared.sizes.channels
    square, normed0 = channels * channels, layer.number * atoms * channels
    layer_norm(
        work.x, 0, atoms, channels, shared.present, sizes.features, weights.epsilon, kept.normed, normed0,
        kept.inverse, layer.number,
    )  # fmt: skip
    matmul(
        kept.normed, normed0, atoms, channels, weights.qkv, layer.number * 3 * square, 3 * channels,
        weights.qkv_bias, layer.number * 3 * channels, kept.qkv, 3 * layer.scalars0, False,
    )  # fmt: skip
    if layer.gated:
        _norm_vectors(layer.number, layer.vectors0, atoms, shared, kept, work.norm)
        matmul(
            kept.vec_normed, layer.vectors0, sizes.components * atoms, channels,
            weights.vectors, layer.number * sizes.vector_maps * square, layer.vector_width, shared.zeros, 0,
            kept.projected, layer.projected0, False,
        )  # fmt: skip


@step
def _map_features(layer, features, at, count, shared, kept, out0):
    """Linear maps of the features (count, C) of rows or edges."""
    channels, maps = shared.sizes.channels, shared.sizes.edge_maps
    matmul(
        features, at, count, channels, shared.edge, layer.number * maps * channels * channels, layer.edge_width,
        shared.edge_bias, layer.number * maps * channels, kept.edge_maps, out0, False,
    )  # fmt: skip


@step
def _map_messages(layer, message, count, shared, kept, out0):
    """Linear maps of the messages of a tile."""
    channels = shared.sizes.channels
    matmul(
        message, 0, count, channels, shared.message, layer.number * 2 * channels * channels, layer.message_width,
        shared.message_bias, layer.number * 2 * channels, kept.message_maps, out0, False,
    )  # fmt: skip


@step
def _exchange(layer, rows, edges, shared, kept, work):
    """Messages between atoms, added to the totals, and the edge features of the next layer."""
    sizes, graph, channels, width = shared.sizes, kept.graph, shared.sizes.channels, layer.edge_width
    if layer.shared:
        for r in range(0, rows, TILE):
            count, at = min(TILE, rows - r), layer.edge_maps0 + kept.hold * r * width
            _map_features(layer, kept.row_features, r * channels, count, shared, kept, at)
            activate_only(count * width, kept.edge_maps, at, work.filters, r * width)
    old = kept.row_features if layer.shared else kept.edge_features
    for e in range(0, edges, TILE):
        count = min(TILE, edges - e)
        if not layer.shared:
            at = layer.edge_maps0 + kept.hold * e * width
            _map_features(layer, kept.edge_features, layer.features0 + e * channels, count, shared, kept, at)
            activate_only(count * width, kept.edge_maps, at, work.filters, 0)
        attend(e, count, graph, layer, sizes, kept.qkv, work.filters, work.product, work.message)
        at = layer.message_maps0 + kept.hold * e * layer.message_width
        _map_messages(layer, work.message, count, shared, kept, at)
        activate_only(count * layer.message_width, kept.message_maps, at, work.factors, 0)
        collect(e, count, graph, layer, sizes, work.message, work.factors, kept.vec_normed, work.total_x, work.total_v)
        if layer.gated and not layer.last:
            update_edges(e, count, graph, layer, sizes, kept.projected, work.filters, old, kept.edge_features)


@step
def _update_atoms(layer, atoms, shared, weights, kept, work):
    """The scalars of the atoms, and the vectors of the next layer."""
    sizes, channels = shared.sizes, shared.sizes.channels
    matmul(
        work.total_x, 0, atoms, channels, weights.o, layer.number * 3 * channels * channels, 3 * channels,
        weights.o_bias, layer.number * 3 * channels, kept.mixed, 3 * layer.scalars0, False,
    )  # fmt: skip
    update(
        atoms, sizes.components, channels, kept.mixed, 3 * layer.scalars0, kept.projected, layer.projected0,
        layer.vector_width, kept.vec, layer.vectors0, work.total_v, work.x,
    )  # fmt: skip


@kernel
def forward(keep, pos, pair_i, pair_j, start_x, neighbour, out_x, out_v, shared, weights, kept, work):
    """Fill out_x (M, H) and out_v (M, 3, H); returns the number of pairs within the cutoff, -1 if `pos` is not finite.

    keep: 1 leaves what `backward` needs of every layer in `kept`; 0 lets layers overwrite one another in its arrays of K
    layers. All arrays may be made for more atoms and pairs. start_x and neighbour (M, C) are what the elements of the atoms
    give.
    """
    sizes, atoms, order = shared.sizes, start_x.shape[0], shared.order
    channels, components, layers = sizes.channels, sizes.components, sizes.layers
    size = atoms * channels
    n = neighbours(pos, pair_i, pair_j, shared.radial, kept.graph.near)
    if n < 0:
        out_x[:] = np.nan
        out_v[:] = np.nan
        return n
    rows, edges = n + atoms, 2 * n + atoms
    _embed(n, atoms, start_x, neighbour, shared, weights, kept, work)
    for number in range(layers):
        layer = make_layer(sizes, number, atoms, edges, keep, kept.hold, kept.edge_features.shape[1])
        _project_atoms(layer, atoms, shared, weights, kept, work)
        set_zero(work.total_x, 0, size)
        set_zero(work.total_v, 0, components * size)
        _exchange(layer, rows, edges, shared, kept, work)
        _update_atoms(layer, atoms, shared, weights, kept, work)
    layer_norm(
        work.x, 0, atoms, channels, shared.present, sizes.features, weights.epsilon, kept.normed, layers * size,
        kept.inverse, layers,
    )  # fmt: skip
    _norm_vectors(layers, layers * components * size, atoms, shared, kept, work.norm)
    # by offsets, as all else: the arrays may be made for more atoms
    x, v = kept.normed.reshape(-1)[layers * size :], kept.vec_normed.reshape(-1)[layers * components * size :]
    for m in range(atoms):
        for c in range(order.shape[0]):
            out_x[m, c] = x[m * channels + order[c]] * shared.gain[c] + weights.bias[c]
            for component in range(3):
                out_v[m, component, c] = v[(m * components + component) * channels + order[c]]
    return n


@step
def _norm_vectors_vjp(layer_number, at, atoms, shared, kept, work):
    sizes = shared.sizes
    norm_vectors_vjp(
        work.g_vec_normed, kept.vec, at, atoms, sizes.components, sizes.channels, shared.present,
        shared.norm, layer_number * sizes.channels, sizes.max_min, work.norm, work.g_vec,
    )  # fmt: skip


@step
def _outputs_vjp(g_out_x, g_out_v, atoms, shared, kept, work):
    """Back from the outputs to the atoms behind the last layer."""
    sizes, order = shared.sizes, shared.order
    channels, layers = sizes.channels, sizes.layers
    size = atoms * channels
    set_zero(work.g_x, 0, size)
    set_zero(work.g_vec, 0, sizes.components * size)
    set_zero(work.g_vec_normed, 0, sizes.components * size)
    for m in range(atoms):
        for c in range(order.shape[0]):
            work.g_normed[m, order[c]] = g_out_x[m, c] * shared.gain[c]
            for component in range(3):
                work.g_vec_normed[m, component, order[c]] = g_out_v[m, component, c]
    layer_norm_vjp(
        work.g_normed, atoms, channels, shared.present, sizes.features, kept.normed, layers * size, kept.inverse, layers,
        work.g_x,
    )  # fmt: skip
    _norm_vectors_vjp(layers, layers * sizes.components * size, atoms, shared, kept, work)


@step
def _update_atoms_vjp(layer, atoms, shared, weights, kept, work):
    sizes, channels = shared.sizes, shared.sizes.channels
    set_zero(work.g_projected, 0, sizes.components * atoms * layer.vector_width)
    set_zero(work.g_vec_normed, 0, sizes.components * atoms * channels)
    set_zero(work.g_qkv, 0, 3 * atoms * channels)
    update_vjp(
        atoms, sizes.components, channels, kept.mixed, 3 * layer.scalars0, kept.projected, layer.projected0,
        layer.vector_width, work.g_x, work.g_vec, work.g_mixed, work.g_projected,
    )  # fmt: skip
    matmul(
        work.g_mixed, 0, atoms, 3 * channels, weights.o, layer.number * 3 * channels * channels, channels, shared.zeros, 0,
        work.g_total, 0, False,
    )  # fmt: skip


@step
def _exchange_vjp(layer, rows, edges, shared, weights, kept, work):
    """Back through the messages and the update of the edge features."""
    sizes, graph, channels, width, hold = shared.sizes, kept.graph, shared.sizes.channels, layer.edge_width, kept.hold
    square = channels * channels
    edge_w0 = layer.number * sizes.edge_maps * square
    if layer.shared:
        set_zero(work.g_filters, 0, rows * width)
        for r in range(0, rows, TILE):
            count, at = min(TILE, rows - r), layer.edge_maps0 + hold * r * width
            if not hold:
                _map_features(layer, kept.row_features, r * channels, count, shared, kept, 0)
            activate(count * width, kept.edge_maps, at, work.filters, r * width, work.filter_slopes, r * width)
    for e in range(0, edges, TILE):
        count = min(TILE, edges - e)
        if not layer.shared:
            if not hold:
                _map_features(layer, kept.edge_features, layer.features0 + e * channels, count, shared, kept, 0)
            at = layer.edge_maps0 + hold * e * width
            activate(count * width, kept.edge_maps, at, work.filters, 0, work.filter_slopes, 0)
        attend(e, count, graph, layer, sizes, kept.qkv, work.filters, work.product, work.message)
        if not hold:
            _map_messages(layer, work.message, count, shared, kept, 0)
        at = layer.message_maps0 + hold * e * layer.message_width
        activate(count * layer.message_width, kept.message_maps, at, work.factors, 0, work.factor_slopes, 0)
        collect_vjp(e, count, graph, layer, sizes, kept.vec_normed, work)
        matmul(
            work.g_factors, 0, count, layer.message_width, weights.message, layer.number * 2 * square, channels,
            shared.zeros, 0, work.g_message, 0, True,
        )  # fmt: skip
        attend_vjp(e, count, graph, layer, sizes, kept.qkv, work)
        if layer.gated and not layer.last:
            update_edges_vjp(e, count, graph, layer, sizes, kept.projected, work)
        if not layer.shared:
            matmul(
                work.g_filters, 0, count, width, weights.edge, edge_w0, channels, shared.zeros, 0,
                work.g_edge_features, e * channels, True,
            )  # fmt: skip
    if layer.shared:
        matmul(
            work.g_filters, 0, rows, width, weights.edge, edge_w0, channels, shared.zeros, 0, work.g_row_features, 0, True
        )


@step
def _project_atoms_vjp(layer, atoms, shared, weights, kept, work):
    sizes, channels = shared.sizes, shared.sizes.channels
    square = channels * channels
    matmul(
        work.g_qkv, 0, atoms, 3 * channels, weights.qkv, layer.number * 3 * square, channels, shared.zeros, 0,
        work.g_normed, 0, False,
    )  # fmt: skip
    layer_norm_vjp(
        work.g_normed, atoms, channels, shared.present, sizes.features, kept.normed, layer.number * atoms * channels,
        kept.inverse, layer.number, work.g_x,
    )  # fmt: skip
    if layer.gated:
        matmul(
            work.g_projected, 0, sizes.components * atoms, layer.vector_width,
            weights.vectors, layer.number * sizes.vector_maps * square, channels, shared.zeros, 0,
            work.g_vec_normed, 0, True,
        )  # fmt: skip
        _norm_vectors_vjp(layer.number, layer.vectors0, atoms, shared, kept, work)


@kernel
def backward(n, g_out_x, g_out_v, shared, weights, kept, work, g_pos):
    """Fill g_pos (M, 3), float64, from the gradients with respect to the outputs of the last `forward`.

    Without `kept.hold` the linear maps of edge features and messages are computed again.
    """
    g_pos[:] = 0.0
    if n < 0:
        g_pos[:] = np.nan
        return
    sizes, graph, atoms, channels = shared.sizes, kept.graph, work.g_x.shape[0], shared.sizes.channels
    rows, edges = n + atoms, 2 * n + atoms
    work.g_pair[:n] = 0.0
    work.g_edge[:edges] = 0.0
    set_zero(work.g_row_features, 0, rows * channels)
    set_zero(work.g_edge_features, 0, edges * channels)
    _outputs_vjp(g_out_x, g_out_v, atoms, shared, kept, work)
    for number in range(sizes.layers - 1, -1, -1):
        layer = make_layer(sizes, number, atoms, edges, 1, kept.hold, kept.edge_features.shape[1])
        _update_atoms_vjp(layer, atoms, shared, weights, kept, work)
        _exchange_vjp(layer, rows, edges, shared, weights, kept, work)
        _project_atoms_vjp(layer, atoms, shared, weights, kept, work)
    table = shared.radial.coefficients
    embed_edges_vjp(
        n, atoms, graph.near, table, shared.loop, channels, kept.start_x, work.g_row_features, work.g_x, work.g_pair
    )
    matmul(work.g_x, 0, atoms, channels, weights.start, 0, channels, shared.zeros, 0, work.g_total, 0, False)
    gather_neighbours_vjp(n, graph.near, table, channels, weights.neighbour, work.g_total, work.g_pair)
    edges_vjp(edges, n, graph, sizes.components, work.g_edge, work.g_pair)
    scatter_gradient(n, graph.near, work.g_pair, g_pos)


keep_compiled(forward)
keep_compiled(backward)
