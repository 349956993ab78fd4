"""Checks that the coordinates of a start fit the molecule in its topology.

A force field accepts any coordinates: gaps of missing residues are bonded over, and coinciding atoms have no finite energy.
"""

import itertools
from functools import cached_property
from typing import Any

import numpy as np
from openmm import app, unit
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from openmm_geomgnn.errors import GeomGNNError

# covalent radii, nm: Cordero et al., Dalton Trans. 2008, 2832
RADII = {
    **{"H": 0.031, "B": 0.084, "C": 0.076, "N": 0.071, "O": 0.066, "F": 0.057, "Si": 0.111, "P": 0.107, "S": 0.105},
    **{"Cl": 0.102, "Se": 0.120, "Br": 0.120, "I": 0.139, "Li": 0.128, "Na": 0.166, "Mg": 0.141, "K": 0.203, "Ca": 0.176},
    **{"Mn": 0.161, "Fe": 0.152, "Co": 0.150, "Ni": 0.124, "Cu": 0.132, "Zn": 0.122},
}
# bond lengths in units of the sum of the radii: well-made structures lie between 0.82 and 1.1. Minimisation mends what is
# between strained and broken; beyond, it mends the length of the bond but not what caused it
BROKEN = (0.5, 1.7)
STRAINED = (0.7, 1.3)
WRONG_UNIT = (7.0, 14.0)  # median of these ratios, or of their inverse: nm for angstrom, or the reverse
COINCIDENT = 0.01  # nm: in one place, for the energy; programs that add hydrogens leave distances of 0.05 behind
CROWDED = 0.05  # nm between two neighbours of one atom, which have no energy: hydrogens of a CH2 were seen in one place
CLASH = 0.8  # how close other atoms may be without a bond, in units of the sum of the radii
APART, NOT_MEANT_APART = 5.0, 20.0  # nm between molecules without periodic boundaries
_NAMED = 3  # examples in a message

_L_AMINO_ACIDS = frozenset(
    "ALA ARG ASN ASP CYS GLN GLU HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL "
    "ASH CYM CYX GLH HID HIE HIP HSD HSE HSP LYN MSE".split()
)
# centre and three neighbours that are counter-clockwise seen from the first in the residues as they are named
_CENTRES = [(None, ("CA", "N", "C", "CB")), ("ILE", ("CB", "CA", "CG1", "CG2")), ("THR", ("CB", "CA", "OG1", "CG2"))]


def check_geometry(
    topology: app.Topology, positions: np.ndarray, where: str = "The structure", strict: bool = True
) -> list[str]:
    """Check the coordinates of a topology; return remarks, a list of sentences, which is empty if all is as expected.

    Parameters
    ----------
    topology : openmm.app.Topology
        Topology of all atoms. Those without an element (virtual sites, Drude particles) are ignored. If it has a box, the
        system is periodic, and the lengths of bonds are those of their minimum images.
    positions : (N, 3) ndarray
        nm
    where : str
        Description of the coordinates, for the beginning of a sentence.
    strict : bool
        If False, for existing data, broken bonds and molecules out of reach are only remarks, too.

    Raises
    ------
    GeomGNNError
        If coordinates are not finite, are in the wrong unit or cannot belong to this molecule: bonds are far too long or
        short, two atoms are in one place, or molecules are out of reach of one another.
    """
    frame = _Frame(topology, np.asarray(positions, dtype=np.float64), where)
    for check in (_check_finite, _check_one_point, _check_unit):
        check(frame)
    try:
        _check_bonds(frame)
        _check_coincidence(frame)
        remarks = _far_apart(frame)
    except GeomGNNError as error:
        if strict:
            raise
        return [str(error)]
    return [*remarks, *_strained(frame), *_clashes(frame), *_inverted(frame)]


class _Frame:
    """Coordinates with the bonds of their topology."""

    def __init__(self, topology: app.Topology, positions: np.ndarray, where: str) -> None:
        if positions.shape != (topology.getNumAtoms(), 3):
            raise GeomGNNError(
                f"{where} has positions of the shape {positions.shape} for {topology.getNumAtoms()} atoms: give (atoms, 3) "
                "in nm."
            )
        box = topology.getPeriodicBoxVectors()
        self.where = where
        self.box = None if box is None else np.array(box.value_in_unit(unit.nanometer), dtype=np.float64)
        self.all_atoms, self.all_positions = list(topology.atoms()), positions
        self.real = np.array([atom.element is not None for atom in self.all_atoms])
        self.atoms = [atom for atom, real in zip(self.all_atoms, self.real, strict=True) if real]
        self.positions = positions[self.real]
        row = np.cumsum(self.real) - 1
        # hydrogens are bonded to one another in some rigid waters only, over twice the length of a bond
        bonds = [(a, b) for a, b in topology.bonds() if not _without_length(a, b)]
        self.bonds = np.array([(row[a.index], row[b.index]) for a, b in bonds], dtype=int).reshape(-1, 2)

    def name(self, k: int) -> str:
        atom = self.atoms[k]
        return f"{atom.name} of {_residue_name(atom.residue)}"

    @cached_property
    def lengths(self) -> np.ndarray:
        """Lengths (bonds,) in nm."""
        return self.distances(*self.bonds.T)

    @cached_property
    def ratios(self) -> np.ndarray:
        """Lengths (bonds,) in units of the sum of the radii."""
        return self.lengths / (self.radii[self.bonds[:, 0]] + self.radii[self.bonds[:, 1]])

    def bonds_outside(self, low: float, high: float) -> np.ndarray:
        """Rows of the bonds whose ratios are outside these limits, the worst first."""
        found = np.flatnonzero((self.ratios < low) | (self.ratios > high))
        return found[np.argsort(-np.abs(np.log(self.ratios[found] + 1e-9)), kind="stable")]

    @cached_property
    def radii(self) -> np.ndarray:
        """Covalent radii (n,) in nm; NaN where they are unknown."""
        return np.array([RADII.get(atom.element.symbol, np.nan) for atom in self.atoms])

    @cached_property
    def close(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs (i, j) that are closer than atoms can be without a bond, and whether they share a neighbour.

        Each is (P,); pairs across the box are left out.
        """
        near: list[set[int]] = [set() for _ in self.atoms]
        for a, b in self.bonds.tolist():
            near[a].add(b)
            near[b].add(a)
        pairs = cKDTree(self.positions).query_pairs(2 * CLASH * RADII["S"], output_type="ndarray")
        pairs = np.array([(a, b) for a, b in pairs.tolist() if b not in near[a]], dtype=int).reshape(-1, 2)
        related = np.array([not near[a].isdisjoint(near[b]) for a, b in pairs.tolist()], dtype=bool)
        return *pairs.T, related

    def distances(self, i: Any, j: Any) -> np.ndarray:
        return np.linalg.norm(self.apart(i, j), axis=-1)

    def apart(self, i: Any, j: Any) -> np.ndarray:
        """Vectors (..., 3) from atoms j to atoms i."""
        delta = self.positions[i] - self.positions[j]
        if self.box is None:
            return delta
        from openmm_geomgnn.representation.periodic import (
            minimum_image,  # imports mdtraj, which walkers in vacuum do not need
        )

        return minimum_image(delta, self.box)


def _without_length(a: Any, b: Any) -> bool:
    """Whether the length of a bond is unknown: bonds of virtual sites, between hydrogens, of coarse-grained beads."""
    if a.element is None or b.element is None or a.element.symbol == b.element.symbol == "H":
        return True
    return len(a.residue) == len(b.residue) == 1


def _residue_name(residue: Any) -> str:
    return f"{residue.name} {residue.id}" + (f" of chain {residue.chain.id}" if residue.chain.id.strip() else "")


def _listed(names: Any) -> str:
    """List the first few names and the number of the others."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _check_finite(frame: _Frame) -> None:
    bad = np.flatnonzero(~np.isfinite(frame.all_positions).all(axis=1))
    if len(bad):
        atom = frame.all_atoms[bad[0]]
        raise GeomGNNError(
            f"{frame.where} has positions that are not finite: {atom.name} of {_residue_name(atom.residue)}"
            f"{f' and {len(bad) - 1} more atoms' if len(bad) > 1 else ''}. Check the coordinates."
        )


def _check_one_point(frame: _Frame) -> None:
    if len(frame.atoms) > 1 and np.ptp(frame.positions, axis=0).max() < CROWDED:
        raise GeomGNNError(
            f"{frame.where} has all its {len(frame.atoms)} atoms in one place. Give a structure with coordinates."
        )


def _check_unit(frame: _Frame) -> None:
    known = np.isfinite(frame.ratios)
    if known.any():
        ratio = float(np.median(frame.ratios[known]))
        if WRONG_UNIT[0] < ratio < WRONG_UNIT[1]:
            raise GeomGNNError(
                f"{frame.where} has bonds that are {ratio:.0f} times too long: the coordinates are in another unit than "
                "they should be, ten times smaller. PDB and mmCIF files hold angstrom, arrays of positions nm: divide the "
                "coordinates by 10."
            )
        if ratio * WRONG_UNIT[0] < 1 < ratio * WRONG_UNIT[1]:
            raise GeomGNNError(
                f"{frame.where} has bonds that are {1 / ratio:.0f} times too short: the coordinates are in another unit "
                "than they should be, ten times larger. PDB and mmCIF files hold angstrom, arrays of positions nm: "
                "multiply the coordinates by 10."
            )


def _check_bonds(frame: _Frame) -> None:
    broken = frame.bonds_outside(*BROKEN)
    if not len(broken):
        return
    shown = [
        f"{frame.name(i)} and {frame.name(j)} over {10 * frame.lengths[k]:.1f} A"
        for k, (i, j) in zip(broken, frame.bonds[broken], strict=True)
    ]
    if all(_is_link(frame, k) and frame.ratios[k] > 1 for k in broken):
        raise GeomGNNError(
            f"{frame.where} has a gap in its chain. Residues that follow each other in a chain are bonded, here "
            f"{_listed(shown)}. Build the missing residues (PDBFixer), or make two chains of it (a TER record, and capped "
            "ends)."
        )
    raise GeomGNNError(
        f"{frame.where} has bonds that no molecule has: {_listed(shown)}. Check the coordinates of these atoms, "
        "and the CONECT records of the file; a molecule that the box cuts needs its box (CRYST1), and a ring must be closed."
    )


def _is_link(frame: _Frame, bond: int) -> bool:
    """Whether a bond joins residues that follow each other in a chain."""
    first, second = (frame.atoms[k].residue for k in frame.bonds[bond])
    return first.chain is second.chain and abs(first.index - second.index) == 1


def _check_coincidence(frame: _Frame) -> None:
    i, j, related = frame.close
    i, j = i[~related], j[~related]
    distances = frame.distances(i, j)
    if (distances < COINCIDENT).any():
        k = int(np.argmin(distances))
        raise GeomGNNError(
            f"{frame.where} has {(distances < COINCIDENT).sum()} pairs of atoms in one place, closer than "
            f"{10 * COINCIDENT:g} A, such as {frame.name(i[k])} and {frame.name(j[k])}. Check the coordinates, and whether "
            "atoms are there twice."
        )


def _far_apart(frame: _Frame) -> list[str]:
    """Make a remark if molecules will not meet; raise a GeomGNNError if they cannot be meant to be so far apart."""
    if frame.box is not None:
        return []
    for distance in (NOT_MEANT_APART, APART):
        # atoms in cells of this width that are neither the same nor next to each other are further apart than that
        cells, cell = np.unique(np.floor(frame.positions / distance), axis=0, return_inverse=True)
        pairs = cKDTree(cells).query_pairs(1.5, p=np.inf, output_type="ndarray").reshape(-1, 2)
        n = len(cells)
        group = connected_components(coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(n, n)), directed=False)[1]
        group = group[cell.ravel()]
        sizes = np.bincount(group)
        if len(sizes) > 1:
            smallest = np.flatnonzero(group == np.argmin(sizes))
            text = (
                f"{frame.where} has {len(smallest)} of its {len(group)} atoms more than {distance:g} nm from all others, "
                f"the first is {frame.name(smallest[0])}"
            )
            if distance == NOT_MEANT_APART:
                raise GeomGNNError(f"{text}. Check the coordinates; what is not needed can be left out.")
            return [f"{text}: without a box nothing will bring them together."]
    return []


def _strained(frame: _Frame) -> list[str]:
    strained = frame.bonds_outside(*STRAINED)
    if not len(strained):
        return []
    shown = [
        f"{frame.name(i)} and {frame.name(j)} over {10 * frame.lengths[k]:.2f} A"
        for k, (i, j) in zip(strained, frame.bonds[strained], strict=True)
    ]
    return [
        f"{frame.where} has strained bonds: {_listed(shown)}. The minimisation will mend them, but not, for example, a ring "
        "that a bond goes through: look at the structure."
    ]


def _clashes(frame: _Frame) -> list[str]:
    """Find atoms much closer than their radii allow without a bond, among those whose bonds are known."""
    i, j, related = frame.close
    bonded = np.zeros(len(frame.atoms), dtype=bool)
    bonded[frame.bonds.ravel()] = True
    limit = np.where(related, CROWDED, CLASH * (frame.radii[i] + frame.radii[j]))
    near = bonded[i] & bonded[j] & (frame.distances(i, j) < limit)
    shown = [
        f"{frame.name(a)} and {frame.name(b)} at {10 * frame.distances(a, b):.2f} A"
        for a, b in zip(i[near], j[near], strict=True)
    ]
    if not shown:
        return []
    return [
        f"{frame.where} has atoms that are not bonded but as close as if they were: {_listed(shown)}. The minimisation will "
        "push them apart, whichever way is nearer: look at the structure, or give a relaxed one."
    ]


def _inverted(frame: _Frame) -> list[str]:
    """Find amino acids that have the name of the L form but not its configuration."""
    rows: dict[Any, dict[str, int]] = {}
    for k, atom in enumerate(frame.atoms):
        if atom.residue.name in _L_AMINO_ACIDS:
            rows.setdefault(atom.residue, {})[atom.name] = k
    centres = [
        (residue, [found[name] for name in names])
        for (residue, found), (kind, names) in itertools.product(rows.items(), _CENTRES)
        if kind in (None, residue.name) and all(name in found for name in names)
    ]
    if not centres:
        return []
    index = np.array([atoms for _, atoms in centres])
    a, b, c = (frame.apart(index[:, k], index[:, 0]) for k in (1, 2, 3))
    volume = np.einsum("nk,nk->n", a, np.cross(b, c))
    wrong = [
        f"{frame.atoms[atoms[0]].name} of {_residue_name(residue)}"
        for (residue, atoms), value in zip(centres, volume, strict=True)
        if value < 0
    ]
    if not wrong:
        return []
    if len(wrong) == len(centres) > 1:
        return [
            f"{frame.where} is the mirror image of the molecule that its residue names tell: all its {len(wrong)} centres "
            "are those of D amino acids. No simulation will turn them round: give the other one, or D names."
        ]
    return [
        f"{frame.where} has inverted centres, of D amino acids with the names of L ones: {_listed(wrong)}. Force fields "
        "do not tell them apart, and no simulation turns them round. If it is not meant, build these residues again."
    ]
