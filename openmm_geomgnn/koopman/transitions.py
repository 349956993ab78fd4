"""Tests of whether the data cross a slow function, or whether it merely distinguishes trajectories."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri

from .vamp import timescales

# p-value below which the averages of runs count as separated
SIGNIFICANCE = 1e-3


@dataclass(frozen=True)
class Transitions:
    """Transitions of the components of psi in the trajectories; see `transitions`.

    Attributes
    ----------
    counts : (m,) ndarray of int
        Number of transitions between the extremes, within trajectories.
    separates_runs : (m,) ndarray of bool
        Whether a component distinguishes trajectories, so that its singular value describes a separation, not a relaxation.
    between : (m,) ndarray of int
        Number of frames in the middle third between the means of the two groups of values.
    """

    counts: np.ndarray
    separates_runs: np.ndarray
    between: np.ndarray


def transitions(psi: Sequence[np.ndarray], lagtime: int, singular_values: npt.ArrayLike) -> Transitions:
    """Count the transitions between the extremes of each component of psi, within trajectories.

    The estimator cannot distinguish a barrier that was never crossed from a difference between runs: two runs of white noise
    with different means have a singular value near one. Two tests detect this.

    Transitions: psi is averaged over a lag time, which removes faster relaxations. The averages are split into two groups
    such that the variance between the groups is largest (N. Otsu, IEEE Trans. Syst. Man Cybern. 9, 62, 1979), which finds a
    state whatever its population. The core of a group lies beyond its mean; a transition is an arrival in one core from the
    other, so recrossings between the cores do not count.

    Averages: for a process of unit variance with relaxation time t, the mean of a run of length L has the variance
    2(t/L)(1 - (t/L)(1 - exp(-L/t))). If the means of the runs differ by more than this explains (chi-square test at the
    level SIGNIFICANCE), the runs are separated as well, even if noise makes their values overlap.

    Parameters
    ----------
    psi
        (T, m) values for each trajectory, of unit variance over all of them.
    lagtime
        In frames.
    singular_values
        (m,) singular values of psi at that lag time.
    """
    singular_values = np.atleast_1d(singular_values)
    psi = [np.asarray(x, np.float64) for x in psi]
    smooth = [_running_mean(x, min(lagtime, len(x))) for x in psi]
    counts, separated, between = [], [], []
    for component, relaxation in enumerate(timescales(singular_values, lagtime)):
        low, high = _groups(np.concatenate([x[:, component] for x in smooth]))
        count = sum(_passages(x[:, component], low, high) for x in smooth)
        apart = _means_are_apart([x[:, component] for x in psi], relaxation)
        counts.append(count)
        every, third = np.concatenate([x[:, component] for x in psi]), (high - low) / 3
        between.append(np.count_nonzero((every > low + third) & (every < high - third)))
        separated.append(len(psi) > 1 and (count == 0 or apart))
    return Transitions(np.array(counts, int), np.array(separated, bool), np.array(between, int))


def basins(values: Sequence[np.ndarray], lagtime: int | Sequence[int]) -> list[bool | None]:
    """Say for each trajectory of a slow function in which of two basins it stayed.

    The basins are the two groups of values of `transitions`, averaged over a lag time as there.

    Parameters
    ----------
    values : list of (T,) array
    lagtime
        In frames, of all trajectories or of each.

    Returns
    -------
    list of bool or None
        True for the upper basin, False for the lower, by the mean of the trajectory; None where it went from one to the
        other.
    """
    lags = np.broadcast_to(lagtime, len(values))
    arrays = [np.asarray(x, np.float64) for x in values]
    smooth = [_running_mean(x[:, None], min(int(lag), len(x)))[:, 0] for x, lag in zip(arrays, lags, strict=True)]
    low, high = _groups(np.concatenate(smooth))
    return [None if _passages(x, low, high) else bool(x.mean() > 0.5 * (low + high)) for x in smooth]


def _running_mean(x: np.ndarray, window: int) -> np.ndarray:
    """Averages of `window` consecutive rows, (T - window + 1, m)."""
    sums = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x - x.mean(0), axis=0)])
    return (sums[window:] - sums[:-window]) / window + x.mean(0)


def _groups(values: np.ndarray) -> tuple[float, float]:
    """Means of the two groups of values with the largest variance between them."""
    values = np.sort(values)
    size = np.arange(1, len(values))
    below = np.cumsum(values)[:-1]
    low, high = below / size, (values.sum() - below) / (len(values) - size)
    best = np.argmax(size * (len(values) - size) * (high - low) ** 2)
    return low[best], high[best]


def _passages(values: np.ndarray, low: float, high: float) -> int:
    """Count how often values go from at most `low` to at least `high`, or back."""
    core = np.where(values <= low, -1, np.where(values >= high, 1, 0))
    visited = core[core != 0]
    return int(np.count_nonzero(np.diff(visited)))


def _means_are_apart(runs: Sequence[np.ndarray], relaxation: float) -> bool:
    """Whether the means of runs differ by more than a relaxation time, in frames, explains."""
    if len(runs) < 2 or not np.isfinite(relaxation):
        return False
    share = max(relaxation, 0.5) / np.array([len(x) for x in runs])
    variance = 2 * share * (1 - share * -np.expm1(-1 / share))
    means = np.array([x.mean() for x in runs])
    centre = np.average(means, weights=1 / variance)
    return bool(np.sum((means - centre) ** 2 / variance) > chdtri(len(runs) - 1, SIGNIFICANCE))
