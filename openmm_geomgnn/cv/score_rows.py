"""Held-out scores of many linear CVs at once: passes over the data are shared, a CV of the grid costs next to nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch

from openmm_geomgnn.cv.estimators import rates_within
from openmm_geomgnn.cv.kernel_widths import basin_widths, is_too_stiff, kernel_widening, narrowest_width
from openmm_geomgnn.koopman import KoopmanModel, Segment, basin_gap, covariances, linear_basis
from openmm_geomgnn.koopman.covariance import PairsLike
from openmm_geomgnn.koopman.vamp import project, subspace_score

RANDOM, TORSIONS = "random weights", "torsions"
REFERENCES = (RANDOM, TORSIONS)  # which nobody chooses


class Case(NamedTuple):
    """Settings of one CV: principal components (None is all), softening in ps, number of components, mixer.

    With a mixer other than "none" it is a VAMPnet, which has neither principal components nor softening.
    """

    pca: int | None
    softening: float
    components: int
    mixer: str = "none"

    @property
    def is_linear(self) -> bool:
        """Whether nothing is trained."""
        return self.mixer == "none"


@dataclass(frozen=True)
class ScoreGrid:
    """The values of each setting that are tried, in all combinations.

    Attributes
    ----------
    pca : tuple of int or None
    softening : tuple of float
        ps.
    components : tuple of int
    mixers : tuple of str
        "none" is the linear CV, which alone has the others.
    """

    pca: tuple[int | None, ...] = (20, 50, 100, None)
    softening: tuple[float, ...] = (0.02, 0.1, 0.3)
    components: tuple[int, ...] = (1,)
    mixers: tuple[str, ...] = ("none",)

    def cases(self) -> list[Case]:
        """All of which a CV can be made."""
        every = [Case(*values) for values in product(self.pca, self.softening, self.components) if "none" in self.mixers]
        linear = [case for case in every if case.pca is None or case.pca >= case.components]
        trained = [name for name in self.mixers if name != "none"]
        return [*linear, *(Case(None, 0.0, number, name) for name in trained for number in self.components)]


@dataclass(frozen=True)
class ScoreRow:
    """One row of a table of scores.

    Attributes
    ----------
    features : str
        What was projected: the name of an encoder, or one of REFERENCES.
    window : str
    pca, softening, components, mixer
        As in `Case`.
    pca_components : int
        How many there were in all data, where that is fewer than pca.
    vamp2_training, vamp2_held_out, vamp2_held_out_error : float
        VAMP-2 scores; the error is the standard error of the mean over folds.
    fold_scores : list of float
        The held-out score of each fold, which are the same folds in every row.
    gap : float or None
        `koopman.basin_gap` of the first component over biased frames, each by a CV that has not seen it.
    rate_300K_per_ps, in_basin_spread : list of float
        As of `stiffness.stiffness`, for each component.
    """

    features: str
    window: str
    pca: int | None
    softening: float
    components: int
    mixer: str
    pca_components: int
    vamp2_training: float
    vamp2_held_out: float
    vamp2_held_out_error: float
    fold_scores: tuple[float, ...]
    gap: float | None = None
    rate_300K_per_ps: tuple[float, ...] = ()
    in_basin_spread: tuple[float, ...] = ()

    @property
    def case(self) -> Case:
        """The settings of its CV."""
        return Case(self.pca, self.softening, self.components, self.mixer)

    @property
    def is_reference(self) -> bool:
        """Whether it is only there to be compared with."""
        return self.features in REFERENCES

    @property
    def stiffness(self) -> float:
        """Rate over width of its stiffest component, 1/ps: the frequency that kernels as wide as a basin drive."""
        pairs = zip(self.rate_300K_per_ps, self.kernel_widths, strict=True)
        return max((rate / width if width else math.inf for rate, width in pairs), default=math.inf)

    @property
    def kernel_widths(self) -> tuple[float, ...]:
        """How wide the kernels of a bias on it are, as of `kernel_widths.basin_widths`."""
        facts = {"in_basin_spread": self.in_basin_spread, "kernel_widening": kernel_widening(self.components)}
        return tuple(basin_widths(facts).tolist())

    def can_be_biased(self, step: float, temperature: float = 300.0) -> bool:
        """Whether a bias that is evaluated every `step` ps can have kernels that fit into a basin (`kernel_widths`)."""
        widths = narrowest_width(self.rate_300K_per_ps, step, temperature)
        return not is_too_stiff(widths, self.kernel_widths).any()

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold of it, and `ScoreRow(**that)` takes."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Split:
    """What is held out, and everything else that all rows share.

    Attributes
    ----------
    lag : int
        In frames, of trajectories without pairs.
    pairs : list of koopman.Pairs, optional
    folds : list of (training, held out)
        Lists of `koopman.Segment`.
    basins : dict
        Number of a biased trajectory that stayed in one basin -> whether that is the upper one.
    reversible : bool
    """

    lag: int
    pairs: PairsLike
    folds: list[tuple[list[Segment], list[Segment]]]
    basins: Mapping[int, bool]
    reversible: bool = True


class Features(NamedTuple):
    """Features (F, n) of each trajectory; rates (K, n), as of `estimators.feature_rates`, at the frames `where`."""

    arrays: Sequence[Any]
    rates: np.ndarray | None = None
    where: Sequence[torch.Tensor] = ()


class Scored(NamedTuple):
    """The scores of a `Case`, the model of all data, and the mixer where that was trained."""

    case: Case
    pca_components: int
    held_out: np.ndarray  # by fold
    gap: float | None
    model: KoopmanModel
    mixer: Any = None


class OutOfFold:
    """First components along the biased trajectories that stayed in a basin, each frame by a CV that has not seen it.

    Parameters
    ----------
    split : Split
    known : list of (F, m) array
        Of all trajectories, by m CVs of all data, whose sign, zero and unit the others get.
    """

    def __init__(self, split: Split, known: Sequence[np.ndarray]) -> None:
        self._basins, self._known = split.basins, known
        self._values = {k: np.full(known[k].shape, np.nan) for k in split.basins}

    def needs(self, held: Sequence[Segment]) -> bool:
        """Whether a fold holds out any of these frames."""
        return any(s.trajectory in self._values for s in held)

    def add(
        self, training: Sequence[Segment], there: Sequence[np.ndarray], held: Sequence[Segment], values: Sequence[np.ndarray]
    ) -> None:
        """Add the values (F, m) along the held-out segments of a fold, by CVs with the values `there` in training."""
        slope, offset = _lines(np.concatenate(there), np.concatenate(of_segments(self._known, training)))
        for s, x in zip(held, values, strict=True):
            if s.trajectory in self._values:
                self._values[s.trajectory][s.start : s.stop] = slope * x + offset

    def gap(self, column: int = 0) -> float | None:
        """`koopman.basin_gap` of one of the CVs; None where no trajectory stayed in a basin."""
        if not self._values:
            return None
        return basin_gap([values[:, column] for values in self._values.values()], list(self._basins.values()))


def score_cases(
    features: Features, cases: Sequence[Case], split: Split, progress: Callable[[int, int], None] | None = None
) -> list[Scored]:
    """Cross-validated VAMP-2 scores of linear CVs; cases that ask for more components than there are are left out.

    progress: called as progress(done, total) after the passes over the data of each fold.
    """
    progress = progress or (lambda done, total: None)
    most = None if any(case.pca is None for case in cases) else max(case.pca or 0 for case in cases)
    progress(0, len(split.folds) + 1)
    whole = linear_basis(features.arrays, split.lag, most, split.reversible, pairs=split.pairs)
    size = whole.projection.shape[1]
    cases = [case for case in cases if case.components <= size]
    models = [whole.model(*_arguments(case, features.rates)) for case in cases]
    first = np.stack([model.projection[:, 0] for model in models], axis=1)  # (n, cases)
    unseen = OutOfFold(split, [project(x, whole.mean, first) for x in features.arrays] if split.basins else [])
    scores = np.full((len(cases), len(split.folds)), np.nan)
    for number, (training, held) in enumerate(split.folds):
        progress(number + 1, len(split.folds) + 1)
        seen = of_segments(features.arrays, training)
        basis = linear_basis(seen, split.lag, most, split.reversible, pairs=pairs_of(split, training))
        rates = None if features.rates is None else rates_within(features.rates, features.where, training)
        reduced = [basis.reduce(x) for x in of_segments(features.arrays, held)]
        moments = covariances(reduced, split.lag, None, split.reversible, pairs_of(split, held))
        fitted = [basis.solve(*_arguments(case, rates)) for case in cases]
        scores[:, number] = [subspace_score(moments.project(model.projection)) for model in fitted]
        if unseen.needs(held):
            first = np.stack([model.projection[:, 0] for model in fitted], axis=1)
            unseen.add(training, [basis.reduce(x) @ first for x in seen], held, [x @ first for x in reduced])
    progress(len(split.folds) + 1, len(split.folds) + 1)
    return [
        Scored(
            case,
            size if case.pca is None else min(case.pca, size),
            scores[row],
            unseen.gap(row),
            models[row],
        )
        for row, case in enumerate(cases)
    ]


def _arguments(case: Case, rates: np.ndarray | None) -> tuple[Any, ...]:
    return case.components, case.pca, rates, case.softening


def of_segments(arrays: Sequence[Any], segments: Sequence[Segment]) -> list[Any]:
    """The frames of segments, of arrays that are one for each trajectory."""
    return [s.take(arrays) for s in segments]


def pairs_of(split: Split, segments: Sequence[Segment]) -> PairsLike:
    """The pairs of frames of segments; None where all a lag time apart count."""
    return None if split.pairs is None else [s.take_pairs(split.pairs) for s in segments]


def _lines(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset (m,) of the straight line from each column of x (F, m) to that of y.

    The CVs of two folds differ by more than their training data do: by sign, zero and unit.
    """
    centre = x.mean(0)
    slope = ((x - centre) * (y - y.mean(0))).sum(0) / np.square(x - centre).sum(0)
    return slope, y.mean(0) - slope * centre
