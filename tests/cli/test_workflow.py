"""`geomgnn run` from structures to a report: a whole small run, asked for again, killed, prolonged, changed."""

import json
import math
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from protocol_texts import TINY
from soak import differences, killed_run

from openmm_geomgnn.cli import info, molecule, preflight, results
from openmm_geomgnn.cli import report as reporting
from openmm_geomgnn.cli import run as workflow
from openmm_geomgnn.cli import run_folder as folders
from openmm_geomgnn.cli.provenance import current_cv
from openmm_geomgnn.cli.settings import fields
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.sampling import runner, unbiased
from openmm_geomgnn.sampling.checkpoint import load_checkpoint
from openmm_geomgnn.sampling.colvar import read_colvar
from openmm_geomgnn.sampling.outputs import read_dcd

ROWS, FRAMES = 2 * 100, 50  # of COLVAR, of each trajectory
# the installed command, or, where the package is only on the path, the function it calls
SCRIPT = Path(sys.executable).with_name("geomgnn")
COMMAND = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-c", "from openmm_geomgnn.cli.main import main; main()"]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:tiny.yaml")]  # doubtful settings are meant here


@pytest.fixture(scope="module")
def protocol_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("protocol") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(protocol_file):
    """What the command says, and the folder of the finished run. Tests work on copies of it."""
    command = [*COMMAND, "run", protocol_file.name]
    done = subprocess.run(command, cwd=protocol_file.parent, capture_output=True, text=True, timeout=300)
    return done, protocol_file.parent / "runs" / "tiny"


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished folder."""
    return shutil.copytree(finished[1], tmp_path / "copy")


@pytest.fixture
def load(protocol_file, copied):
    def load(**changes):
        overrides = {"output": str(copied)} | {name.replace("__", "."): value for name, value in changes.items()}
        return load_protocol(protocol_file, overrides)

    return load


@pytest.fixture
def no_simulation(monkeypatch):
    """Fails the test when a walker is started."""

    for kind, module in (("biased", runner), ("unbiased", unbiased)):

        def start(*arguments, kind=kind, **options):
            raise AssertionError(f"the {kind} simulation was started")

        monkeypatch.setattr(module, "WalkerPool", start)


@pytest.fixture
def no_report(monkeypatch):
    """Leaves out the report, which takes seconds."""
    monkeypatch.setattr(workflow, "report", lambda protocol, seconds: {})


def prepare(protocol, overwrite=False, source=None):
    with folders.prepare_output_folder(protocol, overwrite, source):
        folders.settle(protocol)


def contents(folder):
    """Every file in a folder and what is in it."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def not_biased_yet(folder):
    """Make the copy of a finished run one that has its CV and nothing after it."""
    for name in ("checkpoint.safetensors", "COLVAR", "KERNELS", "trajectory.0.dcd", "trajectory.1.dcd"):
        (folder / name).unlink()


# ------------------------------------------------------------------------------------------------------ a whole run


class TestRun:
    def test_what_it_says(self, finished):
        done, folder = finished
        assert done.returncode == 0, done.stderr
        # no banners, no warnings of libraries, no leftovers of bars
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        assert "\x1b" not in done.stdout
        stages = list(dict.fromkeys(line.split(":")[0] for line in lines if " ps" in line.split("  ")[0]))
        assert stages[:2] == ["Unbiased runs", "CV"] and stages[-2:] == ["Biased run", "Unbiased comparison"]
        assert sum(line.startswith("Biased run:") for line in lines) <= 11
        assert next(line for line in reversed(lines) if line.startswith("Biased run:")).startswith("Biased run: 12/12 ps")
        for name in ("crossings", "temperature", "free energy", "report"):
            assert sum(line.startswith(name) for line in lines) == 1
        assert lines[-1].split()[-1] == str(folder / "report.html")

    def test_info(self, finished, capsys):
        _, folder = finished
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        info.show_info(folder)
        text = capsys.readouterr().out
        for part in (
            "output folder of `geomgnn run`",
            "ala2-c7eq.pdb, ala2-c7ax.pdb",
            "2 of 2 runs of 30 ps are done",
            "CV: VAMP-2",
            "Verdict: ",
            "12 of 12 ps of each of 2 walkers",
            "report.html",
        ):
            assert part in text
        info.show_info(folder / "checkpoint.safetensors")
        assert "checkpoint of a run of 2 walkers, at outer step 2000" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    def test_files(self, finished, protocol_file):
        _, folder = finished
        names = {path.name for path in folder.iterdir()}
        assert names == {
            *("protocol.yaml", "topology.pdb", "unbiased", "cv.safetensors", "COLVAR", "KERNELS", "comparison"),
            *("trajectory.0.dcd", "trajectory.1.dcd", "checkpoint.safetensors", "summary.json", "report.html"),
            "wall_time.json",
        }
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in files:
            assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444, path
        # as `geomgnn run --check` foretells; most of a run as short as this is its report
        plan = workflow.examined(load_protocol(protocol_file)).plan
        written = sum(path.stat().st_size for path in files if path.name != "report.html")
        assert written == pytest.approx(preflight.disk_bytes(plan) - preflight.REPORT_BYTES, rel=0.3)
        colvar = read_colvar(folder / "COLVAR")
        assert len(colvar["time"]) == ROWS and colvar["time"][-1] == pytest.approx(12.0)
        assert {"cv.1", "opes.bias", "temperature", "walker"} <= set(colvar)
        for k in range(2):
            assert read_dcd(folder / f"trajectory.{k}.dcd").xyz.shape == (FRAMES, 22, 3)
            assert read_dcd(folder / "unbiased" / f"trajectory.{k}.dcd").xyz.shape == (150, 22, 3)
            assert read_dcd(folder / "comparison" / f"trajectory.{1000 + k}.dcd").xyz.shape == (3, 22, 3)
        html = (folder / "report.html").read_text()
        assert "tiny: ala2-c7eq, ala2-c7ax" in html and html.count("data:image/png") >= 5

    def test_summary(self, finished):
        _, folder = finished
        summary = json.loads((folder / "summary.json").read_text())
        for name in ("crossings_per_ns", "unbiased_crossings_per_ns", "delta_F_kJ_per_mol", "delta_F_error"):
            assert summary[name] is None or math.isfinite(summary[name])
        assert summary["biased_ns"] == pytest.approx(0.024, rel=0.01)
        assert summary["unbiased_ns"] == pytest.approx(0.006)
        assert summary["unbiased_crossings"] == 0
        assert summary["wall_seconds"] == json.loads((folder / "wall_time.json").read_text())["seconds"] > 1
        assert summary["n_walkers"] == 2 and summary["crossing_variable"] == "phi"
        assert 1 < summary["cv_vamp2"] <= 2 and len(summary["cv_rate_300K_per_ps"]) == 1

    def test_every_number_of_the_summary_is_documented(self, finished, repository):
        _, folder = finished
        page = (repository / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
        table = page.partition("summary.json`\n\nA number")[2]
        documented = {name for line in table.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
        assert json.loads((folder / "summary.json").read_text()).keys() <= documented

    def test_walkers_start_in_turn_and_the_cv_tells_the_basins(self, finished):
        _, folder = finished
        colvar = read_colvar(folder / "COLVAR")
        first = [colvar["cv.1"][colvar["walker"] == k][0] for k in range(2)]
        assert abs(first[0] - first[1]) > 1

    def test_settings_in_full(self, finished, protocol_file):
        """The folder's protocol.yaml is enough to run it again."""
        _, folder = finished
        settled = folder / "protocol.yaml"
        own = load_protocol(protocol_file, {"output": str(folder)})
        assert load_protocol(settled) == own
        assert yaml.safe_load(settled.read_text())["system"]["temperature"] == "300 K"


class TestAgain:
    def test_nothing_is_done_twice(self, load, copied, no_simulation):
        def stamps():
            paths = [*copied.glob("*.dcd"), *copied.glob("*/*"), *copied.glob("*.safetensors"), copied / "COLVAR"]
            return {path: path.stat().st_mtime_ns for path in paths}

        before, first = stamps(), json.loads((copied / "summary.json").read_text())
        (copied / "report.html").unlink()
        summary = workflow.run_protocol(load())
        assert stamps() == before and (copied / "report.html").exists()
        again = json.loads((copied / "summary.json").read_text())
        for name in set(first) - {"wall_seconds"}:
            assert again[name] == first[name], name
        assert summary["wall_seconds"] > first["wall_seconds"]

    def test_report_alone(self, copied, capsys, monkeypatch, no_simulation):
        from openmm_geomgnn.cli.main import main

        first = json.loads((copied / "summary.json").read_text())
        (copied / "summary.json").unlink()
        monkeypatch.setattr(sys, "argv", ["geomgnn", "report", str(copied)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        assert json.loads((copied / "summary.json").read_text()) == first
        assert "report.html" in capsys.readouterr().out

    def test_crossings_along_the_cv(self, load, copied, no_simulation):
        cores = {"along": "cv.1", "a": [-9, 0], "b": [0.1, 9]}
        summary = reporting.report(load(analysis__torsions={}, analysis__cores=cores))
        assert summary["crossing_variable"] == "cv.1" and math.isfinite(summary["unbiased_crossings_per_ns"])

    def test_without_comparison_and_cores(self, load, copied, no_simulation):
        shutil.rmtree(copied / "comparison")
        summary = workflow.run_protocol(load(unbiased__comparison_length="0.5 ps", analysis={}))
        assert math.isnan(summary["unbiased_ns"]) and math.isnan(summary["crossings"])
        assert not (copied / "comparison").exists()

    def test_a_comparison_that_was_stopped_keeps_its_length(self, load, copied, monkeypatch):
        class Stop(BaseException):
            pass

        @contextmanager
        def stopping(*words):
            def update(done, *more):
                if done > 7:
                    raise Stop

            yield update

        shutil.rmtree(copied / "comparison")
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(workflow, "bar", stopping)
            workflow._comparison(load(unbiased__comparison_length="12 ps"))
        # less is wanted now, then more
        for wanted, lengths in (("8 ps", [6, 6]), ("16 ps", [6, 6, 2, 2])):
            workflow._comparison(load(unbiased__comparison_length=wanted))
            paths = sorted((copied / "comparison").glob("trajectory.*.dcd"))
            assert [len(read_dcd(path)) for path in paths] == lengths

    def test_killed_at_any_moment(self, finished, protocol_file, tmp_path):
        """Three of the hundred kills of `make soak`."""
        _, whole = finished
        # and the imports before a run begins
        seconds = 4 + json.loads((whole / "wall_time.json").read_text())["seconds"]
        assert killed_run(protocol_file, tmp_path / "killed", random.Random(34), seconds, 3) == 3
        assert not differences(whole, tmp_path / "killed")

    def test_killed_and_prolonged(self, finished, protocol_file, tmp_path):
        """Killed half-way and asked for more, it is to the bit what the run in one go was, and longer."""
        _, whole = finished
        killed = tmp_path / "killed"
        killed.mkdir()
        for name in ("protocol.yaml", "cv.safetensors"):
            shutil.copy(whole / name, killed)
        for name in ("unbiased", "comparison"):
            shutil.copytree(whole / name, killed / name)
        command = [*COMMAND, "run", str(protocol_file), "--set", f"output={killed}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        colvar, deadline = killed / "COLVAR", time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if colvar.exists() and colvar.read_bytes().count(b"\n") > ROWS / 2:
                break
            time.sleep(0.01)
        with pytest.raises(GeomGNNError, match=f"killed is in use by process {process.pid} on"):
            prepare(load_protocol(protocol_file, {"output": str(killed)}))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert ROWS / 2 <= len(read_colvar(colvar)["time"]) < ROWS
        done = load_checkpoint(killed / "checkpoint.safetensors").step * 0.006
        assert 0 < done < 12
        partial = reporting.report(load_protocol(protocol_file, {"output": str(killed)}))
        assert not partial["complete"] and partial["done_ps"] == pytest.approx(done) and partial["planned_ps"] == 12
        longer = load_protocol(
            protocol_file, {"output": str(killed), "run.length": 13.2, "unbiased.comparison_length": "10 ps"}
        )
        summary = workflow.run_protocol(longer)
        assert summary["complete"]
        for name, more in (("COLVAR", 20), ("KERNELS", 4)):
            old, new = (folder / name for folder in (whole, killed))
            assert new.read_bytes().startswith(old.read_bytes())
            assert new.read_bytes().count(b"\n") == old.read_bytes().count(b"\n") + more
        for k in range(2):
            old, new = (read_dcd(folder / f"trajectory.{k}.dcd").xyz for folder in (whole, killed))
            np.testing.assert_array_equal(new[: len(old)], old)
            assert len(new) == FRAMES + 5
        # the comparison gets what it lacks as further runs
        lengths = [len(read_dcd(path)) for path in results.comparison_runs(killed)]
        assert lengths == [3, 3, 2, 2] and summary["unbiased_ns"] == pytest.approx(0.010)
        assert summary["biased_ns"] == pytest.approx(0.0264, rel=0.01)


# --------------------------------------------------------------------------------------------------------- the folder


class TestFolder:
    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"bias__barrier": 30}, "bias.barrier"),
            ({"seed": 2, "run__every": 2}, "run.every, seed differ"),
            ({"cv__softening": 0.1}, "cv.softening"),
            ({"system__structures": ["ala2-c7eq.pdb"]}, "system.structures"),
        ],
    )
    def test_a_changed_protocol_is_refused(self, changes, named, load, copied):
        before = contents(copied)
        with pytest.raises(GeomGNNError, match=f"another protocol: .*{named}.*--overwrite"):
            prepare(load(**changes))
        assert contents(copied) == before

    @pytest.mark.parametrize(
        "changes",
        [
            {"run__length": 20, "unbiased__comparison_length": None, "run__checkpoint_interval": 5},
            {"analysis": {"discard": 0.5}},
        ],
    )
    def test_what_may_change(self, changes, load, copied):
        protocol = load(**changes)
        prepare(protocol)
        assert load_protocol(copied / "protocol.yaml") == protocol

    def test_what_is_not_used_yet_may_change(self, load, copied):
        """The advice that a fit or a stiff CV gives can be followed without losing the training data."""
        not_biased_yet(copied)
        prepare(load(run__every=1, bias__barrier=20, cv__softening=0.1))
        with pytest.raises(GeomGNNError, match="system.temperature, unbiased.frame_interval differ"):
            prepare(load(system__temperature=310, unbiased__frame_interval=0.4))
        shutil.rmtree(copied / "unbiased")
        prepare(load(system__temperature=310))

    def test_overwrite_moves_all_aside(self, load, copied):
        (copied / "notes.txt").write_text("mine")
        for number in (1, 2):
            before, aside = contents(copied), copied.with_name(f"copy.previous-{number}")
            with pytest.warns(UserWarning, match=f"{copied} is now {aside}"):
                prepare(load(seed=5), overwrite=True)
            assert contents(aside) == before
            assert sorted(path.name for path in copied.iterdir()) == ["protocol.yaml", "topology.pdb"]
        prepare(load(seed=5), overwrite=False)

    @pytest.mark.parametrize("what", ["structure", "force field", "CV", "encoder", "reference", "protocol"])
    def test_overwrite_keeps_what_is_needed(self, what, load, copied):
        structures = load().system.structures
        mine = copied / "mine"
        mine.mkdir()
        shutil.copy(structures[0], mine / "a.pdb")
        shutil.copy(folders.__file__, mine / "tiny.yaml")
        shutil.copy(fields.DATA / "et-64.safetensors", mine)
        (mine / "a.xml").write_text("<ForceField/>")
        changes, source, named = {
            "structure": ({"system__structures": [str(mine / "a.pdb"), str(structures[1])]}, None, "mine/a.pdb"),
            "force field": ({"system__forcefield": ["amber14-all.xml", str(mine / "a.xml")]}, None, "mine/a.xml"),
            "CV": ({"cv": {"file": str(copied / "cv.safetensors")}}, None, "cv.safetensors"),
            "encoder": ({"cv__encoder": str(mine / "et-64.safetensors")}, None, "mine/et-64.safetensors"),
            "reference": ({"cv__window": "space", "cv__reference": str(mine / "a.pdb")}, None, "mine/a.pdb"),
            "protocol": ({}, mine / "tiny.yaml", "mine/tiny.yaml"),
        }[what]
        before = contents(copied)
        with pytest.raises(GeomGNNError, match=f"would move {copied} aside, but .* needs {copied / named} in it. Copy that"):
            prepare(load(**changes), overwrite=True, source=source)
        assert contents(copied) == before and not list(copied.parent.glob("*.previous-*"))

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_killed_while_it_moves_things_aside(self, moment, load, copied, protocol_file):
        before = contents(copied)
        program = (
            "import os, signal, sys\n"
            "rename = os.rename\n"
            "def killed(old, new):\n"
            "    if sys.argv.pop(1) == 'after': rename(old, new)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "os.rename = killed\n"
            "from openmm_geomgnn.cli.settings.yaml_files import load_protocol\n"
            "from openmm_geomgnn.cli.run_folder import prepare_output_folder\n"
            "with prepare_output_folder(load_protocol(sys.argv[2], {'output': sys.argv[3]}), overwrite=True): pass\n"
        )
        done = subprocess.run([sys.executable, "-c", program, moment, str(protocol_file), str(copied)])
        assert done.returncode == -signal.SIGKILL
        aside = copied.with_name("copy.previous-1")
        there = contents(aside if moment == "after" else copied)
        there.pop(Path(".lock"))
        assert there == before
        # and the command can be given again
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepare(load(seed=5), overwrite=True)
        assert {path: content for path, content in contents(aside).items() if path.name != ".lock"} == before

    def test_killed_before_the_first_file(self, load, tmp_path):
        """What `atomic_write` leaves is no folder of somebody else's."""
        folder = tmp_path / "new"
        folder.mkdir()
        (folder / ".protocol.yaml.temporary-abcd_123.yaml").touch()
        (folder / ".lock").touch()
        prepare(load(output=str(folder)))
        assert sorted(path.name for path in folder.iterdir()) == ["protocol.yaml", "topology.pdb"]

    def test_folders_of_others_are_left_alone(self, load, copied, tmp_path):
        # not a run's: a protocol of the user's own that happens to have this name
        for name, text in (("notes.txt", "mine"), ("protocol.yaml", TINY)):
            folder = tmp_path / name.split(".")[0]
            folder.mkdir()
            (folder / name).write_text(text)
            for overwrite in (False, True):
                with pytest.raises(GeomGNNError, match="not empty and was not made by"):
                    prepare(load(output=str(folder)), overwrite)
            assert [path.read_text() for path in folder.iterdir()] == [text]
        with pytest.raises(GeomGNNError, match="is a file.*another output"):
            prepare(load(output=str(tmp_path / "notes" / "notes.txt")))

    def test_structures_of_several_molecules(self, load, tmp_path):
        other = tmp_path / "other.pdb"
        lines = load().system.structures[1].read_text().splitlines(True)
        other.write_text("".join(line for line in lines if " HB1 " not in line and "CONECT" not in line))
        with pytest.raises(GeomGNNError, match="not the same molecule"):
            workflow.run_protocol(load(system__structures=["ala2-c7eq.pdb", str(other)], output=str(tmp_path / "new")))
        assert not (tmp_path / "new").exists()

    def test_structures_in_mmcif(self, load, tmp_path):
        from openmm.app import PDBxFile

        topology, positions = molecule.load_structure(load().system.structures[0])
        with (tmp_path / "a.cif").open("w") as file:
            PDBxFile.writeFile(topology, positions * 10, file)
        prepare(load(system__structures=[str(tmp_path / "a.cif")] * 2, output=str(tmp_path / "new")))
        again, close = molecule.load_structure(tmp_path / "new" / "topology.pdb")
        assert [atom.name for atom in again.atoms()] == [atom.name for atom in topology.atoms()]
        np.testing.assert_allclose(close, positions, atol=1e-4)

    def test_report_of_a_run_that_is_not_done(self, load, copied):
        (copied / "COLVAR").unlink()
        with pytest.raises(GeomGNNError, match="no COLVAR.*geomgnn run"):
            reporting.report(load())

    def test_damaged_cv(self, load, copied, no_simulation):
        content = (copied / "cv.safetensors").read_bytes()
        (copied / "cv.safetensors").write_bytes(content[: len(content) // 2])
        with pytest.raises(GeomGNNError, match="cannot be read as a collective variable.*truncated"):
            workflow.run_protocol(load())


# ------------------------------------------------------------------------------------------- what the CV was made from


@pytest.fixture
def mine(load, copied, tmp_path):
    """Files of the user's own, and settings with which the copied run might have been made of them."""
    structures = load().system.structures
    structure, encoder = tmp_path / "mine.pdb", tmp_path / "mine.safetensors"
    shutil.copy(structures[1], structure)
    shutil.copy(fields.DATA / "et-64.safetensors", encoder)
    settings = {"system__structures": [str(structures[0]), str(structure)], "cv__encoder": str(encoder)}
    folders.settle(load(**settings))
    return SimpleNamespace(settings=settings, structure=structure, encoder=encoder)


def change_cv(path, **facts):
    """Another CV file, which says something else about itself."""
    cv = CollectiveVariable.load(path)
    cv.training_information.update(facts)
    cv.save(path)


def remark(structure):
    structure.write_text(f"REMARK changed\n{structure.read_text()}")


def change_encoder(path):
    encoder = Encoder.load(path)
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.001)
    encoder.save(path)


class TestProvenance:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda mine, folder: remark(mine.structure), "trajectory.1.dcd belongs to a run with another start positions"),
            (
                lambda mine, folder: (remark(mine.structure), shutil.rmtree(folder / "unbiased")),
                "fitted under other conditions: start positions of the unbiased runs differ",
            ),
            (lambda mine, folder: change_encoder(mine.encoder), "fitted under other conditions: encoder of the fit differ"),
            (lambda mine, folder: change_cv(folder / "cv.safetensors", lag="?"), "another collective variable"),
            (lambda mine, folder: change_cv(folder / "cv.safetensors", rate_300K_per_ps=[500.0]), "too stiff to bias"),
            (lambda mine, folder: (folder / "cv.safetensors").write_bytes(b"x"), "cannot be read as a collective variable"),
            (lambda mine, folder: (folder / "checkpoint.safetensors").unlink(), "COLVAR file, but no checkpoint"),
        ],
        ids=["structure", "structure, unbiased runs gone", "encoder", "CV", "stiffness", "damaged CV", "no checkpoint"],
    )
    def test_nothing_changes_in_a_folder_that_refuses(self, damage, message, load, copied, mine):
        damage(mine, copied)
        before = contents(copied)
        with pytest.raises(GeomGNNError, match=message):
            workflow.run_protocol(load(**mine.settings, run__checkpoint_interval=2))  # there would be something to write
        assert contents(copied) == before

    def test_unbiased_runs_that_have_served_are_not_made_again(self, load, copied, no_simulation, no_report):
        shutil.rmtree(copied / "unbiased")
        workflow.run_protocol(load())

    @pytest.mark.parametrize("changes", [{"seed": 2}, {"system__temperature": 310}])
    def test_a_stale_cv_is_fitted_again(self, changes, load, copied, no_simulation):
        """What determined it has changed, and the runs that it was fitted to are gone."""
        not_biased_yet(copied)
        shutil.rmtree(copied / "unbiased")
        with pytest.raises(AssertionError, match="the unbiased simulation was started"):
            workflow.run_protocol(load(**changes))

    def test_a_cv_of_other_settings_is_moved_aside(self, load, copied, no_simulation):
        not_biased_yet(copied)
        old = (copied / "cv.safetensors").read_bytes()
        with pytest.warns(UserWarning, match="cv.safetensors is now"), pytest.raises(AssertionError, match="the biased"):
            workflow.run_protocol(load(cv__softening=0.1))
        assert CollectiveVariable.load(copied / "cv.safetensors").training_information["softening_ps"] == 0.1
        assert (copied / "cv.safetensors.previous-1").read_bytes() == old

    def test_a_cv_without_a_record(self, load, copied, no_simulation):
        """Versions before did not write down what a CV was made from: runs go on, fits are made again."""
        facts = CollectiveVariable.load(copied / "cv.safetensors")
        record = facts.training_information.pop("made_from")
        facts.save(copied / "cv.safetensors")
        assert current_cv(load(), record) is not None
        not_biased_yet(copied)
        assert current_cv(load(), record) is None

    def test_a_given_cv_is_compared_by_its_content(self, load, copied, tmp_path, no_simulation, no_report):
        given = tmp_path / "given.safetensors"
        shutil.copy(copied / "cv.safetensors", given)
        protocol = load(cv={"file": str(given)})
        folders.settle(protocol)
        workflow.run_protocol(protocol)
        moved = load(cv={"file": shutil.copy(given, tmp_path / "moved.safetensors")})
        workflow.run_protocol(moved)
        # fitted again, under the same name
        change_cv(moved.cv.file, in_basin_spread=[0.2])
        before = contents(copied)
        with pytest.raises(GeomGNNError, match=f"{moved.cv.file} .* is not the CV that .* which is {copied}/cv.safetensors"):
            workflow.run_protocol(moved)
        assert contents(copied) == before
        not_biased_yet(copied)
        with pytest.warns(UserWarning, match="previous-1"), pytest.raises(AssertionError, match="the biased simulation"):
            workflow.run_protocol(moved)
        assert (copied / "cv.safetensors").read_bytes() == moved.cv.file.read_bytes()
        assert (copied / "cv.safetensors.previous-1").read_bytes() == before[Path("cv.safetensors")]

    def test_a_second_process(self, load, copied, no_simulation):
        program = f"from openmm_geomgnn.locks import locked\nwith locked({str(copied)!r}): print(flush=True), input()"
        with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as process:
            process.stdout.readline()
            before = contents(copied)
            for overwrite in (False, True):
                with pytest.raises(GeomGNNError, match=f"in use by process {process.pid} on {socket.gethostname()}"):
                    workflow.run_protocol(load(), overwrite)
            done = subprocess.run([*COMMAND, "report", str(copied)], capture_output=True, text=True)
            assert done.returncode == 1 and f"in use by process {process.pid} on" in done.stderr
            assert contents(copied) == before
            process.communicate("\n")


# ------------------------------------------------------------------------------------------------ before and between


class TestAnalysisIsCheckedFirst:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"analysis": {"torsions": {"omega": "auto"}, "cores": {"along": "omega", "a": [-3, -2], "b": [0, 1]}}},
                "no torsion omega",
            ),
            ({"analysis": {"torsions": {"phi": "auto", "psi": ["ALA2-N", "ALA2-CA", "ALA2-C", "GLY3-N"]}}}, "GLY3-N"),
            ({"analysis": {"torsions": {"phi": "auto", "psi": [4, 6, 8, 22]}}}, "atom 22.*from 0 to 21"),
            ({"analysis": {"torsions": {"chi1": "auto"}}}, "no torsion chi1"),
            ({"run__frame_interval": 10}, "too short for 2 frames"),
        ],
    )
    def test_before_any_work(self, changes, message, load, copied, no_simulation):
        with pytest.raises(GeomGNNError, match=message):
            workflow.run_protocol(load(**changes))


class TestKernelWidth:
    """phase per outer step = rate*step/sigma, at most 0.5; the outer step is 6 fs, the temperature 300 K."""

    def widths(self, load, rate, spread, **changes):
        facts = {"rate_300K_per_ps": rate, "in_basin_spread": spread}
        components = {} if len(rate) == 1 else {"cv__components": len(rate)}
        return workflow.kernel_width(SimpleNamespace(training_information=facts), load(**components, **changes))

    def test_spread_within_a_basin(self, load):
        widths = self.widths(load, [5.0], [0.1])
        assert widths["sigma"] == pytest.approx((0.1,)) and widths["sigma_min"] == pytest.approx((0.06,))

    def test_no_narrower_than_the_integrator_follows(self, load):
        widths = self.widths(load, [12.0], [0.1])
        assert widths["sigma"] == widths["sigma_min"] == pytest.approx((0.144,))

    def test_components_and_temperature(self, load):
        widths = self.widths(load, [2.0, 8.0], [0.1, 0.1], system__temperature=1200.0)
        assert widths["sigma"] == pytest.approx((0.1, 0.192)) and widths["sigma_min"] == pytest.approx((0.048, 0.192))

    def test_what_is_given_is_kept(self, load):
        assert self.widths(load, [5.0], [0.1], bias__sigma=0.05) == {"sigma_min": pytest.approx((0.05,))}
        assert self.widths(load, [5.0], [0.1], bias__sigma=0.5) == {"sigma_min": pytest.approx((0.06,))}
        assert self.widths(load, [5.0], [0.1], bias__sigma_min=0.02) == {"sigma": pytest.approx((0.1,))}
        assert self.widths(load, [90.0], [0.1], bias__sigma_min=0.3) == {"sigma": pytest.approx((0.3,))}
        assert self.widths(load, [5.0], [0.1], bias__sigma=0.2, bias__sigma_min=0.1) == {}
        assert self.widths(load, [90.0], [0.1], bias__sigma=0.3) == {"sigma_min": pytest.approx((0.3,))}

    def test_an_adaptive_stride_leaves_sigma_to_the_run(self, load):
        widths = self.widths(load, [5.0], [0.1], **{"bias.adaptive_stride": "20 ps"})
        assert widths == {"sigma_min": (pytest.approx(5.0 * 0.006 / 0.5),)}
        assert load(**{"bias.adaptive_stride": "20 ps"}).opes(**widths).adaptive

    def test_every_shortens_the_floor(self, load):
        assert self.widths(load, [30.0], [0.1], run__every=1)["sigma"] == pytest.approx((0.12,))

    def test_a_stiff_cv_is_refused(self, load):
        with pytest.raises(GeomGNNError, match=r"too stiff.*6 fs.*0\.36 wide.*0\.1 within a basin.*run\.every: 1"):
            self.widths(load, [30.0], [0.1])
        with pytest.raises(GeomGNNError, match="too stiff"):
            self.widths(load, [1.0, 30.0], [0.1, 0.1])
