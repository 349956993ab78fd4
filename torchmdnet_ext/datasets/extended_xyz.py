"""Energies and forces from files of extended XYZ, as ASE writes them and as xxMD (arXiv 2308.11155) is published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from torchmdnet_ext.arguments import did_you_mean
from torchmdnet_ext.datasets.labelled import MAX_Z, Label, LabelledMolecules, LabelledStore
from torchmdnet_ext.datasets.splits import NAMES
from torchmdnet_ext.files import PathLike

SUFFIXES = (".xyz", ".extxyz")


class ExtendedXYZ(LabelledMolecules):
    """Frames with energy and forces: `dataset[i]` has `z` (N,), `pos` (N, 3) in angstrom, `y` (1, 1) and `neg_dy` (N, 3).

    In a TorchMD-Net configuration: `dataset: ExtendedXYZ` and `derivative: true`. Energies are in one unit, eV in ASE's and
    xxMD's files, and forces in that unit per angstrom; nothing is converted. With `remove_ref_energy: true` the trainer
    subtracts from each energy, in double precision, what its composition explains in the training set (for one molecule
    their mean): single precision would round the total energy of a molecule to about a meV.

    Files that are given as `train`, `val` and `test` are the three sets; `train_size`, `val_size` and `test_size` do not
    matter then. A file of `splits` replaces them, and counts their frames in this order. One file is split as conformers
    are: whole molecules are held out, and of fewer than three molecules the last frames, first validation, then test.

    Parameters
    ----------
    root : path
        The file, or the folder in which the files are. With no other argument, the files of a folder are those (.xyz,
        .extxyz) whose names contain train, val and test.
    train, val, test : path, optional
        Files, in `root` unless their paths are absolute.
    energy, forces : str
        How the file calls them.

    Raises
    ------
    ValueError
        If there is no such file, it cannot be read, or a frame, which is named, has no energy or forces, an element that is
        unknown, values that are not finite, or a periodic cell.
    """

    def __init__(
        self,
        root: PathLike,
        train: PathLike | None = None,
        val: PathLike | None = None,
        test: PathLike | None = None,
        energy: str = "energy",
        forces: str = "forces",
    ) -> None:
        self.files = _files(Path(root).expanduser(), {"train": train, "val": val, "test": test})
        frames: list[tuple[np.ndarray, np.ndarray, float, np.ndarray]] = []
        self._counts: dict[str, int] = {}
        for name, file in self.files.items():
            read = list(read_frames(file, energy, forces))
            if not read:
                raise ValueError(f"{file} has no frames. Give another file.")
            frames.extend(read)
            self._counts[name] = len(read)
        z, pos, energies, force = zip(*frames, strict=True)
        arrays: dict[str, np.ndarray] = {
            "z": np.concatenate(z).astype(np.uint8),
            "pos": np.concatenate(pos).astype(np.float32),
            "ptr": np.cumsum([0, *map(len, z)]),
            "labels": np.array(energies)[:, None],
            "index": np.arange(len(z)),
        }
        self.neg_dy = np.concatenate(force)
        how = f"frames of {', '.join(map(str, self.files.values()))}"
        self._use(LabelledStore((Label(energy, "the unit of the file"),), arrays, how=how), 0, fitted=True)

    def given_split(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Indices of the frames for training, validation and test as the files have them; None for one file."""
        if set(self._counts) != set(NAMES):
            return None
        ends = np.cumsum([self._counts[name] for name in NAMES])
        train, val, test = np.split(np.arange(ends[-1]), ends[:-1])
        return train, val, test

    def __getitem__(self, index: int) -> Data:
        data = super().__getitem__(index)
        start, stop = self.store.arrays["ptr"][int(index) : int(index) + 2]
        data.neg_dy = torch.from_numpy(self.neg_dy[start:stop])
        return data

    def __repr__(self) -> str:
        return f"ExtendedXYZ({len(self)} {self.store.how})"


def _files(root: Path, given: dict[str, PathLike | None]) -> dict[str, Path]:
    """The files by the name of their set; one file has the name ""."""
    named = {name: path for name, path in given.items() if path is not None}
    if named and len(named) < len(given):
        missing = [name for name in given if name not in named]
        raise ValueError(
            f"dataset_arg names the file for {', '.join(named)} but not for {', '.join(missing)}: give all three."
        )
    if named:
        files = {name: root / Path(path).expanduser() for name, path in named.items()}
    elif root.is_dir():
        files = files_of_sets(root)
    else:
        files = {"": root}
    if len(set(files.values())) < len(files):
        raise ValueError(
            f"The same file is named for more than one set ({', '.join(map(str, files.values()))}), and frames would be "
            "tested that were trained on: give train, val and test in dataset_arg."
        )
    for file in files.values():
        if not file.is_file():
            raise ValueError(f"There is no file {file} of extended XYZ: give its path as dataset_root.")
    return files


def files_of_sets(root: Path) -> dict[str, Path]:
    """The files of a folder whose names contain train, val and test. Raises ValueError unless there is one of each."""
    return {name: _only(root, name) for name in NAMES}


def _only(root: Path, name: str) -> Path:
    """The one file of a folder whose name contains `name`."""
    found = sorted(path for path in root.iterdir() if path.suffix in SUFFIXES and name in path.stem)
    if len(found) != 1:
        shown = ", ".join(path.name for path in found) or "none"
        raise ValueError(
            f"{root} should hold one file ({', '.join(SUFFIXES)}) with {name} in its name, but there is {shown}: give "
            "train, val and test in dataset_arg."
        )
    return found[0]


def read_frames(
    file: Path, energy: str = "energy", forces: str = "forces"
) -> Iterator[tuple[np.ndarray, np.ndarray, float, np.ndarray]]:
    """Yield z (N,), pos (N, 3), energy and forces (N, 3) of each frame of a file, whose labels have these names.

    Raises ValueError as `ExtendedXYZ` does.
    """
    from ase.io import iread

    number = 0
    frames = iread(str(file), index=":", format="extxyz")
    while True:
        number += 1
        where = f"frame {number} of {file}"
        try:
            atoms = next(frames, None)
        except Exception as error:  # ASE raises all kinds of exceptions for what it cannot parse
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{where} cannot be read as extended XYZ ({reason}). Mend the file, or cut it there."
            ) from error
        if atoms is None:
            return
        yield _checked(atoms, where, energy, forces)


def _checked(atoms: Any, where: str, energy: str, forces: str) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    if atoms.pbc.any():
        raise ValueError(f"{where} is periodic, and only molecules in open space are read. Set pbc to F F F if it is one.")
    numbers = atoms.numbers
    if not len(numbers) or numbers.min() < 1 or numbers.max() >= MAX_Z:
        raise ValueError(f"{where} has no atoms, or atoms of unknown elements (atomic numbers 1 to {MAX_Z - 1} are known).")
    found = [_label(atoms, name, what, where) for name, what in ((energy, "energy"), (forces, "forces"))]
    for value, shape, what in zip(found, ((), atoms.positions.shape), ("energy", "forces"), strict=True):
        if value.shape != shape:
            raise ValueError(f"{where} has {what} of shape {value.shape} instead of {shape}: name others in dataset_arg.")
    for value, what in ((atoms.positions, "positions"), (found[0], "energy"), (found[1], "forces")):
        if not np.isfinite(value).all():
            raise ValueError(f"{where} has {what} that are not finite numbers. Leave it out.")
    return numbers, atoms.positions, float(found[0]), found[1]


def _label(atoms: Any, name: str, what: str, where: str) -> np.ndarray:
    """The energy or the forces of a frame, called `name`, as float64."""
    held = dict(atoms.calc.results) if atoms.calc is not None else {}
    known = {**held, **(atoms.info if what == "energy" else atoms.arrays)}
    if name not in known:
        others = [other for other in known if other not in ("numbers", "positions")]
        raise ValueError(
            f"{where} has no {what} called '{name}', but {', '.join(others) or 'nothing else'}: name it in dataset_arg "
            f"({what}: ...).{did_you_mean(name, others)}"
        )
    try:
        return np.asarray(known[name], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} has {what} '{name}' that are not numbers. Name others in dataset_arg.") from error
