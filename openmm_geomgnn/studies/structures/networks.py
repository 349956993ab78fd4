"""Networks from the residues of a structure to scores of classes, for `model: residues` of `torchmd-train`.

All take kinds of residues (N,), C-alpha atoms (N, 3) in angstrom, the structure of each residue (N,), ascending, and tokens
(N, 4, H) or None, and return scores (structures, classes), invariant to rotation and translation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GINEConv, global_mean_pool
from torch_geometric.utils import scatter, to_dense_batch

from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.mixers.equivariant import GVP, FeedForward, InvariantRows, RowNorm
from openmm_geomgnn.cv.mixers.features import NORM_EPSILON, norms
from openmm_geomgnn.cv.mixers.message_passing import offset_features
from openmm_geomgnn.errors import GeomGNNError
from torchmdnet_ext.models.neighbours import Neighbours

KINDS = 64  # of residues, that an embedding has room for
_RADIAL, _OFFSET = 16, 16  # features of a distance in space and in sequence
_LONGEST = 32  # residues apart in sequence, beyond which all are alike


class TokenNorm(nn.Module):
    """Tokens of zero mean and unit variance (scalars) or unit mean square (vectors), by running means of the training."""

    square: Tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.scalars = nn.BatchNorm1d(channels, affine=False, momentum=momentum)
        self.momentum = momentum
        self.register_buffer("square", torch.ones(channels))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (N, H) and vectors (N, 3, H) of tokens (N, 4, H)."""
        vectors = tokens[:, 1:]
        square = self.square
        if self.training:
            square = vectors.detach().square().sum(1).mean(0)
            self.square.lerp_(square, self.momentum)
        return self.scalars(tokens[:, 0]), vectors * torch.rsqrt(square + NORM_EPSILON**2)


class ResidueEdges(nn.Module):
    """Pairs of residues whose C-alpha atoms are near each other, with features of their distance in space and sequence."""

    centres: Tensor
    width = _RADIAL + _OFFSET

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.neighbours = Neighbours(cutoff)
        self.register_buffer("centres", torch.linspace(2.0, cutoff, _RADIAL), persistent=False)

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Index (2, E) of senders and receivers, features (E, width), unit vectors (E, 3) from receiver to sender."""
        graph = self.neighbours(pos, batch)
        index = torch.stack([torch.cat([graph.j, graph.i]), torch.cat([graph.i, graph.j])])
        spacing = self.centres[1] - self.centres[0]
        radial = torch.exp(-(((graph.distance[:, None] - self.centres) / spacing) ** 2))
        offset = (index[0] - index[1]).clamp(-_LONGEST, _LONGEST)
        features = torch.cat([radial.repeat(2, 1), offset_features(offset).to(pos.dtype)], 1)
        return index, features, torch.cat([graph.direction, -graph.direction])


def _scores(width: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, classes))


def _needed(tokens: Tensor | None, channels: int) -> Tensor:
    if tokens is None or tokens.shape[-1] != channels:
        found = "none" if tokens is None else f"tokens of {tokens.shape[-1]}"
        raise GeomGNNError(f"The network was made for tokens of {channels} channels, but the structures have {found}.")
    return tokens


class AlphaCarbonNetwork(nn.Module):
    """A plain graph network on C-alpha atoms: distances in space and sequence, GINE convolutions, a mean over residues.

    The convolution is that of Hu et al. 2020, arXiv 1905.12265, as PyTorch Geometric has it.

    Parameters
    ----------
    classes : int
    token_channels : int
        H of the tokens that join the kind of each residue as scalars and norms of vectors; 0 is without tokens.
    width, layers : int
    cutoff : float
        Angstrom.
    """

    def __init__(
        self, classes: int, token_channels: int = 0, width: int = 64, layers: int = 3, cutoff: float = 10.0
    ) -> None:
        super().__init__()
        self.channels = token_channels
        self.embed = nn.Embedding(KINDS, width)
        if token_channels:
            self.token_norm = TokenNorm(token_channels)
            self.embed_tokens = nn.Linear(2 * token_channels, width)
        self.edges = ResidueEdges(cutoff)
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(layers):
            update = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            self.convolutions.append(GINEConv(update, edge_dim=self.edges.width))
            self.norms.append(nn.LayerNorm(width))
        self.scores = _scores(width, classes)

    def forward(self, residue: Tensor, pos: Tensor, batch: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Scores (structures, classes), see the module."""
        rows = self.embed(residue)
        if self.channels:
            scalars, vectors = self.token_norm(_needed(tokens, self.channels))
            rows = rows + self.embed_tokens(torch.cat([scalars, norms(vectors)], 1))
        index, edges, _ = self.edges(pos, batch)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            rows = rows + convolution(norm(rows), index, edges)
        return self.scores(global_mean_pool(rows, batch))


class GVPNetwork(nn.Module):
    """Geometric vector perceptrons on C-alpha atoms (Jing et al. 2021, arXiv 2009.01411), with a mean over residues.

    A residue begins with its kind and the unit vectors to the residues before and after it; tokens add scalars and vectors.
    Triple products of vectors, in place of the paper's backbone torsions, tell mirror images apart.

    Parameters
    ----------
    classes, token_channels, width, layers, cutoff
        As in `AlphaCarbonNetwork`; tokens join with their vectors, not with the norms of these.
    vector_channels : int
        Vectors of a residue between the layers.
    """

    def __init__(
        self,
        classes: int,
        token_channels: int = 0,
        width: int = 64,
        layers: int = 3,
        cutoff: float = 10.0,
        vector_channels: int = 16,
    ) -> None:
        super().__init__()
        self.channels = token_channels
        self.embed = nn.Embedding(KINDS, width)
        self.chain = nn.Linear(2, vector_channels, bias=False)
        if token_channels:
            self.token_norm = TokenNorm(token_channels)
            self.embed_tokens = nn.Linear(token_channels, width)
            self.turn_tokens = nn.Linear(token_channels, vector_channels, bias=False)
        self.edges = ResidueEdges(cutoff)
        self.norms, self.messages, self.updates = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(layers):
            self.norms.append(RowNorm(width))
            scalars, vectors = 2 * width + self.edges.width, 2 * vector_channels + 1
            self.messages.append(GVP(scalars, vectors, width, vector_channels, True))
            self.updates.append(FeedForward(width, vector_channels, 2 * width, True))
        self.invariants = InvariantRows(width, vector_channels, True)
        self.scores = _scores(self.invariants.width, classes)

    def forward(self, residue: Tensor, pos: Tensor, batch: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Scores (structures, classes), see the module."""
        rows, vectors = self.embed(residue), self.chain(_along_the_chain(pos, batch))
        if self.channels:
            scalars, arrows = self.token_norm(_needed(tokens, self.channels))
            rows, vectors = rows + self.embed_tokens(scalars), vectors + self.turn_tokens(arrows)
        (sender, receiver), edges, direction = self.edges(pos, batch)
        for norm, message, update in zip(self.norms, self.messages, self.updates, strict=True):
            own, arrows = norm(rows, vectors)
            ends = torch.cat([own[receiver], own[sender], edges], 1)
            sent, turned = message(ends, torch.cat([arrows[receiver], arrows[sender], direction[..., None]], 2))
            rows = rows + scatter(sent, receiver, 0, len(rows), "mean")
            vectors = vectors + scatter(turned, receiver, 0, len(rows), "mean")
            rows, vectors = update(rows, vectors)
        return self.scores(global_mean_pool(self.invariants(rows, vectors), batch))


def _along_the_chain(pos: Tensor, batch: Tensor) -> Tensor:
    """Unit vectors (N, 3, 2) to the residue before and the one after in the same structure, 0 where there is none."""
    step = nn.functional.normalize(pos[1:] - pos[:-1], dim=1) * (batch[1:] == batch[:-1])[:, None]
    none = pos.new_zeros(1, 3)
    return torch.stack([torch.cat([none, -step]), torch.cat([step, none])], 2)[: len(pos)]


class MixerNetwork(nn.Module):
    """Any mixer of tokens, of this package or another, with a read-out that pools; it sees no coordinates but the tokens.

    Parameters
    ----------
    classes : int
    token_channels : int
        H of the tokens.
    mixer : str
        Its name, see `cv.mixers`.
    pool : str
        "mean", "sum" or "attention" over the residues.
    settings
        Of the mixer.
    """

    def __init__(
        self, classes: int, token_channels: int, mixer: str = "message-passing", pool: str = "mean", **settings: Any
    ) -> None:
        super().__init__()
        self.channels = token_channels
        self.token_norm = TokenNorm(token_channels)
        # what the mixer's own statistics would do, `token_norm` does: they stay 0 and 1
        self.mixer = make_mixer(mixer, None, token_channels, pool=pool, out_features=classes, **settings)

    def forward(self, residue: Tensor, pos: Tensor, batch: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Scores (structures, classes), see the module."""
        scalars, vectors = self.token_norm(_needed(tokens, self.channels))
        dense, mask = to_dense_batch(torch.cat([scalars[:, None], vectors], 1), batch)
        return self.mixer(dense, mask)
