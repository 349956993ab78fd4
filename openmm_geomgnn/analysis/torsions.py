"""Torsions of a molecule along its trajectories, found by name or by atoms."""

from collections.abc import Sequence

import mdtraj
import numpy as np

from openmm_geomgnn.errors import GeomGNNError


def compute_torsion(
    trajectory: mdtraj.Trajectory, name: str, atoms: str | Sequence[int] | Sequence[str] = "auto"
) -> np.ndarray:
    """Compute a torsion of every frame, in radians.

    Parameters
    ----------
    trajectory : mdtraj.Trajectory
    name : str
    atoms : "auto" or sequence of int or str
        Four indices counted from 0, or four names such as ALA2-CA. By default mdtraj finds the first torsion of this name,
        which may be phi, psi, omega or chi1.

    Returns
    -------
    (T,) ndarray

    Raises
    ------
    GeomGNNError
        If the molecule does not have it.
    """
    topology = trajectory.topology
    if atoms == "auto":
        indices, values = getattr(mdtraj, f"compute_{name}")(trajectory)
        if len(indices) == 0:
            raise GeomGNNError(f"The molecule has no torsion {name} that could be found: name its four atoms.")
        return values[:, 0]
    if not isinstance(atoms[0], int):
        names = {str(atom): atom.index for atom in topology.atoms}
        missing = [atom for atom in atoms if atom not in names]
        if missing:
            raise GeomGNNError(
                f"The torsion {name} names the atom {missing[0]}, which the molecule does not have. Its first atoms are "
                f"{', '.join(list(names)[:8])}."
            )
        atoms = [names[str(atom)] for atom in atoms]
    if max(atoms) >= topology.n_atoms:
        raise GeomGNNError(
            f"The torsion {name} names the atom {max(atoms)}, but the atoms of the molecule are counted from 0 to "
            f"{topology.n_atoms - 1}."
        )
    return mdtraj.compute_dihedrals(trajectory, [list(atoms)])[:, 0]
