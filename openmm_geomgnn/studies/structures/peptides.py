"""Peptides that are built in a known way, so that their class is known: what the backbone or the side chains do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mdtraj
import numpy as np
from scipy.spatial.distance import cdist

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.structures.sources import TEST, TRAIN, VALIDATION, LabelledStructure, structure_of

# phi and psi, degrees
BACKBONES = {
    "alpha": (-63.0, -42.0),
    "3-10": (-49.0, -26.0),
    "beta": (-120.0, 130.0),
    "polyproline": (-75.0, 145.0),
}
ROTAMERS = {"g-": -60.0, "trans": 180.0, "g+": 60.0}  # chi1, degrees
CLASSES = {"backbone": tuple(BACKBONES), "rotamer": tuple(ROTAMERS)}
RESIDUES = "RNDCEQHILKMFSTWYV"  # with a chi1, which proline's ring leaves no choice of
CLASH = 1.6  # angstrom, between residues that are not neighbours
ATTEMPTS = 50
_SHARES = (0.6, 0.2)


@dataclass(frozen=True)
class BuiltPeptides:
    """Random sequences, each built once in every class.

    Attributes
    ----------
    label : {"backbone", "rotamer"}
        What the class says: the region of all phi and psi (side chains are random), or chi1 of all residues (the backbone
        is in a region that is drawn for each peptide).
    sequences : int
        60 % of them are for training, 20 % for validation.
    length : int
        Residues.
    noise : float
        Standard deviation of every phi, psi and chi1 about its class, degrees.
    seed : int
    """

    label: Literal["backbone", "rotamer"] = "backbone"
    sequences: int = 100
    length: int = 8
    noise: float = 25.0
    seed: int = 1

    def build(self) -> list[LabelledStructure]:
        """Build all peptides: heavy atoms, no caps.

        Raises GeomGNNError if PeptideBuilder is not installed, or no peptide without a clash is found.
        """
        generator = np.random.default_rng(self.seed)
        found = []
        for k in range(self.sequences):
            share = k / self.sequences
            part = TRAIN if share < _SHARES[0] else VALIDATION if share < sum(_SHARES) else TEST
            sequence = "".join(generator.choice(list(RESIDUES), self.length))
            for name in CLASSES[self.label]:
                source = self._peptide(sequence, name, generator)
                found.append(LabelledStructure(f"{k}-{sequence}-{name}", name, part, source))
        return found

    def _peptide(self, sequence: str, name: str, generator: np.random.Generator) -> mdtraj.Trajectory:
        for _ in range(ATTEMPTS):
            if self.label == "backbone":
                backbone, chi = BACKBONES[name], generator.choice(list(ROTAMERS.values()), self.length)
            else:
                backbone = list(BACKBONES.values())[generator.integers(len(BACKBONES))]
                chi = np.full(self.length, ROTAMERS[name])
            torsions = np.array([*np.tile(backbone, (self.length, 1)).T, chi])
            built = build_peptide(sequence, *(torsions + generator.normal(0, self.noise, torsions.shape)))
            if not _clashes(built):
                return built
        raise GeomGNNError(
            f"No peptide {sequence} of class {name} without a clash was found in {ATTEMPTS} attempts: use less noise or "
            "length."
        )


def build_peptide(sequence: str, phi: np.ndarray, psi: np.ndarray, chi: np.ndarray) -> mdtraj.Trajectory:
    """Build the heavy atoms of a peptide of L residues from torsions (R,) in degrees, with ideal bonds and angles.

    Raises GeomGNNError if PeptideBuilder is not installed.
    """
    try:
        from PeptideBuilder import Geometry, PeptideBuilder
    except ImportError as error:
        raise GeomGNNError('Building peptides needs PeptideBuilder: pip install "openmm-geomgnn[data]".') from error
    geometries = []
    for k, letter in enumerate(sequence):
        geometry = Geometry.geometry(letter)
        geometry.phi, geometry.psi_im1 = float(phi[k]), float(psi[k - 1] if k else 0.0)
        turned = [name for name in vars(geometry) if name.startswith("N_CA_CB_") and name.endswith("_diangle")]
        if turned:  # the branches of V, I and T keep their angle
            first = min(turned, key=lambda name: ("1" not in name, name))  # OG1 of T, CG1 of V and I
            turn = float(chi[k]) - getattr(geometry, first)
            for name in turned:
                setattr(geometry, name, getattr(geometry, name) + turn)
        geometries.append(geometry)
    atoms = list(PeptideBuilder.make_structure_from_geos(geometries).get_atoms())
    return structure_of(
        [atom.name for atom in atoms],
        [atom.parent.resname for atom in atoms],
        np.array([atom.parent.id[1] for atom in atoms]),
        np.array([atom.coord for atom in atoms]),
    )


def _clashes(structure: mdtraj.Trajectory) -> bool:
    residue = np.array([atom.residue.index for atom in structure.topology.atoms])
    apart = np.abs(residue[:, None] - residue) > 1
    distance = 10 * cdist(structure.xyz[0], structure.xyz[0])
    return bool((distance[apart] < CLASH).any())
