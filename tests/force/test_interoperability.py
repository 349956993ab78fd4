"""`GeomGNNCV` next to what else OpenMM's users use: openmm.app, other CVs, reporters, openmm-ml, openmmtools."""

import copy

import mdtraj
import mdtraj.reporters
import numpy as np
import openmm
import pytest
import torch
from biases import deposit
from force_systems import NM, PDB, POSITIONS, check_forces, energy_and_forces, make_context
from molecules import SETTINGS, TRANSFORMER, ala2
from openmm import app, unit
from openmm.app.metadynamics import BiasVariable, Metadynamics

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.sampling import OPES
from openmm_geomgnn.sampling.systems import SystemSettings, build_system

pytestmark = pytest.mark.slow

KJ = unit.kilojoule_per_mole
BIAS = OPES(barrier=20, pace=10, temperature=300, sigma=0.2)
PHI = mdtraj.compute_phi(ala2())[0][0].tolist()


@pytest.fixture
def system():
    """Alanine dipeptide in implicit solvent."""
    return build_system(PDB.topology, SystemSettings(hydrogen_mass=None))


def gnn_cv(cv_file, component=None, **options):
    return GeomGNNCV(cv_file, PDB.topology, component, engine="eager", **options)


def make_simulation(system, positions, seed=1):
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.001)
    integrator.setRandomNumberSeed(seed)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(PDB.topology, system, integrator, platform)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300, seed)
    return simulation


def positions_of(context):
    return context.getState(getPositions=True).getPositions(asNumpy=True).value_in_unit(NM)


def link_atoms_placed(context):
    context.computeVirtualSites()
    return context


def phi_of(positions):
    return mdtraj.compute_dihedrals(mdtraj.Trajectory([positions], ala2().topology), [PHI])[0, 0]


class TestOpenMMApp:
    def test_metadynamics_pushes_the_cv_away(self, cv_file):
        """The same noise without and with Gaussians."""
        watched, spread, bias = gnn_cv(cv_file), [], []
        for height in (0.0, 20.0):
            system = build_system(PDB.topology, SystemSettings(hydrogen_mass=None))
            start = watched.compute(POSITIONS)[0, 0]
            variable = BiasVariable(gnn_cv(cv_file, 0), start - 3, start + 3, 0.1)
            metadynamics = Metadynamics(system, [variable], 300 * unit.kelvin, 20.0, height * KJ, 10)
            simulation = make_simulation(system, POSITIONS)
            values = []
            for _ in range(12):
                metadynamics.step(simulation, 10)
                values.append(metadynamics.getCollectiveVariables(simulation)[0])
            assert values[-1] == pytest.approx(watched.compute(positions_of(simulation.context))[0, 0], abs=1e-4)
            spread.append(np.ptp(values))
            bias.append(-metadynamics.getFreeEnergy().min().value_in_unit(KJ))
        assert bias[0] == 0 and bias[1] > 50
        assert spread[1] > 1.5 * spread[0]

    @pytest.mark.parametrize("components", [(0,), (0, 1)])
    def test_openmm_opes_biases_the_cv(self, cv_file, system, components):
        opes = pytest.importorskip("openmm_opes", reason="pip install openmm-opes")
        watched = gnn_cv(cv_file)
        forces = [gnn_cv(cv_file, k, precision="double") for k in components]
        starts = watched.compute(POSITIONS)[0][list(components)]
        variables = [BiasVariable(q, start - 3, start + 3, 0.2, False, 61) for q, start in zip(forces, starts, strict=True)]
        sampler = opes.OPES(system, variables, 300, barrier=20, frequency=10, varianceFrequency=None)
        simulation = make_simulation(system, POSITIONS)
        values, energies = [], []
        for _ in range(8):
            sampler.step(simulation, 10)
            values.append(sampler.getCollectiveVariables(simulation))
            energies.append(sampler.getBiasEnergy(simulation.context).value_in_unit(KJ))
            expected = watched.compute(positions_of(simulation.context))[0, list(components)]
            assert values[-1] == pytest.approx(expected, abs=1e-4)
        assert np.ptp(values, axis=0).min() > 0.01
        # -barrier where nothing was deposited, and near 0 where it just was
        bias = sampler.getBias().value_in_unit(KJ)
        assert min(energies) > -5 and bias.min() == pytest.approx(-20, abs=1e-6)
        check_forces(simulation.context, positions_of(simulation.context), watched.atoms, groups={31})

    def test_custom_cv_force_with_a_torsion(self, cv_file, system):
        expected = gnn_cv(cv_file, precision="double").compute(POSITIONS)[0, 1]
        force = openmm.CustomCVForce("5*(s - 0.3)^2 + 8*(1 - cos(phi - 1.0)) + s*sin(phi)")
        force.addCollectiveVariable("s", gnn_cv(cv_file, 1, precision="double"))
        torsion = openmm.CustomTorsionForce("theta")
        torsion.addTorsion(*PHI, [])
        force.addCollectiveVariable("phi", torsion)
        force.setForceGroup(7)
        system.addForce(force)
        context = make_context(system, POSITIONS)
        s, phi = force.getCollectiveVariableValues(context)
        assert s == pytest.approx(expected, rel=1e-6) and np.cos(phi) == pytest.approx(np.cos(phi_of(POSITIONS)), abs=1e-6)
        energy, _ = energy_and_forces(context, groups={7})
        assert energy == pytest.approx(5 * (s - 0.3) ** 2 + 8 * (1 - np.cos(phi - 1.0)) + s * np.sin(phi), rel=1e-9)
        check_forces(context, POSITIONS, gnn_cv(cv_file).atoms, groups={7})

    def test_a_workflow_of_app_simulation(self, cv_file, system, tmp_path):
        """Minimise, run with reporters, save and go on: with the bias, as if it had not been stopped."""
        force = gnn_cv(cv_file)
        handle = force.addToSystem(system, BIAS)
        shaken = POSITIONS + 0.01 * np.random.default_rng(1).normal(size=POSITIONS.shape)
        simulation = make_simulation(system, shaken)
        before, _ = energy_and_forces(simulation.context)
        simulation.minimizeEnergy(maxIterations=20)
        assert energy_and_forces(simulation.context)[0] < before - 10 and handle.getBiasState().n == 1
        log, trajectory = tmp_path / "log.csv", tmp_path / "frames.dcd"
        simulation.reporters += [
            app.StateDataReporter(str(log), 10, step=True, potentialEnergy=True, temperature=True),
            mdtraj.reporters.DCDReporter(str(trajectory), 10),
        ]
        values = []
        for _ in range(3):
            simulation.step(10)
            values.append(handle.getValue(simulation.context)[0])
            handle.setBiasState(BIAS.update(handle.getBiasState(), values[-1]))
        for reporter in simulation.reporters[1:]:
            reporter.close()
        rows = np.loadtxt(log, delimiter=",", skiprows=1)
        assert rows[:, 0].tolist() == [10, 20, 30] and np.isfinite(rows).all()
        written = force.compute(mdtraj.load(str(trajectory), top=ala2().topology))
        np.testing.assert_allclose(written, values, atol=1e-3)

        simulation.reporters.clear()
        simulation.saveCheckpoint(str(tmp_path / "run.chk"))
        simulation.saveState(str(tmp_path / "run.xml"))
        (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(simulation.system))
        np.savez(tmp_path / "bias.npz", **BIAS.to_arrays(handle.getBiasState()))
        simulation.step(10)
        expected = positions_of(simulation.context)

        plain = build_system(PDB.topology, SystemSettings(hydrogen_mass=None))
        handle = gnn_cv(cv_file).addToSystem(plain, BIAS)
        again = make_simulation(plain, POSITIONS, seed=2)
        again.loadCheckpoint(str(tmp_path / "run.chk"))
        with np.load(tmp_path / "bias.npz") as arrays:
            handle.setBiasState(BIAS.from_arrays(dict(arrays)))
        again.step(10)
        assert again.currentStep == 40
        np.testing.assert_allclose(positions_of(again.context), expected, rtol=0, atol=1e-12)

        # the System's own XML has the bias in its initial state
        fresh = openmm.XmlSerializer.deserialize((tmp_path / "system.xml").read_text())
        simulation = make_simulation(fresh, POSITIONS)
        simulation.loadState(str(tmp_path / "run.xml"))
        assert simulation.currentStep == 30
        energy, forces = energy_and_forces(simulation.context, groups={handle.forceGroup})
        assert energy == pytest.approx(-BIAS.barrier) and not forces.any()
        np.testing.assert_allclose(force.compute(positions_of(simulation.context))[0], values[-1], atol=1e-4)


class TestOpenMMML:
    """openmm-ml's `MLPotential` on TorchMD-Net's ASE calculator, with a small network of random weights: no downloads."""

    SETTINGS = {
        **SETTINGS,
        "model": TRANSFORMER,
        "output_model": "Scalar",
        "max_num_neighbors": 64,
        "precision": 32,
        "atom_filter": -1,
        "derivative": False,
        "prior_model": None,
        "reduce_op": "add",
    }

    @pytest.fixture
    def calculator(self, tmp_path):
        pytest.importorskip("openmmml")
        from torchmdnet.calculators import TMDNETCalculator
        from torchmdnet.models.model import create_model

        torch.manual_seed(3)
        state = {f"model.{name}": tensor for name, tensor in create_model(self.SETTINGS).state_dict().items()}
        torch.save({"hyper_parameters": self.SETTINGS, "state_dict": state}, tmp_path / "potential.ckpt")
        return TMDNETCalculator(str(tmp_path / "potential.ckpt"))

    def check(self, system, topology, cv_file):
        """The potential and the bias add up, and the sum is conserved."""
        force = GeomGNNCV(cv_file, topology, engine="eager")
        positions = np.zeros((topology.getNumAtoms(), 3))  # openmm-ml puts link atoms behind the molecule
        positions[: len(POSITIONS)] = POSITIONS
        alone, _ = energy_and_forces(link_atoms_placed(make_context(copy.deepcopy(system), positions)))
        handle = force.addToSystem(system, BIAS)
        here = force.compute(positions)[0]
        handle.setBiasState(deposit(BIAS, [here + 0.1, here - 0.2]))
        integrator = openmm.VerletIntegrator(0.0002)
        context = link_atoms_placed(make_context(system, positions, integrator))
        bias, forces = energy_and_forces(context, groups={handle.forceGroup})
        assert bias == pytest.approx(BIAS.bias(handle.getBiasState(), here)[0], rel=1e-4) and np.abs(forces).max() > 1
        assert energy_and_forces(context)[0] == pytest.approx(alone + bias, rel=1e-6)
        totals, potentials = [], []
        for _ in range(10):
            integrator.step(10)
            state = context.getState(getEnergy=True)
            potentials.append(state.getPotentialEnergy().value_in_unit(KJ))
            totals.append(potentials[-1] + state.getKineticEnergy().value_in_unit(KJ))
        assert np.ptp(potentials) > 1 and np.ptp(totals) < 0.02 * np.ptp(potentials)

    def test_next_to_a_potential_of_the_whole_system(self, calculator, cv_file):
        from openmmml import MLPotential

        system = MLPotential("ase").createSystem(PDB.topology, calculator=calculator, info={"charge": 0})
        self.check(system, PDB.topology, cv_file)

    def test_in_a_mixed_system(self, calculator, cv_file):
        """The alanine by the network, its caps by the force field: openmm-ml adds hydrogens where it cuts the bonds."""
        from openmmml import MLPotential

        system = build_system(PDB.topology, SystemSettings("amber14-all.xml", hydrogen_mass=None))
        atoms = [atom.index for atom in PDB.topology.atoms() if atom.residue.name == "ALA"]
        mixed = MLPotential("ase").createMixedSystem(
            PDB.topology, system, atoms, returnInfo=True, calculator=calculator, info={"charge": 0}
        )
        assert mixed["system"].getNumParticles() == 24 and mixed["oldToNew"] == list(range(22))
        self.check(mixed["system"], mixed["topology"], cv_file)


class TestOpenMMTools:
    @pytest.fixture
    def tools(self):
        tools = pytest.importorskip("openmmtools")
        pytest.importorskip("openmmtools.multistate")  # and with it the other modules
        return tools

    @pytest.fixture
    def contexts(self, tools):
        return tools.cache.ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))

    @pytest.fixture
    def umbrella(self, cv_file, system):
        """Harmonic in the first component, about a global parameter."""
        force = openmm.CustomCVForce("0.5*k*(s - s0)^2")
        force.addCollectiveVariable("s", gnn_cv(cv_file, 0))
        force.addGlobalParameter("k", 200.0)
        force.addGlobalParameter("s0", 0.0)
        system.addForce(force)
        return system

    def test_a_move_of_langevin_dynamics(self, tools, contexts, cv_file, umbrella):
        watched = gnn_cv(cv_file)
        start = watched.compute(POSITIONS)[0, 0]
        for index, value in enumerate((1000.0, start + 0.6)):
            umbrella.getForce(umbrella.getNumForces() - 1).setGlobalParameterDefaultValue(index, value)
        state = tools.states.ThermodynamicState(umbrella, 300 * unit.kelvin)
        move = tools.mcmc.LangevinDynamicsMove(
            1 * unit.femtosecond, 20 / unit.picosecond, n_steps=100, context_cache=contexts
        )
        sampler = tools.mcmc.MCMCSampler(state, tools.states.SamplerState(POSITIONS * NM), move)
        sampler.run(3)
        end = watched.compute(sampler.sampler_state.positions.value_in_unit(NM))[0, 0]
        assert end - start > 0.3

    def test_replica_exchange_of_umbrella_windows(self, tools, contexts, cv_file, umbrella, tmp_path):
        from umbrella_windows import Window

        watched = gnn_cv(cv_file)
        start = watched.compute(POSITIONS)[0, 0]
        centres = start + np.array([-0.2, 0.0, 0.2])
        base = tools.states.ThermodynamicState(umbrella, 300 * unit.kelvin)
        states = [tools.states.CompoundThermodynamicState(copy.deepcopy(base), [Window(s0=float(s0))]) for s0 in centres]
        assert all(state.is_state_compatible(states[0]) for state in states)
        move = tools.mcmc.LangevinDynamicsMove(1 * unit.femtosecond, 5 / unit.picosecond, n_steps=10)
        sampler = tools.multistate.ReplicaExchangeSampler(mcmc_moves=move, number_of_iterations=3)
        sampler.energy_context_cache = sampler.sampler_context_cache = contexts
        reporter = tools.multistate.MultiStateReporter(str(tmp_path / "windows.nc"), checkpoint_interval=1)
        sampler.create(states, tools.states.SamplerState(POSITIONS * NM), reporter)
        sampler.run()
        energies, _, _ = reporter.read_energies(3)
        values = [watched.compute(state.positions.value_in_unit(NM))[0, 0] for state in sampler.sampler_states]
        # in kT: replicas see the other windows' springs
        expected = 100.0 * (np.array(values)[:, None] - centres) ** 2 / BIAS.kT
        np.testing.assert_allclose(energies - energies[:, :1], expected - expected[:, :1], atol=1e-2)
        assert np.abs(expected - expected[:, :1]).max() > 0.5
        reporter.close()

        again = tools.multistate.ReplicaExchangeSampler.from_storage(reporter)
        again.energy_context_cache = again.sampler_context_cache = contexts
        again.extend(1)
        assert again.iteration == 4
        reporter.close()
