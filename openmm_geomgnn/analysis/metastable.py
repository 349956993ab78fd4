"""Metastable states of a molecule, found in the torsions of its simulations, without being told of any."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.analysis.found_states import FoundState, FoundStates, core_arrivals, populations
from openmm_geomgnn.analysis.wells import FEWEST_FRAMES, Wells, check_runs, check_weights, lag_steps, wells_of

MOST_STATES = 8


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
    runs, names = check_runs(torsions, names)
    logw = check_weights(weights, runs)
    steps = lag_steps(runs, frame_interval, lag)
    counted = [np.zeros(len(run)) for run in runs] if logw is None else logw
    wells = [wells_of([run[:, k] for run in runs], counted, steps, k) for k in range(len(names))]
    chosen, labels = _combinations([one for one in wells if one is not None], sum(map(len, runs)), most)
    own = _nearest_kept(chosen, labels)
    inside = np.all([one.inside for one in chosen] or [np.ones(len(own), bool)], axis=0)
    inside &= own == labels  # not of a combination that is too rare to be a state
    return _described(own, inside, chosen, runs, names, counted, logw is not None, seed)


def _combinations(wells: Sequence[Wells], n_frames: int, most: int) -> tuple[list[Wells], np.ndarray]:
    """The torsions whose combinations of wells are the states, and the number of the combination of every frame, (N,)."""
    chosen: list[Wells] = []
    for one in sorted(wells, key=lambda one: one.saddle):
        more = sorted([*chosen, one], key=lambda one: one.torsion)
        if len(_kept(_numbers(more, n_frames))) <= most:
            chosen = more
    return chosen, _numbers(chosen, n_frames)


def _numbers(chosen: Sequence[Wells], n_frames: int) -> np.ndarray:
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


def _digits(numbers: np.ndarray, chosen: Sequence[Wells]) -> np.ndarray:
    """The well of each torsion in combinations, (n, number of torsions)."""
    wells = np.zeros((len(numbers), len(chosen)), int)
    for column in reversed(range(len(chosen))):
        numbers, wells[:, column] = np.divmod(numbers, len(chosen[column].centres))
    return wells


def _nearest_kept(chosen: Sequence[Wells], labels: np.ndarray) -> np.ndarray:
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
    chosen: Sequence[Wells],
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
