"""How frames of biased simulations count in a fit, and frames of trajectories that were saved at different intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.cv.fit_settings import FitSettings
from openmm_geomgnn.cv.rules import check_reweighting, is_whole, lag_in_frames
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import Pairs, rescaled_time_pairs, static_weights
from openmm_geomgnn.units import BOLTZMANN


@dataclass(frozen=True)
class Weighting:
    """Pairs of frames that a fit is made from.

    pairs: `Pairs` for each trajectory; None where all pairs a lag time apart count alike. biased: whether each trajectory
    had a bias. intervals: ps between the frames of each.
    """

    pairs: list[Pairs] | None
    biased: list[bool]
    intervals: list[float]

    @property
    def any_biased(self) -> bool:
        """Whether any trajectory had a bias."""
        return any(self.biased)

    @property
    def effective_pairs(self) -> float:
        """Kish's effective number of pairs of the biased trajectories, (sum w)^2 / sum w^2; nan where all count alike."""
        if self.pairs is None:
            return float("nan")
        weights = np.concatenate([one.weights for one, biased in zip(self.pairs, self.biased, strict=True) if biased])
        return float(weights.sum() ** 2 / np.square(weights).sum()) if len(weights) else 0.0


def weighting(
    lengths: Sequence[int],
    settings: FitSettings,
    biases: Sequence[npt.ArrayLike | None] | None = None,
    frame_intervals: Sequence[float] | None = None,
) -> Weighting:
    """The `Weighting` of trajectories of these lengths.

    Parameters
    ----------
    lengths : list of int
        Frames of each trajectory.
    settings : FitSettings
        Its `reweighting`, `temperature` and `lagtime`.
    biases : list of (F,) array or None, optional
        kJ/mol in every frame of each trajectory, None where there was no bias; comparable, see
        `koopman.normalised_biases`.
    frame_intervals : list of float, optional
        ps between the frames of each trajectory; `settings.frame_interval` for all by default.

    Raises
    ------
    GeomGNNError
        If biases do not fit the trajectories, or there are no pairs.
    """
    check_reweighting(settings.reweighting)
    n = len(lengths)
    given = [None] * n if biases is None else list(biases)
    intervals = [settings.frame_interval] * n if frame_intervals is None else [float(value) for value in frame_intervals]
    if not len(given) == len(intervals) == n:
        raise GeomGNNError(f"There are {n} trajectories, but biases of {len(given)} and intervals of {len(intervals)}.")
    energies = [
        np.zeros(length) if v is None else np.asarray(v, dtype=np.float64) for v, length in zip(given, lengths, strict=True)
    ]
    wrong = [k for k, (v, length) in enumerate(zip(energies, lengths, strict=True)) if v.shape != (length,)]
    if wrong:
        raise GeomGNNError(
            f"Trajectory {wrong[0]} has {lengths[wrong[0]]} frames, but a bias of the shape {energies[wrong[0]].shape}: "
            "give one number for each frame."
        )
    biased = [v is not None for v in given]
    alike = all(abs(value - settings.frame_interval) < 1e-9 for value in intervals)
    method = settings.reweighting if any(biased) else "none"
    if method == "none" and (alike or settings.estimator == "progress"):  # which has no use for pairs
        return Weighting(None, biased, intervals)
    kT = BOLTZMANN * settings.temperature
    if method == "rescaled-time":
        return Weighting(rescaled_time_pairs(energies, kT, intervals, settings.lagtime), biased, intervals)
    weights = static_weights(energies, kT) if method == "static" else [np.ones(length) for length in lengths]
    pairs = [pairs_apart(w, interval, settings.lagtime) for w, interval in zip(weights, intervals, strict=True)]
    return Weighting(pairs, biased, intervals)


def pairs_apart(weights: npt.ArrayLike, frame_interval: float, lagtime: float) -> Pairs:
    """Pairs of frames of one trajectory a lag time apart, which need not be a whole number of frames.

    A frame stands for the time until the next one. Between two whole numbers of frames, each frame is paired with both of
    its later partners, weighted by how far its interval, shifted by the lag, overlaps theirs: on average the pairs are
    exactly a lag time apart.

    Parameters
    ----------
    weights : (F,) array
        Of the frames.
    frame_interval, lagtime : float
        ps.

    Returns
    -------
    Pairs
        Weights are the frame's, times the overlap in ps.

    Raises
    ------
    GeomGNNError
        If the lag time is shorter than the time between frames.
    """
    w = frame_interval * np.asarray(weights, dtype=np.float64)
    ratio = lagtime / frame_interval
    whole, rest = int(ratio), ratio % 1.0
    if whole == 0 or is_whole(ratio):
        whole, rest = lag_in_frames(lagtime, frame_interval), 0.0
    near, far = (np.arange(max(0, len(w) - lag)) for lag in (whole, whole + 1))
    if rest == 0.0:
        return Pairs(near, near + whole, w[near])
    first = np.concatenate([near, far])
    second = np.concatenate([near + whole, far + whole + 1])
    order = np.argsort(first, kind="stable")
    overlaps = np.concatenate([(1.0 - rest) * w[near], rest * w[far]])
    return Pairs(first[order], second[order], overlaps[order])
