"""QM9: relaxed small molecules of H, C, N, O and F."""

import csv
import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from openmm_geomgnn.conformers.sources.base import Conformer, check_count, require
from openmm_geomgnn.conformers.sources.records import RecordSource, pick
from openmm_geomgnn.conformers.sources.streams import line_bounds
from openmm_geomgnn.errors import GeomGNNError

ATOMIC_NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
PARTS = tuple(f"qm9_part{i}.csv" for i in (1, 2, 3))


@dataclass(frozen=True)
class QM9(RecordSource):
    """QM9 (Ramakrishnan et al., Sci. Data 1, 140022 (2014)): 130,831 molecules, B3LYP/6-31G(2df,p) geometries.

    Read from the installed Python package qm9pack.

    Attributes
    ----------
    number : int
        Molecules to draw at random, by default all.
    skip : int
        Number of molecules to skip in the random order: with the `number` and seed of a training set, all that it drew.
    """

    name: ClassVar[str] = "qm9"
    records_per_task: ClassVar[int] = 10_000

    number: int | None = None

    def files(self) -> list[str]:
        """Return the paths of the files to read."""
        require(self, "qm9pack")
        # not imported: it would import pandas
        spec: Any = importlib.util.find_spec("qm9pack")
        folder = Path(spec.submodule_search_locations[0]) / "data"
        for name in PARTS:
            if not (folder / name).is_file():
                raise GeomGNNError(
                    f"The package qm9pack is installed but lacks {name}: "
                    "pip install --force-reinstall --no-deps qm9pack==1.0.3."
                )
        return [str(folder / name) for name in PARTS]

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        super().check()
        check_count(self, optional=("number",))
        self.files()

    def bounds(self, path: str) -> np.ndarray:
        """Find where the records of a file start, and where the last one ends, (records + 1,) int64."""
        return line_bounds(path)[1:]

    def read(
        self, path: str, content: bytes, first: int, chosen: list[int] | None, seed: int, skipped: Counter[str] | None
    ) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the records `chosen` (None: all) of `content`."""
        with open(path, newline="", encoding="utf-8") as text:
            names = next(csv.reader(text))
        elements, coordinates = names.index("Elements"), names.index("XYZ_Ang")
        for _, line in pick(content.splitlines(), chosen):
            row = next(csv.reader([line.decode("utf-8")]))
            yield parse(row[elements], row[coordinates])


def parse(elements: str, coordinates: str) -> Conformer:
    """Parse a molecule in qm9pack's text: `['C','H']` and `[[0.,1.5*^-6,2.],[...]]` in angstrom; z (N,), pos (N, 3)."""
    z = [ATOMIC_NUMBERS[e] for e in elements.strip("[]").replace("'", "").split(",")]
    numbers = coordinates.replace("*^", "e").replace("[", "").replace("]", "").split(",")
    return np.array(z), np.array([float(n) for n in numbers]).reshape(-1, 3)
