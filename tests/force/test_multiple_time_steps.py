"""A bias that acts at every k-th time step: the same free energy, the right temperature, a bounded energy."""

import copy
import io
import itertools
import pickle
from dataclasses import replace
from functools import cache

import numpy as np
import openmm
import pytest
from force_systems import PDB, POSITIONS, make_context, make_system
from openmm import app, unit
from phi_runs import ALA2, PhiCV, Spring, assert_same_run, biased, run

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.integrators import OuterStepIntegrator, make_integrator
from openmm_geomgnn.sampling.checkpoint import load_checkpoint
from openmm_geomgnn.sampling.colvar import read_colvar
from openmm_geomgnn.sampling.systems import SystemSettings, build_system, degrees_of_freedom, load_structure
from openmm_geomgnn.sampling.walker import Walker
from openmm_geomgnn.units import BOLTZMANN

pytestmark = pytest.mark.slow

KT = 300 * BOLTZMANN
STEP = 0.002  # ps
BIAS_GROUP = 31
FORCE_FIELD = app.ForceField("amber14/tip4pew.xml")
VACUUM = SystemSettings(forcefield=("amber14-all.xml",))


def masses(system):
    return np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])[:, None]


def velocities(context):
    return context.getState(getVelocities=True).getVelocities(asNumpy=True)._value


def positions(context):
    return context.getState(getPositions=True).getPositions(asNumpy=True)._value


def forces(context, group):
    return context.getState(getForces=True, groups={group}).getForces(asNumpy=True)._value


def temperature(mass, velocities, degrees_of_freedom=None):
    return (mass * velocities * velocities).sum() / ((degrees_of_freedom or velocities.size) * BOLTZMANN)


def biased_ala2(stiffness=200.0):
    """Alanine dipeptide in vacuum with a spring on phi in a force group of its own: (system, handle)."""
    topology, start = load_structure(ALA2)
    system = build_system(topology, VACUUM)
    return system, PhiCV(topology).addToSystem(system, Spring(stiffness)), start


def oscillators(group, mass, omega, n):
    """n particles in harmonic wells of angular frequency omega (rad/ps), by a force in this group, and where they may be."""
    system = openmm.System()
    force = openmm.CustomExternalForce(f"{0.5 * mass * omega**2}*(x^2+y^2+z^2)")
    force.setForceGroup(group)
    for i in range(n):
        system.addParticle(mass)
        force.addParticle(i)
    system.addForce(force)
    spread = np.sqrt(KT / mass) / omega
    noise = np.random.default_rng(1).normal(size=(n, 3))
    return system, spread * noise / noise.std()


class TestTemperature:
    @pytest.mark.parametrize("stiff", [0, BIAS_GROUP])
    def test_of_harmonic_oscillators(self, stiff):
        """Between kicks it is right; in the middle of a kick, where OpenMM's own integrator of multiple time steps leaves
        the velocities, it is low by a quarter of the square of the phase per kick. If it is the bias that is stiff, either
        integrator heats its motion a little, as the noise of all time steps but the middle one comes off centre."""
        every, mass, n, phase = 4, 10.0, 800, 0.8
        system, start = oscillators(stiff, mass, phase / (STEP * (every if stiff else 1)), n)
        ours = make_integrator(300, 10.0, STEP, every, BIAS_GROUP, seed=3)
        theirs = openmm.MTSLangevinIntegrator(300, 10.0, every * STEP, [(BIAS_GROUP, 1), (0, every)])
        theirs.setRandomNumberSeed(3)
        found = []
        for integrator in (ours, theirs):
            context = make_context(system, start, integrator)
            context.setVelocitiesToTemperature(300, 1)
            integrator.step(60)
            readings, spreads = [], []
            for _ in range(100):
                integrator.step(3)
                state = context.getState(getEnergy=True, getPositions=True)
                readings.append(state.getKineticEnergy()._value / (1.5 * n * BOLTZMANN))
                spreads.append(np.var(state.getPositions(asNumpy=True)._value))
            found.append((np.mean(readings), np.mean(spreads) / np.var(start)))
        (between, spread), (middle, same) = found
        low = 1 - phase**2 / 4
        heating = 1 + (1 - 1 / every**2) / 12 * phase**2 / low if stiff else 1.0
        assert between == pytest.approx(300 * heating, rel=0.015)
        assert middle == pytest.approx(300 * heating * low, rel=0.015)
        assert (spread, same) == pytest.approx((heating, heating), rel=0.02)

    def test_of_a_molecule(self):
        """Half a kick by all forces, less what it does along constraints, takes 2 to 3 % off the reading."""
        every = 3
        system, handle, start = biased_ala2()
        integrator = make_integrator(300, 10.0, STEP, every, handle.forceGroup, seed=5)
        context = make_context(system, start, integrator)
        context.setVelocitiesToTemperature(300, 2)
        mass, dof = masses(system), degrees_of_freedom(system)
        constrained = make_context(system, start)
        integrator.step(200)
        readings = []
        for _ in range(200):
            integrator.step(40)
            between = velocities(context)
            kick = 0.5 * STEP / mass * (every * forces(context, handle.forceGroup) + forces(context, 0))
            constrained.setPositions(positions(context))
            constrained.setVelocities(between + kick)
            constrained.applyVelocityConstraints(1e-6)
            readings.append([temperature(mass, v, dof) for v in (between, velocities(constrained))])
        between, middle = np.mean(readings, axis=0)
        assert between == pytest.approx(300, rel=0.06)
        assert 0.96 < middle / between < 0.985

    def test_of_a_walker(self):
        walker = Walker(biased(bias=Spring(200.0), every=3, friction=10.0, colvar_interval=5))
        walker.start()
        rows = walker.advance((), 8000).rows
        assert rows[200:, -1].mean() == pytest.approx(300, rel=0.03)


@pytest.mark.parametrize("other_groups", [(0,), (2, 7)])
def test_positions_are_those_of_openmm_without_friction(other_groups):
    """The kicks, split into halves or not, and whatever groups they are in, drive a molecule with constraints alike."""
    ends = []
    for ours in (True, False):
        system, handle, start = biased_ala2()
        for k, force in enumerate(system.getForces()):
            if force.getForceGroup() == 0:
                force.setForceGroup(other_groups[k % len(other_groups)])
        groups = [(handle.forceGroup, 1), *((group, 3) for group in other_groups)]
        integrator = (
            make_integrator(300, 0, 0.0002, 3, handle.forceGroup, other_groups=other_groups)
            if ours
            else openmm.MTSLangevinIntegrator(300, 0, 0.0006, groups)
        )
        integrator.setConstraintTolerance(1e-9)
        context = make_context(system, start, integrator)
        context.applyConstraints(1e-9)
        context.setVelocitiesToTemperature(300, 4)
        if ours:
            # from the middle of a kick to before it
            half = 0.0001 / masses(system)
            kick = half * sum((3 if group == handle.forceGroup else 1) * forces(context, group) for group, _ in groups)
            context.setVelocities(velocities(context) - kick)
            context.applyVelocityConstraints(1e-9)
        integrator.step(50)
        ends.append(positions(context))
    moved = np.abs(ends[0] - start).max()
    assert moved > 0.005
    assert np.abs(ends[0] - ends[1]).max() < 1e-4 * moved


class Counted(Spring):
    """A spring that counts its evaluations."""

    calls = 0

    def bias(self, state, s):
        Counted.calls += 1
        return super().bias(state, s)


@cache
def droplet():
    """27 molecules of TIP4P-Ew, whose charges are on virtual sites, near an energy minimum: (topology, positions in nm)."""
    topology, positions = app.Topology(), []
    chain = topology.addChain()
    rng = np.random.default_rng(2)
    for cell in np.ndindex(3, 3, 3):
        residue = topology.addResidue("HOH", chain)
        atoms = ("O", app.element.oxygen), ("H1", app.element.hydrogen), ("H2", app.element.hydrogen)
        oxygen, *hydrogens = (topology.addAtom(*atom, residue) for atom in atoms)
        for hydrogen in hydrogens:
            topology.addBond(oxygen, hydrogen)
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        water = np.array([[0, 0, 0], [0.09572, 0, 0], [-0.02399872, 0.09266272, 0]])
        positions.extend(openmm.Vec3(*row) for row in 0.31 * np.array(cell) + water @ axes)
    modeller = app.Modeller(topology, positions * unit.nanometer)
    modeller.addExtraParticles(FORCE_FIELD)
    context = make_context(FORCE_FIELD.createSystem(modeller.topology), modeller.positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=100)
    return modeller.topology, context.getState(getPositions=True).getPositions(asNumpy=True)._value


def droplet_with_a_bias():
    """The droplet's System with springs of strength `scale` on its oxygens in BIAS_GROUP."""
    topology, start = droplet()
    system = FORCE_FIELD.createSystem(topology, removeCMMotion=False)
    springs = openmm.CustomExternalForce("100*scale*x^2")
    springs.addGlobalParameter("scale", 1.0)
    springs.setForceGroup(BIAS_GROUP)
    for atom in topology.atoms():
        if atom.name == "O":
            springs.addParticle(atom.index)
    system.addForce(springs)
    return system, start


class TestVirtualSites:
    """OpenMM's CustomIntegrator computes virtual sites at the end of its steps, on some platforms only there."""

    @pytest.mark.parametrize(("platform", "tolerance"), [("Reference", 1e-11), ("CPU", 1e-4)])
    def test_are_up_to_date_at_every_time_step(self, platform, tolerance):
        """Without friction each outer step is one plain step under `every` times the bias, and others without it."""
        every, n, ends = 4, 16, []
        for multiple in (True, False):
            system, start = droplet_with_a_bias()
            mass = masses(system)
            speed = np.sqrt(KT / np.where(mass, mass, np.inf))
            if multiple:
                integrator = make_integrator(300, 0, STEP, every, BIAS_GROUP, virtual_sites=True)
            else:
                integrator = openmm.LangevinMiddleIntegrator(300, 0, STEP)
            context = make_context(system, start, integrator, platform)
            context.setVelocities(speed * np.random.default_rng(4).normal(size=start.shape))
            context.applyVelocityConstraints(1e-9)
            if multiple:
                integrator.step(n)
            else:
                for _ in range(n):
                    for scale, steps in ((every, 1), (0, every - 1)):
                        context.setParameter("scale", scale)
                        integrator.step(steps)
            ends.append((positions(context), velocities(context)))
        assert np.abs(ends[1][0] - start).max() > 0.02
        np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=0, atol=tolerance)
        np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=0, atol=100 * tolerance)

    @pytest.mark.parametrize("copied", [lambda it: it, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
    def test_leave_the_meaning_of_a_step_alone(self, cv_file, copied):
        """A Simulation, its reporters, and messages count steps of every*timestep, as they do without virtual sites."""
        system = make_system()
        system.setParticleMass(0, 0)
        system.setVirtualSite(0, openmm.TwoParticleAverageSite(1, 4, 0.5, 0.5))
        time_steps = itertools.count(1)

        def fail_once(state):
            if next(time_steps) == 26:
                raise ZeroDivisionError("out of luck")
            return 0.0, np.zeros((22, 3))

        system.addForce(openmm.PythonForce(fail_once))
        handle = GeomGNNCV(cv_file, PDB.topology, engine="eager", failures=None).addToSystem(system, Counted(0.1), every=4)
        integrator = copied(handle.createIntegrator(300, "1/ps", "2 fs"))
        assert integrator.getStepSize().value_in_unit(unit.picosecond) == pytest.approx(0.008)
        with pytest.raises(GeomGNNError, match="belongs to no Context yet"):
            integrator.step(1)
        simulation = app.Simulation(PDB.topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
        simulation.context.setPositions(POSITIONS)
        lines = io.StringIO()
        simulation.reporters.append(app.StateDataReporter(lines, 2, step=True, time=True))
        Counted.calls = 0
        simulation.step(5)
        assert (simulation.currentStep, Counted.calls) == (5, 5)
        assert simulation.context.getTime()._value == pytest.approx(0.04)
        rows = [line.split(",") for line in lines.getvalue().splitlines()[1:]]
        assert [(int(step), float(time)) for step, time in rows] == [(2, pytest.approx(0.016)), (4, pytest.approx(0.032))]
        # an outer step that breaks off, here in its second time step, is none, and the next one begins at its beginning
        with pytest.raises(openmm.OpenMMException, match="out of luck"):
            integrator.step(3)
        assert (simulation.currentStep, Counted.calls) == (6, 7)
        integrator.step(2)
        assert (simulation.currentStep, Counted.calls) == (8, 9)
        simulation.context.setPositions(np.full((22, 3), np.nan))
        with pytest.raises(openmm.OpenMMException, match="not finite at step 8"):
            integrator.step(1)

    def test_in_a_run(self, tmp_path):
        """A run goes on bit for bit, and one that was begun without up-to-date sites does not."""
        topology, start = droplet()
        structure = str(tmp_path / "droplet.pdb")
        with open(structure, "w") as file:
            app.PDBFile.writeFile(topology, start * unit.nanometer, file)
        settings = SystemSettings(forcefield=("amber14/tip4pew.xml",), hydrogen_mass=None)
        spec = replace(biased(system=settings, every=4, minimise=False), structure=structure)
        assert isinstance(Walker(replace(spec, bias=Spring(0.1)))._integrator, OuterStepIntegrator)
        run(tmp_path / "whole", 1.28, spec)
        for length in (0.64, 1.28):
            run(tmp_path / "parts", length, spec)
        assert_same_run(tmp_path / "whole", tmp_path / "parts")
        colvar = read_colvar(tmp_path / "whole" / "COLVAR")
        np.testing.assert_allclose(colvar["time"], 0.08 * np.arange(1, 17))
        saved = load_checkpoint(tmp_path / "whole" / "checkpoint.safetensors").fingerprint
        assert saved["integrator of multiple time steps"] == "Langevin middle, virtual sites at every time step"


def test_free_energy_of_a_double_well():
    """The static bias takes most of a barrier away; reweighted, the known free energy comes back at every = 1 and 4."""
    centre, well, barrier, n = 0.3, 0.1, 15.0, 200
    edges = np.linspace(0.18, 0.42, 13)
    bias = f"-0.85*{barrier}*(((r-{centre})/{well})^2-1)^2"
    fine = np.linspace(edges[0], edges[-1], 12 * 200 + 1)
    fine = 0.5 * (fine[1:] + fine[:-1])
    density = fine**2 * np.exp(-barrier * (((fine - centre) / well) ** 2 - 1) ** 2 / KT)
    exact = -KT * np.log(density.reshape(12, -1).sum(axis=1))
    for every in (1, 4):
        system, start = openmm.System(), np.zeros((2 * n, 3))
        start[1::2, 0] = centre + well * np.where(np.arange(n) % 2, 1, -1)
        energies = openmm.CustomBondForce(f"{barrier}*(((r-{centre})/{well})^2-1)^2"), openmm.CustomBondForce(bias)
        energies[1].setForceGroup(BIAS_GROUP)
        for i in range(n):
            system.addParticle(12.0)
            system.addParticle(12.0)
            for force in energies:
                force.addBond(2 * i, 2 * i + 1)
        for force in energies:
            system.addForce(force)
        integrator = make_integrator(300, 5.0, STEP, every, BIAS_GROUP, seed=2)
        context = make_context(system, start, integrator)
        context.setVelocitiesToTemperature(300, 1)
        integrator.step(2000 // every)
        samples = []
        for _ in range(250):
            integrator.step(40 // every)
            x = positions(context)
            samples.append(np.linalg.norm(x[1::2] - x[::2], axis=1))
        r = np.concatenate(samples)
        V = -0.85 * barrier * (((r - centre) / well) ** 2 - 1) ** 2
        found = -KT * np.log(np.histogram(r, edges, weights=np.exp(V / KT))[0])
        difference = found - exact
        difference -= np.average(difference, weights=np.exp(-exact / KT))
        assert np.abs(difference).max() < 0.6, f"every = {every}"
        assert np.ptp(exact) > 12


def test_energy_without_a_thermostat():
    """With a bias every 4 steps the energy does not drift, and its fluctuation falls with the square of the time step."""
    fluctuations = []
    for step in (0.001, 0.0005):
        system, handle, start = biased_ala2()
        integrator = openmm.MTSIntegrator(4 * step, [(handle.forceGroup, 1), (0, 4)])
        integrator.setConstraintTolerance(1e-10)
        context = make_context(system, start, integrator)
        openmm.LocalEnergyMinimizer.minimize(context, 1.0, 200)
        context.setVelocitiesToTemperature(300, 3)
        energies = []
        for _ in range(250):
            integrator.step(round(0.016 / (4 * step)))
            state = context.getState(getEnergy=True)
            energies.append((state.getPotentialEnergy() + state.getKineticEnergy())._value)
        times = 0.016 * np.arange(250)
        slope, _ = np.polyfit(times, energies, 1)
        fluctuations.append(np.std(energies - slope * times))
        # no trend to speak of
        assert abs(slope * times[-1]) < 3 * fluctuations[-1] + 0.05
    assert 2.8 < fluctuations[0] / fluctuations[1] < 5.5


class TestAddToSystem:
    def test_bias_acts_every_fourth_step(self, cv_file):
        cv = GeomGNNCV(cv_file, PDB.topology, engine="eager")
        system = build_system(PDB.topology, VACUUM)
        handle = cv.addToSystem(system, Counted(0.1), every=4)
        assert handle.every == 4 and handle.forceGroup == 31
        assert {force.getForceGroup() for force in system.getForces()} == {0, 31}
        integrator = handle.createIntegrator(300, "1/ps", "2 fs")
        assert integrator.getStepSize()._value == pytest.approx(0.008)
        context = make_context(system, POSITIONS, integrator)
        Counted.calls = 0
        integrator.step(5)
        assert context.getTime()._value == pytest.approx(0.04)
        assert Counted.calls == 5

    def test_every_step(self, cv_file):
        system = make_system()
        handle = GeomGNNCV(cv_file, PDB.topology, engine="eager").addToSystem(system, Spring(0.1))
        assert handle.every == 1
        assert isinstance(handle.createIntegrator(300, 1, 0.002), openmm.LangevinMiddleIntegrator)

    def test_forces_in_other_groups_act_at_every_step(self, cv_file):
        """A force outside group 0 is not forgotten, nor is the reciprocal space of Ewald sums."""
        system = make_system(box=3 * np.eye(3))
        system.getForce(0).setReciprocalSpaceForceGroup(2)
        wind = openmm.CustomExternalForce("-100*x")
        wind.setForceGroup(7)
        for i in range(system.getNumParticles()):
            wind.addParticle(i)
        system.addForce(wind)
        handle = GeomGNNCV(cv_file, PDB.topology, engine="eager").addToSystem(system, Spring(0.0), every=3)
        integrator = handle.createIntegrator(0.001, 0, 0.002)
        context = make_context(system, POSITIONS, integrator)
        integrator.step(2)
        moved = positions(context) - POSITIONS
        # kicks of 2 fs, of which the first counts in full
        np.testing.assert_allclose(moved[:, 0], 100 / masses(system)[:, 0] * 0.002**2 * 21, rtol=1e-6)
        texts = [integrator.getComputationStep(k)[2] for k in range(integrator.getNumComputations())]
        assert sum("f2/m" in text for text in texts) == sum("f7/m" in text for text in texts) == 3

    @pytest.mark.parametrize("every", [0, -2, 1.5, True])
    def test_nonsense(self, cv_file, every):
        with pytest.raises(GeomGNNError, match=f"every is {every}, but must be a whole number"):
            GeomGNNCV(cv_file, PDB.topology, engine="eager").addToSystem(make_system(), Spring(0.1), every=every)

    def test_group_is_the_bias_own(self, cv_file):
        cv = GeomGNNCV(cv_file, PDB.topology, engine="eager")
        system = make_system(box=3 * np.eye(3))
        with pytest.raises(GeomGNNError, match="NonbondedForce is in force group 0, but.*group of its own"):
            cv.addToSystem(system, Spring(0.1), forceGroup=0, every=2)
        assert system.getNumForces() == 1
        handle = cv.addToSystem(system, Spring(0.1), every=2)
        system.getForce(0).setReciprocalSpaceForceGroup(handle.forceGroup)
        with pytest.raises(GeomGNNError, match="NonbondedForce and GeomGNNCV bias are in force group 31"):
            handle.createIntegrator(300, 1, 0.002)
        system.getForce(0).setReciprocalSpaceForceGroup(-1)
        with pytest.raises(GeomGNNError, match="is it in fs"):
            handle.createIntegrator(300, 1, 2.0)
