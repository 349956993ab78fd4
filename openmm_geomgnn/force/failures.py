"""What is left of a simulation that failed: its last good frame and the failing one, in files that users can open."""

from pathlib import Path

import numpy as np

from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.units import NM_TO_ANGSTROM

_PDB_RANGE = (-999.0, 9999.0)  # angstrom, what the columns of a PDB file can hold


def save_frames(folder, name, topology, frames, marked=(), box=None, **numbers):
    """Write the frames of a simulation that failed; a failure to do so raises nothing.

    Parameters
    ----------
    folder, name : where, and the name of the files without its suffix.
    topology : mdtraj.Topology
        Of the n atoms.
    frames : dict of str to (n, 3) array
        nm, in the order in which they are to be looked at: the models of a PDB file, from 1. Such a file can neither hold
        positions that are not finite nor far ones: these atoms stand where they are in the model before (in the first
        one, at the origin). The numbers as they are come in an .npz file next to it, under the names of the frames.
    marked : indices of the atoms to point at
        Those that stand elsewhere, too, have the B factor 1; all others have 0.
    box : (3, 3) array in nm, or None
    numbers : what else the .npz file is to hold.

    Returns
    -------
    str
        A sentence for the error message: where the files are, or why they are not.
    """
    path = Path(folder) / f"{name}.pdb"
    try:
        with atomic_write(path.with_suffix(".npz")) as temporary:
            np.savez(temporary, **frames, **({} if box is None else {"box": np.asarray(box)}), **numbers)
        with atomic_write(path) as temporary:
            _write_models(temporary, topology, frames.values(), np.isin(np.arange(topology.n_atoms), marked), box)
    except Exception as error:  # whatever it is, it must not take the place of the error that is being reported
        return f"The frames could not be saved in {folder} ({type(error).__name__}: {error})."
    models = " and ".join(f"{words.replace('_', ' ')} frame" for words in frames)
    number = "are models 1 and 2" if len(frames) == 2 else "is the model"
    pointer = ", where atoms that failed have the B factor 1" if len(marked) else ""
    return f"The {models} {number} of {path.resolve()}{pointer}; the .npz file next to it holds the numbers as they are."


def atom_names(topology, rows, numbers=None):
    """The first of some atoms as people look them up: "atoms 10 (ALA2-C), 12 (ALA2-N)".

    topology: mdtraj.Topology. rows: their indices in it. numbers: of all its atoms in the system, where these differ.
    """
    names = [f"{row if numbers is None else numbers[row]} ({topology.atom(int(row))})" for row in rows[:5]]
    return f"atom{'s' if len(rows) > 1 else ''} {', '.join(names)}{', ...' if len(rows) > 5 else ''}"


def _write_models(path, topology, frames, marked, box):
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
            fits = ((pos > _PDB_RANGE[0]) & (pos < _PDB_RANGE[1])).all(axis=1)
            before = np.where(fits[:, None], pos, before)
            file.write(before, topology, modelIndex=number, bfactors=(marked | ~fits).astype(float), **cell)
