"""`GeomGNNCV` in explicit solvent: virtual sites, constraints, barostat, minimiser, checkpoints."""

import copy
from functools import partial

import mdtraj
import numpy as np
import openmm
import pytest
from force_systems import BIAS, PDB, POSITIONS, energy_and_forces, make_context, make_system, value, water_system
from molecules import random_cv
from openmm import app

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.errors import GeomGNNError

pytestmark = pytest.mark.slow

of_cv = partial(GeomGNNCV, engine="eager")  # which compiles nothing


def biased_water(cv_file, model="tip3p", constraints=app.HBonds, **options):
    """A solvated System with a bias that has been at work, its positions, topology and handle."""
    system, topology, positions = water_system(model, constraints=constraints)
    force = of_cv(cv_file, topology, **options)
    handle = force.addToSystem(system, BIAS)
    state = handle.getBiasState()
    for k in range(3):
        state = BIAS.update(state, force.compute(positions)[0] + 0.1 * k)
    handle.setBiasState(state)
    return system, topology, positions, handle


def langevin(timestep=0.001, seed=1):
    integrator = openmm.LangevinMiddleIntegrator(300, 1.0, timestep)
    integrator.setRandomNumberSeed(seed)
    return integrator


def positions_of(context):
    return context.getState(getPositions=True).getPositions(asNumpy=True)._value


class TestVirtualSites:
    def test_in_the_water_around(self, cv_file):
        """TIP4P-Ew: its sites are particles of the System, and none of the CV's business."""
        system, topology, positions, handle = biased_water(cv_file, "tip4pew", precision="double")
        assert sum(map(system.isVirtualSite, range(system.getNumParticles()))) > 200
        context = make_context(system, positions, langevin(), "CPU")
        context.getIntegrator().step(10)
        expected = of_cv(cv_file, topology, precision="double").compute(positions_of(context))[0]
        np.testing.assert_allclose(handle.getValue(context)[0], expected, rtol=1e-9)

    def test_on_the_molecule_are_left_out(self, cv_file):
        """As lone pairs of a force field; a selection that names them is refused."""
        topology = copy.deepcopy(PDB.topology)
        topology.addAtom("LP1", None, list(topology.residues())[-1])
        system = make_system()
        system.addParticle(0.0)
        system.setVirtualSite(22, openmm.TwoParticleAverageSite(4, 5, 1.5, -0.5))
        handle = of_cv(cv_file, topology).addToSystem(system)
        context = make_context(system, np.vstack([POSITIONS, np.zeros(3)]))
        context.computeVirtualSites()
        np.testing.assert_allclose(handle.getValue(context)[0], value(cv_file, engine="eager"), rtol=1e-6)
        with pytest.raises(GeomGNNError, match="virtual sites such as NME3-LP1, .* '\\(protein\\) and not element VS'"):
            random_cv(mdtraj.Topology.from_openmm(topology), selection="protein")

    def test_that_stand_for_an_atom_of_the_cv_pass_their_force_on(self, cv_file):
        """An atom of an element that the System holds in place by others: OpenMM gives its force to them."""
        site, parents, weights = 5, (4, 6), (1.4, -0.4)
        system = make_system()
        system.setParticleMass(site, 0.0)
        system.setVirtualSite(site, openmm.TwoParticleAverageSite(*parents, *weights))
        system.addForce(of_cv(cv_file, PDB.topology, precision="double"))
        context = make_context(system)
        context.computeVirtualSites()
        positions = np.array(positions_of(context))
        _, forces = energy_and_forces(context)
        for atom in parents:
            for axis in range(3):
                energies = []
                for h in (-1e-5, 1e-5):
                    moved = positions.copy()
                    moved[atom, axis] += h
                    context.setPositions(moved)
                    context.computeVirtualSites()
                    energies.append(energy_and_forces(context)[0])
                assert forces[atom, axis] == pytest.approx((energies[0] - energies[1]) / 2e-5, rel=1e-4, abs=1e-4)


class TestInWater:
    """Alanine dipeptide in a box of water, with a bias."""

    @pytest.mark.parametrize("constraints", [None, app.HBonds, app.AllBonds], ids=str)
    def test_constraints(self, cv_file, constraints):
        """Rigid water, and the bonds of the molecule: the bias breaks none of them, and its forces are what they are."""
        system, topology, positions, handle = biased_water(cv_file, constraints=constraints, precision="double")
        integrator = langevin(0.0005 if constraints is None else 0.001)
        integrator.setConstraintTolerance(1e-6)
        context = make_context(system, positions, integrator, "CPU")
        context.setVelocitiesToTemperature(300, 1)
        integrator.step(30)
        positions = positions_of(context)
        for k in range(system.getNumConstraints()):
            a, b, length = system.getConstraintParameters(k)
            assert np.linalg.norm(positions[a] - positions[b]) == pytest.approx(length._value, rel=1e-4)
        s, energy = handle.getValue(context)
        assert energy == pytest.approx(BIAS.bias(handle.getBiasState(), s)[0], rel=1e-9)
        expected = of_cv(cv_file, topology, precision="double").compute(positions)[0]
        np.testing.assert_allclose(s, expected, rtol=1e-6)

    def test_barostat(self, cv_file):
        """Trial moves of the box: none changes the CV, and a rejected one leaves all as it was."""
        system, topology, positions, handle = biased_water(cv_file, precision="double")
        barostat = openmm.MonteCarloBarostat(1.0, 300, 1)
        barostat.setRandomNumberSeed(3)
        system.addForce(barostat)
        integrator = openmm.VerletIntegrator(1e-12)  # nothing moves but what the barostat moves
        context = make_context(system, positions, integrator, "CPU")
        context.setPositions(positions_of(context) - positions_of(context)[:22].mean(axis=0))  # cut by the box
        expected = handle.getValue(context)[0]
        volumes, rejected = [], 0
        for _ in range(30):
            before = context.getState(getEnergy=True, getForces=True)
            bias = handle.last
            integrator.step(1)
            after = context.getState(getEnergy=True, getForces=True)
            np.testing.assert_allclose(handle.last[0], expected, rtol=1e-5)
            volumes.append(after.getPeriodicBoxVolume()._value)
            if volumes[-1] == before.getPeriodicBoxVolume()._value:
                rejected += 1
                np.testing.assert_allclose(handle.last[0], bias[0], rtol=1e-7)
                assert after.getPotentialEnergy()._value == pytest.approx(before.getPotentialEnergy()._value, rel=1e-6)
        assert 3 < rejected < 27 and len(set(volumes)) > 5

    def test_at_constant_pressure(self, cv_file):
        """Hundreds of steps: what is reported in the end is the CV, and the energy, of the positions in the end."""
        system, topology, positions, handle = biased_water(cv_file)
        barostat = openmm.MonteCarloBarostat(1.0, 300, 10)
        barostat.setRandomNumberSeed(3)
        system.addForce(barostat)
        context = make_context(system, positions, langevin(0.001), "CPU")
        context.setVelocitiesToTemperature(300, 1)
        before = context.getState().getPeriodicBoxVolume()._value
        for _ in range(2):
            context.getIntegrator().step(100)
            s, energy = handle.getValue(context)
            state = context.getState(getPositions=True, getEnergy=True)
            frame = mdtraj.Trajectory(state.getPositions(asNumpy=True)._value[None], mdtraj.Topology.from_openmm(topology))
            frame.unitcell_vectors = state.getPeriodicBoxVectors(asNumpy=True)._value[None]
            expected = of_cv(cv_file, topology).compute(frame)[0]
            np.testing.assert_allclose(s, expected, atol=1e-4)
            assert energy == pytest.approx(BIAS.bias(handle.getBiasState(), s)[0], rel=1e-9)
            fresh = make_context(system, state.getPositions(), platform="CPU")
            fresh.setPeriodicBoxVectors(*state.getPeriodicBoxVectors())
            fresh.setPositions(state.getPositions())
            found, _ = energy_and_forces(fresh)
            assert found == pytest.approx(state.getPotentialEnergy()._value, rel=1e-5)
        assert context.getState().getPeriodicBoxVolume()._value != before

    @pytest.mark.parametrize("platform", ["Reference", "CPU"])
    def test_minimiser(self, cv_file, platform):
        system, _, positions, handle = biased_water(cv_file)
        context = make_context(system, positions, platform=platform)
        before, bias = energy_and_forces(context)[0], handle.last[1]
        openmm.LocalEnergyMinimizer.minimize(context, maxIterations=2 if platform == "Reference" else 50)
        assert energy_and_forces(context)[0] < before and handle.last[1] != bias and handle.error is None

    @pytest.mark.parametrize("way", ["checkpoint", "state", "xml of the state"])
    def test_goes_on_from(self, cv_file, way):
        """What is saved of a Context brings back the same bias and the same run; the bias state is the handle's."""
        system, _, positions, handle = biased_water(cv_file)
        steps = 3

        def context():
            # a State has no random numbers in it
            return make_context(system, positions, langevin() if way == "checkpoint" else openmm.VerletIntegrator(0.001))

        first = context()
        first.setVelocitiesToTemperature(100, 1)
        first.getIntegrator().step(steps)
        saved = (
            first.createCheckpoint()
            if way == "checkpoint"
            else first.getState(getPositions=True, getVelocities=True, getParameters=True, getIntegratorParameters=True)
        )
        if way == "xml of the state":
            saved = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(saved))
        at_save = handle.getValue(first)
        first.getIntegrator().step(steps)
        expected, expected_positions = handle.getValue(first), positions_of(first)
        second = context()
        second.loadCheckpoint(saved) if way == "checkpoint" else second.setState(saved)
        assert handle.getValue(second)[1] == at_save[1]
        np.testing.assert_array_equal(handle.getValue(second)[0], at_save[0])
        second.getIntegrator().step(steps)
        np.testing.assert_array_equal(positions_of(second), expected_positions)
        assert handle.getValue(second)[1] == expected[1]
