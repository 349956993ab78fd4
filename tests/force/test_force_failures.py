"""`GeomGNNCV` when something fails: what stops, what the user is told, and what is left to look at."""

import mdtraj
import numpy as np
import openmm
import pytest
from force_systems import BIAS, PDB, POSITIONS, GivenBias, in_water, make_context, make_system
from molecules import ALA2, BOXES, wrapped
from openmm import app
from phi_runs import Spring

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.failures import save_frames
from openmm_geomgnn.sampling.runner import Runner
from openmm_geomgnn.sampling.systems import SystemSettings
from openmm_geomgnn.sampling.unbiased import run_unbiased
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

ATOMS = [0, 4, 5, 6, 8, 10, 11, 12, 16, 18]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def failure(context, groups=-1):
    """The message with which OpenMM stops."""
    with pytest.raises(openmm.OpenMMException) as caught:
        context.getState(getForces=True, groups=groups)
    return str(caught.value)


def biased(cv_file, bias=BIAS, box=None, **options):
    """A Context without anything but a bias, and its handle."""
    system = make_system(box=box)
    handle = GeomGNNCV(cv_file, PDB.topology, engine="eager", **options).addToSystem(system, bias)
    return make_context(system), handle


def damaged(cv_file, damage, **options):
    """As `biased`, with a CV that `damage` has been done to."""
    cv = CollectiveVariable.load(cv_file)
    damage(cv)
    return biased(cv, **options)


class TestWhatStops:
    def test_nan_in_the_network(self, cv_file):
        system = make_system()
        cv = CollectiveVariable.load(cv_file)
        cv.encoder.network.embedding.weight[6].fill_(np.nan)
        handle = GeomGNNCV(cv, PDB.topology, engine="eager").addToSystem(system, BIAS)
        integrator = openmm.VerletIntegrator(0.001)
        context = make_context(system, integrator=integrator)
        with pytest.raises(openmm.OpenMMException, match=r"network returned \[nan nan\] .* at step 0.*CV file"):
            integrator.step(1)
        assert isinstance(handle.error, GeomGNNError) and "network returned" in str(handle.error)
        assert handle.error.__traceback__ is not None and handle.last is None
        assert np.array(context.getState(getPositions=True).getPositions(asNumpy=True)) == pytest.approx(POSITIONS)

    def test_nan_in_the_projection(self, cv_file):
        context, _ = damaged(cv_file, lambda cv: cv.projection[0, 1].fill_(np.inf))
        assert "network returned" in failure(context)

    def test_atoms_on_top_of_one_another_are_named(self, cv_file):
        context, _ = damaged(cv_file, lambda cv: cv.projection.fill_(np.nan))
        positions = POSITIONS.copy()
        positions[12] = positions[5] + [0.0, 0.0, 0.004]
        context.setPositions(positions)
        assert "the nearest two are atoms 5 (ACE1-O), 12 (ALA2-CB), 0.004 nm apart" in failure(context)

    @pytest.mark.parametrize("box", [None, BOXES["triclinic"]], ids=["vacuum", "periodic"])
    def test_positions(self, cv_file, box):
        context, handle = biased(cv_file, box=box)
        for bad, named in (([10], "atom 10 (ALA2-C)"), ([4, 16], "atoms 4 (ACE1-C), 16 (NME3-N)")):
            positions = POSITIONS.copy()
            positions[bad, 1] = np.nan
            context.setPositions(positions)
            message = failure(context, groups={handle.forceGroup})
            assert message.startswith(f"The positions of {named} are not finite at step 0")
        assert "smaller timestep" in str(handle.error)

    @pytest.mark.parametrize("wrong", [{"energy": np.inf}, {"slope": np.nan}], ids=str)
    def test_bias(self, cv_file, wrong):
        context, handle = biased(cv_file, GivenBias(**wrong))
        assert "The bias is not finite at step 0: at s = [" in failure(context) and isinstance(handle.error, GeomGNNError)

    def test_forces(self, cv_file):
        """A bias so steep that its forces are no numbers."""
        context, _ = biased(cv_file, GivenBias(slope=1e308))
        message = failure(context)
        assert message.startswith("The forces of the bias on atoms 0 (") and "are not finite at step 0 (s = [" in message

    def test_box(self, cv_file):
        evaluation = GeomGNNCV(cv_file, PDB.topology, periodic=True, engine="eager")._evaluation
        with pytest.raises(GeomGNNError, match="box vectors are not finite at step 7"):
            evaluation(POSITIONS[ATOMS], np.full((3, 3), np.nan), 7)

    def test_goes_on_when_positions_are_good_again(self, cv_file):
        context, handle = biased(cv_file)
        positions = POSITIONS.copy()
        positions[10] = np.inf
        context.setPositions(positions)
        failure(context)
        with pytest.raises(openmm.OpenMMException, match="positions of atom 10 .* are not finite at step 0"):
            handle.getValue(context)
        context.setPositions(POSITIONS)
        assert np.isfinite(handle.getValue(context)[0]).all()


class TestErrorsOfOthers:
    def test_are_kept_and_told_with_their_traceback(self, cv_file):
        context, handle = biased(cv_file, GivenBias(error=KeyError("from the bias")))
        message = failure(context)
        assert message.startswith("KeyError: 'from the bias'. This came from the network or the bias at step 0. ")
        assert "Traceback (most recent call last):" in message and "raise self.error" in message
        assert message.endswith("KeyError: 'from the bias'")
        assert isinstance(handle.error, KeyError) and handle.error.__traceback__ is not None

    def test_chain_to_what_caused_them(self, cv_file):
        handle = GeomGNNCV(cv_file, PDB.topology, engine="eager").addToSystem(
            make_system(), GivenBias(error=ZeroDivisionError("no"))
        )
        with pytest.raises(GeomGNNError) as caught:
            handle._evaluation(POSITIONS[ATOMS], None, 0)
        assert caught.value.__cause__ is handle.error and type(handle.error) is ZeroDivisionError

    def test_in_a_custom_cv_force_the_message_has_the_traceback(self, cv_file, monkeypatch):
        """The force there is a copy, so there is nobody else to ask."""

        def stumble(bound, pos):
            raise RuntimeError(f"stumbled over {len(bound.atoms)} atoms")

        force = openmm.CustomCVForce("q")
        force.addCollectiveVariable("q", GeomGNNCV(cv_file, PDB.topology, engine="eager"))
        system = make_system()
        system.addForce(force)
        context = make_context(system)
        monkeypatch.setattr("openmm_geomgnn.cv.network.BoundCV.value_and_vjp", stumble)
        message = failure(context)
        assert "RuntimeError: stumbled over 10 atoms. This came from the network" in message
        assert "in stumble" in message and "geomgnn-failure-step-0.pdb" in message


class TestFrames:
    """The last good frame and the failing one are saved."""

    def fail_after_a_step(self, context, positions):
        context.getState(getForces=True)
        context.setStepCount(1234)
        context.setPositions(positions)
        return failure(context)

    def test_can_be_opened(self, cv_file, tmp_path):
        context, handle = biased(cv_file, failures=tmp_path / "new" / "folder")
        positions = POSITIONS + [0.0, 0.2, 0.0]
        positions[10, 1], positions[12] = np.nan, 1e9
        message = self.fail_after_a_step(context, positions)
        path = tmp_path / "new" / "folder" / "geomgnn-failure-step-1234.pdb"
        assert sorted(file.name for file in path.parent.iterdir()) == [path.with_suffix(".npz").name, path.name]
        assert f"The last good frame and failing frame are models 1 and 2 of {path}" in message
        assert message == str(handle.error)
        good, bad = mdtraj.load(str(path)).xyz
        np.testing.assert_allclose(good, POSITIONS[ATOMS], atol=1e-4)
        fine = [row for row, atom in enumerate(ATOMS) if atom not in (10, 12)]
        np.testing.assert_allclose(bad[fine], positions[ATOMS][fine], atol=1e-4)
        np.testing.assert_array_equal(bad[[5, 7]], good[[5, 7]])
        second = path.read_text().split("MODEL")[2]
        marked = [line.split()[2] for line in second.splitlines() if line[:4] == "ATOM" and float(line[60:66]) == 1]
        assert marked == ["C", "CB"]
        assert [atom.name for atom in app.PDBFile(str(path)).topology.atoms()][7] == "CB"
        with np.load(path.with_suffix(".npz")) as numbers:
            np.testing.assert_array_equal(numbers["failing"], positions[ATOMS])
            np.testing.assert_array_equal(numbers["last_good"], POSITIONS[ATOMS])
            assert numbers["atoms"].tolist() == ATOMS and numbers["step"] == 1234

    def test_are_whole_in_their_box(self, cv_file, tmp_path):
        box = BOXES["triclinic"]
        context, handle = biased(cv_file, box=box)
        cut = wrapped(POSITIONS - POSITIONS.mean(axis=0), box)
        context.setPositions(cut)
        context.getState(getForces=True)
        handle.setBiasState("no state of a bias")  # whatever fails after the positions were read
        message = failure(context)
        assert "Error: " in message and "The last good frame and failing frame are" in message
        path = tmp_path / "geomgnn-failure-step-0.pdb"
        trajectory = mdtraj.load(str(path))
        for frame in trajectory.xyz:
            np.testing.assert_allclose(frame - frame[0], (POSITIONS - POSITIONS[0])[ATOMS], atol=2e-4)
        np.testing.assert_allclose(trajectory.unitcell_vectors[0], box, atol=2e-3)
        with np.load(path.with_suffix(".npz")) as numbers:
            np.testing.assert_allclose(numbers["box"], box, atol=1e-12)
            assert len(numbers["s"]) == 2

    def test_of_the_first_evaluation(self, cv_file, tmp_path):
        context, _ = biased(cv_file, GivenBias(energy=np.nan))
        assert "The failing frame is the model of" in failure(context)
        np.testing.assert_allclose(mdtraj.load("geomgnn-failure-step-0.pdb").xyz[0], POSITIONS[ATOMS], atol=1e-4)
        with np.load("geomgnn-failure-step-0.npz") as numbers:
            assert np.isnan(numbers["energy"]) and "last_good" not in numbers

    def test_are_not_saved_where_nobody_wants_them(self, cv_file, tmp_path):
        context, _ = biased(cv_file, GivenBias(energy=np.nan), failures=None)
        assert failure(context).endswith("the state that it was given.")
        assert not list(tmp_path.iterdir())

    def test_that_cannot_be_saved_do_not_hide_the_error(self, cv_file, tmp_path):
        (tmp_path / "taken").write_text("a file")
        context, _ = biased(cv_file, GivenBias(energy=np.nan), failures=tmp_path / "taken")
        message = failure(context)
        assert message.startswith("The bias is not finite")
        assert f"The frames could not be saved in {tmp_path / 'taken'} (" in message

    def test_numbers_that_cannot_be_saved_do_not_either(self, tmp_path):
        topology = mdtraj.Topology.from_openmm(PDB.topology)
        said = save_frames(tmp_path, "x", topology, {"failing": POSITIONS[:3]})  # not all atoms
        assert said.startswith("The frames could not be saved") and not list(tmp_path.glob("*.pdb"))


class TestWalkers:
    """A walker knows the whole system, and its run has a folder."""

    @pytest.fixture
    def water(self, tmp_path):
        """Alanine dipeptide in water as a file, with the settings of its system."""
        _, topology, positions = in_water()
        path = tmp_path / "water.pdb"
        with path.open("w") as file:
            app.PDBFile.writeFile(topology, 10 * positions, file)
        settings = SystemSettings(("amber14-all.xml", "amber14/tip3p.xml"), nonbonded_cutoff=0.7, hydrogen_mass=None)
        return {"structure": path, "system": settings, "platform": "CPU", "seed": 1, "colvar_interval": 5}

    @pytest.mark.slow
    def test_save_all_atoms_next_to_those_of_the_cv(self, cv_file, water, tmp_path):
        spec = WalkerSpec(**water, cv_path=cv_file, engine="eager", minimise=False, timestep=0.0005)
        with pytest.raises(GeomGNNError, match="Walker 0 .* The bias is not finite at step 0") as caught:
            Runner([spec], Spring(stiffness=np.nan, pace=10), tmp_path / "run", 5.0).run()
        message, folder = str(caught.value), tmp_path / "run" / "failure.0"
        assert isinstance(caught.value.__cause__, GeomGNNError) and caught.value.__cause__.__traceback__ is not None
        for name, n_atoms in (
            ("geomgnn-failure-step-0.pdb", len(ATOMS)),
            ("system-step-0.pdb", in_water()[1].getNumAtoms()),
        ):
            assert str(folder / name) in message
            assert mdtraj.load(str(folder / name)).n_atoms == n_atoms
        assert "Of all atoms: the last good frame and failing frame are models 1 and 2" in message

    @pytest.mark.slow
    def test_without_a_cv(self, water, tmp_path):
        """Atoms are named that OpenMM does not name."""
        spec = WalkerSpec(**water, minimise=False, timestep=0.0099, frame_interval=10)
        with pytest.raises(GeomGNNError, match=r"Walker 0 .*The positions of atoms .*\(HOH.* are not finite") as caught:
            run_unbiased([spec], 50.0, tmp_path / "run")
        (path,) = (tmp_path / "run" / "failure.0").glob("system-step-*.pdb")
        good, bad = mdtraj.load(str(path))
        assert str(path) in str(caught.value) and np.abs(good.xyz - in_water()[2]).max() < 0.01
        with np.load(path.with_suffix(".npz")) as numbers:
            assert not np.isfinite(numbers["failing"]).all() and np.isfinite(numbers["last_good"]).all()

    def test_that_work_save_nothing(self, cv_file, tmp_path):
        settings = SystemSettings(("amber14-all.xml",))
        spec = WalkerSpec(ALA2, settings, cv_path=cv_file, engine="eager", platform="Reference", colvar_interval=5)
        Runner([spec], Spring(stiffness=1.0, pace=10), tmp_path / "run", 0.04).run()
        assert not list(tmp_path.rglob("*failure*"))
