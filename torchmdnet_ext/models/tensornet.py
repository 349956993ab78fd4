"""TensorNet (Simeon & De Fabritiis, NeurIPS 2023, arXiv 2306.06482) in plain PyTorch, made smooth, with a vector read-out.

Each channel of an atom is a 3 x 3 matrix X = I + A + S: a multiple of the unit matrix, an antisymmetric and a symmetric
traceless part. Here it is kept as its 9 components in an orthonormal basis of these parts, 1 + 3 + 5 of them, so that a
linear map acts on each part, the squared norm is the sum of squares, and 3 x 3 matrices are made only to be multiplied.

Parameters, their names and, with `smooth_cutoff=False`, the values are those of `torchmdnet.models.tensornet`, which has no
read-out of vectors. An inversion of the positions turns X into its transpose, which the symmetric product YM + MY commutes
with, so the antisymmetric part changes its sign as the positions do: read out as a vector, it is a true one.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchmdnet_ext.models.building_blocks import ACTIVATIONS, RADIAL_BASES, CosineCutoff
from torchmdnet_ext.models.envelopes import DEFAULT_WIDTH, make_envelope
from torchmdnet_ext.models.fused_tensors import fused_tensors, reason_against
from torchmdnet_ext.models.neighbours import Graph, Neighbours
from torchmdnet_ext.models.radial_grid import RadialGrid
from torchmdnet_ext.models.tensor_components import (
    FLIP,
    PARTS,
    components,
    edge_components,
    like,
    matrices,
    product,
    spread,
    squared_norm,
)

PAIRS_AT_ONCE = 512  # on a CPU: their messages stay in its cache


class Exchange(torch.autograd.Function):
    """Messages of each pair in both directions: out[i] = sum over pairs of filter * y[j], and with i and j exchanged.

    `apply` takes y (N, 9, H), filters (P, 3, H), and i and j (P,). Autograd could do this, but on a CPU most time goes into
    writing rows of (P, 9, H) to memory and reading them back, so a portion of the pairs is processed from start to end.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, filters: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Sum the messages that reach each atom, (N, 9, H)."""
        ctx.save_for_backward(y, filters, i, j)
        out = torch.zeros_like(y)
        for some, at, to in Exchange.portions(filters, i, j):
            factors = spread(some)
            out.index_add_(0, at, factors * y.index_select(0, to))
            out.index_add_(0, to, factors * y.index_select(0, at))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to `y` and `filters`."""
        y, filters, i, j = ctx.saved_tensors
        by_filters = [filters[:0]]
        for _, at, to in Exchange.portions(filters, i, j):
            both = gradient.index_select(0, at) * y.index_select(0, to)
            both = both + gradient.index_select(0, to) * y.index_select(0, at)
            by_filters.append(torch.stack([both[:, part].sum(1) for part in PARTS], 1))
        # the messages are symmetric, so they are their own adjoint
        return Exchange.apply(gradient, filters, i, j), torch.cat(by_filters), None, None

    @staticmethod
    def portions(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield portions of tensors with a row for each pair."""
        step = PAIRS_AT_ONCE if rows[0].device.type == "cpu" else max(1, len(rows[0]))
        return zip(*(tensor.split(step) for tensor in rows), strict=True)


def exchange(y: Tensor, filters: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Call `Exchange.apply`, or do the same in plain operations while TorchScript is being traced, which cannot hold it."""
    if not torch.jit.is_tracing():
        return Exchange.apply(y, filters, i, j)
    factors = spread(filters)
    return torch.zeros_like(y).index_add(0, i, factors * y[j]).index_add(0, j, factors * y[i])


def mix(linears: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Mix the channels of components (N, 9, H), with one linear map for each part."""
    return torch.cat([linear(x[:, part]) for linear, part in zip(linears, PARTS, strict=True)], 1)


class TensorEmbedding(nn.Module):
    """The initial tensors, from the elements, directions and distances of each atom's neighbours."""

    def __init__(self, hidden_channels: int, num_rbf: int, activation: type[nn.Module], max_z: int) -> None:
        super().__init__()
        self.distance_proj1 = nn.Linear(num_rbf, hidden_channels)
        self.distance_proj2 = nn.Linear(num_rbf, hidden_channels)
        self.distance_proj3 = nn.Linear(num_rbf, hidden_channels)
        self.emb = nn.Embedding(max_z, hidden_channels)
        self.emb2 = nn.Linear(2 * hidden_channels, hidden_channels)
        self.linears_tensor = nn.ModuleList(nn.Linear(hidden_channels, hidden_channels, bias=False) for _ in PARTS)
        self.linears_scalar = nn.ModuleList(nn.Linear(hidden_channels * n, hidden_channels * (n + 1)) for n in (1, 2))
        self.init_norm = nn.LayerNorm(hidden_channels)
        self.act = activation()

    def of_elements(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What the elements of centre and neighbour add to the factor of an edge, (N, H) each: one linear map of both."""
        width = self.emb.embedding_dim
        elements = self.emb(z)
        centre = functional.linear(elements, self.emb2.weight[:, :width], self.emb2.bias)
        return centre, functional.linear(elements, self.emb2.weight[:, width:])

    def forward(self, z: Tensor, graph: Graph, rbf: Tensor, weight: Tensor) -> Tensor:
        """Components (N, 9, H).

        Parameters
        ----------
        rbf, weight : (P + 1, K), (P + 1, 1)
            Radial basis, and the factor of each message, at `Graph.filter_distances`.
        """
        radial = torch.stack([proj(rbf) for proj in (self.distance_proj1, self.distance_proj2, self.distance_proj3)], 1)
        radial = radial * weight.unsqueeze(1)
        centre, neighbour = self.of_elements(z)
        i, j = graph.i, graph.j
        message = spread(radial[:-1]) * edge_components(graph.direction).unsqueeze(2)
        towards_i = message * (centre[i] + neighbour[j]).unsqueeze(1)
        towards_j = message * (like(FLIP, message) * (centre[j] + neighbour[i]).unsqueeze(1))
        # a self loop has no direction
        own = math.sqrt(3) * radial[-1, :1] * (centre + neighbour)
        x = functional.pad(own.unsqueeze(1), (0, 0, 0, 8)).index_add(0, i, towards_i).index_add(0, j, towards_j)

        factors = self.init_norm(squared_norm(x).squeeze(1))
        for linear in self.linears_scalar:
            factors = self.act(linear(factors))
        return mix(self.linears_tensor, x) * spread(factors.unflatten(1, (3, -1)))


class Interaction(nn.Module):
    """One layer: messages of the neighbours' tensors, multiplied by each atom's own."""

    def __init__(self, hidden_channels: int, num_rbf: int, activation: type[nn.Module]) -> None:
        super().__init__()
        widths = (num_rbf, hidden_channels, 2 * hidden_channels, 3 * hidden_channels)
        self.linears_scalar = nn.ModuleList(nn.Linear(widths[k], widths[k + 1]) for k in range(3))
        self.linears_tensor = nn.ModuleList(nn.Linear(hidden_channels, hidden_channels, bias=False) for _ in range(6))
        self.act = activation()

    def forward(self, x: Tensor, graph: Graph, rbf: Tensor, weight: Tensor, charge: Tensor) -> Tensor:
        """Components (N, 9, H) -> (N, 9, H).

        Parameters
        ----------
        rbf, weight : (P + 1, K), (P + 1, 1)
            As for `TensorEmbedding`.
        charge : 1 or (N, 1, 1, 1)
            Factor of the products, 1 for a neutral molecule.
        """
        filters = rbf
        for linear in self.linears_scalar:
            filters = self.act(linear(filters))
        # a filter depends on the distance only: one for both directions of a pair
        filters = (filters * weight).unflatten(1, (3, -1))
        x = x / (squared_norm(x) + 1)
        y = mix(self.linears_tensor[:3], x).to(filters.dtype)  # they differ where precisions are mixed
        message = y * spread(filters[-1:]) + exchange(y, filters[:-1], graph.i, graph.j)

        y, message = matrices(y), matrices(message)
        update = components(charge * (product(y, message) + product(message, y)))
        update = mix(self.linears_tensor[3:], update / (squared_norm(update) + 1))
        matrix = matrices(update)
        return x + update + components(charge * product(matrix, matrix))


class SmoothTensorNet(nn.Module):
    """TensorNet whose output has two continuous derivatives when pairs cross the cutoff.

    Parameters
    ----------
    hidden_channels, num_layers, num_rbf, rbf_type, trainable_rbf, activation, max_z
        As everywhere in TorchMD-Net.
    cutoff_upper : float
        In angstrom.
    equivariance_invariance_group : str
        "O(3)": the other group that TorchMD-Net's own TensorNet has, "SO(3)", has no true vectors to read out.
    smooth_cutoff, envelope_width
        The C2 envelope on every message. Without it forces have a kink where a pair crosses the cutoff.

    Attributes
    ----------
    compiled : bool
        Whether training on a CPU may use the compiled layers of `fused_tensors` (the default); they are used where numba is
        installed and the positions need no gradient, and have no second derivatives.

    Raises
    ------
    ValueError
        If `equivariance_invariance_group` is not "O(3)", or `cutoff_lower` is not 0.
    """

    def __init__(
        self,
        hidden_channels: int = 128,
        num_layers: int = 2,
        num_rbf: int = 32,
        rbf_type: str = "expnorm",
        trainable_rbf: bool = False,
        activation: str = "silu",
        max_z: int = 128,
        cutoff_upper: float = 4.5,
        cutoff_lower: float = 0.0,
        equivariance_invariance_group: str = "O(3)",
        smooth_cutoff: bool = True,
        envelope_width: float = DEFAULT_WIDTH,
        box_vecs: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, value, only in (
            ("equivariance_invariance_group", equivariance_invariance_group, "O(3)"),
            ("cutoff_lower", cutoff_lower, 0.0),
        ):
            if value != only:
                raise ValueError(f"{name} must be {only} for this network, but was {value}. Remove the setting.")
        self.hidden_channels = int(hidden_channels)
        self.max_z = int(max_z)
        self.cutoff_upper = float(cutoff_upper)
        self.smooth_cutoff = bool(smooth_cutoff)
        self.envelope_width = float(envelope_width)
        act_class = ACTIVATIONS[activation]
        self.distance = Neighbours(cutoff_upper, box_vecs)
        self.distance_expansion = RADIAL_BASES[rbf_type](cutoff_upper, num_rbf, trainable_rbf)
        self.compiled = True
        self.radial_grid = RadialGrid(self.distance_expansion, self.cutoff_upper)
        self.cutoff = CosineCutoff(cutoff_upper)
        self.envelope = make_envelope(smooth_cutoff, cutoff_upper, self.envelope_width)
        self.tensor_embedding = TensorEmbedding(hidden_channels, num_rbf, act_class, max_z)
        self.layers = nn.ModuleList(Interaction(hidden_channels, num_rbf, act_class) for _ in range(num_layers))
        self.out_norm = nn.LayerNorm(3 * hidden_channels)
        self.linear = nn.Linear(3 * hidden_channels, hidden_channels)
        self.act = act_class()
        self.to(dtype)

    def reset_parameters(self) -> None:
        """Draw new initial parameters of all layers."""
        modules: Iterator[Any] = self.modules()
        for module in modules:
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def message_weights(self, distance: Tensor) -> Tensor:
        """(P, 1) factors of the messages at distances (P,) in angstrom."""
        return (self.cutoff(distance) * self.envelope(distance)).unsqueeze(1)

    def forward(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor,
        box: Tensor | None = None,
        q: Tensor | None = None,
        s: Tensor | None = None,
        pairs: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Scalars (N, H) and vectors (N, 3, H) of atoms `z` (N,) at `pos` (N, 3) in angstrom.

        `q` (B,) are the total charges of the molecules. Returns x, v, z, pos, batch as every representation model of
        TorchMD-Net does.
        """
        graph = self.distance(pos, batch, box, pairs)
        charge = None if q is None else 1 + 0.1 * q[batch].to(pos)
        if self.compiled and reason_against(self, pos, box) is None:
            tensors = fused_tensors(self, z, graph, charge).transpose(0, 1)
        else:
            distance = graph.filter_distances()
            rbf, weight = self.distance_expansion(distance), self.message_weights(distance)
            tensors = self.tensor_embedding(z, graph, rbf, weight)
            factor = 1.0 if charge is None else charge[:, None, None, None]
            for layer in self.layers:
                tensors = layer(tensors, graph, rbf, weight, factor)
        norms = torch.cat([squared_norm(tensors[:, part]) for part in PARTS], 2).squeeze(1)
        x = self.act(self.linear(self.out_norm(norms)))
        return x, tensors[:, PARTS[1]] * math.sqrt(0.5), z, pos, batch
