"""A bias that acts at every k-th time step: the same free energy, the right temperature, a bounded energy."""

import numpy as np
import openmm
import pytest
from force_systems import PDB, POSITIONS, make_context, make_system
from phi_runs import ALA2, PhiCV, Spring, biased

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.integrators import half_step_velocities, make_integrator
from openmm_geomgnn.sampling.systems import SystemSettings, build_system, degrees_of_freedom, load_structure
from openmm_geomgnn.sampling.walker import Walker
from openmm_geomgnn.units import BOLTZMANN

KT = 300 * BOLTZMANN
STEP = 0.002  # ps
BIAS_GROUP = 31
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


class TestTemperature:
    @pytest.mark.parametrize(("group", "phase_inside", "phase_outside"), [(0, 0.8, 0.2), (BIAS_GROUP, 0.2, 0.8)])
    def test_of_harmonic_oscillators(self, group, phase_inside, phase_outside):
        """Whichever force is stiff for its step, the end of a step reads low by (phase per step)^2/4 and its middle is right."""
        every, mass, n = 4, 10.0, 500
        system, rng = openmm.System(), np.random.default_rng(1)
        stiffness = {
            0: mass * (phase_inside / STEP) ** 2,
            BIAS_GROUP: mass * (phase_outside / (every * STEP)) ** 2,
        }
        for _ in range(n):
            system.addParticle(mass)
        for of, k in stiffness.items():
            force = openmm.CustomExternalForce(f"0.5*{k}*(x^2+y^2+z^2)")
            force.setForceGroup(of)
            for i in range(n):
                force.addParticle(i)
            system.addForce(force)
        integrator = make_integrator(300, 2.0, STEP, every, BIAS_GROUP, seed=3)
        spread = np.sqrt(KT / sum(stiffness.values()))
        context = make_context(system, spread * rng.normal(size=(n, 3)), integrator)
        context.setVelocitiesToTemperature(300, 1)
        integrator.step(100)
        end, half, reported = [], [], []
        for _ in range(200):
            integrator.step(5)
            end.append(temperature(mass, velocities(context)))
            half.append(temperature(mass, half_step_velocities(integrator, context)))
            reported.append(context.getState(getEnergy=True).getKineticEnergy()._value)
        # the phases that belong to the stiff force; the other one adds (0.2)^2/4 = 1 %
        low = 1 - (phase_inside**2 + phase_outside**2) / 4
        assert low < 0.84 and group in stiffness
        assert np.mean(half) == pytest.approx(300, rel=0.015)
        assert np.mean(end) == pytest.approx(300 * low, rel=0.02)
        np.testing.assert_allclose(reported, 1.5 * n * BOLTZMANN * np.array(half), rtol=1e-9)

    def test_of_a_molecule_with_constraints(self):
        """Half step velocities are those at the end less the last half kicks, without what these do along constraints."""
        every = 3
        system, handle, start = biased_ala2()
        integrator = make_integrator(300, 10.0, STEP, every, handle.forceGroup, seed=5)
        context = make_context(system, start, integrator)
        context.setVelocitiesToTemperature(300, 2)
        mass, dof = masses(system), degrees_of_freedom(system)
        pairs = np.array([system.getConstraintParameters(k)[:2] for k in range(system.getNumConstraints())])
        integrator.step(500)
        readings = []
        for _ in range(400):
            integrator.step(20)
            readings.append([temperature(mass, v, dof) for v in (velocities(context), half_step_velocities(integrator, context))])
        x, half = positions(context), half_step_velocities(integrator, context)
        kick = 0.5 * STEP / mass * (every * forces(context, handle.forceGroup) + forces(context, 0))
        directions = np.zeros((len(pairs), len(mass), 3))
        apart = x[pairs[:, 0]] - x[pairs[:, 1]]
        directions[np.arange(len(pairs)), pairs[:, 0]], directions[np.arange(len(pairs)), pairs[:, 1]] = apart, -apart
        J = directions.reshape(len(pairs), -1)
        weighted = (directions / mass).reshape(len(pairs), -1)
        along = np.linalg.solve(J @ weighted.T, J @ kick.ravel()) @ weighted
        expected = velocities(context) - (kick - along.reshape(kick.shape))
        np.testing.assert_allclose(half, expected, atol=2e-5 * np.abs(half).max())
        end, middle = np.mean(readings, axis=0)
        # 2.6 % on average, whatever `every`: the bonds and angles of the molecule itself
        assert 0.96 < end / middle < 0.985
        assert middle == pytest.approx(300, rel=0.05)

    def test_trajectory_is_that_of_openmm(self):
        """To look at the velocities of the middle of a step changes nothing."""
        ends = []
        for ours in (True, False):
            system, handle, start = biased_ala2()
            groups = [(handle.forceGroup, 1), (0, 3)]
            integrator = openmm.MTSLangevinIntegrator(300, 1.0, 3 * STEP, groups)
            if ours:
                integrator = make_integrator(300, 1.0, STEP, 3, handle.forceGroup)
            integrator.setRandomNumberSeed(11)
            integrator.setConstraintTolerance(1e-6)
            context = make_context(system, start, integrator)
            context.setVelocitiesToTemperature(300, 4)
            integrator.step(20)
            # one call at the start of each step, none for what we look at
            ends.append((handle.calls, positions(context), velocities(context)))
        assert ends[0][0] == ends[1][0] == 21
        np.testing.assert_array_equal(ends[0][1], ends[1][1])
        np.testing.assert_array_equal(ends[0][2], ends[1][2])

    def test_of_a_walker(self):
        walker = Walker(biased(bias=Spring(200.0), every=3, colvar_interval=5))
        walker.start()
        (*_, row) = walker.advance((), 20).rows
        mass, dof = masses(walker._system), degrees_of_freedom(walker._system)
        assert row[-1] == temperature(mass, half_step_velocities(walker._integrator, walker._context), dof)
        assert row[-1] != pytest.approx(temperature(mass, velocities(walker._context), dof), rel=1e-3)


def test_free_energy_of_a_double_well():
    """The static bias takes most of a barrier away; reweighted, the known free energy comes back at every = 1 and 4."""
    centre, well, barrier, n = 0.3, 0.1, 15.0, 300
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
        # kJ/mol over the whole run: less than a tenth of a per cent of the kinetic energy
        assert abs(slope * times[-1]) < 3 * fluctuations[-1] + 0.05
    assert 2.8 < fluctuations[0] / fluctuations[1] < 5.5


class Counted(Spring):
    """A spring that counts its evaluations."""

    calls = 0

    def bias(self, state, s):
        Counted.calls += 1
        return super().bias(state, s)


class TestAddToSystem:
    def test_bias_acts_every_fourth_step(self, cv_file):
        cv = GeomGNNCV(cv_file, PDB.topology, engine="eager")
        system = build_system(PDB.topology, VACUUM)
        handle = cv.addToSystem(system, Counted(0.1), every=4)
        assert handle.every == 4 and handle.forceGroup == 31
        assert {force.getForceGroup() for force in system.getForces()} == {0, 31}
        integrator = handle.integrator(300, "1/ps", "2 fs")
        assert isinstance(integrator, openmm.MTSLangevinIntegrator)
        assert integrator.getStepSize()._value == pytest.approx(0.008)
        context = make_context(system, POSITIONS, integrator)
        Counted.calls = 0
        integrator.step(5)
        assert Counted.calls == 6
        s, _ = handle.last
        assert s == pytest.approx(handle.value(context)[0], abs=1e-12)

    def test_every_step(self, cv_file):
        system = make_system()
        handle = GeomGNNCV(cv_file, PDB.topology, engine="eager").addToSystem(system, Spring(0.1))
        assert handle.every == 1
        assert isinstance(handle.integrator(300, 1, 0.002), openmm.LangevinMiddleIntegrator)

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
        integrator = handle.integrator(0.001, 0, 0.002)
        context = make_context(system, POSITIONS, integrator)
        integrator.step(2)
        moved = positions(context) - POSITIONS
        np.testing.assert_allclose(moved[:, 0], 50 / masses(system)[:, 0] * 0.012**2, rtol=1e-6)
        texts = [integrator.getComputationStep(k)[2] for k in range(integrator.getNumComputations())]
        assert any("f2/m" in text for text in texts) and not any(text.startswith("x+(dt/1)") for text in texts)

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
            handle.integrator(300, 1, 0.002)
        system.getForce(0).setReciprocalSpaceForceGroup(-1)
        with pytest.raises(GeomGNNError, match="is it in fs"):
            handle.integrator(300, 1, 2.0)
