from pathlib import Path

import numpy as np
import pytest

from openmm_geomgnn.analysis.crossings import core_crossings, core_states, crossings_per_ns
from openmm_geomgnn.analysis.free_energy import (
    delta_F,
    free_energy_1d,
    free_energy_2d,
    kish_size,
    log_weights,
)
from openmm_geomgnn.analysis.pipeline import analyse_biased_run
from openmm_geomgnn.analysis.resampling import make_blocks, statistical_inefficiency
from openmm_geomgnn.analysis.states import find_states
from openmm_geomgnn.errors import GeomGNNError

KT = 0.00831446261815324 * 300
ALA2 = Path(__file__).resolve().parents[3] / "shared" / "data" / "trajectories" / "ala2_plumed_masterclass"


# A double well with a barrier of 4.8 kT and a tilt, and a bias that takes away three quarters of the barrier and tilts the
# other way: without weights, the difference between the wells is wrong by several kJ/mol.
def well(s):
    return 4.8 * KT * (s**2 - 1) ** 2 + 1.2 * s


def bias(s):
    return np.where(np.abs(s) < 1, -0.75 * 4.8 * KT * (s**2 - 1) ** 2, 0.0) - 2.4 * np.tanh(s)


GRID = np.linspace(-2.5, 2.5, 20001)
EXACT = np.exp(-well(GRID) / KT)
EXACT_DELTA_F = -KT * np.log(EXACT[GRID > 0].sum() / EXACT[GRID <= 0].sum())


def metropolis(energy, n_chains, n_frames, seed):
    """Exact, correlated samples: (n_frames, n_chains), started from the Boltzmann distribution."""
    rng = np.random.default_rng(seed)
    start = np.exp(-energy(GRID) / KT)
    s = rng.choice(GRID, size=n_chains, p=start / start.sum())
    e, chain = energy(s), np.empty((n_frames, n_chains))
    for frame in chain:
        trial = s + 0.25 * rng.normal(size=n_chains)
        e_trial = energy(trial)
        accepted = rng.random(n_chains) < np.exp(np.minimum(0, (e - e_trial) / KT))
        s, e = np.where(accepted, trial, s), np.where(accepted, e_trial, e)
        frame[:] = s
    return chain


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
        assert reason == "" and 0.1 < error < 1.0
        deviations.append((value - EXACT_DELTA_F, error))
    deviation, error = np.array(deviations).T
    z = deviation / error
    # 80 repeats know a standard deviation to 8 %, and a 68 % coverage to 5 %
    assert 0.75 < np.std(z) < 1.3
    assert 0.55 < np.mean(np.abs(z) < 1) < 0.82
    assert np.mean(np.abs(z) < 2) > 0.88
    assert abs(deviation.mean()) < 3 * deviation.std() / np.sqrt(len(z))
    # unweighted it would be far off: the bias favours one well
    unweighted = [delta_F([s <= 0 for s in w], [s > 0 for s in w], [np.zeros(5000)] * 2, KT, n_bootstrap=2) for w in repeats]
    assert abs(np.mean([one.value for one in unweighted]) - EXACT_DELTA_F) > 1.5


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


def test_crossings_count_arrivals_in_the_other_core():
    a, b, top = -1.5, 1.0, -0.1
    assert core_crossings(np.array([a, top, a, top, b, b, top, b, top, a])) == 2
    # turning back at the top is no crossing, and neither is a start outside the cores
    assert core_crossings(np.array([top, b, top, 2.5, b, 3.1, b])) == 0
    assert core_crossings(np.array([a, b] * 10)) == 19
    np.testing.assert_array_equal(core_states([top, a, top, b, top]), [-1, 0, 0, 1, 1])
    assert core_crossings(np.array([3.0, 1.0, 2.9]), core_a=(0, 1.5), core_b=(2.5, 4)) == 2


def test_walkers_are_never_stitched():
    left, right = np.full(10, -1.5), np.full(10, 1.0)
    assert core_crossings([left, right, left]) == 0
    assert core_crossings(np.concatenate([left, right, left])) == 2
    assert crossings_per_ns([np.array([-1.5, 1.0] * 50)] * 2, 0.5) == pytest.approx(198 / 0.1)


def test_crossings_refuse_bad_input():
    with pytest.raises(GeomGNNError, match="overlap"):
        core_crossings(np.zeros(3), (-1, 0.5), (0.4, 2))
    with pytest.raises(GeomGNNError, match="core_b must be an interval"):
        core_crossings(np.zeros(3), (-1, 0.5), (2, 1))
    with pytest.raises(GeomGNNError, match="1 of 3 values are not finite"):
        core_crossings(np.array([0, np.nan, 1]))
    # on a circle the greater number may come first; a core is neither nothing nor all of it
    assert core_crossings(np.array([3.1, -3.1, 0.1, -3.1]), (2.5, -2.5), (-0.5, 0.5), 2 * np.pi) == 2
    with pytest.raises(GeomGNNError, match="overlap"):
        core_crossings(np.zeros(3), (2, 0.5), (0.4, 1), 2 * np.pi)
    with pytest.raises(GeomGNNError, match="core_a must be an interval .* two different ends"):
        core_crossings(np.zeros(3), (-np.pi, np.pi), (0.4, 1), 2 * np.pi)
    with pytest.raises(GeomGNNError, match="positive number of ps"):
        crossings_per_ns(np.zeros(3), 0)


@pytest.mark.skipif(not ALA2.is_dir(), reason="the shared trajectories are not here")
def test_crossings_of_alanine_dipeptide():
    import mdtraj

    def phi(name):
        return mdtraj.compute_phi(mdtraj.load(str(ALA2 / f"{name}.xtc"), top=str(ALA2 / "ala2.pdb")))[1][:, 0]

    assert core_crossings([phi("unbiased_A"), phi("unbiased_B")]) == 0
    assert core_crossings(phi("opes_deeptica")) > 50


def biased_run(n_frames=4000, seed=0):
    """COLVAR columns of two walkers in lockstep, their torsions (phi = 1.2*s), and phi in two runs without bias."""
    rng = np.random.default_rng(seed)
    s = metropolis(lambda x: well(x) + bias(x), 2, n_frames, seed)
    colvar = {
        "time": np.repeat(0.5 * np.arange(1, n_frames + 1), 2),
        "walker": np.tile([0.0, 1.0], n_frames),
        "cv.1": s.ravel(),
        "opes.bias": bias(s).ravel(),
        "opes.nker": np.repeat(np.arange(n_frames) // 100 + 1.0, 2),
        "temperature": 300 * (1 + 0.2 * rng.normal(size=2 * n_frames)),
    }
    torsions = {"phi": list(1.2 * s.T), "psi": list(rng.uniform(-np.pi, np.pi, (2, n_frames)))}
    return colvar, torsions, [np.full(1000, phi) for phi in (-1.2, 1.2)]


def test_a_whole_run():
    colvar, torsions, free = biased_run()
    result = analyse_biased_run(
        colvar, torsions, free, temperature=300, unbiased_frame_time=2.0, degrees_of_freedom=51, wall_seconds=12.5
    )
    summary = result.summary
    assert summary["crossings"] == core_crossings(torsions["phi"]) > 20
    assert summary["unbiased_crossings"] == summary["unbiased_crossings_per_ns"] == 0
    assert summary["biased_ns"] == pytest.approx(4.0) and summary["unbiased_ns"] == pytest.approx(4.0)
    assert summary["crossings_per_ns"] == pytest.approx(summary["crossings"] / 4.0)
    assert abs(summary["delta_F_kJ_per_mol"] - EXACT_DELTA_F) < 3 * summary["delta_F_error"] < 3
    assert summary["mean_temperature_K"] == pytest.approx(300, abs=3) and summary["hot_frame_share"] < 0.01
    assert summary["hot_threshold_K"] == pytest.approx(300 * (1 + 3 * np.sqrt(2 / 51)))
    assert 100 < summary["effective_sample_size"] < summary["frames_used"] == 6400
    assert summary["n_kernels"] == 40 and summary["wall_seconds"] == 12.5 and summary["discarded_ps"] == 400
    assert result.notes == [] and list(result.cv_profiles) == ["cv.1"]
    assert result.phi_psi_map.values.ndim == 2 and result.running_delta_F.shape == (20, 3)
    # the last point of the running estimate is the estimate
    assert result.running_delta_F[-1, 1:].tolist() == [summary["delta_F_kJ_per_mol"], summary["delta_F_error"]]
    # the same data and seed give the same numbers
    again = analyse_biased_run(
        colvar, torsions, free, temperature=300, unbiased_frame_time=2.0, degrees_of_freedom=51, wall_seconds=12.5
    )
    assert again.summary == summary


def test_the_transient_has_no_part_in_free_energies():
    colvar, torsions, _ = biased_run(2000)
    clean = analyse_biased_run(colvar, torsions, temperature=300, discard_ps=200).summary
    early = colvar["time"] <= 200
    spoiled = dict(colvar)
    spoiled["opes.bias"] = np.where(early, 500.0, colvar["opes.bias"])
    again = analyse_biased_run(spoiled, torsions, temperature=300, discard=0.2).summary
    assert again["delta_F_kJ_per_mol"] == clean["delta_F_kJ_per_mol"]
    assert again["crossings"] == clean["crossings"] == core_crossings(torsions["phi"])
    assert analyse_biased_run(spoiled, torsions, temperature=300, discard=0).summary["effective_sample_size"] < 1000


def test_frames_find_their_rows_by_time():
    colvar, torsions, _ = biased_run(2000)
    full = analyse_biased_run(colvar, torsions, temperature=300)
    # every fifth row has a frame, and times are rounded as in an XTC file
    thin = {name: [t[4::5] for t in runs] for name, runs in torsions.items()}
    times = [np.float32(2.5 * np.arange(1, 401))] * 2
    some = analyse_biased_run(colvar, thin, temperature=300, frame_times=times)
    for w in (0, 1):
        np.testing.assert_array_equal(some.frame_cv[w], full.frame_cv[w][4::5])
        np.testing.assert_allclose(some.frame_cv[w][:, 0], thin["phi"][w] / 1.2)
    assert abs(some.summary["delta_F_kJ_per_mol"] - full.summary["delta_F_kJ_per_mol"]) < 1
    late = [times[0], np.concatenate([times[1][:200], times[1][200:] + 0.2])]
    with pytest.raises(GeomGNNError, match=r"200 of 400 frames of walker 1 have no COLVAR row.* first one at 502\.7 ps"):
        analyse_biased_run(colvar, thin, temperature=300, frame_times=late)
    with pytest.raises(GeomGNNError, match=r"\[400, 400\] values of phi and \[2000, 2000\] times"):
        analyse_biased_run(colvar, thin, temperature=300)
    with pytest.raises(GeomGNNError, match="No frame of the trajectory is later than the first 998 ps"):
        early = {"phi": [t[:2] for t in thin["phi"]]}
        analyse_biased_run(colvar, early, temperature=300, frame_times=[t[:2] for t in times], discard_ps=998)


def test_a_system_without_torsions():
    colvar, _, _ = biased_run(3000)
    plain = analyse_biased_run(colvar, temperature=300)
    assert np.isnan(plain.summary["crossings"]) and np.isnan(plain.summary["delta_F_kJ_per_mol"])
    assert plain.summary["crossing_variable"] == "none" and plain.cv_profiles["cv.1"].n_blocks > 10
    cores = ((-1.5, -0.5), (0.5, 1.5))
    result = analyse_biased_run(colvar, None, [np.full(50, -1.0)], temperature=300, cores=cores)
    walkers = [colvar["cv.1"][w::2] for w in (0, 1)]
    assert result.summary["crossings"] == core_crossings(walkers, *cores) > 10
    assert result.summary["unbiased_crossings"] == 0 and result.crossing_variable == "cv.1"
    split = analyse_biased_run(colvar, temperature=300, cores=cores, dividing=[0]).summary
    assert abs(split["delta_F_kJ_per_mol"] - EXACT_DELTA_F) < 3 * split["delta_F_error"]
    # few frames are near the barrier, so where the run's own estimate of its place is does not matter
    assert result.summary["delta_F_kJ_per_mol"] == pytest.approx(split["delta_F_kJ_per_mol"], abs=0.15)
    assert abs(result.states.dividing[0]) < 0.4
    with pytest.raises(GeomGNNError, match=r"divided at \[0\.9\].*gaps between the cores.* are \(-0\.5, 0\.5\)"):
        analyse_biased_run(colvar, temperature=300, cores=cores, dividing=[0.9])


def hops(place_a, place_b, n_frames=600):
    """Two walkers that hop between two places, three times as long at the first, and are biased by 4 kJ/mol at the second:
    (columns of COLVAR with the place as cv.1, angles by walker, F(second) - F(first))."""
    at_b = np.stack([np.arange(n_frames) % 40 < 10, np.arange(n_frames) % 80 >= 60], axis=1)
    noise = 0.05 * np.sin(np.arange(2.0 * n_frames)).reshape(n_frames, 2)
    place = np.where(at_b, place_b, place_a) + noise
    colvar = {
        "time": np.repeat(np.arange(1.0, n_frames + 1), 2),
        "walker": np.tile([0.0, 1.0], n_frames),
        "cv.1": place.ravel(),
        "opes.bias": np.where(at_b, 4.0, 0.0).ravel(),
        "opes.nker": np.full(2 * n_frames, 9.0),
    }
    angles = [np.angle(np.exp(1j * walker)) for walker in place.T]
    return colvar, angles, -KT * np.log(at_b.mean() / (1 - at_b.mean())) - 4.0


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("name", "place_a", "place_b", "core_a", "core_b"),
    [
        ("phi", -1.2, 1.0, (-2.8, -0.5), (0.3, 2.0)),
        ("omega", np.pi, 0.0, (2.6, -2.6), (-0.5, 0.5)),  # trans lies across 180 degrees
        ("chi1", 3.0, -1.0, (2.0, -3.0), (-1.5, -0.5)),
        ("chi1", 1.0, -2.9, (0.5, 1.5), (3.1, -2.5)),
        ("cv.1", -7.0, -3.0, (-8, -6), (-4, -1)),
    ],
)
def test_states_follow_the_cores(name, place_a, place_b, core_a, core_b, swapped):
    """However cores are named and wherever they lie on the circle, B is the second one, and nothing is left out."""
    colvar, angles, expected = hops(place_a, place_b)
    cores = (core_b, core_a) if swapped else (core_a, core_b)
    torsions = None if name == "cv.1" else {name: angles, "psi": angles}
    result = analyse_biased_run(colvar, torsions, temperature=300, along=name, cores=cores, discard=0, n_bootstrap=20)
    summary = result.summary
    assert summary["delta_F_kJ_per_mol"] == pytest.approx(-expected if swapped else expected)
    assert summary["crossings"] == 29 + 14 and summary["crossing_variable"] == name
    assert (summary["core_A"], summary["core_B"]) == cores
    assert summary["delta_F_definition"].startswith("F(B) - F(A), ") and name in summary["delta_F_definition"]
    in_a, in_b = result.states.members(result.torsions.get(name) or [colvar["cv.1"][w::2] for w in (0, 1)])
    assert all((a ^ b).all() for a, b in zip(in_a, in_b, strict=True))


def test_without_cores_the_states_are_those_of_alanine_dipeptide():
    colvar, torsions, _ = biased_run(1000)
    result = analyse_biased_run(colvar, torsions, temperature=300)
    assert result.states.core_a == (-2.8, -0.5) and result.states.core_b == (0.3, 2.0)
    assert result.states.intervals == ((2.2, 0.0), (0.0, 2.2))
    assert result.summary["delta_F_definition"] == "F(B) - F(A), B: phi from 0.0 to 126.1 deg; A: the rest"
    in_b = [(v > 0) & (v < 2.2) for v in torsions["phi"]]
    for found, expected in zip(result.states.members(torsions["phi"])[1], in_b, strict=True):
        np.testing.assert_array_equal(found, expected)
    # without phi and psi nothing is counted, but what is there is shown
    alone = analyse_biased_run(colvar, {"psi": torsions["psi"]}, temperature=300)
    assert alone.states is None and list(alone.torsion_profiles) == ["psi"] and alone.phi_psi_map is None


def test_states_meet_at_the_barrier():
    """A third basin in the gap belongs to the side that the lower barrier leads to."""
    x = np.linspace(-3, 3, 60001)
    energy = 8 * np.exp(-(((x + 0.5) / 0.2) ** 2)) + 20 * np.exp(-(((x - 1) / 0.2) ** 2))
    for cores in (((-3, -2), (2, 3)), ((2, 3), (-3, -2))):
        assert find_states(x, -energy / KT, *cores).dividing == pytest.approx((1,), abs=0.1)
    # nobody between -1 and 0.5: the middle of that
    away = (x < -1) | (x > 0.5)
    assert find_states(x[away], np.zeros(away.sum()), (-3, -2), (2, 3)).dividing == pytest.approx((-0.25,), abs=0.1)
    # on a circle there are two ways: the barriers are at -0.5 and, beyond 180 degrees, at 2*pi - 2.9
    angle = np.linspace(-np.pi, np.pi, 60001)
    energy = 8 * np.exp(-(((angle + 0.5) / 0.2) ** 2)) + 20 * np.exp(-(((angle + 2.9) / 0.2) ** 2))
    states = find_states(angle, -energy / KT, (-2.0, -1.5), (1.0, 2.0), 2 * np.pi)
    assert states.dividing == pytest.approx((-0.5, -2.9), abs=0.1)


def test_all_biases_count_in_the_weights():
    colvar, _, _ = biased_run(1000)
    cores = ((-1.5, -0.5), (0.5, 1.5))
    whole = analyse_biased_run(colvar, temperature=300, cores=cores).summary
    halves = {name: values for name, values in colvar.items() if name != "opes.bias"}
    halves["opes.bias"], halves["wall.bias"] = colvar["opes.bias"] - 3, np.full(2000, 3.0)
    assert analyse_biased_run(halves, temperature=300, cores=cores).summary["delta_F_kJ_per_mol"] == pytest.approx(
        whole["delta_F_kJ_per_mol"]
    )
    only = analyse_biased_run(halves, temperature=300, cores=cores, bias_fields="wall.bias").summary
    assert only["effective_sample_size"] == pytest.approx(only["frames_used"])


def test_warnings_of_a_bad_run():
    colvar, torsions, free = biased_run(1500)
    hot = dict(colvar, temperature=colvar["temperature"] + 370, **{"opes.nker": np.ones(3000)})
    notes = " ".join(analyse_biased_run(hot, torsions, temperature=300, degrees_of_freedom=51).notes)
    assert "mean temperature is 6" in notes and "heat fakes crossings" in notes
    assert "% of the frames are hotter than" in notes and "1 kernels only" in notes
    stuck = {"phi": [-1.2 - 0.2 * np.abs(t) for t in torsions["phi"]], "psi": torsions["psi"]}
    result = analyse_biased_run(colvar, stuck, free, temperature=300)
    assert result.summary["crossings"] == 0 and np.isnan(result.summary["delta_F_kJ_per_mol"])
    assert "never crossed" in " ".join(result.notes) and "state B was never visited" in " ".join(result.notes)
    cold = {name: values for name, values in colvar.items() if name != "temperature"}
    unknown = analyse_biased_run(cold, torsions, temperature=300)
    assert np.isnan(unknown.summary["mean_temperature_K"]) and "have no temperature" in " ".join(unknown.notes)


def test_runs_that_do_not_fit_together():
    colvar, torsions, _ = biased_run(50)

    def check(message, colvar=colvar, torsions=torsions, **settings):
        with pytest.raises(GeomGNNError, match=message):
            analyse_biased_run(colvar, torsions, **{"temperature": 300, **settings})

    check("phi for 1 walkers and COLVAR rows of 2", torsions={"phi": torsions["phi"][:1]})
    check("phi reaches .* in radians, not degrees", torsions={"phi": [np.degrees(t) for t in torsions["phi"]]})
    check("psi reaches nan", torsions=torsions | {"psi": [np.full(50, np.nan)] * 2})
    check("phi has arrays of shape", torsions={"phi": [t[:, None] for t in torsions["phi"]]})
    check("cores .* overlap", cores=((-2.8, 0.5), (0.3, 2.0)))
    check("no field 'omega'", along="omega", cores=((-2.8, -0.5), (0.3, 2.0)))
    check("No column is named \\*.bias", colvar={k: v for k, v in colvar.items() if k != "opes.bias"})
    check("Did you mean 'opes.bias'", bias_fields=["opes_bias"])
    check("rows were written twice", colvar=dict(colvar, walker=np.zeros(100)))
    check("no field 'time'", colvar={k: v for k, v in colvar.items() if k != "time"})
    check("too few to analyse", colvar={k: v[:2] for k, v in colvar.items()})
    check("target temperature", temperature=-1)
    check("share of the run", discard=1.5)
    check("discard_ps must be", discard_ps=1e6)
