"""Linear probes: how much of an observable a ridge regression reads from features, in frames that it has not seen.

Alain & Bengio 2016 (arXiv 1610.01644). What is held out are blocks of time, a gap away from what is fitted to, since frames
that follow one another are nearly the same. The penalty is chosen for each observable within the frames that are fitted to,
by holding out the blocks of each other fold.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import Segment, folds_of_blocks

PENALTIES = np.logspace(-6, 2, 9)  # times the number of frames, for features of unit variance
NOISE = 1e-5  # a feature that varies by less than this share of its size is rounding in float32


class Fold(NamedTuple):
    """Which frames of all trajectories together, (F,) bool each, are fitted to and which are held out."""

    training: np.ndarray
    held_out: np.ndarray


def make_folds(lengths: Sequence[int], folds: int, gap: int, shortest: int = 1) -> list[Fold]:
    """Hold out each block of each trajectory once, by `koopman.folds_of_blocks`.

    Parameters
    ----------
    lengths : sequence of int
        Frames of each trajectory.
    folds : int
    gap : int
        Frames that are left out between what is fitted to and what is held out.
    shortest : int
        Blocks have twice as many frames at least.

    Raises
    ------
    GeomGNNError
        If the trajectories are too short.
    """
    if folds < 2:
        raise GeomGNNError(f"A probe needs at least 2 folds, but there are {folds}.")
    starts = np.cumsum([0, *lengths])

    def mask(segments: Sequence[Segment]) -> np.ndarray:
        chosen = np.zeros(starts[-1], bool)
        for s in segments:
            chosen[starts[s.trajectory] + s.start : starts[s.trajectory] + s.stop] = True
        return chosen

    split = folds_of_blocks(lengths, [shortest] * len(lengths), folds, gaps=[gap] * len(lengths))
    found = [Fold(mask(training), mask(held)) for training, held in split]
    inner = [a.training & b.training for a in found for b in found]
    if not all(part.any() for fold in found for part in fold) or not all(part.sum() > 1 for part in inner):
        raise GeomGNNError(
            f"The trajectories ({starts[-1]} frames in {len(lengths)}, longest {max(lengths)}) are too short for {folds} "
            f"folds with a gap of {gap} frames between what is fitted to and what is held out. Use more frames, fewer folds "
            "or a shorter gap."
        )
    return found


def of_frames(folds: Sequence[Fold], rows: np.ndarray) -> list[Fold]:
    """The same folds of some of the frames, (K,) numbers.

    Raises
    ------
    GeomGNNError
        If these frames are too few.
    """
    found = [Fold(fold.training[rows], fold.held_out[rows]) for fold in folds]
    if not all(fold.held_out.any() and (a.training & fold.training).sum() > 1 for fold in found for a in found):
        raise GeomGNNError(f"{len(rows)} frames are too few for {len(folds)} folds. Use more frames, or fewer folds.")
    return found


def probe(
    features: npt.ArrayLike,
    targets: Sequence[npt.ArrayLike],
    folds: Sequence[Fold],
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """R2 of each observable in each fold, by ridge regression on standardised features.

    R2 is 1 - (squared error) / (squared distance from the mean of the frames that were fitted to), both over the frames that
    are held out: 1 for a perfect probe, about 0 for one that knows nothing, below 0 for one that is worse than that mean.

    Parameters
    ----------
    features : (F, n) array
        Along all trajectories, one after the other.
    targets : sequence of (F, m) arrays
        One for each observable; its columns, such as a cosine and a sine, have one R2 together.
    folds : list of Fold
    progress : callable, optional
        Called as progress(done, total).

    Returns
    -------
    (observables, folds) ndarray
        nan where an observable does not vary in a fold.

    Raises
    ------
    GeomGNNError
        If the number of frames differs, or some value is not finite.
    """
    x = np.asarray(features, dtype=np.float64)
    arrays = [np.asarray(part, dtype=np.float64) for part in targets]
    columns = [part.reshape(len(part), -1) for part in arrays]
    for part in (x, *columns):
        if len(part) != len(folds[0].training):
            raise GeomGNNError(
                f"There are {len(part)} frames of a feature or observable for {len(folds[0].training)} frames."
            )
        if not np.isfinite(part).all():
            raise GeomGNNError("Some features or observables are not finite numbers. Leave those frames out.")
    owner = np.repeat(np.arange(len(columns)), [part.shape[1] for part in columns])
    y = np.concatenate(columns, axis=1)
    scores = np.full((len(columns), len(folds)), np.nan)
    for k, fold in enumerate(folds):
        inner = [other for j, other in enumerate(folds) if j != k]
        tried = [_errors(x, y, fold.training & one.training, fold.training & one.held_out, PENALTIES) for one in inner]
        # of each observable, its squared errors over all inner folds by each penalty
        error = sum(_by_owner(errors, owner, len(columns)) for errors, _ in tried)
        best = np.argmin(error, axis=0)
        errors, spread = _errors(x, y, fold.training, fold.held_out, PENALTIES)
        chosen = _by_owner(errors, owner, len(columns))[best, np.arange(len(columns))]
        total = _by_owner(spread[None], owner, len(columns))[0]
        scores[:, k] = 1 - np.divide(chosen, total, out=np.full_like(total, np.nan), where=total > 0)
        if progress is not None:
            progress(k + 1, len(folds))
    return scores


def _by_owner(values: np.ndarray, owner: np.ndarray, number: int) -> np.ndarray:
    """Sums (K, number) of the columns (K, m) that belong together."""
    sums = np.zeros((len(values), number))
    np.add.at(sums.T, owner, values.T)
    return sums


def _errors(
    x: np.ndarray, y: np.ndarray, training: np.ndarray, held_out: np.ndarray, penalties: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors (K, m) in held-out frames by ridge regression with K penalties, and distances (m,) from the mean."""
    mean, scale = x[training].mean(axis=0), x[training].std(axis=0)
    alive = scale > NOISE * np.maximum(np.abs(mean), scale.max(initial=0.0))
    a, b = ((x[rows][:, alive] - mean[alive]) / scale[alive] for rows in (training, held_out))
    centre = y[training].mean(axis=0)
    t, wanted = y[training] - centre, y[held_out] - centre
    if a.shape[1] <= len(a):
        values, axes = np.linalg.eigh(a.T @ a)
        left, right = b @ axes, axes.T @ (a.T @ t)
    else:  # the same in the space of frames
        values, axes = np.linalg.eigh(a @ a.T)
        left, right = b @ (a.T @ axes), axes.T @ t
    values = values.clip(min=0)[:, None]
    errors = [np.square(wanted - left @ (right / (values + len(a) * penalty))).sum(axis=0) for penalty in penalties]
    return np.stack(errors), np.square(wanted).sum(axis=0)
