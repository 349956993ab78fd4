"""`cv: auto`: settings of a CV chosen by score before the fit of `geomgnn run` and `geomgnn fit`."""

import json
import shutil

import pytest
from finished_run import not_biased_yet

from openmm_geomgnn.cli import choose
from openmm_geomgnn.cli import run as workflow
from openmm_geomgnn.cli.choose import chosen_cv
from openmm_geomgnn.cli.fit import run_fit
from openmm_geomgnn.cli.provenance import current_cv
from openmm_geomgnn.cli.score_files import MAP, SCORES
from openmm_geomgnn.cli.settings.scoring import ScoreSection
from openmm_geomgnn.cli.settings.sections import CVSection
from openmm_geomgnn.cli.settings.yaml_files import dump, load_fit, load_protocol
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.representation.tokens import Tokenizer


class TestSettings:
    def test_a_bare_word_is_a_section(self, tmp_path):
        assert CVSection.model_validate("auto") == CVSection.model_validate({"auto": True})
        path = tmp_path / "p.yaml"
        path.write_text("system: {structures: [ala2-c7eq.pdb, ala2-c7ax.pdb]}\ncv: auto\n")
        protocol = load_protocol(path)
        assert protocol.cv.auto and load_protocol(path, {"cv": {"auto": True}}) == protocol
        (tmp_path / "again.yaml").write_text(dump(protocol))
        assert load_protocol(tmp_path / "again.yaml", {"output": str(protocol.output)}) == protocol

    @pytest.mark.parametrize(
        ("section", "message"),
        [
            ({"auto": True, "pca": 20}, "pca is chosen by auto"),
            ({"auto": True, "softening": "0.1 ps"}, "softening is chosen by auto"),
            ({"auto": True, "estimator": "vampnet", "mixer": "mlp"}, "auto chooses among linear CVs"),
        ],
    )
    def test_what_auto_chooses_is_not_given(self, section, message):
        with pytest.raises(ValueError, match=message):
            CVSection.model_validate(section)


@pytest.fixture
def protocol(load, copied, monkeypatch):
    not_biased_yet(copied)
    monkeypatch.setattr(
        choose, "SCORING", ScoreSection.model_validate({"pca": [10, 20], "softening": ["0.02 ps", "0.1 ps"]})
    )
    return load(cv={"auto": True, "lag": "2 ps"})


def fitted(protocol):
    """What `run_protocol` does before the biased run."""
    beginning = workflow.examined(protocol)
    cv = current_cv(protocol, beginning.record)
    return cv if cv is not None else workflow._fit(protocol, workflow._unbiased(protocol), beginning.record)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
class TestRun:
    def test_the_chosen_cv_is_fitted_and_found_again(self, protocol, load, no_simulation, capsys, monkeypatch, tmp_path):
        """In a folder with a CV of other settings; the same bytes where it was stopped between choice and fit."""
        other = protocol.model_copy(update={"output": shutil.copytree(protocol.output, tmp_path / "other")})
        old = CollectiveVariable.load(other.output / "cv.safetensors").training_information
        assert old["made_from"]["fit"]["pca"] == 20
        cv = fitted(other)
        said = capsys.readouterr().out
        (chosen,) = json.loads((other.output / SCORES).read_text())["chosen"]
        assert chosen["why"] in said and (other.output / MAP).exists()
        facts, row = cv.training_information, chosen["row"]
        assert (facts["pca"], facts["softening_ps"], cv.spec.window) == (row["pca"], row["softening"], row["window"])
        assert facts["vamp2_held_out"] == pytest.approx(row["vamp2_held_out"], abs=1e-4)
        assert facts["made_from"]["fit"]["pca"] == "auto"
        assert fitted(other).training_information == facts  # of the file
        assert current_cv(load(output=str(other.output)), workflow.examined(load()).record) is None

        fit = workflow.fit_with_progress

        def stop(*arguments, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(workflow, "fit_with_progress", stop)
        with pytest.raises(KeyboardInterrupt):
            fitted(protocol)
        assert [path.name for path in protocol.output.glob("*.partial")] == ["cv.safetensors.partial"]
        monkeypatch.setattr(workflow, "fit_with_progress", fit)
        embedded, embed = [], Tokenizer.embed

        def counted(self, pos, *rest, **options):
            embedded.append(self.encoder.name)
            return embed(self, pos, *rest, **options)

        monkeypatch.setattr(Tokenizer, "embed", counted)
        fitted(protocol)
        assert len(embedded) == 2  # for the rates of the fit; the tokens are those of the scores
        assert (protocol.output / "cv.safetensors").read_bytes() == (other.output / "cv.safetensors").read_bytes()

    def test_biased_data_have_a_say(self, protocol, copied, finished, tmp_path):
        """As in rounds: biases and intervals of frames are given, the scores lie beside the CV to be."""
        from openmm_geomgnn.cli.biased_runs import read_biased
        from openmm_geomgnn.cli.settings.biased import BiasedRuns

        runs = workflow._unbiased(protocol)
        entry = BiasedRuns.model_validate({"run": str(finished[1]), "discard": 0})
        walkers = read_biased([entry], runs[0].topology)
        given = [*runs, *(one.trajectory for one in walkers)]
        biases = [None] * len(runs) + [one.bias for one in walkers]
        intervals = [0.2] * len(runs) + [one.frame_interval for one in walkers]
        section = chosen_cv(protocol, given, runs[0].topology, biases, intervals, tmp_path / "round" / "cv.safetensors")
        assert not section.auto and section.lag == 2
        content = json.loads((tmp_path / "round" / SCORES).read_text())
        assert all(isinstance(row["gap"], float) for row in content["rows"])  # neither walker crossed
        assert "the best gap under the bias" in content["chosen"][0]["why"]
        assert chosen_cv(protocol.model_copy(update={"cv": section}), given, runs[0].topology) is section

    def test_fit(self, protocol, copied, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        text = f"topology: {copied}/topology.pdb\ntrajectories: ['{copied}/unbiased/*.dcd']\nframe_interval: 0.2 ps\n"
        (tmp_path / "f.yaml").write_text(f"{text}cv: {{auto: true, lag: 2 ps}}\n")
        cv = run_fit(load_fit(tmp_path / "f.yaml"))
        (chosen,) = json.loads((tmp_path / "f.cv.safetensors.scores" / SCORES).read_text())["chosen"]
        assert cv.training_information["pca"] == chosen["row"]["pca"]
        assert not list(tmp_path.glob("*.partial"))
