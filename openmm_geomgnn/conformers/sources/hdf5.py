"""Conformers in HDF5 files of ANI, SPICE and TorchMD-Net, and others with the same layout."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from openmm_geomgnn.conformers.sources.base import (
    NO_ELEMENT,
    NOT_FINITE,
    Conformer,
    Source,
    check_choice,
    check_count,
    find_files,
    require,
    skip,
)
from openmm_geomgnn.conformers.sources.records import draw_from, share_out
from openmm_geomgnn.conformers.sources.xyz import atomic_number
from openmm_geomgnn.errors import GeomGNNError

COORDINATES = ("coordinates", "conformations", "positions", "pos")
ELEMENTS = ("atomic_numbers", "species", "types", "z")
# in angstrom, by the names that attributes and settings have
UNITS = {"angstrom": 1.0, "nanometer": 10.0, "bohr": 0.529177210903}
SPELLINGS = {"angstroms": "angstrom", "å": "angstrom", "a": "angstrom", "nm": "nanometer", "nanometers": "nanometer"}
ATOMS_PER_TASK = 2_000_000
CONFORMERS_PER_TASK = 50_000


@dataclass(frozen=True)
class HDF5(Source):
    """Conformers in HDF5 files in which each group is a molecule, or molecules of equal size.

    A group, at any depth, holds two arrays: coordinates, (frames, N, 3) or (N, 3), called coordinates, conformations,
    positions or pos; and elements, (N,) or (frames, N), as atomic numbers or symbols, called atomic_numbers, species,
    types or z. The files of ANI-1, ANI-1x, SPICE and TorchMD-Net's own `HDF5` data set have this layout.

    Attributes
    ----------
    file : path, pattern or list of those
        The files to read.
    unit : angstrom, nanometer or bohr
        Unit of the coordinates; by default their attribute `units`, or angstrom if they have none.
    coordinates, elements : str
        The names of the arrays, if they differ from these.
    number : int
        Conformers to draw at random, by default all.
    """

    name: ClassVar[str] = "hdf5"
    paths: ClassVar[tuple[str, ...]] = ("file",)

    file: str | list[str]
    unit: str | None = None
    coordinates: str | None = None
    elements: str | None = None
    number: int | None = None

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        require(self, "h5py")
        check_count(self, optional=("number",))
        if self.unit is not None:
            check_choice(self, "unit", UNITS)
        for path in find_files(self):
            with _open(path):
                pass

    def tasks(self, seed: int) -> list[list[Any]]:
        """Cut the work into tasks."""
        groups = [group for path in find_files(self) for group in self._groups(path)]
        if not groups:
            raise GeomGNNError(
                f"{self.file} holds no conformers: no group has coordinates ({_listed(self.coordinates, COORDINATES)}) and "
                f"elements ({_listed(self.elements, ELEMENTS)}). Name the arrays with `coordinates` and `elements`; files "
                "of mdtraj are read by the source `trajectory`."
            )
        bounds = [np.arange(frames + 1) * atoms for *_, frames, atoms in groups]
        drawn = draw_from([np.arange(frames) for *_, frames, _ in groups], self.number, seed)
        tasks = share_out(bounds, drawn, CONFORMERS_PER_TASK, ATOMS_PER_TASK)
        return [[[*groups[k][:4], first, stop, chosen] for k, first, stop, chosen in task] for task in tasks]

    def conformers(self, task: list[Any], seed: int, skipped: Counter[str] | None = None) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the conformers of one task."""
        for path, group, coordinates, elements, first, stop, chosen in task:
            with _open(path) as file:
                pos, z = file[group][coordinates], file[group][elements]
                if pos.ndim == 2:
                    pos, z = pos[()][None], z[()]
                else:
                    z = z[first:stop] if z.ndim == 2 else z[()]
                    pos = pos[first:stop]
                pos = np.asarray(pos, dtype=np.float64) * self._scale(file[group][coordinates])
            z = _numbers(z)
            for i in range(len(pos)) if chosen is None else chosen:
                own = z[i] if z.ndim == 2 else z
                if len(own) != len(pos[i]):
                    raise GeomGNNError(
                        f"Group {group} of {path} has {len(own)} elements and coordinates of {len(pos[i])} atoms. Name the "
                        "arrays that belong together with `coordinates` and `elements`."
                    )
                if (own == 0).any():
                    skip(skipped, NO_ELEMENT)
                elif not np.isfinite(pos[i]).all():
                    skip(skipped, NOT_FINITE)
                else:
                    yield own, pos[i]

    def _groups(self, path: str) -> list[list[Any]]:
        """[file, group, name of its coordinates, name of its elements, frames, atoms] of the groups with conformers."""
        import h5py

        groups = []

        def visit(name: str, group: Any) -> None:
            if not isinstance(group, h5py.Group):
                return
            pos = next((key for key in _known(self.coordinates, COORDINATES) if key in group), None)
            z = next((key for key in _known(self.elements, ELEMENTS) if key in group), None)
            if pos and z and isinstance(group[pos], h5py.Dataset):
                shape = group[pos].shape
                # SPICE has groups in which nothing was computed
                if len(shape) in (2, 3) and shape[-1] == 3 and shape[-2]:
                    groups.append([path, name, pos, z, shape[0] if len(shape) == 3 else 1, shape[-2]])

        with _open(path) as file:
            visit("/", file)
            file.visititems(visit)
        return groups

    def _scale(self, coordinates: Any) -> float:
        unit = self.unit
        if unit is None:
            written = coordinates.attrs.get("units", coordinates.attrs.get("unit", "angstrom"))
            written = written.decode() if isinstance(written, bytes) else str(written)
            unit = SPELLINGS.get(written.lower(), written.lower())
            if unit not in UNITS:
                raise GeomGNNError(
                    f"{coordinates.name} of {coordinates.file.filename} is in units of {written!r}, which are not known "
                    f"here: give `unit`, one of {', '.join(UNITS)}."
                )
        return UNITS[unit]


def _open(path: str) -> Any:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise GeomGNNError(f"{path} cannot be read as an HDF5 file: {error}. Check it, or get it again.") from error


def _known(named: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    return (named,) if named else usual


def _listed(named: str | None, usual: tuple[str, ...]) -> str:
    return ", ".join(_known(named, usual))


def _numbers(elements: Any) -> np.ndarray:
    """Convert elements given as numbers or symbols to atomic numbers; 0 for anything else."""
    elements = np.asarray(elements)
    if elements.dtype.kind in "iuf":
        return elements.astype(np.int64)
    return np.vectorize(_number, otypes=[np.int64])(elements)


def _number(symbol: str | bytes) -> int:
    return atomic_number((symbol.decode() if isinstance(symbol, bytes) else str(symbol)).strip())
