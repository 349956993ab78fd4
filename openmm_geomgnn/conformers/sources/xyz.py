"""Conformers in XYZ files, plain and extended."""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from openmm_geomgnn.conformers.sources.base import NO_ELEMENT, NOT_FINITE, Conformer, check_count, skip
from openmm_geomgnn.conformers.sources.records import RecordSource, pick
from openmm_geomgnn.conformers.sources.streams import opened
from openmm_geomgnn.errors import GeomGNNError

PROPERTIES = re.compile(r'\bproperties\s*=\s*(?:"([^"]*)"|(\S+))', re.IGNORECASE)


@dataclass(frozen=True)
class XYZ(RecordSource):
    """Frames of XYZ files, in angstrom: plain, or extended, whose comment line names the columns (`Properties=...`).

    Frames with atoms that are not elements (X, virtual sites) are left out. Cells (`Lattice=`) are ignored: molecules must
    be whole.

    Attributes
    ----------
    file : path, pattern or list of those
        `.xyz`, `.extxyz`, each also as `.gz`; one or many frames in a file, of any sizes.
    number : int
        Frames to draw at random, by default all.
    skip : int
        Number of frames to skip in the random order: with the `number` and seed of a training set, all that it drew.
    """

    name: ClassVar[str] = "xyz"
    paths: ClassVar[tuple[str, ...]] = ("file",)

    file: str | list[str]
    number: int | None = None

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        super().check()
        check_count(self, optional=("number",))
        self.files()

    def bounds(self, path: str) -> np.ndarray:
        """Find where the records of a file start, and where the last one ends, (records + 1,) int64."""
        return frame_bounds(path)

    def read(
        self, path: str, content: bytes, first: int, chosen: list[int] | None, seed: int, skipped: Counter[str] | None
    ) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the records `chosen` (None: all) of `content`."""
        for i, (comment, atoms) in pick(frames(content.decode("utf-8", errors="replace")), chosen):
            yield from parse(comment, atoms, f"Frame {first + i + 1} of {path}", skipped)


def frame_bounds(path: str) -> np.ndarray:
    """Find where the frames of a file start and the last one ends: (frames + 1,) int64."""
    bounds, position = [0], 0
    with opened(path) as stream:
        for line in stream:
            position += len(line)
            # there may be empty lines between frames
            if line.strip():
                number = len(bounds)
                atoms = list(itertools.islice(stream, _atom_count(line, path, number) + 1))
                if len(atoms) < int(line) + 1 or not atoms[-1].strip():
                    raise GeomGNNError(
                        f"Frame {number} of {path} says that it has {int(line)} atoms, and ends after {len(atoms) - 1} "
                        "lines of atoms: the file is cut off, or the number is wrong."
                    )
                position += sum(map(len, atoms))
                bounds.append(position)
    return np.array(bounds, dtype=np.int64)


def _atom_count(line: bytes, path: str, number: int) -> int:
    text = line.decode("utf-8", errors="replace").strip()
    if not text.isdigit() or int(text) < 1:
        raise GeomGNNError(
            f"Frame {number} of {path} starts with {text[:40]!r}, but an XYZ frame starts with its number of atoms: the "
            "file is not in XYZ format, or the number of the frame before is wrong."
        )
    return int(text)


def frames(content: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the frames in the text of a file: (comment, the lines of the atoms)."""
    lines = iter(content.split("\n"))
    for line in lines:
        if line.strip():
            n_atoms = int(line)
            yield next(lines), list(itertools.islice(lines, n_atoms))


def parse(comment: str, atoms: list[str], what: str, skipped: Counter[str] | None) -> Iterator[Conformer]:
    """Yield (z, pos) of one frame, or count the reason why it has none.

    Parameters
    ----------
    comment : str
    atoms : list of str
        A line for each atom.
    what : str
        Name of the frame, for error messages.
    """
    element, xyz = columns(comment, what)
    try:
        words = [line.split() for line in atoms]
        symbols = [row[element] for row in words]
        pos = np.array([row[xyz : xyz + 3] for row in words], dtype=np.float64).reshape(len(words), 3)
    except (IndexError, ValueError) as error:
        raise GeomGNNError(f"{what} cannot be read: {error}. An atom is an element and x, y, z in angstrom.") from error
    z = np.array([atomic_number(symbol) for symbol in symbols])
    if (z == 0).any():
        skip(skipped, NO_ELEMENT)
    elif not np.isfinite(pos).all():
        skip(skipped, NOT_FINITE)
    else:
        yield z, pos


def columns(comment: str, what: str) -> tuple[int, int]:
    """Find the columns of an atom's element and position: (column, first of three columns)."""
    found = PROPERTIES.search(comment)
    if found is None:
        return 0, 1
    words = (found.group(1) or found.group(2)).split(":")
    start, column = {}, 0
    for name, width in zip(words[::3], words[2::3], strict=False):
        start[name.lower()] = column
        column += int(width) if width.isdigit() else 1
    kind = next((name for name in ("species", "z") if name in start), None)
    if kind is None or "pos" not in start:
        raise GeomGNNError(
            f"{what} names its columns {', '.join(words[::3])}, and among them must be species (or Z) and pos: write the "
            "file with those, as ASE does."
        )
    return start[kind], start["pos"]


@functools.cache
def atomic_number(symbol: str) -> int:
    """Convert an element's symbol or atomic number to its atomic number; 0 if there is no such element."""
    from ase.data import atomic_numbers

    if symbol.isdigit():
        return int(symbol) if int(symbol) <= 118 else 0
    return atomic_numbers.get(symbol.capitalize(), 0)
