"""The study of transfer: what is held out, what the rows say together, and a small study from runs to report, twice."""

import json
from dataclasses import replace

import numpy as np
import pytest

from openmm_geomgnn.cli.settings.yaml_files import load_transfer
from openmm_geomgnn.cli.transfer import run_transfer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import Segment
from openmm_geomgnn.studies.transfer import study
from openmm_geomgnn.studies.transfer.scoring import (
    FITTED,
    LINEAR,
    TRANSFERRED,
    ZERO_SHOT,
    RowKey,
    Series,
    TransferRow,
    TransferSettings,
    expected_keys,
    linear_rows,
    some_of,
)
from openmm_geomgnn.studies.transfer.tables import Condition, compare, comparison_table, notes

SMALL = """
peptides: {sequences: [A, G], length: 24 ps, frame_interval: 0.2 ps, equilibration: 1 ps}
shared_cv:
  lag: 0.4 ps
  pca: 10
  components: [1, 2]
  mixer_settings: {pool: sum, out_features: 3, width: 8}
  training: {epochs: 2}
compare: {random_weights: 1, mixer_seeds: [1], data: [8 ps, null], folds: 2, workers: 1}
"""


def settings_of(folder, text=SMALL):
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return load_transfer(path, {"output": str(folder / "out")})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    return folder, run_transfer(settings_of(folder))


@pytest.mark.slow
def test_a_study_from_nothing_to_a_report(finished):
    folder, rows = finished
    keys = {row.key for row in rows}
    assert {key.molecule for key in keys} == {"Ace-A-Nme", "Ace-G-Nme"}
    assert {key.features for key in keys} == {"torsions", "et-64", "random weights 1"}
    assert {(key.method, key.data) for key in keys if key.features == "et-64" and key.method != ZERO_SHOT} == {
        (method, data) for method in (LINEAR, FITTED, TRANSFERRED, "untrained") for data in (8.0, None)
    }
    assert {key.data for key in keys if key.method == ZERO_SHOT} == {0.0}
    for row in rows:
        assert row.problem is None and len(row.fold_scores) == 2, row
        assert 1 <= row.score <= 1 + row.key.components
    whole = [row for row in rows if row.key[1:3] == ("torsions", LINEAR) and row.key[5:] == (None, 2)]
    assert len(whole) == 2 and min(row.score for row in whole) > 1.2  # psi is slow at this lag
    for name in ("report.html", "scores.png", "pretraining.png"):
        assert (folder / "out" / name).stat().st_size > 1000
    assert not (folder / "out" / "tokens").exists()
    shared = CollectiveVariable.load(folder / "out" / "shared.cv.safetensors")
    assert shared.is_shared and shared.dimension == 2
    assert shared.training_information["molecules"] == ["Ace-A-Nme", "Ace-G-Nme"]
    content = json.loads((folder / "out" / "transfer.json").read_text())
    assert len(content["rows"]) == len(rows) and content["summary"]["comparisons"]


@pytest.mark.slow
def test_what_was_scored_is_not_scored_again(finished, monkeypatch):
    folder, rows = finished
    path = folder / "out" / "transfer.json"
    content, calls = json.loads(path.read_text()), []
    monkeypatch.setattr(study, "as_job", lambda *call: calls.append(call[:2]) or [])
    again = run_transfer(settings_of(folder))
    assert not calls and {row.key: row for row in again} == {row.key: row for row in rows}
    path.write_text(json.dumps({**content, "rows": [row for row in content["rows"] if row["features"] != "torsions"]}))
    run_transfer(settings_of(folder))
    assert calls == [(LINEAR, "torsions")] * 2
    assert study.load_transfer_rows(path, "something else") == []


def test_every_fold_is_fitted_to_another_part():
    segments = [Segment(0, 0, 40), Segment(0, 50, 90), Segment(1, 0, 20)]
    found = [some_of(segments, 30, fold, 4) for fold in range(4)]
    assert found[0] == [Segment(0, 0, 30)]
    assert found[2] == [Segment(0, 50, 80)]
    assert found[3] == [Segment(0, 50, 80)]
    assert some_of(segments, 100, 3, 4) == [Segment(0, 50, 90), Segment(1, 0, 20), Segment(0, 0, 40)]
    with pytest.raises(GeomGNNError, match="100 frames to fit to, and 101"):
        some_of(segments, 101, 0, 4)


def test_a_linear_cv_of_a_slow_feature_scores_what_it_should():
    rng = np.random.default_rng(0)
    slow, fast = np.zeros(4000), rng.normal(size=(4000, 5))
    for t in range(1, 4000):
        slow[t] = 0.98 * slow[t - 1] + 0.2 * rng.normal()
    series = Series("a", [np.column_stack([slow, fast])], 5, 1.0)
    settings = TransferSettings(lagtime=5.0, components=(1,), data=(500.0, None), pca=(2, None))
    some, every = linear_rows("test", series, settings)
    assert every.score == pytest.approx(1 + 0.98**10, abs=0.12)
    assert some.key.data == 500.0 and some.score > 1.6
    (short,) = linear_rows("test", series, replace(settings, data=(4000.0,)))
    assert not short.fold_scores and np.isnan(short.score) and "4000 are asked for" in short.problem
    assert TransferRow.from_dict(json.loads(json.dumps(every.as_dict()))) == every


def test_means_and_errors_over_molecules():
    def rows(features, method, seed, values, data=None):
        mixer = "none" if method == LINEAR else "mlp"
        return [
            TransferRow(RowKey(name, features, method, mixer, seed, data, 1), (value - 0.1, value + 0.1))
            for name, value in zip("abc", values, strict=True)
        ]

    found = compare(
        [
            *rows("torsions", LINEAR, 0, [1.5, 1.6, 1.7]),
            *rows("et-64", LINEAR, 0, [1.6, 1.6, 1.9]),
            *rows("et-64", TRANSFERRED, 1, [1.5, 1.5, 1.5]),
            *rows("et-64", TRANSFERRED, 2, [1.7, 1.7, 1.7]),
            *rows("random weights 1", TRANSFERRED, 1, [1.2, 1.5, 1.3]),
            *rows("random weights 2", TRANSFERRED, 2, [1.4, 1.7, 1.3]),
            TransferRow(RowKey("a", "et-64", FITTED, "mlp", 1, None, 1), (), "too short."),
        ]
    )
    by_condition = {one.condition: one for one in found}
    linear, transferred = (by_condition[Condition(*key, None, 1)] for key in ((LINEAR, "none"), (TRANSFERRED, "mlp")))
    assert linear.score == pytest.approx(1.7) and linear.pretraining is None and linear.from_linear is None
    assert linear.from_torsions.mean == pytest.approx(0.1)
    assert linear.from_torsions.error == pytest.approx(np.std([0.1, 0, 0.2], ddof=1) / np.sqrt(3))
    assert transferred.score == pytest.approx(1.6) and transferred.random == pytest.approx((4 / 3, 4.4 / 3))
    difference = transferred.pretraining
    assert difference.mean == pytest.approx(0.2)
    assert difference.error == pytest.approx(np.std([0.3, 0, 0.3], ddof=1) / np.sqrt(3))
    assert (difference.better, difference.worse, difference.molecules) == (2, 0, 3)
    assert transferred.from_linear.mean == pytest.approx(-0.1)
    assert len(comparison_table(found)) == 3
    failed = TransferRow(RowKey("a", "et-64", FITTED, "mlp", 1, None, 1), (), "It is too short.")
    assert "Warning: 1 row could not be scored: It is too short." in list(notes([failed], found))


def test_a_job_knows_its_rows():
    settings = TransferSettings(lagtime=1.0, components=(1, 3), data=(10.0, None))
    keys = expected_keys(RowKey("a", "et-64", TRANSFERRED, "mlp", 1, None, 0), settings)
    assert len(keys) == 2 * (2 * 2 + 1) and len(set(keys)) == len(keys)
    assert len(expected_keys(RowKey("a", "et-64", LINEAR, "none", 0, None, 0), settings)) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[A, G]", "[A]", "two molecules or more"),
        ("[A, G]", "[A, B]", "one-letter codes"),
        ("[A, G]", "[A, A]", "twice"),
        ("pool: sum", "pool: flatten", "flatten"),
        ("out_features: 3", "out_features: 1", "Raise mixer_settings.out_features"),
        ("shared_cv:", "shared_cv:\n  mixer: none", "nothing to train"),
        ("pool: sum", "pool: sum, seed: 1", "compare.mixer_seeds"),
    ],
)
def test_what_cannot_be_is_refused_first(tmp_path, old, new, message):
    assert old in SMALL
    with pytest.raises(GeomGNNError, match=message):
        settings_of(tmp_path, SMALL.replace(old, new, 1))
