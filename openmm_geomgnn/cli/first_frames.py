"""Reads trajectories, and checks on their first frames that they hold the molecule in their topology."""

import warnings
from collections.abc import Iterable
from typing import Any

import mdtraj
import numpy as np
from openmm import unit

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.trajectory_files import TrajectoryFile, load_trajectory
from openmm_geomgnn.sampling.geometry import check_geometry


def check_first_frame(trajectory: mdtraj.Trajectory, path: PathLike, selection: str | None = None) -> None:
    """Check the selected atoms in the first frame of an mdtraj trajectory, read from `path`.

    Raises GeomGNNError if coordinates are in the wrong unit or not finite; anything else that is strange is a UserWarning,
    since the data exist and their author may know the reason.
    """
    atoms = select_atoms(trajectory.topology, selection)
    topology, box = trajectory.topology.subset(atoms).to_openmm(), trajectory.unitcell_vectors
    topology.setPeriodicBoxVectors(None)
    if box is not None and np.asarray(box[0]).any():
        topology.setPeriodicBoxVectors(box[0].astype(np.float64) * unit.nanometer)
    for remark in check_geometry(topology, trajectory.xyz[0, atoms], f"The first frame of {path}", strict=False):
        warnings.warn(remark, UserWarning, stacklevel=2)


def load_trajectories(
    paths: Iterable[PathLike], topology: Any, selection: str | None = None, stride: int = 1, allow_truncated: bool = False
) -> list[mdtraj.Trajectory]:
    """Trajectory files as a list of mdtraj.Trajectory, with the checks of `check_first_frame`.

    Arguments and errors are those of `trajectory_files.load_trajectory` and of `check_first_frame`.
    """
    trajectories = [load_trajectory(path, topology, stride, allow_truncated) for path in paths]
    for path, trajectory in zip(paths, trajectories, strict=True):
        check_first_frame(trajectory, path, selection)
    return trajectories


def check_first_frames(
    paths: Iterable[PathLike], topology: Any, selection: str | None = None, allow_truncated: bool = False
) -> None:
    """Call `check_first_frame` on trajectory files. topology: mdtraj.Topology."""
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a file that ends too early is reported when all of it is read
            file = TrajectoryFile(path, topology, allow_truncated)
        with file:
            for frame in file.blocks(0, min(1, len(file)), 1):
                check_first_frame(frame, path, selection)
