"""The atoms of one topology found in another, by residue and name, in whatever order a file holds them."""

import warnings
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import mdtraj
import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.pickling import pickled_as
from openmm_geomgnn.representation.selection import same_residue

# bonds within a residue, by the places of their atoms in it
Bonds: TypeAlias = set[frozenset[int]]
# name and number of a residue
Label: TypeAlias = tuple[str, int]

_ADVICE = "Give trajectories of the system that the topology describes, with its names of atoms."


@pickled_as("atom matcher")
class AtomMatcher:
    """Finds selected atoms in the topologies that trajectories bring along.

    Residues are paired in their order, or by their numbers where these say that the order is another one; their atoms by
    name. Where programs name the atoms of a residue differently the order counts, if elements and bonds agree with it.
    Residues of other names, solvent mostly, do not matter.

    Parameters
    ----------
    topology : mdtraj.Topology
        Of the whole system.
    atoms : (n,) int, sorted
        The selected atoms.
    """

    def __init__(self, topology: mdtraj.Topology, atoms: np.ndarray) -> None:
        selected: dict[int, dict[int, int]] = {}  # index of a residue -> {index of an atom: its number in the selection}
        for number, index in enumerate(map(int, atoms)):
            selected.setdefault(topology.atom(index).residue.index, {})[index] = number
        self._names = {same_residue(topology.residue(index).name) for index in selected}
        residues = _residues_named(topology, self._names)
        self._labels = [_label(residue) for residue in residues]
        bonds = _bonds_within(topology, selected)
        # number among these residues -> its selected atoms
        self._parts = {
            number: MatchedResidue(residue, selected[residue.index], bonds[residue.index])
            for number, residue in enumerate(residues)
            if residue.index in selected
        }
        self._last: tuple[Any, Any] = None, None  # the last topology, and the rows in it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": (None, None)}

    def rows(self, topology: mdtraj.Topology) -> np.ndarray:
        """Indices (n,) of the selected atoms in another topology, in the order of the selection.

        Raises
        ------
        GeomGNNError
            If an atom is missing, or it is not clear which it is.
        """
        if self._last[0] is not topology:
            pairs = self._paired(topology)
            bonds = _bonds_within(topology, {residue.index for _, residue in pairs})
            rows, unsure = np.zeros(sum(len(part.numbers) for part, _ in pairs), dtype=int), []
            for part, residue in pairs:
                rows[part.numbers], sure = part.rows(residue, bonds[residue.index])
                unsure += [] if sure else [part.label]
            if unsure:
                warnings.warn(
                    f"The trajectory's own topology has other names of atoms in {', '.join(unsure[:5])} than the molecule, "
                    "and no bonds to compare. They are taken in their order there, which their elements agree with.",
                    UserWarning,
                    stacklevel=2,
                )
            self._last = topology, rows
        return self._last[1]

    def _paired(self, topology: mdtraj.Topology) -> list[tuple["MatchedResidue", Any]]:
        """[(part, the residue that it is in another topology)]."""
        residues = _residues_named(topology, self._names)
        labels = [_label(residue) for residue in residues]
        permuted = labels != self._labels and Counter(labels) == Counter(self._labels)
        if permuted:
            places = dict(zip(_counted(labels), residues, strict=True))
            residues = [places[label] for label in _counted(self._labels)]
        elif [name for name, _ in labels] != [name for name, _ in self._labels]:
            here, there = (Counter(name for name, _ in part) for part in (self._labels, labels))
            differing = [f"{there[name]} {name} instead of {here[name]}" for name in here if here[name] != there[name]]
            what = "; ".join(differing) or "the same residues in another order, with other numbers"
            raise GeomGNNError(f"The trajectory's own topology is not that of the molecule: it has {what}. {_ADVICE}")
        return [(part, residues[number]) for number, part in self._parts.items()]


@pickled_as("matched residue")
class MatchedResidue:
    """The selected atoms of a residue, by their places in it."""

    def __init__(self, residue: Any, selected: Mapping[int, int], bonds: Bonds) -> None:
        self.label = f"{residue.name}{residue.resSeq}"
        self.places = [place for place, atom in enumerate(residue.atoms) if atom.index in selected]
        self.numbers = [selected[residue.atom(place).index] for place in self.places]
        self.atoms = _atoms(residue)
        self.bonds = bonds

    def rows(self, residue: Any, bonds: Bonds) -> tuple[list[int], bool]:
        """Indices of the selected atoms in the residue of another topology that is this one, and whether that is sure."""
        there, sure = _atoms(residue), True
        wanted, counted = [self.atoms[place] for place in self.places], Counter(there)
        if there == self.atoms:
            found = self.places
        elif len(set(wanted)) == len(wanted) and all(counted[key] == 1 for key in wanted):
            found = [there.index(key) for key in wanted]
        else:
            self._check_in_place(there, bonds)
            found, sure = self.places, bool(self.bonds and bonds)
        return [residue.atom(place).index for place in found], sure

    def _check_in_place(self, there: Any, bonds: Bonds) -> None:
        """Raise a GeomGNNError unless atoms that have other names may be taken in their order."""
        names, others = ([name for name, _ in atoms] for atoms in (self.atoms, there))
        moved = [name for name in set(names) & set(others) if names.index(name) != others.index(name)]
        same_elements = [symbol for _, symbol in self.atoms] == [symbol for _, symbol in there]
        if moved or not same_elements or (self.bonds and bonds and self.bonds != bonds):
            lacking = [self.atoms[place][0] for place in self.places if self.atoms[place] not in there]
            which = f"has no atom {lacking[0]}" if lacking else "has several atoms of one name"
            raise GeomGNNError(
                f"The trajectory's own topology is not that of the molecule: its residue {self.label} {which}, but "
                f"{', '.join(others[:30])}. {_ADVICE}"
            )


def _atoms(residue: Any) -> list[tuple[str, str]]:
    return [(atom.name, atom.element.symbol) for atom in residue.atoms]


def _residues_named(topology: mdtraj.Topology, names: Container[str]) -> list[Any]:
    return [residue for residue in topology.residues if same_residue(residue.name) in names]


def _label(residue: Any) -> Label:
    return same_residue(residue.name), residue.resSeq


def _counted(labels: Iterable[Label]) -> Iterator[tuple[str, int, int]]:
    """Labels with their occurrence: those of the second chain of a dimer are other ones than those of the first."""
    seen: Counter[Label] = Counter()
    for label in labels:
        yield (*label, seen[label])
        seen[label] += 1


def _bonds_within(topology: mdtraj.Topology, residues: Collection[int]) -> dict[int, Bonds]:
    """{index of a residue: its own bonds, by places in it}, for some residues of a topology."""
    place = {atom.index: k for index in residues for k, atom in enumerate(topology.residue(index).atoms)}
    found: dict[int, Bonds] = {index: set() for index in residues}
    for a, b in topology.bonds:
        if a.residue is b.residue and a.residue.index in found:
            found[a.residue.index].add(frozenset((place[a.index], place[b.index])))
    return found
