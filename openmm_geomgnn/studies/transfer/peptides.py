"""Short unbiased runs of capped peptides, for a study that has no trajectories yet."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from openmm import app

from openmm_geomgnn.conformers.sources.base import MODULES
from openmm_geomgnn.conformers.sources.peptides import RESIDUES, build_peptide
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.sampling.plan import Progress
from openmm_geomgnn.sampling.systems import SystemSettings
from openmm_geomgnn.sampling.unbiased import run_unbiased
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

RUNS = "runs"


@dataclass(frozen=True)
class PeptideRuns:
    """Which capped peptides are simulated, in amber14 with OBC2 implicit solvent, and how.

    Attributes
    ----------
    sequences : list of str
        One-letter codes between the caps ACE and NME, all L.
    length : float
        ps of each run.
    runs : int
        Of each peptide.
    temperature : float
        K
    timestep, frame_interval : float
        ps; hydrogens weigh 3 amu.
    equilibration : float
        ps that are left out before each run.
    processes : int
        Runs at a time.
    seed : int
    """

    sequences: tuple[str, ...]
    length: float
    runs: int = 1
    temperature: float = 500.0
    timestep: float = 0.004
    frame_interval: float = 1.0
    equilibration: float = 20.0
    processes: int = 1
    seed: int = 1
    system: SystemSettings = field(default_factory=SystemSettings)

    def names(self) -> list[str]:
        """The name of each peptide."""
        return [f"Ace-{sequence}-Nme" for sequence in self.sequences]


def check_peptides(sequences: tuple[str, ...]) -> None:
    """Raise a GeomGNNError for letters that are no amino acid, and without the package that builds peptides."""
    for sequence in sequences:
        strange = sorted(set(sequence) - set(RESIDUES))
        if strange or not sequence:
            raise GeomGNNError(f"The sequence {sequence!r} is not of the one-letter codes {RESIDUES}.")
    if any(importlib.util.find_spec(module) is None for module in MODULES["PeptideBuilder"]):
        raise GeomGNNError(
            "Peptides are built by the package PeptideBuilder, which is not installed: "
            'pip install "openmm-geomgnn[data]", or give molecules with trajectories.'
        )


def make_runs(
    peptides: PeptideRuns, folder: Path, progress: Callable[[Progress], None] | None = None
) -> list[tuple[str, Path, list[Path]]]:
    """Simulate the peptides, as far as that is not done; a run that was stopped goes on from its last checkpoint.

    Returns
    -------
    list of (name, topology file, trajectory files)
        Of each peptide.

    Raises
    ------
    GeomGNNError
        If a run fails, after the others are done; or if there are runs that were made otherwise.
    """
    check_peptides(peptides.sequences)
    specs, found = [], []
    for number, (name, sequence) in enumerate(zip(peptides.names(), peptides.sequences, strict=True)):
        structure = folder / f"{name}.pdb"
        if not structure.exists():
            topology, positions = build_peptide(sequence)
            with atomic_write(structure) as temporary, temporary.open("w", encoding="utf-8") as file:
                app.PDBFile.writeFile(topology, positions, file)
        indices = [number * peptides.runs + run for run in range(peptides.runs)]
        specs += [_spec(peptides, structure, index) for index in indices]
        found.append((name, structure, indices))
    paths = [
        one.path for one in run_unbiased(specs, peptides.length, folder, processes=peptides.processes, progress=progress)
    ]
    return [(name, structure, [paths[index] for index in indices]) for name, structure, indices in found]


def _spec(peptides: PeptideRuns, structure: Path, index: int) -> WalkerSpec:
    return WalkerSpec(
        str(structure),
        peptides.system,
        temperature=peptides.temperature,
        timestep=peptides.timestep,
        equilibration=peptides.equilibration,
        frame_interval=round(peptides.frame_interval / peptides.timestep),
        seed=peptides.seed,
        index=index,
        minimise=True,
    )
