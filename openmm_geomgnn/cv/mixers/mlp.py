"""The same perceptron on every token, then a read-out over all tokens."""

from torch import Tensor, nn

from .base import LearnedMixer
from .checks import initialisation, positive_int
from .pooling import Readout


class MLPMixer(LearnedMixer):
    """Shared perceptron on the invariants of each token, pooled over the tokens, then a small read-out network.

    Parameters
    ----------
    n_tokens, hidden_channels
        R and H of the tokens (F, R, 4, H); see `Mixer`.
    width
        Features of a token after the shared perceptron.
    layers
        Layers of the shared perceptron, each linear, LayerNorm, SiLU.
    pool
        "flatten" keeps which residue is which; "mean", "sum" and "attention" suit many like tokens.
    readout
        Width of the read-out's hidden layer.
    out_features
        Length of chi.
    chirality
        Whether mirror images differ.
    seed
        Of the initial weights; torch's own generator is not touched.
    """

    name = "mlp"

    def __init__(
        self,
        n_tokens: int | None,
        hidden_channels: int,
        *,
        width: int = 64,
        layers: int = 2,
        pool: str = "flatten",
        readout: int = 64,
        out_features: int = 6,
        chirality: bool = False,
        seed: int = 0,
    ):
        super().__init__(
            n_tokens,
            hidden_channels,
            width=width,
            layers=layers,
            pool=pool,
            readout=readout,
            out_features=out_features,
            chirality=chirality,
            seed=seed,
        )
        positive_int("width", width)
        with initialisation(seed):
            blocks: list[nn.Module] = []
            for layer in range(positive_int("layers", layers)):
                blocks += [nn.Linear(width if layer else self.n_features, width), nn.LayerNorm(width), nn.SiLU()]
            self.token_network = nn.Sequential(*blocks)
            self.readout = Readout(n_tokens, width, pool, readout, out_features)

    def mix(self, features: Tensor, vectors: Tensor, mask: Tensor | None) -> Tensor:
        return self.readout(self.token_network(features), mask)
