"""Splits of the conformers of a store, by whole molecules, by whole tasks, or at the end of a single simulation."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchmdnet_ext.datasets.splits import FEWEST, NAMES, TEST, TRAIN, VAL, fill, last_frames, molecules

__all__ = ["FEWEST", "NAMES", "Splits", "hold_out", "molecules", "of_some"]


@dataclass(frozen=True)
class Splits:
    """What is held out: whole molecules or whole tasks (`by`), and the shares of each source for `val` and `test`.

    Conformers with the same elements in the same order count as one molecule, so that isomers may be lumped together, which
    is on the safe side. From a source with fewer than three molecules, such as one long trajectory, tasks are held out
    instead; from one with fewer than three tasks, the last conformers of each molecule.
    """

    by: str = "molecule"
    val: float = 0.05
    test: float = 0.05


def hold_out(
    sources: Mapping[str, tuple[np.ndarray, np.ndarray]], splits: Splits, seed: int
) -> tuple[list[np.ndarray], dict[str, str | None]]:
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
        Name of a source -> the units that were held out of it: "molecule", "task", "frames" or None.
    """
    parts, by = [], {}
    # a molecule in two sources is in the same part of both
    known, known_parts = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint8)
    for number, (name, groups) in enumerate(sources.items()):
        rng = np.random.default_rng([seed, 17, number])
        candidates = dict(zip(("molecule", "task"), groups, strict=True))
        for kind in ("molecule", "task") if splits.by == "molecule" else ("task",):
            unique, inverse, counts = np.unique(candidates[kind], return_inverse=True, return_counts=True)
            if len(unique) >= FEWEST:
                break
        else:
            parts.append(last_frames(candidates["molecule"], splits.val, splits.test))
            by[name] = "frames" if parts[-1].any() else None
            continue
        by[name] = kind
        part = np.full(len(unique), TRAIN, dtype=np.uint8)
        free = np.ones(len(unique), dtype=bool)
        if kind == "molecule":
            _, here, there = np.intersect1d(unique, known, return_indices=True)
            part[here], free[here] = known_parts[there], False
        order = rng.permutation(len(unique))
        order = order[free[order]]
        for held, share in ((TEST, splits.test), (VAL, splits.val)):
            chosen = fill(order, counts, share * counts.sum() - counts[part == held].sum())
            part[chosen] = held
            order = order[part[order] == TRAIN]
        if kind == "molecule":
            known, known_parts = np.append(known, unique[free]), np.append(known_parts, part[free])
        parts.append(part[inverse])
    return parts, by


def of_some(splits: Mapping[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Make the splits, a dict of indices, of the conformers `chosen` (M,) bool, numbered among these only."""
    number = np.cumsum(chosen) - 1
    return {name: number[indices[chosen[indices]]] for name, indices in splits.items()}
