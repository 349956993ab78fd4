"""How a collective variable is fitted."""

from dataclasses import dataclass, field
from typing import Any

from openmm_geomgnn.cv.rules import lag_in_frames
from openmm_geomgnn.representation.spec import TokenSpec


@dataclass(frozen=True)
class FitSettings:
    """How a CV is fitted; see `mixers` and `koopman` for what each setting means.

    `encoder` is what `Encoder.load` takes; `tokens` says how atoms become tokens. `lagtime`, `frame_interval` and
    `softening` are in picoseconds. `training` has arguments of `koopman.train_vampnet`. `bounded`, `margin` and `even` make
    the CV's `output_map.OutputMap`. `reweighting` says how frames under a bias count (`rules.REWEIGHTINGS`), at
    `temperature` in K.

    Examples
    --------
    >>> from openmm_geomgnn.cv import FitSettings
    >>> settings = FitSettings(lagtime=10.0, frame_interval=0.5, n_components=2)
    >>> settings.lag_frames()
    20
    """

    lagtime: float
    frame_interval: float
    encoder: str = "et-64"
    tokens: TokenSpec = TokenSpec()
    mixer: str = "none"
    mixer_settings: dict[str, Any] = field(default_factory=dict)
    estimator: str = "linear"
    n_components: int = 1
    pca: int | None = 50
    softening: float = 0.02
    reversible: bool = True
    training: dict[str, Any] = field(default_factory=dict)
    bounded: bool = True
    margin: float = 0.15
    even: bool = False
    reweighting: str = "none"
    temperature: float = 300.0
    seed: int = 1

    def lag_frames(self) -> int:
        """The lag time in frames, by `rules.lag_in_frames`."""
        return lag_in_frames(self.lagtime, self.frame_interval)
