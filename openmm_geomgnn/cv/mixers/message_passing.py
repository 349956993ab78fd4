"""Messages between residues that are near in sequence, by geometric vector perceptrons."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import LearnedMixer, LearnedSettings
from .checks import initialisation, positive_int
from .equivariant import GVP, FeedForward, InvariantRows, RowNorm, check_chirality
from .pooling import Readout
from .standardise import VectorScale

_OFFSET_FEATURES = 16  # sines and cosines of the distance in sequence


def sequence_graph(tokens: int, neighbours: int | str, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Senders (R, K) of the messages to each of R = `tokens` tokens, and which of these exist, (R, K) bool.

    `neighbours` tokens on each side in sequence, or with "all" every other token.
    """
    place = torch.arange(tokens, device=device)[:, None]
    if isinstance(neighbours, str) or neighbours >= tokens - 1:
        others = torch.arange(tokens - 1, device=device)[None]
        sender = others + (others >= place)
        return sender, torch.ones_like(sender, dtype=torch.bool)
    offsets = torch.arange(1, neighbours + 1, device=device)
    sender = place + torch.cat([-offsets.flip(0), offsets])
    return sender.clamp(0, tokens - 1), (sender >= 0) & (sender < tokens)


def offset_features(offset: Tensor) -> Tensor:
    """Sines and cosines (..., _OFFSET_FEATURES) of distances in sequence (Vaswani et al. 2017)."""
    wavelength = 10000 ** (torch.arange(0, _OFFSET_FEATURES, 2, device=offset.device) / _OFFSET_FEATURES)
    angle = offset[..., None] / wavelength
    return torch.cat([angle.sin(), angle.cos()], -1)


def ends(rows: Tensor, sender: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows (F, R, ...), those of the receivers and of the senders (R, K) of all messages, each (F, R, K, ...)."""
    theirs = rows.index_select(1, sender.flatten()).unflatten(1, sender.shape)
    return rows.unsqueeze(2).expand_as(theirs), theirs


class MessageLayer(nn.Module):
    """The mean of the neighbours' messages, then a perceptron on each row; both add to their input."""

    def __init__(self, width: int, vector_channels: int, feedforward: int, chirality: bool):
        super().__init__()
        self.norm = RowNorm(width)
        edge = 2 * width + vector_channels + _OFFSET_FEATURES
        self.message = GVP(edge, 2 * vector_channels, width, vector_channels, chirality)
        self.scalars_out = nn.Linear(width, width)
        self.vectors_out = nn.Linear(vector_channels, vector_channels, bias=False)
        self.feedforward = FeedForward(width, vector_channels, feedforward, chirality)

    def forward(
        self, scalars: Tensor, vectors: Tensor, sender: Tensor, offsets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scalars (F, R, S) and vectors (F, R, 3, C) after a round of messages.

        Parameters
        ----------
        sender
            (R, K), see `sequence_graph`.
        offsets
            (R, K, n), see `offset_features`.
        weights
            (F, R, K) of the messages to each token.
        """
        own, arrows = self.norm(scalars, vectors)
        (own, theirs), (arrows, their_arrows) = ends(own, sender), ends(arrows, sender)
        products = (arrows * their_arrows).sum(-2)  # of each channel's two vectors: how they are turned
        edges = torch.cat([own, theirs, products, offsets.expand(len(own), -1, -1, -1)], -1)
        edge_vectors = torch.cat([arrows, their_arrows], -1)
        messages, arrows = self.message(edges, edge_vectors)
        messages = (messages * weights[..., None]).sum(2)
        arrows = (arrows * weights[..., None, None]).sum(2)
        return self.feedforward(scalars + self.scalars_out(messages), vectors + self.vectors_out(arrows))


@dataclass(frozen=True, kw_only=True)
class MessagePassingSettings(LearnedSettings):
    """Settings of `MessagePassingMixer`.

    Attributes
    ----------
    width : int
        Scalars of a token between the layers.
    vector_channels : int
        Vectors of a token between the layers.
    neighbours : int or str
        Tokens on each side in sequence that send messages, or "all" for every token (R*(R - 1) messages a layer).
    layers : int
        Rounds of messages.
    feedforward : int
        Width of each round's feed-forward network.
    """

    width: int = 64
    vector_channels: int = 16
    neighbours: int | str = 3
    layers: int = 2
    feedforward: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours != "all":
            positive_int("neighbours (where it is not 'all')", self.neighbours)
        positive_int("width", self.width)
        positive_int("vector_channels", self.vector_channels)
        check_chirality(self.vector_channels, self.chirality)
        positive_int("layers", self.layers)
        positive_int("feedforward", self.feedforward)


class MessagePassingMixer(LearnedMixer):
    """Message passing by geometric vector perceptrons on the residues (Jing et al. 2021, arXiv 2009.01411).

    A message is made of the scalars and vectors of both its ends, so it knows how the two residues are turned to one
    another, and of their distance in sequence. The graph is one of the sequence and is fixed: a graph of who is near in
    space would change during a simulation and would need coordinates, and a token already holds what is near in space,
    up to the encoder's cutoff. Neighbours are counted along the list of tokens, also from one chain to the next.

    Parameters
    ----------
    n_tokens, hidden_channels
        R and H of the tokens (F, R, 4, H); see `Mixer`.
    settings
        See `MessagePassingSettings`.
    """

    name = "message-passing"
    settings_class = MessagePassingSettings

    def __init__(self, n_tokens: int | None, hidden_channels: int, settings: MessagePassingSettings):
        super().__init__(n_tokens, hidden_channels, settings)
        width, vectors = settings.width, settings.vector_channels
        self.neighbours = settings.neighbours
        self.scale = VectorScale(hidden_channels)
        with initialisation(settings.seed):
            self.embed = nn.Linear(self.n_features, width)
            self.embed_vectors = nn.Linear(hidden_channels, vectors, bias=False)
            self.layers = nn.ModuleList(
                MessageLayer(width, vectors, settings.feedforward, self.chirality) for _ in range(settings.layers)
            )
            self.invariants = InvariantRows(width, vectors, self.chirality)
            self.readout = Readout(n_tokens, self.invariants.width, settings.pool, settings.readout, self.out_features)

    def mix(self, features: Tensor, vectors: Tensor, mask: Tensor | None) -> Tensor:
        """See `Mixer.mix`."""
        frames, tokens, _ = features.shape
        sender, exists = sequence_graph(tokens, self.neighbours, features.device)
        offsets = offset_features(sender - torch.arange(tokens, device=sender.device)[:, None]).to(features.dtype)
        exists = exists.expand(frames, -1, -1) if mask is None else exists & mask[:, sender]
        weights = exists / exists.sum(2, keepdim=True).clamp(min=1)  # of a mean over the neighbours that exist
        weights = weights.to(features.dtype)
        rows, vectors = self.embed(features), self.embed_vectors(vectors)
        for layer in self.layers:
            rows, vectors = layer(rows, vectors, sender, offsets, weights)
        return self.readout(self.invariants(rows, vectors), mask)
