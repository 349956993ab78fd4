"""Metastable states of a molecule, found in the torsions of its simulations, without being told of any."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from deeptime.clustering import KMeans

from openmm_geomgnn.analysis.found_states import FoundState, FoundStates, core_arrivals, populations
from openmm_geomgnn.analysis.kinetic_sets import attach, joined, metastable_sets
from openmm_geomgnn.analysis.resampling import relative_weights
from openmm_geomgnn.errors import GeomGNNError

CORE = 0.8  # least membership of the microstates of a core
CORE_SHARE = (
    0.9  # of a state's population that its core has: what is rarest may be the slope of a barrier that a bias has filled
)
FEWEST_FRAMES = 20  # of a state
MOST_STATES = 8
# largest overlap of the distributions of a torsion that tells two states apart
LARGEST_OVERLAP = 0.3
_SHORTEST_LAG = 1.0  # ps: what happens within it is vibration
_MOST_FITTED = 20000  # frames that microstates are made of; all are assigned to them
_MOST_TORSIONS = 100  # the slowest, that microstates are made by
_WEAKEST = -25.0  # log-weight below which a frame counts as if it had this one: it still connects
_BINS = 18  # of a torsion


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

    The cosines and sines of its torsions are clustered into microstates, in which slow torsions count more than fast ones;
    transitions between these within a lag time are counted, forwards and backwards; and sets of microstates that are left
    rarely are the states (`kinetic_sets`). Sets between which there were no transitions are states of their own. States
    that no torsion tells apart are one.

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
    labels, centres = _microstates(runs, steps, seed)
    visits = np.bincount(np.concatenate(labels), minlength=len(centres))
    memberships = metastable_sets(_transitions(labels, logw, steps, len(centres)), visits, FEWEST_FRAMES, most)
    if not memberships.shape[1]:
        memberships = np.ones((len(centres), 1))
    memberships = attach(memberships, centres)
    memberships = _distinct(memberships, labels, np.concatenate(runs), most)
    return _described(memberships, labels, runs, names, logw, seed)


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


def _microstates(runs: Sequence[np.ndarray], steps: Sequence[int], seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The microstate of every frame, a list of (F,), and their centres."""
    circles = [np.exp(1j * run) for run in runs]
    slowness = _slowness(circles, [10 * step for step in steps])
    slowest = np.sort(np.argsort(-slowness, kind="stable")[:_MOST_TORSIONS])
    circles, slowness = [circle[:, slowest] for circle in circles], slowness[slowest]
    features = [np.hstack([slowness * circle.real, slowness * circle.imag]) for circle in circles]
    every = np.concatenate(features)
    fitted = every[:: -(-len(every) // _MOST_FITTED)]
    number = int(np.clip(np.sqrt(len(fitted)), 10, 150))
    different = len(np.unique(fitted.round(6), axis=0))
    if min(number, different) < 2:
        return [np.zeros(len(run), int) for run in runs], every[:1]
    # a seed of 0 would be none
    estimator = KMeans(min(number, different), max_iter=200, tolerance=1e-4, fixed_seed=seed + 1, n_jobs=1)
    model = estimator.fit(fitted).fetch_model()
    return [np.asarray(model.transform(part, n_jobs=1)) for part in features], model.cluster_centers


def _slowness(circles: Sequence[np.ndarray], steps: Sequence[int]) -> np.ndarray:
    """How much of each torsion is left after some steps, (T,) from 0.1 to 1: its autocorrelation over all runs."""
    mean = np.concatenate(circles).mean(0)
    kept, whole = np.zeros(len(mean)), np.full(len(mean), 1e-12)
    for circle, step in zip(circles, steps, strict=True):
        step = min(step, len(circle) // 2)
        if step:
            change = circle - mean
            kept += (change[:-step] * change[step:].conj()).real.sum(0)
            whole += (np.abs(change[:-step]) ** 2 + np.abs(change[step:]) ** 2).sum(0) / 2
    return np.clip(kept / whole, 0.1, 1.0)


def _transitions(labels: Sequence[np.ndarray], logw: Any, steps: Sequence[int], number: int) -> np.ndarray:
    """Symmetric counts of transitions between microstates within the lag time."""
    counts = np.zeros((number, number))
    offset = 0.0 if logw is None else max(float(values.max(initial=-np.inf)) for values in logw)
    for k, (run, step) in enumerate(zip(labels, steps, strict=True)):
        weights = np.zeros(len(run)) if logw is None else np.maximum(logw[k] - offset, _WEAKEST)
        np.add.at(counts, (run[:-step], run[step:]), np.exp((weights[:-step] + weights[step:]) / 2))
    return (counts + counts.T) / 2


def _distinct(memberships: np.ndarray, labels: Sequence[np.ndarray], angles: np.ndarray, most: int) -> np.ndarray:
    """Join sets that no torsion tells apart, and then the most alike until there are at most `most`."""
    every = np.concatenate(labels)
    groups = [[k] for k in range(memberships.shape[1])]
    while len(groups) > 1:
        overlaps = _overlaps(joined(memberships, groups).argmax(1)[every], angles, len(groups))
        alike = overlaps.min(2, initial=1.0)
        np.fill_diagonal(alike, -1)
        first, second = np.unravel_index(alike.argmax(), alike.shape)
        if alike[first, second] <= LARGEST_OVERLAP:
            if len(groups) <= most:
                break
            alike = overlaps.mean(2)
            np.fill_diagonal(alike, -1)
            first, second = np.unravel_index(alike.argmax(), alike.shape)
        groups[min(first, second)] += groups.pop(max(first, second))
    return joined(memberships, groups)


def _overlaps(states: np.ndarray, angles: np.ndarray, n: int) -> np.ndarray:
    """What the distributions of each torsion in two states have in common, from 0 to 1: (n, n, T)."""
    bins = np.clip(((angles + np.pi) % (2 * np.pi) / (2 * np.pi) * _BINS).astype(int), 0, _BINS - 1)
    overlaps = np.ones((n, n, angles.shape[1]))
    for torsion in range(angles.shape[1]):
        table = np.zeros((n, _BINS))
        np.add.at(table, (states, bins[:, torsion]), 1)
        table /= np.maximum(table.sum(1, keepdims=True), 1)
        for i, j in combinations(range(n), 2):
            overlaps[i, j, torsion] = overlaps[j, i, torsion] = np.minimum(table[i], table[j]).sum()
    return overlaps


def _described(
    memberships: np.ndarray,
    labels: Sequence[np.ndarray],
    runs: Sequence[np.ndarray],
    names: Sequence[str],
    logw: list[np.ndarray] | None,
    seed: int,
) -> FoundStates:
    n = memberships.shape[1]
    equal = [np.zeros(len(run)) for run in runs]
    own, inside = memberships.argmax(1), _inside(memberships, labels, equal if logw is None else logw)
    numbers = populations([own[run] for run in labels], equal if logw is None else logw, n, seed)
    order = np.argsort(-numbers[:, 0], kind="stable")
    own, numbers = np.argsort(order)[own], numbers[order]
    membership = [own[run] for run in labels]
    cores = [np.where(inside[run], own[run], -1) for run in labels]
    every, angles = np.concatenate(membership), np.concatenate(runs)
    called, centres = _names(every, angles, names, n)
    states = [
        FoundState(
            name=called[k],
            population=float(numbers[k, 0]),
            error=float(numbers[k, 1]) if logw is not None else float("nan"),
            frames=int(np.count_nonzero(every == k)),
            example=_nearest(k, membership, runs, centres[k]),
        )
        for k in range(n)
    ]
    return FoundStates(tuple(states), membership, cores, core_arrivals(cores, n))


def _inside(memberships: np.ndarray, labels: Sequence[np.ndarray], logw: Sequence[np.ndarray]) -> np.ndarray:
    """Which microstates are well inside their state, (k,) of bool: clearly its own, and not the least populated."""
    weights = np.bincount(np.concatenate(labels), np.concatenate(relative_weights(logw)), len(memberships))
    own, inside = memberships.argmax(1), memberships.max(1) > CORE
    for state in range(memberships.shape[1]):
        mine = np.flatnonzero(own == state)
        mine = mine[np.argsort(-weights[mine], kind="stable")]
        held = np.cumsum(weights[mine]) - weights[mine]  # by those before
        inside[mine[held > CORE_SHARE * weights[mine].sum()]] = False
    return inside


def _names(states: np.ndarray, angles: np.ndarray, names: Sequence[str], n: int) -> tuple[list[str], np.ndarray]:
    """Names of n states by the fewest torsions that tell each from the others, and their circular means (n, T)."""
    means = np.array([np.angle(np.exp(1j * angles[states == k]).sum(0)) for k in range(n)]).reshape(n, -1)
    overlaps = _overlaps(states, angles, n)
    # of few torsions that tell all apart, those that this one needs
    few = _telling(overlaps, list(combinations(range(n), 2)), range(angles.shape[1]))
    called = []
    for k in range(n):
        mine = sorted(_telling(overlaps, [(k, other) for other in range(n) if other != k], few))
        called.append(", ".join(f"{names[t]} {np.degrees(means[k, t]):.0f} deg" for t in mine) or "all frames")
    return called, means


def _telling(overlaps: np.ndarray, pairs: Sequence[tuple[int, int]], among: Sequence[int]) -> list[int]:
    """Few torsions, each the one that tells the most of the remaining pairs of states apart."""
    chosen: list[int] = []
    while pairs and len(chosen) < len(among):
        best = min(among, key=lambda t: (-_told(overlaps, pairs, t), sum(overlaps[i, j, t] for i, j in pairs)))
        left = [(i, j) for i, j in pairs if overlaps[i, j, best] > LARGEST_OVERLAP]
        if len(left) == len(pairs):
            break
        chosen.append(best)
        pairs = left
    return chosen


def _told(overlaps: np.ndarray, pairs: Sequence[tuple[int, int]], torsion: int) -> int:
    return sum(overlaps[i, j, torsion] <= LARGEST_OVERLAP for i, j in pairs)


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
