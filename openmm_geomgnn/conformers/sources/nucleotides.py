"""Short strands of RNA and DNA in molecular dynamics."""

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from openmm_geomgnn.conformers.sources.base import require
from openmm_geomgnn.conformers.sources.simulated import SimulatedChains, Structure, with_hydrogens
from openmm_geomgnn.errors import GeomGNNError

LETTERS = {"RNA": "ACGU", "DNA": "ACGT"}
FLAVOURS = {"RNA": 2, "DNA": 6}  # of RDKit: without phosphates at the ends


@dataclass(frozen=True)
class Nucleotides(SimulatedChains):
    """Nucleosides of RNA and DNA, and random strands of two and more nucleotides, half of them DNA, simulated with OpenMM.

    The force fields are OL3 and OL15, which amber14 brings, with OBC2 implicit solvent; both ends carry hydroxyl groups, and
    phosphates are charged. Runs start from random torsions; frames are 0.8 ps apart.

    Attributes
    ----------
    number : int
        Conformers.
    shares : list of float
        Shares of the conformers with one, two, three, ... nucleotides; they need not add up to 1.
    per_sequence : int
        Conformers of each sequence of two or more; nucleosides share theirs equally.
    temperatures : list of float
        Kelvin; one is drawn for each run of 20 frames.
    """

    name: ClassVar[str] = "nucleotides"
    stream: ClassVar[int] = 22

    shares: list[float] = (0.1, 0.6, 0.3)  # type: ignore[assignment]  # a default must not be mutable

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        require(self, "rdkit")
        super().check()

    def singles(self) -> list[str]:
        """All nucleosides."""
        return [f"{kind} {letter}" for kind, letters in LETTERS.items() for letter in letters]

    def random_sequences(self, rng: np.random.Generator, number: int, length: int) -> list[str]:
        """Draw sequences such as `RNA AC`."""
        kinds = [list(LETTERS)[k] for k in rng.integers(len(LETTERS), size=number)]
        indices = rng.integers(4, size=(number, length))
        return [f"{kind} {''.join(LETTERS[kind][k] for k in row)}" for kind, row in zip(kinds, indices, strict=True)]

    def build(self, sequence: str) -> Structure:
        """A structure with hydrogens, not minimised."""
        return build_strand(*sequence.split())


def build_strand(kind: str, letters: str) -> Structure:
    """A single strand with hydrogens and some conformation, not minimised.

    Parameters
    ----------
    kind : {"RNA", "DNA"}
    letters : str
        From the 5' to the 3' end.

    Returns
    -------
    topology : openmm.app.Topology
    positions : openmm Quantity

    Raises
    ------
    GeomGNNError
        If RDKit finds no conformation.
    """
    from openmm import app
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSequence(letters, flavor=FLAVOURS[kind]))
    if AllChem.EmbedMolecule(molecule, randomSeed=1, useRandomCoords=True) < 0:
        raise GeomGNNError(f"RDKit finds no conformation of {kind} {letters}. Report it with the version of rdkit.")
    # without its hydrogens: their names are not the force field's
    pdb = app.PDBFile(io.StringIO(Chem.MolToPDBBlock(Chem.RemoveHs(molecule), flavor=4)))
    return with_hydrogens(pdb.topology, pdb.positions, f"{kind} {letters}")
