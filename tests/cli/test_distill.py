"""`geomgnn distill`: a CV fitted to short simulations of alanine dipeptide, its student, and the student in simulations."""

import copy
import json
import re
import warnings
from types import SimpleNamespace

import mdtraj
import numpy as np
import openmm
import pytest
import yaml
from force_systems import BIAS, PDB, POSITIONS, check_forces, energy_and_forces, make_context, make_system
from molecules import ALA2, ala2, random_cv
from openmm import app

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.cli import distill as command
from openmm_geomgnn.cli import estimates
from openmm_geomgnn.cli import run as workflow
from openmm_geomgnn.cli.check import check_run
from openmm_geomgnn.cli.report import cv_summary
from openmm_geomgnn.cli.settings.yaml_files import distill_settings, load_distill, load_fit, load_protocol
from openmm_geomgnn.cv.distillation import DistillSettings, _frames_in_a_lag, _split, distill
from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.students.cv import StudentCV
from openmm_geomgnn.errors import GeomGNNError

pytestmark = pytest.mark.slow

BASINS = [ALA2, ALA2.parent / "ala2-c7ax.pdb"]
INTERVAL = 0.1  # ps between frames
SMALL = {"hidden": 48, "labels": 1600, "epochs": 25, "batch_size": 32, "learning_rate": 1e-2}


def simulated(path, frames=300):
    """Frames of alanine dipeptide in vacuum at 300 K, from one of its basins."""
    pdb = app.PDBFile(str(path))
    force_field = app.ForceField("amber14-all.xml")
    system = force_field.createSystem(pdb.topology, constraints=app.HBonds, hydrogenMass=3.0)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 2.0, 0.004)
    integrator.setRandomNumberSeed(4)
    context = make_context(system, pdb.positions, integrator)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=100)
    context.setVelocitiesToTemperature(300.0, 5)
    integrator.step(500)
    xyz = []
    for _ in range(frames):
        integrator.step(round(INTERVAL / 0.004))
        xyz.append(context.getState(getPositions=True).getPositions(asNumpy=True)._value)
    return mdtraj.Trajectory(np.array(xyz), ala2().topology, time=INTERVAL * np.arange(frames))


@pytest.fixture(scope="module")
def trajectories():
    return [simulated(path) for path in BASINS]


@pytest.fixture(scope="module")
def teacher(trajectories):
    return fit_cv(trajectories, ALA2, FitSettings(1.0, INTERVAL, pca=15, n_components=2))


@pytest.fixture(scope="module")
def student(teacher, trajectories):
    return distill(teacher, ALA2, trajectories, DistillSettings(**SMALL))


@pytest.fixture(scope="module")
def files(teacher, student, trajectories, tmp_path_factory):
    """A folder with teacher.cv.safetensors, student.cv.safetensors, 0.xtc and 1.xtc."""
    folder = tmp_path_factory.mktemp("distill")
    teacher.save(folder / "teacher.cv.safetensors")
    student.save(folder / "student.cv.safetensors")
    for k, trajectory in enumerate(trajectories):
        trajectory.save_xtc(str(folder / f"{k}.xtc"))
    return folder


class TestStudent:
    def test_reproduces_values_and_gradients(self, student):
        """Of frames that were held out; less of these frames displaced and turned about bonds."""
        found = student.training_information["distillation"]
        assert min(found["held_out"]["r2"]) > 0.97 and found["held_out"]["r2"][0] > 0.995
        assert found["held_out"]["gradient_error"][0] < 0.5 and found["turned"]["turning_error"][0] < 0.4
        assert found["displaced"]["r2"][0] > 0.98 and found["turned"]["r2"][0] > 0.9
        assert found["training"] > 1500 and found["frames"] == [300, 300] and 1 <= found["best_epoch"] <= 25

    def test_the_errors_are_true(self, teacher, student, trajectories):
        """On new frames, computed without the functions that reported them."""
        xyz = np.concatenate([simulated(path, 30).xyz[10:] for path in BASINS])
        bound = [cv.bind(ALA2, "double", "eager") for cv in (teacher, student)]
        values = [cv.compute(xyz) for cv in bound]
        r2 = 1 - np.square(values[0] - values[1]).mean(0) / values[0].var(0)
        assert r2[0] > 0.99
        pos = bound[0].molecule.positions(xyz[::4]).numpy()
        slopes = [np.array([cv.value_and_vjp(frame)[1](np.array([1.0, 0.0])) for frame in pos]) for cv in bound]
        error = np.sqrt(np.square(slopes[0] - slopes[1]).sum() / np.square(slopes[0]).sum())
        assert error < 0.5
        reported = student.training_information["distillation"]["held_out"]["gradient_error"][0]
        assert 0.5 < error / reported < 2.0

    def test_what_the_file_says_of_it(self, teacher, student):
        facts = student.training_information
        assert facts["teacher"]["content_hash"] == teacher.content_hash() and facts["teacher"]["encoder"] == "et-64"
        for name in ("vamp2_training", "timescales_ps", "in_basin_spread"):
            assert facts[name] == teacher.training_information[name]
        # as stiff as its teacher, and over the same range
        np.testing.assert_allclose(facts["rate_300K_per_ps"], facts["teacher"]["rate_300K_per_ps"], rtol=0.3)
        np.testing.assert_allclose(facts["range"], teacher.training_information["range"], atol=0.3)
        assert student.lagtime == teacher.lagtime and student.molecule == teacher.molecule
        # a report gives its own figures as those of the CV, and its teacher's by that name
        summary, before = cv_summary(student), cv_summary(teacher)
        assert summary["cv_r2_of_teacher"] == facts["distillation"]["held_out"]["r2"]
        assert summary["cv_gradient_error"] == facts["distillation"]["held_out"]["gradient_error"]
        assert summary["cv_turning_error"] == facts["distillation"]["turned"]["turning_error"]
        assert summary["teacher_vamp2"] == before["cv_vamp2"]
        assert summary["teacher_timescales_ps"] == before["cv_timescales_ps"]
        assert "cv_vamp2" not in summary and summary["cv_rate_300K_per_ps"] != before["cv_rate_300K_per_ps"]
        json.dumps(facts)

    def test_the_same_seed_makes_the_same_student(self, teacher, trajectories):
        short = DistillSettings(hidden=8, labels=200, epochs=2)
        found = [distill(teacher, ALA2, trajectories, short).content_hash() for _ in range(2)]
        assert found[0] == found[1]

    @pytest.mark.parametrize(("lengths", "gap"), [([300, 300], 10), ([300, 40, 25], 10), ([60] * 12, 50), ([30, 30], 0)])
    def test_frames_that_errors_are_reported_on_are_a_lag_away_from_others(self, lengths, gap):
        parts = [np.stack([np.full(n, k), np.arange(n)], axis=1)[:, None] for k, n in enumerate(lengths)]
        split = [part[:, 0] for part in _split(parts, gap, seed=3)]
        assert len(np.concatenate(split)) == len(np.unique(np.concatenate(split), axis=0)) <= sum(lengths)
        for k, part in enumerate(split):
            others = np.concatenate(split[:k] + split[k + 1 :])
            same = part[:, None, 0] == others[None, :, 0]
            assert np.abs(part[:, None, 1] - others[None, :, 1])[same].min(initial=10**6) > gap
        assert all(abs(len(part) - sum(lengths) / 10) < 30 for part in split[1:]) and len(split[0]) > 0.4 * sum(lengths)

    def test_a_lag_in_frames(self, trajectories):
        """By the frames' times; a format without any claims 1 ps, where those of the teacher's own frames count."""
        teacher = SimpleNamespace(lagtime=5.0, training_information={"frame_interval_ps": 0.2})
        claimed = mdtraj.Trajectory(trajectories[0].xyz, trajectories[0].topology)  # as a DCD is read
        for parts, frames in (([trajectories[0]], 50), ([claimed], 25), ([trajectories[0], claimed], 50)):
            assert _frames_in_a_lag(teacher, parts) == frames
        assert _frames_in_a_lag(SimpleNamespace(lagtime=5.0, training_information={}), [claimed]) == 5
        assert _frames_in_a_lag(SimpleNamespace(lagtime=float("nan"), training_information={}), [claimed]) == 0

    def test_windows_of_residues(self, teacher, trajectories):
        """The student sees the distances that the teacher's windows hold, and no others."""
        cv = random_cv(ala2().topology, window="sequence", context=0, mixer="mlp")
        student = distill(cv, ALA2, trajectories, DistillSettings(hidden=8, labels=100, epochs=1))
        atoms = np.array(student.atoms, dtype=object)
        pairs = student.coordinates.distances.numpy()
        assert len(pairs) == 3 + 10 + 1 and all(atoms[a][0] == atoms[b][0] for a, b in pairs)

    def test_what_is_refused(self, teacher, student, trajectories):
        with pytest.raises(GeomGNNError, match="is a student already"):
            distill(student, ALA2, trajectories)
        with pytest.raises(GeomGNNError, match="There are 20 frames in all, too few .*at least 50"):
            distill(teacher, ALA2, [trajectories[0][:20]])
        other = copy.deepcopy(teacher)
        other.molecule[1][1] = "SER"
        with pytest.raises(GeomGNNError, match="residue 2 of the selection was SER"):
            distill(other, ALA2, trajectories)


class TestInSimulations:
    def test_forces(self, files):
        """A component as an OpenMM force, and a bias on all components: the force is the derivative of the energy."""
        cv = GeomGNNCV(files / "student.cv.safetensors", PDB.topology, component=1)
        system = make_system()
        system.addForce(cv)
        context = make_context(system)
        expected = cv.compute(POSITIONS[None])[0]
        assert energy_and_forces(context)[0] == pytest.approx(expected[1], rel=1e-9) and cv.bound.dimension == 2
        check_forces(context, POSITIONS, cv.atoms)
        system = make_system()
        handle = GeomGNNCV(files / "student.cv.safetensors", PDB.topology).addToSystem(system, bias=BIAS)
        context = make_context(system)
        np.testing.assert_allclose(handle.getValue(context)[0], expected, rtol=1e-9)
        state = BIAS.update(handle.getBiasState(), expected + 0.1)
        handle.setBiasState(state)
        check_forces(context, POSITIONS, cv.atoms)

    def test_a_loaded_student_and_copies_of_its_force(self, files):
        student = CollectiveVariable.load(files / "student.cv.safetensors")
        assert isinstance(student, StudentCV)
        forces = [GeomGNNCV(student, PDB.topology), GeomGNNCV(files / "student.cv.safetensors", PDB.topology)]
        energies = []
        for force in (*forces, openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(forces[1]))):
            system = make_system()
            system.addForce(force)
            energies.append(energy_and_forces(make_context(system))[0])
        assert energies == [energies[0]] * 3

    def test_a_run_uses_a_given_file(self, files, tmp_path, monkeypatch, capsys):
        """No unbiased runs, no fit; the student, copied, is the CV of the run."""
        protocol = {
            "output": str(tmp_path / "run"),
            "system": {
                "structures": [str(path) for path in BASINS],
                "forcefield": ["amber14-all.xml"],
                "platform": "Reference",
            },
            "cv": {"file": str(files / "student.cv.safetensors"), "components": 2},
            "unbiased": {"equilibration": "0.2 ps", "comparison_length": "1 ps"},
            "bias": {"pace": "0.12 ps"},
            "run": {"length": "1.2 ps", "walkers": 1, "colvar_interval": "0.06 ps", "frame_interval": "0.12 ps"},
        }
        path = tmp_path / "given.yaml"
        path.write_text(yaml.safe_dump(protocol))
        run = tmp_path / "run"
        monkeypatch.setattr(estimates, "_MEASURED", 0.01)
        check_run(load_protocol(path))
        said = capsys.readouterr().out
        assert not run.exists() and "as in student.cv.safetensors, engine" in said and "training data" not in said
        assert re.search(r"time +about \S+ s from the beginning, with 1 walker on .*: biased run \S+ s, comparison", said)
        summary = workflow.run_protocol(load_protocol(path))
        assert (run / "cv.safetensors").read_bytes() == (files / "student.cv.safetensors").read_bytes()
        assert summary["biased_ns"] == pytest.approx(0.0012) and not (run / "unbiased").exists()
        assert len(summary["teacher_in_basin_spread"]) == 2
        for settings, message in [
            ({"cv.components": 1}, "has 2 components, but cv.components is 1: set cv.components to 2"),
            ({"cv.lag": "2 ps"}, "file says what the CV is, so lag would change nothing"),
            ({"cv.file": "none.safetensors"}, "There is no CV file 'none.safetensors' in"),
        ]:
            with pytest.raises(GeomGNNError, match=message):
                workflow.run_protocol(load_protocol(path, {"output": str(tmp_path / "other"), **settings}))

    def test_a_cv_without_figures_cannot_be_run(self, tmp_path):
        random_cv(ala2().topology, dimension=1).save(tmp_path / "bare.safetensors")
        path = tmp_path / "bare.yaml"
        path.write_text("system: {structures: [ala2-c7eq.pdb, ala2-c7ax.pdb]}\ncv: {file: bare.safetensors}\n")
        with pytest.raises(GeomGNNError, match="bare.safetensors does not say the rate_300K_per_ps and in_basin_spread"):
            workflow.run_protocol(load_protocol(path, {"output": str(tmp_path / "run")}))


class TestCommand:
    def test_on_the_command_line(self, geomgnn, files, tmp_path):
        inputs = [files / "teacher.cv.safetensors", ALA2, files / "0.xtc", files / "1.xtc"]
        small = ["--hidden", 32, "--labels", 800, "--stride", 2, "--set", "epochs=10", "--set", "batch_size=32"]
        code, output, error = geomgnn("distill", *inputs, "-o", "small.cv.safetensors", *small)
        assert code == 0 and error == "", error
        student = CollectiveVariable.load(tmp_path / "small.cv.safetensors")
        found = student.training_information["distillation"]
        assert student.network.first.out_features == 32 and found["frames"] == [150, 150] and found["epochs"] <= 10
        assert found["cost_ms"]["student"] < found["cost_ms"]["eager"]
        lines = output.splitlines()
        header = next(k for k, line in enumerate(lines) if line.split()[:3] == ["component", "R2", "RMSE"])
        row = lines[header + 1].split()
        assert lines[header + 1].startswith("frames held out") and row[3] == "cv.1" and row[-1] == row[-3] == "%"
        assert float(row[-2]) == pytest.approx(100 * found["held_out"]["turning_error"][0], rel=1e-2)
        assert float(row[4]) == pytest.approx(found["held_out"]["r2"][0], abs=1e-5)
        assert lines[header + 2].split()[0] == "cv.2"
        for part in ("times cheaper", "in plain PyTorch", "stiffness", "|s| stays below", "written to"):
            assert part in output
        assert ("The student is poor on" in output) == (min(found["held_out"]["r2"] + found["turned"]["r2"]) < 0.98)

    def test_a_poor_student_is_not_praised(self, student):
        facts = copy.deepcopy(student.training_information["distillation"])
        facts["held_out"]["r2"] = [0.99, 0.5]
        with pytest.warns(UserWarning, match="poor on frames held out: R2 is 0.500, below 0.98.*still exact.*more labels"):
            command._warn(facts)
        good = {"r2": [0.999], "gradient_error": [0.1]}
        with pytest.warns(UserWarning, match="gradient is off by 70 % of the teacher's"):
            command._warn({"held_out": {**good, "gradient_error": [0.7]}, "displaced": good})
        with pytest.warns(UserWarning, match="gradient is off by 40 % along turns about bonds"):
            command._warn({"held_out": good, "displaced": good, "turned": {**good, "turning_error": [0.4]}})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            command._warn({"held_out": good, "displaced": good, "turned": good})

    def test_the_example(self, files, repository, monkeypatch, tmp_path):
        """protocols/distill-ala2.yaml, on fewer frames, labels and epochs."""
        folder = tmp_path / "runs/ala2-opes/unbiased"
        folder.mkdir(parents=True)
        CollectiveVariable.load(files / "teacher.cv.safetensors").save(folder.parent / "cv.safetensors")
        for k in range(2):
            mdtraj.load(str(files / f"{k}.xtc"), top=str(ALA2)).save_dcd(str(folder / f"trajectory.{k}.dcd"))
        example = tmp_path / "protocols/distill-ala2.yaml"
        example.parent.mkdir()
        example.write_text((repository / "protocols/distill-ala2.yaml").read_text())
        monkeypatch.chdir(tmp_path)
        settings = load_distill(example)
        assert settings.displacement == pytest.approx(0.005) and len(settings.trajectories) == 2
        # what it spells out are the defaults
        spelt = {"cv", "topology", "trajectories", "output"}
        minimal = {name: [str(path) for path in value] if name == "trajectories" else str(value)
                   for name in spelt - {"output"} for value in [getattr(settings, name)]}  # fmt: skip
        (tmp_path / "minimal.yaml").write_text(yaml.safe_dump(minimal))
        assert load_distill(tmp_path / "minimal.yaml").model_dump(exclude=spelt) == settings.model_dump(exclude=spelt)
        with pytest.warns(UserWarning, match="The student is poor"):  # after so little training
            student = command.run_distill(load_distill(example, {"labels": 300, "epochs": 2, "hidden": 16}))
        written = CollectiveVariable.load(tmp_path / "ala2-student.cv.safetensors")
        assert written.content_hash() == student.content_hash()

    def test_wrong_settings_are_refused(self, files, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        teacher, good = str(files / "teacher.cv.safetensors"), [str(ALA2), str(files / "0.xtc")]
        for inputs, options, message in [
            ([teacher, *good], {}, "file for the student is missing: give it, as in `geomgnn distill"),
            (["no.safetensors", *good], {"output": "a.safetensors"}, "There is no CV file 'no.safetensors'.*geomgnn fit"),
            ([teacher, *good[:1]], {"output": "a.safetensors"}, "trajectories must be a list of 1 or more|trajectories is"),
            ([teacher, *good], {"output": teacher}, "the teacher itself. Give the student a file of its own"),
            ([teacher, *good], {"output": "a.safetensors", "labels": "few"}, "labels is 'few', but must be a whole number"),
        ]:
            with pytest.raises(GeomGNNError, match=message):
                distill_settings(inputs, options)
        path = tmp_path / "fit.yaml"
        path.write_text(f"topology: {ALA2}\ntrajectories: [{files / '0.xtc'}]\ncv: {{file: {teacher}}}\n")
        with pytest.raises(GeomGNNError, match="file is a CV that exists, but a fit makes one"):
            load_fit(path)
