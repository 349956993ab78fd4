"""A mixer as another package would bring it: it uses nothing but what `openmm_geomgnn.cv.mixers` exports."""

from dataclasses import dataclass

import torch

from openmm_geomgnn.cv.mixers import LearnedMixer, LearnedSettings, Readout, initialisation, positive_int


@dataclass(frozen=True, kw_only=True)
class ToySettings(LearnedSettings):
    """Settings of `ToyMixer`.

    Attributes
    ----------
    width : int
        Features of a token behind the gate.
    """

    width: int = 32

    def __post_init__(self):
        super().__post_init__()
        positive_int("width", self.width)


class ToyMixer(LearnedMixer):
    """Features of each token, gated by others of the same token, then a read-out."""

    name = "toy"
    settings_class = ToySettings

    def __init__(self, n_tokens, hidden_channels, settings):
        super().__init__(n_tokens, hidden_channels, settings)
        with initialisation(settings.seed):
            self.value = torch.nn.Linear(self.n_features, settings.width)
            self.gate = torch.nn.Linear(self.n_features, settings.width)
            self.readout = Readout(n_tokens, settings.width, settings.pool, settings.readout, self.out_features)

    def mix(self, features, vectors, mask):
        return self.readout(self.value(features) * torch.sigmoid(self.gate(features)), mask)
