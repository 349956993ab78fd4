"""CKA, probes and projections on numbers whose answers are known."""

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import ortho_group

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.latent.probes import make_folds, of_frames, probe
from openmm_geomgnn.studies.latent.projections import check_umap, principal_components, umap_projection
from openmm_geomgnn.studies.latent.similarity import cka_matrix, linear_cka

RNG = np.random.default_rng


def features(frames=200, channels=12, seed=0):
    rng = RNG(seed)
    return rng.normal(size=(frames, channels)) @ rng.normal(size=(channels, channels)) + 3


class TestCKA:
    @pytest.mark.parametrize("debiased", [False, True])
    def test_rotation_shift_and_scale_change_nothing(self, debiased):
        x, other = features(), features(seed=5)
        same = 7 * x @ ortho_group.rvs(12, random_state=1) - 20
        assert linear_cka(x, same, debiased) == pytest.approx(1)
        assert linear_cka(x, other, debiased) == pytest.approx(linear_cka(same, other, debiased))
        assert linear_cka(x, other, debiased) == pytest.approx(linear_cka(other, x, debiased))

    def test_other_linear_maps_change_it(self):
        x = features()
        assert linear_cka(x, x * np.r_[100, np.ones(11)]) < 0.9

    def test_definition(self):
        """In the space of features, as Kornblith et al. write it."""
        x, y = (part - part.mean(axis=0) for part in (features(), features(channels=5, seed=3)))
        norm = np.linalg.norm
        assert linear_cka(x, y, debiased=False) == pytest.approx(norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))

    def test_debiased_definition(self):
        """The estimator of Song et al., written out."""

        def hsic(k, m):
            n, one = len(k), np.ones(len(k))
            k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
            middle = k.sum() * m.sum() / ((n - 1) * (n - 2))
            return (np.trace(k @ m) + middle - 2 * (one @ k @ m @ one) / (n - 2)) / (n * (n - 3))

        x, y = features(30), features(30, 4, seed=2)
        k, m = x @ x.T, y @ y.T
        assert linear_cka(x, y) == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)), abs=1e-10)

    def test_independent_features(self):
        pairs = [(RNG(k).normal(size=(100, 80)), RNG(k + 50).normal(size=(100, 80))) for k in range(10)]
        biased = np.mean([linear_cka(*pair, debiased=False) for pair in pairs])
        debiased = [linear_cka(*pair) for pair in pairs]
        assert biased > 0.3  # what the debiased one is for
        assert abs(np.mean(debiased)) < 0.02 and np.abs(debiased).max() < 0.05

    def test_matrix(self):
        parts = [features(seed=k) for k in range(3)]
        values = cka_matrix([*parts, np.ones((200, 4), np.float32)])
        assert values[0, 1] == pytest.approx(linear_cka(*parts[:2])) and np.isnan(values[3]).all()
        np.testing.assert_allclose(np.diag(values)[:3], 1)

    def test_refused(self):
        with pytest.raises(GeomGNNError, match="4 frames or more.*\\(3, 2\\)"):
            linear_cka(np.ones((3, 2)), np.ones((3, 2)))
        with pytest.raises(GeomGNNError, match="20 and 30"):
            linear_cka(features(20), features(30))


class TestFolds:
    def test_each_frame_is_held_out_once_and_the_gap_is_kept(self):
        lengths, gap = [300, 211], 7
        folds = make_folds(lengths, 4, gap)
        assert (sum(fold.held_out.astype(int) for fold in folds) == 1).all()
        trajectory, frame = np.repeat([0, 1], lengths), np.concatenate([np.arange(n) for n in lengths])
        for fold in folds:
            held, fitted = np.flatnonzero(fold.held_out), np.flatnonzero(fold.training)
            together = trajectory[held][:, None] == trajectory[fitted]
            assert np.abs(frame[held][:, None] - frame[fitted])[together].min() == gap + 1
            assert fold.training.sum() > 250

    @pytest.mark.parametrize(("lengths", "folds", "gap", "message"), [
        ([20], 4, 30, "too short for 4 folds with a gap of 30 frames"),
        ([3], 4, 1, r"\(3 frames in 1, longest 3\) are too short"),
        ([100], 1, 1, "at least 2 folds"),
    ])  # fmt: skip
    def test_refused(self, lengths, folds, gap, message):
        with pytest.raises(GeomGNNError, match=message):
            make_folds(lengths, folds, gap)


class TestProbes:
    @pytest.mark.parametrize("channels", [10, 600])  # fewer and more than frames
    def test_what_is_there_is_found(self, channels):
        rng, folds = RNG(1), make_folds([400], 4, 5)
        hidden = rng.normal(size=(400, 3))
        x = hidden @ rng.normal(size=(3, channels)) + 50
        angle = np.arctan2(hidden[:, 0], hidden[:, 1])
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        noisy = hidden[:, 0] + rng.normal(size=400)
        r2 = probe(x, [hidden[:, :1], noisy, circle, rng.normal(size=400)], folds)
        assert r2.shape == (4, 4)
        assert r2[0].min() > 0.9999
        assert r2[1].mean() == pytest.approx(0.5, abs=0.1)
        assert 0.7 < r2[2].mean() < 0.95  # directions of points that are linear in the features
        assert abs(r2[3].mean()) < 0.05  # noise

    def test_noise_that_lasts_is_not_found(self):
        """Frames next to each other are alike, and a fold of single frames would be read from its neighbours."""
        rng, folds = RNG(3), make_folds([2000], 4, 60, 10)
        series = lfilter([1], [1, -np.exp(-1 / 20)], rng.normal(size=(2000, 45)), axis=0)
        x, targets = series[:, :40], list(series[:, 40:].T)
        dealt = rng.permutation(2000) % 4
        leaky = [fold._replace(training=dealt != k, held_out=dealt == k) for k, fold in enumerate(folds)]
        assert probe(x, targets, leaky).mean() > 0.2 and probe(x, targets, folds).mean() < 0.05

    def test_scale_and_shift_of_features_change_nothing(self):
        folds, x, y = make_folds([300], 3, 2), features(300), RNG(2).normal(size=(300, 2)) + features(300)[:, :2]
        scale = RNG(4).uniform(0.1, 1000, 12)
        np.testing.assert_allclose(probe(x, [y], folds), probe(x * scale + 4 * scale, [y], folds), atol=1e-6)

    def test_rounding_is_no_feature(self):
        """A channel that is constant but for rounding in float32 is left out."""
        rng, folds = RNG(6), make_folds([300], 3, 2)
        hidden = rng.normal(size=300)
        rounding = (100 + 1e-5 * hidden).astype(np.float32)
        assert np.ptp(rounding) > 0
        found = probe(np.stack([rounding, rng.normal(size=300)], axis=1), [hidden], folds)
        assert found.mean() < 0.05

    def test_features_that_are_the_same_in_all_frames(self):
        """Such as the embedding of elements, of which a probe can but name the mean."""
        folds, y = make_folds([300], 3, 2), RNG(2).normal(size=300)
        np.testing.assert_allclose(probe(np.ones((300, 5)), [y], folds), 0, atol=0.05)

    def test_folds_of_some_of_the_frames(self):
        folds, rows = make_folds([300], 3, 5), np.arange(0, 300, 4)
        x, y = features(300), RNG(2).normal(size=300) + features(300)[:, 0]
        thinned = of_frames(folds, rows)
        np.testing.assert_array_equal(thinned[1].held_out, folds[1].held_out[rows])
        assert not (thinned[1].held_out & thinned[1].training).any()
        assert probe(x[rows], [y[rows]], thinned).mean() > 0.5
        with pytest.raises(GeomGNNError, match="3 frames are too few for 3 folds"):
            of_frames(folds, np.arange(3))

    def test_an_observable_that_does_not_vary_in_a_fold(self):
        folds = make_folds([300], 3, 2)
        y = np.where(folds[1].training, 0.0, 0.0)
        assert np.isnan(probe(features(300), [y], folds)).all()

    def test_refused(self):
        folds, x = make_folds([300], 3, 2), features(300)
        with pytest.raises(GeomGNNError, match="299 frames .* for 300"):
            probe(x, [np.zeros(299)], folds)
        with pytest.raises(GeomGNNError, match="not finite"):
            probe(np.where(x > 5, np.nan, x), [np.zeros(300)], folds)


class TestProjections:
    def test_principal_components(self):
        rng = RNG(0)
        plane = rng.normal(size=(300, 2)) * [5, 2]
        axes = ortho_group.rvs(30, random_state=2)[:2]
        found = principal_components(plane @ axes + 8)
        assert sum(found.explained) == pytest.approx(1) and found.explained[0] > 0.8
        centred = plane - plane.mean(axis=0)
        np.testing.assert_allclose(found.coordinates @ found.coordinates.T, centred @ centred.T, atol=1e-8)
        assert principal_components(plane[:, :1]).coordinates.shape == (300, 1)

    def test_umap_of_too_few_frames(self):
        with pytest.raises(GeomGNNError, match="more than 16 frames, but there are 10"):
            umap_projection(features(10))

    def test_without_umap(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(GeomGNNError, match=r'is not installed: pip install "openmm-geomgnn\[project\]"'):
            check_umap()
