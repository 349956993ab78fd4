"""`geomgnn score`: the table, the files, what is chosen; a scoring that is asked for again, or was stopped."""

import json

import pytest
from molecules import ALA2
from turning_phi import INTERVAL, encoder, trajectory  # noqa: F401

from openmm_geomgnn.cli.score import run_score
from openmm_geomgnn.cli.score_files import MAP, SCORES
from openmm_geomgnn.cli.settings.sections import CVSection
from openmm_geomgnn.cli.settings.yaml_files import load_score
from openmm_geomgnn.cli.settings.yaml_text import read_yaml
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.tokens import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture
def written(encoder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        trajectory(200, seed)[0].save_dcd(str(tmp_path / f"{seed}.dcd"))
    (tmp_path / "s.yaml").write_text(
        f"topology: {ALA2}\ntrajectories: ['*.dcd']\nframe_interval: {INTERVAL} ps\n"
        f"cv: {{lag: 10 ps, encoder: {encoder}, margin: 0.2}}\nscore: {{pca: [5, null], softening: [0, 0.1 ps]}}\n"
    )
    return tmp_path


@pytest.fixture
def embedded(monkeypatch):
    """Numbers of frames that were embedded."""
    counts, embed = [], Tokenizer.embed

    def counted(self, pos, *rest, **options):
        counts.append(len(pos))
        return embed(self, pos, *rest, **options)

    monkeypatch.setattr(Tokenizer, "embed", counted)
    return counts


def test_command(written, geomgnn, embedded):
    code, output, error = geomgnn("score", "s.yaml")
    assert code == 0 and not error
    folder = written / "s.scores"
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [SCORES, MAP]
    content = json.loads((folder / SCORES).read_text())
    assert len(content["rows"]) == 2 + 4 + 4
    (chosen,) = content["chosen"]
    assert chosen["why"] in output and chosen["cv"] in output and f"written to {folder}" in output
    # the section is one to paste, with what else was given
    (written / "cv.yaml").write_text(chosen["cv"])
    section = CVSection.model_validate(read_yaml(written / "cv.yaml")[0]["cv"], context={"folder": written})
    row = chosen["row"]
    assert (section.pca, section.softening, section.window) == (row["pca"], row["softening"], row["window"])
    assert section.lag == 10 and section.margin == 0.2
    before = (folder / SCORES).read_bytes()
    embedded.clear()
    assert geomgnn("score", "s.yaml")[0] == 0
    assert not embedded and (folder / SCORES).read_bytes() == before


def test_more_rows_and_other_data(written, embedded):
    run_score(load_score("s.yaml"))
    before = json.loads((written / "s.scores" / SCORES).read_text())
    run_score(load_score("s.yaml", {"score.pca": [5, None, 8]}))
    more = json.loads((written / "s.scores" / SCORES).read_text())
    assert more["rows"][:10] == before["rows"] and len(more["rows"]) == 3 + 6 + 6
    embedded.clear()
    trajectory(200, 7)[0].save_dcd(str(written / "1.dcd"))
    run_score(load_score("s.yaml"))
    other = json.loads((written / "s.scores" / SCORES).read_text())
    assert sum(embedded) >= 800 and len(other["rows"]) == 10 and other["rows"][0] not in more["rows"]


def test_stopped_and_damaged(written, monkeypatch, embedded):
    from openmm_geomgnn.cli import scoring

    run_score(load_score("s.yaml", {"output": "whole"}))
    whole = sum(embedded)
    embedded.clear()
    save = scoring.save_rows

    def stop_after_saving(*arguments):
        save(*arguments)
        if len(arguments[2]) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "save_rows", stop_after_saving)
    with pytest.raises(KeyboardInterrupt):
        run_score(load_score("s.yaml", {"output": "parts"}))
    monkeypatch.setattr(scoring, "save_rows", save)
    assert 400 <= sum(embedded) < whole
    run_score(load_score("s.yaml", {"output": "parts"}))
    assert sum(embedded) == whole  # nothing twice
    assert (written / "parts" / SCORES).read_bytes() == (written / "whole" / SCORES).read_bytes()
    assert not list((written / "parts").glob("*.partial"))
    (written / "parts" / SCORES).write_text((written / "whole" / SCORES).read_text()[:900])
    run_score(load_score("s.yaml", {"output": "parts"}))
    assert (written / "parts" / SCORES).read_bytes() == (written / "whole" / SCORES).read_bytes()


def test_a_mixer_to_paste(written, capsys):
    changes = {"score.mixer": "mlp", "cv.training.epochs": 2, "cv.training.batch_size": 100, "score.workers": 1}
    run_score(load_score("s.yaml", changes))
    (chosen,) = json.loads((written / "s.scores" / SCORES).read_text())["chosen"]
    (written / "cv.yaml").write_text(chosen["cv"])
    section = CVSection.model_validate(read_yaml(written / "cv.yaml")[0]["cv"], context={"folder": written})
    assert (section.estimator, section.mixer, section.training.epochs) == ("vampnet", "mlp", 2)
    assert "mlp" in capsys.readouterr().out and not (written / "s.scores" / MAP).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score: {pca: [0]}", "at least 1"),
        ("score: {softening: [20]}\ncv: {estimator: vampnet, mixer: mlp}", "this scores linear CVs"),
        ("score: {folds: 1}", "at least 2"),
        ("scores: {}", "Unknown key 'scores'.*Did you mean 'score'"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(f"topology: {ALA2}\ntrajectories: [{ALA2}]\nframe_interval: 1 ps\n{text}\n")
    with pytest.raises(GeomGNNError, match=message):
        load_score(tmp_path / "s.yaml")
