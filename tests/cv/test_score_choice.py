"""Which of many CVs is chosen, and scores of many CVs against those of one at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from time_series import autoregressive

from openmm_geomgnn.cv.estimators import rates_within
from openmm_geomgnn.cv.score_choice import choose
from openmm_geomgnn.cv.score_rows import Case, Features, ScoreGrid, ScoreRow, Split, score_cases
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import cross_validate, fit_linear, folds_of_blocks

HARD_FOLD = np.array([-0.3, 0.0, 0.0, 0.0])


def row(pca, held_out, rate=5.0, spread=0.1, gap=None, features="et-64", components=1, noise=(0, 0, 0, 0), mixer="none"):
    folds = held_out + HARD_FOLD + np.array(noise)
    error = folds.std(ddof=1) / 2
    score = float(folds.mean())
    return ScoreRow(
        features, "all", pca, 0.1, components, mixer, pca, 1.99, score, error, tuple(folds), gap, (rate,), (spread,)
    )


NOISE = (0.01, -0.01, 0.01, -0.01)


def test_softest_of_those_as_good_as_the_best():
    best, soft, worse = row(100, 1.95, noise=NOISE), row(50, 1.948, rate=3.0), row(20, 1.93, rate=1.0)
    choice = choose([best, worse, soft])
    assert choice.row is soft and "2 of 3" in choice.why
    # the fold that is hard for all is no reason to take a row that is worse in every fold
    assert best.vamp2_held_out_error > best.vamp2_held_out - worse.vamp2_held_out


def test_gap_comes_before_softness():
    rows = [row(100, 1.95, gap=0.70, noise=NOISE), row(50, 1.948, rate=3.0, gap=0.67), row(20, 1.947, rate=1.0, gap=0.3)]
    choice = choose(rows)
    assert choice.row is rows[1] and "0.70" in choice.why
    assert choose([*rows, row(10, 1.948, rate=0.5)]).row is rows[1]  # an unknown gap is not the best


def test_a_vampnet_is_taken_only_where_no_linear_cv_is_as_good():
    net, linear = row(None, 1.95, rate=1.0, noise=NOISE, mixer="mlp"), row(50, 1.948)
    assert choose([net, linear]).row is linear
    assert choose([net, row(50, 1.93)]).row is net


def test_cases_of_a_grid():
    cases = ScoreGrid((1, None), (0.0, 0.1), (1, 2), ("none", "mlp")).cases()
    assert len(cases) == 2 + 4 + 2  # one principal component makes no two components
    assert [case for case in cases if not case.is_linear] == [Case(None, 0.0, 1, "mlp"), Case(None, 0.0, 2, "mlp")]


def test_what_is_too_stiff_for_the_bias_is_left_out_if_others_are_not():
    stiff, soft = row(100, 1.99, rate=20.0), row(50, 1.9, rate=5.0)
    assert choose([stiff, soft]).row is stiff
    assert choose([stiff, soft], step=0.006).row is soft
    assert choose([stiff], step=0.006).row is stiff


def test_kernels_of_several_components_are_wider_as_in_a_run():
    """At 6 fs and a rate of 20/ps the narrowest kernel is 0.24 wide; twice a spread of 0.1 is 0.2, times 2^(3/4) 0.336."""
    one = row(50, 1.9, rate=20.0)
    two = replace(one, components=2, rate_300K_per_ps=(20.0, 5.0), in_basin_spread=(0.1, 0.1))
    assert one.stiffness == pytest.approx(200) and two.stiffness == pytest.approx(200 / 2**0.75)
    assert not one.can_be_biased(0.006) and two.can_be_biased(0.006)
    assert not replace(two, rate_300K_per_ps=(30.0, 5.0)).can_be_biased(0.006)


def test_references_are_never_chosen_but_spoken_of():
    rows = [row(50, 1.9), row(50, 1.99, features="torsions"), row(50, 1.8, features="random weights")]
    choice = choose(rows)
    assert choice.row is rows[0]
    assert [remark.split(" the best")[0] for remark in choice.remarks] == [
        "Random weights are worse than",
        "Torsions are better than",
    ]
    with pytest.raises(GeomGNNError, match="No CV of 2 components"):
        choose(rows, 2)


@pytest.mark.parametrize("reversible", [True, False])
def test_scores_are_those_of_one_fit_at_a_time(reversible):
    trajs = autoregressive((900, 800))
    where = [torch.arange(0, 900, 9), torch.arange(0, 800, 8)]
    rates = np.random.default_rng(0).normal(size=(200, 6))
    folds = list(folds_of_blocks([900, 800], [5, 5], 4))
    softening = (0.0, 0.5) if reversible else (0.0,)
    cases = ScoreGrid((3, None), softening, (1, 2, 9)).cases()
    found = score_cases(Features(trajs, rates, where), cases, Split(5, None, folds, {}, reversible))
    assert [one.case for one in found] == [case for case in cases if case.components < 9]  # there are six features
    for one in found:

        def fit(training, rates=None, case=one.case):
            return fit_linear(training, 5, case.components, case.pca, reversible, rates=rates, softening=case.softening)

        def options(segments):
            return {"rates": rates_within(rates, where, segments)}

        expected = cross_validate(fit, trajs, 5, folds=4, reversible=reversible, options=options)
        np.testing.assert_allclose(one.held_out, expected, atol=1e-9)
        assert one.gap is None and one.model.n_components == one.case.components


def test_gap_of_frames_that_the_cv_has_not_seen():
    """Two walkers that stay apart in one feature, in trajectories that are held out in turn, whole or by blocks."""
    rng = np.random.default_rng(1)
    sides = [-1, 1, -1, 1, -1, 1]
    trajs = [np.column_stack([side + 0.1 * rng.normal(size=400), rng.normal(size=(400, 3))]) for side in sides]
    folds = list(folds_of_blocks([400] * 6, [5] * 6, 4))
    split = Split(5, None, folds, {k: side > 0 for k, side in enumerate(sides)})
    (found,) = score_cases(Features(trajs), [Case(None, 0.0, 1)], split)
    assert found.gap == pytest.approx(1 - 2 * 2.33 * 0.1 / 2, abs=0.05)
    noise = [x[:, 1:] for x in trajs]
    (fooled,) = score_cases(Features(noise), [Case(None, 0.0, 1)], split)
    assert fooled.gap is None or fooled.gap < -1
