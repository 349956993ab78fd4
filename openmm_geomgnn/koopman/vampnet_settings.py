"""How a VAMPnet is trained."""

from dataclasses import dataclass

from ..errors import GeomGNNError
from .vamp import EPSILON

VALIDATION_FRACTION, TEST_FRACTION = 0.2, 0.1


@dataclass(frozen=True, kw_only=True)
class VAMPNetSettings:
    """How a lobe is trained.

    Attributes
    ----------
    reversible : bool
        True gives a state-free reversible VAMPnet, False a VAMPnet.
    epochs, batch_size : int
        Passes over all pairs, at most, and pairs per step.
    lr, weight_decay : float
        Learning rate and weight decay of AdamW.
    validation_fraction : float
        Fraction of the frames that is held out in contiguous blocks (see `hold_out`) to select the epoch; 0 trains for all
        `epochs` and keeps the last weights.
    test_fraction : float
        Fraction of the frames that is held out for the final score; with 0 there is none.
    patience : int
        Epochs without a better validation score before stopping.
    seed : int
        Seed of the split, the batches and the penalty's probes; torch's own generators are not touched.
    gradient_penalty : float
        Weight of the mean of |d psi_i / d z|^2 over the whitened outputs, with z the tokens in units of their own
        spread: a softer CV heats a biased simulation less. Zero switches it off; try 0.05 to 0.5 and watch the
        test score.
    ridge : float
        Relative; see `vamp2`.
    epsilon : float
        Relative cutoff of the whitening in the returned model; see `vamp`.

    Raises
    ------
    GeomGNNError
        If a number is out of range.
    """

    reversible: bool = True
    epochs: int = 100
    batch_size: int = 1000
    lr: float = 1e-3
    weight_decay: float = 1e-4
    validation_fraction: float = VALIDATION_FRACTION
    test_fraction: float = TEST_FRACTION
    patience: int = 10
    seed: int = 0
    gradient_penalty: float = 0.0
    ridge: float = 1e-6
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise GeomGNNError(f"{name} must be a whole number of at least 1 but was {value!r}.")
        if not (self.lr > 0 and self.weight_decay >= 0 and self.gradient_penalty >= 0 and self.ridge > 0):
            raise GeomGNNError(
                "lr and ridge must be positive, weight_decay and gradient_penalty not negative, but they "
                f"were lr={self.lr!r}, ridge={self.ridge!r}, weight_decay={self.weight_decay!r}, "
                f"gradient_penalty={self.gradient_penalty!r}."
            )
