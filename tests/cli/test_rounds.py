"""`geomgnn run` with explore, seeds and rounds: from one structure to a report."""

import json
import math
import random
import subprocess
from types import SimpleNamespace

import pytest
from finished_run import COMMAND, contents
from soak import differences, killed_run

from openmm_geomgnn.cli import candidates
from openmm_geomgnn.cli import run as workflow
from openmm_geomgnn.cli.candidates import Candidate, choose_candidate, learned_cv
from openmm_geomgnn.cli.learning_data import LearningData
from openmm_geomgnn.cli.rounds import best_round
from openmm_geomgnn.cli.settings.exploration import ExploreSection, RoundsSection
from openmm_geomgnn.cli.settings.yaml_files import dump, load_protocol
from openmm_geomgnn.cli.starts import explore_molecule, seed_structures
from openmm_geomgnn.cli.unbiased_runs import runs_from_seeds
from openmm_geomgnn.errors import GeomGNNError

ONE = """
system: {structures: [ala2-c7eq.pdb], platform: Reference}
explore: {ways: [torsions, opes], length: 40 ps, frame_interval: 0.4 ps, in_turn: false}
seeds: {number: 4, length: 10 ps}
unbiased: {length: 20 ps, frame_interval: 0.2 ps, equilibration: 1 ps, comparison_length: 0}
cv: {estimator: progress, lag: 2 ps, student: false}
bias: {pace: 0.6 ps, ramp: 3 ps}
rounds: {number: 2, length: 9 ps}
run: {length: 12 ps, walkers: 2, colvar_interval: 0.12 ps, frame_interval: 0.24 ps, checkpoint_interval: 1.2 ps,
  accept: not-usable}
"""


@pytest.fixture
def protocol_of(tmp_path):
    """Loads a protocol of this text, in a file of its own."""

    def load(text=ONE, **changes):
        path = tmp_path / "one.yaml"
        path.write_text(text)
        changes = {"output": str(tmp_path / "run"), **changes}
        return load_protocol(path, {name.replace("__", "."): value for name, value in changes.items()})

    return load


class TestSettings:
    def test_short_forms(self, protocol_of):
        protocol = protocol_of(explore="auto", rounds=4)
        assert protocol.explore == ExploreSection() and protocol.rounds == RoundsSection(number=4)
        assert protocol_of(dump(protocol)).explore == protocol.explore
        plain = protocol_of("system: {structures: [ala2-c7eq.pdb, ala2-c7ax.pdb]}")
        assert plain.explore is None and plain.rounds is None

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"explore__ways": ["torsions", "opes"], "rounds__number": 1},
                "opes.* along the CV between rounds.*no two rounds",
            ),
            ({"explore__ways": ["opes"], "rounds": None}, "opes.* along the CV between rounds.*no two rounds"),
            ({"explore__frame_interval": "3 ps"}, "longer than the lag time"),
            ({"rounds__length": "5 ps"}, "fewer than 10 depositions.*at least 6 ps"),
            ({"explore": None, "rounds": None}, "Add explore: auto"),
            ({"explore__ways": ["torsion"]}, "Did you mean 'torsions'"),
        ],
    )
    def test_refusals(self, protocol_of, changes, message):
        with pytest.raises(GeomGNNError, match=message):
            protocol_of(**changes)

    def test_a_given_cv_is_not_learned(self, protocol_of, cv_file):
        with pytest.raises(GeomGNNError, match="cv.file is one that exists"):
            protocol_of(cv={"file": str(cv_file)}, explore="auto")


def candidate(name, margin, fault=""):
    return Candidate(SimpleNamespace(training_information={"estimator": name}), margin, fault)


class TestChoice:
    def test_the_largest_margin_of_the_worst_target(self):
        known = [candidate("linear", [0.4, 3.0]), candidate("progress", [0.5, 0.6])]
        assert choose_candidate(known) is known[1]
        assert choose_candidate([candidate("linear", []), known[0]]) is known[0]  # of the other nothing is known
        unknown = [candidate("linear", [math.nan]), candidate("progress", [math.nan])]
        assert choose_candidate(unknown) is unknown[1]  # it follows what is slow, whatever may fool it

    def test_only_what_can_be_biased(self):
        stiff = candidate("linear", [2.0], "too stiff")
        assert choose_candidate([stiff, candidate("progress", [0.1])]).estimator == "progress"
        with pytest.raises(GeomGNNError, match="too stiff"):
            choose_candidate([stiff])

    def test_the_best_round(self):
        rounds = [{"state_changes": n, "biased_ns": t} for n, t in ((2, 1.0), (4, 1.0), (4, 1.0), (None, 1.0))]
        assert best_round(rounds) == 2
        driven = [{"slow_torsion_crossings_per_ns": {"phi": a, "omega": b}} for a, b in ((9.0, 1.0), (2.0, 2.5), (3.0, 0.0))]
        assert best_round(driven) == 1
        assert best_round([{**driven[1], "failed": "hot"}, driven[2]]) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stops: what the command said, and its folder."""
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "one.yaml").write_text(ONE)
    done = subprocess.run([*COMMAND, "run", "one.yaml"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stdout + done.stderr  # far too short to have converged
    return done, folder / "runs" / "one"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:one.yaml")
class TestRun:
    def test_files_and_summary(self, whole):
        done, folder = whole
        assert {"explore", "seeds", "unbiased", "rounds", "rounds.json", "starts.json"} <= {p.name for p in folder.iterdir()}
        noted = json.loads((folder / "rounds.json").read_text())["rounds"]
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["rounds"] == noted and 1 <= len(noted) <= 2
        assert sum(one["taken"] for one in noted) == 1
        for one in noted:
            assert one["slow_torsions"] and one["candidates"][0].startswith("progress: drive margin")
            assert (folder / one["folder"] / "report.html").is_file()
        seeds = json.loads((folder / "seeds" / "seeds.json").read_text())["seeds"]
        starts = json.loads((folder / "starts.json").read_text())["structures"]
        assert len(starts) == 1 + len(seeds) + noted[0]["explored"]["seeds"] and starts[0].endswith("ala2-c7eq.pdb")
        page = (folder / "report.html").read_text()
        explored = noted[0]["explored"]  # it is too short to drive anything
        assert explored["frames"] > 0 and "frames explored along its CV" in page
        assert len(list((folder / "rounds" / "1" / "explore").glob("opes.*.dcd"))) == 2  # from as many starts as walkers
        further = json.loads((folder / "rounds" / "1" / "seeds" / "seeds.json").read_text())["seeds"]
        assert (
            len(further) == explored["seeds"] == len(list((folder / "rounds" / "1" / "unbiased").glob("trajectory.*.dcd")))
        )
        assert "Rounds of learning" in page and "Seeds: minima of what was explored" in page and seeds[0]["origin"] in page
        assert 1 <= summary["every"] <= 4 and load_protocol(folder / "protocol.yaml").run.every == summary["every"]
        assert done.stdout.count("(run.every: auto)") == 1 + len(noted)  # of each CV
        assert "Round 1 of at most 2" in done.stdout and "Seeds: " in done.stdout

    def test_asked_for_again(self, whole, no_simulation):
        _, folder = whole
        before = contents(folder)
        workflow.run_protocol(load_protocol(folder.parents[1] / "one.yaml", {"output": str(folder)}))
        after = contents(folder)
        changed = {path.name for path in after if after[path] != before.get(path)}
        assert changed <= {"report.html", "wall_time.json", "summary.json", "topology.pdb"}

    def test_another_cv_is_refused_after_a_round(self, whole):
        _, folder = whole
        other = load_protocol(folder.parents[1] / "one.yaml", {"output": str(folder), "cv.softening": "0.1 ps"})
        with pytest.raises(GeomGNNError, match="another protocol: cv.softening differ"):
            workflow.run_protocol(other)

    def test_killed_at_any_moment(self, whole, tmp_path):
        _, folder = whole
        seconds = 4 + json.loads((folder / "wall_time.json").read_text())["seconds"] / 4
        assert killed_run(folder.parents[1] / "one.yaml", tmp_path / "killed", random.Random(7), seconds, 3) >= 1
        assert not differences(folder, tmp_path / "killed")

    def test_where_cvs_leave_a_doubt_windows_along_the_sequence_are_tried(self, whole, tmp_path, monkeypatch, no_simulation):
        section = {"auto": True, "lag": "2 ps", "student": False}
        done = load_protocol(whole[1].parents[1] / "one.yaml", {"output": str(whole[1]), "cv": section})
        explored = explore_molecule(done)
        runs = [*workflow._unbiased(done), *runs_from_seeds(done, seed_structures(done, explored))]
        data = LearningData.of_runs(runs, done.unbiased.frame_interval, done.cv.lag).with_explored(explored)
        protocol = done.model_copy(update={"output": tmp_path})
        linear = {"window": "all", "mixer": "none", "estimator": "linear", "pca": 20, "softening": 0.02}
        names = {}
        for limit in (0.0, 1e6):
            monkeypatch.setattr(candidates, "DRIVEN", limit)
            chosen = learned_cv(protocol, data, 30.0, linear)
            names[limit] = [one.split(":")[0] for one in chosen.training_information["candidates"]]
            assert (chosen.spec.window == "sequence") <= (limit > 0)
        assert names == {0.0: ["linear", "progress"], 1e6: ["linear", "progress", "progress, window sequence"]}

    def test_no_cv_that_can_be_biased(self, protocol_of):
        """A verdict and a report, no error."""
        short = {"explore__length": "2 ps", "seeds": {"number": 1, "length": "10 ps"}, "cv__estimator": "linear"}
        protocol = protocol_of(**short, run__accept="usable")
        summary = workflow.run_protocol(protocol)
        assert summary["converged"] is False and "no CV was learned that can be biased" in summary["verdict"]
        assert json.loads((protocol.output / "summary.json").read_text()) == summary
        assert "no CV was learned" in (protocol.output / "report.html").read_text()
        assert not list(protocol.output.rglob("COLVAR"))
