"""Radial filters on a grid of distances, and when compiled messages may be used: what all networks share in training.

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

if TYPE_CHECKING:
    import numpy as np

    from torchmdnet_ext.models.neighbours import Graph

# share of the nodes even in exp(-alpha r), as the exponential radial basis is; the others are even in r
EXPONENTIAL_SHARE = 0.75
INTERVALS = (256, 384, 512, 768, 896, 1024, 1280, 1536, 2048, 3072, 4096)
# of the interpolated radial basis between the nodes, relative to its largest value; that of the filters is about half
TOLERANCE = 1e-6


@functools.cache
def numba_is_there() -> bool:
    """Whether numba is installed; it is imported when the first batch needs it."""
    return importlib.util.find_spec("numba") is not None


def reason_against_kernels(network: nn.Module, weight: Tensor, pos: Tensor, box: Tensor | None) -> str | None:
    """Say why no compiled messages can be used for a training step of a network with this `weight`; None if they can."""
    if not (network.training and torch.is_grad_enabled()):
        return "it is not training"
    if pos.requires_grad or (box is not None and box.requires_grad):
        return "the positions need a gradient"
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


class FilterTable(NamedTuple):
    """Where the radial filters of a batch are in a table of them.

    Attributes
    ----------
    basis : (T, K)
        Radial basis at the distances of the table.
    row : (P,) int64
        The first of the four rows that each pair interpolates between, `step` rows apart (0 where a row is exact).
    step : int
    coefficient : (P, 4)
        Weights of the four rows.
    self_row : int
        The row of the distance 0.
    """

    basis: Tensor
    row: Tensor
    step: int
    coefficient: Tensor
    self_row: int


def filter_table(network: Any, graph: Graph) -> FilterTable:
    """The table of a batch of a network with a `radial_grid` and a `distance_expansion`."""
    grid, n_pairs = network.radial_grid, len(graph.i)
    if graph.distance.dtype == torch.float32 and grid.suits(n_pairs):
        row, coefficient = stencil(graph.distance, network.cutoff_upper, grid.intervals)
        return FilterTable(grid.basis(), row, 1, coefficient.float(), 0)
    coefficient = graph.distance.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(n_pairs, 4)
    basis = network.distance_expansion(graph.filter_distances())
    return FilterTable(basis, torch.arange(n_pairs), 0, coefficient, n_pairs)


class SortedEdges(NamedTuple):
    """Both directions of every pair, sorted by target.

    Attributes
    ----------
    first : (N + 1,) int64
        The edges of atom i are `first[i]` to `first[i + 1]`.
    source, pair : (E,) int64
    direction : (E, 3)
        From target to source.
    """

    first: Tensor
    source: Tensor
    pair: Tensor
    direction: Tensor


def sorted_edges(graph: Graph) -> SortedEdges:
    """Sort the edges of a graph, without self loops, by their targets."""
    target, order = torch.cat([graph.i, graph.j]).sort(stable=True)
    first = torch.searchsorted(target, torch.arange(graph.n_atoms + 1))
    source = torch.cat([graph.j, graph.i])[order]
    pair = torch.arange(len(graph.i)).repeat(2)[order]
    direction = torch.cat([graph.direction, -graph.direction])[order]
    return SortedEdges(first, source, pair, direction)


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Numpy arrays that share the memory of tensors on a CPU.

    Raises
    ------
    ValueError
        If a tensor is not contiguous: kernels count elements from the start and would read others.
    """
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("A tensor that is not contiguous was passed to a compiled kernel. Call its contiguous().")
    return tuple(tensor.detach().numpy() for tensor in tensors)
