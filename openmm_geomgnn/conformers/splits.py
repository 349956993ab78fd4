"""Which conformers are held out from training: whole molecules or whole tasks, never single frames of a trajectory.

Frames of one trajectory resemble each other, and so do conformers of one molecule: with some of them in the training set,
the loss on the others says little about what a network makes of new molecules.
"""

from dataclasses import dataclass

import numpy as np

TRAIN, VAL, TEST = range(3)
NAMES = ("train", "val", "test")
FEWEST = 3  # groups of a source, one each for training, validation and test
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Splits:
    """What is held out: whole molecules or whole tasks (`by`), and the shares of a source's conformers for `val` and
    `test`.

    A molecule is what has the same elements in the same order, so that isomers may count as one; that errs on the safe
    side. Of a source with fewer than three molecules, such as one long trajectory, tasks are held out instead; of one with
    fewer than three tasks, nothing.
    """

    by: str = "molecule"
    val: float = 0.05
    test: float = 0.05


def molecules(z, ptr):
    """A number for the molecule of each conformer, from its elements in their order; uint64 (M,)."""
    sizes = np.diff(ptr)
    place = (np.arange(len(z)) - np.repeat(ptr[:-1], sizes)).astype(np.uint64)
    terms = _mix(place * np.uint64(256) + z)
    # sums of independent random numbers wrap around, which leaves them random
    return _mix(np.add.reduceat(terms, ptr[:-1]) + sizes.astype(np.uint64)) if len(sizes) else terms


def _mix(x):
    """SplitMix64 of uint64 numbers."""
    x = (x + np.uint64(1)) * _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hold_out(sources, splits, seed):
    """Assign the conformers of a store.

    Parameters
    ----------
    sources : dict
        Name of a source -> (molecules (M,) uint64, tasks (M,) int) of its conformers.
    splits : Splits
    seed : int

    Returns
    -------
    parts : list of (M,) uint8
        TRAIN, VAL or TEST for each conformer of each source.
    by : dict
        Name of a source -> what was held out of it: "molecule", "task" or None.
    """
    parts, by = [], {}
    # a molecule of two sources is in the same part in both
    known, known_parts = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint8)
    for number, (name, groups) in enumerate(sources.items()):
        rng = np.random.default_rng([seed, 17, number])
        candidates = dict(zip(("molecule", "task"), groups, strict=True))
        for kind in ("molecule", "task") if splits.by == "molecule" else ("task",):
            unique, inverse, counts = np.unique(candidates[kind], return_inverse=True, return_counts=True)
            if len(unique) >= FEWEST:
                break
        else:
            kind = None
        by[name] = kind
        if kind is None:
            parts.append(np.zeros(len(inverse), dtype=np.uint8))
            continue
        part = np.full(len(unique), TRAIN, dtype=np.uint8)
        free = np.ones(len(unique), dtype=bool)
        if kind == "molecule":
            _, here, there = np.intersect1d(unique, known, return_indices=True)
            part[here], free[here] = known_parts[there], False
        order = rng.permutation(len(unique))
        order = order[free[order]]
        for held, share in ((TEST, splits.test), (VAL, splits.val)):
            chosen = _fill(order, counts, share * counts.sum() - counts[part == held].sum())
            part[chosen] = held
            order = order[part[order] == TRAIN]
        if kind == "molecule":
            known, known_parts = np.append(known, unique[free]), np.append(known_parts, part[free])
        parts.append(part[inverse])
    return parts, by


def _fill(order, counts, target):
    """Groups from `order` with about `target` conformers in all: those that fit, at least one if there is a target."""
    if target <= 0 or len(order) < 2:
        return order[:0]
    chosen, left, room = [], order, target
    while room >= 1 and len(left := left[counts[left] <= room]):
        fit = np.searchsorted(np.cumsum(counts[left]), room, side="right")
        chosen.append(left[:fit])
        room -= counts[left[:fit]].sum()
        left = left[fit:]
    # the smallest group, if even that is too large
    return np.concatenate(chosen) if chosen else order[[np.argmin(counts[order])]]


def of_some(splits, chosen):
    """The splits, a dictionary of indices, of the conformers `chosen` (M,) bool, in the numbering that counts only those."""
    number = np.cumsum(chosen) - 1
    return {name: number[indices[chosen[indices]]] for name, indices in splits.items()}
