"""The unbiased simulations of a protocol that a CV is learned from."""

from collections.abc import Sequence
from pathlib import Path

import mdtraj

from openmm_geomgnn.cli.molecule import walker_spec
from openmm_geomgnn.cli.names import FIRST_SEED, TOPOLOGY, UNBIASED
from openmm_geomgnn.cli.progress import bar
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.sampling.unbiased import run_unbiased
from openmm_geomgnn.sampling.walker_spec import WalkerSpec


def training_runs(protocol: Protocol, specs: Sequence[WalkerSpec], length: float, title: str) -> list[mdtraj.Trajectory]:
    """Run these walkers for so many ps, once, with a progress bar of this title; returns one mdtraj trajectory from each."""
    with bar(title) as update:
        runs = run_unbiased(
            specs,
            length,
            protocol.output / UNBIASED,
            processes=protocol.run.walkers,
            checkpoint_interval=protocol.run.checkpoint_interval,
            progress=lambda p: update(p.time, p.length, f"{p.temperature:.0f} K"),
        )
    topology = as_topology(protocol.output / TOPOLOGY)
    return [run.trajectory(topology) for run in runs]


def runs_from_seeds(protocol: Protocol, seeds: Sequence[Path]) -> list[mdtraj.Trajectory]:
    """Run the unbiased runs from seeds; returns one mdtraj trajectory from each."""
    frame = protocol.md_steps(protocol.unbiased.frame_interval)
    specs = [
        walker_spec(protocol, FIRST_SEED + k, structure=str(seed), frame_interval=frame, colvar_interval=frame)
        for k, seed in enumerate(seeds)
    ]
    return training_runs(protocol, specs, protocol.seeds.length, "Runs from seeds") if specs else []
