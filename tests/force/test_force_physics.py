"""Forces through OpenMM are the gradient of the energy: every encoder with every mixer under every bias, and the rest of
what a conservative force between atoms owes. Random networks, float64, the Reference platform."""

import copy
import functools

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from biases import deposit
from force_systems import PDB, POSITIONS, check_forces, energy_and_forces, make_context, make_system
from mixer_cases import small
from molecules import CUTOFF, TRANSFORMER, random_cv, random_encoder, rotation
from openmm import app, unit
from openmm.app.metadynamics import BiasVariable, Metadynamics

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.cv.mixers import MIXERS
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.opes.method import OPES
from torchmdnet_ext import registration
from torchmdnet_ext.compiled import compiled_class

pytestmark = pytest.mark.slow

TOPOLOGY = mdtraj.Topology.from_openmm(PDB.topology)
# every network that is registered, and the ways a network can differ in what it computes
ENCODERS = {
    **{model: {"model": model} for model in registration.MODELS},
    "visnet, lmax 2": {"model": "visnet", "lmax": 2},
    "visnet, vertex": {"model": "visnet", "lmax": 2, "vertex": True},
}


class Case:
    """A CV of three components and random weights, each of which varies by about 1.

    By turns the molecule is one graph or in windows, and the mixer sees mirror images as different or not.
    """

    def __init__(self, encoder, mixer):
        turn = list(ENCODERS).index(encoder) + list(MIXERS).index(mixer)
        settings = small(mixer, chirality=turn // 2 % 2 == 1)
        if "merged" in settings:
            settings["merged"] = 2  # of three
        window = ("sequence", "all")[turn % 2]
        encoder = random_encoder(**ENCODERS[encoder])
        self.cv = random_cv(TOPOLOGY, encoder, 3, mixer, mixer_settings=settings, window=window)
        frames = POSITIONS + 0.01 * np.random.default_rng(8).normal(size=(8, *POSITIONS.shape))
        self.cv.projection /= torch.from_numpy(self.force().compute(frames).std(axis=0))

    def force(self, component=None, engine="eager", precision="double"):
        return GeomGNNCV(self.cv, PDB.topology, component, precision=precision, engine=engine)

    @functools.cached_property
    def watched(self):
        """A force of the CV as it is, for what it says of it."""
        return self.force()

    @functools.cached_property
    def here(self):
        """The value (3,) at POSITIONS."""
        return self.watched.compute(POSITIONS)[0]

    @functools.cached_property
    def first_component(self):
        """A force of the CV with its first component only."""
        one = copy.copy(self.cv)
        one._buffers = {name: tensor[..., :1] if name != "mean" else tensor for name, tensor in self.cv._buffers.items()}
        return GeomGNNCV(one, PDB.topology, precision="double", engine="eager")


case = functools.cache(Case)


def context_of(force):
    system = make_system()
    system.addForce(force)
    return make_context(system)


def component(case):
    return context_of(case.force(1))


def harmonic(case):
    force = openmm.CustomCVForce("10*((a-a0)^2 + (a-a0)*(b-b0) + (b-b0)^2)")
    for name, k in zip("ab", (0, 2), strict=True):
        force.addCollectiveVariable(name, case.force(k))
        force.addGlobalParameter(f"{name}0", case.here[k] + 0.3)
    return context_of(force)


def metadynamics(case, n_variables=1):
    """openmm.app.Metadynamics with Gaussians around here, at frames that are put in its way."""
    system = make_system()
    variables = [BiasVariable(case.force(k), case.here[k] - 2, case.here[k] + 2, 0.3) for k in range(n_variables)]
    sampler = Metadynamics(system, variables, 300 * unit.kelvin, 5.0, 2.0 * unit.kilojoule_per_mole, 1)
    integrator = openmm.VerletIntegrator(0.001)
    integrator.setIntegrationForceGroups(0)  # no group: nothing moves
    simulation = app.Simulation(PDB.topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    for k in range(2):
        simulation.context.setPositions(POSITIONS + 0.002 * np.random.default_rng(k).normal(size=POSITIONS.shape))
        sampler.step(simulation, 1)
    return simulation.context


def opes(case, one=False, **settings):
    """OPES with kernels around here."""
    force, here = (case.first_component, case.here[:1]) if one else (case.watched, case.here)
    bias = OPES(barrier=30, pace=10, sigma=0.4, **settings)
    system = make_system()
    handle = force.addToSystem(system, bias)
    handle.setBiasState(deposit(bias, here + 0.3 * np.random.default_rng(6).normal(size=(5, len(here))), len(here)))
    return make_context(system)


BIASES = {
    "component": component,
    "harmonic": harmonic,
    "metadynamics": metadynamics,
    "OPES, one component": functools.partial(opes, one=True),
    "OPES, three components": opes,
    "OPES, explore": functools.partial(opes, explore=True),
}
# what else a bias can be set up as
MORE_BIASES = {
    "metadynamics, two components": functools.partial(metadynamics, n_variables=2),
    "OPES, flat target": functools.partial(opes, biasfactor=np.inf),
    "OPES, periodic": functools.partial(opes, periods=[(-1.5, 1.5), None, None], kernel_cutoff=3.6),
}
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)
every_mixer = pytest.mark.parametrize("mixer", MIXERS)


@every_encoder
@every_mixer
@pytest.mark.parametrize("bias", BIASES)
def test_forces_are_the_gradient(encoder, mixer, bias):
    one = case(encoder, mixer)
    check_forces(BIASES[bias](one), POSITIONS, one.watched.atoms, n_directions=1, axes_of=())


@pytest.mark.parametrize("bias", MORE_BIASES)
def test_forces_of_other_biases_are_the_gradient(bias):
    one = case(TRANSFORMER, "mlp")
    check_forces(MORE_BIASES[bias](one), POSITIONS, one.watched.atoms)


@every_encoder
@every_mixer
def test_no_net_force_and_no_torque(encoder, mixer):
    context = opes(case(encoder, mixer))
    energy, forces = energy_and_forces(context)
    scale = np.abs(forces).sum()
    assert np.abs(forces.sum(axis=0)).max() < 1e-12 * scale
    assert np.abs(np.cross(POSITIONS - POSITIONS.mean(axis=0), forces).sum(axis=0)).max() < 1e-12 * scale
    turn = rotation(3)
    moved, turned = energy_and_forces(context, POSITIONS @ turn.T + [1.0, -2.0, 0.5])
    assert moved == pytest.approx(energy, rel=1e-9)
    np.testing.assert_allclose(turned, forces @ turn.T, rtol=0, atol=1e-9 * np.abs(forces).max())


@every_encoder
@every_mixer
def test_a_simulation_evaluates_what_compute_gives_for_many_frames(encoder, mixer):
    one = case(encoder, mixer)
    system = make_system()
    handle = one.watched.addToSystem(system)
    context = make_context(system)
    frames = POSITIONS + 0.02 * np.random.default_rng(2).normal(size=(3, *POSITIONS.shape))
    for frame, expected in zip(frames, one.watched.compute(frames), strict=True):
        context.setPositions(frame)
        np.testing.assert_allclose(handle.getValue(context)[0], expected, rtol=1e-10, atol=1e-10)
    assert np.ptp(one.watched.compute(frames), axis=0).min() > 0.1


@every_encoder
def test_energy_and_forces_are_continuous_when_a_pair_crosses_the_cutoff(encoder):
    context = component(case(encoder, "mlp"))
    a, b = 0, 18  # the heavy atoms at the two ends
    axis = (POSITIONS[b] - POSITIONS[a]) / np.linalg.norm(POSITIONS[b] - POSITIONS[a])
    found = []
    for step in (-1.5, -0.5, 0.5):
        positions = POSITIONS.copy()
        positions[b] = POSITIONS[a] + (0.1 * CUTOFF + 1e-7 * step) * axis
        found.append(energy_and_forces(context, positions))
    (e0, f0), (e1, f1), (e2, f2) = found
    assert abs(e2 - 2 * e1 + e0) < 1e-9 * abs(e1) and np.abs(f2 - 2 * f1 + f0).max() < 1e-7 * np.abs(f1).max()


class TestEngines:
    @every_encoder
    @every_mixer
    def test_agree(self, encoder, mixer):
        pytest.importorskip("numba")
        one = case(encoder, mixer)
        network = one.cv.encoder.network
        compiled = compiled_class(network)
        if compiled is None or compiled.supports(network) is not None:
            with pytest.raises(GeomGNNError, match="numba engine cannot be used"):
                one.force(engine="numba")
            return
        _, expected = energy_and_forces(context_of(one.force(1)))
        for precision, tolerance in (("double", 1e-4), ("single", 1e-3)):
            _, forces = energy_and_forces(context_of(one.force(1, "numba", precision)))
            assert np.abs(forces - expected).max() < tolerance * np.abs(expected).max()

    @pytest.mark.parametrize("encoder", [TRANSFORMER, "visnet"])
    def test_compiled_forces_are_the_gradient_of_the_compiled_energy(self, encoder):
        pytest.importorskip("numba")
        one = case(encoder, "attention")
        check_forces(context_of(one.force(1, "numba")), POSITIONS, one.watched.atoms)
