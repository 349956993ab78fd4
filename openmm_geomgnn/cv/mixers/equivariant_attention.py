"""Attention between residue tokens that carries vectors as well as scalars."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import absent_keys, attend, learned_positions
from .base import LearnedMixer, LearnedSettings
from .checks import initialisation, multiple_of_heads, positive_int
from .equivariant import FeedForward, InvariantRows, RowNorm, check_chirality
from .pooling import Readout
from .standardise import VectorScale


class EquivariantSelfAttention(nn.Module):
    """Multi-head attention whose values are scalars and vectors.

    Its logits are inner products of scalars plus those of vectors, which are invariant.
    """

    def __init__(self, width: int, vector_channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.scalars = nn.Linear(width, 3 * width)
        self.vectors = nn.Linear(vector_channels, 3 * vector_channels, bias=False)
        self.scalars_out = nn.Linear(width, width)
        self.vectors_out = nn.Linear(vector_channels, vector_channels, bias=False)

    def forward(self, scalars: Tensor, vectors: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scalars (F, R, S) and vectors (F, R, 3, C), mixed; `bias` (F, R) is that of `attend`."""
        frames, tokens, width = scalars.shape
        channels = vectors.shape[-1] // self.heads
        # a head's row: its scalars, then its vectors as 3 * C / heads numbers
        parts = self.scalars(scalars).reshape(frames, tokens, 3, self.heads, width // self.heads)
        arrows = self.vectors(vectors).reshape(frames, tokens, 3, 3, self.heads, channels)
        arrows = arrows.permute(0, 1, 3, 4, 2, 5).flatten(-2)  # query, key or value before the axis
        query, key, value = torch.cat([parts, arrows], -1).permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value, bias).transpose(1, 2)
        parts, arrows = mixed.split([width // self.heads, 3 * channels], -1)
        arrows = arrows.unflatten(-1, (3, channels)).transpose(2, 3)
        return self.scalars_out(parts.flatten(2)), self.vectors_out(arrows.flatten(3))


class EquivariantLayer(nn.Module):
    """Attention, then a geometric vector perceptron on each row; both normalise first and add to their input."""

    def __init__(self, width: int, vector_channels: int, heads: int, feedforward: int, chirality: bool):
        super().__init__()
        self.norm = RowNorm(width)
        self.attention = EquivariantSelfAttention(width, vector_channels, heads)
        self.feedforward = FeedForward(width, vector_channels, feedforward, chirality)

    def forward(self, scalars: Tensor, vectors: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scalars (F, R, S) and vectors (F, R, 3, C), mixed; `bias` (F, R) is that of `attend`."""
        more_scalars, more_vectors = self.attention(*self.norm(scalars, vectors), bias)
        return self.feedforward(scalars + more_scalars, vectors + more_vectors)


@dataclass(frozen=True, kw_only=True)
class EquivariantAttentionSettings(LearnedSettings):
    """Settings of `EquivariantAttentionMixer`.

    Attributes
    ----------
    width : int
        Scalars of a token inside the encoder; a multiple of `heads`.
    vector_channels : int
        Vectors of a token inside the encoder; a multiple of `heads`.
    heads : int
        Attention heads.
    layers : int
        Encoder layers.
    feedforward : int
        Width of each layer's feed-forward network.
    """

    width: int = 64
    vector_channels: int = 16
    heads: int = 4
    layers: int = 2
    feedforward: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        multiple_of_heads("width", self.width, self.heads)
        multiple_of_heads("vector_channels", self.vector_channels, self.heads)
        check_chirality(self.vector_channels, self.chirality)
        positive_int("layers", self.layers)
        positive_int("feedforward", self.feedforward)


class EquivariantAttentionMixer(LearnedMixer):
    """Transformer encoder whose rows are scalars and vectors, so that it sees how residues are turned to one another.

    `attention` gets the lengths of the vectors only, and two residues that turn as rigid bodies change none of them.
    Here vectors are compared (in the logits) and added up (in the values) before their invariants are taken. Fuchs et
    al. 2020, arXiv 2006.10503 (SE(3)-Transformer) and Liao & Smidt 2023, arXiv 2206.11990 (Equiformer) do so with
    higher orders and with positions; vectors and dot products suffice for tokens of orders 0 and 1.

    Parameters
    ----------
    n_tokens, hidden_channels
        R and H of the tokens (F, R, 4, H); see `Mixer`. Without a fixed R there is no embedding of the position.
    settings
        See `EquivariantAttentionSettings`.
    """

    name = "equivariant-attention"
    settings_class = EquivariantAttentionSettings

    def __init__(self, n_tokens: int | None, hidden_channels: int, settings: EquivariantAttentionSettings):
        super().__init__(n_tokens, hidden_channels, settings)
        width, vectors = settings.width, settings.vector_channels
        self.scale = VectorScale(hidden_channels)
        with initialisation(settings.seed):
            self.embed = nn.Linear(self.n_features, width)
            self.embed_vectors = nn.Linear(hidden_channels, vectors, bias=False)
            self.position = learned_positions(n_tokens, width)
            self.encoder = nn.ModuleList(
                EquivariantLayer(width, vectors, settings.heads, settings.feedforward, self.chirality)
                for _ in range(settings.layers)
            )
            self.invariants = InvariantRows(width, vectors, self.chirality)
            self.readout = Readout(n_tokens, self.invariants.width, settings.pool, settings.readout, self.out_features)

    def mix(self, features: Tensor, vectors: Tensor, mask: Tensor | None) -> Tensor:
        """See `Mixer.mix`."""
        rows, vectors = self.embed(features), self.embed_vectors(vectors)
        if self.position is not None:
            rows = rows + self.position
        bias = absent_keys(rows, mask)
        for layer in self.encoder:
            rows, vectors = layer(rows, vectors, bias)
        return self.readout(self.invariants(rows, vectors), mask)
