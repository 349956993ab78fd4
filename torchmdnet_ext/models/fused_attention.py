"""The equivariant transformer's messages, compiled with Numba for training on a CPU, with filters from a `radial_grid`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from torchmdnet_ext.models.radial_grid import arrays, filter_table, reason_against_kernels

if TYPE_CHECKING:
    from torchmdnet_ext.models.neighbours import Graph

LANES = 8  # channels of a head come in multiples of this; WIDTH of `kernels.lanes`, which cannot be imported without numba


def reason_against(network: Any, pos: Tensor, box: Tensor | None) -> str | None:
    """Say why the compiled messages cannot be used for a training step; None if they can."""
    layer = network.attention_layers[0] if len(network.attention_layers) else None
    if layer is None or layer.head_dim % LANES:
        return f"the channels of a head are not a multiple of {LANES}"
    if network.attn_activation not in ("silu", "swish"):
        return "attn_activation is not silu"
    return reason_against_kernels(network, network.embedding.weight, pos, box)


class Pairs(NamedTuple):
    """What the kernels know about a batch; arrays as described in `torchmdnet_ext.kernels.message_kernels`."""

    i: Tensor
    j: Tensor
    row: Tensor
    step: int
    geometry: Tensor
    self_row: int
    self_geometry: Tensor

    def arrays(self) -> tuple:
        """Return the arguments of the kernels in their order, with numpy arrays in place of tensors."""
        i, j, row, geometry, self_geometry = arrays(self.i, self.j, self.row, self.geometry, self.self_geometry)
        return i, j, row, (0,) * self.step, geometry, self.self_row, self_geometry


class _Messages(torch.autograd.Function):
    """Sums of the messages (N, H) and (N, 3, H) from qkv (N, 5H), vec (N, 3, H) or None and the table (T, 4H)."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, vec: Tensor | None, table: Tensor, pairs: Pairs, heads: int) -> tuple[Tensor, Tensor]:
        from torchmdnet_ext.kernels.message_kernels import attention_messages

        n, channels = qkv.shape[0], qkv.shape[1] // 5
        sides = -(-2 * heads // LANES) * LANES
        gated = vec is not None
        vec = vec.contiguous() if vec is not None else qkv.new_empty(0, 3, channels)
        qkv, table = qkv.contiguous(), table.contiguous()
        attention, self_attention = qkv.new_empty(len(pairs.i), 2, sides), qkv.new_empty(n, 2, sides)
        total_x, total_v = qkv.new_empty(n, channels), qkv.new_empty(n, 3, channels)
        attention_messages(
            *pairs.arrays(), *arrays(table, qkv, vec), gated, (0,) * heads, (0,) * (channels // heads),
            *arrays(attention, self_attention, total_x, total_v),
        )  # fmt: skip
        ctx.save_for_backward(qkv, vec, table, attention, self_attention)
        ctx.settings = pairs, gated, heads
        return total_x, total_v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_x: Tensor, g_v: Tensor) -> tuple[Tensor | None, ...]:
        from torchmdnet_ext.kernels.message_kernels import attention_messages_vjp

        qkv, vec, table, attention, self_attention = ctx.saved_tensors
        pairs, gated, heads = ctx.settings
        gradients = torch.empty_like(qkv), torch.empty_like(vec), torch.empty_like(table)
        attention_messages_vjp(
            *pairs.arrays(), *arrays(table, qkv, vec), gated, (0,) * heads, (0,) * (qkv.shape[1] // 5 // heads),
            *arrays(attention, self_attention, g_x.contiguous(), g_v.contiguous(), *gradients),
        )  # fmt: skip
        g_qkv, g_vec, g_table = gradients
        return g_qkv, g_vec if gated else None, g_table, None, None


class FusedMessages:
    """Messages of one batch; an instance stands in for `equivariant_transformer.PlainMessages`."""

    def __init__(self, network: Any, graph: Graph) -> None:
        table = filter_table(network, graph)
        self.basis = table.basis
        weight = network.message_weights(graph.filter_distances())
        weight = torch.stack([weight[:, 0] * weight[:, 1], weight[:, 1]], 1)
        geometry = torch.cat([table.coefficient, weight[:-1], graph.direction], 1)
        self_geometry = functional.pad(weight[-1:], (4, 3))
        i, j = graph.i.long().contiguous(), graph.j.long().contiguous()
        self.pairs = Pairs(i, j, table.row, table.step, geometry, table.self_row, self_geometry)

    def filters(self, layer: Any) -> Tensor:
        """(T, 4H) filters of keys and values at the distances of the table."""
        projections = [projection for projection in (layer.dk_proj, layer.dv_proj) if projection is not None]
        if not projections:
            return self.basis.new_ones(len(self.basis), 4 * layer.hidden_channels)
        weight = torch.cat([projection.weight for projection in projections])
        bias = torch.cat([projection.bias for projection in projections])
        table = layer.act(functional.linear(self.basis, weight, bias))
        if layer.dk_proj is None:
            return torch.cat([table.new_ones(len(table), layer.hidden_channels), table], 1)
        if layer.dv_proj is None:
            return torch.cat([table, table.new_ones(len(table), 3 * layer.hidden_channels)], 1)
        return table

    def __call__(self, layer: Any, x: Tensor, vec: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sum the messages to every atom, (N, H) and (N, 3, H), given normalised scalars and vectors."""
        projections = (layer.q_proj, layer.k_proj, layer.v_proj)
        weight = torch.cat([projection.weight for projection in projections])
        qkv = functional.linear(x, weight, torch.cat([projection.bias for projection in projections]))
        return _Messages.apply(qkv, vec, self.filters(layer), self.pairs, layer.num_heads)
