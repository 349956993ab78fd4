"""TensorNet and its vector-Jacobian product, put together from the kernels of atoms and of edges.

Sizes and arrays as in `tensornet_arguments`. Tensors enter a layer damped, X / (|X|^2 + 1), and are kept so.
"""

import numpy as np

from torchmdnet_ext.compiled.cache import keep_compiled
from torchmdnet_ext.compiled.jit import kernel
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


@kernel
def mix(atoms, channels, x, x0, packed, number, zeros, out, out0, add):
    """`out` (9, M, C) = linear maps of the channels of x, one for each part: the matrices 3 * number ... + 2 of `packed`."""
    square, step = channels * channels, atoms * channels
    component = 0
    for part in range(3):
        components = 2 * part + 1
        matmul(
            x, x0 + component * step, components * atoms, channels, packed, (3 * number + part) * square, channels,
            zeros, 0, out, out0 + component * step, add,
        )  # fmt: skip
        component += components


@kernel
def _embed(n, atoms, channels, centre, neighbour, shared, weights, kept, work):
    """The tensors that the first layer starts with."""
    graph, size, filters, present = kept.graph, atoms * channels, kept.filters, shared.present
    embed(n, atoms, channels, graph, filters, centre, neighbour, shared.own, kept.embedding, work.squared)
    layer_norm(work.squared, 0, atoms, channels, present, shared.features, weights.epsilon, kept.normed, 0, kept.inverse, 0)
    matmul(kept.normed, 0, atoms, channels, weights.scalar1, 0, 2 * channels, weights.scalar1_bias, 0, kept.hidden, 0, False)
    activate(2 * size, kept.hidden, 0, kept.hidden, 0, kept.hidden_slope, 0)
    matmul(
        kept.hidden, 0, atoms, 2 * channels, weights.scalar2, 0, 3 * channels, weights.scalar2_bias, 0,
        kept.factors, 0, False,
    )  # fmt: skip
    activate(3 * size, kept.factors, 0, kept.factors, 0, kept.factors_slope, 0)
    mix(atoms, channels, kept.embedding, 0, weights.tensor, 0, shared.zeros, kept.mixed, 0, False)
    first_tensors(atoms, channels, kept.mixed, kept.factors, kept.x, kept.scale)


@kernel
def forward(keep, pos, pair_i, pair_j, centre, neighbour, out_x, out_v, shared, weights, kept, work):
    """Fill out_x (M, H) and out_v (M, 3, H); returns the number of pairs within the cutoff, -1 if `pos` is not finite.

    keep: 1 leaves what `backward` needs of every layer in `kept`; 0 lets layers overwrite one another in those of its arrays
    that have layers. All arrays may be made for more atoms and pairs. centre and neighbour (M, C) are what the elements of
    both ends of an edge add to its factor.
    """
    graph, table, layers, zeros = kept.graph, shared.radial.coefficients, shared.layers, shared.zeros
    filters, slopes, x, order = kept.filters, kept.slopes, kept.x, shared.order
    atoms, channels = centre.shape
    size, lines = atoms * channels, channels // PANEL * LINE
    n = neighbours(pos, pair_i, pair_j, shared.radial, graph.near)
    if n < 0:
        out_x[:] = np.nan
        out_v[:] = np.nan
        return n
    direct(n, atoms, graph)
    evaluate_filters(keep, n, graph.near, table, 0, channels, filters, slopes, 0)
    _embed(n, atoms, channels, centre, neighbour, shared, weights, kept, work)
    for layer in range(layers):
        # offsets: of scalars of the layer, a ninth of those of its tensors, and of what the layer hands on
        place, last = keep * layer * size, layer == layers - 1
        f0, after = keep * (layer + 1) * n * lines, place + keep * size
        evaluate_filters(keep, n, graph.near, table, layer + 1, channels, filters, slopes, f0)
        mix(atoms, channels, x, 9 * place, weights.tensor, 2 * layer + 1, zeros, kept.y, 9 * place, False)
        exchange(
            n, atoms, channels, graph, filters, f0, shared.own, 3 * (layer + 1) * channels, kept.y, kept.message,
            kept.damped, kept.damped_scale, place,
        )  # fmt: skip
        mix(atoms, channels, kept.damped, 9 * place, weights.tensor, 2 * layer + 2, zeros, kept.update, 9 * place, False)
        next_tensors(atoms, channels, last, x, 9 * place, kept.update, 9 * place, 9 * after, kept.scale, after, work.norms)
    layer_norm(
        work.norms, 0, atoms, 3 * channels, shared.present, 3.0 * shared.features, weights.out_epsilon, kept.normed_out, 0,
        kept.inverse, 1,
    )  # fmt: skip
    matmul(kept.normed_out, 0, atoms, 3 * channels, weights.out, 0, channels, weights.out_bias, 0, kept.out, 0, False)
    activate(size, kept.out, 0, kept.out, 0, kept.out_slope, 0)
    # by offsets, as all else: the arrays may be made for more atoms
    scalars, tensors = kept.out.reshape(-1), x.reshape(-1)[keep * layers * 9 * size :]
    for m in range(atoms):
        for c in range(order.shape[0]):
            at = m * channels + order[c]
            out_x[m, c] = scalars[at]
            for d in range(3):
                out_v[m, d, c] = ROOT_HALF * tensors[(1 + d) * size + at]
    return n


@kernel
def _outputs_vjp(g_out_x, g_out_v, atoms, channels, shared, weights, kept, work):
    """Back from the outputs to the tensors behind the last layer."""
    order, size = shared.order, atoms * channels
    scalars, tensors, slopes = work.squared.reshape(-1), work.x.reshape(-1), kept.out_slope.reshape(-1)
    for m in range(atoms):
        for c in range(order.shape[0]):
            at = m * channels + order[c]
            scalars[at] = g_out_x[m, c] * slopes[at]
            for d in range(3):
                tensors[(1 + d) * size + at] = ROOT_HALF * g_out_v[m, d, c]
    matmul(work.squared, 0, atoms, channels, weights.out, 0, 3 * channels, shared.zeros, 0, work.normed, 0, False)
    layer_norm_vjp(
        work.normed, atoms, 3 * channels, shared.present, 3.0 * shared.features, kept.normed_out, 0, kept.inverse, 1,
        work.norms,
    )  # fmt: skip
    read_out_vjp(atoms, channels, kept.x, shared.layers * 9 * size, work.norms, work.x)


@kernel
def _embed_vjp(n, atoms, channels, shared, weights, kept, work):
    """Back from the tensors that the first layer starts with to the pairs."""
    graph, size, zeros = kept.graph, atoms * channels, shared.zeros
    first_tensors_vjp(atoms, channels, kept.mixed, kept.factors, kept.factors_slope, work.x, work.update, work.norms)
    matmul(work.norms, 0, atoms, 3 * channels, weights.scalar2, 0, 2 * channels, zeros, 0, work.hidden, 0, False)
    multiply(2 * size, kept.hidden_slope, work.hidden)
    matmul(work.hidden, 0, atoms, 2 * channels, weights.scalar1, 0, channels, zeros, 0, work.normed, 0, False)
    set_zero(work.squared, 0, size)
    layer_norm_vjp(
        work.normed, atoms, channels, shared.present, shared.features, kept.normed, 0, kept.inverse, 0, work.squared
    )
    mix(atoms, channels, work.update, 0, weights.tensor, 0, zeros, work.x, 0, False)
    squared_norm_vjp(atoms, channels, kept.embedding, work.squared, work.x)
    embed_vjp(
        n, atoms, channels, graph, kept.filters, kept.slopes, weights.centre, weights.neighbour, work.x, work.radial,
        work.pair,
    )  # fmt: skip


@kernel
def backward(n, g_out_x, g_out_v, shared, weights, kept, work, g_pos):
    """Fill g_pos (M, 3), float64, from the gradients with respect to the outputs of the last `forward`."""
    g_pos[:] = 0.0
    if n < 0:
        g_pos[:] = np.nan
        return
    graph, layers, zeros, g = kept.graph, shared.layers, shared.zeros, work.x
    atoms, channels = weights.centre.shape
    size, lines = atoms * channels, channels // PANEL * LINE
    work.pair[:n] = 0.0
    set_zero(work.radial, 0, n * PANEL)
    set_zero(g, 0, 9 * size)
    set_zero(work.squared, 0, size)
    set_zero(work.norms, 0, 3 * size)
    _outputs_vjp(g_out_x, g_out_v, atoms, channels, shared, weights, kept, work)
    for layer in range(layers - 1, -1, -1):
        place, f0 = layer * size, (layer + 1) * n * lines
        update_vjp(atoms, channels, kept.update, 9 * place, g, work.update)
        mix(atoms, channels, work.update, 0, weights.tensor, 2 * layer + 2, zeros, work.y, 0, False)
        products_vjp(
            atoms, channels, shared.own, 3 * (layer + 1) * channels, kept.y, kept.message, kept.damped, kept.damped_scale,
            place, work.message, work.y,
        )  # fmt: skip
        exchange_vjp(
            n, atoms, channels, graph, kept.filters, kept.slopes, f0, kept.y, 9 * place, work.message, work.y, work.radial
        )
        mix(atoms, channels, work.y, 0, weights.tensor, 2 * layer + 1, zeros, g, 0, True)
        damp_vjp(atoms, channels, kept.x, 9 * place, kept.scale, place, g)
    _embed_vjp(n, atoms, channels, shared, weights, kept, work)
    add_radial(n, work.radial, work.pair)
    scatter_gradient(n, graph.near, work.pair, g_pos)


keep_compiled(forward)
keep_compiled(backward)
