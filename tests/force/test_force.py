"""`GeomGNNCV` in OpenMM: energies and forces, and the three ways of using it."""

import time
from concurrent.futures import ThreadPoolExecutor

import mdtraj
import numpy as np
import openmm
import pytest
from force_systems import (
    BIAS,
    NM,
    PDB,
    POSITIONS,
    check_forces,
    energy_and_forces,
    make_context,
    make_system,
    short_metadynamics,
    value,
)
from molecules import TRANSFORMER, random_cv, random_encoder
from openmm import app, unit

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.opes.method import OPES


class TestForces:
    @pytest.mark.parametrize("component", [0, 1])
    def test_of_a_component(self, cv_file, component):
        force = GeomGNNCV(cv_file, PDB.topology, component, precision="double", engine="eager")
        system = make_system()
        system.addForce(force)
        context = make_context(system)
        energy, _ = energy_and_forces(context)
        assert energy == pytest.approx(value(cv_file, precision="double", engine="eager")[component], rel=1e-12)
        check_forces(context, POSITIONS, force.atoms)

    def test_of_a_bias_on_all_components(self, cv_file):
        force = GeomGNNCV(cv_file, PDB.topology, precision="double", engine="eager")
        system = make_system()
        handle = force.addToSystem(system, BIAS)
        state = handle.getBiasState()
        for k in range(4):
            state = BIAS.update(state, value(cv_file, POSITIONS + 0.01 * np.random.default_rng(k).normal(size=(22, 3))))
        handle.setBiasState(state)
        context = make_context(system)
        assert energy_and_forces(context)[0] == pytest.approx(BIAS.bias(state, force.compute(POSITIONS)[0])[0], rel=1e-9)
        check_forces(context, POSITIONS, force.atoms)

    @pytest.mark.slow
    @pytest.mark.parametrize("model", [TRANSFORMER, "visnet"])
    def test_of_chignolin_in_windows(self, shared_data, model):
        pdb = app.PDBFile(str(shared_data / "structures" / "CLN025_ready.pdb"))
        encoder = random_encoder(model)
        cv = random_cv(mdtraj.Topology.from_openmm(pdb.topology), encoder, mixer="mlp", window="sequence")
        force = GeomGNNCV(cv, pdb.topology, precision="double", engine="eager")
        assert len(force.atoms) == 93
        system = make_system(pdb.topology)
        system.addForce(force)
        positions = np.array(pdb.getPositions(asNumpy=True).value_in_unit(NM))
        check_forces(make_context(system, positions), positions, force.atoms)

    @pytest.mark.slow
    def test_single_precision_is_close(self, cv_file):
        found = []
        for precision in ("single", "double"):
            system = make_system()
            system.addForce(GeomGNNCV(cv_file, PDB.topology, precision=precision))
            found.append(energy_and_forces(make_context(system)))
        (energy, forces), (expected, expected_forces) = found
        assert energy == pytest.approx(expected, rel=1e-4)
        assert np.abs(forces - expected_forces).max() < 1e-3 * np.abs(expected_forces).max()


class TestUses:
    def test_in_a_custom_cv_force(self, cv_file):
        expected = value(cv_file)
        force = openmm.CustomCVForce("0.5*k*((q-q0)^2+(p-q0)^2)")
        force.addGlobalParameter("k", 50.0)
        force.addGlobalParameter("q0", 0.4)
        for component, name in enumerate("qp"):
            force.addCollectiveVariable(name, GeomGNNCV(cv_file, PDB.topology, component=component))
        system = make_system()
        system.addForce(force)
        context = make_context(system)
        assert force.getCollectiveVariableValues(context) == pytest.approx(expected, rel=1e-5)
        energy, forces = energy_and_forces(context)
        assert energy == pytest.approx(25.0 * ((expected - 0.4) ** 2).sum(), rel=1e-4)
        assert np.abs(forces).max() > 1.0

    def test_in_metadynamics_of_openmm(self, cv_file):
        start = value(cv_file)[0]
        metadynamics, found, positions = short_metadynamics(GeomGNNCV(cv_file, PDB.topology), start)
        assert found == pytest.approx(value(cv_file, positions)[0], abs=1e-4)
        free_energy = metadynamics.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole)
        assert np.isfinite(free_energy).all() and free_energy.min() < -1.0

    def test_former_names_warn(self, cv_file):
        system = make_system()
        handle = GeomGNNCV(cv_file, PDB.topology, engine="eager").addToSystem(system, BIAS)
        context = make_context(system)
        state = BIAS.update(handle.getBiasState(), handle.getValue(context)[0])
        with pytest.warns(DeprecationWarning, match="BiasHandle.setState is now called setBiasState") as seen:
            handle.setState(state)
        assert seen[0].filename == __file__
        with pytest.warns(DeprecationWarning, match="getState is now called getBiasState"):
            assert handle.getState() is handle.getBiasState() is state
        with pytest.warns(DeprecationWarning, match="value is now called getValue"):
            s, energy = handle.value(context)
        expected, expected_energy = handle.getValue(context)
        assert s.tolist() == expected.tolist() and energy == expected_energy
        with pytest.warns(DeprecationWarning, match="integrator is now called createIntegrator"):
            assert handle.integrator(300, 1, timestep=0.002).getTemperature() == 300 * unit.kelvin

    def test_with_a_bias_of_ours(self, cv_file):
        bias = OPES(barrier=30 * unit.kilojoules_per_mole, pace=5, sigma=0.2)
        force = GeomGNNCV(cv_file, PDB.topology)
        system = make_system()
        handle = force.addToSystem(system, bias=bias)
        assert handle.forceGroup == 31 and handle.force.getForceGroup() == 31 and handle.last is None
        integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005)
        integrator.setRandomNumberSeed(1)
        context = make_context(system, integrator=integrator)
        state = handle.getBiasState()
        for _ in range(4):
            integrator.step(5)
            s, energy = handle.getValue(context)
            positions = context.getState(getPositions=True).getPositions(asNumpy=True)
            np.testing.assert_allclose(s, force.compute(positions)[0], atol=1e-4)
            assert energy == pytest.approx(bias.bias(state, s)[0], rel=1e-12)
            assert handle.last[1] == energy and handle.getBiasState() is state  # evaluations leave the state alone
            state = bias.update(state, s)
            handle.setBiasState(state)
            deposited, _ = energy_and_forces(context, groups={31})
            assert deposited == pytest.approx(bias.bias(state, s)[0], rel=1e-9) and deposited > energy
        assert handle.error is None

    def test_two_components_with_two_walkers_of_one_cv(self, cv_file):
        """Biases of one GeomGNNCV in several Systems do not share their states."""
        force = GeomGNNCV(cv_file, PDB.topology)
        handles, contexts = [], []
        for _ in range(2):
            system = make_system()
            handles.append(force.addToSystem(system, BIAS))
            contexts.append(make_context(system))
        handles[1].setBiasState(BIAS.update(handles[1].getBiasState(), handles[1].getValue(contexts[1])[0]))
        assert handles[0].getValue(contexts[0])[1] < handles[1].getValue(contexts[1])[1]

    def test_two_contexts_of_one_system_in_two_threads(self, cv_file):
        """Each answers with the value at its own positions, whatever the other does meanwhile."""
        force, system = GeomGNNCV(cv_file, PDB.topology), make_system()
        handle = force.addToSystem(system, BIAS)
        handle.setBiasState(BIAS.update(handle.getBiasState(), force.compute(POSITIONS)[0]))

        def dawdle(state):
            time.sleep(1e-3)  # the other thread goes on
            return 0.0, np.zeros((22, 3))

        slow = openmm.PythonForce(dawdle)  # evaluated after the bias, and with it
        slow.setForceGroup(handle.forceGroup)
        system.addForce(slow)
        frames = POSITIONS, POSITIONS + 0.01 * np.random.default_rng(5).normal(size=POSITIONS.shape)
        contexts = [make_context(system, frame) for frame in frames]
        expected = [handle.getValue(context) for context in contexts]
        assert np.abs(expected[0][0] - expected[1][0]).max() > 1e-3 and expected[0][1] != expected[1][1]

        def wrong(k):
            found = [handle.getValue(contexts[k]) for _ in range(50)]
            return sum(not np.array_equal(s, expected[k][0]) or energy != expected[k][1] for s, energy in found)

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(wrong, (0, 1))) == [0, 0]

    def test_without_a_bias_the_cv_is_watched(self, cv_file):
        system = make_system()
        handle = GeomGNNCV(cv_file, PDB.topology).addToSystem(system, forceGroup=3)
        context = make_context(system)
        s, energy = handle.getValue(context)
        assert energy == 0.0 and handle.forceGroup == 3
        np.testing.assert_allclose(s, value(cv_file), atol=1e-4)
        assert not energy_and_forces(context)[1].any()

    def test_attributes(self, cv_file):
        force = GeomGNNCV(cv_file, PDB.topology)
        assert force.atoms.tolist() == [0, 4, 5, 6, 8, 10, 11, 12, 16, 18] and force.dimension == 2
        assert list(force.getParticles()) == force.atoms.tolist() and not force.usesPeriodicBoundaryConditions()

    def test_evaluation_is_what_compute_gives(self, cv_file):
        """One code path for trajectories and simulations, whatever the engine."""
        force = GeomGNNCV(cv_file, PDB.topology, precision="double")
        system = make_system()
        handle = force.addToSystem(system)
        context = make_context(system)
        frames = POSITIONS + 0.02 * np.random.default_rng(2).normal(size=(5, 22, 3))
        for frame, expected in zip(frames, force.compute(frames), strict=True):
            context.setPositions(frame)
            np.testing.assert_allclose(handle.getValue(context)[0], expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("component", [2, -1, 0.5, True])
    def test_components_that_do_not_exist_are_errors(self, cv_file, component):
        with pytest.raises(GeomGNNError, match=f"has 2 components, numbered from 0; component {component} does not exist"):
            GeomGNNCV(cv_file, PDB.topology, component)

    def test_system_of_another_size_is_an_error(self, cv_file):
        system = make_system()
        system.addParticle(1.0)
        with pytest.raises(GeomGNNError, match="System has 23 particles and the topology 22 atoms"):
            GeomGNNCV(cv_file, PDB.topology).addToSystem(system)

    def test_force_groups_run_out(self, cv_file):
        system = make_system()
        force = GeomGNNCV(cv_file, PDB.topology)
        groups = [force.addToSystem(system).forceGroup for _ in range(31)]
        assert groups == list(range(31, 0, -1))
        with pytest.raises(GeomGNNError, match="All force groups of the System are in use"):
            force.addToSystem(system)
