"""Data that are held out from training: whole molecules, or the last frames of a single one.

Frames of one trajectory resemble each other, and so do conformers of one molecule: with some of them in the training set,
the loss on the others says little about new molecules.
"""

from collections.abc import Sequence

import numpy as np

TRAIN, VAL, TEST = range(3)
NAMES = ("train", "val", "test")
FEWEST = 3  # smallest number of groups, one each for training, validation and test
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def molecules(z: np.ndarray, ptr: np.ndarray) -> np.ndarray:
    """Number the molecule of each conformer by its elements in their order; uint64 (M,).

    Isomers may count as one molecule, which is on the safe side.
    """
    sizes = np.diff(ptr)
    place = (np.arange(len(z)) - np.repeat(ptr[:-1], sizes)).astype(np.uint64)
    terms = _mix(place * np.uint64(256) + z)
    # sums of independent random numbers wrap around, which leaves them random
    return _mix(np.add.reduceat(terms, ptr[:-1]) + sizes.astype(np.uint64)) if len(sizes) else terms


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 of uint64 numbers."""
    x = (x + np.uint64(1)) * _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def fill(order: np.ndarray, counts: np.ndarray, target: float) -> np.ndarray:
    """Take groups from `order` with about `target` conformers in total: those that fit, and at least one if target > 0."""
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


def last_frames(groups: np.ndarray, val: float, test: float) -> np.ndarray:
    """Hold out the last conformers of each group, in the order of their trajectories; returns parts (M,) uint8.

    This is for data with too few groups to hold out whole ones. val, test: shares; a group of three or more gives at least
    one conformer to each share that is not 0.
    """
    parts = np.full(len(groups), TRAIN, dtype=np.uint8)
    for group in np.unique(groups):
        places = np.flatnonzero(groups == group)
        if len(places) >= FEWEST:
            n_val, n_test = (max(1, round(share * len(places))) if share > 0 else 0 for share in (val, test))
            first_test = len(places) - n_test
            parts[places[first_test:]] = TEST
            parts[places[max(1, first_test - n_val) : first_test]] = VAL
    return parts


def split(
    groups: np.ndarray, sizes: Sequence[float | int | None], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Hold out whole molecules for `torchmd-train`.

    Parameters
    ----------
    groups : (M,) uint64
        The molecule of each conformer.
    sizes : (train, val, test)
        Each is a number of conformers (int), a share of them (float), or, for at most one, None for the remaining ones.
        Validation and test sets get whole molecules up to about that size; the training set at most its size.
    seed : int

    Returns
    -------
    idx_train, idx_val, idx_test : int arrays
        Each in ascending order.
    whole : bool
        Whether whole molecules are held out; if there are fewer than three, their last conformers are.

    Raises
    ------
    ValueError
        If the sizes are invalid, or exceed the data.
    """
    total = len(groups)
    train, val, test = _counts(sizes, total)
    rng = np.random.default_rng([seed, 17])
    unique, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    whole = len(unique) >= FEWEST
    if whole:
        part, order = np.full(len(unique), TRAIN, dtype=np.uint8), rng.permutation(len(unique))
        for held, size in ((TEST, test), (VAL, val)):
            part[fill(order, counts, size)] = held
            order = order[part[order] == TRAIN]
        parts = part[inverse]
    else:
        parts = last_frames(inverse, val / max(1, total), test / max(1, total))
    idx_train, idx_val, idx_test = (np.flatnonzero(parts == number) for number in (TRAIN, VAL, TEST))
    if sizes[TRAIN] is not None and train < len(idx_train):
        idx_train = np.sort(rng.permutation(idx_train)[:train])
    return idx_train, idx_val, idx_test, whole


def _counts(sizes: Sequence[float | int | None], total: int) -> list[int]:
    names = [f"{name}_size" for name in NAMES]
    left = [name for name, size in zip(names, sizes, strict=True) if size is None]
    if len(left) > 1:
        raise ValueError(f"{' and '.join(left)} are both null: give all sizes but one.")
    # a share that is not 0 is at least one conformer
    counts = [max(size > 0, round(total * size)) if isinstance(size, float) else size for size in sizes]
    for name, size in zip(names, sizes, strict=True):
        if size is not None and size < 0:
            raise ValueError(f"{name} is {size}: give a number of conformers, or a share of them between 0.0 and 1.0.")
    known = sum(count for count in counts if count is not None)
    if known > total + len(NAMES):  # shares are rounded
        shown = ", ".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True) if size is not None)
        raise ValueError(f"There are {total} conformers, fewer than {shown} add up to: give smaller sizes.")
    return [max(0, total - known) if count is None else count for count in counts]
