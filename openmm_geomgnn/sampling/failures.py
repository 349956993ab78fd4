"""The last good frame and the failing one of a walker that fails, with the whole system."""

from pathlib import Path

import numpy as np
import openmm
from openmm import app

from openmm_geomgnn.aliases import PathLike


class LastFrames:
    """Remembers the last good positions of a walker, to be saved next to those at which it fails.

    folder : folder of the run, in which a folder failure.<index> is made; with None nothing is saved.
    index : index of the walker.
    topology : openmm.app.Topology
    """

    def __init__(self, folder: PathLike | None, index: int, topology: app.Topology) -> None:
        self.folder = None if folder is None else Path(folder) / f"failure.{index}"
        self._topology = topology
        self._context: openmm.Context | None = None
        self._good: np.ndarray | None = None

    def follow(self, context: openmm.Context, positions: np.ndarray | None = None) -> None:
        """Remember positions (N, 3), finite, in nm, from which an openmm.Context is about to continue."""
        self._context, self._good = context, positions

    def save(self) -> str:
        """Write system-step-N.pdb and .npz with the present positions of the Context and the last good ones.

        Returns
        -------
        str
            A text for the error message: which atoms have no finite positions, and where the frames are.
        """
        if self.folder is None or self._context is None:
            return ""
        import mdtraj

        from openmm_geomgnn.force.failures import atom_names, save_frames

        try:
            state = self._context.getState(getPositions=True)
        except openmm.OpenMMException as error:
            return f" The frames could not be saved: {error}."
        frames = {"failing": state.getPositions(asNumpy=True)._value}
        if self._good is not None:
            frames = {"last_good": self._good, **frames}
        topology = mdtraj.Topology.from_openmm(self._topology)
        bad = np.flatnonzero(~np.isfinite(frames["failing"]).all(axis=1))
        named = f" The positions of {atom_names(topology, bad)} are not finite." if len(bad) else ""
        box, step = state.getPeriodicBoxVectors(asNumpy=True)._value, state.getStepCount()
        where = save_frames(self.folder, f"system-step-{step}", topology, frames, bad, box, step=step)
        return f"{named} Of all atoms: {where[0].lower()}{where[1:]}"
