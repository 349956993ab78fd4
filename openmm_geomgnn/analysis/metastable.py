"""Metastable states of a molecule, found in the torsions of its simulations, without being told of any."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.analysis.found_states import FoundState, FoundStates, core_arrivals, populations
from openmm_geomgnn.analysis.kinetic_sets import attach, metastable_sets
from openmm_geomgnn.analysis.resampling import relative_weights
from openmm_geomgnn.errors import GeomGNNError

CORE = 0.8  # least membership of the bins of a core
# of a well's population that its core has: the rarest bins may be the slope of a barrier that a bias has filled
CORE_SHARE = 0.9
FEWEST_FRAMES = 20  # of a state
HIGHEST_SADDLE = 0.6  # density between two wells, by that at the bottom of the shallower one, for them to be two
MOST_STATES = 8
_MOST_WELLS = 4  # of a torsion
_BINS = 36
_SHORTEST_LAG = 1.0  # ps: what happens within it is vibration
_WEAKEST = -25.0  # log-weight below which a frame counts as if it had this one: it still connects


def find_metastable_states(
    torsions: Sequence[npt.ArrayLike],
    frame_interval: float | Sequence[float],
    names: Sequence[str] | None = None,
    *,
    weights: Sequence[npt.ArrayLike] | None = None,
    lag: float | None = None,
    most: int = MOST_STATES,
    seed: int = 0,
) -> FoundStates:
    """Find the metastable states in simulations of one molecule, biased or not.

    Each torsion is divided into bins, transitions between these within a lag time are counted, forwards and backwards, and
    sets of bins that are left rarely are its wells (`kinetic_sets`); sets between which there were no transitions are wells
    of their own. The states are the combinations of the wells that were visited, of the torsions with the highest barriers
    first, as long as there are no more than `most`. One torsion at a time takes far fewer frames than all of them together.

    A biased simulation has biased kinetics. Only the sets are taken from it, not their rates, and where there are weights, a
    transition counts by the geometric mean of the weights of its two frames: a barrier that the bias has filled is a barrier
    again.

    Parameters
    ----------
    torsions : list of (F, T) array
        Angles in radians, one array per run, as `rotatable_torsions(topology).compute(trajectory)` gives them. Runs are
        never joined.
    frame_interval : float or list of float
        ps between frames, of all runs or of each.
    names : sequence of str, optional
        Of the T torsions.
    weights : list of (F,) array, optional
        Log-weights of the frames with one offset for all runs (`free_energy.log_weights`), -inf for frames that have no
        part in populations.
    lag : float, optional
        ps within which transitions are counted; by default 1 ps, or the longest interval between frames.
    most : int, optional
        How many states there are at most.
    seed : int, optional

    Returns
    -------
    FoundStates

    Raises
    ------
    GeomGNNError
        If arrays do not fit each other, angles are not finite, or no run is longer than the lag time that is given.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> basin = np.repeat(rng.integers(0, 2, 40), 25)  # of 1000 frames
    >>> phi = np.where(basin, 1.0, -1.5) + 0.2 * rng.normal(size=1000)
    >>> found = find_metastable_states([phi[:, None]], 1.0, ["phi"])
    >>> sorted(state.name for state in found.states)
    ['phi -87 deg', 'phi 58 deg']
    """
    runs, names = _check_runs(torsions, names)
    logw = _check_weights(weights, runs)
    steps = _steps(runs, frame_interval, lag)
    counted = [np.zeros(len(run)) for run in runs] if logw is None else logw
    wells = [_wells([run[:, k] for run in runs], counted, steps, k) for k in range(len(names))]
    chosen, labels = _combinations([one for one in wells if one is not None], sum(map(len, runs)), most)
    own = _nearest_kept(chosen, labels)
    inside = np.all([one.inside for one in chosen] or [np.ones(len(own), bool)], axis=0)
    inside &= own == labels  # not of a combination that is too rare to be a state
    return _described(own, inside, chosen, runs, names, counted, logw is not None, seed)


def _check_runs(torsions: Sequence[npt.ArrayLike], names: Sequence[str] | None) -> tuple[list[np.ndarray], list[str]]:
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


def _check_weights(weights: Sequence[npt.ArrayLike] | None, runs: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    if weights is None:
        return None
    logw = [np.asarray(values, dtype=np.float64) for values in weights]
    if [values.shape for values in logw] != [(len(run),) for run in runs]:
        raise GeomGNNError(
            f"The log-weights have the shapes {[values.shape for values in logw]}, but the runs have {list(map(len, runs))} "
            "frames: give one for every frame."
        )
    return logw


def _steps(runs: Sequence[np.ndarray], frame_interval: float | Sequence[float], lag: float | None) -> list[int]:
    """The lag time in frames of each run."""
    intervals = np.broadcast_to(np.asarray(frame_interval, float), (len(runs),))
    if not (np.isfinite(intervals) & (intervals > 0)).all():
        raise GeomGNNError(f"The time between frames must be a positive number of ps, but it is {frame_interval}.")
    given, lag = lag is not None, max(_SHORTEST_LAG, float(intervals.max())) if lag is None else lag
    steps = [max(1, round(lag / interval)) for interval in intervals]
    if given and all(len(run) <= step for run, step in zip(runs, steps, strict=True)):
        raise GeomGNNError(f"No run is longer than the lag time of {lag:g} ps, so no transitions can be counted.")
    return steps


class _Wells(NamedTuple):
    """The wells of a torsion, all runs one after the other.

    torsion: its number. well: (N,) the well of every frame. inside: (N,) of bool, whether it is well inside. centres: (n,)
    complex, of unit length. saddle: density where it is easiest to leave a well, by that at the bottom of the shallowest.
    """

    torsion: int
    well: np.ndarray
    inside: np.ndarray
    centres: np.ndarray
    saddle: float


def _wells(runs: Sequence[np.ndarray], logw: Sequence[np.ndarray], steps: Sequence[int], torsion: int) -> _Wells | None:
    """The wells of a torsion, (F,) in each run; None where it has one."""
    labels = [((run + np.pi) / (2 * np.pi) * _BINS).astype(int) % _BINS for run in runs]
    every, weights = np.concatenate(labels), np.concatenate(relative_weights(logw))
    visits, population = np.bincount(every, minlength=_BINS), np.bincount(every, weights, _BINS)
    memberships = metastable_sets(_transitions(labels, logw, steps), visits, FEWEST_FRAMES, _MOST_WELLS)
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
    return _Wells(torsion, own[every], inside[every], sums / np.maximum(np.abs(sums), 1e-12), float(saddle))


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


def _combinations(wells: Sequence[_Wells], n_frames: int, most: int) -> tuple[list[_Wells], np.ndarray]:
    """The torsions whose combinations of wells are the states, and the number of the combination of every frame, (N,)."""
    chosen: list[_Wells] = []
    for one in sorted(wells, key=lambda one: one.saddle):
        more = sorted([*chosen, one], key=lambda one: one.torsion)
        if len(_kept(_numbers(more, n_frames))) <= most:
            chosen = more
    return chosen, _numbers(chosen, n_frames)


def _numbers(chosen: Sequence[_Wells], n_frames: int) -> np.ndarray:
    """The combination of the wells of every frame as a number, (N,); `_digits` takes it apart."""
    labels = np.zeros(n_frames, int)
    for one in chosen:
        labels = labels * len(one.centres) + one.well
    return labels


def _kept(labels: np.ndarray) -> np.ndarray:
    """The combinations that enough frames have."""
    numbers, frames = np.unique(labels, return_counts=True)
    kept = numbers[frames >= FEWEST_FRAMES]
    return kept if len(kept) else numbers[[frames.argmax()]]


def _digits(numbers: np.ndarray, chosen: Sequence[_Wells]) -> np.ndarray:
    """The well of each torsion in combinations, (n, number of torsions)."""
    wells = np.zeros((len(numbers), len(chosen)), int)
    for column in reversed(range(len(chosen))):
        numbers, wells[:, column] = np.divmod(numbers, len(chosen[column].centres))
    return wells


def _nearest_kept(chosen: Sequence[_Wells], labels: np.ndarray) -> np.ndarray:
    """The combinations (N,), those that are too rare to be states replaced by the nearest that is one."""
    numbers, kept = np.unique(labels), _kept(labels)
    places = [
        np.stack([one.centres[well] for one, well in zip(chosen, wells.T, strict=True)] or [np.ones(len(wells))], axis=1)
        for wells in (_digits(numbers, chosen), _digits(kept, chosen))
    ]
    nearest = np.abs(places[0][:, None] - places[1]).sum(2).argmin(1)
    return kept[nearest][np.searchsorted(numbers, labels)]


def _described(
    own: np.ndarray,
    inside: np.ndarray,
    chosen: Sequence[_Wells],
    runs: Sequence[np.ndarray],
    names: Sequence[str],
    logw: Sequence[np.ndarray],
    weighted: bool,
    seed: int,
) -> FoundStates:
    """FoundStates of the combination (N,) of every frame, and of whether it is well inside."""
    kept, every = np.unique(own, return_inverse=True)
    ends, n = np.cumsum([len(run) for run in runs])[:-1], len(kept)
    numbers = populations(np.split(every, ends), logw, n, seed)
    order = np.argsort(-numbers[:, 0], kind="stable")
    every, numbers = np.argsort(order)[every], numbers[order]
    membership, cores = np.split(every, ends), np.split(np.where(inside, every, -1), ends)
    angles = np.concatenate(runs)
    centres = np.array([np.angle(np.exp(1j * angles[every == k]).sum(0)) for k in range(n)])
    called = _names(
        _digits(kept[order], chosen), centres[:, [one.torsion for one in chosen]], [names[c.torsion] for c in chosen]
    )
    states = [
        FoundState(
            name=called[k],
            population=float(numbers[k, 0]),
            error=float(numbers[k, 1]) if weighted else float("nan"),
            frames=int(np.count_nonzero(every == k)),
            example=_nearest(k, membership, runs, centres[k]),
        )
        for k in range(n)
    ]
    return FoundStates(tuple(states), membership, cores, core_arrivals(cores, n))


def _names(wells: np.ndarray, centres: np.ndarray, names: Sequence[str]) -> list[str]:
    """Names of states by the fewest torsions that tell each from the others. wells, centres: (n, number of torsions)."""
    states, torsions = range(len(wells)), range(wells.shape[1])
    # of few torsions that tell all apart, those that this one needs
    few = sorted(_telling(wells, list(combinations(states, 2)), torsions))
    called = []
    for k in states:
        mine = sorted(_telling(wells, [(k, other) for other in states if other != k], few))
        called.append(", ".join(f"{names[t]} {np.degrees(centres[k, t]):.0f} deg" for t in mine) or "all frames")
    return called


def _telling(wells: np.ndarray, pairs: Sequence[tuple[int, int]], among: Sequence[int]) -> list[int]:
    """Few torsions, each the one that tells the most of the remaining pairs of states apart."""
    chosen: list[int] = []
    while pairs:
        alike = {torsion: [(i, j) for i, j in pairs if wells[i, torsion] == wells[j, torsion]] for torsion in among}
        best = min(alike, key=lambda torsion: len(alike[torsion]))
        chosen.append(best)
        pairs = alike[best]
    return chosen


def _nearest(
    state: int, membership: Sequence[np.ndarray], runs: Sequence[np.ndarray], centre: np.ndarray
) -> tuple[int, int]:
    """Run and frame of a state whose torsions are nearest its centre."""
    best: tuple[float, int, int] = (np.inf, 0, 0)
    for number, (states, angles) in enumerate(zip(membership, runs, strict=True)):
        away = np.where(states == state, (1 - np.cos(angles - centre)).sum(1), np.inf)
        if len(away) and away.min() < best[0]:
            best = float(away.min()), number, int(away.argmin())
    return best[1], best[2]
