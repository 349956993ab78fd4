"""Sources that are files of consecutive records: lines of SMILES, SDF molecules, XYZ frames."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np

from openmm_geomgnn.conformers.sources.base import Conformer, Source, check_count, draw, find_files
from openmm_geomgnn.conformers.sources.streams import read_range

T = TypeVar("T")
TASK_BYTES = 1 << 24


@dataclass(frozen=True)
class RecordSource(Source):
    """A source that reads records from byte ranges of files.

    A task is a list of parts [file, first byte, byte after the last, number of the first record, records or None]: the
    records that were drawn, counted from the first of the part, or None for all.

    Attributes
    ----------
    skip : int
        Number of records to skip in the random order before `number` are drawn. With the seed and the `number` of a training
        set, none of its molecules is drawn again, which makes a held-out set.
    """

    # the most records of a task
    records_per_task: ClassVar[int] = 2000

    skip: int = field(default=0, kw_only=True)

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        check_count(self, "skip", least=0)

    @abstractmethod
    def bounds(self, path: str) -> np.ndarray:
        """Find where the records of a file start and the last one ends: (records + 1,) int64."""

    @abstractmethod
    def read(
        self, path: str, content: bytes, first: int, chosen: list[int] | None, seed: int, skipped: Counter[str] | None
    ) -> Iterator[Conformer]:
        """Yield (z, pos) of the records `chosen` (None: all) in the bytes `content`, which begin with record `first`."""

    def candidates(self, path: str, bounds: np.ndarray) -> np.ndarray:
        """List the numbers of the records of a file that may be drawn, in order."""
        return np.arange(len(bounds) - 1)

    def files(self) -> list[str]:
        """Return the paths of the files to read."""
        return find_files(self)

    def member_of(self, path: str) -> str | None:
        """The file to read if `path` is an archive."""
        return None

    def tasks(self, seed: int) -> list[list[Any]]:
        """Cut the work into tasks."""
        files = self.files()
        bounds = [self.bounds(path) for path in files]
        candidates = [self.candidates(path, where) for path, where in zip(files, bounds, strict=True)]
        number: int | None = self.number  # type: ignore[attr-defined]  # a setting of every subclass
        tasks = share_out(bounds, draw_from(candidates, number, seed, self.skip), self.records_per_task, TASK_BYTES)
        return [
            [[files[k], int(bounds[k][first]), int(bounds[k][stop]), first, chosen] for k, first, stop, chosen in task]
            for task in tasks
        ]

    def conformers(self, task: list[Any], seed: int, skipped: Counter[str] | None = None) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the conformers of one task."""
        for path, start, stop, first, chosen in task:
            content = read_range(path, start, stop, self.member_of(path))
            yield from self.read(path, content, first, chosen, seed, skipped)


def draw_from(candidates: list[np.ndarray], number: int | None, seed: int, skip: int = 0) -> list[np.ndarray]:
    """Draw `number` of the candidates, sorted arrays of record numbers for each file; return those drawn from each file."""
    ends = np.cumsum([0, *map(len, candidates)])
    drawn = draw(int(ends[-1]), number, seed, skip)
    places = np.searchsorted(drawn, ends)
    return [
        records[drawn[first:stop] - begin]
        for records, begin, first, stop in zip(candidates, ends[:-1], places[:-1], places[1:], strict=True)
    ]


def share_out(
    bounds: list[np.ndarray], drawn: list[np.ndarray], records_per_task: int, task_size: int
) -> list[list[tuple[int, int, int, list[int] | None]]]:
    """Cut the records that were drawn from files into tasks.

    Parameters
    ----------
    bounds : list of (records + 1,) int
        For each file, where its records start and the last one ends, in bytes, atoms or another measure of their size.
    drawn : list of int arrays
        For each file, the sorted numbers of the records to read.
    records_per_task : int
        Largest number of records to read in a task.
    task_size : int
        Largest amount to read in a task, unless a single record is larger.

    Returns
    -------
    list of lists of (file, first record, record after the last, wanted records counted from the first; None for all)
    """
    tasks: list[list[tuple[int, int, int, list[int] | None]]] = [[]]
    records_left, size_left = records_per_task, task_size
    for k, (where, wanted) in enumerate(zip(bounds, drawn, strict=True)):
        while len(wanted):
            within = int(np.searchsorted(where, where[wanted[0]] + size_left, side="right")) - 1
            n = min(records_left, int(np.searchsorted(wanted, within)))
            if n == 0 and tasks[-1]:
                tasks.append([])
                records_left, size_left = records_per_task, task_size
                continue
            n = max(n, 1)
            first, stop = int(wanted[0]), int(wanted[n - 1]) + 1
            chosen = None if n == stop - first else (wanted[:n] - first).tolist()
            tasks[-1].append((k, first, stop, chosen))
            records_left -= n
            size_left -= int(where[stop] - where[first])
            wanted = wanted[n:]
    return tasks if tasks[0] else []


def pick(records: Iterable[T], chosen: list[int] | None) -> Iterator[tuple[int, T]]:
    """Yield (number, record) of the records (an iterable) with the numbers `chosen`, or of all for None."""
    wanted = None if chosen is None else set(chosen)
    for i, record in enumerate(records):
        if wanted is None or i in wanted:
            yield i, record
