"""Frames of molecular dynamics trajectories."""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from openmm_geomgnn.conformers.sources.base import NOT_FINITE, Conformer, Source, check_count, find_files, skip
from openmm_geomgnn.conformers.sources.records import draw_from, share_out
from openmm_geomgnn.conformers.sources.streams import version
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import NM_TO_ANGSTROM

if TYPE_CHECKING:
    import mdtraj

    from openmm_geomgnn.representation.matching import AtomMatcher

ATOMS_PER_TASK = 5_000_000  # of the whole system, times frames
CONFORMERS_PER_TASK = 10_000


@dataclass(frozen=True)
class Trajectory(Source):
    """Frames of trajectories in any format that mdtraj reads; molecules split by the periodic box are made whole.

    Attributes
    ----------
    file : path, pattern or list of those
        Trajectories of one system; each gives at least one task.
    topology : path
        A structure file of that system; by default the trajectory itself, if it holds its topology (.pdb, .h5).
    selection : str
        The atoms of the conformers, in mdtraj's language.
    stride : int
        Read every stride-th frame.
    number : int
        Frames to draw at random from those, by default all.
    """

    name: ClassVar[str] = "trajectory"
    paths: ClassVar[tuple[str, ...]] = ("file", "topology")

    file: str | list[str]
    topology: str | None = None
    selection: str = "protein"
    stride: int = 1
    number: int | None = None

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        check_count(self, "stride", optional=("number",))
        for path in find_files(self)[: 1 if self.topology else None]:
            self._system(path)

    def tasks(self, seed: int) -> list[list[Any]]:
        """Cut the work into tasks."""
        from openmm_geomgnn.representation.trajectory_files import TrajectoryFile

        files, bounds = find_files(self), []
        for path in files:
            topology, _ = self._system(path)
            with TrajectoryFile(path, topology) as file:
                for frame in file.blocks(0, min(len(file), 1), finite=False):
                    self._rows(path, frame)  # raises an error now if its atoms are not those of the topology
                bounds.append(np.arange(len(range(0, len(file), self.stride)) + 1) * topology.n_atoms)
        drawn = draw_from([np.arange(len(where) - 1) for where in bounds], self.number, seed)
        tasks = []
        for path, where, wanted in zip(files, bounds, drawn, strict=True):
            own = share_out([where], [wanted], CONFORMERS_PER_TASK, ATOMS_PER_TASK)
            tasks += [[[path, first, stop, chosen] for _, first, stop, chosen in task] for task in own]
        return tasks

    def conformers(self, task: list[Any], seed: int, skipped: Counter[str] | None = None) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the conformers of one task."""
        from openmm_geomgnn.representation.periodic import MoleculeUnwrapper
        from openmm_geomgnn.representation.trajectory_files import TrajectoryFile

        for path, first, stop, chosen in task:
            topology, atoms = self._system(path)
            z = np.array([topology.atom(int(i)).element.number for i in atoms])
            make_whole = MoleculeUnwrapper(topology, atoms)
            number, wanted = 0, None if chosen is None else set(chosen)
            with TrajectoryFile(path, topology) as file:
                # frames that are not finite are left out and counted below
                for frames in file.blocks(first * self.stride, (stop - 1) * self.stride + 1, self.stride, finite=False):
                    for xyz, box in zip(frames.xyz[:, self._rows(path, frames)], _boxes(frames), strict=True):
                        if wanted is None or number in wanted:
                            if np.isfinite(xyz).all():
                                yield z, make_whole(xyz.astype(np.float64), box) * NM_TO_ANGSTROM
                            else:
                                skip(skipped, NOT_FINITE)
                        number += 1

    def _rows(self, path: str, frames: "mdtraj.Trajectory") -> np.ndarray:
        """Indices of the selected atoms in frames of a trajectory, by their own topology."""
        topology, atoms = self._system(path)
        return atoms if frames.topology is topology else _matcher(topology, tuple(atoms.tolist())).rows(frames.topology)

    def _system(self, path: str) -> "tuple[mdtraj.Topology, np.ndarray]":
        """The topology of a trajectory, and the sorted indices of the selected atoms."""
        (file,) = find_files(self, "topology") if self.topology else [path]
        return _system(file, self.selection, version(file))


def _boxes(frames: "mdtraj.Trajectory") -> np.ndarray:
    boxes = frames.unitcell_vectors
    return np.zeros((len(frames), 3, 3)) if boxes is None else boxes


@functools.lru_cache
def _system(path: str, selection: str, written: tuple[int, int]) -> "tuple[mdtraj.Topology, np.ndarray]":
    from openmm_geomgnn.representation.selection import as_topology, select_atoms

    try:
        topology = as_topology(path)
    except ImportError as error:
        raise GeomGNNError(
            f"The topology in {path} takes a package to read that is not installed ({error.name}). Give a PDB file as "
            "`topology`, or install the package: for .h5 files it is tables."
        ) from error
    return topology, select_atoms(topology, selection)


@functools.lru_cache(maxsize=4)
def _matcher(topology: "mdtraj.Topology", atoms: tuple[int, ...]) -> "AtomMatcher":
    from openmm_geomgnn.representation.matching import AtomMatcher

    return AtomMatcher(topology, np.array(atoms))
