"""PCQM4Mv2: 3.7 million molecules of PubChemQC, 3.4 million of them with relaxed geometries."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from openmm_geomgnn.conformers.sources.base import Conformer, Source
from openmm_geomgnn.conformers.sources.sdf import SDF
from openmm_geomgnn.conformers.sources.smiles import Smiles

SMILES_MEMBER = "pcqm4m-v2/raw/data.csv.gz"


@dataclass(frozen=True)
class PCQM4Mv2(Source):
    """PCQM4Mv2 (Hu et al., OGB-LSC, NeurIPS 2021; geometries at B3LYP/6-31G* of PubChemQC), from its published files.

    Attributes
    ----------
    file : path
        `pcqm4m-v2-train.sdf.tar.gz`, or the `pcqm4m-v2-train.sdf` in it, which is read faster: the geometries.
        `pcqm4m-v2.zip`, or the `data.csv.gz` in it: SMILES, from which RDKit makes conformers.
    number : int
        Molecules to draw at random, by default all.
    skip : int
        Number of molecules to skip in the random order: with the `number` and seed of a training set, all that it drew.
    per_molecule, optimise
        How conformers are made from SMILES, as in the source `smiles`.
    """

    name: ClassVar[str] = "pcqm4mv2"
    paths: ClassVar[tuple[str, ...]] = ("file",)

    file: str = "pcqm4m-v2-train.sdf.tar.gz"
    number: int | None = None
    per_molecule: int = 1
    optimise: str = "none"

    def _reader(self) -> Smiles | SDF:
        suffixes = Path(str(self.file)).suffixes
        if ".csv" in suffixes or suffixes[-1:] == [".zip"]:
            member = SMILES_MEMBER if suffixes[-1] == ".zip" else None
            return Smiles(self.file, member, "smiles", self.number, self.per_molecule, self.optimise)
        return SDF(self.file, self.number)

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        self._reader().check()

    def tasks(self, seed: int) -> list[list[Any]]:
        """Cut the work into tasks."""
        return self._reader().tasks(seed)

    def conformers(self, task: list[Any], seed: int, skipped: Counter[str] | None = None) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the conformers of one task."""
        return self._reader().conformers(task, seed, skipped)
