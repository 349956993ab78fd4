"""What every kind of collective variable does once it is bound to the atoms of a topology."""

import numpy as np
import torch
from torch import nn

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.selection import as_topology, check_same_molecule, residue_table, select_atoms
from openmm_geomgnn.whole import SelectedMolecule

PRECISIONS = {"single": torch.float32, "double": torch.float64}


class Bound(nn.Module):
    """Base of `cv.BoundCV` and `students.cv.BoundStudent`, which set `molecule`, `atoms` and `dimension` and evaluate.

    Attributes
    ----------
    molecule : whole.SelectedMolecule
        All that it knows of the system it is bound to.
    atoms : (n,) ndarray
        The atoms it depends on.
    """

    @staticmethod
    def _found(cv, topology):
        """(topology, selected atoms in it, what was given if it is a SelectedMolecule or None).

        Raises
        ------
        GeomGNNError
            If the selected atoms are of another molecule than the CV's.
        """
        if isinstance(topology, SelectedMolecule):
            molecule, topology = topology, topology.topology
            rows = np.arange(topology.n_atoms)
        else:
            molecule, topology = None, as_topology(topology)
            rows = select_atoms(topology, cv.selection)
        check_same_molecule(cv.molecule, residue_table(topology, rows))
        return topology, rows, molecule

    def compute(self, trajectory, progress=None, *, boxes=None):
        """psi (F, d) of an mdtraj trajectory, or of positions (F, atoms, 3) in nm.

        Parameters
        ----------
        boxes : (F, 3, 3) or (3, 3) array or Quantity, optional
            Periodic box vectors that go with positions, nm: without them these must be of whole molecules.

        Raises
        ------
        GeomGNNError
            If the number of atoms does not fit, positions are not finite, or boxes make no sense.
        """
        return self.compute_whole(self.molecule.positions(trajectory, boxes), progress)

    def compute_whole(self, pos, progress=None):
        """psi (F, d) ndarray of whole molecules `pos` (F, n, 3) in angstrom, in chunks."""
        raise NotImplementedError


def check_precision(precision):
    """Raise a GeomGNNError for a precision that is neither single nor double."""
    if precision not in PRECISIONS:
        raise GeomGNNError(f"The precision must be 'single' or 'double', but was '{precision}'.")
