"""TensorNet and its vector-Jacobian product, put together from the kernels of atoms and of edges.

Sizes as in `tensornet_edges`; L layers. Layer 0 of the table and of `own`, the filters at the distance 0, are those of the
embedding. Tensors enter a layer damped, X / (|X|^2 + 1), and are kept so.
"""

import numpy as np
from numba import njit

from torchmdnet_ext.compiled.cache import keep_compiled
from torchmdnet_ext.compiled.node_kernels import layer_norm, layer_norm_vjp, matmul, set_zero
from torchmdnet_ext.compiled.pair_kernels import neighbours, scatter_gradient
from torchmdnet_ext.compiled.tensornet_edges import (
    LINE,
    add_radial,
    direct,
    embed,
    embed_vjp,
    evaluate_filters,
    exchange,
    exchange_vjp,
)
from torchmdnet_ext.compiled.tensornet_nodes import (
    ROOT_HALF,
    damp_vjp,
    first_tensors,
    first_tensors_vjp,
    multiply,
    next_tensors,
    products_vjp,
    read_out_vjp,
    squared_norm_vjp,
    update_vjp,
)
from torchmdnet_ext.compiled.visnet_edges_vjp import activate
from torchmdnet_ext.kernels.lanes import PANEL


@njit(error_model="numpy")
def mix(atoms, channels, x, x0, packed, number, zeros, out, out0, add):
    """out (9, M, C) = linear maps of the channels of x, one for each part: the matrices 3 * number ... + 2 of `packed`."""
    square, step = channels * channels, atoms * channels
    component = 0
    for part in range(3):
        components = 2 * part + 1
        matmul(
            x, x0 + component * step, components * atoms, channels, packed, (3 * number + part) * square, channels,
            zeros, 0, out, out0 + component * step, add,
        )  # fmt: skip
        component += components


@njit(error_model="numpy")
def forward(
    keep, pos, pair_i, pair_j, centre, neighbour, out_x, out_v,
    cutoff, share, steepness, alpha, table, own, layers, present, features, epsilon, out_epsilon,
    tensor_w, scalar1_w, scalar1_b, scalar2_w, scalar2_b, out_w, out_b, zeros, order,
    near_i, near_j, node, geometry, first, source, row, edge, f, slope,
    e, mixed, normed, inverse, hidden, hidden_slope, factors, factors_slope,
    x, scale, y, message, damped, damped_scale, update, normed_out, out, out_slope,
    squared, norms,
):  # fmt: skip
    """Fill out_x (M, H) and out_v (M, 3, H); returns the number of pairs within the cutoff, -1 if `pos` is not finite.

    keep: 1 leaves what `backward` needs of every layer in the arrays from `near_i` to `out_slope`; 0 lets layers overwrite
    one another in those that have layers. All arrays may be made for more atoms and pairs.
    """
    atoms, channels = centre.shape[0], centre.shape[1]
    size, lines = atoms * channels, channels // PANEL * LINE
    n = neighbours(pos, pair_i, pair_j, cutoff, share, steepness, alpha, table.shape[1], near_i, near_j, node, geometry)
    if n < 0:
        out_x[:] = np.nan
        out_v[:] = np.nan
        return n
    direct(n, atoms, near_i, near_j, geometry, first, source, row, edge)
    evaluate_filters(keep, n, node, geometry, table, 0, channels, f, slope, 0)
    embed(n, atoms, channels, first, source, row, edge, f, centre, neighbour, own, e, squared)
    layer_norm(squared, 0, atoms, channels, present, features, epsilon, normed, 0, inverse, 0)
    matmul(normed, 0, atoms, channels, scalar1_w, 0, 2 * channels, scalar1_b, 0, hidden, 0, False)
    activate(2 * size, hidden, 0, hidden, 0, hidden_slope, 0)
    matmul(hidden, 0, atoms, 2 * channels, scalar2_w, 0, 3 * channels, scalar2_b, 0, factors, 0, False)
    activate(3 * size, factors, 0, factors, 0, factors_slope, 0)
    mix(atoms, channels, e, 0, tensor_w, 0, zeros, mixed, 0, False)
    first_tensors(atoms, channels, mixed, factors, x, scale)
    for layer in range(layers):
        # offsets: of scalars of the layer, a ninth of those of its tensors, and of what the layer hands on
        place, last = keep * layer * size, layer == layers - 1
        f0, after = keep * (layer + 1) * n * lines, place + keep * size
        evaluate_filters(keep, n, node, geometry, table, layer + 1, channels, f, slope, f0)
        mix(atoms, channels, x, 9 * place, tensor_w, 2 * layer + 1, zeros, y, 9 * place, False)
        exchange(
            n, atoms, channels, first, source, row, f, f0, own, 3 * (layer + 1) * channels, y, message, damped,
            damped_scale, place,
        )  # fmt: skip
        mix(atoms, channels, damped, 9 * place, tensor_w, 2 * layer + 2, zeros, update, 9 * place, False)
        next_tensors(atoms, channels, last, x, 9 * place, update, 9 * place, 9 * after, scale, after, norms)
    layer_norm(norms, 0, atoms, 3 * channels, present, 3.0 * features, out_epsilon, normed_out, 0, inverse, 1)
    matmul(normed_out, 0, atoms, 3 * channels, out_w, 0, channels, out_b, 0, out, 0, False)
    activate(size, out, 0, out, 0, out_slope, 0)
    # by offsets, as all else: the arrays may be made for more atoms
    scalars, tensors = out.reshape(-1), x.reshape(-1)[keep * layers * 9 * size :]
    for m in range(atoms):
        for c in range(order.shape[0]):
            at = m * channels + order[c]
            out_x[m, c] = scalars[at]
            for d in range(3):
                out_v[m, d, c] = ROOT_HALF * tensors[(1 + d) * size + at]
    return n


@njit(error_model="numpy")
def backward(
    n, g_out_x, g_out_v, centre, neighbour, own, layers, present, features,
    tensor_w_t, scalar1_w_t, scalar2_w_t, out_w_t, zeros, order,
    near_i, near_j, node, geometry, first, source, row, edge, f, slope,
    e, mixed, normed, inverse, hidden, hidden_slope, factors, factors_slope,
    x, scale, y, message, damped, damped_scale, update, normed_out, out, out_slope,
    g, g_update, g_y, g_message, g_norms, g_normed, g_hidden, g_squared, g_radial, g_pair, g_pos,
):  # fmt: skip
    """Fill g_pos (M, 3), float64, from the gradients with respect to the outputs of the last `forward`."""
    g_pos[:] = 0.0
    if n < 0:
        g_pos[:] = np.nan
        return
    atoms, channels = centre.shape[0], centre.shape[1]
    size, lines = atoms * channels, channels // PANEL * LINE
    g_pair[:n] = 0.0
    set_zero(g_radial, 0, n * PANEL)
    set_zero(g, 0, 9 * size)
    set_zero(g_squared, 0, size)
    set_zero(g_norms, 0, 3 * size)
    scalars, tensors, slopes = g_squared.reshape(-1), g.reshape(-1), out_slope.reshape(-1)
    for m in range(atoms):
        for c in range(order.shape[0]):
            at = m * channels + order[c]
            scalars[at] = g_out_x[m, c] * slopes[at]
            for d in range(3):
                tensors[(1 + d) * size + at] = ROOT_HALF * g_out_v[m, d, c]
    matmul(g_squared, 0, atoms, channels, out_w_t, 0, 3 * channels, zeros, 0, g_normed, 0, False)
    layer_norm_vjp(g_normed, atoms, 3 * channels, present, 3.0 * features, normed_out, 0, inverse, 1, g_norms)
    read_out_vjp(atoms, channels, x, layers * 9 * size, g_norms, g)
    for layer in range(layers - 1, -1, -1):
        place, f0 = layer * size, (layer + 1) * n * lines
        update_vjp(atoms, channels, update, 9 * place, g, g_update)
        mix(atoms, channels, g_update, 0, tensor_w_t, 2 * layer + 2, zeros, g_y, 0, False)
        products_vjp(
            atoms, channels, own, 3 * (layer + 1) * channels, y, message, damped, damped_scale, place, g_message, g_y
        )
        exchange_vjp(n, atoms, channels, first, source, row, f, slope, f0, y, 9 * place, g_message, g_y, g_radial)
        mix(atoms, channels, g_y, 0, tensor_w_t, 2 * layer + 1, zeros, g, 0, True)
        damp_vjp(atoms, channels, x, 9 * place, scale, place, g)
    first_tensors_vjp(atoms, channels, mixed, factors, factors_slope, g, g_update, g_norms)
    matmul(g_norms, 0, atoms, 3 * channels, scalar2_w_t, 0, 2 * channels, zeros, 0, g_hidden, 0, False)
    multiply(2 * size, hidden_slope, g_hidden)
    matmul(g_hidden, 0, atoms, 2 * channels, scalar1_w_t, 0, channels, zeros, 0, g_normed, 0, False)
    set_zero(g_squared, 0, size)
    layer_norm_vjp(g_normed, atoms, channels, present, features, normed, 0, inverse, 0, g_squared)
    mix(atoms, channels, g_update, 0, tensor_w_t, 0, zeros, g, 0, False)
    squared_norm_vjp(atoms, channels, e, g_squared, g)
    embed_vjp(n, atoms, channels, first, source, row, near_i, edge, f, slope, centre, neighbour, g, g_radial, g_pair)
    add_radial(n, g_radial, g_pair)
    scatter_gradient(n, near_i, near_j, geometry, g_pair, g_pos)


keep_compiled(forward)
keep_compiled(backward)
