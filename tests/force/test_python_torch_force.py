"""What is particular to openmm-torch's `PythonTorchForce`, tensors; what it has in common is in test_openmm_torch.py.

The callback is called with tensors as openmm-torch makes them, so most of this needs no openmm-torch, and a GPU's share of
it is evaluated on the CPU in its place. No released wheel of openmm-torch has `PythonTorchForce` yet.
"""

import pickle

import numpy as np
import openmm
import pytest
import torch
from force_systems import BIAS, NM, PDB, POSITIONS, GivenBias, energy_and_forces, make_context, make_system
from graph_stand_in import as_on_a_gpu
from molecules import BOXES, ala2, peptide, random_cv, wrapped

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.backends import why_not
from openmm_geomgnn.force.backends.periodic_torch import IMAGES, ancestors, lattice_shifts
from openmm_geomgnn.force.backends.python_torch_force import Callback
from openmm_geomgnn.representation.periodic import MoleculeUnwrapper

REASON = why_not("PythonTorchForce")
PLATFORMS = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # failures save frames


class OnTheDevice(Callback):
    """Takes tensors on the CPU for tensors on the GPU that the CV is on."""

    def _stays(self, pos):
        return self.evaluation.bound is not None and self.evaluation.bound.takes_tensors


def make_callback(cv_file, bias=BIAS, box=None, kind=Callback):
    """A callback with a bias on the dipeptide, and a State without anything in it but the box."""
    system = make_system(box=box)
    handle = GeomGNNCV(cv_file, PDB.topology, precision="double", engine="eager").addToSystem(system, bias)
    context = make_context(system)
    if box is not None:
        context.setPeriodicBoxVectors(*box)
    evaluation = handle._evaluation
    if kind is OnTheDevice:
        as_on_a_gpu(evaluation.bound)
    if bias is BIAS:
        s = handle.getValue(context)[0] if box is None else evaluation.bound.compute(POSITIONS)[0]
        handle.setBiasState(BIAS.update(handle.getBiasState(), s + 0.1))
    return kind(evaluation), context.getState(), handle


def tensor(positions, dtype=torch.float64):
    """As openmm-torch gives them."""
    return torch.tensor(np.asarray(positions), dtype=dtype, requires_grad=True)


class TestCallback:
    @pytest.mark.parametrize("kind", [Callback, OnTheDevice])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_energy_and_forces(self, cv_file, kind, dtype):
        callback, state, handle = make_callback(cv_file, kind=kind)
        atoms = handle._evaluation.bound.atoms
        for shift in (0.0, 0.02, 0.04):
            positions = POSITIONS[atoms] + shift * np.random.default_rng(1).normal(size=(len(atoms), 3))
            pos = tensor(positions, dtype)
            energy, forces = callback(state, pos)
            s, expected = handle.last[0], GeomGNNCV(cv_file, PDB.topology, precision="double", engine="eager")
            at = torch.tensor(10 * positions, requires_grad=True)
            s = expected.bound.single(at)
            expected_energy, slope = BIAS.bias(handle.getBiasState(), s.detach().numpy())
            (gradient,) = torch.autograd.grad(s, at, torch.from_numpy(slope))
            tolerance = 1e-9 if dtype is torch.float64 else 1e-4
            assert isinstance(energy, torch.Tensor) and energy.shape == () and energy.dtype == torch.float64
            assert energy.item() == pytest.approx(expected_energy, rel=tolerance)
            assert forces.shape == pos.shape and forces.dtype == torch.float64
            assert forces.is_contiguous() and not forces.requires_grad
            assert np.abs(forces.numpy() + 10 * gradient.numpy()).max() < tolerance * np.abs(10 * gradient.numpy()).max()
            assert handle.last[1] == energy.item() and pos.grad is None
            np.testing.assert_allclose(handle.last[0], s.detach().numpy(), rtol=tolerance)

    @pytest.mark.parametrize("box", BOXES)
    def test_a_molecule_cut_by_the_box(self, cv_file, box):
        box = BOXES[box]
        found = []
        for kind in (Callback, OnTheDevice):
            callback, state, handle = make_callback(cv_file, box=box, kind=kind)
            atoms, rows = handle._evaluation.bound.atoms, []
            for k in range(26):
                corner = np.random.default_rng(k).uniform(-1, 1, 3) @ box
                energy, forces = callback(state, tensor(wrapped(POSITIONS[atoms] + corner, box)))
                rows.append(np.r_[energy.item(), forces.numpy().ravel()])
            assert np.abs(np.diff(rows, axis=0)).max() < 1e-8 * np.abs(rows).max()
            found.append(rows[0])
        np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-9 * np.abs(found[0]).max())
        assert np.abs(found[0]).max() > 1.0

    def test_on_the_device_nothing_else_is_asked(self, cv_file, monkeypatch):
        callback, state, handle = make_callback(cv_file, kind=OnTheDevice)
        expected = callback.evaluation(POSITIONS[handle._evaluation.bound.atoms], None, 0)[0]
        monkeypatch.setattr(type(callback.evaluation), "__call__", lambda *arguments: pytest.fail("evaluated from the host"))
        energy, _ = callback(state, tensor(POSITIONS[handle._evaluation.bound.atoms]))
        assert energy.item() == pytest.approx(expected, rel=1e-9)

    def test_without_a_slope_there_are_no_forces(self, cv_file):
        callback, state, handle = make_callback(cv_file, GivenBias(energy=2.5), kind=OnTheDevice)
        energy, forces = callback(state, tensor(POSITIONS[handle._evaluation.bound.atoms]))
        assert energy.item() == 2.5 and forces.shape == (10, 3) and not forces.any()

    def test_is_pickled_without_its_network(self, cv_file):
        callback, state, handle = make_callback(cv_file)
        pos = tensor(POSITIONS[handle._evaluation.bound.atoms])
        callback(state, pos)
        pickled = pickle.dumps(callback)
        assert len(pickled) < 20_000
        again = pickle.loads(pickled)
        assert again.evaluation.bound is None  # until its first evaluation
        energy, forces = again(state, pos)
        assert energy.item() == pytest.approx(-30.0) and forces.shape == pos.shape  # the bias in its initial state


class TestFailures:
    @pytest.mark.parametrize("kind", [Callback, OnTheDevice])
    def test_are_those_of_every_force(self, cv_file, kind, tmp_path):
        positions = POSITIONS[GeomGNNCV(cv_file, PDB.topology).atoms]
        broken = positions.copy()
        broken[3, 1] = np.nan
        for bias, pos, message in (
            (GivenBias(), broken, "not finite at step 0"),
            (GivenBias(energy=np.inf), positions, "not finite at step 0"),
            (GivenBias(slope=np.nan), positions, "not finite at step 0"),
            (GivenBias(slope=1e308), positions, "not finite at step 0"),
            (GivenBias(error=ZeroDivisionError("no such bias")), positions, "no such bias"),
        ):
            callback, state, handle = make_callback(cv_file, bias, kind=kind)
            with pytest.raises(GeomGNNError, match=message):
                callback(state, tensor(pos))
            assert handle.error is not None and handle.error.__traceback__ is not None and handle.last is None
        assert isinstance(handle.error, ZeroDivisionError)
        assert list(tmp_path.glob("geomgnn-failure-step-0.pdb"))

    def test_the_last_good_frame_is_that_of_the_device(self, cv_file, tmp_path):
        callback, state, handle = make_callback(cv_file, kind=OnTheDevice)
        good = POSITIONS[handle._evaluation.bound.atoms]
        pos = tensor(good)
        callback(state, pos)
        with torch.no_grad():
            pos[2, 0] = np.nan  # the same memory, as of OpenMM
        with pytest.raises(GeomGNNError, match="not finite"):
            callback(state, pos)
        saved = np.load(tmp_path / "geomgnn-failure-step-0.npz")
        np.testing.assert_array_equal(saved["last_good"], good)
        assert np.isnan(saved["failing"][2, 0])

    def test_goes_on_where_the_device_fails_for_once(self, cv_file, monkeypatch):
        """The evaluation from the host is one of its own: if it succeeds there was no failure."""
        callback, state, handle = make_callback(cv_file, kind=OnTheDevice)
        pos = tensor(POSITIONS[handle._evaluation.bound.atoms])
        expected, _ = callback(state, pos)
        bound, attempts = handle._evaluation.bound, []
        evaluate = bound.value_and_vjp

        def failing_once(pos):
            attempts.append(type(pos))
            if len(attempts) == 1:
                raise RuntimeError("CUDA error: out of memory")
            return evaluate(pos)

        monkeypatch.setattr(bound, "value_and_vjp", failing_once, raising=False)
        with pytest.warns(RuntimeWarning, match="an error on the GPU .RuntimeError: CUDA error: out of memory"):
            energy, _ = callback(state, pos)
        assert energy.item() == pytest.approx(expected.item()) and attempts == [torch.Tensor, np.ndarray]
        assert handle.error is None


class TestWholeMolecules:
    @pytest.mark.parametrize("box", BOXES)
    def test_as_those_of_the_host(self, box):
        """Two chains and a selection with gaps, anywhere in a box that cuts them."""
        topology, box = peptide([1, 2, 3, 4, 5], [6, 7, 8]), BOXES[box]
        atoms = np.setdiff1d(np.arange(topology.n_atoms), [7, 8])
        maker = MoleculeUnwrapper(topology, atoms)
        rows, images = torch.as_tensor(ancestors(maker)), torch.tensor(IMAGES, dtype=torch.float64)
        assert len(rows) < 8  # the depth of the molecule is halved in every round
        rng = np.random.default_rng(0)
        positions = 0.07 * np.cumsum(rng.normal(size=(len(atoms), 3)), axis=0)
        for corner in rng.uniform(-2, 2, (26, 3)) @ box:
            pos = wrapped(positions + corner, box)
            found = torch.tensor(pos) + lattice_shifts(torch.tensor(pos), torch.tensor(box), rows, images)
            np.testing.assert_allclose(found.numpy(), maker(pos, box), atol=1e-12)

    def test_of_one_atom(self):
        maker = MoleculeUnwrapper(peptide([1]), np.array([2]))
        pos = torch.tensor([[5.0, -7.0, 1.0]], dtype=torch.float64)
        rows = torch.as_tensor(ancestors(maker))
        shifts = lattice_shifts(pos, torch.eye(3, dtype=torch.float64), rows, torch.tensor(IMAGES, dtype=torch.float64))
        assert not shifts.any()


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
class TestForce:
    @pytest.mark.parametrize("platform", ["Reference", "CPU"])
    def test_is_that_of_python_force(self, cv_file, platform):
        found = []
        for backend in ("PythonForce", "PythonTorchForce"):
            force = GeomGNNCV(cv_file, PDB.topology, backend=backend)
            assert force.backend == backend
            system = make_system()
            handle = force.addToSystem(system, BIAS)
            context = make_context(system, platform=platform)
            handle.setBiasState(BIAS.update(handle.getBiasState(), handle.getValue(context)[0] + 0.1))
            found.append(energy_and_forces(context))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-9) and np.abs(found[0][1]).max() > 1.0
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=0, atol=1e-6 * np.abs(found[0][1]).max())

    def test_as_on_a_gpu(self, cv_file):
        """Forces go to their atoms, in the System's order, whoever evaluates them."""
        found = []
        for replayed in (False, True):
            force = GeomGNNCV(cv_file, PDB.topology, precision="double", engine="eager", backend="PythonTorchForce")
            if replayed:
                as_on_a_gpu(force.bound)
            system = make_system()
            system.addForce(force)
            found.append(energy_and_forces(make_context(system)))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=0, atol=1e-9 * np.abs(found[0][1]).max())

    def test_the_saved_frame_and_the_exception(self, cv_file, tmp_path):
        system = make_system()
        handle = GeomGNNCV(cv_file, PDB.topology, backend="PythonTorchForce").addToSystem(system, BIAS)
        context = make_context(system)
        handle.getValue(context)
        positions = POSITIONS.copy()
        positions[8, 1] = np.nan
        with pytest.raises(openmm.OpenMMException, match="not finite at step 0"):
            energy_and_forces(context, positions)
        assert isinstance(handle.error, GeomGNNError) and (tmp_path / "geomgnn-failure-step-0.pdb").is_file()

    @gpu
    @pytest.mark.skipif("CUDA" not in PLATFORMS, reason="this OpenMM has no CUDA platform")
    @pytest.mark.parametrize("precision", ["single", "mixed", "double"])
    def test_a_thousand_steps_on_a_gpu(self, cv_file, precision):
        """The positions that it sees are those of the step: OpenMM and PyTorch have CUDA contexts of their own, and copies
        in one do not wait for the other by themselves."""
        force = GeomGNNCV(cv_file, PDB.topology, device="cuda", backend="PythonTorchForce")
        expected = GeomGNNCV(cv_file, PDB.topology, engine="eager")
        system, bonds = make_system(), openmm.HarmonicBondForce()
        for i, j in PDB.topology.bonds():
            bonds.addBond(i.index, j.index, float(np.linalg.norm(POSITIONS[i.index] - POSITIONS[j.index])), 1e5)
        system.addForce(bonds)
        handle = force.addToSystem(system, BIAS)
        integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.0005)
        integrator.setRandomNumberSeed(1)
        context = make_context(system, integrator=integrator, platform="CUDA", Precision=precision)
        for _ in range(100):
            integrator.step(10)
            s, energy = handle.getValue(context)
            state = context.getState(getPositions=True, getEnergy=True, groups={handle.forceGroup})
            positions = state.getPositions(asNumpy=True).value_in_unit(NM)
            np.testing.assert_allclose(s, expected.compute(positions)[0], atol=1e-3)
            assert state.getPotentialEnergy()._value == pytest.approx(energy, rel=1e-4, abs=1e-4)
        assert handle.error is None

    @gpu
    @pytest.mark.skipif("CUDA" not in PLATFORMS, reason="this OpenMM has no CUDA platform")
    def test_many_atoms_on_a_gpu(self):
        """OpenMM reorders atoms there; the forces are those of `PythonForce` on the Reference platform."""
        cv, found = random_cv(ala2().topology), []
        for backend, platform, device in (("PythonForce", "Reference", "cpu"), ("PythonTorchForce", "CUDA", "cuda")):
            system = make_system()
            handle = GeomGNNCV(cv, PDB.topology, device=device, backend=backend).addToSystem(system, BIAS)
            context = make_context(system, platform=platform)
            handle.setBiasState(BIAS.update(handle.getBiasState(), handle.getValue(context)[0] + 0.1))
            found.append(energy_and_forces(context))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
        np.testing.assert_allclose(found[1][1], found[0][1], rtol=0, atol=1e-3 * np.abs(found[0][1]).max())
