import numpy as np
import pytest
from double_well import EXACT, EXACT_DELTA_F, GRID, KT, bias, metropolis, well

from openmm_geomgnn.analysis.found_states import populations
from openmm_geomgnn.analysis.free_energy import delta_F, free_energy_1d, free_energy_2d, kish_size, log_weights
from openmm_geomgnn.analysis.resampling import make_blocks, statistical_inefficiency
from openmm_geomgnn.errors import GeomGNNError


@pytest.fixture(scope="module")
def repeats():
    """80 biased simulations of two walkers each: list of [(5000,), (5000,)]."""
    chains = metropolis(lambda s: well(s) + bias(s), 160, 5000, seed=3)
    return [[chains[:, 2 * i], chains[:, 2 * i + 1]] for i in range(80)]


def test_delta_F_is_recovered_and_its_error_bars_cover(repeats):
    deviations = []
    for number, walkers in enumerate(repeats):
        logw = log_weights([bias(s) for s in walkers], KT)
        value, error, reason = delta_F([s <= 0 for s in walkers], [s > 0 for s in walkers], logw, KT, rng=number)
        assert reason == "" and 0.1 < error < 2.0
        deviations.append((value - EXACT_DELTA_F, error))
    deviation, error = np.array(deviations).T
    z = deviation / error
    assert np.median(error) < 0.6  # two walkers that happen to differ have a wider bar
    # 80 repeats know a standard deviation to 8 %, and a 68 % coverage to 5 %
    assert 0.75 < np.std(z) < 1.3
    assert 0.55 < np.mean(np.abs(z) < 1) < 0.82
    assert np.mean(np.abs(z) < 2) > 0.88
    assert abs(deviation.mean()) < 3 * deviation.std() / np.sqrt(len(z))
    # unweighted it would be far off: the bias favours one well
    unweighted = [delta_F([s <= 0 for s in w], [s > 0 for s in w], [np.zeros(5000)] * 2, KT, n_bootstrap=2) for w in repeats]
    assert abs(np.mean([one.value for one in unweighted]) - EXACT_DELTA_F) > 1.5


def test_walkers_that_stay_apart_widen_the_error_bar():
    """Each crosses often between the wells, but one stays where the second is deeper: no block of frames sees that."""
    rng = np.random.default_rng(2)

    def walker(share):
        return [side for side in rng.random(400) < share for _ in range(25)]

    def difference(*shares):
        in_b = [np.array(walker(share)) for share in shares]
        return delta_F([~one for one in in_b], in_b, [np.zeros(len(one)) for one in in_b], KT)

    same, apart = difference(0.3, 0.3), difference(0.1, 0.6)
    assert same.reason == "" and same.error < 0.4
    true = abs(KT * np.log(0.1 / 0.9) - KT * np.log(0.6 / 0.4))
    assert apart.error == pytest.approx(true / 2, rel=0.2)  # the standard error of two that are as far apart
    assert "walkers differ by" in apart.reason and "Simulate longer" in apart.reason
    four = difference(0.1, 0.6, 0.3, 0.3)
    assert "walkers differ by" in four.reason and 0.3 < four.error / apart.error < 1
    # one that never was in B, or once only, says nothing of that
    assert difference(0.3, 0.0).reason == ""
    # profiles and populations see it, too: with two bins, and two states, they are the same thing
    for shares, bar in (((0.3, 0.3), same.error), ((0.1, 0.6), apart.error)):
        sides = [np.array(walker(share), dtype=int) for share in shares]
        logw = [np.zeros(len(one)) for one in sides]
        p, error = populations(sides, logw, 2)[1]
        assert error == pytest.approx(p * (1 - p) * bar / KT, rel=0.4)
        profile = free_energy_1d([one - 0.5 for one in sides], logw, KT, 2)
        assert profile.error.max() > 0.5 * bar


def test_profile_is_recovered_and_its_error_bars_cover(repeats):
    edges = np.linspace(-1.6, 1.6, 25)
    exact = np.array([EXACT[(low <= GRID) & (high > GRID)].sum() for low, high in zip(edges, edges[1:], strict=False)])
    exact = -KT * np.log(exact / exact.sum())
    z, barrier = [], []
    for number, walkers in enumerate(repeats[:40]):
        logw = log_weights([bias(s) for s in walkers], KT)
        profile = free_energy_1d(walkers, logw, KT, edges, rng=number, n_bootstrap=100)
        assert np.nanmin(profile.values) == 0 and profile.values.shape == profile.error.shape == (24,)
        normalised = profile.values + KT * np.log(np.nansum(np.exp(-profile.values / KT)))
        z.append((normalised - exact) / profile.error)
        barrier.append(profile.values[11:13].mean())
    z = np.array(z)
    assert np.isfinite(z).mean() > 0.9
    z = z[np.isfinite(z)]
    assert 0.8 < np.std(z) < 1.3 and 0.6 < np.mean(np.abs(z) < 1) < 0.8
    assert abs(np.mean(barrier) - (exact[11:13].mean() - exact.min())) < 0.25
    # without weights the barrier would be 9 kJ/mol too low
    assert exact[11:13].mean() - exact.min() > 10


def test_walkers_share_one_offset():
    near, far = np.linspace(-40, -39, 50), np.linspace(-2, 0, 50)
    logw = log_weights([near, far], KT)
    assert max(w.max() for w in logw) == 0
    np.testing.assert_allclose(logw[0][0] - logw[1][0], -38 / KT)
    # a constant on all walkers changes nothing, on one walker it does; and nothing overflows
    for shifted in ([near + 870 * KT, far + 870 * KT], [near - 5000, far - 5000]):
        np.testing.assert_allclose(np.concatenate(log_weights(shifted, KT)), np.concatenate(logw), atol=1e-9)
    with pytest.raises(GeomGNNError, match="2 of 4 bias values are not finite"):
        log_weights([np.array([0, np.nan]), np.array([np.inf, 1])], KT)
    with pytest.raises(GeomGNNError, match="kT must be"):
        log_weights(near, 0)


def test_kish_size():
    assert kish_size(np.full(100, -3.0)) == pytest.approx(100)
    assert kish_size([np.zeros(30), np.full(40, -2000.0)]) == pytest.approx(30)
    w = np.random.default_rng(0).random(50)
    assert kish_size(np.log(w)) == pytest.approx(w.sum() ** 2 / (w**2).sum())


def test_statistical_inefficiency_of_known_series():
    rng = np.random.default_rng(0)
    for a in (0.5, 0.9):
        # 20 walkers of a first-order autoregressive process, whose inefficiency is (1 + a)/(1 - a)
        noise = rng.normal(size=(5000, 20))
        x = noise.copy()
        for i in range(1, len(x)):
            x[i] = a * x[i - 1] + np.sqrt(1 - a * a) * noise[i]
        walkers = list(x.T)
        assert statistical_inefficiency(walkers) == pytest.approx((1 + a) / (1 - a), rel=0.15)
        same = statistical_inefficiency(walkers, [np.full(5000, -3.0)] * 20)
        assert same == pytest.approx(statistical_inefficiency(walkers))
    assert statistical_inefficiency(rng.normal(size=20000)) == pytest.approx(1, abs=0.1)
    assert statistical_inefficiency(np.full(100, 2.5)) == 1
    # walkers that stay in different places: uncorrelated only if each were centred on its own mean
    assert statistical_inefficiency([rng.normal(size=500) - 5, rng.normal(size=500) + 5]) > 300


def test_blocks_never_straddle_walkers_and_are_long_enough():
    for lengths, g in (([1000, 333, 40], 17.3), ([5, 0, 5000], 30), ([100], 400), ([10**6, 10], 1)):
        blocks = make_blocks(lengths, g)
        walker = np.repeat(np.arange(len(lengths)), lengths)
        sizes = np.bincount(blocks.labels)
        assert len(sizes) == blocks.n_blocks <= 1001 and len(blocks.labels) == sum(lengths)
        for block in range(blocks.n_blocks):
            frames = np.flatnonzero(blocks.labels == block) if blocks.n_blocks < 100 else None
            if frames is not None:
                assert len(np.unique(walker[frames])) == 1 and (np.diff(frames) == 1).all()
                assert len(frames) >= min(g, lengths[walker[frames[0]]])
        assert (np.diff(blocks.labels) >= 0).all()
    with pytest.raises(GeomGNNError, match="No blocks can be cut"):
        make_blocks([10], np.nan)


def test_bootstrap_of_independent_frames_is_the_textbook_error():
    rng = np.random.default_rng(2)
    in_b = rng.random(20000) < 0.2
    value, error, reason = delta_F(~in_b, in_b, np.zeros(20000), KT, n_bootstrap=2000)
    assert reason == ""
    assert value == pytest.approx(-KT * np.log(0.2 / 0.8), abs=4 * error)
    assert error == pytest.approx(KT / np.sqrt(20000 * 0.2 * 0.8), rel=0.12)
    # writing every frame 30 times adds no information
    again = np.repeat(in_b, 30)
    repeated = delta_F(~again, again, np.zeros(len(again)), KT, n_bootstrap=2000)
    assert repeated.value == pytest.approx(value) and repeated.error == pytest.approx(error, rel=0.2)


def test_delta_F_says_when_it_does_not_know():
    a = np.ones(1000, dtype=bool)
    value, error, reason = delta_F(a, ~a, np.zeros(1000), KT)
    assert np.isnan(value) and np.isnan(error) and reason == "state B was never visited."
    value, error, reason = delta_F(~a, ~a, np.zeros(1000), KT)
    assert np.isnan(value) and "state A and B" in reason
    # one visit, however long, tells nothing of how often it happens
    once = np.zeros(1000, dtype=bool)
    once[600:] = True
    value, error, reason = delta_F(~once, once, np.zeros(1000), KT)
    assert value == pytest.approx(-KT * np.log(400 / 600)) and (np.isnan(error) or "guess" in reason) and reason
    with pytest.raises(GeomGNNError, match="1000 frames are in both states"):
        delta_F(a, a, np.zeros(1000), KT)
    with pytest.raises(GeomGNNError, match=r"\[1000\] frames per walker and logw has \[999\]"):
        delta_F(a, ~a, np.zeros(999), KT)


def test_bins_of_any_width_and_bins_nobody_visited():
    s = np.random.default_rng(0).random(50000)
    profile = free_energy_1d(s, np.zeros(50000), KT, np.array([-1, -0.5, 0, 0.1, 0.5, 1]), n_bootstrap=50)
    assert np.isnan(profile.values[:2]).all() and np.isnan(profile.error[:2]).all()
    # a uniform density is flat whatever the widths of the bins
    np.testing.assert_allclose(profile.values[2:], 0, atol=0.15)
    assert (profile.error[2:] > 0).all() and (profile.error[2:] < 0.1).all()
    np.testing.assert_allclose(profile.centres[0], [-0.75, -0.25, 0.05, 0.3, 0.75])
    for edges in ([1, 0], [0.0], 0, 2.5):
        with pytest.raises(GeomGNNError):
            free_energy_1d(s, np.zeros(50000), KT, edges)
    with pytest.raises(GeomGNNError, match="No frame lies within"):
        free_energy_1d(s, np.zeros(50000), KT, [5.0, 6.0])
    with pytest.raises(GeomGNNError, match="1 of 3 values"):
        free_energy_1d(np.array([0, 1, np.nan]), np.zeros(3), KT)


def test_periodic_variables_are_wrapped():
    angle = np.random.default_rng(0).vonmises(np.pi, 2.0, size=20000)
    inside = free_energy_1d(angle, np.zeros(20000), KT, 30, periodic=True, n_bootstrap=20)
    turned = free_energy_1d(angle + 4 * np.pi, np.zeros(20000), KT, 30, periodic=True, n_bootstrap=20)
    np.testing.assert_allclose(inside.values, turned.values, atol=1e-9)
    exact = -KT * 2.0 * np.cos(inside.centres[0] - np.pi)
    seen = exact - exact.min() < 8
    np.testing.assert_allclose(inside.values[seen], (exact - exact.min())[seen], atol=0.6)


def test_a_map_of_independent_variables_is_the_sum_of_its_profiles():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=200000), rng.vonmises(0, 1, size=200000)
    edges = (np.linspace(-2, 2, 11), np.linspace(-np.pi, np.pi, 9))
    energies = free_energy_2d(x, y, np.zeros(200000), KT, edges, (False, True), n_bootstrap=50)
    along_x = free_energy_1d(x, np.zeros(200000), KT, edges[0], n_bootstrap=2).values
    along_y = free_energy_1d(y, np.zeros(200000), KT, edges[1], n_bootstrap=2).values
    assert energies.values.shape == (10, 8)
    np.testing.assert_allclose(energies.values, along_x[:, None] + along_y, atol=0.35)
    # error of one bin: kT/sqrt(frames in it)
    count = np.histogram2d(x, y, edges)[0]
    np.testing.assert_allclose(energies.error, KT / np.sqrt(count), rtol=0.55)
