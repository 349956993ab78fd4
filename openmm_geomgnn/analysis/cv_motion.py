"""Whether a CV moves with the states, or with something else that tells them apart and is driven instead."""

from collections.abc import Sequence

import numpy as np

from openmm_geomgnn.analysis.crossings import core_crossings

FEWEST_FRAMES = 10  # of a state whose median is an end
_PERCENTILES = (10, 90)
_LEAST_COVERED = 0.5  # of the training range, between these percentiles, for them to be ends of it


def cv_crossings(
    values: Sequence[np.ndarray], states: Sequence[np.ndarray], training_range: tuple[float, float] | None = None
) -> float:
    """Count how often a component of a CV went from one of its ends to the other, summed over the walkers.

    The ends are the medians of the two states that are furthest apart along it. Of a single state, they are the 10th and
    90th percentile, if these cover at least half of the CV's training range.

    Parameters
    ----------
    values : list of (T,) array
    states : list of (T,) array of int
        The state of every frame.
    training_range : (float, float), optional
        Least and greatest value in the CV's training data.

    Returns
    -------
    float
        nan where the ends are not known.
    """
    every, number = np.concatenate(values), np.concatenate(states)
    known = [np.median(every[number == k]) for k in np.unique(number) if np.count_nonzero(number == k) >= FEWEST_FRAMES]
    if len(known) > 1:
        low, high = min(known), max(known)
    else:
        if training_range is None:
            return float("nan")
        low, high = np.percentile(every, _PERCENTILES)
        covered = min(high, training_range[1]) - max(low, training_range[0])
        if covered < _LEAST_COVERED * (training_range[1] - training_range[0]):
            return float("nan")
    least, most = every.min() - 1, every.max() + 1
    return float(core_crossings(values, (least, low), (high, most))) if low < high else float("nan")
