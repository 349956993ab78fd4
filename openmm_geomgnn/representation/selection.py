"""Which atoms of a system a collective variable sees, and whether two topologies are of the same molecule."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import mdtraj
import numpy as np

from openmm_geomgnn.aliases import TopologyLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.bond_graph import contradiction, describe_bonds
from openmm_geomgnn.representation.formats import check_format, reason

# what `residue_table` returns
ResidueTable: TypeAlias = list[list[Any]]

PROTEIN_SELECTION = "protein and not element H"
NUCLEIC_SELECTION = "nucleic and not element H"

_AMINO_ACIDS = (
    "ALA", "ARG", "ASN", "ASP", "CYS", "CYX", "GLN", "GLU", "GLY", "HID", "HIE", "HIP", "HIS", "ILE", "LEU", "LYS", "MET",
    "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL",
)  # fmt: skip
# protonation states, positions in the chain and naming schemes (AMBER, CHARMM, GROMACS) of the same residue
_SAME_RESIDUE = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP", "HISD", "HISE", "HISH", "HISA", "HISB"), "HIS"),
    **dict.fromkeys(("CYX", "CYM", "CYS2", "CYSH"), "CYS"),
    **dict.fromkeys(("ASH", "ASPH", "ASPP"), "ASP"),
    **dict.fromkeys(("GLH", "GLUH", "GLUP"), "GLU"),
    **dict.fromkeys(("LYN", "LYSH", "LSN"), "LYS"),
    **dict.fromkeys(("NMA", "CT3"), "NME"),
    "NHE": "NH2",
    **{f"{base}{end}": base for base in ("DA", "DC", "DG", "DT", "DU", "A", "C", "G", "U") for end in ("3", "5", "N")},
    **{f"R{base}{end}": base for base in ("A", "C", "G", "U") for end in ("", "3", "5", "N")},
}
_SAME_RESIDUE |= {f"{end}{name}": _SAME_RESIDUE.get(name, name) for end in "NC" for name in _AMINO_ACIDS}
# what mdtraj's keyword `nucleic` leaves out: CHARMM's names, and the modified nucleotides of transfer RNA
_NUCLEOTIDES = {
    *("ADE", "CYT", "GUA", "THY", "URA", "PSU", "H2U", "4SU", "5MU", "5MC", "OMC", "OMU", "OMG", "7MG", "1MA"),
    *("2MG", "1MG", "M2G", "MA6", "YG", "YYG"),
}  # fmt: skip
_NUCLEOTIDE = re.compile(r"D?[ACGITU]")
_CAPS = ("ACE", "NME", "NH2", "FOR")


def same_residue(name: str) -> str:
    """One name for all the names of a residue: HIS for HID, HSE, NHIE; DA for DA5."""
    return _SAME_RESIDUE.get(name, name)


def as_topology(topology: TopologyLike) -> mdtraj.Topology:
    """An mdtraj topology from one of mdtraj, of OpenMM, or the path of a structure file.

    Raises
    ------
    GeomGNNError
        If it is none of these, or the file cannot be read.
    """
    if isinstance(topology, mdtraj.Topology):
        return topology
    if isinstance(topology, mdtraj.Trajectory):
        return topology.topology
    if hasattr(topology, "atoms") and hasattr(topology, "getPeriodicBoxVectors"):
        return mdtraj.Topology.from_openmm(topology)
    if isinstance(topology, str | Path):
        path = Path(topology)
        if not path.is_file():
            raise GeomGNNError(f"There is no topology file {path}. Give the path of a PDB, GRO, PRMTOP or PSF file.")
        check_format(path)
        try:
            found = mdtraj.load_topology(str(path))
        except Exception as error:  # mdtraj's readers raise whatever they trip over
            raise GeomGNNError(
                f"The topology cannot be read from {path} ({reason(error)}): it is damaged, or not what its name says. Give "
                "a PDB, GRO, PRMTOP or PSF file."
            ) from error
        if not found.n_atoms:
            raise GeomGNNError(f"{path} holds no atoms, so it is no topology. Give a PDB, GRO, PRMTOP or PSF file.")
        return found
    raise GeomGNNError(
        f"A topology must be an openmm.app.Topology, an mdtraj.Topology or the path of a structure file, not a "
        f"{type(topology).__name__}."
    )


class Polymers:
    """Which residue names of a topology are amino acids (with caps) and nucleotides.

    Beyond the names that mdtraj knows, these are AMBER's, CHARMM's and GROMACS's names of the same residues, and every
    residue with the backbone atoms N, CA, C and O: modified amino acids have names without end. Ions are neither, though
    mdtraj takes CHARMM's calcium (CAL) for an amino acid and iodide (I) for a nucleotide.

    Attributes
    ----------
    protein, nucleic : set of str
        Residue names.
    """

    def __init__(self, topology: mdtraj.Topology) -> None:
        self.protein, self.nucleic = set(), set()
        seen = set()
        for residue in topology.residues:
            name = residue.name
            if name in seen:
                continue
            seen.add(name)
            if residue.n_atoms == 1 and residue.atom(0).element.symbol not in ("C", "P"):  # an ion, not a coarse model
                continue
            unified = same_residue(name)
            if residue.is_nucleic or name in _NUCLEOTIDES or _NUCLEOTIDE.fullmatch(unified):
                self.nucleic.add(name)
            elif residue.is_protein or unified != name or name in _CAPS or _has_backbone(residue):
                self.protein.add(name)

    def holds(self, residue: Any) -> bool:
        """Whether a residue is a link of a protein or nucleic acid."""
        return residue.name in self.protein or residue.name in self.nucleic


def _has_backbone(residue: Any) -> bool:
    return {"N", "CA", "C", "O"} <= {atom.name for atom in residue.atoms}


def default_selection(topology: mdtraj.Topology) -> str:
    """The selection where none is given: the heavy atoms of the solute.

    They are those of all protein; without protein, of all nucleic acid; without either, of the only residue that has two or
    more heavy atoms, a ligand in vacuum or in water.

    Raises
    ------
    GeomGNNError
        If there is no protein and no nucleic acid, and not exactly one such residue.
    """
    polymers = Polymers(topology)
    if polymers.protein:
        return PROTEIN_SELECTION
    if polymers.nucleic:
        return NUCLEIC_SELECTION
    # water and most ions have one heavy atom
    others = [residue for residue in topology.residues if sum(atom.element.number > 1 for atom in residue.atoms) > 1]
    if len(others) == 1:
        return f"resid {others[0].index} and not element H"
    names = sorted({residue.name for residue in topology.residues})
    raise GeomGNNError(
        f"There is neither protein nor nucleic acid among the {topology.n_residues} residues ({', '.join(names[:12])}), and "
        f"{len(others)} of them have two or more heavy atoms, so it is not clear which atoms are meant. Give a selection in "
        "mdtraj's language that names the molecule of interest, for example 'resname LIG and not element H'."
    )


def select_atoms(topology: mdtraj.Topology, selection: str | None = None) -> np.ndarray:
    """Sorted indices of the atoms that `selection` (mdtraj's language) names; None is that of `default_selection`.

    Where none is given, virtual sites on the molecule are left out. `protein` and `nucleic` take in every protonation state,
    cap and modified residue, whatever a force field calls it.

    Raises
    ------
    GeomGNNError
        If the selection cannot be parsed, is empty, or takes in virtual sites.
    """
    text = selection or default_selection(topology)
    try:
        atoms = topology.select(_in_full(topology, text))
    except Exception as error:  # mdtraj's parser raises whatever its grammar trips over, and prints the grammar
        raise GeomGNNError(
            f"The selection '{text}' is not valid. It is written in mdtraj's language, for example '{PROTEIN_SELECTION}' "
            "or 'chainid 0 and name CA CB'."
        ) from error
    if len(atoms) == 0:
        names = sorted({residue.name for residue in topology.residues})
        raise GeomGNNError(
            f"The selection '{text}' matches none of the {topology.n_atoms} atoms (residues: {', '.join(names[:12])}). "
            "Give a selection in mdtraj's language that names the molecule of interest."
        )
    is_virtual = np.array([topology.atom(i).element.number == 0 for i in atoms])
    if is_virtual.any() and selection:
        raise GeomGNNError(
            f"The selection '{text}' includes virtual sites such as {topology.atom(atoms[is_virtual][0])}, which are no "
            f"atoms of an element that a network knows. Leave them out of it, as in '({text}) and not element VS'."
        )
    return np.sort(atoms[~is_virtual])


def _in_full(topology: mdtraj.Topology, text: str) -> str:
    """The selection with the keywords `protein` and `nucleic` spelled out, as the residue names of this topology."""
    for keyword in ("protein", "nucleic"):
        pattern = rf"\b(is_)?{keyword}\b"
        if re.search(pattern, text):
            names = sorted(getattr(Polymers(topology), keyword))
            listed = " ".join(f"'{name}'" for name in names)
            text = re.sub(pattern, f"(resname {listed})" if names else "none", text)
    return text


def residue_table(topology: mdtraj.Topology, atoms: np.ndarray) -> ResidueTable:
    """Per residue that has selected atoms: [chain number, residue name, {element symbol: count}, bonds], JSON-able.

    This is what must agree between the molecule a CV was trained on and the one it is used on. The first three are all that
    the network can see of a topology; the last is what `bond_graph.describe_bonds` says of the residue. Names of one residue
    are unified; the order of atoms in a residue does not matter.
    """
    last: int | None = None
    table: ResidueTable = []
    chains: dict[int, int] = {}
    for index in atoms:
        atom = topology.atom(int(index))
        residue = atom.residue
        if residue.index != last:
            chain = chains.setdefault(residue.chain.index, len(chains))
            table.append([chain, same_residue(residue.name), {}])
            last = residue.index
        elements = table[-1][2]
        elements[atom.element.symbol] = elements.get(atom.element.symbol, 0) + 1
    return [[*row, part] for row, part in zip(table, describe_bonds(topology, atoms), strict=True)]


def bonds_of(table: ResidueTable) -> list[Any]:
    """What a residue table says of the bonds of each residue; None in tables that are older than it."""
    return [row[3] if len(row) > 3 else None for row in table]


def check_same_molecule(expected: ResidueTable, found: ResidueTable, what: str = "the CV file") -> None:
    """Raise a GeomGNNError at the first residue in which two residue tables differ, in bonds as far as both know them."""
    advice = (
        "Use the topology the CV was trained on (solvent and ions may differ), or fit a new CV for this molecule with "
        "`geomgnn fit`."
    )

    def unified(row: Sequence[Any]) -> list[Any]:
        return [row[0], same_residue(row[1]), dict(sorted(row[2].items()))]  # files may be older than a name

    def describe(row: Sequence[Any]) -> str:
        return f"{row[1]} of chain {row[0] + 1} with atoms {''.join(f'{e}{n}' for e, n in row[2].items())}"

    for number, (old, new) in enumerate(zip(map(unified, expected), map(unified, found), strict=False), start=1):
        if old != new:
            raise GeomGNNError(
                f"This topology is not that of {what}: residue {number} of the selection was {describe(old)} there and is "
                f"{describe(new)} here. {advice}"
            )
    if len(expected) != len(found):
        raise GeomGNNError(
            f"This topology is not that of {what}: the selection has {len(found)} residues here and had {len(expected)} "
            f"there. {advice}"
        )
    difference = contradiction(bonds_of(expected), bonds_of(found))
    if difference is not None:
        number, how = difference
        raise GeomGNNError(
            f"This topology is not that of {what}: residue {number + 1} of the selection, {found[number][1]}, has the same "
            f"atoms, but other bonds: {how}. {advice}"
        )
