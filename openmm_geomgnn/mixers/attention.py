"""Self-attention over residue tokens (Vaswani et al. 2017, in the pre-normalised form)."""

import torch
from torch import Tensor, nn

from ..errors import GeomGNNError
from .base import Mixer, Readout, Standardiser, initialisation, positive_int


class SelfAttention(nn.Module):
    """Multi-head softmax attention in elementary operations.

    torch's fused kernels have no second derivative on the CPU, which a gradient penalty needs, and its encoder layer
    takes another path in evaluation than in training.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        frames, tokens, width = rows.shape
        split = self.query_key_value(rows).reshape(frames, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], float("-inf"))
        mixed = torch.softmax(logits, dim=-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(frames, tokens, width))


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)); no dropout, since a CV is a function."""

    def __init__(self, width: int, heads: int, feedforward: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(nn.Linear(width, feedforward), nn.GELU(), nn.Linear(feedforward, width))

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        rows = rows + self.attention(self.attention_norm(rows), mask)
        return rows + self.feedforward(self.feedforward_norm(rows))


class AttentionMixer(Mixer):
    """Transformer encoder over the residues with a learned embedding of the residue's position, then a read-out.

    Parameters
    ----------
    n_tokens, hidden_channels
        R and H of the tokens (F, R, 4, H).
    width
        Features of a token inside the encoder; a multiple of `heads`.
    heads, layers, feedforward
        Attention heads, encoder layers, width of each layer's feed-forward network.
    pool
        "flatten" or "mean" over the tokens.
    readout
        Width of the read-out's hidden layer.
    out_features
        Length of chi.
    seed
        Of the initial weights; torch's own generator is not touched.
    """

    name = "attention"

    def __init__(self, n_tokens: int, hidden_channels: int, *, width: int = 64, heads: int = 4, layers: int = 2,
                 feedforward: int = 128, pool: str = "flatten", readout: int = 64, out_features: int = 6,
                 seed: int = 0):
        super().__init__(n_tokens, hidden_channels, width=width, heads=heads, layers=layers, feedforward=feedforward,
                         pool=pool, readout=readout, out_features=out_features, seed=seed)
        if positive_int("width", width) % positive_int("heads", heads):
            raise GeomGNNError(f"width must be a multiple of heads but width is {width} and heads is {heads}.")
        positive_int("feedforward", feedforward)
        positive_int("readout", readout)
        self.out_features = positive_int("out_features", out_features)
        self.standardise = Standardiser(n_tokens, self.n_features)
        with initialisation(seed):
            self.embed = nn.Linear(self.n_features, width)
            self.position = nn.Parameter(0.1 * torch.randn(n_tokens, width))
            self.encoder = nn.ModuleList(EncoderLayer(width, heads, feedforward)
                                         for _ in range(positive_int("layers", layers)))
            self.norm = nn.LayerNorm(width)
            self.readout = Readout(n_tokens, width, pool, readout, out_features)

    def mix(self, features: Tensor, mask: Tensor | None) -> Tensor:
        rows = self.embed(features) + self.position
        for layer in self.encoder:
            rows = layer(rows, mask)
        return self.readout(self.norm(rows), mask)
