"""No mixing: the invariants themselves, for a linear Koopman model."""

from dataclasses import dataclass

from torch import Tensor

from openmm_geomgnn.errors import GeomGNNError

from .base import Mixer, MixerSettings
from .checks import lookup
from .pooling import POOLS, AttentionPool, make_pool


@dataclass(frozen=True, kw_only=True)
class NoMixerSettings(MixerSettings):
    """Settings of `NoMixer`.

    Attributes
    ----------
    pool : str
        "flatten"; "mean" and "sum" over the tokens make 2*H functions, for many like residues.
    """

    pool: str = "flatten"

    def __post_init__(self) -> None:
        super().__post_init__()
        if lookup("pool", self.pool, POOLS) is AttentionPool:
            raise GeomGNNError(
                f"pool: {self.pool} has weights and mixer: none has nothing that trains them: use pool: mean "
                "or sum, or another mixer."
            )


class NoMixer(Mixer):
    """chi = [x, |v|] of every token, one after the other: 2*R*H functions, no parameters, nothing to train.

    With chirality, chi has the pseudoscalars of v as well: 3 functions instead of 2 for every channel.

    Parameters
    ----------
    n_tokens, hidden_channels
        R and H of the tokens (F, R, 4, H).
    settings
        See `NoMixerSettings`.
    """

    name = "none"
    settings_class = NoMixerSettings

    def __init__(self, n_tokens: int | None, hidden_channels: int, settings: NoMixerSettings):
        super().__init__(n_tokens, hidden_channels, settings)
        self.pool = make_pool(settings.pool, n_tokens, self.n_features)
        self.out_features = self.pool.width

    def mix(self, features: Tensor, vectors: Tensor, mask: Tensor | None) -> Tensor:
        """See `Mixer.mix`."""
        return self.pool(features, mask)
