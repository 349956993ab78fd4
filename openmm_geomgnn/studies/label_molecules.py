"""Molecules whose labels are computed anew: entries of QM9 with their published labels, or XYZ files."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.conformers.sources import qm9, xyz
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.quantum import HARTREE

PROPERTIES = {"gap": "eV", "homo": "eV", "lumo": "eV", "dipole": "D"}  # and their units
# column of qm9pack -> (property, factor to its unit)
_COLUMNS = {
    "HOMO_au": ("homo", HARTREE),
    "LUMO_au": ("lumo", HARTREE),
    "HOMO_LUMO_gap_au": ("gap", HARTREE),
    "Dipole_debye": ("dipole", 1.0),
}


@dataclass(frozen=True)
class LabelledMolecule:
    """A molecule: its name, atomic numbers (N,), coordinates (N, 3) in angstrom, and its published labels if there are any.

    published: {property: value} in the units of `PROPERTIES`.
    """

    name: str
    z: tuple[int, ...]
    pos: tuple[tuple[float, ...], ...]
    published: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name with the formula, "gdb1 (CH4)"."""
        from ase.data import chemical_symbols

        counts = Counter(chemical_symbols[z] for z in self.z)
        carbon = ["C", "H"] if "C" in counts else []  # the order is that of Hill
        order = [symbol for symbol in (*carbon, *sorted(counts.keys() - set(carbon))) if symbol in counts]
        return f"{self.name} ({''.join(symbol + str(counts[symbol]) * (counts[symbol] > 1) for symbol in order)})"


def read_molecules(names: Sequence[int | str]) -> list[LabelledMolecule]:
    """Read molecules: by the index of QM9, by a SMILES as QM9 writes it, or from an .xyz file.

    Raises
    ------
    GeomGNNError
        If one is not found, cannot be read, has an odd number of electrons or is named twice, or qm9pack is missing.
    """
    entries = _qm9_entries([name for name in names if not is_file(name)])
    molecules = [_from_file(Path(str(name))) if is_file(name) else entries[name] for name in names]
    for molecule in molecules:
        if sum(molecule.z) % 2:
            raise GeomGNNError(
                f"The molecule {molecule.title} has {sum(molecule.z)} electrons: an odd number leaves one unpaired, and "
                "only molecules of paired electrons are computed here. Choose another."
            )
    twice = [name for name, count in Counter(molecule.name for molecule in molecules).items() if count > 1]
    if twice:
        raise GeomGNNError(f"The molecule {twice[0]} is named twice: name each once.")
    return molecules


def is_file(name: int | str) -> bool:
    """Whether the name of a molecule is that of a file."""
    return isinstance(name, str) and Path(name).suffix.lower() in (".xyz", ".extxyz")


def _from_file(path: Path) -> LabelledMolecule:
    bounds = xyz.frame_bounds(str(path))
    if len(bounds) != 2:
        raise GeomGNNError(f"{path} has {len(bounds) - 1} frames, but a molecule is one: write it into a file of its own.")
    ((comment, atoms),) = xyz.frames(path.read_text(encoding="utf-8", errors="replace"))
    skipped: Counter[str] = Counter()
    for z, pos in xyz.parse(comment, atoms, str(path), skipped):
        return _molecule(path.stem, z, pos)
    raise GeomGNNError(f"The molecule in {path} {' and '.join(skipped)}: correct the file.")


def _qm9_entries(names: Iterable[int | str]) -> dict[int | str, LabelledMolecule]:
    """The entries of QM9 with these indices and SMILES."""
    missing = {str(name): name for name in names}
    found: dict[int | str, LabelledMolecule] = {}
    for path in qm9.QM9().files() if missing else ():
        with open(path, newline="", encoding="utf-8") as text:
            columns = next(csv.reader(text))
            for line in text:
                # the name of the entry's file, the index, the SMILES
                for given in line.split(",", 3)[1:3]:
                    name = missing.pop(given.strip('"'), None)
                    if name is not None:
                        found[name] = _from_row(dict(zip(columns, next(csv.reader([line])), strict=True)))
                if not missing:
                    return found
    if missing:
        name = next(iter(missing.values()))
        what = "index" if isinstance(name, int) else "SMILES"
        raise GeomGNNError(
            f"QM9 has no molecule of {what} {name!r}. Give an index from 1 to 133885 (3054 of them were withdrawn), a "
            "SMILES exactly as QM9 writes it, such as O for water, or an .xyz file."
        )
    return found


def _from_row(row: dict[str, str]) -> LabelledMolecule:
    z, pos = qm9.parse(row["Elements"], row["XYZ_Ang"])
    published = {name: round(float(row[column]) * factor, 6) for column, (name, factor) in _COLUMNS.items()}
    return _molecule(f"gdb{row['Index']}", z, pos, published)


def _molecule(name: str, z: np.ndarray, pos: np.ndarray, published: Any = None) -> LabelledMolecule:
    clean = re.sub(r"\s+", "-", name)
    return LabelledMolecule(
        clean, tuple(int(one) for one in z), tuple(tuple(map(float, row)) for row in pos), published or {}
    )
