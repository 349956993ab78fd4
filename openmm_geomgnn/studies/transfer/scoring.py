"""Held-out VAMP-2 of CVs of one molecule: fitted to it, trained on other molecules, or both in part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from openmm_geomgnn.cv.fit_data import features_of
from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.mixers.base import Mixer
from openmm_geomgnn.cv.score_rows import Case, Features, Split, of_segments, score_cases
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import (
    Segment,
    SharedLobe,
    check_folds,
    covariances,
    fit_linear,
    folds_of_blocks,
    train_shared_lobe,
    train_vampnet,
)
from openmm_geomgnn.koopman.vamp import subspace_score

LINEAR, FITTED, TRANSFERRED, ZERO_SHOT, UNTRAINED = "linear", "fitted", "transferred", "zero-shot", "untrained"
NOTHING = 0.0  # data of a method that fits nothing to the molecule
INNER_FOLDS = 3  # within what is fitted to, by which the number of principal components is chosen


@dataclass(frozen=True)
class TransferSettings:
    """What is fitted, and how it is scored.

    Attributes
    ----------
    lagtime : float
        ps
    components : tuple of int
        Numbers of slow functions that are scored.
    data : tuple of float or None
        ps of the molecule that a CV is fitted to; None is all that is not held out.
    pca : tuple of int or None
        Numbers of principal components of a linear CV, of which the best is chosen within what it is fitted to.
    mixers : tuple of str
    mixer_settings : dict
        Of all of them, such as pool.
    folds : int
    reversible : bool
    training : dict
        Arguments of `koopman.train_vampnet`, for all trainings.
    """

    lagtime: float
    components: tuple[int, ...] = (1, 3)
    data: tuple[float | None, ...] = (None,)
    pca: tuple[int | None, ...] = (10, 50, None)
    mixers: tuple[str, ...] = ("mlp",)
    mixer_settings: dict[str, Any] = field(default_factory=dict)
    folds: int = 4
    reversible: bool = True
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """The largest number of components."""
        return max(self.components)

    def mixer(self, name: str, channels: int, seed: int) -> Mixer:
        """An untrained mixer for any number of tokens."""
        return make_mixer(name, None, channels, seed=seed, **self.mixer_settings)


class RowKey(NamedTuple):
    """What a row is about.

    molecule : str
    features : str
        Name of a network, or of what is compared with it.
    method : str
        "linear": the slowest linear combinations of the features of all tokens, fitted to the molecule. "fitted": a mixer
        trained on the molecule. "transferred": a mixer trained on the other molecules, and a linear projection of its
        outputs fitted to the molecule. "zero-shot": mixer and projection of the other molecules, nothing fitted.
        "untrained": as transferred, with the initial weights of the mixer.
    mixer : str
    seed : int
        Of the mixer.
    data : float or None
        ps fitted to on the molecule, None is all that is not held out.
    components : int
    """

    molecule: str
    features: str
    method: str
    mixer: str
    seed: int
    data: float | None
    components: int


@dataclass(frozen=True)
class TransferRow:
    """The scores of one kind of CV: VAMP-2 of each fold, or the reason why there are none."""

    key: RowKey
    fold_scores: tuple[float, ...] = ()
    problem: str | None = None

    @property
    def score(self) -> float:
        """Mean over the folds."""
        return float(np.mean(self.fold_scores)) if self.fold_scores else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {**self.key._asdict(), "fold_scores": list(self.fold_scores), "problem": self.problem}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> "TransferRow":
        """The row that `as_dict` gave. Raises KeyError or TypeError for anything else."""
        key = RowKey(**{name: entry[name] for name in RowKey._fields})
        return cls(key, tuple(entry["fold_scores"]), entry["problem"])


@dataclass(frozen=True, eq=False)
class Series:
    """The time series of one molecule: arrays or tensors (F, ...) of each trajectory, and ps between frames."""

    name: str
    parts: list[Any]
    lag: int
    interval: float

    @property
    def lengths(self) -> list[int]:
        """Frames of each trajectory."""
        return [len(part) for part in self.parts]

    def folds(self, folds: int) -> list[tuple[list[Segment], list[Segment]]]:
        """What is fitted to and what is held out, a lag time apart, of each fold.

        Raises GeomGNNError if the trajectories are too short.
        """
        check_folds(self.lengths, self.lag, folds)
        return list(folds_of_blocks(self.lengths, [self.lag] * len(self.parts), folds))


def some_of(segments: Sequence[Segment], frames: int, fold: int, folds: int) -> list[Segment]:
    """As many frames of segments, from another place in each fold on, after the last of them from the first on.

    Raises GeomGNNError if there are not so many.
    """
    ends = np.cumsum([s.stop - s.start for s in segments])
    if frames > ends[-1]:
        raise GeomGNNError(f"There are {ends[-1]} frames to fit to, and {frames} are asked for.")
    first = int(np.searchsorted(ends, ends[-1] * fold // folds, "right"))
    chosen, left = [], frames
    for s in [*segments[first:], *segments[:first]]:
        if left <= 0:
            break
        chosen.append(s._replace(stop=min(s.stop, s.start + left)))
        left -= s.stop - s.start
    return chosen


def linear_rows(features: str, series: Series, settings: TransferSettings) -> list[TransferRow]:
    """Rows of linear CVs of features (F, n), fitted to a molecule."""
    cases = [Case(pca, 0.0, n) for n in settings.components for pca in settings.pca if pca is None or pca >= n]

    def fit(parts: list[np.ndarray], number: int) -> list[Callable[[Any], np.ndarray]]:
        lengths = [len(part) for part in parts]
        check_folds(lengths, series.lag, INNER_FOLDS)
        inner = list(folds_of_blocks(lengths, [series.lag] * len(parts), INNER_FOLDS))
        scored = score_cases(Features(parts), cases, Split(series.lag, None, inner, {}, settings.reversible))
        found: list[Callable[[Any], np.ndarray]] = []
        for n in settings.components:
            mine = [one for one in scored if one.case.components == n]
            if not mine:
                raise GeomGNNError(f"The features have fewer than {n} independent directions.")
            found.append(max(mine, key=lambda one: one.held_out.mean()).model.transform)
        return found

    return _rows_of_fits(RowKey(series.name, features, LINEAR, "none", 0, None, 0), series, settings, fit)


def fitted_rows(features: str, mixer: Mixer, series: Series, settings: TransferSettings) -> list[TransferRow]:
    """Rows of a mixer that is trained on a molecule's tokens (F, R, 4, H)."""
    seed = mixer.settings["seed"]

    def fit(parts: list[torch.Tensor], number: int) -> list[Callable[[Any], np.ndarray]]:
        options = {**settings.training, "seed": seed, "test_fraction": 0.0, "reversible": settings.reversible}
        result = train_vampnet(mixer, parts, series.lag, settings.most, **options)
        return [_leading(result.transform, n) for n in settings.components]

    key = RowKey(series.name, features, FITTED, mixer.name, seed, None, 0)
    return _rows_of_fits(key, series, settings, fit)


def transferred_rows(
    features: str, mixer: Mixer, others: Sequence[Series], series: Series, settings: TransferSettings
) -> list[TransferRow]:
    """Rows of a mixer that is trained on the tokens of other molecules, and of one that is not trained at all."""
    seed = mixer.settings["seed"]
    key = RowKey(series.name, features, TRANSFERRED, mixer.name, seed, None, 0)
    try:
        shared = train_lobe(mixer, others, settings)
    except GeomGNNError as error:
        problems = [
            _problem_rows(key._replace(method=method), amount, settings, str(error))
            for method, amount in _amounts(key, settings)
        ]
        return [row for rows in problems for row in rows]
    rows = _projected_rows(key, Series(series.name, _outputs(shared.lobe, series), series.lag, series.interval), settings)
    chi = _outputs(_with_statistics(mixer, others), series)
    rows += _projected_rows(key._replace(method=UNTRAINED), Series(series.name, chi, series.lag, series.interval), settings)
    return rows + _unfitted_rows(key._replace(method=ZERO_SHOT, data=NOTHING), shared, series, settings)


def train_lobe(
    mixer: Mixer,
    molecules: Sequence[Series],
    settings: TransferSettings,
    progress: Callable[[int, int, float, float | None], None] | None = None,
) -> SharedLobe:
    """A mixer trained on all frames of several molecules together."""
    options = {**settings.training, "seed": mixer.settings["seed"], "reversible": settings.reversible}
    lags = [one.lag for one in molecules]
    return train_shared_lobe(mixer, [one.parts for one in molecules], lags, settings.most, progress=progress, **options)


def expected_keys(key: RowKey, settings: TransferSettings) -> list[RowKey]:
    """Keys of all rows of the job whose key, with any data and components, is given."""
    return [
        key._replace(method=method, data=amount, components=n)
        for method, amount in _amounts(key, settings)
        for n in settings.components
    ]


def _amounts(key: RowKey, settings: TransferSettings) -> list[tuple[str, float | None]]:
    """Method and data of all fits of a job."""
    methods = (TRANSFERRED, UNTRAINED) if key.method == TRANSFERRED else (key.method,)
    found = [(method, amount) for method in methods for amount in settings.data]
    return [*found, (ZERO_SHOT, NOTHING)] if key.method == TRANSFERRED else found


def _rows_of_fits(key: RowKey, series: Series, settings: TransferSettings, fit: Any) -> list[TransferRow]:
    """Rows of all amounts of data; fit(parts, fold) returns for each number of components a map from parts to psi."""
    rows = []
    for amount in settings.data:
        try:
            scores = []
            for number, (training, held) in enumerate(series.folds(settings.folds)):
                seen = training
                if amount is not None:
                    seen = some_of(training, round(amount / series.interval), number, settings.folds)
                seen = [s for s in seen if s.stop - s.start > series.lag]
                maps = fit(of_segments(series.parts, seen), number)
                there = of_segments(series.parts, held)
                scores.append([_score([one(part) for part in there], series.lag, settings) for one in maps])
            by_components = zip(settings.components, zip(*scores, strict=True), strict=True)
            rows += [TransferRow(key._replace(data=amount, components=n), values) for n, values in by_components]
        except GeomGNNError as error:
            rows += _problem_rows(key, amount, settings, str(error))
    return rows


def _projected_rows(key: RowKey, chi: Series, settings: TransferSettings) -> list[TransferRow]:
    """Rows of outputs chi (F, k) of a mixer, of which only the linear projection is fitted."""

    def fit(parts: list[np.ndarray], number: int) -> list[Callable[[Any], np.ndarray]]:
        model = fit_linear(parts, chi.lag, settings.most, None, settings.reversible)
        return [model.truncate(n).transform for n in settings.components]

    return _rows_of_fits(key, chi, settings, fit)


def _unfitted_rows(key: RowKey, shared: SharedLobe, series: Series, settings: TransferSettings) -> list[TransferRow]:
    psi = [shared.transform(part) for part in series.parts]
    try:
        folds = [held for _, held in series.folds(settings.folds)]
    except GeomGNNError as error:
        return _problem_rows(key, NOTHING, settings, str(error))
    rows = []
    for n in settings.components:
        scores = [_score([part[:, :n] for part in of_segments(psi, held)], series.lag, settings) for held in folds]
        rows.append(TransferRow(key._replace(components=n), tuple(scores)))
    return rows


def _problem_rows(key: RowKey, amount: float | None, settings: TransferSettings, problem: str) -> list[TransferRow]:
    return [TransferRow(key._replace(data=amount, components=n), (), problem) for n in settings.components]


def _score(psi: Sequence[np.ndarray], lag: int, settings: TransferSettings) -> float:
    return subspace_score(covariances(psi, lag, None, settings.reversible))


def _outputs(mixer: Any, series: Series) -> list[np.ndarray]:
    """What a mixer makes of tokens, in float64."""
    return [np.asarray(part) for part in features_of(mixer, series.parts)]


def _with_statistics(mixer: Mixer, molecules: Sequence[Series]) -> Mixer:
    """The same mixer with its initial weights, and the statistics that training on these molecules gives it."""
    same = make_mixer(**mixer.settings)
    if not same.has_statistics:
        same.set_statistics([part for one in molecules for part in one.parts])
    return same.requires_grad_(False).eval()


def _leading(transform: Callable[[Any], np.ndarray], n: int) -> Callable[[Any], np.ndarray]:
    return lambda part: transform(part)[:, :n]


def as_job(kind: str, features: str, mixer: Any, others: list[Series], series: Series, settings: TransferSettings) -> list:
    """The rows of one job, as `jobs.run_jobs` calls it in another process; kind is the method of its key."""
    torch.set_num_threads(1)
    if kind == LINEAR:
        return linear_rows(features, series, settings)
    if kind == FITTED:
        return fitted_rows(features, make_mixer(**mixer), series, settings)
    return transferred_rows(features, make_mixer(**mixer), others, series, settings)
