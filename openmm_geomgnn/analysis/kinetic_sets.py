"""Metastable sets of a Markov chain: which microstates belong together, by how rarely the others are reached from them.

Sets between which no transition was seen are sets of their own. Within one, PCCA+ (S. Roeblitz, M. Weber, Adv. Data Anal.
Classif. 7, 147, 2013) tells which microstates relax together where the spectrum has a gap, and each of these sets is
looked at in the same way, so that a slow event does not hide the less slow ones.
"""

import numpy as np

# ratio of successive timescales that makes a gap: diffusion in a harmonic well has 2 and in a box 4, but soft sets
LEAST_GAP = 3.0
# mean membership of the sets' own microstates, over all sets and in each: 0.82 in the halves of a box
LEAST_CRISPNESS, LEAST_OF_EACH = 0.9, 0.75
# lag times that a set has to live for: what is left sooner is not metastable
SHORTEST_LIFE = 5.0


def metastable_sets(counts: np.ndarray, visits: np.ndarray, fewest: int, most: int) -> np.ndarray:
    """Find the metastable sets of a reversible Markov chain.

    Parameters
    ----------
    counts : (k, k) ndarray
        Symmetric, transitions between k microstates within a lag time, weighted or not.
    visits : (k,) ndarray of int
        Frames in each microstate.
    fewest : int
        Frames that a set needs.
    most : int
        Sets beyond which none is split further; there are more only where no transition connects them.

    Returns
    -------
    (k, n) ndarray
        Memberships of each microstate in n sets, which add up to 1; 0 for microstates in no set that has `fewest` frames.
    """
    # here, as it takes as long to import as torch: not every command that could need it does
    from deeptime.markov.tools.estimation import connected_sets

    parts = [np.sort(part) for part in connected_sets(counts, directed=False)]
    memberships = np.zeros((len(counts), 0))
    for part in parts:
        if visits[part].sum() >= fewest:
            column = np.zeros((len(counts), 1))
            column[part] = 1
            memberships = np.hstack([memberships, column])
    done = 0
    while done < memberships.shape[1]:
        part = np.flatnonzero(memberships.argmax(1) == done)
        part = part[memberships[part, done] > 0]
        room = most - memberships.shape[1] + 1
        split = _split(counts[np.ix_(part, part)], visits[part], fewest, room)
        if split is None:
            done += 1
            continue
        # microstates of other sets that belong here a little are shared out as the set is as a whole
        shares = np.tile(np.average(split, axis=0, weights=visits[part]), (len(counts), 1))
        shares[part] = split
        column = memberships[:, done : done + 1]
        memberships = np.hstack([memberships[:, :done], column * shares, memberships[:, done + 1 :]])
    return memberships


def _split(counts: np.ndarray, visits: np.ndarray, fewest: int, most: int) -> np.ndarray | None:
    """Memberships (k, n) in the fewest sets into which microstates fall apart; None if they are one set."""
    weights = counts.sum(1)
    if (weights <= 0).any() or len(counts) < 3:
        return None
    root = np.sqrt(weights)
    timescales = _timescales(counts / np.outer(root, root))
    transition, stationary = counts / weights[:, None], weights / weights.sum()
    for n in range(2, min(most, len(counts) - 1) + 1):
        slow, next_one = timescales[n - 1], timescales[n]
        if slow < SHORTEST_LIFE:
            return None
        if slow > LEAST_GAP * next_one:
            found = _pcca(transition, n, stationary)
            if found is not None and _are_sets(found, stationary, visits, fewest):
                return found
    return None


def _timescales(symmetric: np.ndarray) -> np.ndarray:
    """In lag times, slowest first; the first is that of the stationary distribution."""
    values = np.linalg.eigvalsh(symmetric)[::-1]
    return -1 / np.log(np.clip(values, 1e-12, 1 - 1e-12))


def _pcca(transition: np.ndarray, n: int, stationary: np.ndarray) -> np.ndarray | None:
    from deeptime.markov import pcca

    try:
        return np.asarray(pcca(transition, n, stationary).memberships)
    except (AssertionError, RuntimeError, ValueError, np.linalg.LinAlgError):  # deeptime finds no n sets
        return None


def _are_sets(memberships: np.ndarray, stationary: np.ndarray, visits: np.ndarray, fewest: int) -> bool:
    """Whether every set has enough frames, and microstates that are clearly its own."""
    own, crispness = memberships.argmax(1), []
    for k in range(memberships.shape[1]):
        mine = own == k
        if visits[mine].sum() < fewest:
            return False
        crispness.append(np.average(memberships[mine, k], weights=stationary[mine]))
    return np.mean(crispness) >= LEAST_CRISPNESS and min(crispness) >= LEAST_OF_EACH


def attach(memberships: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Give microstates in no set the memberships of the nearest that has some: (k, n), by their centres (k, d)."""
    nowhere = memberships.sum(1) <= 0
    if not nowhere.any():
        return memberships
    known = np.flatnonzero(~nowhere)
    distances = np.linalg.norm(centres[nowhere][:, None] - centres[known], axis=2)
    full = memberships.copy()
    full[nowhere] = memberships[known[distances.argmin(1)]]
    return full
