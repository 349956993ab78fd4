"""Many residue tokens merged into a few, then self-attention over these."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openmm_geomgnn.errors import GeomGNNError

from .attention import EncoderLayer, learned_positions, position_vectors
from .base import LearnedMixer, LearnedSettings
from .checks import initialisation, lookup, multiple_of_heads, positive_int
from .pooling import Readout, without_absent

# tokens; a merged token of much less than this fades to zero instead of becoming 0/0
_EMPTY = 1e-3
# of a token for its block of the sequence, before training; exp(3) = 20 times that for another block
_PREFERENCE = 3.0


def sequence_blocks(n_tokens: int, merged: int) -> Tensor:
    """(n_tokens, merged): 1 where a token belongs to a block of the sequence; blocks are equal but for one token."""
    return nn.functional.one_hot(torch.arange(n_tokens) * merged // n_tokens, merged).to(torch.get_default_dtype())


class BlockAssignment(nn.Module):
    """Each token belongs to one block of the sequence."""

    share: Tensor

    def __init__(self, n_tokens: int | None, width: int, merged: int):
        super().__init__()
        if n_tokens is None:
            raise GeomGNNError(
                "assignment: blocks is for a fixed number of tokens, but n_tokens is None: use assignment: learned."
            )
        self.register_buffer("share", sequence_blocks(n_tokens, merged), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Shares (F, R, merged) of the tokens in the merged ones, from rows (F, R, n)."""
        return self.share.expand(len(rows), -1, -1)


class LearnedAssignment(nn.Module):
    """Each token is shared out among the merged ones by a softmax of its features (Ying et al. 2018, arXiv 1806.08804).

    Where the number of tokens is fixed, the softmax also takes in the token's place, which at first prefers its block of
    the sequence: equal shares would make all merged tokens alike.
    """

    def __init__(self, n_tokens: int | None, width: int, merged: int):
        super().__init__()
        self.score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, merged))
        self.place = None if n_tokens is None else nn.Parameter(_PREFERENCE * sequence_blocks(n_tokens, merged))

    def forward(self, rows: Tensor) -> Tensor:
        """Shares (F, R, merged) of the tokens in the merged ones, from rows (F, R, n)."""
        scores = self.score(rows)
        return torch.softmax(scores if self.place is None else scores + self.place, -1)


ASSIGNMENTS: dict[str, type[nn.Module]] = {"learned": LearnedAssignment, "blocks": BlockAssignment}


@dataclass(frozen=True, kw_only=True)
class TokenMergingSettings(LearnedSettings):
    """Settings of `TokenMergingMixer`. Its `pool` is over the merged tokens, whose number is always fixed.

    Attributes
    ----------
    merged : int
        Number of merged tokens.
    assignment : str
        "learned" shares each token out among the merged ones by a softmax of its features and of its place in sequence;
        "blocks" merges neighbours in sequence.
    width : int
        Features of a token; a multiple of `heads`.
    heads : int
        Attention heads of the encoder of the merged tokens.
    layers : int
        Layers of the encoder of the merged tokens.
    feedforward : int
        Width of each layer's feed-forward network.
    """

    merged: int = 8
    assignment: str = "learned"
    width: int = 64
    heads: int = 4
    layers: int = 1
    feedforward: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        lookup("assignment", self.assignment, ASSIGNMENTS)
        positive_int("merged", self.merged)
        multiple_of_heads("width", self.width, self.heads)
        positive_int("layers", self.layers)
        positive_int("feedforward", self.feedforward)


class TokenMergingMixer(LearnedMixer):
    """Merge the tokens of many residues into a few, so that attention costs a share of R^2, then a read-out of these.

    Token merging in vision (Bolya et al. 2023, arXiv 2210.09461) pairs the most similar tokens and averages them: which
    ones is a discrete choice, at whose switching points the output jumps, and with it the energy of a bias. Here the
    merged tokens are weighted means, m_k = sum_r A_rk x_r / sum_r A_rk, whose weights A are a smooth function of the
    tokens or no function of them at all. As there, attention favours a merged token by the logarithm of its size,
    sum_r A_rk.

    Parameters
    ----------
    n_tokens, hidden_channels
        R and H of the tokens (F, R, 4, H); see `Mixer`.
    settings
        See `TokenMergingSettings`.
    """

    name = "token-merging"
    settings_class = TokenMergingSettings

    def __init__(self, n_tokens: int | None, hidden_channels: int, settings: TokenMergingSettings):
        super().__init__(n_tokens, hidden_channels, settings)
        width, merged = settings.width, settings.merged
        with initialisation(settings.seed):
            self.embed = nn.Linear(self.n_features, width)
            self.position = learned_positions(n_tokens, width)
            self.token_network = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width))
            self.assignment = ASSIGNMENTS[settings.assignment](n_tokens, width, merged)
            self.place = position_vectors(merged, width)
            self.encoder = nn.ModuleList(
                EncoderLayer(width, settings.heads, settings.feedforward) for _ in range(settings.layers)
            )
            self.norm = nn.LayerNorm(width)
            self.readout = Readout(merged, width, settings.pool, settings.readout, self.out_features)

    def mix(self, features: Tensor, vectors: Tensor, mask: Tensor | None) -> Tensor:
        """See `Mixer.mix`."""
        rows = self.embed(features)
        if self.position is not None:
            rows = rows + self.position
        rows = self.token_network(rows)
        shares = without_absent(self.assignment(rows), mask)
        size = shares.sum(1)
        merged = shares.transpose(1, 2) @ without_absent(rows, mask) / (size + _EMPTY)[..., None] + self.place
        for layer in self.encoder:
            merged = layer(merged, torch.log(size + _EMPTY))
        return self.readout(self.norm(merged), None)
