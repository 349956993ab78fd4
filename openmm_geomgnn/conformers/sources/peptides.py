"""Capped peptides in molecular dynamics, which resemble what a collective variable of a protein sees."""

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from openmm_geomgnn.conformers.sources.base import require
from openmm_geomgnn.conformers.sources.simulated import SimulatedChains, Structure, is_number, with_hydrogens
from openmm_geomgnn.errors import GeomGNNError

RESIDUES = "ARNDCQEGHILKMFPSTWYV"
# the atoms of an alanine that become those of a cap, at the start and at the end of the chain
ACE = {"CA": "CH3", "C": "C", "O": "O"}
NME = {"N": "N", "CA": "C"}
BACKBONE = ("N", "CA", "C", "O")


@dataclass(frozen=True)
class Peptides(SimulatedChains):
    """ACE-X-NME of all 20 residues, and random ACE-XX-NME and longer, simulated with OpenMM.

    The force field is amber14 with OBC2 implicit solvent. Runs start from random torsions, so that they cover regions such
    as phi > 0, which a simulation that starts in a helix or strand does not reach; frames are 0.8 ps apart.

    Attributes
    ----------
    number : int
        Conformers.
    shares : list of float
        Shares of the conformers with one, two, three, four, ... residues between the caps; they need not add up to 1.
    per_sequence : int
        Conformers of each sequence of two or more residues; single residues share theirs equally.
    temperatures : list of float
        Kelvin; one is drawn for each run of 20 frames.
    d_share : float
        Share of the residues in sequences of two or more that are D, from 0 to 1. (Single ones need none: to our networks a
        molecule and its mirror image are the same.)
    """

    name: ClassVar[str] = "peptides"
    stream: ClassVar[int] = 20

    shares: list[float] = (0.5, 0.3, 0.12, 0.08)  # type: ignore[assignment]  # a default must not be mutable
    d_share: float = 0.0

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        require(self, "PeptideBuilder")
        super().check()
        if not is_number(self.d_share) or not 0 <= self.d_share <= 1:
            raise GeomGNNError(
                f"d_share of the conformer source `peptides` is {self.d_share!r}, but it must be from 0 to 1."
            )

    def singles(self) -> list[str]:
        """All residues."""
        return list(RESIDUES)

    def random_sequences(self, rng: np.random.Generator, number: int, length: int) -> list[str]:
        """Draw sequences of one-letter codes; a small letter is the D residue."""
        sequences = ["".join(RESIDUES[k] for k in row) for row in rng.integers(len(RESIDUES), size=(number, length))]
        if not self.d_share:
            return sequences
        mirrored = rng.random((number, length)) < self.d_share
        return [
            "".join(letter.lower() if d else letter for letter, d in zip(sequence, row, strict=True))
            for sequence, row in zip(sequences, mirrored, strict=True)
        ]

    def build(self, sequence: str) -> Structure:
        """A structure with hydrogens, not minimised."""
        return build_peptide(sequence)


def build_peptide(sequence: str) -> Structure:
    """Extended ACE-`sequence`-NME with hydrogens, not minimised.

    Parameters
    ----------
    sequence : str
        One-letter codes; a small letter is the D residue.

    Returns
    -------
    topology : openmm.app.Topology
    positions : openmm Quantity
    """
    from openmm import app

    pdb = app.PDBFile(io.StringIO(capped_pdb(sequence)))
    return with_hydrogens(pdb.topology, pdb.positions, sequence)


def capped_pdb(sequence: str) -> str:
    """Write the heavy atoms of extended ACE-`sequence`-NME in PDB format; one-letter codes, a small one is a D residue."""
    import PeptideBuilder

    residues = list(PeptideBuilder.make_extended_structure(f"A{sequence.upper()}A").get_residues())
    lines: list[str] = []
    for i, (residue, letter) in enumerate(zip(residues, f"A{sequence}A", strict=True), start=1):
        cap, names = {1: ("ACE", ACE), len(residues): ("NME", NME)}.get(i, ("", {}))
        coordinates = {atom.name: np.array(atom.coord, dtype=float) for atom in residue}
        if letter.islower():
            coordinates = mirrored(coordinates)
        for atom, (x, y, z) in coordinates.items():
            if cap and atom not in names:
                continue
            name = names[atom] if cap else atom
            lines.append(
                f"ATOM  {len(lines) + 1:5d}  {name:<3s} {cap or residue.resname:3s} A{i:4d}    "
                f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {name[0]:>2s}\n"
            )
    return "".join(lines) + "END\n"


def mirrored(coordinates: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A residue, {atom name: (3,)}, with its side chain reflected in the plane of N, CA and C: the D residue of an L one."""
    centre = coordinates["CA"]
    normal = np.cross(coordinates["N"] - centre, coordinates["C"] - centre)
    normal /= np.linalg.norm(normal)
    return {
        name: here if name in BACKBONE else here - 2 * np.dot(here - centre, normal) * normal
        for name, here in coordinates.items()
    }
