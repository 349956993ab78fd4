"""`GeomGNNCV` in OpenMM: energies and forces, the three ways of using it, serialisation, failures, periodic boxes."""

import copy
import os

import mdtraj
import numpy as np
import openmm
import pytest
from molecules import ALA2, BOXES, CUTOFF, TRANSFORMER, random_cv, random_encoder, wrapped
from openmm import app, unit
from openmm.app.metadynamics import BiasVariable, Metadynamics

from openmm_geomgnn import Encoder, GeomGNNCV
from openmm_geomgnn.cv import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.opes import OPES

NM = unit.nanometer
PDB = app.PDBFile(str(ALA2))
BIAS = OPES(barrier=30, pace=10, temperature=300, sigma=0.3)
POSITIONS = np.array(PDB.getPositions(asNumpy=True).value_in_unit(NM))


def make_system(topology=PDB.topology, box=None):
    """Nothing but masses; with a box, a force without effect that makes the System periodic."""
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
        force = openmm.NonbondedForce()
        force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
        for _ in topology.atoms():
            force.addParticle(0.0, 0.3, 0.0)
        system.addForce(force)
    return system


def make_context(system, positions=POSITIONS, integrator=None, platform="Reference"):
    integrator = integrator or openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    context.setPositions(positions)
    return context


def energy_and_forces(context, positions=None, **options):
    if positions is not None:
        context.setPositions(positions)
    state = context.getState(getEnergy=True, getForces=True, **options)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    return energy, state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / NM)


def check_forces(context, positions, atoms, h=2e-6, **options):
    """Forces against central differences of the energy along random directions and, for two atoms, along the axes.

    Differences of the fourth order: the random networks are steep.
    """
    _, forces = energy_and_forces(context, positions, **options)
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=positions.shape) for _ in range(4)]
    for atom in atoms[[1, -2]]:
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


@pytest.fixture(scope="module")
def cv():
    return random_cv(mdtraj.Topology.from_openmm(PDB.topology), scale=0.2)


@pytest.fixture(scope="module")
def file(cv, tmp_path_factory):
    path = tmp_path_factory.mktemp("cv") / "ala2.cv"
    cv.save(path)
    return path


def value(file, positions=POSITIONS, **options):
    return GeomGNNCV(file, PDB.topology, **options).compute(positions)[0]


class TestForces:
    @pytest.mark.parametrize("component", [0, 1])
    def test_of_a_component(self, file, component):
        force = GeomGNNCV(file, PDB.topology, component, precision="double", engine="eager")
        system = make_system()
        system.addForce(force)
        context = make_context(system)
        energy, _ = energy_and_forces(context)
        assert energy == pytest.approx(value(file, precision="double", engine="eager")[component], rel=1e-12)
        check_forces(context, POSITIONS, force.atoms)

    def test_of_a_bias_on_all_components(self, file):
        force = GeomGNNCV(file, PDB.topology, precision="double", engine="eager")
        system = make_system()
        handle = force.addToSystem(system, BIAS)
        state = handle.getState()
        for k in range(4):
            state = BIAS.update(state, value(file, POSITIONS + 0.01 * np.random.default_rng(k).normal(size=(22, 3))))
        handle.setState(state)
        context = make_context(system)
        assert energy_and_forces(context)[0] == pytest.approx(BIAS.bias(state, force.compute(POSITIONS)[0])[0], rel=1e-9)
        check_forces(context, POSITIONS, force.atoms)

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

    def test_single_precision_is_close(self, file):
        found = []
        for precision in ("single", "double"):
            system = make_system()
            system.addForce(GeomGNNCV(file, PDB.topology, precision=precision))
            found.append(energy_and_forces(make_context(system)))
        (energy, forces), (expected, expected_forces) = found
        assert energy == pytest.approx(expected, rel=1e-4)
        assert np.abs(forces - expected_forces).max() < 1e-3 * np.abs(expected_forces).max()

    def test_platforms_agree(self, file):
        found = []
        for platform in ("Reference", "CPU"):
            system = make_system(box=BOXES["triclinic"])
            system.addForce(GeomGNNCV(file, PDB.topology, precision="double", engine="eager", periodic=True))
            found.append(energy_and_forces(make_context(system, platform=platform)))
        (energy, forces), (expected, expected_forces) = found
        assert energy == pytest.approx(expected, rel=1e-6)
        assert np.abs(forces - expected_forces).max() < 1e-5 * np.abs(expected_forces).max()

    def test_are_continuous_when_a_pair_crosses_the_cutoff(self, file):
        system = make_system()
        system.addForce(GeomGNNCV(file, PDB.topology, precision="double", engine="eager"))
        context = make_context(system)
        a, b = 0, 18  # the heavy atoms at the two ends
        axis = (POSITIONS[b] - POSITIONS[a]) / np.linalg.norm(POSITIONS[b] - POSITIONS[a])
        found = []
        for step in (-1.5, -0.5, 0.5):
            positions = POSITIONS.copy()
            positions[b] = POSITIONS[a] + (0.1 * CUTOFF + 1e-7 * step) * axis
            found.append(energy_and_forces(context, positions))
        (e0, f0), (e1, f1), (e2, f2) = found
        assert abs(e2 - 2 * e1 + e0) < 1e-9 * abs(e1) and np.abs(f2 - 2 * f1 + f0).max() < 1e-7 * np.abs(f1).max()


class TestUses:
    def test_in_a_custom_cv_force(self, file):
        expected = value(file)
        force = openmm.CustomCVForce("0.5*k*((q-q0)^2+(p-q0)^2)")
        force.addGlobalParameter("k", 50.0)
        force.addGlobalParameter("q0", 0.4)
        for component, name in enumerate("qp"):
            force.addCollectiveVariable(name, GeomGNNCV(file, PDB.topology, component=component))
        system = make_system()
        system.addForce(force)
        context = make_context(system)
        assert force.getCollectiveVariableValues(context) == pytest.approx(expected, rel=1e-5)
        energy, forces = energy_and_forces(context)
        assert energy == pytest.approx(25.0 * ((expected - 0.4) ** 2).sum(), rel=1e-4)
        assert np.abs(forces).max() > 1.0

    def test_in_metadynamics_of_openmm(self, file):
        start = value(file)[0]
        system = make_system()
        variable = BiasVariable(GeomGNNCV(file, PDB.topology), start - 2, start + 2, 0.2)
        metadynamics = Metadynamics(system, [variable], 300 * unit.kelvin, 5.0, 1.0 * unit.kilojoule_per_mole, 5)
        integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005)
        integrator.setRandomNumberSeed(1)
        platform = openmm.Platform.getPlatformByName("Reference")
        simulation = app.Simulation(PDB.topology, system, integrator, platform)
        simulation.context.setPositions(POSITIONS)
        metadynamics.step(simulation, 20)
        positions = simulation.context.getState(getPositions=True).getPositions(asNumpy=True)
        (found,) = metadynamics.getCollectiveVariables(simulation)
        assert found == pytest.approx(value(file, positions)[0], abs=1e-4)
        free_energy = metadynamics.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole)
        assert np.isfinite(free_energy).all() and free_energy.min() < -1.0

    def test_with_a_bias_of_ours(self, file):
        bias = OPES(barrier=30 * unit.kilojoules_per_mole, pace=5, sigma=0.2)
        force = GeomGNNCV(file, PDB.topology)
        system = make_system()
        handle = force.addToSystem(system, bias=bias)
        assert handle.forceGroup == 31 and handle.force.getForceGroup() == 31 and handle.last is None
        integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005)
        integrator.setRandomNumberSeed(1)
        context = make_context(system, integrator=integrator)
        state = handle.getState()
        for _ in range(4):
            integrator.step(5)
            s, energy = handle.value(context)
            positions = context.getState(getPositions=True).getPositions(asNumpy=True)
            np.testing.assert_allclose(s, force.compute(positions)[0], atol=1e-4)
            assert energy == pytest.approx(bias.bias(state, s)[0], rel=1e-12)
            assert handle.last[1] == energy and handle.getState() is state  # evaluations leave the state alone
            state = bias.update(state, s)
            handle.setState(state)
            deposited, _ = energy_and_forces(context, groups={31})
            assert deposited == pytest.approx(bias.bias(state, s)[0], rel=1e-9) and deposited > energy
        assert handle.error is None

    def test_two_components_with_two_walkers_of_one_cv(self, file):
        """Biases of one GeomGNNCV in several Systems do not share their states."""
        force = GeomGNNCV(file, PDB.topology)
        handles, contexts = [], []
        for _ in range(2):
            system = make_system()
            handles.append(force.addToSystem(system, BIAS))
            contexts.append(make_context(system))
        handles[1].setState(BIAS.update(handles[1].getState(), handles[1].value(contexts[1])[0]))
        assert handles[0].value(contexts[0])[1] < handles[1].value(contexts[1])[1]

    def test_without_a_bias_the_cv_is_watched(self, file):
        system = make_system()
        handle = GeomGNNCV(file, PDB.topology).addToSystem(system, forceGroup=3)
        context = make_context(system)
        s, energy = handle.value(context)
        assert energy == 0.0 and handle.forceGroup == 3
        np.testing.assert_allclose(s, value(file), atol=1e-4)
        assert not energy_and_forces(context)[1].any()

    def test_attributes(self, file):
        force = GeomGNNCV(file, PDB.topology)
        assert force.atoms.tolist() == [0, 4, 5, 6, 8, 10, 11, 12, 16, 18] and force.dimension == 2
        assert list(force.getParticles()) == force.atoms.tolist() and not force.usesPeriodicBoundaryConditions()

    def test_evaluation_is_what_compute_gives(self, file):
        """One code path for trajectories and simulations, whatever the engine."""
        force = GeomGNNCV(file, PDB.topology, precision="double")
        system = make_system()
        handle = force.addToSystem(system)
        context = make_context(system)
        frames = POSITIONS + 0.02 * np.random.default_rng(2).normal(size=(5, 22, 3))
        for frame, expected in zip(frames, force.compute(frames), strict=True):
            context.setPositions(frame)
            np.testing.assert_allclose(handle.value(context)[0], expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("component", [2, -1, 0.5, True])
    def test_components_that_do_not_exist_are_errors(self, file, component):
        with pytest.raises(GeomGNNError, match=f"has 2 components, numbered from 0; component {component} does not exist"):
            GeomGNNCV(file, PDB.topology, component)

    def test_system_of_another_size_is_an_error(self, file):
        system = make_system()
        system.addParticle(1.0)
        with pytest.raises(GeomGNNError, match="System has 23 particles and the topology 22 atoms"):
            GeomGNNCV(file, PDB.topology).addToSystem(system)

    def test_force_groups_run_out(self, file):
        system = make_system()
        force = GeomGNNCV(file, PDB.topology)
        groups = [force.addToSystem(system).forceGroup for _ in range(31)]
        assert groups == list(range(31, 0, -1))
        with pytest.raises(GeomGNNError, match="All force groups of the System are in use"):
            force.addToSystem(system)


class TestSerialisation:
    @pytest.fixture(scope="class")
    def large(self, tmp_path_factory):
        """A CV with the encoder that ships."""
        path = tmp_path_factory.mktemp("large") / "ala2.cv"
        random_cv(mdtraj.Topology.from_openmm(PDB.topology), Encoder.load("et-64"), scale=0.2).save(path)
        return path

    def biased(self, file):
        system = make_system()
        handle = GeomGNNCV(file, PDB.topology, engine="eager").addToSystem(system, BIAS)
        system.addForce(GeomGNNCV(file, PDB.topology, 1, engine="eager"))
        return system, handle

    def test_xml_and_copies_evaluate_the_same_without_the_network_in_them(self, large):
        system, handle = self.biased(large)
        expected, expected_forces = energy_and_forces(make_context(system))
        handle.setState(BIAS.update(handle.getState(), handle.last[0]))  # copies start anew
        xml = openmm.XmlSerializer.serialize(system)
        assert len(xml) < os.path.getsize(large) / 10
        for again in (openmm.XmlSerializer.deserialize(xml), copy.deepcopy(system)):
            energy, forces = energy_and_forces(make_context(again))
            assert energy == pytest.approx(expected, rel=1e-9)
            np.testing.assert_allclose(forces, expected_forces, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("change", ["anew", "missing"])
    def test_a_file_that_changed_is_noticed(self, file, tmp_path, change):
        """At the first evaluation: OpenMM would crash if reading XML failed."""
        path = tmp_path / "ala2.cv"
        path.write_bytes(file.read_bytes())
        xml = openmm.XmlSerializer.serialize(self.biased(path)[0])
        path.unlink()
        if change == "anew":
            random_cv(mdtraj.Topology.from_openmm(PDB.topology), random_encoder(seed=9)).save(path)
        context = make_context(openmm.XmlSerializer.deserialize(xml))
        message = {"anew": "not the file this force was made with", "missing": "no collective variable file"}[change]
        with pytest.raises(openmm.OpenMMException, match=message):
            context.getState(getEnergy=True)

    def test_a_cv_without_a_file_is_copied_whole(self, cv):
        system = make_system()
        system.addForce(GeomGNNCV(cv, PDB.topology, engine="eager"))
        expected = energy_and_forces(make_context(system))[0]
        assert energy_and_forces(make_context(copy.deepcopy(system)))[0] == pytest.approx(expected, rel=1e-9)


class TestFailures:
    def broken(self, file, damage):
        """A system biased with a CV that `damage` has been done to."""
        cv = CollectiveVariable.load(file)
        damage(cv)
        system = make_system()
        return system, GeomGNNCV(cv, PDB.topology, engine="eager").addToSystem(system, BIAS)

    def test_nan_in_the_network_stops_the_simulation(self, file):
        system, handle = self.broken(file, lambda cv: cv.encoder.network.embedding.weight[6].fill_(np.nan))
        integrator = openmm.VerletIntegrator(0.001)
        context = make_context(system, integrator=integrator)
        with pytest.raises(openmm.OpenMMException, match=r"network returned \[nan nan\] .* at step 0.*CV file"):
            integrator.step(1)
        assert isinstance(handle.error, GeomGNNError) and "network returned" in str(handle.error)
        assert handle.error.__traceback__ is not None and handle.last is None
        assert np.array(context.getState(getPositions=True).getPositions(asNumpy=True)) == pytest.approx(POSITIONS)

    def test_nan_in_the_projection_stops_the_simulation(self, file):
        system, handle = self.broken(file, lambda cv: cv.projection[0, 1].fill_(np.inf))
        with pytest.raises(openmm.OpenMMException, match="network returned"):
            make_context(system).getState(getEnergy=True)

    @pytest.mark.parametrize("box", [None, BOXES["triclinic"]], ids=["vacuum", "periodic"])
    def test_positions_that_are_not_finite_are_named(self, file, box):
        system = make_system(box=box)
        handle = GeomGNNCV(file, PDB.topology).addToSystem(system, BIAS)
        positions = POSITIONS.copy()
        positions[10, 1] = np.nan
        context = make_context(system, positions)
        with pytest.raises(openmm.OpenMMException, match="^atoms 10 have positions that are not finite at step 0"):
            context.getState(getForces=True, groups={handle.forceGroup})
        assert "smaller timestep" in str(handle.error)

    def test_bias_that_is_not_finite_stops_the_simulation(self, file):
        class Bias:
            def initial_state(self, dimension=None, n_walkers=1):
                return None

            def bias(self, state, s):
                return float("inf"), np.zeros(2)

        system = make_system()
        handle = GeomGNNCV(file, PDB.topology).addToSystem(system, Bias())
        with pytest.raises(openmm.OpenMMException, match="bias or its forces are not finite at step 0"):
            make_context(system).getState(getEnergy=True)
        assert isinstance(handle.error, GeomGNNError)

    def test_errors_of_a_bias_are_kept(self, file):
        class Bias:
            def initial_state(self, dimension=None, n_walkers=1):
                return None

            def bias(self, state, s):
                raise KeyError("from the bias")

        system = make_system()
        handle = GeomGNNCV(file, PDB.topology).addToSystem(system, Bias())
        with pytest.raises(openmm.OpenMMException, match="from the bias"):
            make_context(system).getState(getEnergy=True)
        assert isinstance(handle.error, KeyError)


class TestPeriodic:
    @pytest.mark.parametrize("kind", BOXES)
    def test_a_molecule_cut_by_the_box_is_the_same(self, file, kind):
        box = BOXES[kind]
        system = make_system(box=box)
        force = GeomGNNCV(file, PDB.topology, precision="double", engine="eager")
        handle = force.addToSystem(system, BIAS)
        handle.setState(BIAS.update(handle.getState(), force.compute(POSITIONS)[0] + 0.1))
        context = make_context(system)
        expected, expected_forces = energy_and_forces(context, groups={31})
        expected_s = handle.last[0]
        rng = np.random.default_rng(5)
        for corner in (np.zeros(3), box[0] / 2, box.sum(axis=0)):
            moved = POSITIONS - POSITIONS.mean(axis=0) + corner
            for positions in (moved, wrapped(moved, box), moved + rng.integers(-2, 3, size=(22, 3)) @ box):
                energy, forces = energy_and_forces(context, positions, groups={31})
                np.testing.assert_allclose(handle.last[0], expected_s, rtol=1e-9)
                assert energy == pytest.approx(expected, rel=1e-8)
                np.testing.assert_allclose(forces, expected_forces, atol=1e-7 * np.abs(expected_forces).max())

    def test_box_that_changes_during_a_run(self, file):
        """As under a barostat: the box of the Context counts, not that of the System."""
        system = make_system(box=BOXES["orthorhombic"])
        handle = GeomGNNCV(file, PDB.topology, precision="double").addToSystem(system)
        context = make_context(system)
        expected = handle.value(context)[0]
        context.setPeriodicBoxVectors(*BOXES["triclinic"])
        context.setPositions(wrapped(POSITIONS, BOXES["triclinic"]))
        np.testing.assert_allclose(handle.value(context)[0], expected, rtol=1e-9)

    def test_periodic_is_decided_by_the_topology_or_by_hand(self, file):
        topology = copy.deepcopy(PDB.topology)
        topology.setPeriodicBoxVectors(BOXES["orthorhombic"] * NM)
        assert GeomGNNCV(file, topology).usesPeriodicBoundaryConditions()
        assert not GeomGNNCV(file, topology, periodic=False).usesPeriodicBoundaryConditions()
        assert GeomGNNCV(file, PDB.topology, periodic=True).usesPeriodicBoundaryConditions()

    def test_in_a_custom_cv_force(self, file):
        topology = copy.deepcopy(PDB.topology)
        topology.setPeriodicBoxVectors(BOXES["triclinic"] * NM)
        force = openmm.CustomCVForce("q")
        force.addCollectiveVariable("q", GeomGNNCV(file, topology, precision="double", engine="eager"))
        system = make_system(box=BOXES["triclinic"])
        system.addForce(force)
        context = make_context(system, wrapped(POSITIONS - POSITIONS.mean(axis=0), BOXES["triclinic"]))
        expected = value(file, precision="double", engine="eager")[0]
        assert force.getCollectiveVariableValues(context)[0] == pytest.approx(expected, rel=1e-9)
        assert energy_and_forces(context)[0] == pytest.approx(expected, rel=1e-9)
