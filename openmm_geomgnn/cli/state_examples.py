"""A structure of each state that was found, as a PDB file in the folder of a run."""

from collections.abc import Sequence
from pathlib import Path

import mdtraj

from openmm_geomgnn.analysis.found_states import FoundStates
from openmm_geomgnn.cli.names import STATES
from openmm_geomgnn.files import atomic_write


def example_names(found: FoundStates | None) -> list[str]:
    """Paths of the files in the folder of a run, one for each state."""
    return [f"{STATES}/state.{number}.pdb" for number in range(1, len(found.states) + 1)] if found else []


def write_examples(folder: Path, found: FoundStates | None, trajectories: Sequence[mdtraj.Trajectory]) -> None:
    """Write the frame nearest the centre of each state, atomically, and remove the files of states that are no more."""
    names = example_names(found)
    for path in (folder / STATES).glob("state.*.pdb"):
        if f"{STATES}/{path.name}" not in names:
            path.unlink()
    for name, state in zip(names, found.states if found else (), strict=True):
        run, frame = state.example
        with atomic_write(folder / name) as temporary:
            trajectories[run][frame].save_pdb(str(temporary))
