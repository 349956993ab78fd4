"""The command `geomgnn`: its help, its settings on the command line, and errors as one paragraph without a traceback."""

import math
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from openmm_geomgnn.cli import main as cli
from openmm_geomgnn.cli import progress
from openmm_geomgnn.cli import run as workflow
from openmm_geomgnn.cli import run_folder as folders
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.errors import GeomGNNError

DATA = Path(str(resources.files("openmm_geomgnn") / "data"))
SLOW = ("torch", "openmm", "mdtraj", "numpy", "scipy")  # to import
SUMMARY = {"crossings": 3, "biased_ns": 0.5, "crossings_per_ns": 6.0, "delta_F_kJ_per_mol": float("nan")}
PROTOCOL = "system: {structures: [ala2-c7eq.pdb, ala2-c7ax.pdb], platform: Reference}\n"


@pytest.fixture
def refused(geomgnn):
    """Run the command and return the one paragraph with which it fails."""

    def run(*arguments):
        code, _, error = geomgnn(*arguments)
        assert code == 1, error
        assert error.startswith("Error: ") and error[-2:] in (".\n", "?\n") and error.count("\n") == 1, error
        return error

    return run


@pytest.fixture
def runs(monkeypatch):
    """The protocols, and whether to overwrite, that the command would have run."""
    called = []

    def run(protocol, overwrite, source):
        called.append((protocol, overwrite))
        return SUMMARY

    monkeypatch.setattr(workflow, "run_protocol", run)
    return called


@pytest.fixture
def protocol(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(PROTOCOL)
    return path


# --------------------------------------------------------------------------------------------------------------- help


class TestHelp:
    def test_without_arguments(self, geomgnn):
        code, output, error = geomgnn()
        text = output + error
        assert code in (0, 2) and "Usage" in text
        for command in ("demo", "run", "fit", "report"):
            assert f" {command} " in text

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            (["--help"], ["--debug", "demo", "fit", "report", "run"]),
            (["run", "--help"], ["PROTOCOL", "--overwrite", "--set", "KEY=VALUE"]),
            (["demo", "--help"], ["--output", "--overwrite", "--set", "runs/demo"]),
            (["fit", "--help"], ["FIT", "--set"]),
            (["report", "--help"], ["FOLDER", "output folder of a run"]),
        ],
    )
    def test_help(self, arguments, parts, geomgnn, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        code, output, error = geomgnn(*arguments)
        assert code == 0 and error == ""
        for part in parts:
            assert part in output

    def test_unknown_command(self, geomgnn):
        code, _, error = geomgnn("rn")
        assert code == 2 and "Did you mean 'run'?" in error

    @pytest.mark.parametrize(
        "commands",
        [
            ["--help", "run --help"],
            ["run x.yaml", "demo --set run.length=", "fit x.yaml", "report x"],
            ["data build x.yaml", "data info x", "data splits x y.npz --source z"],
            ["embed x.pdb x.xtc -o x.zarr", "distill x.cv x.pdb x.xtc -o y.safetensors"],
            ["info x", "compute x.cv x.pdb x.xtc -o COLVAR"],
        ],
        ids=["help", "run", "data", "trajectories", "a CV"],
    )
    def test_help_and_missing_files_do_not_load_what_takes_seconds(self, commands, tmp_path):
        program = (
            "import sys\n"
            "from openmm_geomgnn.cli.main import main\n"
            f"for command in {commands}:\n"
            "    sys.argv = ['geomgnn', *command.split()]\n"
            "    try: main()\n"
            "    except SystemExit as end: print('exit', end.code)\n"
            f"    print(command, {set(SLOW)} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
        lines = [line for line in done.stdout.splitlines() if line.endswith("set()")]
        assert lines == [f"{command} set()" for command in commands], done.stdout + done.stderr
        codes = ["exit 0" if command.endswith("--help") else "exit 1" for command in commands]
        assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == codes, done.stderr


# ----------------------------------------------------------------------------------------------------------- settings


class TestSettings:
    def test_demo_is_the_shipped_protocol(self, geomgnn, runs, tmp_path, repository):
        code, output, error = geomgnn("demo")
        assert code == 0 and error == ""
        ((protocol, overwrite),) = runs
        assert not overwrite and protocol.output == tmp_path / "runs" / "demo"
        shipped = load_protocol(repository / "protocols" / "ala2-rounds.yaml", {"output": "runs/demo"})
        assert protocol == shipped
        # what is not known is left out
        assert output.splitlines() == [
            "crossings      3 in 0.5 ns biased (6 per ns)",
            f"report         {tmp_path / 'runs' / 'demo' / 'report.html'}",
        ]

    def test_options(self, geomgnn, runs, tmp_path, protocol):
        assert geomgnn("run", protocol.name, "--overwrite", "--set", "run.length=50 ps", "--set", "seed=3")[0] == 0
        assert geomgnn("demo", "--output", "a/b", "--set", "bias.barrier=10 kcal/mol", "--set", "rounds=null")[0] == 0
        assert geomgnn("run", protocol, "--set", "analysis.torsions={phi: auto, psi: auto}")[0] == 0
        (first, overwrite), (second, _), (third, _) = runs
        assert overwrite and (first.run.length, first.seed) == (50.0, 3) and first.output == tmp_path / "runs" / "small"
        assert second.output == tmp_path / "a" / "b" and second.bias.barrier == pytest.approx(41.84)
        assert second.rounds is None
        assert third.analysis.torsions == {"phi": "auto", "psi": "auto"}

    @pytest.mark.parametrize(
        ("setting", "parts"),
        [
            ("run.length", ["--set run.length lacks a key or a value", "KEY=VALUE"]),
            ("=5", ["--set =5 lacks a key"]),
            ("run.length=", ["--set run.length= has no value", "null"]),
            ("run.length= ", ["has no value"]),
            ("run.length=1:30", ["length is '1:30'"]),
            ("system.timestep=1e-320", ["timestep is 1e-320", "at least"]),
            ("run.length=" + 500 * "[", ["not valid YAML"]),
            ("run.length=[1, 2", ["not valid YAML", "brackets"]),
            ("run.lenth=5 ps", ["Unknown key 'lenth' in section run", "Did you mean 'length'?"]),
            ("rn.length=5 ps", ["Unknown key 'rn'", "Did you mean 'run'?"]),
            ("run.length=5 K", ["length is '5 K'", "fs, ps, ns"]),
            ("run.length=5 parsec", ["length is '5 parsec'", "'parsec' is not a unit"]),
            ("run=5", ["run is 5"]),
            ("cv.encoder=et-46", ["no encoder 'et-46'", "Did you mean 'et-64'?"]),
            ("system.structures=none.pdb", ["no structure 'none.pdb'", "Shipped: ala2-c7ax.pdb"]),
            ("cv.lag=0.33", ["lag time is 0.33 ps", "nearest possible lag time is 0.4 ps"]),
            ("analysis.cores={along: cv.2, a: [0, 1], b: [2, 3]}", ["cores are along cv.2"]),
        ],
    )
    def test_bad_settings(self, setting, parts, refused, runs, protocol):
        message = refused("run", protocol, "--set", setting)
        for part in parts:
            assert part in message
        assert not runs


# ------------------------------------------------------------------------------------------------------------- errors


class TestErrors:
    def test_unknown_key_names_the_line(self, refused, protocol):
        protocol.write_text(PROTOCOL + "run:\n  walkers: 2\n  evry: 3\n")
        assert "Unknown key 'evry' in section run of small.yaml (line 4). Did you mean 'every'?" in refused("run", protocol)

    def test_unknown_unit(self, refused, protocol):
        protocol.write_text(PROTOCOL + "bias: {barrier: 40 kJ/mole/K}\n")
        assert "barrier is '40 kJ/mole/K'" in refused("run", protocol)

    def test_missing_files(self, refused, tmp_path):
        assert "no settings file 'x.yaml'" in refused("run", "x.yaml")
        assert "no settings file 'x.yaml'" in refused("fit", "x.yaml")
        assert "holds no protocol.yaml" in refused("report", tmp_path)
        assert "holds no protocol.yaml" in refused("report", tmp_path / "nowhere")

    def test_a_structure_without_hydrogens(self, refused, protocol, tmp_path):
        frame = mdtraj.load(str(DATA / "ala2-c7eq.pdb"))
        frame.atom_slice(frame.topology.select("not element H")).save(str(tmp_path / "heavy.pdb"))
        message = refused("run", protocol, "--set", "system.structures=[heavy.pdb, heavy.pdb]")
        assert "does not recognise residue" in message and "addHydrogens" in message
        assert "no torsion chi1" in refused("run", protocol, "--set", "analysis.torsions={chi1: auto}")
        assert "does not recognise" in refused("run", protocol, "--overwrite", "--set", "system.structures=heavy.pdb")[-900:]
        assert not (tmp_path / "runs").exists()

    def test_a_file_that_is_no_structure(self, refused, protocol, tmp_path):
        (tmp_path / "empty.pdb").write_text("REMARK nothing\n")
        assert "cannot be read as a structure" in refused("run", protocol, "--set", "system.structures=[empty.pdb]")

    def test_a_single_ion(self, refused, protocol, tmp_path):
        ion = "HETATM    1 NA    NA A   1       0.000   0.000   0.000  1.00  0.00          NA\n"
        (tmp_path / "ion.pdb").write_text(ion)
        assert "ion.pdb holds a single atom" in refused("run", protocol, "--set", "system.structures=[ion.pdb, ion.pdb]")
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"seconds": "long"}', "\x00"])
    def test_a_wall_time_that_is_not_there(self, content, tmp_path):
        (tmp_path / "wall_time.json").write_text(content)
        assert math.isnan(folders.wall_time(tmp_path))
        with folders.count_wall_time(tmp_path, time.perf_counter() - 5.0):
            pass
        assert 5.0 <= folders.wall_time(tmp_path) < 6.0

    def test_the_wall_time_of_a_killed_session(self, tmp_path, monkeypatch):
        monkeypatch.setattr(folders, "_WALL_TIME_INTERVAL", 0.01)
        for session in (1, 2):
            with folders.count_wall_time(tmp_path, time.perf_counter() - 5.0):
                while not folders.wall_time(tmp_path) >= 5.0 * session:  # written while the session goes on
                    time.sleep(0.01)

    def test_an_output_that_cannot_be_written(self, refused, protocol, tmp_path):
        (tmp_path / "file").write_text("mine")
        assert "file is a file" in refused("run", protocol, "--set", "output=file")
        assert "Not a directory" in refused("run", protocol, "--set", "output=file/inside")

    @pytest.mark.parametrize(
        ("settings", "parts"),
        [
            ({"topology": "other.pdb"}, ["a.xtc cannot be read with a topology of 20 atoms", "same atoms"]),
            ({"trajectories": "cut.xtc"}, ["cut.xtc ends too early: it holds 10 whole frames", "--allow-truncated"]),
            ({"trajectories": "none.xtc"}, ["no trajectory 'none.xtc'"]),
            ({"trajectories": "uneven.xtc"}, ["uneven.xtc are not evenly spaced: frame 0", "split the file after frame 0"]),
            ({"trajectories": "one.xtc"}, ["one.xtc"]),
            ({"trajectories": "[a.xtc, slow.xtc]"}, ["different times between frames (a.xtc 1 ps, slow.xtc 2 ps)"]),
            ({"cv": "{lag: 2.5 ps}"}, ["lag time is 2.5 ps, not a multiple of the 1 ps", "nearest", "2 ps"]),
            ({"cv": "{lag: 30 ps}"}, ["has 20 frames, which is not more than the lag of 30 frames"]),
            ({"cv": "{lag: 2 ps, selection: resname LIG}"}, ["matches none of the 22 atoms"]),
            ({"cv": "{lag: 2 ps, mixer: attention}"}, ["mixer: attention has weights", "estimator: vampnet"]),
        ],
    )
    def test_fits(self, settings, parts, refused, tmp_path):
        frame = mdtraj.load(str(DATA / "ala2-c7eq.pdb"))
        frame.atom_slice(range(20)).save(str(tmp_path / "other.pdb"))
        frame.save(str(tmp_path / "top.pdb"))
        xyz = frame.xyz + 0.01 * np.random.default_rng(1).normal(size=(20, 22, 3))

        def write(name, times):
            mdtraj.Trajectory(xyz[: len(times)], frame.topology, time=np.array(times)).save(str(tmp_path / name))

        write("a.xtc", np.arange(20.0))
        write("slow.xtc", 2 * np.arange(20.0))
        write("uneven.xtc", np.arange(20.0) ** 2)
        write("one.xtc", [1.0])
        content = (tmp_path / "a.xtc").read_bytes()
        (tmp_path / "cut.xtc").write_bytes(content[: len(content) // 2 + 7])
        settings = {"topology": "top.pdb", "trajectories": "a.xtc", "cv": "{lag: 2 ps}", **settings}
        (tmp_path / "fit.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
        message = refused("fit", "fit.yaml")
        for part in parts:
            assert part in message
        assert not list(tmp_path.glob("*.safetensors"))

    def test_debug_shows_the_traceback(self, monkeypatch, geomgnn):
        assert geomgnn("run", "x.yaml")[0] == 1
        monkeypatch.setattr(sys, "argv", ["geomgnn", "--debug", "run", "x.yaml"])
        with pytest.raises(GeomGNNError, match="no settings file"):
            cli.main()
        # and not in the next call
        assert geomgnn("run", "x.yaml")[0] == 1

    def test_a_process_of_its_own(self, tmp_path):
        program = "from openmm_geomgnn.cli.main import main; main()"
        command = [sys.executable, "-c", program, "--debug", "run", "x.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "Traceback" in done.stderr and "in _load" in done.stderr

    def test_ctrl_c(self, geomgnn, monkeypatch, protocol):
        def interrupted(protocol, overwrite, source):
            raise KeyboardInterrupt

        monkeypatch.setattr(workflow, "run_protocol", interrupted)
        code, output, error = geomgnn("run", protocol)
        assert code == 130 and output == "" and "The same command continues" in error

    def test_warnings_are_lines(self, geomgnn, runs, protocol):
        code, output, error = geomgnn("run", protocol, "--set", "system.structures=ala2-c7eq.pdb")
        assert code == 0 and error == ""
        assert output.startswith("Warning: small.yaml: All training data start from one structure, ala2-c7eq.pdb.")


# ----------------------------------------------------------------------------------------------------------- progress


class TestProgress:
    def test_a_line_for_each_tenth(self, capsys):
        with progress.bar("Work", "ps") as update:
            for done in np.linspace(0, 50, 501):
                update(done, 50, "300 K")
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "Work: 0/50 ps 300 K" and lines[-1] == "Work: 50/50 ps 300 K" and len(lines) == 11

    def test_nothing_to_do(self, capsys):
        with progress.bar("Work"):
            pass
        assert capsys.readouterr().out == ""

    def test_bars_on_a_terminal(self, monkeypatch):
        from io import StringIO

        from rich.console import Console

        screen = Console(file=StringIO(), force_terminal=True, width=100)
        monkeypatch.setattr(progress, "console", screen)
        with progress.bar("Work", "ps") as update:
            for done in range(21):
                update(done, 20, "300 K")
        text = screen.file.getvalue()
        assert "20/20 ps" in text and "left" in text and "300 K" in text and text.endswith("\x1b[?25h")
        with progress.bar("Nothing"):
            pass
        # the bar is taken away again: the last thing written is the end of an empty display
        assert "Nothing" not in screen.file.getvalue().rpartition("\x1b[2K")[2]
