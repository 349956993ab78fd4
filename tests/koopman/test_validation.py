"""Held-out scores: what is held out, how far it is from what was fitted, and what the scores say."""

import numpy as np
import pytest
from time_series import autoregressive

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import (
    cross_validate,
    fit_linear,
    held_out_score,
    hold_out,
    vamp_score,
)


def distance(segment, others):
    """Frames between a segment and the nearest of others in its trajectory."""
    gaps = [max(s.start - segment.stop, segment.start - s.stop) for s in others if s.trajectory == segment.trajectory]
    return min(gaps, default=np.inf)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fractions", [0.2, (0.2, 0.1), (0.3, 0.25, 0.05), (0.45, 0.35)])
def test_hold_out_keeps_contiguous_blocks_a_lag_apart(fractions, seed):
    lengths, lag = [1000, 37, 400, 37, 37, 37, 37, 2500], 10
    parts = hold_out(lengths, lag, fractions, seed=seed)
    shares = fractions if isinstance(fractions, tuple) else (fractions,)
    assert len(parts) == 1 + len(shares)
    taken = [np.zeros(n, dtype=int) for n in lengths]
    for part in parts:
        others = [s for other in parts if other is not part for s in other]
        for segment in part:
            assert segment.stop - segment.start > lag and distance(segment, others) >= lag
            segment.take(taken)[:] += 1
    assert max(t.max() for t in taken) == 1
    for part, share in zip(parts[1:], shares, strict=True):
        held = [sum(s.stop - s.start for s in part if s.trajectory == k) for k in range(8)]
        assert all(abs(held[k] - share * lengths[k]) < 4 for k in (0, 2, 7))
        assert sorted(held[1:2] + held[3:7]) == [0] * (5 - round(share * 5)) + [37] * round(share * 5)
    assert parts == hold_out(lengths, lag, fractions, seed=seed) != hold_out(lengths, lag, fractions, seed=seed + 9)


def test_hold_out_of_short_trajectories():
    everything, nothing = hold_out([1000, 37], 10, 0.0)
    assert [s.stop for s in everything] == [1000, 37] and nothing == []
    # a block of two lags is more than a tenth of this, but not more than a fifth
    training, validation, test = hold_out([125, 125], 10, (0.2, 0.1))
    assert [s.stop - s.start for s in validation + test] == [25, 25, 20, 20] and training
    for lengths, fraction in (([100], 0.2), ([90, 90], (0.2, 0.1))):
        with pytest.raises(GeomGNNError, match="too short to hold out a fraction of 0.2"):
            hold_out(lengths, 30 if len(lengths) == 1 else 10, fraction)
    with pytest.raises(GeomGNNError, match="leave nothing to train on"):
        hold_out([1000], 10, (0.5, 0.5))


def test_cross_validation_folds_partition_the_frames():
    """Each frame is held out once, and what is fitted keeps a lag away from it."""
    lengths, lag = [500, 420, 30], 5
    index = [np.column_stack([np.full(n, k), np.arange(n)]).astype(float) for k, n in enumerate(lengths)]
    seen, scored = [], []

    def fit(training, where):
        rows = np.concatenate(training)
        seen.append({tuple(r) for r in rows})
        assert len(seen[-1]) == len(rows)
        assert all((np.diff(x[:, 1]) == 1).all() and len(set(x[:, 0])) == 1 for x in training)
        assert [(len(x), x[0, 0], x[0, 1]) for x in training] == [(s.stop - s.start, s.trajectory, s.start) for s in where]
        scored.append(set())

        def model(x):
            scored[-1] |= {tuple(r) for r in x}
            return np.random.default_rng(0).normal(size=(len(x), 1))

        return model

    options = {"options": lambda segments: {"where": segments}}
    assert cross_validate(fit, index, lag, folds=4, **options).shape == (4,)
    everything = {tuple(r) for x in index for r in x}
    assert sum(map(len, scored)) == len(set.union(*scored)) == len(everything)
    for fitted, held in zip(seen, scored, strict=True):
        assert {(k, t) for k, t in everything if not any((k, t + d) in held for d in range(-lag, lag + 1))} == fitted


def test_cross_validation_prefers_the_truth_and_exposes_overfitting():
    rng = np.random.default_rng(0)
    latent = autoregressive((1500, 1500), n=2, seed=1)
    padded = [np.column_stack([x, rng.normal(size=(len(x), 200))]) for x in latent]
    lean = cross_validate(lambda x: fit_linear(x, 5, 2), latent, 5, folds=4)
    fat = cross_validate(lambda x: fit_linear(x, 5, 2, pca=None), padded, 5, folds=4)
    fat_train = vamp_score(fit_linear(padded, 5, 2, pca=None))
    assert lean.shape == (4,) and lean.mean() > fat.mean() and fat.mean() < fat_train
    assert lean.mean() == pytest.approx(vamp_score(fit_linear(latent, 5, 2)), abs=0.1)
    model = fit_linear(latent, 5, 2)
    assert held_out_score(model, latent, 5) == pytest.approx(vamp_score(model), abs=1e-9)
    ones = [np.ones(len(x)) for x in latent]
    weighted = cross_validate(lambda x, weights: fit_linear(x, 5, 2, weights=weights), latent, 5, folds=4, weights=ones)
    np.testing.assert_allclose(weighted, lean, atol=1e-10)
    with pytest.raises(GeomGNNError, match="too short for 5 folds"):
        cross_validate(lambda x: fit_linear(x, 40, 1), latent[0][:100], 40)
