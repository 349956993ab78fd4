"""Splits by whole molecules or whole scaffolds; what is held out are molecules that pre-training did not see."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openmm_geomgnn.conformers.sources.base import draw
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.supervised.qm9 import ENTRIES
from torchmdnet_ext.datasets.labelled import LabelledStore
from torchmdnet_ext.datasets.splits import fill

KINDS = {"random": "molecule", "scaffold": "scaffold"}  # kind of split -> the groups that are held out whole
_LARGEST = 0.1  # share of a held-out set that one group may have
_NUMBERS = {"random": 31, "scaffold": 32}  # which, with its seed, begin the random numbers of a split


@dataclass(frozen=True)
class HeldOut:
    """What is held out of a store, and what is left to train on, as indices in ascending order.

    `left_out` is how many entries are in no part: those of held-out groups that pre-training has seen.
    """

    kind: str
    val: np.ndarray
    test: np.ndarray
    train: np.ndarray
    left_out: int


def seen_in_pretraining(store: LabelledStore, number: int, seed: int) -> np.ndarray:
    """Which entries of QM9 (M,) bool were among `number` conformers that `geomgnn data build` drew with `seed`.

    An entry counts as seen if another one of the same molecule was.
    """
    drawn = np.zeros(ENTRIES, dtype=bool)
    if number:
        drawn[draw(ENTRIES, number, seed)] = True
    molecule = store.groups["molecule"]
    return np.isin(molecule, molecule[drawn[store.groups["row"]]])


def hold_out(store: LabelledStore, kind: str, val: int, test: int, seed: int, seen: np.ndarray) -> HeldOut:
    """Draw what is held out: groups at random, of which the entries that were not seen, up to `test` and `val` of them.

    A scaffold with more than a tenth of the test set, or of the smaller set, stays in the training set.

    Raises GeomGNNError if there are too few.
    """
    unique, group = np.unique(store.groups[KINDS[kind]], return_inverse=True)
    usable = np.bincount(group, weights=~seen, minlength=len(unique)).astype(int)
    order = np.random.default_rng([seed, _NUMBERS[kind]]).permutation(len(unique))
    largest = max(1, int(_LARGEST * min(val, test)))
    order = order[(usable[order] > 0) & (usable[order] <= largest)]
    parts = {}
    for name, size in (("test", test), ("val", val)):
        chosen = fill(order, usable, size)
        order = order[~np.isin(order, chosen)]
        parts[name] = np.flatnonzero(np.isin(group, chosen) & ~seen)
        if len(parts[name]) < 0.9 * size:
            raise GeomGNNError(
                f"The {kind} split has {len(parts[name])} molecules for {name} that pre-training did not see, but {size} "
                "are to be held out. Hold out fewer, or use more of QM9."
            )
    held = np.isin(group, group[np.concatenate([parts["val"], parts["test"]])])
    left_out = int(held.sum()) - len(parts["val"]) - len(parts["test"])
    return HeldOut(kind, parts["val"], parts["test"], np.flatnonzero(~held), left_out)


def training_set(held_out: HeldOut, size: int, seed: int) -> np.ndarray:
    """Draw `size` molecules to train on; with the same seed, a smaller set is part of a larger one.

    Raises GeomGNNError if there are fewer.
    """
    if size > len(held_out.train):
        raise GeomGNNError(
            f"{size} molecules are to be trained on, but the {held_out.kind} split leaves {len(held_out.train)}. Ask for "
            "fewer, or hold out fewer."
        )
    order = np.random.default_rng([seed, _NUMBERS[held_out.kind], 1]).permutation(held_out.train)
    return np.sort(order[:size])


def fingerprint(store: LabelledStore, parts: Mapping[str, np.ndarray]) -> str:
    """A SHA-256 of the parts of a split, given as indices of entries, by the numbers that QM9 gives these."""
    digest = hashlib.sha256()
    for name, indices in sorted(parts.items()):
        numbers = store.arrays["index"][indices].astype("<i8")
        digest.update(f"{name} {len(numbers)} ".encode() + numbers.tobytes())
    return digest.hexdigest()
