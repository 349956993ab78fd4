"""What can be known of a run before anything runs: `geomgnn run --check`, and what a run itself checks first."""

import re
import shutil
import time

import numpy as np
import pytest
from molecules import ALA2
from openmm import app, unit
from protocol_texts import TINY

from openmm_geomgnn.cli import check, estimates, molecule, preflight
from openmm_geomgnn.cli import run as workflow
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling import runner, unbiased
from openmm_geomgnn.sampling.systems import load_structure
from openmm_geomgnn.sampling.walker import Walker

pytestmark = pytest.mark.filterwarnings("ignore:x.yaml")  # doubtful settings are meant here


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A protocol of alanine dipeptide with some settings replaced, in an empty folder in which the test works."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(TINY)

    def load(**changes):
        return load_protocol("x.yaml", {name.replace("__", "."): value for name, value in changes.items()})

    return load


@pytest.fixture(autouse=True)
def no_simulation(monkeypatch):
    """Fails the test when a walker's process, or a run, is started."""

    def start(*arguments, **options):
        raise AssertionError("a simulation was started")

    monkeypatch.setattr(runner, "WalkerPool", start)
    monkeypatch.setattr(unbiased, "WalkerPool", start)
    monkeypatch.setattr(estimates, "_MEASURED", 0.02)


def written(path, topology, positions):
    with path.open("w") as file:
        app.PDBFile.writeFile(topology, positions * unit.nanometer, file, keepIds=True)
    return str(path)


# --------------------------------------------------------------------------------------------------------------- said


class TestCheck:
    def test_what_it_says(self, load, tmp_path, capsys):
        check.check_run(load())
        assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]
        said = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
        said = {name: text.strip() for name, text in said.items()}
        assert said["structures"] == "ala2-c7eq.pdb, ala2-c7ax.pdb: 22 atoms, 3 residues (ACE ALA NME)"
        assert "51 degrees of freedom, platform Reference" in said["system"] and "not periodic" in said["system"]
        assert "10 atoms of 3 residues, one graph of 45 pairs, encoder et-64, engine " in said["CV"]
        assert said["training data"] == "2 runs of 150 frames, a lag of 10 frames"
        assert said["biased run"].startswith("2 walkers of 12 ps, a kernel each 0.6 ps, the bias every 3 steps")
        assert re.match(r"about [\d.]+ MB in .*runs/x, where [\d.]+ [GT]B are free", said["disk"])
        stages = r"unbiased runs [\d.]+ \w+, fit [\d.]+ \w+, biased run [\d.]+ \w+, comparison [\d.]+ \w+"
        assert re.match(rf"about [\d.]+ \w+ from the beginning, with 2 walkers on \d+ cores?: {stages}$", said["time"])

    @pytest.mark.slow
    def test_the_state_of_the_folder(self, load, tmp_path, monkeypatch):
        monkeypatch.setattr(check, "stage_seconds", lambda plan, announce: {"fit": 1.0})
        protocol = load()
        (tmp_path / "runs" / "x").mkdir(parents=True)
        (tmp_path / "runs" / "x" / "notes.txt").touch()
        with pytest.raises(GeomGNNError, match="is not empty and was not made by `geomgnn run`"):
            check.check_run(protocol)
        (tmp_path / "runs" / "x" / "notes.txt").unlink()
        workflow.settle(protocol)
        (tmp_path / "runs" / "x" / "unbiased").mkdir()
        (tmp_path / "runs" / "x" / "unbiased" / "trajectory.0.dcd").touch()
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        changed = load(system__temperature="310 K")
        with pytest.raises(GeomGNNError, match="holds the results of another protocol: system.temperature differ"):
            check.check_run(changed)
        check.check_run(changed, overwrite=True)
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        shutil.copy(ALA2, tmp_path / "runs" / "x" / "a.pdb")
        inside = load(system__structures=["runs/x/a.pdb"])
        with pytest.raises(GeomGNNError, match="--overwrite would move .*runs/x aside, but .*a.pdb"):
            check.check_run(inside, overwrite=True)

    def test_a_start_whose_first_steps_fail_has_no_estimate(self, load, monkeypatch, capsys):
        monkeypatch.setattr(estimates, "_MINIMISATION", 1)
        monkeypatch.setattr(preflight, "check_geometry", lambda *arguments: [])
        topology, positions = load_structure(ALA2)
        rng = np.random.default_rng(1)
        path = written(load().output.parent.parent / "a.pdb", topology, positions + 0.02 * rng.normal(size=positions.shape))
        check.check_run(
            load(
                system__structures=[path],
                system__constraints=None,
                system__timestep="5 fs",
                unbiased__length="60 ps",
                run__every=3,
            )
        )
        assert "time           not known, as the first steps failed: " in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- refused before anything


REFUSED = {
    "unbiased.length is 10 ps, too little for the fit at a lag time .cv.lag. of 2 ps: .* 16 ps would do": {
        "unbiased__length": "10 ps"
    },
    "'resname XYZ' matches none of the 22 atoms": {"cv__selection": "resname XYZ"},
    "cv.components is 300, but the mixer": {
        **{"cv__estimator": "vampnet", "cv__mixer": "mlp", "cv__pca": None, "cv__components": 300},
        **{"bias__sigma": 0.1, "cv__mixer_settings": {"readout": 200}},
    },
    "no CUDA device": {"run__engine": "cuda"},
    "no OpenMM platform 'HIP' here": {"system__platform": "HIP"},
    "This topology is not that of the trajectories": {"cv__window": "space", "cv__reference": "other.pdb"},
    "too short for 2 frames": {"run__frame_interval": 10},
    "The force field amber14/tip3p.xml does not recognise residue ACE 1": {"system__forcefield": "amber14/tip3p.xml"},
}


@pytest.mark.slow
@pytest.mark.parametrize("message", REFUSED)
def test_refused_before_anything_runs(message, load, tmp_path, shared_data):
    shutil.copy(shared_data / "structures" / "capped" / "G_cap.pdb", tmp_path / "other.pdb")
    before = sorted(tmp_path.iterdir())
    for command in (workflow.run_protocol, check.check_run):
        with pytest.raises(GeomGNNError, match=message) as error:
            command(load(**REFUSED[message]))
        assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_sufficient_length_is_sufficient(load):
    for changes in ({}, {"cv__estimator": "vampnet", "cv__mixer": "mlp", "cv__training": {"validation_fraction": 0.1}}):
        short = load(unbiased__length="10 ps", **changes)
        with pytest.raises(GeomGNNError, match="too little for the fit") as error:
            workflow.examined(short)
        enough = re.search(r"([\d.]+) ps would do", str(error.value))[1]
        assert len(workflow.examined(load(unbiased__length=f"{enough} ps", **changes)).runs) == 2


def test_a_structure_that_cannot_be_the_molecule(load, tmp_path):
    topology, positions = load_structure(ALA2)
    far = written(tmp_path / "far.pdb", topology, positions * 10)
    with pytest.raises(GeomGNNError, match="far.pdb has bonds that are 10 times too long"):
        workflow.run_protocol(load(system__structures=["ala2-c7eq.pdb", far]))


def test_what_is_doubtful_about_structures_is_said(load, tmp_path):
    topology, positions = load_structure(ALA2)
    mirrored = written(tmp_path / "mirrored.pdb", topology, positions * [1, 1, -1])
    lines = [line for line in ALA2.read_text().splitlines(True) if line.startswith(("ATOM", "HETATM"))]
    models = tmp_path / "models.pdb"
    models.write_text("".join(f"MODEL {k:8d}\n{''.join(lines)}ENDMDL\n" for k in (1, 2)))
    with pytest.warns(UserWarning) as caught:
        workflow.examined(load(system__structures=[mirrored, str(models)]))
    said = [str(warning.message) for warning in caught]
    assert any("mirrored.pdb has inverted centres" in text and "CA of ALA 2" in text for text in said)
    assert any("models.pdb holds 2 models: the first is used" in text for text in said)


def test_a_disk_that_is_too_small(load, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 10**6))
    with pytest.raises(GeomGNNError, match="will take about .* GB, but 0.001 GB are free in "):
        workflow.run_protocol(load())


def test_threads_of_a_walker(load):
    """On the platform CPU, and known to the System's Context; more than there are cores are slow."""
    many = load(run__threads=1000, system__platform="CPU")
    with pytest.warns(UserWarning, match=r"2 walkers of 1000 threads .run.threads. do not fit on \d+ cores"):
        workflow.examined(many)
    for threads in (1, 2):
        walker = Walker(molecule.walker_spec(load(run__threads=threads, system__platform="CPU")))
        assert walker._context.getPlatform().getPropertyValue(walker._context, "Threads") == str(threads)


# ----------------------------------------------------------------------------------------------------------- estimates


class TestEstimates:
    def test_seconds_of_a_unit_of_work(self):
        assert estimates._seconds(lambda n: time.sleep(0.002 * n)) == pytest.approx(0.002, rel=0.5)

    def test_times_follow_from_what_a_step_takes(self, load, monkeypatch):
        """30 + 1 ps of 2 fs for each start; 2,000 evaluations of the bias and 1 ps; 6 ps of all walkers, and 1 ps each."""
        monkeypatch.setattr(estimates, "_step_seconds", lambda plan, announce: (0.01, 0.1))
        monkeypatch.setattr(estimates, "_fit_seconds", lambda plan: 7.0)
        plan = workflow.examined(load()).plan
        for n_cores, slowed in ((2, 1), (1, 2)):
            monkeypatch.setattr(estimates, "cores", lambda n_cores=n_cores: n_cores)
            found = estimates.stage_seconds(plan)
            assert found == pytest.approx(
                {
                    "unbiased": 155 * slowed,
                    "fit": 7.0,
                    "biased": (200 + 5) * slowed,
                    "comparison": (15 + 5) * slowed,
                }
            )
