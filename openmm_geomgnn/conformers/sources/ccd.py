"""The Chemical Component Dictionary of the Protein Data Bank: ligands, cofactors, nucleotides, sugars, modified residues."""

import functools
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from openmm_geomgnn.conformers.sources.base import (
    NOT_FINITE,
    Conformer,
    Source,
    check_choice,
    check_count,
    draw,
    require,
    skip,
)
from openmm_geomgnn.conformers.sources.rdkit_molecules import OPTIMISERS, embed
from openmm_geomgnn.errors import GeomGNNError

COORDINATES = ("rdkit", "ideal")
COMPONENTS_PER_TASK = 100


@dataclass(frozen=True)
class CCD(Source):
    """Components of the Chemical Component Dictionary (Westbrook et al., Bioinformatics 31, 1274 (2015)), some 49,000.

    Read from the installed Python package biotite. Obsolete components are left out, and those that RDKit cannot read, embed
    or relax; all are as they stand in the dictionary, most of them uncharged.

    Attributes
    ----------
    number : int
        Components to draw at random, by default all.
    skip : int
        Number of components to skip in the random order: with the `number` and seed of a training set, all that it drew.
    elements : list of str
        Symbols of the elements that a component may have; by default any.
    having : list of str
        Symbols of elements of which a component must have at least one; by default none.
    max_atoms : int
        Larger components are left out.
    coordinates : rdkit or ideal
        Conformers made with RDKit's ETKDGv3 from a fixed seed, or the one that the dictionary calls ideal, where it has one;
        complexes of metals do.
    per_molecule : int
        Conformers of each component, if RDKit makes them.
    optimise : mmff, uff or none
        The force field with which the conformers are relaxed that RDKit makes.
    """

    name: ClassVar[str] = "ccd"

    number: int | None = None
    skip: int = 0
    elements: list[str] | None = None
    having: list[str] | None = None
    max_atoms: int = 100
    coordinates: str = "rdkit"
    per_molecule: int = 1
    optimise: str = "mmff"

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        require(self, "biotite", "rdkit")
        check_count(self, "per_molecule", "max_atoms", optional=("number",))
        check_count(self, "skip", least=0)
        check_choice(self, "coordinates", COORDINATES)
        check_choice(self, "optimise", OPTIMISERS)
        if self.coordinates == "ideal" and self.per_molecule > 1:
            raise GeomGNNError(
                f"per_molecule of the conformer source `ccd` is {self.per_molecule}, but a component has one ideal "
                "conformer. Leave it out, or set `coordinates: rdkit`."
            )
        known = components().symbols
        for key in ("elements", "having"):
            for symbol in getattr(self, key) or ():
                if str(symbol).upper() not in known:
                    raise GeomGNNError(
                        f"{key} of the conformer source `ccd` names {symbol!r}, which no component has. Give symbols such "
                        "as C, Cl and Zn."
                    )

    def tasks(self, seed: int) -> list[list[Any]]:
        """Cut the work into tasks: lists of [component, its number in the dictionary]."""
        table = components()
        wanted = table.current & (table.sizes <= self.max_atoms)
        if self.coordinates == "ideal":
            wanted &= table.ideal
        if self.elements is not None:
            wanted &= ~table.has[:, ~table.columns(self.elements)].any(axis=1)
        if self.having is not None:
            wanted &= table.has[:, table.columns(self.having)].any(axis=1)
        candidates = np.flatnonzero(wanted)
        drawn = candidates[draw(len(candidates), self.number, seed, self.skip)].tolist()
        return [
            [[table.names[k], k] for k in drawn[start : start + COMPONENTS_PER_TASK]]
            for start in range(0, len(drawn), COMPONENTS_PER_TASK)
        ]

    def conformers(self, task: list[Any], seed: int, skipped: Counter[str] | None = None) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the conformers of one task."""
        for name, index in task:
            if self.coordinates == "ideal":
                yield from _ideal(index, skipped)
            else:
                yield from self._embedded(name, index, seed, skipped)

    def _embedded(self, name: str, index: int, seed: int, skipped: Counter[str] | None) -> list[Conformer]:
        from rdkit import Chem, rdBase

        # RDKit would report every molecule that it cannot read or embed
        with rdBase.BlockLogs():
            try:
                molecule = _molecule(name)
            except (ValueError, Chem.MolSanitizeException):
                skip(skipped, "a component that RDKit cannot read")
                return []
            return list(embed(molecule, self.per_molecule, self.optimise, seed, index, skipped))


class Components(NamedTuple):
    """What the dictionary says of its components, in its order.

    Attributes
    ----------
    names : list of str
    current : (n,) bool
        Whether it is not obsolete, and all of its atoms are elements.
    ideal : (n,) bool
        Whether it has ideal coordinates.
    bounds : (n + 1,) int
        Where its atoms begin among those of all, and where the last ones end.
    symbols : list of str
        All elements, in capitals.
    has : (n, elements) bool
    """

    names: list[str]
    current: np.ndarray
    ideal: np.ndarray
    bounds: np.ndarray
    symbols: list[str]
    has: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Number of atoms, (n,)."""
        return np.diff(self.bounds)

    def columns(self, symbols: list[str]) -> np.ndarray:
        """Which columns of `has` are those of some elements, (elements,) bool."""
        return np.isin(self.symbols, [str(one).upper() for one in symbols])


@functools.cache
def components() -> Components:
    """The table of components of the installed dictionary; the first call takes some seconds."""
    from biotite.structure import info

    whole, atoms = info.get_ccd()["chem_comp"], info.get_ccd()["chem_comp_atom"]
    released = dict(zip(whole["id"].as_array(), whole["pdbx_release_status"].as_array() == "REL", strict=True))
    without = whole["pdbx_ideal_coordinates_missing_flag"].as_array() == "Y"
    ideal = dict(zip(whole["id"].as_array(), ~without, strict=True))
    owner = atoms["comp_id"].as_array()
    bounds = np.concatenate([[0], np.flatnonzero(owner[1:] != owner[:-1]) + 1, [len(owner)]])
    names = owner[bounds[:-1]].tolist()
    symbols, kind = np.unique(atoms["type_symbol"].as_array(), return_inverse=True)
    has = np.zeros((len(names), len(symbols)), dtype=bool)
    has[np.repeat(np.arange(len(names)), np.diff(bounds)), kind] = True
    # X is an atom that is not known, D is deuterium
    current = np.array([released[name] for name in names]) & ~has[:, np.isin(symbols, ("X", "D"))].any(axis=1)
    return Components(names, current, np.array([ideal[name] for name in names]), bounds, symbols.tolist(), has)


@functools.cache
def _ideal_atoms() -> tuple[np.ndarray, np.ndarray]:
    """Symbols (A,) and ideal coordinates (A, 3) in angstrom of the atoms of all components; NaN where there are none."""
    from biotite.structure import info

    atoms = info.get_ccd()["chem_comp_atom"]
    axes = [atoms[f"pdbx_model_Cartn_{axis}_ideal"].as_array(float, masked_value=np.nan) for axis in "xyz"]
    return atoms["type_symbol"].as_array(), np.column_stack(axes)


def _ideal(index: int, skipped: Counter[str] | None) -> Iterator[Conformer]:
    """Yield the ideal conformer of the component with a number."""
    from rdkit import Chem

    symbols, coordinates = _ideal_atoms()
    own, table = slice(*components().bounds[index : index + 2]), Chem.GetPeriodicTable()
    if not np.isfinite(coordinates[own]).all():
        return skip(skipped, NOT_FINITE)
    z = np.array([table.GetAtomicNumber(symbol.capitalize()) for symbol in symbols[own].tolist()])
    yield z, coordinates[own]


def _molecule(name: str) -> Any:
    """A component as an RDKit molecule without conformers, its stereochemistry that of the dictionary's coordinates."""
    from biotite.interface.rdkit import to_mol
    from biotite.structure import info
    from rdkit import Chem

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The coordinates are missing")  # the ideal ones: the model's are taken
        molecule = to_mol(info.residue(name))
    Chem.SanitizeMol(molecule)
    Chem.AssignStereochemistryFrom3D(molecule)
    molecule.RemoveAllConformers()
    return molecule
