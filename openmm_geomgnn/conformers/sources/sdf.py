"""Conformers in SDF files."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from openmm_geomgnn.conformers.sources.base import NO_ELEMENT, Conformer, check_count, require, skip
from openmm_geomgnn.conformers.sources.rdkit_molecules import coordinates
from openmm_geomgnn.conformers.sources.records import RecordSource, pick
from openmm_geomgnn.conformers.sources.streams import record_bounds, record_end

SEPARATOR = b"$$$$"


@dataclass(frozen=True)
class SDF(RecordSource):
    """Molecules in SDF files with their atoms and coordinates; hydrogens are neither added nor removed.

    Flat drawings (2-D coordinates) and molecules that RDKit cannot read are left out.

    Attributes
    ----------
    file : path, pattern or list of those
        `.sdf`, `.sdf.gz`, or the first SDF file in a `.tar` or `.tar.gz` archive.
    number : int
        Molecules to draw at random, by default all.
    skip : int
        Number of molecules to skip in the random order: with the `number` and seed of a training set, all that it drew.
    """

    name: ClassVar[str] = "sdf"
    paths: ClassVar[tuple[str, ...]] = ("file",)
    records_per_task: ClassVar[int] = 20_000

    file: str | list[str]
    number: int | None = None

    def member_of(self, path: str) -> str:
        """Return the end of the name of the file to read in an archive."""
        return ".sdf"

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        super().check()
        require(self, "rdkit")
        check_count(self, optional=("number",))
        self.files()

    def bounds(self, path: str) -> np.ndarray:
        """Find where the records of a file start, and where the last one ends, (records + 1,) int64."""
        return record_bounds(path, SEPARATOR, self.member_of(path))

    def read(
        self, path: str, content: bytes, first: int, chosen: list[int] | None, seed: int, skipped: Counter[str] | None
    ) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the records `chosen` (None: all) of `content`."""
        from rdkit import Chem, rdBase

        for _, record in pick(record_end(SEPARATOR).split(content), chosen):
            if record.strip():
                # RDKit would report every molecule that it cannot read
                with rdBase.BlockLogs():
                    molecule = Chem.MolFromMolBlock(record, sanitize=False, removeHs=False)
                yield from conformer(molecule, skipped)


def conformer(molecule: Any, skipped: Counter[str] | None) -> Iterator[Conformer]:
    """Yield (z, pos) of a molecule read from an SDF file, or count the reason why it has none."""
    if molecule is None:
        return skip(skipped, "cannot be read")
    for z, pos in coordinates(molecule):
        if len(z) == 0 or (z == 0).any():
            skip(skipped, NO_ELEMENT if len(z) else "has no atoms")
        elif len(z) > 2 and not molecule.GetConformer().Is3D():
            skip(skipped, "has flat coordinates (2-D)")
        else:
            yield z, pos
