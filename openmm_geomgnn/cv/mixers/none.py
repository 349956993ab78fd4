"""No mixing: the invariants themselves, for a linear Koopman model."""

from torch import Tensor

from openmm_geomgnn.errors import GeomGNNError

from .base import Mixer
from .pooling import make_pool


class NoMixer(Mixer):
    """chi = [x, |v|] of every token, one after the other: 2*R*H functions, no parameters, nothing to train.

    Parameters
    ----------
    n_tokens, hidden_channels
        R and H of the tokens (F, R, 4, H).
    pool
        "flatten"; "mean" and "sum" over the tokens make 2*H functions, for many like residues.
    chirality
        Also the pseudoscalars of v: 3 functions instead of 2 for every channel, and mirror images differ.
    """

    name = "none"

    def __init__(self, n_tokens: int | None, hidden_channels: int, *, pool: str = "flatten", chirality: bool = False):
        super().__init__(n_tokens, hidden_channels, chirality=chirality, pool=pool)
        self.pool = make_pool(pool, n_tokens, self.n_features)
        if list(self.pool.parameters()):
            raise GeomGNNError(
                f"pool: {pool} has weights and mixer: none has nothing that trains them: use pool: mean "
                "or sum, or another mixer."
            )
        self.out_features = self.pool.width

    def mix(self, features: Tensor, vectors: Tensor, mask: Tensor | None) -> Tensor:
        return self.pool(features, mask)
