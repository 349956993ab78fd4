"""No mixing: the invariants themselves, for a linear Koopman model."""

from torch import Tensor

from .base import Mixer


class NoMixer(Mixer):
    """chi = [x, |v|] of every token, one after the other: 2*R*H functions, no parameters, nothing to train."""

    name = "none"

    def __init__(self, n_tokens: int, hidden_channels: int):
        super().__init__(n_tokens, hidden_channels)
        self.out_features = self.n_tokens * self.n_features

    def mix(self, features: Tensor, mask: Tensor | None) -> Tensor:
        return features.flatten(1)
