"""`geomgnn run` from structures to a report: a whole small run, asked for again, killed, prolonged."""

import json
import math
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import yaml
from finished_run import COMMAND, FRAMES, ROWS
from soak import differences, killed_run

from openmm_geomgnn.cli import info, preflight, results
from openmm_geomgnn.cli import report as reporting
from openmm_geomgnn.cli import run as workflow
from openmm_geomgnn.cli import run_folder as folders
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.checkpoint import load_checkpoint
from openmm_geomgnn.sampling.colvar import read_colvar
from openmm_geomgnn.sampling.outputs import read_dcd

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:tiny.yaml")]  # doubtful settings are meant here


class TestRun:
    def test_what_it_says(self, finished):
        done, folder = finished
        assert done.returncode == 3, done.stderr  # finished, but far too short to have converged
        # no banners, no warnings of libraries, no leftovers of bars
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        assert "\x1b" not in done.stdout
        stages = list(dict.fromkeys(line.split(":")[0] for line in lines if " ps" in line.split("  ")[0]))
        assert stages[:2] == ["Unbiased runs", "CV"] and stages[-2:] == ["Biased run", "Unbiased comparison"]
        assert sum(line.startswith("Biased run:") for line in lines) <= 11
        assert next(line for line in reversed(lines) if line.startswith("Biased run:")).startswith("Biased run: 12/12 ps")
        for name in ("crossings", "temperature", "free energy", "verdict", "report"):
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
        assert end.value.code == 3 and first["converged"] is False and first["verdict"].startswith("not converged")
        assert json.loads((copied / "summary.json").read_text()) == first
        assert "report.html" in capsys.readouterr().out

    def test_crossings_along_the_cv(self, load, copied, no_simulation):
        cores = {"along": "cv.1", "a": [-9, 0], "b": [0.1, 9]}
        summary = reporting.report(load(analysis__torsions={}, analysis__cores=cores))
        assert summary["crossing_variable"] == "cv.1" and math.isfinite(summary["unbiased_crossings_per_ns"])

    def test_without_comparison_and_cores(self, load, copied, no_simulation):
        shutil.rmtree(copied / "comparison")
        summary = workflow.run_protocol(load(unbiased__comparison_length="0.5 ps", analysis={}))
        assert math.isnan(summary["unbiased_ns"]) and math.isnan(summary["unbiased_crossings"])
        assert summary["crossing_variable"] == "found states" and len(summary["states"]) >= 2  # each walker began in another
        assert all((copied / state["example"]).exists() for state in summary["states"])
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
            with folders.prepare_output_folder(load_protocol(protocol_file, {"output": str(killed)})):
                pass
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
