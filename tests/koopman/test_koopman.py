"""Covariances, VAMP, TICA and linear CVs, against deeptime and exactly solvable chains."""

from functools import cache

import numpy as np
import pytest
from deeptime.covariance import Covariance
from deeptime.data import prinz_potential, sqrt_model
from deeptime.decomposition import TICA, VAMP
from time_series import autoregressive

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import (
    Covariances,
    covariances,
    fit_linear,
    fix_sign,
    skewness,
    static_weights,
    timescales,
    vamp,
    vamp_score,
)

FOUR_WELL = [0.88807, 0.44977, 0.21003]


def subspace_gap(a, b):
    """Largest sine of the principal angles between the columns' spans."""
    qa, qb = np.linalg.qr(a)[0], np.linalg.qr(b)[0]
    return np.linalg.norm(qa - qb @ (qb.T @ qa), 2)


@cache
def four_well_chain(n_bins=100, step=1e-3):
    """Euler-Maruyama chain in the Prinz potential on [-1, 1]: bin centres, transition matrix, stationary weights."""
    x = np.linspace(-1, 1, n_bins)
    slope = 4 * (
        8 * x**7
        - 128 * x * np.exp(-80 * x**2)
        - 32 * (x - 0.5) * np.exp(-80 * (x - 0.5) ** 2)
        - 40 * (x + 0.5) * np.exp(-40 * (x + 0.5) ** 2)
    )
    p = np.exp(-((x[None] - (x - step * slope)[:, None]) ** 2) / (4 * step))
    p /= p.sum(1, keepdims=True)
    values, vectors = np.linalg.eig(p.T)
    stationary = vectors[:, np.argmax(values.real)].real
    return x, p, stationary / stationary.sum()


# --- covariances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reversible", [False, True])
def test_covariances_match_deeptime(reversible):
    trajs, lag = autoregressive(), 7
    ours = covariances(trajs, lag, reversible=reversible)
    estimator = Covariance(
        lag,
        compute_c00=True,
        compute_c0t=True,
        compute_ctt=not reversible,
        remove_data_mean=True,
        reversible=reversible,
        bessels_correction=False,
    )
    for x in trajs:
        estimator.partial_fit((x[:-lag], x[lag:]))
    theirs = estimator.fetch_model()
    np.testing.assert_allclose(ours.mean_0, theirs.mean_0, rtol=1e-12)
    np.testing.assert_allclose(ours.c00, theirs.cov_00, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.c0t, theirs.cov_0t, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.ctt, theirs.cov_tt, rtol=1e-8, atol=1e-10)
    assert ours.n_pairs == ours.effective_pairs == 700 + 400 - 2 * lag


def test_trajectories_are_never_stitched():
    a, b = autoregressive()
    apart = covariances([a, b], 20, reversible=False)
    # Joined, the last 20 frames of a would pair with the first of b.
    joined = covariances(np.concatenate([a, b]), 20, reversible=False)
    assert joined.n_pairs == apart.n_pairs + 20
    first, second = (np.concatenate([x[s] for x in (a, b)]) for s in (slice(None, -20), slice(20, None)))
    expected = (first - first.mean(0)).T @ (second - second.mean(0)) / len(first)
    np.testing.assert_allclose(apart.c0t, expected, atol=1e-12)
    assert np.abs(joined.c0t - expected).max() > 1e-4
    # The order of the trajectories does not matter either.
    np.testing.assert_allclose(covariances([b, a], 20, reversible=False).c0t, apart.c0t, atol=1e-12)


@pytest.mark.parametrize("reversible", [False, True])
def test_weights_are_replicated_samples(reversible):
    (x,), lag = autoregressive((60,), n=3), 2
    counts = np.random.default_rng(1).integers(0, 4, size=60)
    weighted = covariances(x, lag, weights=0.1 * counts, reversible=reversible)
    # A trajectory of one pair, once for each count.
    pairs = [x[[t, t + lag]] for t in range(60 - lag) for _ in range(counts[t])]
    replicated = covariances(pairs, 1, reversible=reversible)
    for name in ("mean_0", "mean_t", "c00", "c0t", "ctt"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(replicated, name), atol=1e-13, err_msg=name)
    w = counts[: 60 - lag]
    assert weighted.effective_pairs == pytest.approx(w.sum() ** 2 / (w**2).sum())
    a = fit_linear(x, lag, n_components=2, reversible=reversible, weights=counts)
    b = fit_linear(pairs, 1, n_components=2, reversible=reversible)
    np.testing.assert_allclose(a.singular_values, b.singular_values, atol=1e-12)
    np.testing.assert_allclose(np.abs(a.projection), np.abs(b.projection), atol=1e-10)


def test_static_weights_share_one_offset_and_cannot_overflow():
    biases = [np.array([2175.0, 2177.5]), np.array([2180.0])]
    weights = static_weights(biases, 2.5)
    np.testing.assert_allclose(np.concatenate(weights), np.exp([-2.0, -1.0, 0.0]))
    with pytest.raises(GeomGNNError, match="finite"):
        static_weights([np.array([0.0, np.nan])], 2.5)


def test_float32_trajectories_are_summed_in_float64():
    x = (autoregressive((5000,), n=3)[0] + 100).astype(np.float32)
    ours, exact = covariances(x, 3), covariances(x.astype(np.float64), 3)
    np.testing.assert_array_equal(ours.c00, exact.c00)


# --- VAMP and TICA ---------------------------------------------------------------------------------------------------


def test_vamp_is_deeptimes():
    trajs, lag = autoregressive(), 3
    ours = vamp(covariances(trajs, lag, reversible=False), 3)
    theirs = VAMP(lag, dim=3).fit(trajs).fetch_model()
    np.testing.assert_allclose(ours.singular_values, theirs.singular_values[:3], atol=1e-8)
    assert subspace_gap(ours.projection, theirs.singular_vectors_left[:, :3]) < 1e-8
    psi, twin = ours.transform(trajs[0]), theirs.transform(trajs[0])
    np.testing.assert_allclose(psi * np.sign((psi * twin).sum(0)), twin, atol=1e-8)
    full = vamp(covariances(trajs, lag, reversible=False))
    full_twin = VAMP(lag).fit(trajs).fetch_model()
    for r in (1, 2):
        assert vamp_score(full, r=r) == pytest.approx(full_twin.score(r), abs=1e-8)


def test_tica_is_deeptimes():
    trajs, lag = autoregressive(), 3
    ours = vamp(covariances(trajs, lag), 3)
    theirs = TICA(lag, dim=3, scaling=None).fit(trajs).fetch_model()
    np.testing.assert_allclose(ours.singular_values, np.abs(theirs.singular_values[:3]), atol=1e-8)
    assert subspace_gap(ours.projection, theirs.singular_vectors_left[:, :3]) < 1e-8


def test_held_out_score_is_deeptimes():
    train, test = autoregressive((900,)), autoregressive((800,), seed=5)
    test = [test[0] @ np.diag([1, 2, 1, 0.5, 1, 1])]
    ours = vamp(covariances(train, 2, reversible=False), 2)
    held = covariances(test, 2, reversible=False)
    theirs = VAMP(2, dim=2).fit(train).fetch_model()
    theirs_test = VAMP(2).fit(test).fetch_model()
    for r in (1, 2):
        expected = theirs.score(r, test_model=theirs_test, dim=2)
        assert vamp_score(ours, held, r) == pytest.approx(expected, abs=1e-8)
    assert vamp_score(ours, held) < vamp_score(vamp(held, 2))


@pytest.mark.parametrize("reversible", [False, True])
def test_projection_is_white_and_sorted(reversible):
    trajs, lag = autoregressive(), 4
    cov = covariances(trajs, lag, reversible=reversible)
    model = vamp(cov)
    inner = cov.project(model.projection, model.right_projection)
    np.testing.assert_allclose(inner.c00, np.eye(6), atol=1e-10)
    np.testing.assert_allclose(inner.ctt, np.eye(6), atol=1e-10)
    np.testing.assert_allclose(np.abs(inner.c0t), np.diag(model.singular_values), atol=1e-10)
    assert (np.diff(model.singular_values) <= 0).all() and model.singular_values[0] <= 1
    frames = np.concatenate([model.transform(x)[:-lag] for x in trajs])
    if not reversible:
        np.testing.assert_allclose(frames.mean(0), 0, atol=1e-10)
        np.testing.assert_allclose(frames.std(0), 1, atol=1e-10)


def test_reversible_singular_values_stay_below_one_on_drifting_data():
    drift = [np.linspace(0, 1, 50)[:, None] ** [1, 2, 3] for _ in range(2)]
    model = vamp(covariances(drift, 10))
    assert (model.singular_values <= 1).all() and np.isfinite(timescales(model.singular_values, 1.0)[1:]).all()


def test_dependent_directions_are_dropped_by_a_relative_cutoff():
    (x,) = autoregressive((500,), n=3)
    doubled = np.column_stack([x, x[:, 0] + x[:, 1], 7.0 * np.ones(500)])
    model = vamp(covariances(doubled, 2))
    assert (model.n_components, model.dropped) == (3, 2)
    reference = vamp(covariances(x, 2))
    np.testing.assert_allclose(model.singular_values, reference.singular_values, atol=1e-9)
    # The same in units a million times smaller: nothing more is dropped.
    small = vamp(covariances(1e-6 * doubled, 2))
    np.testing.assert_allclose(small.singular_values, model.singular_values, atol=1e-9)
    with pytest.raises(GeomGNNError, match="n_components is 4 but only 3 of the 5"):
        vamp(covariances(doubled, 2), 4)


def test_four_well_eigenvalues_from_exact_covariances():
    _, p, stationary = four_well_chain()
    lagged = np.linalg.matrix_power(p, 100)
    exact = np.sort(np.linalg.eigvals(lagged).real)[::-1][1:4]
    np.testing.assert_allclose(exact, FOUR_WELL, atol=1e-5)
    outer = np.outer(stationary, stationary)
    joint = 0.5 * (stationary[:, None] * lagged + (stationary[:, None] * lagged).T)
    c00 = np.diag(stationary) - outer
    model = vamp(Covariances(stationary, stationary, c00, joint - outer, c00, 1, 1, 100, True), 3, epsilon=1e-10)
    np.testing.assert_allclose(model.singular_values, FOUR_WELL, atol=2e-4)
    np.testing.assert_allclose(timescales(model.singular_values, 100), [842.4, 125.2, 64.1], rtol=3e-3)


def test_four_well_eigenvalues_from_a_trajectory():
    x = prinz_potential(h=1e-3, n_steps=10).trajectory(np.array([[0.2]]), 200_000, seed=1)
    features = np.exp(-0.5 * ((x - np.linspace(-1, 1, 15)) / 0.12) ** 2)
    model = fit_linear(features, lagtime=10, n_components=3, pca=None)
    np.testing.assert_allclose(model.singular_values, FOUR_WELL, atol=0.02)


def test_timescales_at_the_ends():
    assert timescales([1.0, np.exp(-0.5), 0.0], 2.0).tolist() == [np.inf, pytest.approx(4.0), 0.0]
    assert timescales([-np.exp(-0.5)], 2.0) == pytest.approx(4.0)


def test_linear_vamp_on_sqrt_model():
    _, x = sqrt_model(10_000, seed=0)
    assert vamp_score(vamp(covariances(x, 1, reversible=False))) == pytest.approx(1.281, abs=0.01)


# --- sign ------------------------------------------------------------------------------------------------------------


def test_sign_is_that_of_the_skewness_and_survives_a_flipped_feature():
    trajs = autoregressive()
    flip = np.array([1.0, -1, 1, 1, -1, 1])
    for reversible in (True, False):
        model = fix_sign(vamp(covariances(trajs, 3, reversible=reversible), 3), trajs)
        psi = np.concatenate([model.transform(x) for x in trajs])
        assert (skewness(psi) > 0).all()
        flipped = [x * flip for x in trajs]
        twin = fix_sign(vamp(covariances(flipped, 3, reversible=reversible), 3), flipped)
        np.testing.assert_allclose(np.concatenate([twin.transform(x) for x in flipped]), psi, atol=1e-8)
        # Scores, which use both sides, are not touched by it.
        held = covariances(trajs[1], 3, reversible=reversible)
        unsigned = vamp(covariances(trajs, 3, reversible=reversible), 3)
        assert vamp_score(model, held) == pytest.approx(vamp_score(unsigned, held), abs=1e-10)


# --- linear CVs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reversible", [False, True])
def test_fit_linear_without_truncation_is_vamp(reversible):
    trajs, lag = autoregressive(), 5
    a = fit_linear(trajs, lag, 3, pca=None, reversible=reversible)
    b = fix_sign(vamp(covariances(trajs, lag, reversible=reversible), 3), trajs)
    np.testing.assert_allclose(a.singular_values, b.singular_values, atol=1e-9)
    np.testing.assert_allclose(a.transform(trajs[0]), b.transform(trajs[0]), atol=1e-8)
    held = covariances(autoregressive((600,), seed=3), lag, reversible=reversible)
    assert vamp_score(a, held) == pytest.approx(vamp_score(b, held), abs=1e-8)


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("wide", [False, True], ids=["more frames", "more features"])
def test_fit_linear_truncates_standardises_and_folds(reversible, wide):
    rng = np.random.default_rng(0)
    lengths, n, lag = ((60, 50), 300, 3) if wide else ((600, 500), 40, 3)
    latent = autoregressive(lengths)
    mixing = rng.normal(size=(6, n))
    scales = 10.0 ** rng.uniform(-2, 2, n)
    offset = rng.normal(size=n) * 10 * scales
    raw = [(x @ mixing + 0.3 * rng.normal(size=(len(x), n))) * scales + offset for x in latent]
    model = fit_linear(raw, lag, 2, pca=6, reversible=reversible)
    psi = [model.transform(x) for x in raw]
    inner = covariances(psi, lag, reversible=reversible)
    np.testing.assert_allclose(inner.mean_0, 0, atol=1e-9)
    np.testing.assert_allclose(inner.c00, np.eye(2), atol=1e-9)
    if reversible:
        np.testing.assert_allclose(np.abs(inner.c0t), np.diag(model.singular_values), atol=1e-9)
    assert model.info["pca_components"] == 6 and 0.8 < model.info["explained_variance"] < 1
    assert model.info["n_features"] == n == len(model.mean) == len(model.projection)
    # An independent route: standardise, PCA by SVD of the pairs' frames, deeptime.
    first, second = (np.concatenate([x[s] for x in raw]) for s in (slice(None, -lag), slice(lag, None)))
    frames = np.concatenate([first, second])
    z = (frames - frames.mean(0)) / frames.std(0)
    components = np.linalg.svd(z, full_matrices=False)[2][:6].T
    scores = [(x - frames.mean(0)) / frames.std(0) @ components for x in raw]
    twin = (TICA if reversible else VAMP)(lag, scaling=None).fit(scores).fetch_model()
    np.testing.assert_allclose(model.singular_values, np.abs(twin.singular_values[:2]), atol=1e-8)


def test_flat_features_do_not_blow_up():
    (x,) = autoregressive((800,))
    rng = np.random.default_rng(0)
    noise = (50 * (1 + 1e-7 * rng.normal(size=(800, 3)))).astype(np.float32)
    model = fit_linear(np.column_stack([x, noise, np.full(800, 5.0)]), 3, 2, pca=6)
    assert model.info["flat_features"] == 4 and model.dropped >= 1
    reference = fit_linear(x, 3, 2, pca=6)
    np.testing.assert_allclose(model.singular_values, reference.singular_values, atol=1e-4)
    # Divided by their own spread the noisy ones would get weights of 1e4 and more.
    assert np.abs(model.projection[6:]).max() < 50
    assert np.abs(noise.std(0)[:, None] * model.projection[6:9]).max() < 1e-3


def test_errors_say_what_and_where():
    trajs = autoregressive((100, 20))
    with pytest.raises(GeomGNNError, match="Trajectory 1 has 20 frames.*lag of 30"):
        fit_linear(trajs, 30, 1)
    broken = [x.copy() for x in trajs]
    broken[1][13, 2] = np.nan
    with pytest.raises(GeomGNNError, match="Trajectory 1 .*frame 13"):
        fit_linear(broken, 2, 1)
    with pytest.raises(GeomGNNError, match="n_components is 7 but only 6"):
        fit_linear(trajs, 2, 7)
    with pytest.raises(GeomGNNError, match="n_components is 3 but only 2"):
        fit_linear(trajs, 2, 3, pca=2)
    with pytest.raises(GeomGNNError, match="None of the 2 features varies"):
        fit_linear(np.ones((50, 2)), 1, 1)
    for constant in (1.0, 0.1):
        with pytest.raises(GeomGNNError, match="No feature varies"):
            vamp(covariances(np.full((50, 2), constant), 1))
    with pytest.raises(GeomGNNError, match="Trajectory 1 has 5 features"):
        covariances([trajs[0], trajs[1][:, :5]], 1)
    with pytest.raises(GeomGNNError, match="shape"):
        covariances(trajs[0][:, 0], 1)
    with pytest.raises(GeomGNNError, match="no trajectories"):
        covariances([], 1)
    for lag in (0, -1, 1.5, True, "3"):
        with pytest.raises(GeomGNNError, match="lag must be"):
            covariances(trajs, lag)
    with pytest.raises(GeomGNNError, match="frame 2 of trajectory 1 is -1"):
        weights = [np.ones(100), np.ones(20)]
        weights[1][2] = -1
        covariances(trajs, 1, weights)
    with pytest.raises(GeomGNNError, match="one array"):
        covariances(trajs, 1, [np.ones(100)])
    with pytest.raises(GeomGNNError, match="takes .frames, 6"):
        fit_linear(trajs, 2, 1).transform(np.ones((3, 4)))
