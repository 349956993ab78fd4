"""The same perceptron on every token, then a read-out over all tokens."""

from dataclasses import dataclass

from torch import Tensor, nn

from .base import LearnedMixer, LearnedSettings
from .checks import initialisation, positive_int
from .pooling import Readout


@dataclass(frozen=True, kw_only=True)
class MLPSettings(LearnedSettings):
    """Settings of `MLPMixer`.

    Attributes
    ----------
    width : int
        Features of a token after the shared perceptron.
    layers : int
        Layers of the shared perceptron, each linear, LayerNorm, SiLU.
    """

    width: int = 64
    layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("width", self.width)
        positive_int("layers", self.layers)


class MLPMixer(LearnedMixer):
    """Shared perceptron on the invariants of each token, pooled over the tokens, then a small read-out network.

    Parameters
    ----------
    n_tokens, hidden_channels
        R and H of the tokens (F, R, 4, H); see `Mixer`.
    settings
        See `MLPSettings`.
    """

    name = "mlp"
    settings_class = MLPSettings

    def __init__(self, n_tokens: int | None, hidden_channels: int, settings: MLPSettings):
        super().__init__(n_tokens, hidden_channels, settings)
        width = settings.width
        with initialisation(settings.seed):
            blocks: list[nn.Module] = []
            for layer in range(settings.layers):
                blocks += [nn.Linear(width if layer else self.n_features, width), nn.LayerNorm(width), nn.SiLU()]
            self.token_network = nn.Sequential(*blocks)
            self.readout = Readout(n_tokens, width, settings.pool, settings.readout, self.out_features)

    def mix(self, features: Tensor, vectors: Tensor, mask: Tensor | None) -> Tensor:
        """See `Mixer.mix`."""
        return self.readout(self.token_network(features), mask)
