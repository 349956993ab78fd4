"""Self-attention over residue tokens (Vaswani et al. 2017, in the pre-normalised form)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import LearnedMixer, LearnedSettings
from .checks import initialisation, multiple_of_heads, positive_int
from .pooling import Readout


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention of heads (F, heads, R, d) in elementary operations; `bias` (F, R) adds to each key's logits.

    torch's fused kernels have no second derivative on the CPU, which a gradient penalty needs.
    """
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias[:, None, None, :]
    return torch.softmax(logits, dim=-1) @ value


def absent_keys(rows: Tensor, mask: Tensor | None) -> Tensor | None:
    """The bias (F, R) with which no row attends to a token that does not exist."""
    return None if mask is None else rows.new_zeros(mask.shape).masked_fill(~mask, float("-inf"))


def position_vectors(n_tokens: int, width: int) -> nn.Parameter:
    """A vector (n_tokens, width) to be learned for each token."""
    return nn.Parameter(0.1 * torch.randn(n_tokens, width))


def learned_positions(n_tokens: int | None, width: int) -> nn.Parameter | None:
    """A vector to be learned for each of a fixed number of tokens; None where the number is not fixed."""
    return None if n_tokens is None else position_vectors(n_tokens, width)


class SelfAttention(nn.Module):
    """Multi-head softmax attention; torch's own layer takes another path in evaluation than in training."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """Rows (F, R, n), mixed by attention; `bias` (F, R) is that of `attend`."""
        frames, tokens, width = rows.shape
        split = self.query_key_value(rows).reshape(frames, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value, bias)
        return self.out(mixed.transpose(1, 2).reshape(frames, tokens, width))


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)); no dropout, since a CV is a function."""

    def __init__(self, width: int, heads: int, feedforward: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(nn.Linear(width, feedforward), nn.GELU(), nn.Linear(feedforward, width))

    def forward(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """Rows (F, R, n) of the layer; `bias` (F, R) is that of `attend`."""
        rows = rows + self.attention(self.attention_norm(rows), bias)
        return rows + self.feedforward(self.feedforward_norm(rows))


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(LearnedSettings):
    """Settings of `AttentionMixer`.

    Attributes
    ----------
    width : int
        Features of a token inside the encoder; a multiple of `heads`.
    heads : int
        Attention heads.
    layers : int
        Encoder layers.
    feedforward : int
        Width of each layer's feed-forward network.
    """

    width: int = 64
    heads: int = 4
    layers: int = 2
    feedforward: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        multiple_of_heads("width", self.width, self.heads)
        positive_int("layers", self.layers)
        positive_int("feedforward", self.feedforward)


class AttentionMixer(LearnedMixer):
    """Transformer encoder over the residues with a learned embedding of the residue's position, then a read-out.

    Parameters
    ----------
    n_tokens, hidden_channels
        R and H of the tokens (F, R, 4, H); see `Mixer`. Without a fixed R there is no embedding of the position.
    settings
        See `AttentionSettings`.
    """

    name = "attention"
    settings_class = AttentionSettings

    def __init__(self, n_tokens: int | None, hidden_channels: int, settings: AttentionSettings):
        super().__init__(n_tokens, hidden_channels, settings)
        width = settings.width
        with initialisation(settings.seed):
            self.embed = nn.Linear(self.n_features, width)
            self.position = learned_positions(n_tokens, width)
            self.encoder = nn.ModuleList(
                EncoderLayer(width, settings.heads, settings.feedforward) for _ in range(settings.layers)
            )
            self.norm = nn.LayerNorm(width)
            self.readout = Readout(n_tokens, width, settings.pool, settings.readout, self.out_features)

    def mix(self, features: Tensor, vectors: Tensor, mask: Tensor | None) -> Tensor:
        """See `Mixer.mix`."""
        rows = self.embed(features)
        if self.position is not None:
            rows = rows + self.position
        bias = absent_keys(rows, mask)
        for layer in self.encoder:
            rows = layer(rows, bias)
        return self.readout(self.norm(rows), mask)
