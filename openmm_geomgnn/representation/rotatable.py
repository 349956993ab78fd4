"""The torsions about which a molecule can turn: every bond that is in no ring and has heavy atoms on both sides."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mdtraj
import networkx
import numpy as np

from openmm_geomgnn.aliases import TopologyLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.selection import as_topology

_FEWEST = 4  # heavy atoms of a molecule that has a torsion
_MAIN_CHAIN = ("N", "CA", "C", "CH3")  # which neighbour a torsion of a peptide is measured with
_LEVELS = "BGDEZ"  # Greek letters along a side chain: CA-CB is chi1, CB-CG chi2
_CAPS = ("ACE", "FOR", "NME", "NMA", "NH2", "NHE")


class Torsions(NamedTuple):
    """Torsions of a molecule.

    Attributes
    ----------
    names : tuple of str
        Of N torsions: "phi ALA2", "omega ACE1-PRO2", "chi1 VAL3", else the four atoms, "LIG1-C1 C2 C3 O1".
    atoms : (N, 4) ndarray of int
    """

    names: tuple[str, ...]
    atoms: np.ndarray

    def compute(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        """The torsions of every frame, (F, N) float64 in radians."""
        if not len(self.atoms):
            return np.zeros((len(trajectory), 0))
        return mdtraj.compute_dihedrals(trajectory, self.atoms).astype(np.float64)


def torsions_among(topology: TopologyLike, atoms: np.ndarray) -> Torsions:
    """The rotatable torsions between selected atoms (n,), as rows of these; none where the topology has no bonds."""
    topology = as_topology(topology)
    try:
        names, rows = rotatable_torsions(topology)
    except GeomGNNError:
        return Torsions((), np.zeros((0, 4), int))
    place = np.full(topology.n_atoms, -1)
    place[atoms] = np.arange(len(atoms))
    there = np.flatnonzero((place[rows] >= 0).all(axis=1))
    return Torsions(tuple(names[k] for k in there), place[rows[there]])


def rotatable_torsions(topology: TopologyLike) -> Torsions:
    """Find one torsion for every bond about which parts with heavy atoms turn, omega of peptide bonds among them.

    What is left out: bonds in rings, the turning of methyl, amine and hydroxyl groups, and that of groups which look the
    same after a third or half of a turn, such as carboxylates, phenyl and tert-butyl.

    Parameters
    ----------
    topology : openmm.app.Topology, mdtraj.Topology or path

    Raises
    ------
    GeomGNNError
        If the topology has no bonds.
    """
    topology = as_topology(topology)
    bonds = topology.to_bondgraph()
    if topology.n_atoms >= _FEWEST and not bonds.number_of_edges():
        raise GeomGNNError(
            "The topology has no bonds, so it is not known what turns about what. Give a PDB file of standard residues, one "
            "with CONECT records, or a PRMTOP or PSF file."
        )
    molecules = [part for part in networkx.connected_components(bonds) if sum(map(_is_heavy, part)) >= _FEWEST]
    bonds = bonds.subgraph([atom for part in molecules for atom in part])
    heavy = bonds.subgraph(filter(_is_heavy, bonds))
    colours = _colours(bonds)
    found = []
    for pair in networkx.bridges(heavy):
        b, c = sorted(pair, key=lambda atom: atom.index)
        sides = [[atom for atom in heavy[one] if atom is not other] for one, other in ((b, c), (c, b))]
        if not all(sides) or any(_is_symmetric(bonds, *ends, colours) for ends in ((b, c), (c, b))):
            continue
        a, d = (min(side, key=_rank) for side in sides)
        found.append((a, b, c, d))
    found.sort(key=lambda four: (four[1].index, four[2].index))
    return Torsions(tuple(_names(found)), np.array([[atom.index for atom in four] for four in found], int).reshape(-1, 4))


def _is_heavy(atom: Any) -> bool:
    return atom.element.number > 1


def _rank(atom: Any) -> tuple[Any, ...]:
    """Main chain first, then the heaviest, then by name: the order of IUPAC for peptides."""
    place = _MAIN_CHAIN.index(atom.name) if atom.name in _MAIN_CHAIN else len(_MAIN_CHAIN)
    return place, -atom.element.number, atom.name, atom.index


def _colours(bonds: Any) -> dict[Any, str]:
    """Atoms that their surroundings do not tell apart have one colour; {} where the hydrogens are not there."""
    if all(map(_is_heavy, bonds)):
        return {}
    labelled = networkx.Graph(bonds)
    networkx.set_node_attributes(labelled, {atom: atom.element.symbol for atom in labelled}, "element")
    hashes = networkx.weisfeiler_lehman_subgraph_hashes(labelled, node_attr="element", iterations=6)
    return {atom: steps[-1] for atom, steps in hashes.items()}


def _is_symmetric(bonds: Any, end: Any, other: Any, colours: dict[Any, str]) -> bool:
    """Whether a group looks the same after a part of a turn: all that `end` carries is alike."""
    carried = [atom for atom in bonds[end] if atom is not other]
    return bool(colours) and len(carried) > 1 and len({colours[atom] for atom in carried}) == 1


def _names(found: Sequence[Sequence[Any]]) -> list[str]:
    names = [_peptide_name(b, c) or _four_atoms((a, b, c, d)) for a, b, c, d in found]
    # two branches of a side chain, or residues of two chains that share a number
    return [_four_atoms(four) if names.count(name) > 1 else name for name, four in zip(names, found, strict=True)]


def _peptide_name(b: Any, c: Any) -> str:
    """The name of the torsion about b-c where it is one of a peptide, else ""."""
    if not all(atom.residue.is_protein or atom.residue.name in _CAPS for atom in (b, c)):
        return ""
    first, second = sorted((b, c), key=lambda atom: atom.residue.index)
    if first.residue is not second.residue:
        omega = (first.name, second.name) == ("C", "N")
        return f"omega {first.residue}-{second.residue}" if omega else ""
    names, residue = {b.name, c.name}, b.residue
    if names == {"N", "CA"}:
        return f"phi {residue}"
    if names == {"CA", "C"}:
        return f"psi {residue}"
    letters = {name[1] for name in names if len(name) > 1}
    for level, pair in enumerate(zip("A" + _LEVELS, _LEVELS, strict=False), start=1):
        if letters == set(pair):
            return f"chi{level} {residue}"
    return ""


def _four_atoms(four: Sequence[Any]) -> str:
    residues = {atom.residue for atom in four}
    if len(residues) == 1:
        return f"{four[0].residue}-{' '.join(atom.name for atom in four)}"
    return " ".join(map(str, four))
