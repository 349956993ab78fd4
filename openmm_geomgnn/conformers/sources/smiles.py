"""Conformers of molecules given as SMILES, made with RDKit."""

import csv
import functools
import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.conformers.sources.base import Conformer, Source, check_choice, check_count, find_files, require
from openmm_geomgnn.conformers.sources.rdkit_molecules import OPTIMISERS, embed, molecule_from_smiles
from openmm_geomgnn.conformers.sources.records import RecordSource, pick
from openmm_geomgnn.conformers.sources.streams import line_bounds, opened, version
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

# in the package molsets: 1.6, 0.2 and 0.2 million drug-like molecules of C, N, O, S, F, Cl, Br and H
MOSES = {"moses": "train.csv.gz", "moses/test": "test.csv.gz", "moses/test_scaffolds": "test_scaffolds.csv.gz"}
MOSES_FOLDER = "moses/dataset/data"
TABLES = {".csv": ",", ".tsv": "\t"}
CONFORMERS_PER_TASK = 200


@dataclass(frozen=True)
class Smiles(RecordSource):
    """Molecules given as SMILES: hydrogens are added and conformers made with RDKit's ETKDGv3 from a fixed seed.

    Salts, mixtures, invalid SMILES, and molecules without a conformer or without force-field parameters are left out.

    Attributes
    ----------
    file : path, pattern or list of those
        `.smi` or `.txt`: the first word of each line, or a table with a header if `column` is given. `.csv` or `.tsv`:
        a table with a header. Each also as `.gz`. `moses` is the training set of MOSES (Polykovskiy et al., Front.
        Pharmacol. 11, 565644 (2020)) and `moses/test`, `moses/test_scaffolds` are its held-out sets, from the Python
        package molsets (pip install --no-deps molsets).
    member : str
        The file to read in a `.whl`, `.zip` or `.tar` archive; by default MOSES's training set in the wheel of molsets.
    column : str
        The column that holds the SMILES; by default the one called smiles, in upper or lower case.
    number : int
        Molecules to draw at random, by default all.
    skip : int
        Number of molecules to skip in the random order: with the `number` and seed of a training set, all that it drew.
    per_molecule : int
        Conformers of each molecule.
    optimise : mmff, uff or none
        The force field with which the conformers are relaxed.
    """

    name: ClassVar[str] = "smiles"
    paths: ClassVar[tuple[str, ...]] = ("file",)

    file: str | list[str] = "moses"
    member: str | None = None
    column: str | None = None
    number: int | None = None
    per_molecule: int = 1
    optimise: str = "none"

    @property
    def records_per_task(self) -> int:  # type: ignore[override]  # a constant of the other sources
        """The most records of a task."""
        return max(1, CONFORMERS_PER_TASK // self.per_molecule)

    def relative_to(self, folder: PathLike) -> "Source":
        """Return the same source with relative paths taken from `folder`."""
        return self if _is_moses(self.file) else super().relative_to(folder)

    def files(self) -> list[str]:
        """Return the paths of the files to read."""
        return [moses_file(str(self.file))] if _is_moses(self.file) else find_files(self)

    def member_of(self, path: str) -> str | None:
        """Return the end of the name of the file to read in an archive."""
        return self.member or (f"{MOSES_FOLDER}/{MOSES['moses']}" if path.endswith(".whl") else None)

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        super().check()
        require(self, "rdkit")
        check_count(self, "per_molecule", optional=("number",))
        check_choice(self, "optimise", OPTIMISERS)
        for path in self.files():
            layout(path, self.member_of(path), self.column)

    def bounds(self, path: str) -> np.ndarray:
        """Find where the records of a file start, and where the last one ends, (records + 1,) int64."""
        member = self.member_of(path)
        bounds = line_bounds(path, member)
        return bounds[1:] if layout(path, member, self.column).header else bounds

    def read(
        self, path: str, content: bytes, first: int, chosen: list[int] | None, seed: int, skipped: Counter[str] | None
    ) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the records `chosen` (None: all) of `content`."""
        from rdkit import rdBase

        table = layout(path, self.member_of(path), self.column)
        for i, line in pick(content.split(b"\n"), chosen):
            smiles = table.cell(line.decode("utf-8", errors="replace"))
            if not smiles:
                continue
            # RDKit would report every molecule that it cannot read or embed
            with rdBase.BlockLogs():
                molecule = molecule_from_smiles(smiles, skipped)
                made = list(embed(molecule, self.per_molecule, self.optimise, seed, first + i, skipped)) if molecule else []
            yield from made


@dataclass(frozen=True)
class Layout:
    """The place of the SMILES in a line; `delimiter` None means words."""

    header: bool
    delimiter: str | None
    column: int

    def cell(self, line: str) -> str:
        """The SMILES of a line, or "" if it has none."""
        cells = _cells(line, self.delimiter)
        return cells[self.column].strip() if len(cells) > self.column else ""


def layout(path: str, member: str | None, column: str | None) -> Layout:
    """Determine the layout of a file of SMILES. Raises GeomGNNError if it lacks the column or cannot be read."""
    return _layout(path, member, column, version(path))


@functools.lru_cache
def _layout(path: str, member: str | None, column: str | None, written: tuple[int, int]) -> Layout:
    content = (member or path).lower().removesuffix(".gz")
    delimiter = TABLES.get(Path(content).suffix)
    if delimiter is None and column is None:
        return Layout(False, None, 0)
    with opened(path, member) as stream:
        line = stream.readline().decode("utf-8-sig", errors="replace")
    names = [name.strip() for name in _cells(line, delimiter)]
    same = [i for i, name in enumerate(names) if name.lower() == (column or "smiles").lower()]
    exact = [i for i in same if names[i] == column]
    if not same:
        wanted = f"no column {column!r}" if column else "no column called smiles"
        raise GeomGNNError(
            f"{path} has {wanted}; it has {', '.join(map(repr, names)) or 'an empty first line'}. Give `column` as the "
            f"name of the one that holds the SMILES.{did_you_mean(column or 'smiles', names)}"
        )
    return Layout(True, delimiter, (exact or same)[0])


def _cells(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    return next(csv.reader([line], delimiter=delimiter), [])


def _is_moses(file: object) -> bool:
    return isinstance(file, str) and file in MOSES


def moses_file(name: str) -> str:
    """Find a file of MOSES in the installed package molsets, which dates from 2020 and is not imported."""
    spec = importlib.util.find_spec("moses")
    path = spec and spec.origin and Path(spec.origin).parent / "dataset" / "data" / MOSES[name]
    if not path or not path.is_file():
        raise GeomGNNError(
            f"file of the conformer source `smiles` is {name}, which the Python package molsets holds, and it is not "
            "installed: pip install --no-deps molsets. Or give the wheel: pip download --no-deps molsets, and its name."
        )
    return str(path)
