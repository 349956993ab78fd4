"""The molecule of a protocol: its walkers, and checks that it has the torsions that the analysis names."""

from dataclasses import replace
from typing import Any

import mdtraj

from openmm_geomgnn.analysis.torsions import compute_torsion
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.sampling.systems import SystemSettings, degrees_of_freedom, load_structure
from openmm_geomgnn.sampling.walker import make_system
from openmm_geomgnn.sampling.walker_spec import WalkerSpec


def walker_spec(protocol: Protocol, index: int = 0, **changes: Any) -> WalkerSpec:
    """Make the `WalkerSpec` of a protocol with its turn of the start structures; changes: settings that override it."""
    system = protocol.system
    settings = SystemSettings(
        forcefield=tuple(system.forcefield),
        constraints=system.constraints,
        hydrogen_mass=system.hydrogen_mass,
        nonbonded_cutoff=system.nonbonded_cutoff,
        periodic=system.periodic,
    )
    spec = WalkerSpec(
        structure=str(system.structures[index % len(system.structures)]),
        system=settings,
        temperature=system.temperature,
        friction=system.friction,
        timestep=system.timestep,
        platform=system.platform,
        threads=protocol.run.threads,
        seed=protocol.seed,
        index=index,
        equilibration=protocol.unbiased.equilibration,
        engine=protocol.run.engine,
    )
    return replace(spec, **changes)


def kinetic_degrees(protocol: Protocol) -> int:
    """Count the kinetic degrees of freedom of the system."""
    spec = walker_spec(protocol)
    topology, _ = load_structure(spec.structure)
    return degrees_of_freedom(make_system(spec, topology))


def check_torsions(protocol: Protocol) -> None:
    """Raise a GeomGNNError if the molecule lacks a torsion that the analysis names."""
    topology, positions = load_structure(protocol.system.structures[0])
    frame = mdtraj.Trajectory(positions[None], as_topology(topology))
    for name, atoms in protocol.analysis.torsions.items():
        compute_torsion(frame, name, atoms)
