"""How far apart two basins stay under a bias, which trajectories stayed in one, and CVs of many settings from one basis."""

import numpy as np
import pytest
from time_series import autoregressive

from openmm_geomgnn.koopman import (
    basin_gap,
    basins,
    cross_validate,
    fit_linear,
    folds_of_blocks,
    folds_of_runs,
    held_out_score,
    linear_basis,
)


def test_gap_is_the_empty_part_of_the_way():
    low, high = np.linspace(-1.2, -0.8, 1001), np.linspace(0.9, 1.1, 1001)
    expected = (0.902 - (-0.804)) / 2.0
    assert basin_gap([low, high]) == pytest.approx(expected, abs=1e-9)
    assert basin_gap([5 - 3 * low, 5 - 3 * high]) == pytest.approx(expected, abs=1e-9)  # neither unit nor sign matter
    assert basin_gap([low[:400], high, low[400:]]) == pytest.approx(expected, abs=1e-9)


def test_gap_of_a_function_that_is_fooled_is_negative():
    rng = np.random.default_rng(0)
    walkers = [rng.uniform(-1, 0.6, 2000), rng.uniform(-0.6, 1, 2000)]
    assert basin_gap(walkers) < -0.5
    assert basin_gap([walkers[1], walkers[0]], [False, True]) == pytest.approx(basin_gap(walkers))


def test_gap_that_cannot_be_said():
    one = np.linspace(-1, 1, 100)
    assert basin_gap([]) is None and basin_gap([one]) is None
    assert basin_gap([one, one + 3], [True, True]) is None and basin_gap([one, one], [True, False]) is None


def test_basins_of_trajectories_that_stay_and_of_one_that_crosses():
    rng = np.random.default_rng(1)
    stay = [side + 0.1 * rng.normal(size=300) for side in (-1.0, 1.0, -1.0)]
    cross = np.concatenate([np.full(150, -1.0), np.full(150, 1.0)]) + 0.1 * rng.normal(size=300)
    spike = stay[0].copy()
    spike[100] = 1.0  # one frame of noise is no crossing
    assert basins([*stay, cross, spike], 5) == [False, True, False, None, False]


def test_folds_of_runs_hold_whole_trajectories_out_once():
    lengths, order = [10, 20, 30, 40, 50], [4, 0, 3, 1, 2]
    folds = list(folds_of_runs(lengths, 2, order))
    held = [{s.trajectory for s in out} for _, out in folds]
    assert held == [{4, 3, 2}, {0, 1}]
    for training, out in folds:
        assert {(s.start, s.stop) for s in [*training, *out]} == {(0, length) for length in lengths}
        assert not {s.trajectory for s in training} & {s.trajectory for s in out} and len(training) + len(out) == 5


def test_folds_of_blocks_keep_the_gap_of_each_trajectory():
    lengths, lags, gaps = [1000, 200], [10, 2], [25, 5]
    for training, out in folds_of_blocks(lengths, lags, 4, gaps=gaps):
        for s in training:
            near = [max(o.start - s.stop, s.start - o.stop) for o in out if o.trajectory == s.trajectory]
            assert min(near) >= gaps[s.trajectory]


@pytest.mark.parametrize("reversible", [True, False])
def test_one_basis_gives_the_fits_of_all_settings(reversible):
    trajs = autoregressive((600, 500))
    rates = np.random.default_rng(2).normal(size=(200, 6))
    basis = linear_basis(trajs, 5, None, reversible)
    for pca, softening, n in ((None, 0.0, 2), (3, 0.0, 1), (4, 0.5, 1), (None, 2.0, 3)):
        soft = {"rates": rates, "softening": softening} if softening and reversible else {}
        expected = fit_linear(trajs, 5, n, pca, reversible, **soft)
        found = basis.model(n, pca, **soft)
        np.testing.assert_allclose(found.singular_values, expected.singular_values, atol=1e-9)
        np.testing.assert_allclose(np.abs(found.transform(trajs[0])), np.abs(expected.transform(trajs[0])), atol=1e-6)
        inner = basis.solve(n, pca, **soft)
        values = [inner.transform(basis.reduce(x)) for x in trajs]
        assert held_out_score(lambda x: x, values, 5, reversible=reversible) == pytest.approx(
            held_out_score(expected, trajs, 5, reversible=reversible), abs=1e-9
        )


def test_folds_of_blocks_are_those_of_cross_validation():
    trajs, seen = autoregressive((400, 300)), []
    cross_validate(lambda x: fit_linear(x, 5, 1), trajs, 5, folds=3, options=lambda s: seen.append(s) or {})
    assert seen == [training for training, _ in folds_of_blocks([400, 300], [5, 5], 3)]
