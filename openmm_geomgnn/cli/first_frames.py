"""Whether trajectories hold the molecule that their topology names, by the first frame of each."""

import warnings

import numpy as np
from openmm import unit

from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.trajectory_files import TrajectoryFile
from openmm_geomgnn.sampling.geometry import check_geometry


def check_first_frame(trajectory, path, selection=None):
    """Look at the selected atoms in the first frame of an mdtraj trajectory, read from `path`.

    Raises GeomGNNError for coordinates in the wrong unit or that are not finite; what else is strange is a UserWarning: the
    data exist, and it is for whoever made them to know why.
    """
    atoms = select_atoms(trajectory.topology, selection)
    topology, box = trajectory.topology.subset(atoms).to_openmm(), trajectory.unitcell_vectors
    topology.setPeriodicBoxVectors(None)
    if box is not None and np.asarray(box[0]).any():
        topology.setPeriodicBoxVectors(box[0].astype(np.float64) * unit.nanometer)
    for remark in check_geometry(topology, trajectory.xyz[0, atoms], f"The first frame of {path}", strict=False):
        warnings.warn(remark, UserWarning, stacklevel=2)


def check_first_frames(paths, topology, selection=None, allow_truncated=False):
    """`check_first_frame` of trajectory files. topology: of mdtraj."""
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # whoever reads all of it says where it ends too early
            file = TrajectoryFile(path, topology, allow_truncated)
        with file:
            for frame in file.blocks(0, min(1, len(file)), 1):
                check_first_frame(frame, path, selection)
