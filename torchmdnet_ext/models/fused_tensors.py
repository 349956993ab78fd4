"""TensorNet's layers, compiled with Numba for training on a CPU, with filters from a `radial_grid`.

Tensors are (9, N, H) here, so that the linear map of a part is one product of matrices. They are kept damped,
X / (|X|^2 + 1), as they enter a layer. Nothing here has second derivatives, and asking for them is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from torchmdnet_ext.models.radial_grid import arrays, filter_table, reason_against_kernels, sorted_edges
from torchmdnet_ext.models.tensor_components import PARTS, edge_components

if TYPE_CHECKING:
    import numpy as np

    from torchmdnet_ext.models.neighbours import Graph

LANES = 16  # channels come in multiples of this; PANEL of `kernels.lanes`, which cannot be imported without numba


def reason_against(network: Any, pos: Tensor, box: Tensor | None) -> str | None:
    """Say why the compiled layers cannot be used for a training step; None if they can."""
    if network.hidden_channels % LANES:
        return f"the channels are not a multiple of {LANES}"
    return reason_against_kernels(network, network.linear.weight, pos, box)


class Edges(NamedTuple):
    """What the kernels know about a batch; arrays as described in `torchmdnet_ext.kernels.tensornet_messages`."""

    first: Tensor
    source: Tensor
    pair: Tensor
    parts: Tensor
    row: Tensor
    step: int
    coefficient: Tensor
    self_row: int
    self_weight: float

    def arguments(self, table: Tensor) -> tuple[tuple[np.ndarray, ...], tuple]:
        """Return `edges` and `filters` of the kernels."""
        row, coefficient, filters = arrays(self.row, self.coefficient, table)
        edges = arrays(self.first, self.source, self.pair, self.parts)
        return edges, (row, self.step * table.shape[1], coefficient, filters, self.self_row, self.self_weight)


class _Embed(torch.autograd.Function):
    """The first tensors (9, N, H) and their squared norms (N, H)."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, centre: Tensor, neighbour: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        from torchmdnet_ext.kernels.tensornet_messages import embed

        table, centre, neighbour = table.contiguous(), centre.contiguous(), neighbour.contiguous()
        x, squared = centre.new_empty(9, *centre.shape), torch.empty_like(centre)
        embed(*edges.arguments(table), *arrays(centre, neighbour, x, squared))
        ctx.save_for_backward(table, centre, neighbour, x)
        ctx.edges = edges
        return x, squared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_x: Tensor, g_squared: Tensor) -> tuple[Tensor | None, ...]:
        from torchmdnet_ext.kernels.tensornet_messages import embed_vjp

        table, centre, neighbour, x = ctx.saved_tensors
        g_table, g_centre, g_neighbour = map(torch.empty_like, (table, centre, neighbour))
        given = arrays(centre, neighbour, x, g_x.contiguous(), g_squared.contiguous())
        embed_vjp(*ctx.edges.arguments(table), *given, *arrays(g_centre, g_neighbour, g_table))
        return g_table, g_centre, g_neighbour, None


class _Mix(torch.autograd.Function):
    """Linear maps of the channels of tensors (9, N, H), one for each part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        out = torch.empty_like(x)
        for part, weight in zip(PARTS, weights, strict=True):
            torch.mm(x[part].flatten(0, 1), weight.T, out=out[part].view(-1, x.shape[2]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        x, *weights = ctx.saved_tensors
        g = g.contiguous()
        g_x, g_weights = torch.empty_like(x), []
        for part, weight in zip(PARTS, weights, strict=True):
            rows = g[part].flatten(0, 1)
            torch.mm(rows, weight, out=g_x[part].view(-1, x.shape[2]))
            g_weights.append(rows.T @ x[part].flatten(0, 1))
        return g_x, *g_weights


class _First(torch.autograd.Function):
    """The damped tensors that enter the first layer: mixed (9, N, H) times factors (N, 3H)."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, factors: Tensor) -> Tensor:
        from torchmdnet_ext.kernels.tensornet_messages import first_tensors

        factors, damped, scale = factors.contiguous(), torch.empty_like(mixed), torch.empty_like(mixed[0])
        first_tensors(*arrays(mixed, factors, damped, scale))
        ctx.save_for_backward(mixed, factors, damped, scale)
        return damped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        from torchmdnet_ext.kernels.tensornet_messages import first_tensors_vjp

        mixed, factors, *_ = ctx.saved_tensors
        gradients = torch.empty_like(mixed), torch.empty_like(factors)
        first_tensors_vjp(*arrays(*ctx.saved_tensors, g.contiguous(), *gradients))
        return gradients


class _Exchange(torch.autograd.Function):
    """The damped products (9, N, H) of tensors y with the messages of their neighbours, given the filters' table (T, 3H)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, table: Tensor, charge: Tensor, edges: Edges) -> Tensor:
        from torchmdnet_ext.kernels.tensornet_messages import exchange

        table = table.contiguous()
        message, damped, scale = torch.empty_like(y), torch.empty_like(y), torch.empty_like(y[0])
        exchange(*edges.arguments(table), *arrays(charge, y, message, damped, scale))
        ctx.save_for_backward(table, charge, y, message, damped, scale)
        ctx.edges = edges
        return damped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        from torchmdnet_ext.kernels.tensornet_messages import exchange_vjp

        table, charge, y, *given = ctx.saved_tensors
        g_message, g_y, g_table = torch.empty_like(y), torch.empty_like(y), torch.empty_like(table)
        exchange_vjp(*ctx.edges.arguments(table), *arrays(charge, y, *given, g.contiguous(), g_message, g_y, g_table))
        return g_y, g_table, None, None


class _Next(torch.autograd.Function):
    """The tensors X + U + charge U^2 (9, N, H), damped unless `last`, of damped tensors X and their update U."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, update: Tensor, charge: Tensor, last: bool) -> Tensor:
        from torchmdnet_ext.kernels.tensornet_messages import next_tensors

        new, scale = torch.empty_like(x), torch.empty_like(x[0])
        next_tensors(*arrays(charge, x, update, new, scale), last)
        ctx.save_for_backward(charge, update, new, scale)
        ctx.last = last
        return new

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        from torchmdnet_ext.kernels.tensornet_messages import next_tensors_vjp

        g = g.contiguous()
        g_x, g_update = torch.empty_like(g), torch.empty_like(g)
        next_tensors_vjp(*arrays(*ctx.saved_tensors), ctx.last, *arrays(g, g_x, g_update))
        return g_x, g_update, None, None


def _mix(linears: nn.ModuleList | Any, x: Tensor) -> Tensor:
    return _Mix.apply(x, *(linear.weight for linear in linears))


def _chain(linears: nn.ModuleList, activation: nn.Module, x: Tensor) -> Tensor:
    for linear in linears:
        x = activation(linear(x))
    return x


def fused_tensors(network: Any, z: Tensor, graph: Graph, charge: Tensor | None) -> Tensor:
    """Tensors (9, N, H) behind the last layer of a TensorNet, whose products `charge` (N,) multiplies; None stands for 1."""
    charge = graph.distance.new_ones(len(z)) if charge is None else charge.contiguous()
    table = filter_table(network, graph)
    edges = sorted_edges(graph)
    weight = network.message_weights(graph.filter_distances())
    parts = edge_components(edges.direction)[:, 1:].contiguous()
    batch = Edges(
        edges.first, edges.source, edges.pair, parts, table.row, table.step, table.coefficient * weight[:-1], table.self_row,
        float(weight[-1]),
    )  # fmt: skip

    embedding = network.tensor_embedding
    radial = (embedding.distance_proj1, embedding.distance_proj2, embedding.distance_proj3)
    filters = functional.linear(
        table.basis, torch.cat([linear.weight for linear in radial]), torch.cat([linear.bias for linear in radial])
    )
    centre, neighbour = embedding.of_elements(z)
    x, squared = _Embed.apply(filters, centre, neighbour, batch)
    factors = _chain(embedding.linears_scalar, embedding.act, embedding.init_norm(squared))
    x = _First.apply(_mix(embedding.linears_tensor, x), factors)
    for number, layer in enumerate(network.layers):
        filters = _chain(layer.linears_scalar, layer.act, table.basis)
        damped = _Exchange.apply(_mix(layer.linears_tensor[:3], x), filters, charge, batch)
        x = _Next.apply(x, _mix(layer.linears_tensor[3:], damped), charge, number == len(network.layers) - 1)
    return x
