"""From the folder of a run to its report: what is known is found, and what does not belong together is refused.

The runs are made up: alanine dipeptide jumps between two values of phi, at known times and under a known bias, and the files
are written by what writes those of real runs.
"""

import json
import shutil
import sys

import mdtraj
import numpy as np
import pytest
from molecules import ala2, random_cv
from protocol_texts import changed
from scipy.spatial.transform import Rotation

from openmm_geomgnn.cli import report as reporting
from openmm_geomgnn.cli import results
from openmm_geomgnn.cli.settings.yaml_files import dump, load_protocol
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.verdict import SEPARATES
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.checkpoint import Checkpoint, save_checkpoint
from openmm_geomgnn.sampling.colvar import ColvarWriter
from openmm_geomgnn.sampling.outputs import TrajectoryWriter, Written, truncate_dcd
from openmm_geomgnn.sampling.systems import load_structure

PROTOCOL = """
system: {structures: [ala2-c7eq.pdb, ala2-c7ax.pdb], platform: Reference}
unbiased: {comparison_length: 8 ps}
bias: {pace: 0.6 ps, ramp: 0 ps}
run: {length: 12 ps, every: 3, colvar_interval: 0.12 ps, frame_interval: 0.24 ps, checkpoint_interval: 1.2 ps}
analysis: {torsions: {phi: auto, psi: auto}}
"""
ROWS, FRAMES = 100, 50  # of COLVAR and of the trajectory, of each walker
PHI = [4, 6, 8, 10]
PLACE_A, PLACE_B, BIAS = -2.7, 1.0, 4.0  # phi in radians; kJ/mol where phi is at B
KT = 0.00831446261815324 * 300


def turned(phi):
    """Positions (T, 22, 3) in nm of alanine dipeptide with these values of phi."""
    frame = ala2()
    pos = frame.xyz[0].astype(np.float64)
    axis = (pos[8] - pos[6]) / np.linalg.norm(pos[8] - pos[6])
    frames = np.repeat(pos[None], len(phi), axis=0)
    for new, angle in zip(frames, phi - mdtraj.compute_dihedrals(frame, [PHI])[0, 0], strict=True):
        new[9:] = Rotation.from_rotvec(angle * axis).apply(pos[9:] - pos[8]) + pos[8]
    return frames


def make_run(folder, text, phi, rows_per_frame=2):
    """A finished run of walkers whose phi (rows, walkers) is given, 0.12 ps between rows."""
    folder.mkdir()
    (folder.parent / "made.yaml").write_text(text)
    protocol = load_protocol(folder.parent / "made.yaml", {"output": str(folder)})
    (folder / "protocol.yaml").write_text(dump(protocol))
    structure = protocol.system.structures[0]
    shutil.copy(structure, folder / "topology.pdb")
    topology, _ = load_structure(structure)
    cv = random_cv(ala2().topology, dimension=1, scale=0.2)
    cv.save(folder / "cv.safetensors")
    positions = [turned(walker) for walker in phi.T]
    values = [cv.bind(ala2().topology, engine="eager").compute(pos)[:, 0] for pos in positions]
    fields = ("time", "walker", "cv.1", "opes.bias", "opes.nker", "temperature")
    with ColvarWriter(folder / "COLVAR", fields) as colvar:
        for row, angles in enumerate(phi):
            for walker, angle in enumerate(angles):
                bias = BIAS if angle > 0 else 0.0
                colvar.write([0.12 * (row + 1), walker, values[walker][row], bias, 5, 300])
    for walker, pos in enumerate(positions):
        with TrajectoryWriter(folder / f"trajectory.{walker}.dcd", topology, 0.006, 20 * rows_per_frame) as dcd:
            dcd.write(pos[rows_per_frame - 1 :: rows_per_frame])
    return topology


def save_progress(folder, steps, walkers=2):
    """A checkpoint after so many outer steps of 6 fs, 20 to a row and 40 to a frame."""
    written = Written(steps // 20 * walkers, 0, steps // 40)
    save_checkpoint(folder / "checkpoint.safetensors", Checkpoint(steps, {}, [b"state"] * walkers, {}, written, {}))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a finished run of 12 ps, and F(B) - F(A) of its frames after the transient."""
    folder = tmp_path_factory.mktemp("made") / "run"
    at_b = np.arange(ROWS)[:, None] % [20, 10] >= [14, 8]
    phi = np.where(at_b, PLACE_B, PLACE_A) + 0.1 * np.sin(np.arange(ROWS))[:, None]
    topology = make_run(folder, PROTOCOL, phi)
    (folder / "comparison").mkdir()
    for number, place in ((1000, PLACE_A), (1001, PLACE_B)):
        with TrajectoryWriter(folder / "comparison" / f"trajectory.{number}.dcd", topology, 0.002, 500) as dcd:
            dcd.write(turned(np.full(4, place)))
    save_progress(folder, 2000)
    used = at_b[1::2][np.arange(1, FRAMES + 1) * 0.24 > 0.2 * 12]
    return folder, -KT * np.log(used.mean() / (1 - used.mean())) - BIAS


@pytest.fixture
def folder(made, tmp_path):
    """A copy to damage, with an older report."""
    copy = shutil.copytree(made[0], tmp_path / "run")
    for name in ("summary.json", "report.html"):
        (copy / name).write_text("old")
    return copy


def protocol_of(folder, **changes):
    return load_protocol(folder / "protocol.yaml", {"output": str(folder), **changes})


class TestStates:
    """The sign and the size of delta F are those of the cores that are named."""

    LEFT, ACROSS, RIGHT = [-2.8, -0.5], ["150 deg", "-150 deg"], [0.3, 2.0]

    @pytest.mark.parametrize(
        ("torsions", "cores", "sign"),
        [
            ({"phi": "auto", "psi": "auto"}, None, 1),
            ({"phi": "auto", "psi": "auto"}, {"along": "phi", "a": RIGHT, "b": LEFT}, -1),
            ({"phi": "auto"}, {"along": "phi", "a": LEFT, "b": RIGHT}, 1),
            ({"mine": PHI}, {"along": "mine", "a": ACROSS, "b": RIGHT}, 1),
            ({"mine": PHI, "psi": "auto"}, {"along": "mine", "a": RIGHT, "b": ACROSS}, -1),
        ],
    )
    def test_along_a_torsion(self, torsions, cores, sign, made):
        folder, expected = made
        protocol = protocol_of(folder, analysis={"torsions": torsions, "cores": cores})
        reporting.check_analysis(protocol)
        analysis, summary = reporting.analyse(protocol, results.read_results(protocol))
        assert summary["delta_F_kJ_per_mol"] == pytest.approx(sign * expected, abs=1e-6)
        assert (summary["crossings"], summary["unbiased_crossings"]) == (9 + 19, 0)
        assert summary["unbiased_ns"] == pytest.approx(0.008) and summary["complete"] is True
        assert summary["crossing_variable"] == (cores["along"] if cores else "phi")
        assert list(analysis.profiles) == ["cv.1", *torsions]
        assert list(analysis.maps) == ([("phi", "psi")] if set(torsions) == {"phi", "psi"} else [])

    def test_torsions_are_shown_with_cores_along_the_cv(self, made):
        low, high = sorted(results.read_results(protocol_of(made[0])).colvar["cv.1"][[0, 28]])
        cores = {"along": "cv.1", "a": [low - 9, low + 1e-3 * (high - low)], "b": [high - 0.5 * (high - low), high + 9]}
        protocol = protocol_of(made[0], **{"analysis.cores": cores})
        analysis, summary = reporting.analyse(protocol, results.read_results(protocol))
        assert summary["crossing_variable"] == "cv.1" and len(analysis.crossing.unbiased) == 2
        assert list(analysis.maps) == [("phi", "psi")]


class TestStatesThatAreFound:
    """A protocol without cores is judged by the states in the torsions of its run."""

    TEXT = changed(("length: 12 ps", "length: 48 ps"), ("{phi: auto, psi: auto}", "{psi: auto}"), text=PROTOCOL)

    def test_with_an_example_of_each(self, tmp_path):
        at_b = np.arange(4 * ROWS)[:, None] % [200, 160] >= [140, 80]
        phi = np.where(at_b, PLACE_B, PLACE_A) + 0.1 * np.random.default_rng(0).normal(size=(4 * ROWS, 2))
        folder = tmp_path / "run"
        make_run(folder, self.TEXT, phi)
        (folder / "states").mkdir()
        (folder / "states" / "state.7.pdb").write_text("of an earlier report")
        summary = reporting.report(protocol_of(folder))
        written = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
        used = at_b[1::2][np.arange(1, 4 * FRAMES + 1) * 0.24 > 0.2 * 48]
        expected = -KT * np.log(used.mean() / (1 - used.mean())) - BIAS
        first, second = written["states"]
        assert first["name"].startswith("phi ALA2 ") and float(first["name"].split()[2]) == pytest.approx(57, abs=3)
        assert float(second["name"].split()[2]) == pytest.approx(-155, abs=3)
        assert second["frames"] == pytest.approx((~at_b[1::2]).sum(), abs=3)  # a frame at its edge may count as on the way
        ratio = second["population"] / first["population"]
        assert KT * np.log(ratio) == pytest.approx(expected, abs=0.2) and 0 < first["error"] < 0.5
        # A is what is there more often
        assert (first["group"], second["group"]) == ("A", "B")
        assert written["delta_F_kJ_per_mol"] == pytest.approx(-KT * np.log(ratio))
        assert written["crossings"] == written["state_changes"] == 3 + 4 and written["crossing_variable"] == "found states"
        assert written["delta_F_definition"] == f"F(B) - F(A), A: {first['name']}; B: {second['name']}"
        assert sorted(path.name for path in (folder / "states").iterdir()) == ["state.1.pdb", "state.2.pdb"]
        for state, place in ((first, PLACE_B), (second, PLACE_A)):
            example = mdtraj.load(str(folder / state["example"]))
            assert mdtraj.compute_dihedrals(example, [PHI])[0, 0] == pytest.approx(place, abs=0.1)
        page = (folder / "report.html").read_text()
        assert "States over time" in page and first["name"] in page and "states/state.2.pdb" in page
        assert (
            summary["verdict"] in page and page.count(summary["verdict"].split(". ")[0]) == 2
        )  # in the notes and the table

    def test_one_state_is_not_enough(self, tmp_path):
        phi = PLACE_A + 0.2 * np.random.default_rng(0).normal(size=(4 * ROWS, 2))
        make_run(tmp_path / "run", self.TEXT, phi)
        summary = reporting.report(protocol_of(tmp_path / "run"))
        assert summary["converged"] is False and "one state was found" in summary["verdict"]
        assert "system.structures" in summary["verdict"] and np.isnan(summary["delta_F_kJ_per_mol"])
        assert [state["name"] for state in summary["states"]] == ["all frames"]
        assert (tmp_path / "run" / "states" / "state.1.pdb").exists()

    def test_cores_that_are_given_win(self, made):
        analysis, summary = reporting.analyse(protocol_of(made[0]), results.read_results(protocol_of(made[0])))
        assert analysis.found is None and "states" not in summary and summary["crossing_variable"] == "phi"

    def test_cores_of_alanine_dipeptide_are_not_another_molecules(self, made):
        """Its phi and psi alone do not say where the states of a molecule are."""
        protocol = protocol_of(made[0], analysis={"torsions": {"phi": "auto", "psi": "auto"}})
        read = results.read_results(protocol)
        assert reporting.analyse(protocol, read)[1]["crossing_variable"] == "phi"
        for walker in read.biased:
            walker.topology.residue(1).name = "GLY"
        analysis, summary = reporting.analyse(protocol, read)
        assert analysis.found is not None and summary.get("crossing_variable") != "phi"


def half_a_file(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_lines(change):
    def damage(folder):
        lines = (folder / "COLVAR").read_text().splitlines(True)
        (folder / "COLVAR").write_text("".join(change(lines)))

    return damage


def change_frames(change, walker=0):
    """Rewrite the coordinates of a trajectory: all records stay in order."""

    def damage(folder):
        path = folder / f"trajectory.{walker}.dcd"
        content = path.read_bytes()
        size = 3 * (8 + 4 * 22)
        start = len(content) - FRAMES * size
        frames = np.frombuffer(content[start:], np.uint8).reshape(FRAMES, size).copy()
        path.write_bytes(content[:start] + change(frames).tobytes())

    return damage


def not_finite(frames):
    frames[7, 4:8] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    return frames


def swap(first, second):
    def damage(folder):
        a, b = (folder / first).read_bytes(), (folder / second).read_bytes()
        (folder / first).write_bytes(b)
        (folder / second).write_bytes(a)

    return damage


class TestDamage:
    """Each is refused with one sentence that names the file, and the older report stays."""

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda folder: half_a_file(folder / "trajectory.0.dcd"), r"trajectory.0.dcd holds 2\d whole frames of the 50"),
            (lambda folder: truncate_dcd(folder / "trajectory.1.dcd", 49), "1.dcd holds 49 whole frames of the 50"),
            (change_frames(lambda frames: np.roll(frames, 1, axis=0)), "of trajectory.0.dcd.* does not belong to its row"),
            (change_frames(not_finite, 1), "Frame 8 of .*trajectory.1.dcd is not finite"),
            (swap("trajectory.0.dcd", "trajectory.1.dcd"), "does not belong to its row"),
            (lambda folder: (folder / "trajectory.1.dcd").unlink(), "Cannot open the trajectory .*trajectory.1.dcd"),
            (lambda folder: half_a_file(folder / "COLVAR"), r"COLVAR has \d\d whole rows, but the run has written 200"),
            (change_lines(lambda lines: lines[:-1]), "COLVAR has 199 whole rows, but the run has written 200"),
            (change_lines(lambda lines: lines[:50] + lines[51:] + lines[-1:]), "Row 50 of .* walker 1 at 3 ps is due"),
            (change_lines(lambda lines: lines[:50] + lines[49:]), "Row 50 of .* is of walker 0 at 3 ps, where walker 1"),
            (change_lines(lambda lines: [*lines[:50], "3 1 nothing 0 5 300\n", *lines[51:]]), "line 51 holds something"),
            (lambda folder: half_a_file(folder / "comparison" / "trajectory.1000.dcd"), "1000.dcd counts 4 frames"),
            (lambda folder: half_a_file(folder / "cv.safetensors"), "cannot be read as a collective variable"),
            (
                lambda folder: random_cv(ala2().topology, dimension=1, scale=0.3).save(folder / "cv.safetensors"),
                "does not belong to its row of COLVAR: cv.1",
            ),
        ],
    )
    def test_is_refused(self, damage, message, folder):
        damage(folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(GeomGNNError, match=message):
            reporting.report(protocol_of(folder))
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    def test_without_a_checkpoint_colvar_counts(self, folder):
        (folder / "checkpoint.safetensors").unlink()
        assert results.read_results(protocol_of(folder)).complete
        half_a_file(folder / "trajectory.0.dcd")
        with pytest.raises(GeomGNNError, match=r"holds 2\d whole frames of the 50"):
            results.read_results(protocol_of(folder))

    def test_nothing_is_written_where_pictures_fail(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(GeomGNNError, match="pip install"):
            reporting.report(protocol_of(folder))
        assert (folder / "summary.json").read_text() == (folder / "report.html").read_text() == "old"


class TestCV:
    @pytest.mark.slow
    def test_what_the_report_says_of_the_cv(self, folder):
        cv = CollectiveVariable.load(folder / "cv.safetensors")
        verdict = {"grade": "weak", "reasons": ["it separates runs"]}
        cv.training_information |= {"timescales_ps": [None], "timescale_notes": [SEPARATES], "transitions": [0]}
        cv.training_information |= {"verdict": verdict, "vamp2_training": 1.9, "in_basin_spread": [0.1]}
        cv.save(folder / "cv.safetensors")
        summary = reporting.report(protocol_of(folder))
        page = (folder / "report.html").read_text()
        assert f'<td class="number">cv.1</td><td class="number">{SEPARATES}</td><td class="number">0</td>' in page
        assert "Warning: verdict on the CV: weak: it separates runs." in page
        assert summary["cv_timescales_ps"] == [None] and summary["cv_verdict"] == "weak: it separates runs"
        assert summary["cv_vamp2"] == 1.9 and "teacher_vamp2" not in summary


class TestPartial:
    @pytest.mark.slow
    def test_of_a_run_that_was_killed(self, folder, monkeypatch, capsys):
        """Half-way through writing what came after its checkpoint at 6 ps."""
        from openmm_geomgnn.cli.main import main

        save_progress(folder, 1000)
        for name in ("COLVAR", "trajectory.0.dcd"):
            (folder / name).write_bytes((folder / name).read_bytes()[:-50])
        shutil.rmtree(folder / "comparison")
        monkeypatch.setattr(sys, "argv", ["geomgnn", "report", str(folder)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 3  # not converged
        summary = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
        assert summary["converged"] is False and "6 of 12 ps" in summary["verdict"]
        assert (summary["complete"], summary["done_ps"], summary["planned_ps"]) == (False, 6, 12)
        assert summary["biased_ns"] == pytest.approx(0.012) and summary["frames_used"] == 80
        said = "6 of 12 ps of each biased walker are done and 0 of 8 ps of the unbiased comparison are done"
        output = capsys.readouterr().out
        assert output.startswith(f"PARTIAL        {said}\n") and "unknown" not in output
        page = (folder / "report.html").read_text()
        assert page.index("(partial: 6 of 12 ps)</h1>") < page.index(f"this report is partial: {said}") < page.index("<h2>")
        assert "unknown" not in page

    def test_one_frame_is_too_few_for_torsions(self, folder):
        save_progress(folder, 60)
        protocol = protocol_of(folder)
        analysis, summary = reporting.analyse(protocol, results.read_results(protocol))
        assert not summary["complete"] and summary["crossing_variable"] == "none" and list(analysis.profiles) == ["cv.1"]
        assert any("too few for torsions" in note for note in analysis.notes)

    def test_comparison_that_is_missing(self, folder):
        (folder / "comparison" / "trajectory.1001.dcd").unlink()
        found = results.read_results(protocol_of(folder))
        assert found.missing == "4 of 8 ps of the unbiased comparison are done"

    def test_before_the_first_rows(self, folder):
        save_progress(folder, 20)
        with pytest.raises(GeomGNNError, match="has written 2 rows of COLVAR so far, too few"):
            reporting.report(protocol_of(folder))
        (folder / "COLVAR").unlink()
        with pytest.raises(GeomGNNError, match="no COLVAR.*geomgnn run"):
            reporting.report(protocol_of(folder))


def test_the_least_there_can_be(tmp_path, monkeypatch, capsys):
    """2 ps of one walker in one state, without torsions, cores and comparison: what is not known is left out."""
    from openmm_geomgnn.cli.main import main

    changes = ("length: 12 ps", "length: 2 ps, walkers: 1"), ("pace: 0.6", "pace: 0.2"), ("8 ps", "0 ps")
    text = changed(*changes, ("{phi: auto, psi: auto}", "{}"), text=PROTOCOL)
    make_run(tmp_path / "run", text, np.linspace(-2, -1, 16)[:, None])
    monkeypatch.setattr(sys, "argv", ["geomgnn", "report", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as end:
        main()
    output, page = capsys.readouterr().out, (tmp_path / "run" / "report.html").read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert end.value.code == 3 and summary["complete"] is True and summary["n_walkers"] == 1
    assert summary["crossings"] == 0 and summary["delta_F_kJ_per_mol"] is None
    assert summary["converged"] is False and summary["verdict"].startswith("not converged: one state was found")
    assert [line.split()[0] for line in output.splitlines()] == ["crossings", "temperature", "state", "verdict", "report"]
    for text in (output, page):
        assert "unknown" not in text and "nan " not in text and "None" not in text
