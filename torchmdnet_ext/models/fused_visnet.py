"""ViSNet's messages and edge updates, compiled with Numba for training on a CPU.

Most of the time goes into linear maps of the features of edges. They are made for a chunk of edges at a time, whose numbers
stay in the processor's cache from the first product of matrices to the last, and the linear maps of vectors, for the update
of edges, are made once for each atom. Up to the first update both directions of a pair have the same features, which are
kept once. Nothing here has second derivatives, and asking for them is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from torchmdnet_ext.models.radial_grid import arrays, reason_against_kernels

if TYPE_CHECKING:
    import numpy as np

    from torchmdnet_ext.models.neighbours import Graph

LANES = 8  # channels of a head come in multiples of this; WIDTH of `kernels.lanes`, which cannot be imported without numba
PAIRS_AT_ONCE = 256  # of a chunk


def reason_against(network: Any, pos: Tensor, box: Tensor | None) -> str | None:
    """Say why the compiled messages cannot be used for a training step; None if they can."""
    if not len(network.vis_mp_layers) or network.vis_mp_layers[0].head_dim % LANES:
        return f"the channels of a head are not a multiple of {LANES}"
    return reason_against_kernels(network, network.embedding.weight, pos, box)


class Chunk(NamedTuple):
    """Edges that are processed at once, and the rows of features that both directions share."""

    edges: slice
    rows: slice


class Edges(NamedTuple):
    """The directed edges of a batch in chunks, arrays as described in `torchmdnet_ext.kernels.visnet_messages`."""

    source: Tensor
    target: Tensor
    edge: Tensor
    chunks: list[Chunk]

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Numpy arrays of source, target and edge."""
        return arrays(self.source, self.target, self.edge)


def make_edges(network: Any, graph: Graph) -> Edges:
    """Both directions of every pair, chunk by chunk, then the self loops."""
    n_pairs, atoms = len(graph.i), torch.arange(graph.n_atoms)
    forward, backward = graph.i.split(PAIRS_AT_ONCE), graph.j.split(PAIRS_AT_ONCE)

    def directed(first: Any, second: Any, loops: Tensor) -> Tensor:
        return torch.cat([part for both in zip(first, second, strict=True) for part in both] + [loops])

    distance = graph.filter_distances()
    weight = torch.stack([network.vis_mp_layers[0].cutoff(distance), network.envelope(distance)], 1)
    one_way = torch.cat([weight[:-1], network.sphere(graph.direction)], 1)
    other_way = torch.cat([weight[:-1], network.sphere(-graph.direction)], 1)
    loops = functional.pad(weight[-1:], (0, one_way.shape[1] - 2)).expand(graph.n_atoms, -1)
    chunks = []
    for start in range(0, n_pairs, PAIRS_AT_ONCE):
        end = min(start + PAIRS_AT_ONCE, n_pairs)
        chunks.append(Chunk(slice(2 * start, 2 * end), slice(start, end)))
    for start in range(0, graph.n_atoms, 2 * PAIRS_AT_ONCE):
        end = min(start + 2 * PAIRS_AT_ONCE, graph.n_atoms)
        chunks.append(Chunk(slice(2 * n_pairs + start, 2 * n_pairs + end), slice(n_pairs + start, n_pairs + end)))
    return Edges(
        directed(backward, forward, atoms),
        directed(forward, backward, atoms),
        directed(one_way.split(PAIRS_AT_ONCE), other_way.split(PAIRS_AT_ONCE), loops),
        chunks,
    )


def _whole_lanes(count: int) -> int:
    return -(-count // LANES) * LANES


class _Messages(torch.autograd.Function):
    """Messages of one layer, (N, H) and (N, S, H), and the edge features (E, H) of the next.

    `apply` takes qkv (N, 3H); vec (N, S, H), or None for 0; projected (N, S, 2H or 4H), or None where the features of edges
    stay as they are: (0, H) stands for those of the next layer then; features (P + N, H) or (E, H); weight and bias of the
    linear maps of the features, for keys, values and update; weight and bias of the factors of directions and, unless vec is
    0, of vectors; edges; heads.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, vec: Tensor | None, projected: Tensor | None, features: Tensor, edge_weight: Tensor,
        edge_bias: Tensor, factor_weight: Tensor, factor_bias: Tensor, edges: Edges, heads: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        from torchmdnet_ext.kernels.visnet_messages import attend, collect, update_edges

        atoms, channels, e = qkv.shape[0], qkv.shape[1] // 3, len(edges.source)
        components, width, most = edges.edge.shape[1] - 2, len(edge_bias), 2 * PAIRS_AT_ONCE
        gated, updated, shared = vec is not None, projected is not None, len(features) < e
        vec = qkv.new_empty(0, components, channels) if vec is None else vec.contiguous()
        projected = qkv.new_empty(0, components, 0) if projected is None else projected.contiguous()
        qkv, features, edge_bias, factor_bias = map(Tensor.contiguous, (qkv, features, edge_bias, factor_bias))
        linear, product = qkv.new_empty(len(features), width), qkv.new_empty(e, heads)
        message, factors = qkv.new_empty(e, channels), qkv.new_empty(e, len(factor_bias))
        total_x, total_v = qkv.new_zeros(atoms, channels), qkv.new_zeros(atoms, components, channels)
        new = qkv.new_empty(e if updated else 0, channels)
        attention = qkv.new_zeros(_whole_lanes(most * heads))
        active = arrays(qkv.new_empty(most, width), qkv.new_empty(most, len(factor_bias)))
        nodes, biases, totals = arrays(qkv, vec, projected), arrays(edge_bias, factor_bias), arrays(total_x, total_v)
        of_edges, of_rows = arrays(product, message, factors, new, attention), arrays(features, linear)
        ends = edges.arrays()
        for chunk in edges.chunks:
            at, row = chunk.edges, chunk.rows if shared else chunk.edges
            start, rows = at.start, row.stop - row.start
            torch.mm(features[row], edge_weight.T, out=linear[row])
            attend(
                start, rows, *ends, nodes[0], of_rows[1][row], biases[0], active[0], of_edges[0][at], of_edges[4],
                of_edges[1][at],
            )  # fmt: skip
            torch.mm(message[at], factor_weight.T, out=factors[at])
            collect(
                start, *ends, nodes[1], gated, of_edges[1][at], of_edges[2][at], biases[1], active[1], *totals
            )  # fmt: skip
            if updated:
                update_edges(start, rows, *ends, nodes[2], active[0], of_rows[0][row], of_edges[3][at])
        ctx.save_for_backward(qkv, vec, projected, features, edge_weight, factor_weight, linear, product, message, factors)
        ctx.edges, ctx.gated, ctx.updated, ctx.shared = edges, gated, updated, shared
        return total_x, total_v, new

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_x: Tensor, g_v: Tensor, g_new: Tensor) -> tuple[Tensor | None, ...]:
        from torchmdnet_ext.kernels.visnet_messages import attend_vjp, collect_vjp, update_edges_vjp

        qkv, vec, projected, features, edge_weight, factor_weight, linear, product, message, factors = ctx.saved_tensors
        edges, most, channels = ctx.edges, 2 * PAIRS_AT_ONCE, qkv.shape[1] // 3
        g_qkv, g_vec, g_projected = torch.zeros_like(qkv), torch.zeros_like(vec), torch.zeros_like(projected)
        g_features, g_edge_weight = torch.empty_like(features), torch.zeros_like(edge_weight)
        g_factor_weight = torch.zeros_like(factor_weight)
        g_edge_bias, g_factor_bias = torch.zeros_like(edge_weight[:, 0]), torch.zeros_like(factor_weight[:, 0])
        g_linear, g_factors = qkv.new_empty(most, linear.shape[1]), qkv.new_empty(most, factors.shape[1])
        g_message, attention = qkv.new_empty(most, channels), qkv.new_zeros(2, _whole_lanes(most * product.shape[1]))
        of_linear = arrays(torch.empty_like(g_linear), torch.empty_like(g_linear))
        of_factors = arrays(torch.empty_like(g_factors), torch.empty_like(g_factors))
        given, nodes = arrays(g_x.contiguous(), g_v.contiguous()), arrays(qkv, vec, projected)
        of_nodes = arrays(g_qkv, g_vec, g_projected)
        of_edges, of_rows = arrays(product, factors, g_new.contiguous()), arrays(linear, g_features)
        scratch = arrays(g_linear, g_factors, g_message, attention, g_factor_bias)
        ends = edges.arrays()
        for chunk in edges.chunks:
            at, row = chunk.edges, chunk.rows if ctx.shared else chunk.edges
            start, rows, count = at.start, row.stop - row.start, at.stop - at.start
            collect_vjp(
                start, *ends, nodes[1], ctx.gated, of_edges[1][at], *of_factors, *given, scratch[2][:count],
                scratch[1][:count], scratch[4], of_nodes[1],
            )  # fmt: skip
            g_message[:count].addmm_(g_factors[:count], factor_weight)
            g_factor_weight.addmm_(g_factors[:count].T, message[at])
            attend_vjp(
                start, rows, *ends, nodes[0], of_rows[0][row], *of_linear, of_edges[0][at], scratch[3],
                scratch[2][:count], scratch[0], of_nodes[0],
            )  # fmt: skip
            if ctx.updated:
                update_edges_vjp(
                    start, rows, *ends, nodes[2], *of_linear, of_edges[2][at], scratch[0], of_rows[1][row],
                    of_nodes[2],
                )  # fmt: skip
                g_features[row].addmm_(g_linear[:rows], edge_weight)
            else:
                torch.mm(g_linear[:rows], edge_weight, out=g_features[row])
            g_edge_weight.addmm_(g_linear[:rows].T, features[row])
            g_edge_bias += g_linear[:rows].sum(0)
        return (
            g_qkv, g_vec if ctx.gated else None, g_projected if ctx.updated else None, g_features, g_edge_weight,
            g_edge_bias, g_factor_weight, g_factor_bias, None, None,
        )  # fmt: skip


def _joined(linears: list[Any]) -> tuple[Tensor, Tensor]:
    """Weight and bias of several linear maps side by side; a map without a bias has none to join."""
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return torch.cat([linear.weight for linear in linears]), torch.cat(biases) if biases else linears[0].weight[:0, 0]


def _layer(layer: Any, x: Tensor, vec: Tensor | None, features: Tensor, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals of the scalars and vectors, and the edge features of the next layer."""
    width, components = layer.hidden_channels, edges.edge.shape[1] - 2
    # where vec is 0, one row stands for those of all atoms, so that parameters have gradients of 0
    normed = layer.vec_layernorm(x.new_zeros(1, components, width) if vec is None else vec)
    vec1, vec2, vec3 = layer.vec_proj(normed).split(width, dim=-1)
    qkv = functional.linear(layer.layernorm(x), *_joined([layer.q_proj, layer.k_proj, layer.v_proj]))
    of_features, projected = [layer.dk_proj, layer.dv_proj], None
    nothing = x.new_zeros(())
    if not layer.last_layer:
        ends = [layer.w_trg_proj, layer.w_src_proj]
        if hasattr(layer, "t_trg_proj"):
            ends += [layer.t_trg_proj, layer.t_src_proj]
        if vec is None:
            nothing = sum((0 * p.sum() for part in [*ends, layer.f_proj] for p in part.parameters()), nothing)
        else:
            projected = functional.linear(normed, _joined(ends)[0])
            of_features.append(layer.f_proj)
    weight, bias = layer.s_proj.weight, layer.s_proj.bias
    if vec is None:
        factors = weight[width:], bias[width:]
    else:
        factors = weight.roll(width, 0), bias.roll(width, 0)
    total_x, total_v, new = _Messages.apply(
        qkv, None if vec is None else normed, projected, features, *_joined(of_features), *factors, edges, layer.num_heads
    )
    o1, o2, o3 = layer.o_proj(total_x).split(width, dim=1)
    dx = (vec1 * vec2).sum(dim=1) * o2 + (o3 + nothing)
    dvec = vec3 * o1.unsqueeze(1) + total_v
    return dx, dvec, features if projected is None else new


def fused_messages(network: Any, x: Tensor, features: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
    """Scalars (N, H) and vectors (N, S, H) behind the last layer.

    Parameters
    ----------
    network : ViSNet
    x : (N, H)
    features : (P + N, H)
        Those of pairs, the same for both directions, and of self loops.
    graph : Graph
    """
    edges, vec = make_edges(network, graph), None
    for layer in network.vis_mp_layers:
        dx, dvec, features = _layer(layer, x, vec, features, edges)
        x = x + dx
        vec = dvec if vec is None else vec + dvec
    assert vec is not None
    return x, vec
