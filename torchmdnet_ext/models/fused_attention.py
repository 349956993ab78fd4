"""The messages of the equivariant transformer, compiled with Numba for training on a CPU.

A radial filter is a function of one distance, and if positions need no gradient, as in denoising, only its values matter.
So all filters are evaluated on a fixed grid of distances, at a cost that does not depend on the number of pairs, and each
pair interpolates between four nodes; gradients reach the nodes by the exact transpose. In float64, and in batches with fewer
pairs than nodes, the filters are evaluated at the distances of the pairs instead.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

if TYPE_CHECKING:
    import numpy as np

    from torchmdnet_ext.models.neighbours import Graph

# share of the nodes even in exp(-alpha r), as the exponential radial basis is; the others are even in r
EXPONENTIAL_SHARE = 0.75
INTERVALS = (256, 384, 512, 768, 896, 1024, 1280, 1536, 2048, 3072, 4096)
# of the interpolated radial basis between the nodes, relative to its largest value; that of the filters is about half
TOLERANCE = 1e-6
LANES = 8  # channels of a head come in multiples of this; WIDTH of `kernels.lanes`, which cannot be imported without numba


@functools.cache
def numba_is_there() -> bool:
    """Whether numba is installed; it is imported when the first batch needs it."""
    return importlib.util.find_spec("numba") is not None


def reason_against(network: Any, pos: Tensor, box: Tensor | None) -> str | None:
    """Say why the compiled messages cannot be used for a training step; None if they can."""
    layer = network.attention_layers[0] if len(network.attention_layers) else None
    weight = network.embedding.weight
    if not (network.training and torch.is_grad_enabled()):
        return "it is not training"
    if pos.requires_grad or (box is not None and box.requires_grad):
        return "the positions need a gradient"
    if layer is None or layer.head_dim % LANES:
        return f"the channels of a head are not a multiple of {LANES}"
    if network.attn_activation not in ("silu", "swish"):
        return "attn_activation is not silu"
    if weight.device.type != "cpu" or pos.device.type != "cpu":
        return "it is not on a CPU"
    if weight.dtype not in (torch.float32, torch.float64) or pos.dtype != weight.dtype:
        return "it is neither in float32 nor in float64"
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "it runs in mixed precision or is being compiled"
    if not numba_is_there():
        return "numba is not installed"
    return None


def _scaled(distance: Tensor, cutoff: float) -> Tensor:
    """u(r) from 0 at 0 to 1 at the cutoff, at which nodes are even."""
    alpha = 5.0 / cutoff
    steepness = EXPONENTIAL_SHARE / -math.expm1(-alpha * cutoff)
    return steepness * -torch.expm1(-alpha * distance) + (1 - EXPONENTIAL_SHARE) / cutoff * distance


@functools.lru_cache(maxsize=32)
def grid_nodes(cutoff: float, intervals: int) -> Tensor:
    """(intervals + 1,) distances from 0 to the cutoff in angstrom, float64."""
    u = torch.arange(intervals + 1, dtype=torch.float64) / intervals
    low, high = torch.zeros_like(u), torch.full_like(u, cutoff)
    for _ in range(60):  # bisection: u increases with r
        middle = (low + high) / 2
        below = _scaled(middle, cutoff) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    nodes = (low + high) / 2
    nodes[0], nodes[-1] = 0.0, cutoff
    return nodes


def stencil(distance: Tensor, cutoff: float, intervals: int) -> tuple[Tensor, Tensor]:
    """Compute the first of four nodes around each distance (P,) and the weights (P, 4) of a cubic through them, float64."""
    s = _scaled(distance.double(), cutoff) * intervals
    row = (s.floor().long() - 1).clamp(0, intervals - 3)
    t = s - row
    t1, t2, t3 = t - 1, t - 2, t - 3
    return row, torch.stack([t1 * t2 * t3 / -6, t * t2 * t3 / 2, t * t1 * t3 / -2, t * t1 * t2 / 6], 1)


def grid_error(expansion: nn.Module, cutoff: float, intervals: int) -> float:
    """Largest error of an interpolated radial basis half way between the nodes, relative to its largest value."""
    nodes = grid_nodes(cutoff, intervals)
    middle = (nodes[1:] + nodes[:-1]) / 2
    with torch.no_grad():
        values, exact = expansion(nodes), expansion(middle)
    row, weight = stencil(middle, cutoff, intervals)
    interpolated = (weight[:, :, None] * values[row[:, None] + torch.arange(4)]).sum(1)
    return float((interpolated - exact).abs().max() / exact.abs().max())


class RadialGrid:
    """The coarsest grid on which a network's radial basis is interpolated well, and the basis at its nodes.

    Chosen again whenever a trainable basis has changed by more than a twentieth.
    """

    def __init__(self, expansion: nn.Module, cutoff: float) -> None:
        self.expansion, self.cutoff = expansion, cutoff
        self.intervals: int | None = None  # None if the basis changes too fast for any grid
        self._state: Tensor | None = None
        self._basis = torch.empty(0)

    def suits(self, n_pairs: int) -> bool:
        """Update the grid; return whether there is one with fewer nodes than there are pairs."""
        self._update()
        return self.intervals is not None and self.intervals < n_pairs

    def basis(self) -> Tensor:
        """(intervals + 1, K) radial basis at the nodes, float32."""
        if self.intervals is not None and self._trainable():
            return self.expansion(grid_nodes(self.cutoff, self.intervals).float())
        return self._basis

    def _trainable(self) -> bool:
        return any(parameter.requires_grad for parameter in self.expansion.parameters())

    def _update(self) -> None:
        state = torch.cat([t.detach().reshape(-1) for t in (*self.expansion.parameters(), *self.expansion.buffers())])
        tolerance = 0.05 if self._trainable() else 0.0
        if self._state is not None and torch.allclose(state, self._state, rtol=tolerance, atol=0.0):
            return
        self._state = state
        double = copy.deepcopy(self.expansion).double()
        errors = ((intervals, grid_error(double, self.cutoff, intervals)) for intervals in INTERVALS)
        self.intervals = next((intervals for intervals, error in errors if error < TOLERANCE), None)
        if self.intervals is not None:
            with torch.no_grad():
                self._basis = double(grid_nodes(self.cutoff, self.intervals)).float()


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)


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
        i, j, row, geometry, self_geometry = _arrays(self.i, self.j, self.row, self.geometry, self.self_geometry)
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
            *pairs.arrays(), *_arrays(table, qkv, vec), gated, (0,) * heads, (0,) * (channels // heads),
            *_arrays(attention, self_attention, total_x, total_v),
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
            *pairs.arrays(), *_arrays(table, qkv, vec), gated, (0,) * heads, (0,) * (qkv.shape[1] // 5 // heads),
            *_arrays(attention, self_attention, g_x.contiguous(), g_v.contiguous(), *gradients),
        )  # fmt: skip
        g_qkv, g_vec, g_table = gradients
        return g_qkv, g_vec if gated else None, g_table, None, None


class FusedMessages:
    """Messages of one batch; an instance stands in for `equivariant_transformer.PlainMessages`."""

    def __init__(self, network: Any, graph: Graph) -> None:
        dtype, cutoff = graph.distance.dtype, network.cutoff_upper
        n_pairs = len(graph.i)
        grid = network.radial_grid
        if dtype == torch.float32 and grid.suits(n_pairs):
            row, coefficient = stencil(graph.distance, cutoff, grid.intervals)
            coefficient, step, self_row = coefficient.to(dtype), 1, 0
            self.basis = grid.basis()
        else:
            row = torch.arange(n_pairs)
            coefficient = graph.distance.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(n_pairs, 4)
            step, self_row = 0, n_pairs
            self.basis = network.distance_expansion(graph.filter_distances())
        weight = network.message_weights(graph.filter_distances())
        weight = torch.stack([weight[:, 0] * weight[:, 1], weight[:, 1]], 1)
        geometry = torch.cat([coefficient, weight[:-1], graph.direction], 1)
        self_geometry = functional.pad(weight[-1:], (4, 3))
        self.pairs = Pairs(
            graph.i.long().contiguous(), graph.j.long().contiguous(), row, step, geometry, self_row, self_geometry
        )

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
