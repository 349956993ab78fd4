"""OrbNet Denali: 2.3 million conformers of 213,000 molecules, many of them drug-like, charged or in complexes."""

import csv
import functools
import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, ClassVar, cast

import numpy as np

from openmm_geomgnn.conformers.sources.base import Conformer, check_count, find_files
from openmm_geomgnn.conformers.sources.records import RecordSource, pick
from openmm_geomgnn.conformers.sources.streams import opened, version
from openmm_geomgnn.conformers.sources.xyz import frames, parse
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

LABELS = "denali_labels.csv"


@dataclass(frozen=True)
class Denali(RecordSource):
    """OrbNet Denali's training data (Christensen et al., J. Chem. Phys. 155, 204103 (2021)), from its published archive.

    GFN1-xTB geometries: minima, normal-mode samples at 300 K and molecular dynamics at 500 K. Charges are not used.

    Attributes
    ----------
    file : path
        The archive of geometries, `xyz_files/<mol_id>/<sample_id>.xyz` in a `.tar.gz` or, faster, a `.tar`.
        Extracted files are read by the source `xyz`, with file: xyz_files/*/*.xyz.
    labels : path
        `denali_labels.csv`, or the archive that holds it. If it is given, only conformers that it lists are read.
    subset : str or list of str
        With `labels`: only these of its subsets.
    number : int
        Conformers to draw at random, by default all.
    skip : int
        Number of conformers to skip in the random order: with the `number` and seed of a training set, all that it drew.
    """

    name: ClassVar[str] = "denali"
    paths: ClassVar[tuple[str, ...]] = ("file", "labels")
    records_per_task: ClassVar[int] = 10_000

    file: str
    labels: str | None = None
    subset: str | list[str] | None = None
    number: int | None = None

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        super().check()
        check_count(self, optional=("number",))
        self.files()
        if self.labels is not None:
            find_files(self, "labels")
        elif self.subset is not None:
            raise GeomGNNError(
                f"subset of the conformer source `denali` is {self.subset!r}, but the subsets are in {LABELS}: give its "
                "path as `labels`, or leave subset out."
            )

    def bounds(self, path: str) -> np.ndarray:
        """Find where the records of a file start, and where the last one ends, (records + 1,) int64."""
        return archive_index(path)[0]

    def candidates(self, path: str, bounds: np.ndarray) -> np.ndarray:
        """Return the numbers of the records that may be drawn, in order."""
        if self.labels is None:
            return super().candidates(path, bounds)
        subsets = [self.subset] if isinstance(self.subset, str) else self.subset
        return np.flatnonzero(np.isin(archive_index(path)[1], labelled(find_files(self, "labels")[0], subsets)))

    def read(
        self, path: str, content: bytes, first: int, chosen: list[int] | None, seed: int, skipped: Counter[str] | None
    ) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the records `chosen` (None: all) of `content`."""
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for _, entry in pick(filter(_is_geometry, archive), chosen):
                text = cast(IO[bytes], archive.extractfile(entry)).read().decode("utf-8", errors="replace")
                for comment, atoms in frames(text):
                    yield from parse(comment, atoms, f"{entry.name} of {path}", skipped)


def archive_index(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Find the offsets (n + 1,) int64 of the geometries in a tar archive, and the identifiers (n,) uint64 of their names."""
    return _archive_index(path, version(path))


@functools.lru_cache(maxsize=1)
def _archive_index(path: str, written: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    starts, identifiers, end = [], [], 0
    with opened(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        while (entry := archive.next()) is not None:
            # tarfile would keep every entry
            cast(Any, archive).members.clear()
            if _is_geometry(entry):
                starts.append(entry.offset)
                identifiers.append(identifier(entry.name.removesuffix(".xyz")))
                end = archive.offset
    if not starts:
        raise GeomGNNError(f"{path} holds no .xyz files: give OrbNet Denali's archive of geometries, orbnet_denali.tar.gz.")
    return np.array([*starts, end], dtype=np.int64), np.array(identifiers, dtype=np.uint64)


def labelled(path: str, subsets: list[str] | None = None) -> np.ndarray:
    """Read the identifiers of the conformers in the table of labels that belong to one of the subsets (None: all)."""
    found, seen = [], set()
    with opened(path, LABELS) as stream:
        for row in csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8", newline="")):
            if not {"mol_id", "sample_id", "subset"} <= row.keys():
                raise GeomGNNError(f"{path} is not OrbNet Denali's table of labels: it has the columns {', '.join(row)}.")
            seen.add(row["subset"])
            if subsets is None or row["subset"] in subsets:
                found.append(identifier(f"{row['mol_id']}/{row['sample_id']}"))
    for subset in subsets or ():
        if subset not in seen:
            raise GeomGNNError(
                f"{path} has no subset {subset!r}.{did_you_mean(subset, seen)} Its subsets: {', '.join(sorted(seen))}."
            )
    return np.array(found, dtype=np.uint64)


def identifier(name: str) -> int:
    """Hash the molecule and sample at the end of a name to 64 bits: millions of names would take too much memory."""
    last = "/".join(name.rsplit("/", 2)[-2:])
    return int.from_bytes(hashlib.blake2b(last.encode(), digest_size=8).digest(), "little")


def _is_geometry(entry: tarfile.TarInfo) -> bool:
    # not the ._ files that macOS adds
    return entry.name.endswith(".xyz") and "/." not in entry.name and entry.isfile()
