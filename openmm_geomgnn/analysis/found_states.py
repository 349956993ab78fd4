"""States that were found, not given: their names, populations, frames, and the crossings between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from openmm_geomgnn.analysis.resampling import make_blocks, relative_weights, statistical_inefficiency, walkers_apart


@dataclass(frozen=True)
class FoundState:
    """One metastable state.

    Attributes
    ----------
    name : str
        By the torsions that tell it from the others, with their circular means: "phi ALA2 57 deg, psi ALA2 -130 deg".
    population : float
        Share of the ensemble by the weights of the frames; share of the frames where there are no weights.
    error : float
        Its standard error by a block bootstrap; nan without weights, or where it was visited in one stretch only.
    frames : int
    example : (int, int)
        Run and frame nearest the state's centre.
    """

    name: str
    population: float
    error: float
    frames: int
    example: tuple[int, int]


class Cut(NamedTuple):
    """Two groups of states, by their numbers, and how often runs went from a core of one to a core of the other."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    crossings: int


@dataclass(frozen=True, eq=False)
class FoundStates:
    """The metastable states of a set of runs, the most populated first.

    Attributes
    ----------
    states : tuple of FoundState
    membership : list of (F,) ndarray of int
        The state of every frame of each run.
    cores : list of (F,) ndarray of int
        The state of the frames that are well inside one, -1 for the others.
    crossings : (n, n) ndarray of int
        Arrivals in the core of the second from the core of the first, over all runs.
    """

    states: tuple[FoundState, ...]
    membership: list[np.ndarray]
    cores: list[np.ndarray]
    crossings: np.ndarray

    def __len__(self) -> int:
        return len(self.states)

    def rarest_cut(self, least: float = 0.0) -> Cut | None:
        """The division of the states into two groups between which there were the fewest crossings.

        It limits what a run says about populations: whatever exchanges more often is better known. Among equals it is the
        one whose smaller group is the most populated.

        Parameters
        ----------
        least : float, optional
            Population below which a state is left out. The two most populated are always there.

        Returns
        -------
        Cut or None
            A has the most populated state; None where there is only one state.
        """
        chosen = [k for k, state in enumerate(self.states) if k < 2 or state.population >= least]
        if len(chosen) < 2:
            return None
        cuts = []
        for size in range(1, len(chosen)):
            for others in combinations(chosen[1:], size):
                first = [k for k in chosen if k not in others]
                between = self.crossings[np.ix_(first, others)].sum() + self.crossings[np.ix_(others, first)].sum()
                smaller = min(sum(self.states[k].population for k in group) for group in (first, others))
                cuts.append((int(between), -smaller, tuple(first), tuple(others)))
        crossings, _, a, b = min(cuts)
        return Cut(a, b, crossings)

    def in_words(self, group: Sequence[int]) -> str:
        """A group of states, by the name of a single one, else by their numbers counted from 1."""
        if len(group) == 1:
            return self.states[group[0]].name
        numbers = [str(k + 1) for k in group]
        return f"states {', '.join(numbers[:-1])} and {numbers[-1]}"


def core_arrivals(cores: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Count the arrivals in the core of each of n states from each other: (n, n).

    cores: list of (F,) of int over runs, -1 outside. Returning to the core that was left does not count.
    """
    counts = np.zeros((n, n), int)
    for run in cores:
        visited = run[run >= 0]
        np.add.at(counts, (visited[:-1], visited[1:]), 1)
    np.fill_diagonal(counts, 0)
    return counts


def populations(membership: Sequence[np.ndarray], logw: Sequence[np.ndarray], n: int, seed: int = 0) -> np.ndarray:
    """Populations of n states and their standard errors, (n, 2), by a block bootstrap and by how far walkers are apart.

    membership, logw: lists of (F,), the state and the log-weight of every frame, -inf for frames that do not count.
    """
    used = [np.isfinite(values) for values in logw]
    membership = [states[there] for states, there in zip(membership, used, strict=True)]
    weights = relative_weights([values[there] for values, there in zip(logw, used, strict=True)])
    lengths, every, states = [len(w) for w in weights], np.concatenate(weights), np.concatenate(membership)
    shares = np.bincount(states, every, minlength=n) / every.sum()
    changes = [(states == k) - shares[k] for k in range(n)]
    inefficiency = max(
        statistical_inefficiency(np.split(every * change, np.cumsum(lengths)[:-1])) if change.any() else 1.0
        for change in changes
    )
    blocks = make_blocks(lengths, inefficiency)
    sums = blocks.sums(every, states, n)
    errors = np.full(n, np.nan)
    if blocks.n_blocks > 1:
        replicas = blocks.bootstrap(500, seed) @ sums
        errors = (replicas / replicas.sum(1, keepdims=True)).std(0) * blocks.small_sample_factor
        errors = np.maximum(errors, shares * (1 - shares) * walkers_apart(blocks, sums, 500, seed)[0])
        errors[np.count_nonzero(sums, axis=0) < 2] = np.nan
    return np.stack([shares, errors], axis=1)
