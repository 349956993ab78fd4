"""Systems, contexts and checks that the tests of `GeomGNNCV` in OpenMM share. The fixture `cv_file` is in conftest.py."""

from functools import cache

import numpy as np
import openmm
from molecules import ALA2, BOXES
from openmm import app, unit
from openmm.app.metadynamics import BiasVariable, Metadynamics

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.sampling.opes.method import OPES

NM = unit.nanometer
PDB = app.PDBFile(str(ALA2))
BIAS = OPES(barrier=30, pace=10, temperature=300, sigma=0.3)
POSITIONS = np.array(PDB.getPositions(asNumpy=True).value_in_unit(NM))
# boxes as they are used for solutes, reduced; nm
CELLS = {
    "cubic": 2.0 * np.eye(3),
    "triclinic": BOXES["triclinic"],
    "truncated octahedron": 2.6 * np.array([[1, 0, 0], [1 / 3, 8**0.5 / 3, 0], [-1 / 3, 2**0.5 / 3, 6**0.5 / 3]]),
    "rhombic dodecahedron": 2.6 * np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0.5**0.5]]),
}


def make_system(topology=PDB.topology, box=None):
    """Nothing but masses; with a box, a force without effect that makes the System periodic."""
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
        force = openmm.NonbondedForce()
        force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
        force.setCutoffDistance(0.5)
        for _ in topology.atoms():
            force.addParticle(0.0, 0.3, 0.0)
        system.addForce(force)
    return system


def make_context(system, positions=POSITIONS, integrator=None, platform="Reference", **properties):
    """A Context on a platform by its name, never OpenMM's default one; `properties` are those of the platform."""
    integrator = integrator or openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), properties)
    context.setPositions(positions)
    return context


def energy_and_forces(context, positions=None, **options):
    """kJ/mol and (N, 3) in kJ/mol/nm; `options` are those of Context.getState."""
    if positions is not None:
        context.setPositions(positions)
    state = context.getState(getEnergy=True, getForces=True, **options)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    return energy, state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / NM)


def check_forces(context, positions, atoms, h=2e-6, n_directions=4, axes_of=(1, -2), **options):
    """Forces against central differences of the energy along random directions and, for some atoms, along the axes.

    Differences of the fourth order: the random networks are steep.
    """
    _, forces = energy_and_forces(context, positions, **options)
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=positions.shape) for _ in range(n_directions)]
    for atom in atoms[list(axes_of)]:
        for axis in range(3):
            directions.append(np.zeros(positions.shape))
            directions[-1][atom, axis] = 1.0
    found, expected = [], []
    for direction in directions:
        energies = [energy_and_forces(context, positions + k * h * direction, **options)[0] for k in (-2, -1, 1, 2)]
        found.append(-(forces * direction).sum())
        expected.append(np.dot([1, -8, 8, -1], energies) / (12 * h))
    assert np.abs(expected).min() > 0
    assert np.abs(np.array(found) - expected).max() < 1e-5 * np.abs(expected).max()
    others = np.setdiff1d(np.arange(len(positions)), atoms)
    assert not forces[others].any()


def value(cv_file, positions=POSITIONS, **options):
    """All components (d,) at positions of the dipeptide, as `GeomGNNCV.compute` gives them."""
    return GeomGNNCV(cv_file, PDB.topology, **options).compute(positions)[0]


@cache
def in_water(model="tip3p", cell="cubic"):
    """Alanine dipeptide in water: (force field, topology, positions in nm at rest), about 700 atoms in the cubic cell."""
    forcefield = app.ForceField("amber14-all.xml", f"amber14/{model}.xml")
    modeller = app.Modeller(PDB.topology, PDB.positions)
    vectors = tuple(openmm.Vec3(*row) for row in CELLS[cell]) * NM
    modeller.addSolvent(forcefield, model=model, boxVectors=vectors)
    context = make_context(solvated(forcefield, modeller.topology), modeller.positions, platform="CPU")
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=50)
    positions = context.getState(getPositions=True).getPositions(asNumpy=True)._value
    return forcefield, modeller.topology, np.array(positions)


def solvated(forcefield, topology, constraints=app.HBonds):
    return forcefield.createSystem(
        topology, nonbondedMethod=app.PME, nonbondedCutoff=0.7 * NM, constraints=constraints, rigidWater=True
    )


def water_system(model="tip3p", cell="cubic", constraints=app.HBonds):
    """The System of `in_water`, its topology, and its positions in nm."""
    forcefield, topology, positions = in_water(model, cell)
    return solvated(forcefield, topology, constraints), topology, positions


def short_metadynamics(force, start):
    """20 steps of openmm.app.Metadynamics on a force, around the value `start`: it, the last value and positions."""
    system = make_system()
    variable = BiasVariable(force, start - 2, start + 2, 0.2)
    metadynamics = Metadynamics(system, [variable], 300 * unit.kelvin, 5.0, 1.0 * unit.kilojoule_per_mole, 5)
    integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005)
    integrator.setRandomNumberSeed(1)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(PDB.topology, system, integrator, platform)
    simulation.context.setPositions(POSITIONS)
    metadynamics.step(simulation, 20)
    positions = simulation.context.getState(getPositions=True).getPositions(asNumpy=True)
    (found,) = metadynamics.getCollectiveVariables(simulation)
    return metadynamics, found, positions


class GivenBias:
    """A bias that gives, or raises, what it is told to."""

    def __init__(self, energy=0.0, slope=0.0, error=None):
        self.energy, self.slope, self.error = energy, slope, error

    def initial_state(self, dimension=None, n_walkers=1):
        return None

    def bias(self, state, s):
        if self.error is not None:
            raise self.error
        return self.energy, np.full(len(s), self.slope)
