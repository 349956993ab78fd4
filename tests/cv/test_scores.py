"""Tables of scores: rows, references, one embedding for each encoder and window, rows that are known already."""

import numpy as np
import pytest
from molecules import ALA2
from turning_phi import INTERVAL, encoder, trajectory  # noqa: F401

from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.score_rows import RANDOM, TORSIONS, Case, ScoreGrid
from openmm_geomgnn.cv.scores import ScoreSettings, score_cvs
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.representation.tokens import Tokenizer

pytestmark = pytest.mark.slow
GRID = ScoreGrid((10, None), (0.0, 0.1), (1, 2))
SCORING = ScoreSettings(GRID, ("all", "sequence"))


@pytest.fixture(scope="module")
def settings(encoder):  # noqa: F811
    return FitSettings(10.0, INTERVAL, encoder=encoder)


@pytest.fixture(scope="module")
def data():
    return [trajectory(300, seed)[0] for seed in range(3)]


@pytest.fixture(scope="module")
def rows(settings, data):
    return score_cvs(data, ALA2, settings, SCORING)


def test_every_case_of_every_window_and_the_references(rows):
    kinds = [(row.features, row.window) for row in rows]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        (TORSIONS, "-"): 4,  # without softening
        **{(name, window): 8 for name in ("random", RANDOM) for window in ("all", "sequence")},
    }
    for row in rows:
        assert 1 < row.vamp2_held_out < 1 + row.components and len(row.fold_scores) == 4 and row.gap is None
        assert row.vamp2_training > row.vamp2_held_out - 0.2
        assert len(row.rate_300K_per_ps) == len(row.in_basin_spread) == row.components and row.stiffness > 0


def test_figures_are_those_of_the_fit(rows, settings, data):
    """A row is the CV that is fitted with its settings; its gradient is looked at in other frames."""
    row = next(row for row in rows if row.window == "sequence" and row.case == Case(10, 0.1, 1) and not row.is_reference)
    fit = FitSettings(
        10.0, INTERVAL, encoder=settings.encoder, tokens=TokenSpec(window="sequence"), pca=10, softening=0.1, bounded=False
    )
    facts = fit_cv(data, ALA2, fit).training_information
    for name in ("vamp2_training", "vamp2_held_out", "vamp2_held_out_error"):
        assert getattr(row, name) == pytest.approx(facts[name], abs=1e-5)
    assert row.in_basin_spread == pytest.approx(facts["in_basin_spread"], rel=1e-3)
    assert row.rate_300K_per_ps == pytest.approx(facts["rate_300K_per_ps"], rel=0.3)


def test_softening_softens_and_torsions_know_the_torsion(rows):
    for window in ("all", "sequence"):
        mine = {row.case: row for row in rows if row.window == window and not row.is_reference}
        assert mine[Case(None, 0.1, 1)].stiffness < mine[Case(None, 0.0, 1)].stiffness
    torsions = [row.vamp2_held_out for row in rows if row.features == TORSIONS and row.components == 1]
    networks = [row.vamp2_held_out for row in rows if row.features != TORSIONS and row.components == 1]
    assert min(torsions) > max(networks) - 0.1


def test_one_embedding_for_each_encoder_and_window_and_none_for_known_rows(settings, data, monkeypatch):
    embedded, embed = [], Tokenizer.embed

    def counted(self, pos, *rest, **options):
        embedded.append(len(pos))
        return embed(self, pos, *rest, **options)

    monkeypatch.setattr(Tokenizer, "embed", counted)
    kept = []
    grid = ScoreSettings(ScoreGrid((5, 10, None), (0.0,)), ("all",))
    rows = score_cvs(data, ALA2, settings, grid, keep=kept.append)
    assert sum(embedded) == 2 * 900 and [len(found) for found in kept] == [3, 6, 9] and kept[-1] == rows
    embedded.clear()
    assert score_cvs(data, ALA2, settings, grid, known=rows) == rows and not embedded
    assert score_cvs(data, ALA2, settings, grid, known=rows[:6]) == rows and sum(embedded) == 900  # random weights


def test_gap_of_biased_walkers_that_stay_on_their_sides(settings, data):
    """Phi turns by less than it takes to get from one side to the other; a third walker goes across."""
    parts = []
    for seed, angles in ((11, (-1.0, -0.4)), (12, (0.4, 1.0)), (13, (-1.0, 1.0))):
        every, where = trajectory(2000, seed)
        inside = np.flatnonzero((where > angles[0]) & (where < angles[1]))[:300]
        parts.append(every[inside[np.argsort(where[inside])] if seed == 13 else inside])
    biases = [None] * 3 + [np.zeros(len(part)) for part in parts]
    rows = score_cvs([*data, *parts], ALA2, settings, ScoreSettings(ScoreGrid((10,), (0.1,)), ("all",)), biases=biases)
    for row in rows:
        assert row.gap == pytest.approx(0.8 / 1.4, abs=0.25), row.features


def test_mixers_are_trained_for_each_fold_side_by_side_or_not(settings, data):
    training = {"epochs": 3, "batch_size": 300, "seed": 1}
    parts, biases = [part[:200] for part in data], [None, None, np.zeros(200)]
    grid = ScoreGrid((5,), (0.0,), (1,), ("none", "mlp"))
    alone, together = (
        score_cvs(parts, ALA2, settings, ScoreSettings(grid, ("all",), 2, training=training, workers=workers), biases=biases)
        for workers in (1, 2)
    )
    assert [(row.features, row.mixer) for row in alone] == [
        (TORSIONS, "none"),
        ("random", "none"),
        ("random", "mlp"),
        (RANDOM, "none"),
    ]
    net = alone[2]
    assert 1 < net.vamp2_held_out < net.vamp2_training + 0.1 and 0 < net.stiffness < np.inf
    np.testing.assert_allclose(net.fold_scores, together[2].fold_scores, atol=1e-4)


def test_whole_runs_are_held_out_where_there_are_many(settings):
    many = [trajectory(80, seed)[0] for seed in range(12)]
    grid = ScoreGrid((5,), (0.0,))
    runs, blocks = (
        score_cvs(many, ALA2, settings, ScoreSettings(grid, ("all",), hold_out=how)) for how in ("auto", "blocks")
    )
    assert [row.vamp2_training for row in runs] == pytest.approx([row.vamp2_training for row in blocks])
    assert runs[0].fold_scores != blocks[0].fold_scores
    with pytest.raises(GeomGNNError, match="Use fewer folds"):
        score_cvs(many[:2], ALA2, settings, ScoreSettings(grid, ("all",), hold_out="runs"))


def test_random_weights_are_of_the_seed(encoder):  # noqa: F811
    trained = Encoder.load(encoder)
    one, same, other = (trained.with_random_weights(seed) for seed in (1, 1, 2))
    assert one.settings == trained.settings and one.content_hash() == same.content_hash() != other.content_hash()
    assert trained.content_hash() == Encoder.load(encoder).content_hash() != one.content_hash()
