"""`GeomGNNCV` as a force of openmm-torch; skipped where it is not usable. `make test-openmm-torch` brings what it needs.

The same tests for both of its forces: the released wheels have `TorchForce`, its main branch `PythonTorchForce` as well.
"""

import copy
import re
import subprocess
import sys

import numpy as np
import openmm
import pytest
import torch
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
from molecules import BOXES, CUTOFF, TRANSFORMER, ala2, peptide, random_cv, random_encoder, wrapped
from openmm import unit

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.cv.mixers import MIXERS
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.backends import why_not
from openmm_geomgnn.sampling.opes.method import OPES

PLATFORMS = ("Reference", "CPU")
REASONS = {name: why_not(name) for name in ("TorchForce", "PythonTorchForce")}
if all(REASONS.values()):
    pytest.skip(REASONS["TorchForce"], allow_module_level=True)


@pytest.fixture(scope="module", params=[name for name, reason in REASONS.items() if reason is None])
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def make(backend, cv_file):
    """Makes a GeomGNNCV of the dipeptide with the backend."""

    def make(cv=cv_file, topology=PDB.topology, component=None, precision="double", engine="eager", **options):
        return GeomGNNCV(cv, topology, component, precision=precision, engine=engine, backend=backend, **options)

    return make


def reference(force, positions=POSITIONS, weights=None, bias=None, state=None):
    """Energy and forces of all particles, of one component or of a bias, by the eager network and autograd."""
    pos = torch.from_numpy(positions[force.atoms]).requires_grad_(True)
    s = force.bound(10 * pos.unsqueeze(0))[0]
    energy, slope = (float(s.detach() @ weights), weights) if bias is None else bias.bias(state, s.detach().numpy())
    forces = np.zeros(positions.shape)
    forces[force.atoms] = -torch.autograd.grad(s, pos, torch.as_tensor(slope))[0].numpy()
    return energy, forces


def agrees(found, expected, tolerance):
    assert found[0] == pytest.approx(expected[0], rel=tolerance, abs=tolerance)
    assert np.abs(expected[1]).max() > 1e-3
    assert np.abs(found[1] - expected[1]).max() < tolerance * np.abs(expected[1]).max()


class TestForces:
    @pytest.mark.parametrize("platform", PLATFORMS)
    @pytest.mark.parametrize("component", [0, 1])
    def test_of_a_component(self, make, backend, platform, component):
        force = make(component=component)
        assert isinstance(force, openmm.Force) and isinstance(force, GeomGNNCV) and force.backend == backend
        assert backend in [kind.__name__ for kind in type(force).__mro__] and not force.usesPeriodicBoundaryConditions()
        system = make_system()
        system.addForce(force)
        context = make_context(system, platform=platform)
        # the Reference platform keeps positions in double precision, the CPU platform in single
        tolerance = 1e-9 if platform == "Reference" else 1e-5
        for positions in (POSITIONS, POSITIONS + 0.02 * np.random.default_rng(1).normal(size=POSITIONS.shape)):
            found = energy_and_forces(context, positions)
            agrees(found, reference(force, positions, np.eye(2)[component]), tolerance)
        if platform == "Reference":
            check_forces(context, POSITIONS, force.atoms)

    @pytest.mark.parametrize("engine", ["eager", "numba"])
    def test_of_a_bias_on_all_components(self, make, engine):
        """TorchScript, or compiled kernels."""
        force, tolerance = make(engine=engine), {"eager": 1e-9, "numba": 1e-5}[engine]
        system = make_system()
        handle = force.addToSystem(system, BIAS)
        context = make_context(system)
        assert handle.last is None
        state = handle.getBiasState()
        for k in range(4):
            energy_and_forces(context)
            assert handle.getBiasState() is state  # evaluations leave it alone
            state = BIAS.update(state, force.compute(POSITIONS + 0.002 * np.random.default_rng(k).normal(size=(22, 3)))[0])
            handle.setBiasState(state)
            agrees(energy_and_forces(context), reference(force, bias=BIAS, state=state), tolerance)
        check_forces(context, POSITIONS, force.atoms)
        assert handle.error is None

    @pytest.mark.parametrize("mixer", sorted(set(MIXERS) - {"none"}))
    def test_of_every_mixer(self, make, mixer):
        self.check(make(random_cv(ala2().topology, mixer=mixer)))

    @pytest.mark.parametrize("window", ["all", "sequence"])
    @pytest.mark.parametrize("model", [TRANSFORMER, "visnet", "smooth-tensornet"])
    @pytest.mark.parametrize("settings", [{}, {"smooth_cutoff": False}], ids=["smooth", "published"])
    def test_of_every_network(self, make, model, window, settings):
        self.check(make(random_cv(ala2().topology, random_encoder(model, **settings), window=window)))

    def check(self, force):
        """Also with pairs beyond the cutoff and none beyond it."""
        system = make_system()
        system.addForce(force)
        context = make_context(system)
        for stretch in (0.6, 1.0, 2.0):
            assert stretch != 2.0 or np.ptp(2 * POSITIONS[force.atoms], axis=0).max() > 0.1 * CUTOFF
            found = energy_and_forces(context, stretch * POSITIONS)
            agrees(found, reference(force, stretch * POSITIONS, np.eye(2)[0]), 1e-6)

    def test_in_single_precision(self, make):
        force, exact = make(precision="single"), make()
        system = make_system()
        system.addForce(force)
        agrees(energy_and_forces(make_context(system)), reference(exact, weights=np.eye(2)[0]), 1e-4)


class TestPeriodicBoxes:
    @pytest.mark.parametrize("platform", PLATFORMS)
    @pytest.mark.parametrize("box", BOXES)
    def test_a_molecule_cut_by_the_box(self, make, box, platform):
        force = make(periodic=True)
        assert force.usesPeriodicBoundaryConditions()
        system = make_system(box=BOXES[box])
        system.addForce(force)
        context = make_context(system, platform=platform)
        context.setPeriodicBoxVectors(*BOXES[box])
        expected = reference(force, weights=np.eye(2)[0])
        for k in range(26):
            corner = np.random.default_rng(k).uniform(-1, 1, 3) @ BOXES[box]
            positions = wrapped(POSITIONS + corner, BOXES[box])
            found = energy_and_forces(context, positions)
            agrees(found, expected, 1e-7 if platform == "Reference" else 1e-4)

    def test_two_chains(self, make):
        """Their order along the bonds is deeper than one molecule's, and goes from one chain to the other."""
        topology = peptide([1, 2, 3, 4, 5], [6, 7, 8])
        rng = np.random.default_rng(3)
        positions = np.cumsum(rng.normal(size=(topology.n_atoms, 3)), axis=0) * 0.07
        force = make(random_cv(topology), topology, periodic=True)
        system = make_system(topology.to_openmm(), BOXES["triclinic"])
        system.addForce(force)
        context = make_context(system, positions)
        whole = force.bound.molecule.make_whole(positions[force.atoms], BOXES["triclinic"])
        filled = positions.copy()
        filled[force.atoms] = whole
        agrees(
            energy_and_forces(context, wrapped(positions, BOXES["triclinic"])),
            reference(force, filled, np.eye(2)[0]),
            1e-6,
        )


class TestUses:
    @pytest.mark.parametrize("platform", PLATFORMS)
    def test_in_a_custom_cv_force(self, make, platform):
        # of a published pair of versions that does not fit together, this is what crashed
        expected = make().compute(POSITIONS)[0]
        force = openmm.CustomCVForce("0.5*k*((q-q0)^2+(p-q0)^2)")
        force.addGlobalParameter("k", 50.0)
        force.addGlobalParameter("q0", 0.4)
        for component, name in enumerate("qp"):
            force.addCollectiveVariable(name, make(component=component))
        system = make_system()
        system.addForce(force)
        context = make_context(system, platform=platform)
        assert force.getCollectiveVariableValues(context) == pytest.approx(expected, rel=1e-5)
        found = energy_and_forces(context)
        assert found[0] == pytest.approx(25.0 * ((expected - 0.4) ** 2).sum(), rel=1e-4)
        _, forces = reference(make(), weights=50.0 * (expected - 0.4))
        assert np.abs(found[1] - forces).max() < 1e-4 * np.abs(forces).max()

    def test_in_metadynamics_of_openmm(self, make):
        start = make().compute(POSITIONS)[0, 0]
        metadynamics, found, positions = short_metadynamics(make(), start)
        assert found == pytest.approx(make().compute(positions)[0, 0], abs=1e-4)
        assert metadynamics.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole).min() < -1.0

    @pytest.mark.parametrize("platform", PLATFORMS)
    @pytest.mark.parametrize("engine", ["eager", "numba"])
    def test_kernels_deposited_during_a_run(self, make, platform, engine):
        """The running Context uses a new state of the bias from its next step on, and two Contexts have one each."""
        bias = OPES(barrier=30 * unit.kilojoules_per_mole, pace=5, sigma=0.2)
        force = make(engine=engine)
        runs = []
        for seed in (1, 2):
            system = make_system()
            handle = force.addToSystem(system, bias)
            integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005)
            integrator.setRandomNumberSeed(seed)
            context = make_context(system, integrator=integrator, platform=platform)
            context.setVelocitiesToTemperature(300, seed)
            runs.append((handle, integrator, context))
        for _ in range(4):
            for handle, integrator, context in runs:
                integrator.step(5)
                s, energy = handle.getValue(context)
                positions = context.getState(getPositions=True).getPositions(asNumpy=True).value_in_unit(NM)
                np.testing.assert_allclose(s, force.compute(positions)[0], rtol=1e-5, atol=1e-5)
                state = handle.getBiasState()
                assert energy == pytest.approx(bias.bias(state, s)[0], rel=1e-12) and handle.last[1] == energy
                state = bias.update(state, s)
                handle.setBiasState(state)
                assert energy_and_forces(context, groups={handle.forceGroup})[0] > energy
                integrator.step(2)  # away from the centre of the new kernel, where its force is 0
                positions = context.getState(getPositions=True).getPositions(asNumpy=True).value_in_unit(NM)
                found = energy_and_forces(context, groups={handle.forceGroup})
                agrees(found, reference(force, positions, bias=bias, state=state), 1e-4)
        (first, *_), (second, *_) = runs
        assert len(first.getBiasState().centres) and not np.allclose(first.last[0], second.last[0])
        assert first.error is None and second.error is None

    def test_without_a_bias_the_cv_is_watched(self, make):
        system = make_system()
        handle = make().addToSystem(system, forceGroup=3)
        context = make_context(system)
        s, energy = handle.getValue(context)
        assert energy == 0.0 and handle.forceGroup == 3
        np.testing.assert_allclose(s, make().compute(POSITIONS)[0], rtol=1e-9)
        assert not energy_and_forces(context)[1].any()


class TestSerialisation:
    def test_xml_and_copies_of_a_component(self, make):
        system = make_system()
        system.addForce(make(component=1))
        expected = energy_and_forces(make_context(system))
        for again in (openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system)), copy.deepcopy(system)):
            agrees(energy_and_forces(make_context(again)), expected, 1e-9)

    def test_xml_of_a_component_needs_nothing_of_ours(self, make, backend, tmp_path):
        if backend != "TorchForce":
            pytest.skip("this force calls Python")
        system = make_system()
        system.addForce(make())
        expected, _ = energy_and_forces(make_context(system))
        path = tmp_path / "system.xml"
        path.write_text(openmm.XmlSerializer.serialize(system))
        code = (
            "import sys, torch, openmm, openmmtorch\n"
            f"system = openmm.XmlSerializer.deserialize(open({str(path)!r}).read())\n"
            "platform = openmm.Platform.getPlatformByName('Reference')\n"
            "context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)\n"
            f"context.setPositions({POSITIONS.tolist()})\n"
            "print(repr(context.getState(getEnergy=True).getPotentialEnergy()._value))\n"
            "assert not any(name.startswith('openmm_geomgnn') for name in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("engine", ["eager", "numba"])
    def test_copies_of_a_biased_system(self, make, backend, engine):
        system = make_system()
        handle = make(engine=engine).addToSystem(system, BIAS)
        context = make_context(system)
        handle.setBiasState(BIAS.update(handle.getBiasState(), handle.getValue(context)[0]))
        energy, _ = energy_and_forces(context)
        again, _ = energy_and_forces(make_context(copy.deepcopy(system)))
        # a script refers to the bias in this process; what calls Python carries the bias along, in its initial state
        assert again == pytest.approx(energy if backend == "TorchForce" else -30.0, rel=1e-9) and energy > -29.0

    def test_a_bias_does_not_go_to_another_process(self, make, backend):
        if backend != "TorchForce":
            pytest.skip("this force carries the bias along")
        from openmm_geomgnn.force.backends import torch_force

        system = make_system()
        make().addToSystem(system, BIAS)
        context = make_context(system)
        known = dict(torch_force._EVALUATIONS)
        torch_force._EVALUATIONS.clear()  # as in another process
        try:
            with pytest.raises(openmm.OpenMMException, match="lives in the process in which it was added"):
                energy_and_forces(context)
        finally:
            torch_force._EVALUATIONS.update(known)


class TestFailures:
    def test_an_exception_of_the_bias_is_kept(self, make):
        class Broken(OPES):
            def bias(self, state, s):
                raise ZeroDivisionError("the bias is broken")

        system = make_system()
        handle = make().addToSystem(system, Broken(barrier=30, pace=10, sigma=0.3))
        with pytest.raises(openmm.OpenMMException, match="the bias is broken"):
            energy_and_forces(make_context(system))
        assert isinstance(handle.error, ZeroDivisionError) and handle.error.__traceback__ is not None

    def test_positions_that_are_not_finite(self, make):
        positions = POSITIONS.copy()
        positions[8, 1] = np.nan
        system = make_system()
        system.addForce(make())
        with pytest.raises(openmm.OpenMMException, match="the simulation blew up"):
            energy_and_forces(make_context(system), positions)

    def test_a_network_that_is_no_script(self, backend, make):
        """One whose values change from call to call, as an example of what is not what was traced."""
        if backend != "TorchForce":
            pytest.skip("this force calls the network as it is")
        from openmm_geomgnn.force.backends.torch_force import traced

        class Counting(torch.nn.Module):
            atoms, calls = np.arange(4), 0

            def __init__(self):
                super().__init__()
                self.register_buffer("one", torch.ones(()))

            def forward(self, pos):
                self.calls += 1
                return pos.sum(1) * self.one + self.calls

        with pytest.raises(GeomGNNError, match="as TorchScript is wrong by"):
            traced(Counting())


def test_values_are_those_of_a_file(make, cv_file):
    assert make().compute(POSITIONS)[0] == pytest.approx(value(cv_file, precision="double", engine="eager"), rel=1e-12)


@pytest.mark.parametrize("name", REASONS)
def test_is_made_or_refused(name, cv_file):
    """Where it cannot be used, asking for it says why, and so does a line in the summary of the tests."""
    if REASONS[name] is None:
        force = GeomGNNCV(cv_file, PDB.topology, backend=name)
        assert force.backend == name and name in [kind.__name__ for kind in type(force).__mro__]
        return
    with pytest.raises(GeomGNNError, match=re.escape(REASONS[name])):
        GeomGNNCV(cv_file, PDB.topology, backend=name)
    pytest.skip(f"{name}: {REASONS[name]}")
