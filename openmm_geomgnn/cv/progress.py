"""The progress estimator: a CV that follows given targets, by ridge regression on the features.

Where a bias drives a molecule, the CV must not follow anything else: what moves it at a fixed target is cheaper to move than
the target. A regression on many frames, biased ones above all, has little left over of that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from openmm_geomgnn.aliases import StageProgress
from openmm_geomgnn.cv.estimators import RATE_FRAMES, Estimate, feature_rates, rates_within
from openmm_geomgnn.cv.fit_data import TrainingFrames, even_frames, features_of
from openmm_geomgnn.cv.fit_settings import FitSettings
from openmm_geomgnn.cv.mixers.base import Mixer
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import KoopmanModel, Segment, folds_of_blocks
from openmm_geomgnn.koopman.linear import FLOOR_OF_MEAN, FLOOR_OF_WIDEST
from openmm_geomgnn.unfinished import Unfinished

RIDGE = 1e-2  # by the variance of a feature
FOLDS = 4
LEAST_WIDTH = 0.1  # of the kernels of a bias: finer ones resolve nothing on a way from -1 to 1, and pull hard
_BINS = 20  # of a target, over which frames are evenly weighted
_RANGE = 1.2  # of targets, beyond which they are in the outermost bin
_STRONGEST, _WEAKEST = 0.9999, 0.01  # autocorrelations at the lag


def check_targets(
    lengths: Sequence[int], settings: FitSettings, targets: Sequence[Any] | None, names: Sequence[str] | None
) -> list[np.ndarray] | None:
    """Targets (F, m) of every trajectory, for the estimator that has any.

    Raises
    ------
    GeomGNNError
        If they are missing, or not wanted, or not those of the frames and components.
    """
    if settings.estimator != "progress":
        if targets is not None or names is not None:
            raise GeomGNNError(f"targets are for estimator: progress, but it is {settings.estimator}. Leave them out.")
        return None
    if settings.reweighting != "none":
        raise GeomGNNError(
            f"reweighting is {settings.reweighting}, but estimator: progress learns from every frame as it is, those under "
            "a bias too. Use reweighting: none."
        )
    if targets is None:
        raise GeomGNNError(
            "estimator: progress needs targets for every frame, as `geomgnn run` with explore makes them of slow torsions "
            "(analysis.progress). Give them, or use estimator: linear."
        )
    arrays = [np.asarray(part, dtype=np.float64) for part in targets]
    expected = [(length, settings.n_components) for length in lengths]
    if [part.shape for part in arrays] != expected or not all(np.isfinite(part).all() for part in arrays):
        raise GeomGNNError(
            f"The targets have the shapes {[part.shape for part in arrays]}, but must be finite and have {expected}: the "
            "frames of each trajectory, and the components of the CV."
        )
    if names is not None and len(names) != settings.n_components:
        raise GeomGNNError(f"There are {len(names)} names for {settings.n_components} targets. Give one for each.")
    return arrays


def estimate_progress(
    mixer: Mixer, frames: TrainingFrames, lag: int, settings: FitSettings, progress: StageProgress, unfinished: Unfinished
) -> Estimate:
    """Regression of the targets on the features.

    The weights W minimise

        sum_f w_f |y_f - W^T z_f|^2 + ridge |W|^2 + softening^2 <|W^T dz/dt|^2>

    z are the features in units of their spread, w_f the weights of frames, even along each target, and the last term is how
    fast thermal motion moves the CV.
    """
    targets: Any = frames.targets
    features = [np.asarray(part, dtype=np.float64) for part in features_of(mixer, frames.tokens)]
    rates = np.zeros((0, mixer.out_features))
    if settings.softening:
        rates = settings.softening * feature_rates(frames.featurization, mixer, frames.positions, settings, progress)
    weights = even_weights(targets)
    mean, projection = _regression(features, targets, weights, rates)
    lags = [
        max(1, round(settings.lagtime / interval))
        for interval in frames.intervals or [settings.frame_interval] * len(targets)
    ]
    r2, noise = _held_out_errors(features, targets, weights, rates, lags)
    psi = [(part - mean) @ projection for part in features]
    biased = frames.biased or [False] * len(psi)
    resting = [k for k, one in enumerate(biased) if not one] or list(range(len(psi)))
    strengths = _autocorrelations([psi[k] for k in resting], [lags[k] for k in resting])
    scores = {
        "vamp2_training": 1.0 + float(np.square(strengths).sum()),
        "r2_held_out": r2.tolist(),
        "noise": noise.tolist(),
        "ridge": RIDGE,
        "least_kernel_width": LEAST_WIDTH,
        "softening_ps": settings.softening,
    }
    return Estimate(mixer, KoopmanModel(mean, projection, strengths, lagtime=lag), scores)


def even_weights(targets: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Weights (F,) of all frames, which sum to 1, by how few frames have similar targets.

    A long run in one basin does not drown the few frames of a barrier.
    """
    y = np.concatenate(targets)
    bins = np.clip((y / _RANGE + 1) / 2 * _BINS, 0, _BINS - 1).astype(int)
    weights = np.mean([1 / np.bincount(column, minlength=_BINS)[column] for column in bins.T], axis=0)
    return np.split(weights / weights.sum(), np.cumsum([len(part) for part in targets])[:-1])


def _regression(
    features: Sequence[np.ndarray], targets: Sequence[np.ndarray], weights: Sequence[np.ndarray], rates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n,) and projection (n, m), of which (features - mean) @ projection are the targets.

    rates: (K, n) derivatives of the features, times the softening.
    """
    x, y, w = (np.concatenate(part) for part in (features, targets, weights))
    w = w / w.sum()
    mean, zero = w @ x, w @ y
    spread = np.sqrt(w @ np.square(x - mean))
    noise = FLOOR_OF_MEAN * np.abs(mean) + FLOOR_OF_WIDEST * spread.max()  # of float32 arithmetic
    spread = np.where(spread > noise, spread, np.inf)  # what does not vary has no part
    z = (x - mean) / spread
    matrix = (z * w[:, None]).T @ z + RIDGE * np.eye(z.shape[1])
    if len(rates):
        matrix += (rates / spread).T @ (rates / spread) / len(rates)
    projection = np.linalg.solve(matrix, (z * w[:, None]).T @ (y - zero)) / spread[:, None]
    # the offset, as the smallest shift of the mean that makes it
    shift, *_ = np.linalg.lstsq(projection.T, zero, rcond=None)
    return mean - shift, projection


def _held_out_errors(
    features: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    rates: np.ndarray,
    lags: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """R2 and root mean square error (m,) at frames that were held out, evenly along the targets.

    lags: frames of each trajectory in a lag time, which are left out around what is held out: closer ones are alike.
    """
    lengths = [len(part) for part in features]
    where = even_frames(lengths, RATE_FRAMES)
    rows: list[tuple[np.ndarray, ...]] = []
    for training, held in folds_of_blocks(lengths, lags, FOLDS):
        if not (training and held):  # too short for a part in every fold
            continue
        seen: list[Segment] = list(training)
        x, y, w = ([s.take(arrays) for s in seen] for arrays in (features, targets, weights))
        mean, projection = _regression(x, y, w, rates_within(rates, where, seen) if len(rates) else rates)
        rows += [((s.take(features) - mean) @ projection, s.take(targets), s.take(weights)) for s in held]
    if not rows:
        raise GeomGNNError(
            f"The trajectories ({', '.join(map(str, lengths))} frames) are too short to hold parts of them out, a lag "
            f"time of {', '.join(map(str, lags))} frames away from the rest. Use a shorter lag, or longer trajectories."
        )
    found, wanted, weight = (np.concatenate(part) for part in zip(*rows, strict=True))
    errors = np.average(np.square(found - wanted), axis=0, weights=weight)
    spread = np.average(np.square(wanted - np.average(wanted, axis=0, weights=weight)), axis=0, weights=weight)
    return 1 - errors / np.maximum(spread, 1e-12), np.sqrt(errors)


def _autocorrelations(psi: Sequence[np.ndarray], lags: Sequence[int]) -> np.ndarray:
    """That of each component (m,) over all trajectories together, as a reversible model would have them.

    lags: the lag time in frames of each trajectory. Those that are too short have no part.
    """
    mean = np.concatenate(psi).mean(axis=0)
    pairs = [(part[:-lag] - mean, part[lag:] - mean) for part, lag in zip(psi, lags, strict=True) if len(part) > lag]
    if not pairs:
        return np.full(psi[0].shape[1], _WEAKEST)
    first, second = (np.concatenate(part) for part in zip(*pairs, strict=True))
    variance = 0.5 * (np.square(first) + np.square(second)).mean(axis=0)
    return np.clip((first * second).mean(axis=0) / np.maximum(variance, 1e-12), _WEAKEST, _STRONGEST)
