"""A guard on what exploring must not change: which way round a stereocentre is, and which atoms are bound."""

from typing import NamedTuple

import mdtraj
import numpy as np
from openmm import app

from openmm_geomgnn.representation.bond_graph import centres, describe_bonds, known_signs, triple_products
from openmm_geomgnn.units import NM_TO_ANGSTROM

STRETCH = 0.2  # by which a bond may be longer or shorter than in the start
# relative to the start's triple product of about 0.77: vibrations stay above a third of it, and a flat centre is at 0
_INVERTED = -0.1


class Verdict(NamedTuple):
    """good: (F,) bool, which frames are the molecule of the start. notes: sentences on the others."""

    good: np.ndarray
    notes: tuple[str, ...]


class Guard:
    """Tells frames of the molecule from those in which a stereocentre is inverted or a bond broken.

    Parameters
    ----------
    topology : openmm.app.Topology
    reference : (N, 3) ndarray
        nm, the molecule as it should be.
    """

    def __init__(self, topology: app.Topology, reference: np.ndarray) -> None:
        molecule = mdtraj.Topology.from_openmm(topology)
        self._heavy = [a.index for a in molecule.atoms if not a.residue.is_water and a.element.number > 1]
        found = centres(describe_bonds(molecule, self._heavy))
        here = np.asarray(reference)[None, self._heavy] * NM_TO_ANGSTROM
        self._signs = known_signs(found, here)
        self._centres = [centre for centre in found if centre.key in self._signs]
        pairs = [(a, b) for a, b in molecule.bonds if not a.residue.is_water]
        self._bonds = [f"{a}-{b}" for a, b in pairs]
        self._pairs = np.array([(a.index, b.index) for a, b in pairs], dtype=int).reshape(-1, 2)
        self._lengths = self._measure(np.asarray(reference)[None])[0]

    def check(self, positions: np.ndarray) -> Verdict:
        """Judge frames (F, N, 3) in nm, with whole molecules."""
        marks, what = self._marks(np.asarray(positions))
        counts = marks.sum(axis=1)
        notes = [f"In {counts[k]} of {marks.shape[1]} frames {what[k]}: they are left out." for k in np.flatnonzero(counts)]
        return Verdict(np.asarray(~marks.any(axis=0)), tuple(notes))

    def fault(self, positions: np.ndarray) -> str | None:
        """What is wrong with one frame (N, 3) in nm, in phrases; None if nothing is."""
        marks, what = self._marks(np.asarray(positions)[None])
        return "; ".join(what[k] for k in np.flatnonzero(marks[:, 0])) or None

    def _marks(self, frames: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """What may be wrong (K, F), and in words."""
        signs = np.array([self._signs[centre.key] for centre in self._centres])
        wrong = signs[:, None] * triple_products(self._centres, frames[:, self._heavy] * NM_TO_ANGSTROM) < _INVERTED
        torn = np.abs(self._measure(frames) / self._lengths - 1).T > STRETCH
        words = [f"the stereocentre {centre.name} is inverted" for centre in self._centres]
        words += [f"the bond {bond} is broken, or far from its length in the start" for bond in self._bonds]
        return np.concatenate([wrong, torn]), words

    def _measure(self, frames: np.ndarray) -> np.ndarray:
        """Lengths (F, bonds) in nm."""
        return np.linalg.norm(frames[:, self._pairs[:, 0]] - frames[:, self._pairs[:, 1]], axis=-1)
