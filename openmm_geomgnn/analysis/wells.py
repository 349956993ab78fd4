"""The wells of single torsions: sets of angles that simulations leave rarely."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.analysis.kinetic_sets import attach, metastable_sets
from openmm_geomgnn.analysis.resampling import relative_weights
from openmm_geomgnn.errors import GeomGNNError

CORE = 0.8  # least membership of the bins of a core
# of a well's population that its core has: the rarest bins may be the slope of a barrier that a bias has filled
CORE_SHARE = 0.9
FEWEST_FRAMES = 20  # of a state
HIGHEST_SADDLE = 0.6  # density between two wells, by that at the bottom of the shallower one, for them to be two
LOWEST_SADDLE = 0.1  # where only the density tells two wells apart
_MOST_WELLS = 4  # of a torsion
_BINS = 36
_SHORTEST_LAG = 1.0  # ps: what happens within it is vibration
_WEAKEST = -25.0  # log-weight below which a frame counts as if it had this one: it still connects


class Wells(NamedTuple):
    """The wells of a torsion, all runs one after the other.

    torsion: its number. well: (N,) the well of every frame. inside: (N,) of bool, whether it is well inside. centres: (n,)
    complex, of unit length. saddle: density where it is easiest to leave a well, by that at the bottom of the shallowest.
    """

    torsion: int
    well: np.ndarray
    inside: np.ndarray
    centres: np.ndarray
    saddle: float


def wells_of(runs: Sequence[np.ndarray], logw: Sequence[np.ndarray], steps: Sequence[int], torsion: int) -> Wells | None:
    """The wells of a torsion, (F,) in each run; None where it has one."""
    labels = [((run + np.pi) / (2 * np.pi) * _BINS).astype(int) % _BINS for run in runs]
    every, weights = np.concatenate(labels), np.concatenate(relative_weights(logw))
    visits, population = np.bincount(every, minlength=_BINS), np.bincount(every, weights, _BINS)
    kinetic = metastable_sets(_transitions(labels, logw, steps), visits, FEWEST_FRAMES, _MOST_WELLS)
    found = _wells(kinetic, every, visits, population, torsion)
    if found is None and any(np.ptp(values[np.isfinite(values)]) > 0 for values in logw if len(values)):
        # a bias may carry it over a barrier within the lag time, and holds it where it would not stay
        found = _wells(_basins(_smooth(_smooth(population)), visits), every, visits, population, torsion)
    return found


def _wells(
    memberships: np.ndarray, every: np.ndarray, visits: np.ndarray, population: np.ndarray, torsion: int
) -> Wells | None:
    """The wells that memberships (k, n) of bins make; None where they are one.

    every: the bin of each frame. visits, population: (k,), frames and weights in the bins.
    """
    n = memberships.shape[1]
    if n < 2:
        return None
    middles = np.exp(1j * ((np.arange(_BINS) + 0.5) / _BINS * 2 * np.pi - np.pi))
    # bins of few frames go with their neighbours
    memberships = _smooth(_smooth(attach(memberships, np.column_stack([middles.real, middles.imag]))))
    own, inside, density = memberships.argmax(1), memberships.max(1) > CORE, _smooth(population)
    bottoms = [density[own == well].max(initial=0.0) for well in range(n)]
    ends = own != np.roll(own, -1)
    saddle = np.minimum(density, np.roll(density, -1))[ends].max(initial=0.0) / max(min(bottoms), 1e-300)
    if len(np.unique(own[every])) < n or saddle > HIGHEST_SADDLE:
        return None
    for well in range(n):
        mine = np.flatnonzero(own == well)
        mine = mine[np.argsort(-population[mine], kind="stable")]
        held = np.cumsum(population[mine]) - population[mine]  # by those before
        inside[mine[held > CORE_SHARE * population[mine].sum()]] = False
    sums = np.array([visits[own == well] @ middles[own == well] for well in range(n)])
    return Wells(torsion, own[every], inside[every], sums / np.maximum(np.abs(sums), 1e-12), float(saddle))


def _basins(density: np.ndarray, visits: np.ndarray) -> np.ndarray:
    """Memberships (k, n), 0 or 1, of bins in the basins of a density, between which it is lower by LOWEST_SADDLE."""
    ends = [k for k in range(len(density)) if density[k] <= density[k - 1] and density[k] < density[(k + 1) % len(density)]]
    while len(ends) > 1:
        after = [*ends[1:], ends[0] + len(density)]
        bins = [np.arange(a, b) % len(density) for a, b in zip(ends, after, strict=True)]
        peaks = [density[part].max() if visits[part].sum() >= FEWEST_FRAMES else 0.0 for part in bins]
        lower = [min(peaks[k - 1], peaks[k]) for k in range(len(ends))]
        ratios = [density[end] / one if one > 0 else np.inf for end, one in zip(ends, lower, strict=True)]
        highest = int(np.argmax(ratios))
        if ratios[highest] <= LOWEST_SADDLE:
            return np.stack([np.isin(np.arange(len(density)), part).astype(float) for part in bins], axis=1)
        del ends[highest]
    return np.ones((len(density), 1))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Means of neighbours on the circle, over the first axis."""
    return (np.roll(values, 1, axis=0) + 2 * values + np.roll(values, -1, axis=0)) / 4


def _transitions(labels: Sequence[np.ndarray], logw: Sequence[np.ndarray], steps: Sequence[int]) -> np.ndarray:
    """Symmetric counts of transitions between bins within the lag time."""
    counts = np.zeros((_BINS, _BINS))
    offset = max(float(values.max(initial=-np.inf)) for values in logw)
    for run, values, step in zip(labels, logw, steps, strict=True):
        weights = np.maximum(values - offset, _WEAKEST)
        np.add.at(counts, (run[:-step], run[step:]), np.exp((weights[:-step] + weights[step:]) / 2))
    return (counts + counts.T) / 2


def check_runs(torsions: Sequence[npt.ArrayLike], names: Sequence[str] | None) -> tuple[list[np.ndarray], list[str]]:
    """Torsions (F, T) of every run and their names. Raises GeomGNNError if they do not fit each other or are not finite."""
    runs = [np.asarray(run, dtype=np.float64) for run in torsions]
    shapes = [run.shape for run in runs]
    if not runs or any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
        raise GeomGNNError(f"The torsions have the shapes {shapes}: give an array of frames by torsions for each run.")
    if not sum(map(len, runs)):
        raise GeomGNNError("The runs have no frames, so no states can be found in them.")
    if not all(np.isfinite(run).all() for run in runs):
        raise GeomGNNError("Some torsions are not finite. Look at the trajectories: such a simulation has failed.")
    count = runs[0].shape[1]
    names = [f"torsion {k + 1}" for k in range(count)] if names is None else list(names)
    if len(names) != count:
        raise GeomGNNError(f"There are {len(names)} names for {count} torsions. Give one for each.")
    return runs, names


def check_weights(weights: Sequence[npt.ArrayLike] | None, runs: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Log-weights (F,) of every run. Raises GeomGNNError if they are not those of its frames."""
    if weights is None:
        return None
    logw = [np.asarray(values, dtype=np.float64) for values in weights]
    if [values.shape for values in logw] != [(len(run),) for run in runs]:
        raise GeomGNNError(
            f"The log-weights have the shapes {[values.shape for values in logw]}, but the runs have {list(map(len, runs))} "
            "frames: give one for every frame."
        )
    return logw


def lag_steps(runs: Sequence[np.ndarray], frame_interval: float | Sequence[float], lag: float | None) -> list[int]:
    """The lag time in frames of each run."""
    intervals = np.broadcast_to(np.asarray(frame_interval, float), (len(runs),))
    if not (np.isfinite(intervals) & (intervals > 0)).all():
        raise GeomGNNError(f"The time between frames must be a positive number of ps, but it is {frame_interval}.")
    given, lag = lag is not None, max(_SHORTEST_LAG, float(intervals.max())) if lag is None else lag
    steps = [max(1, round(lag / interval)) for interval in intervals]
    if given and all(len(run) <= step for run, step in zip(runs, steps, strict=True)):
        raise GeomGNNError(f"No run is longer than the lag time of {lag:g} ps, so no transitions can be counted.")
    return steps
