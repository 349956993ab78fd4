"""The molecule of a protocol, in OpenMM's and mdtraj's terms."""

from dataclasses import replace

import mdtraj

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.sampling.systems import SystemSettings, build_system, degrees_of_freedom, load_structure
from openmm_geomgnn.sampling.walker import WalkerSpec


def walker_spec(protocol, index=0, **changes):
    """The `WalkerSpec` of a protocol, started from the structure that is due; changes: what differs from the protocol."""
    system = protocol.system
    settings = SystemSettings(
        forcefield=tuple(system.forcefield),
        constraints=system.constraints,
        hydrogen_mass=system.hydrogen_mass,
        nonbonded_cutoff=system.nonbonded_cutoff,
        periodic=system.periodic,
    )
    spec = WalkerSpec(
        structure=system.structures[index % len(system.structures)],
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


def kinetic_degrees(protocol):
    """The kinetic degrees of freedom of the system."""
    spec = walker_spec(protocol)
    topology, _ = load_structure(spec.structure)
    return degrees_of_freedom(build_system(topology, spec.system))


def check_torsions(protocol):
    """Raise a GeomGNNError where the molecule lacks a torsion that the analysis names."""
    topology, positions = load_structure(protocol.system.structures[0])
    frame = mdtraj.Trajectory(positions[None], as_topology(topology))
    for name, atoms in protocol.analysis.torsions.items():
        torsion(frame, name, atoms)


def torsion(trajectory, name, atoms):
    """(T,) a torsion in radians. atoms: "auto", four indices from 0, or four names as ALA2-CA.

    Raises GeomGNNError when the molecule does not have it.
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
        atoms = [names[atom] for atom in atoms]
    if max(atoms) >= topology.n_atoms:
        raise GeomGNNError(
            f"The torsion {name} names the atom {max(atoms)}, but the atoms of the molecule are counted from 0 to "
            f"{topology.n_atoms - 1}."
        )
    return mdtraj.compute_dihedrals(trajectory, [list(atoms)])[:, 0]
