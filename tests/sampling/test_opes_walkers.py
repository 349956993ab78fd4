"""OPES over time: restarts, walkers that share a bias, measured widths, and the free energies of model systems."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from biases import KT, TORSION, deposit
from openmm import unit

from openmm_geomgnn.cv.kernel_widths import kernel_widening
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.opes.kernel_sum import minimum_image
from openmm_geomgnn.sampling.opes.method import OPES

# --------------------------------------------------------------------------------------------------- state and restart


def same_bits(first, second):
    for field in dataclasses.fields(first):
        if field.init:
            a, b = np.asarray(getattr(first, field.name)), np.asarray(getattr(second, field.name))
            assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), field.name
    return True


def adaptive_run(opes, state, points):
    """One bias step per row of points (T, walkers, d), depositing every pace."""
    for step, s in enumerate(points, start=1):
        for walker, value in enumerate(s):
            state = opes.observe(state, value, walker)
        if step % opes.pace == 0:
            state = opes.update(state, s)
    return state


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("sigma", [None, 0.2])
@pytest.mark.parametrize("walkers", [1, 3])
def test_restart_is_bit_identical(explore, sigma, walkers):
    opes = OPES(40, 5, sigma=sigma, explore=explore, periods=[TORSION, None], sigma_min=0.02)
    points = np.random.default_rng(9).normal(0, 0.5, (120, walkers, 2))
    unbroken = adaptive_run(opes, opes.initial_state(n_walkers=walkers), points)
    assert unbroken.n == 1 + walkers * (24 if sigma else 15)
    for cut in (0, 30, 60):  # before and after the measurement of sigma
        saved = opes.to_arrays(adaptive_run(opes, opes.initial_state(n_walkers=walkers), points[:cut]))
        assert all(array.dtype in (np.float64, np.int64) for array in saved.values())
        again = pickle.loads(pickle.dumps(opes))
        restored = again.from_arrays({name: array.copy() for name, array in saved.items()})
        assert same_bits(restored, opes.from_arrays(saved))
        resumed = adaptive_run(again, restored, points[cut:])
        assert same_bits(resumed, unbroken)
        assert again.bias(resumed, [0.1, 0.2])[0] == opes.bias(unbroken, [0.1, 0.2])[0]


def test_restart_refuses_what_does_not_fit():
    opes = OPES(40, 500, sigma=0.2)
    saved = opes.to_arrays(deposit(opes, [[0.1, 0.2], [0.9, 0.3]]))
    with pytest.raises(GeomGNNError, match="lacks log_W"):
        opes.from_arrays({name: array for name, array in saved.items() if name != "log_W"})
    with pytest.raises(GeomGNNError, match="do not fit: .*sigmas"):
        opes.from_arrays(saved | {"sigmas": saved["sigmas"][:1]})
    with pytest.raises(GeomGNNError, match="do not fit: .*Z"):
        opes.from_arrays(saved | {"Z": np.ones(2)})
    with pytest.raises(GeomGNNError, match="not finite in centres"):
        opes.from_arrays(saved | {"centres": saved["centres"] * np.nan})
    with pytest.raises(GeomGNNError, match="barrier.*= .40.0.*50.0"):
        OPES(50, 500, sigma=0.2).from_arrays(saved)
    with pytest.raises(GeomGNNError, match="sigma = .*0.2.*0.3"):
        OPES(40, 500, sigma=0.3).from_arrays(saved)
    with pytest.raises(GeomGNNError, match="written with periods"):
        OPES(40, 500, sigma=0.2, periods=[TORSION, None]).from_arrays(saved)
    with pytest.raises(GeomGNNError, match="adaptive"):
        OPES(40, 500).from_arrays(saved)
    # the same barrier in other units, and another pace, are no obstacle
    OPES(40 / 4.184 * unit.kilocalories_per_mole, 250, sigma=0.2).from_arrays(saved)


def test_wider_kernels_release_less_heat_in_several_dimensions():
    """What depositions in a Gaussian basin add to the energy, kJ/mol, while the bias sets in."""

    def released(dimension, width):
        rng, total = np.random.default_rng(3), 0.0
        for _ in range(4):
            opes = OPES(40, 1, sigma=width, ramp=20)
            state = opes.initial_state(dimension=dimension)
            for s in rng.normal(size=(40, 1, dimension)):
                before, state = opes.bias(state, s)[0], opes.update(state, s)
                total += float((opes.bias(state, s)[0] - before)[0])
        return total / 4

    one = released(1, kernel_widening(1))
    assert released(3, 1.0) > 3 * one  # as wide as the fluctuation
    for dimension in (2, 3):
        assert released(dimension, kernel_widening(dimension)) == pytest.approx(one, rel=0.3)


def test_states_are_immutable():
    opes = OPES(40, 1, adaptive_stride=10)
    state = adaptive_run(opes, opes.initial_state(1), np.random.default_rng(11).normal(size=(30, 1, 1)))
    before = {name: array.tobytes() for name, array in opes.to_arrays(state).items()}
    opes.bias(state, 0.1)
    assert opes.observe(state, 0.1) is not state and opes.update(state, 0.0) is not state
    assert {name: array.tobytes() for name, array in opes.to_arrays(state).items()} == before
    with pytest.raises(ValueError, match="read-only"):
        state.centres[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.n = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        opes.barrier = 10
    copy = pickle.loads(pickle.dumps(state))
    assert same_bits(copy, state) and not copy.M2.flags.writeable


def test_two_methods_may_share_a_state():
    narrow, wide = OPES(40, 500, sigma=0.1), OPES(40, 500, sigma=0.1, kernel_cutoff=4.0)
    state = deposit(narrow, [0.0, 0.3])
    first = narrow.bias(state, 0.45)[0]
    assert wide.bias(state, 0.45)[0] != first
    assert narrow.bias(state, 0.45)[0] == first


def test_dimension_is_fixed_by_the_first_value():
    opes = OPES(40, 500, sigma=0.1)
    state = opes.initial_state()
    assert state.dimension is None and state.sigma0.shape == (1, 0)
    assert opes.bias(state, [0.0, 0.0, 0.0])[1].shape == (3,)
    assert opes.update(state, [0.0, 0.1, 0.2]).dimension == 3
    assert OPES(40, 500, sigma=[0.1, 0.2]).initial_state().dimension == 2
    assert OPES(40, 500, periods=[TORSION]).initial_state().dimension == 1
    adaptive = OPES(40, 500)
    assert adaptive.observe(adaptive.initial_state(n_walkers=2), [0.0, 1.0]).m.shape == (2, 2)
    state = opes.update(state, 0.0)
    for call in (opes.update, opes.bias):
        with pytest.raises(GeomGNNError, match="2 components, but the bias has 1"):
            call(state, [0.0, 1.0])
    with pytest.raises(GeomGNNError, match="3 components, but sigma, sigma_min or periods"):
        OPES(40, 500, sigma=[0.1, 0.2]).initial_state(3)
    with pytest.raises(GeomGNNError, match="3 components, but sigma, sigma_min or periods"):
        OPES(40, 500, periods=[TORSION, None]).update(OPES(40, 500).initial_state(), [0.0, 0.0, 0.0])


# ------------------------------------------------------------------------------------------- walkers and adaptive sigma


def test_one_update_of_walkers_counts_each():
    opes = OPES(40, 500, sigma=0.1)
    values = np.array([[0.0], [5.0], [10.0], [0.02]])
    together = opes.update(opes.initial_state(n_walkers=4), values)
    assert together.n == 5 and len(together.centres) == 3
    # all were weighted under the bias before the update, -barrier
    assert together.log_W == pytest.approx(math.log(5) - 40 / KT, rel=1e-13)
    assert together.log_W2 == pytest.approx(math.log(5) - 80 / KT, rel=1e-13)
    assert np.exp(together.log_heights - together.log_heights[1]) == pytest.approx([2, 1, 1])
    # and far from each other, with EXPLORE's weightless kernels, they are what one after the other gives
    opes = OPES(40, 500, sigma=0.1, explore=True)
    one_by_one = deposit(opes, values[:3])
    together = opes.update(opes.initial_state(), values[:3])
    assert together.n == one_by_one.n and together.log_W == pytest.approx(one_by_one.log_W)
    assert np.array_equal(together.centres, one_by_one.centres)


@pytest.mark.parametrize("explore", [False, True])
def test_adaptive_sigma_is_measured_first(explore):
    opes = OPES(40, 10, explore=explore)
    points = np.random.default_rng(12).normal(2, 0.3, (200, 1, 1))
    state = opes.initial_state(1)
    for s in points[:99]:
        state = opes.observe(state, s[0])
    assert opes.update(state, 2.0) is state and opes.bias(state, 2.0) == (-40, [0.0])
    state = opes.observe(state, points[99, 0])
    x = points[:100, 0, 0]
    # up to S steps the accumulators are the plain mean and sum of squares (Welford)
    assert state.m[0, 0] == pytest.approx(x.mean()) and state.M2[0, 0] == pytest.approx(((x - x.mean()) ** 2).sum())
    first = opes.update(state, 2.0)
    gamma = opes.biasfactor
    sigma0 = x.std() * (math.sqrt(gamma) if explore else 1)
    assert first.sigma0[0, 0] == pytest.approx(sigma0)
    assert first.M2[0, 0] == pytest.approx(gamma * state.M2[0, 0])
    size = 2 if explore else opes.diagnostics(first)["neff"]
    assert first.sigmas[0, 0] == pytest.approx(sigma0 * (size * 0.75) ** -0.2)

    # later the mean forgets and M2 grows, sigma0 stays
    m, M2 = first.m[0, 0], first.M2[0, 0]
    state = first
    for s in points[100:150]:
        state = opes.observe(state, s[0])
        delta = s[0, 0] - m
        m += delta / 100
        M2 += delta * (s[0, 0] - m)
    assert state.m[0, 0] == pytest.approx(m) and state.M2[0, 0] == pytest.approx(M2) and state.a[0] == 150
    second = opes.update(state, 50.0)
    size = 3 if explore else opes.diagnostics(second)["neff"]
    width = math.sqrt(M2 / 150) if explore else math.sqrt(M2 / (150 * gamma))
    assert second.sigma0[0, 0] == first.sigma0[0, 0]
    assert second.sigmas[-1, 0] == pytest.approx(width * (size * 0.75) ** -0.2)
    weight = 0 if explore else opes.bias(state, 50.0)[0] / KT
    assert second.log_heights[-1] == pytest.approx(weight + math.log(sigma0 / second.sigmas[-1, 0]))


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("sigma_min", [None, [0.15, 0.01]])
def test_walkers_share_sigma0_and_measure_their_own_sigma(explore, sigma_min):
    opes = OPES(40, 10, explore=explore, sigma_min=sigma_min)
    widths, places = np.array([[0.1, 0.02], [0.4, 0.05]]), [[0.0, 1.0], [9.0, 2.0]]
    points = np.random.default_rng(13).normal(0, 1, (110, 2, 2)) * widths + places
    state = adaptive_run(opes, opes.initial_state(n_walkers=2), points[:100])
    assert state.n == 3
    gamma = opes.biasfactor
    spread = points[:100].std(axis=0) * (math.sqrt(gamma) if explore else 1)
    floor = np.zeros(2) if sigma_min is None else np.array(sigma_min)
    sigma0 = np.sqrt((np.maximum(spread, floor) ** 2).mean(axis=0))
    assert state.sigma0 == pytest.approx(sigma0[None])
    factor = (3 if explore else opes.diagnostics(state)["neff"]) ** (-1 / 6)
    assert state.sigmas == pytest.approx(np.maximum([sigma0 * factor] * 2, floor))
    # from then on each walker's sigma is of its own M2, and sigma0 stays
    later = adaptive_run(opes, state, points[100:])
    factor = (5 if explore else opes.diagnostics(later)["neff"]) ** (-1 / 6)
    before = state
    for s in points[100:]:
        for walker in range(2):
            before = opes.observe(before, s[walker], walker)
    own = np.sqrt(before.M2 / (110 if explore else 110 * gamma))
    centres, sigmas, heights = opes.deposits(before, points[-1])
    assert sigmas == pytest.approx(np.maximum(own * factor, floor))
    assert own[1, 0] > 3 * own[0, 0] and np.array_equal(later.sigma0, state.sigma0)
    # so that the mass of every kernel is that of its weight, whatever its width
    weights = np.ones(2) if explore else np.exp(opes.bias(before, points[-1])[0] / KT)
    assert heights * sigmas.prod(axis=1) == pytest.approx(weights * sigma0.prod())


def test_no_walker_may_be_missing_from_the_measurement():
    opes = OPES(40, 10)
    points = np.random.default_rng(13).normal(0, 1, (100, 2, 1))
    late = opes.initial_state(n_walkers=2)
    for s in points:
        late = opes.observe(late, s[0], 0)
    assert opes.update(late, points[-1]) is late  # the other walker has not been measured


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("sigma", [None, 0.2])
def test_deposits_are_what_an_update_adds(explore, sigma):
    """Without merging they are the last kernels of the updated state; with it, the sum of the heights grows by theirs."""
    points = np.random.default_rng(16).normal(0, 0.5, (150, 3, 1)) + math.pi
    unmerged = OPES(40, 5, sigma=sigma, explore=explore, periods=[TORSION], compression_threshold=0)
    merging = OPES(40, 5, sigma=sigma, explore=explore, periods=[TORSION])
    state = unmerged.initial_state(n_walkers=3)
    if sigma is None:
        assert [part.shape for part in unmerged.deposits(state, points[0])] == [(0, 1), (0, 1), (0,)]
    state = adaptive_run(unmerged, state, points)
    saved = unmerged.to_arrays(state)
    bias = np.array([1.0, 2.0, 3.0])
    centres, sigmas, heights = unmerged.deposits(state, points[7], bias)
    after = unmerged.update(state, points[7], bias)
    assert np.array_equal(centres, after.centres[-3:]) and np.array_equal(sigmas, after.sigmas[-3:])
    assert np.array_equal(heights, np.exp(after.log_heights[-3:]))
    assert (np.abs(centres) <= math.pi).all() and not np.shares_memory(centres, points)
    assert all(np.array_equal(array, saved[name]) for name, array in unmerged.to_arrays(state).items())
    for part, same in zip(merging.deposits(state, points[7], bias), (centres, sigmas, heights), strict=True):
        assert np.array_equal(part, same)
    gained = np.exp(merging.update(state, points[7], bias).log_heights).sum() - np.exp(state.log_heights).sum()
    assert gained == pytest.approx(heights.sum())


def test_deposits_of_one_walker_and_beyond_a_double():
    opes = OPES(40, 500, sigma=0.1)
    centres, sigmas, heights = opes.deposits(opes.initial_state(), [0.5, 0.6])
    assert centres.tolist() == [[0.5, 0.6]] and sigmas.shape == (1, 2) and heights.shape == (1,)
    assert opes.deposits(opes.initial_state(), 0.5, other_bias=1000 * opes.kT)[2] == [math.inf]
    with pytest.raises(GeomGNNError, match="is not finite"):
        opes.deposits(opes.initial_state(1), np.nan)


def test_adaptive_sigma_across_a_period():
    opes = OPES(40, 10, periods=[TORSION])
    x = np.random.default_rng(14).normal(math.pi, 0.2, 100)
    state = opes.initial_state()
    for value in x:
        state = opes.observe(state, minimum_image(np.array([value]), np.array([2 * math.pi])))
    assert math.sqrt(state.M2[0, 0] / 100) == pytest.approx(x.std())
    assert abs(state.m[0, 0]) <= math.pi


def test_a_constant_cv_is_an_error():
    opes = OPES(40, 10)
    state = opes.initial_state()
    for _ in range(100):
        state = opes.observe(state, [1.0, 2.0])
    with pytest.raises(GeomGNNError, match="hardly moved in 100 steps.*sigma_min"):
        opes.update(state, [1.0, 2.0])
    floored = OPES(40, 10, sigma_min=0.05)
    assert floored.update(state, [1.0, 2.0]).sigmas.min() >= 0.05


def test_sigma_min_is_a_floor():
    state = deposit(OPES(40, 500, sigma=0.1, sigma_min=0.08, explore=False), np.zeros((50, 1)))
    assert state.sigmas.min() >= 0.08 and OPES(40, 500, sigma=0.1).observe("anything", 0.0) == "anything"


# ------------------------------------------------------------------------------------------------------------ dynamics


def sample(opes, force, start, steps, period=None, step=1e-3, seed=0):
    """Overdamped Langevin dynamics of many walkers that share one bias; returns s, V (steps, walkers) and the state.

    The noise of two steps is averaged (Leimkuhler & Matthews 2013), which samples far better than Euler.
    """
    rng = np.random.default_rng(seed)
    x, state = np.array(start, dtype=float), opes.initial_state(1, len(start))
    noise, trajectory, biases = rng.normal(size=len(x)), np.empty((steps, len(x))), np.empty((steps, len(x)))
    for i in range(steps):
        V, gradient = opes.bias(state, x[:, None])
        trajectory[i], biases[i] = x, V
        if i and i % opes.pace == 0:
            state = opes.update(state, x[:, None])
        fresh = rng.normal(size=len(x))
        x = x + step / opes.kT * (force(x) - gradient[:, 0]) + math.sqrt(2 * step) * (noise + fresh) / 2
        noise = fresh
        if period:
            x = x - period * np.rint(x / period)
    return trajectory, biases, state


def free_energy(opes, s, V, edges):
    weights = np.exp((V - V.max()) / opes.kT)
    histogram, _ = np.histogram(s, edges, weights=weights)
    return -opes.kT * np.log(histogram)


def exact_free_energy(potential, edges, kT):
    fine = np.linspace(edges[:-1], edges[1:], 51)
    return -kT * np.log(np.trapezoid(np.exp(-potential(fine) / kT), fine, axis=0))


def check_free_energy(opes, potential, s, V, edges, in_a, barrier, tolerance=1.0):
    """The reweighted F(s) below the barrier, and the difference of the two basins, within the tolerance in kJ/mol."""
    found, exact = free_energy(opes, s, V, edges), exact_free_energy(potential, edges, opes.kT)
    low = exact - exact.min() < barrier
    offset = (found - exact)[low].mean()
    rms = math.sqrt(((found - exact - offset)[low] ** 2).mean())
    weights = np.exp((V - V.max()) / opes.kT)
    delta = -opes.kT * math.log(weights[in_a(s)].sum() / weights[~in_a(s)].sum())
    centres = (edges[1:] + edges[:-1]) / 2
    population = np.exp(-exact / opes.kT)
    expected = -opes.kT * math.log(population[in_a(centres)].sum() / population[~in_a(centres)].sum())
    print(f"\nrms error of F {rms:.2f}, dF {delta:.2f}, exact {expected:.2f} kJ/mol")
    assert rms < tolerance and abs(delta - expected) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("explore", [False, True])
def test_double_well(explore):
    """A barrier of 8 kT, which these walkers would not cross otherwise, all started on one side."""
    height, tilt = 8 * KT, 2.5

    def potential(x):
        return height * (x * x - 1) ** 2 + tilt * x

    def force(x):
        return -4 * height * x * (x * x - 1) - tilt

    opes = OPES(30, 100, sigma=0.12, sigma_min=0.04, explore=explore)
    s, V, state = sample(opes, force, np.full(50, -1.0), 24000, seed=1)
    s, V = s[6000:], V[6000:]
    crossings = (np.diff(np.sign(s[::50]), axis=0) != 0).sum()
    print(f"\ncrossings of 0: {crossings}, kernels: {len(state.centres)}")
    assert crossings > 50
    check_free_energy(opes, potential, s, V, np.linspace(-1.4, 1.4, 29), lambda x: x < 0, barrier=9 * KT)


@pytest.mark.slow
def test_double_well_with_adaptive_sigma():
    height = 8 * KT

    def potential(x):
        return height * (x * x - 1) ** 2

    opes = OPES(30, 50, sigma_min=0.04, adaptive_stride=400)
    rng = np.random.default_rng(2)
    state, x, s, V = opes.initial_state(n_walkers=8), np.full(8, 1.0), [], []
    for i in range(12000):
        bias, gradient = opes.bias(state, x[:, None])
        s.append(x)
        V.append(bias)
        for walker in range(8):
            state = opes.observe(state, x[walker], walker)
        if i and i % opes.pace == 0:
            state = opes.update(state, x[:, None])
        x = x + 1e-3 / KT * (-4 * height * x * (x * x - 1) - gradient[:, 0]) + math.sqrt(2e-3) * rng.normal(size=8)
    # the harmonic spread at the bottom of the well is sqrt(kT/(8*height)) = 0.125
    assert state.sigma0 == pytest.approx(np.full((1, 1), 0.125), rel=0.4)
    s, V = np.array(s)[4000:], np.array(V)[4000:]
    assert (np.diff(np.sign(s[::50]), axis=0) != 0).sum() > 10
    check_free_energy(opes, potential, s, V, np.linspace(-1.4, 1.4, 29), lambda x: x < 0, barrier=8 * KT, tolerance=2.0)


@pytest.mark.slow
def test_periodic_torsion():
    """Wells at 0 and at +-pi: the second straddles the boundary, and both ways around are open."""
    height, tilt = 8 * KT, 1.5

    def potential(x):
        return height / 2 * (1 - np.cos(2 * x)) + tilt * np.cos(x)

    def force(x):
        return -height * np.sin(2 * x) + tilt * np.sin(x)

    opes = OPES(30, 100, sigma=0.25, sigma_min=0.08, periods=[TORSION])
    s, V, state = sample(opes, force, np.full(20, 0.0), 20000, period=2 * math.pi, step=4e-3, seed=3)
    s, V = s[5000:], V[5000:]
    assert (np.abs(np.diff(s, axis=0)) > math.pi).sum() > 50  # the boundary was crossed
    edges = np.linspace(-math.pi, math.pi, 41)
    check_free_energy(opes, potential, s, V, edges, lambda x: np.abs(x) < math.pi / 2, barrier=9 * KT)
