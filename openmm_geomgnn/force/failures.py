"""The last good frame and the failing one of a simulation that failed, in files that users can open."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.units import NM_TO_ANGSTROM

_PDB_RANGE = (-999.0, 9999.0)  # angstrom, what the columns of a PDB file can hold


def save_frames(
    folder: PathLike,
    name: str,
    topology: mdtraj.Topology,
    frames: Mapping[str, np.ndarray],
    marked: Sequence[int] | np.ndarray = (),
    box: np.ndarray | None = None,
    **numbers: Any,
) -> str:
    """Write the frames of a simulation that failed. If that fails, too, no exception is raised.

    Parameters
    ----------
    folder : path
    name : str
        Name of the files without suffix.
    topology : mdtraj.Topology
        Topology of the n atoms.
    frames : dict of str to (n, 3) array
        Positions in nm. In this order they become the models of a PDB file, numbered from 1. A PDB file cannot hold
        positions that are not finite or very far away: such an atom keeps its place of the previous model (the origin in
        the first). An .npz file next to it holds the exact numbers under the names of the frames.
    marked : sequence of int
        Indices of the atoms to point out. They, and atoms that were moved, have the B factor 1; all others have 0.
    box : (3, 3) array or None
        Box vectors, nm.
    **numbers
        Further content of the .npz file.

    Returns
    -------
    str
        A sentence for the error message that says where the files are, or why they could not be written.
    """
    path = Path(folder) / f"{name}.pdb"
    try:
        with atomic_write(path.with_suffix(".npz")) as temporary:
            arrays: dict[str, Any] = {**frames, **({} if box is None else {"box": np.asarray(box)}), **numbers}
            np.savez(temporary, **arrays)
        with atomic_write(path) as temporary:
            _write_models(temporary, topology, frames.values(), np.isin(np.arange(topology.n_atoms), marked), box)
    except Exception as error:  # it must not replace the error that is being reported
        return f"The frames could not be saved in {folder} ({type(error).__name__}: {error})."
    models = " and ".join(f"{words.replace('_', ' ')} frame" for words in frames)
    number = "are models 1 and 2" if len(frames) == 2 else "is the model"
    pointer = ", where atoms that failed have the B factor 1" if len(marked) else ""
    return f"The {models} {number} of {path.resolve()}{pointer}; the .npz file next to it holds the numbers as they are."


def atom_names(
    topology: mdtraj.Topology, rows: Sequence[int] | np.ndarray, numbers: Sequence[int] | np.ndarray | None = None
) -> str:
    """Name the first few of some atoms as people look them up: "atoms 10 (ALA2-C), 12 (ALA2-N)".

    Parameters
    ----------
    topology : mdtraj.Topology
    rows : sequence of int
        Indices of the atoms in the topology.
    numbers : sequence of int, optional
        Indices in the system of all atoms of the topology, if these differ.
    """
    names = [f"{row if numbers is None else numbers[row]} ({topology.atom(int(row))})" for row in rows[:5]]
    return f"atom{'s' if len(rows) > 1 else ''} {', '.join(names)}{', ...' if len(rows) > 5 else ''}"


def _write_models(
    path: PathLike, topology: mdtraj.Topology, frames: Iterable[np.ndarray], marked: np.ndarray, box: np.ndarray | None
) -> None:
    from mdtraj.formats import PDBTrajectoryFile
    from mdtraj.utils import box_vectors_to_lengths_and_angles

    cell = {}
    if box is not None and np.isfinite(box).all() and np.any(box):
        numbers = box_vectors_to_lengths_and_angles(*np.asarray(box) * NM_TO_ANGSTROM)
        cell = {"unitcell_lengths": numbers[:3], "unitcell_angles": numbers[3:]}
    before = np.zeros((topology.n_atoms, 3))
    with PDBTrajectoryFile(str(path), "w") as file:
        for number, frame in enumerate(frames, start=1):
            pos = np.asarray(frame, dtype=np.float64) * NM_TO_ANGSTROM
            # comparisons with NaN are false
            fits: Any = ((pos > _PDB_RANGE[0]) & (pos < _PDB_RANGE[1])).all(axis=1)
            before = np.where(fits[:, None], pos, before)
            file.write(before, topology, modelIndex=number, bfactors=(marked | ~fits).astype(float), **cell)
