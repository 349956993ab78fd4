"""The frames of a study in one file of extended XYZ, in eV and angstrom, in the order of their sets and of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.studies.forces.bonds import APART, OTHER, BondCheck
from torchmdnet_ext.datasets.extended_xyz import read_frames
from torchmdnet_ext.datasets.splits import NAMES

UNITS = ("eV", "kcal/mol", "kJ/mol", "Hartree")


@dataclass(frozen=True)
class FrameSet:
    """The frames of one temperature, or of one file.

    Attributes
    ----------
    name : str
    files : tuple of paths
        Of extended XYZ, in the order of time.
    """

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Labels:
    """How files call energy and forces, and the unit of the energy; forces are in that unit per angstrom."""

    energy: str = "energy"
    forces: str = "forces"
    unit: str = "eV"

    def factor(self) -> float:
        """What a number of the files is in eV."""
        from ase import units

        return {"eV": 1.0, "kcal/mol": units.kcal / units.mol, "kJ/mol": units.kJ / units.mol, "Hartree": units.Hartree}[
            self.unit
        ]


@dataclass(frozen=True)
class Gathered:
    """What became of the frames of a set.

    Attributes
    ----------
    name : str
    frames : int
        That are in the file of the study.
    apart : int
        Left out, as the molecule fell into parts.
    other : int
        Kept, with other bonds than the first frame, or on the way to them.
    energy : float
        Mean absolute deviation of the energies from their median, meV: the error of a network that knows nothing else.
    forces : float
        Mean absolute component of the forces, meV/angstrom: the same of forces.
    """

    name: str
    frames: int
    apart: int
    other: int
    energy: float
    forces: float

    def describe(self) -> str:
        """All of it as a sentence."""
        text = (
            f"{self.name}: {self.frames} frames; on average, energies are {self.energy:.0f} meV from their median, and "
            f"components of forces {self.forces:.0f} meV/angstrom from zero"
        )
        if self.apart:
            text += f"; {self.apart} more were left out, in which the molecule fell into parts"
        if self.other:
            text += f"; in {self.other} of them atoms are bound otherwise than in the first frame, or on the way to it"
        return f"{text}."


def gather(sets: Iterable[FrameSet], labels: Labels, path: Path) -> list[Gathered]:
    """Write the frames of all sets to one file, without those in which a molecule fell into parts.

    The bonds are those of the first frame with the same atoms in the same order.

    Raises
    ------
    GeomGNNError
        If a file cannot be read, a set has no frames left, or other frames are in the file already.
    """
    import ase.io

    checks: dict[bytes, BondCheck] = {}
    frames: list[Any] = []
    gathered = []
    for one in sets:
        kept, found = _gather(one, labels, checks)
        frames += kept
        gathered.append(found)
    with atomic_write(path.with_name(f".new.{path.name}")) as temporary:
        ase.io.write(temporary, frames, format="extxyz")
    _keep(path.with_name(f".new.{path.name}"), path)
    return gathered


def _keep(new: Path, path: Path) -> None:
    """Give a new file its name, unless another one has it."""
    if path.exists() and path.read_bytes() != new.read_bytes():
        new.unlink()
        raise GeomGNNError(f"{path} holds other frames: the data have changed. Give another output.")
    new.replace(path)


def _gather(one: FrameSet, labels: Labels, checks: dict[bytes, BondCheck]) -> tuple[list[Any], Gathered]:
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    factor, counts, kept = labels.factor(), Counter[str](), []
    for z, pos, energy, forces in _read(one.files, labels):
        if z.tobytes() not in checks:
            checks[z.tobytes()] = BondCheck(z, pos)
        state = checks[z.tobytes()](pos)
        counts[state] += 1
        if state != APART:
            atoms = Atoms(z, pos, info={"set": one.name})
            atoms.calc = SinglePointCalculator(atoms, energy=factor * energy, forces=factor * forces)
            kept.append(atoms)
    if not kept:
        raise GeomGNNError(
            f"{one.name} has no frames in which the molecule is whole. Leave it out, or lower its temperature."
        )
    energies = np.array([atoms.get_potential_energy() for atoms in kept])
    sizes = (
        1000 * np.abs(energies - np.median(energies)).mean(),
        1000 * np.abs(np.concatenate([atoms.get_forces() for atoms in kept])).mean(),
    )
    return kept, Gathered(one.name, len(kept), counts[APART], counts[OTHER], *map(float, sizes))


def _read(files: Iterable[Path], labels: Labels) -> Iterator[tuple[np.ndarray, np.ndarray, float, np.ndarray]]:
    try:
        for file in files:
            yield from read_frames(file, labels.energy, labels.forces)
    except ValueError as error:
        raise GeomGNNError(str(error)) from error


def temporal_parts(sizes: Mapping[str, int], val: float, test: float) -> dict[str, dict[str, np.ndarray]]:
    """Divide each set in time: first frames to train on, then those for validation, last those for test.

    Parameters
    ----------
    sizes : dict
        Number of frames of each set, in the order of the file of the study.
    val, test : float
        Shares of each set.

    Returns
    -------
    dict
        {set: {"train", "val", "test": indices in the file of the study}}

    Raises GeomGNNError if a part would be empty.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    begin = 0
    for name, size in sizes.items():
        held = round(val * size), round(test * size)
        ends = np.cumsum([size - sum(held), *held])
        parts[name] = dict(zip(NAMES, np.split(np.arange(begin, begin + size), ends[:-1]), strict=True))
        empty = [part for part, indices in parts[name].items() if not len(indices)]
        if empty:
            raise GeomGNNError(
                f"{name} has {size} frames, which leave none for {', '.join(empty)}. Give more frames, or other shares."
            )
        begin += size
    return parts


def given_parts(sizes: Mapping[str, int]) -> dict[str, dict[str, np.ndarray]]:
    """Sets called train, val and test as they are, in the form of `temporal_parts`; test is the one set with errors."""
    ends = np.cumsum([sizes[name] for name in NAMES])
    return {"test": dict(zip(NAMES, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))}
