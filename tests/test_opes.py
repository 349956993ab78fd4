import dataclasses
import math
import pickle
import warnings

import numpy as np
import pytest
from openmm import unit

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.kernels import KernelSum, add_kernel, merge_pair, minimum_image, wrap
from openmm_geomgnn.sampling.opes import OPES

TORSION = (-math.pi, math.pi)
KT = 0.00831446261815324 * 300


def deposit(opes, points, dimension=None):
    state = opes.initial_state(dimension)
    for s in points:
        state = opes.update(state, s)
    return state


def same_bits(first, second):
    for field in dataclasses.fields(first):
        if field.init:
            a, b = np.asarray(getattr(first, field.name)), np.asarray(getattr(second, field.name))
            assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), field.name
    return True


def relative_gradient_error(opes, state, points, step):
    """Largest error of the gradient against fourth-order central differences, relative to the largest gradient."""
    _, gradient = opes.bias(state, points)
    numeric = np.empty_like(gradient)
    for i in range(points.shape[1]):
        shift = np.zeros(points.shape[1])
        shift[i] = step
        near = opes.bias(state, points + shift)[0] - opes.bias(state, points - shift)[0]
        far = opes.bias(state, points + 2 * shift)[0] - opes.bias(state, points - 2 * shift)[0]
        numeric[:, i] = (8 * near - far) / (12 * step)
    return np.abs(gradient - numeric).max() / np.abs(gradient).max()


# ----------------------------------------------------------------------------------------------- constants and formulas


@pytest.mark.parametrize(
    "barrier, explore, biasfactor, p, epsilon, cutoff, W",
    [
        (40, False, 16.036314, 0.937642, 3.735423e-8, 5.848559, 1.085219e-7),
        (40, True, 16.036314, 15.036314, 0.344209, 5.663270, 1.085219e-7),
        (20, False, 8.018157, 0.875283, 1.050951e-4, 4.280337, 3.294266e-4),
    ],
)
def test_constants(barrier, explore, biasfactor, p, epsilon, cutoff, W):
    opes = OPES(barrier=barrier, pace=500, temperature=300, explore=explore)
    assert opes.kT == pytest.approx(2.494339, abs=1e-6)
    assert opes.biasfactor == pytest.approx(biasfactor, abs=1e-6)
    assert opes.p == pytest.approx(p, abs=1e-6)
    assert opes.epsilon == pytest.approx(epsilon, rel=2e-6)
    assert opes.kernel_cutoff == pytest.approx(cutoff, abs=1e-6)
    state = opes.initial_state(1)
    assert math.exp(state.log_W) == pytest.approx(W, rel=1e-6)
    assert (state.n, state.Z, state.log_W2) == (1, 1.0, 2 * state.log_W)
    # exp(-c^2/2) = epsilon is the convention of METAD
    if not explore:
        assert math.exp(-(opes.kernel_cutoff**2) / 2) == pytest.approx(opes.epsilon)


def test_quantities_and_numbers_agree():
    plain = OPES(barrier=41.84, pace=500, temperature=300)
    quantity = OPES(10 * unit.kilocalories_per_mole, 500, 300 * unit.kelvin)
    assert quantity.barrier == pytest.approx(plain.barrier) and quantity.epsilon == pytest.approx(plain.epsilon)
    assert OPES("10 kcal/mol", 500, "300 K") == quantity
    assert (plain.pace, plain.adaptive_stride) == (500, 5000)


@pytest.mark.parametrize("d, factor", [(1, 0.42168), (2, 0.46416), (3, 0.50170)])
def test_bandwidth_factor_at_100_samples(d, factor):
    # EXPLORE counts samples, so that n is 100 exactly at the 99th deposition; far apart, the kernels do not merge
    opes = OPES(40, 500, sigma=0.1, explore=True)
    state = deposit(opes, [np.full(d, 10.0 * i) for i in range(99)])
    assert state.n == 100
    assert state.sigmas[-1] == pytest.approx(np.full(d, 0.1 * math.sqrt(opes.biasfactor) * factor), rel=2e-5)


def test_updates_follow_the_formulas_on_the_page():
    """Three depositions, recomputed here without logarithms, periodicity or vectors."""
    opes = OPES(20, 500, sigma=0.2, compression_threshold=0)
    c, p, epsilon = opes.kernel_cutoff, opes.p, opes.epsilon
    W, W2, n, Z, kernels = epsilon**p, epsilon ** (2 * p), 1, 1.0, []

    def density(s):
        total = 0.0
        for h, centre, sigma in kernels:
            r2 = ((s - centre) / sigma) ** 2
            total += h * (math.exp(-r2 / 2) - math.exp(-c * c / 2)) if r2 < c * c else 0.0
        return total / W

    state = opes.initial_state()
    for s in (0.1, 0.35, 1.2):
        V = p * KT * math.log(density(s) / Z + epsilon)
        assert opes.bias(state, s)[0] == pytest.approx(V, rel=1e-12)
        w = math.exp(V / KT)
        n, W, W2 = n + 1, W + w, W2 + w * w
        neff = (1 + W) ** 2 / (1 + W2)
        sigma = 0.2 * (neff * 3 / 4) ** (-1 / 5)
        kernels.append((w * 0.2 / sigma, s, sigma))
        Z = sum(density(centre) for _, centre, _ in kernels) / len(kernels)
        state = opes.update(state, s)
        diagnostics = opes.diagnostics(state)
        assert diagnostics["neff"] == pytest.approx(neff, rel=1e-12)
        assert diagnostics["rct"] == pytest.approx(KT * math.log(W / n), rel=1e-12)
        assert diagnostics["zed"] == pytest.approx(Z, rel=1e-12)
        assert diagnostics["nker"] == len(kernels)
    assert np.exp(state.log_heights) == pytest.approx([h for h, _, _ in kernels], rel=1e-12)


def test_explore_updates_follow_the_formulas_on_the_page():
    opes = OPES(20, 500, sigma=0.2, explore=True, compression_threshold=0)
    state = deposit(opes, [0.1, 0.3])
    sigma0 = 0.2 * math.sqrt(opes.biasfactor)
    sigmas = np.array([sigma0 * (n * 3 / 4) ** -0.2 for n in (2, 3)])
    assert state.sigmas[:, 0] == pytest.approx(sigmas, rel=1e-13)
    assert np.exp(state.log_heights) == pytest.approx(sigma0 / sigmas, rel=1e-13)
    shift = math.exp(-(opes.kernel_cutoff**2) / 2)

    def density(s):
        kernels = zip((0.1, 0.3), sigmas, strict=True)
        return sum(sigma0 / width * (math.exp(-(((s - c) / width) ** 2) / 2) - shift) for c, width in kernels) / 3

    Z = (density(0.1) + density(0.3)) / 2
    assert state.Z == pytest.approx(Z, rel=1e-13)
    V = (opes.biasfactor - 1) * KT * math.log(density(0.5) / Z + opes.epsilon)
    assert opes.bias(state, 0.5)[0] == pytest.approx(V, rel=1e-12)
    # the weights are tracked all the same
    assert state.log_W > opes.initial_state().log_W and opes.diagnostics(state)["neff"] > 1


def test_flat_target():
    opes = OPES(40, 500, sigma=0.1, biasfactor=math.inf)
    assert opes.p == 1 and opes.epsilon == pytest.approx(math.exp(-40 / KT))
    state = deposit(opes, [0.0, 0.02])
    assert opes.bias(state, 5.0)[0] == pytest.approx(-40, rel=1e-12)


# ------------------------------------------------------------------------------------------------------------- kernels


def test_merging_conserves_mass_mean_and_variance():
    rng = np.random.default_rng(1)
    for _ in range(20):
        (c1, c2), (s1, s2) = rng.normal(1000, 1, (2, 3)), rng.uniform(0.05, 0.5, (2, 3))
        h1, h2 = rng.uniform(0.1, 3, 2)
        centre, sigma, log_height = merge_pair(c1, s1, math.log(h1), c2, s2, math.log(h2))
        h = h1 + h2
        assert math.exp(log_height) == pytest.approx(h, rel=1e-13)
        assert centre == pytest.approx((h1 * c1 + h2 * c2) / h, rel=1e-14)
        variance = (h1 * (s1**2 + (c1 - centre) ** 2) + h2 * (s2**2 + (c2 - centre) ** 2)) / h
        assert sigma**2 == pytest.approx(variance, rel=1e-10)


def test_merging_across_a_period_and_of_weights_beyond_a_double():
    lows, lengths = np.array([-math.pi]), np.array([2 * math.pi])
    kernels = np.array([[math.pi - 0.1]]), np.array([[0.3]]), np.array([900.0])
    new = np.array([0.1 - math.pi]), np.array([0.3]), 900.0
    centres, sigmas, log_heights = add_kernel(*kernels, new, 1, lows, lengths)
    assert abs(minimum_image(centres[0] - math.pi, lengths)[0]) < 1e-14
    assert -math.pi <= centres[0, 0] <= math.pi
    assert sigmas[0, 0] == pytest.approx(math.hypot(0.3, 0.1)) and log_heights[0] == pytest.approx(900 + math.log(2))


def test_merging_is_recursive_and_measured_in_the_existing_sigma():
    # 0 and 1.8 are too far apart to merge, until a heavy kernel near 0.95 draws the second within reach of the first
    centres, sigmas, log_heights = np.array([[0.0], [1.8], [40.0]]), np.full((3, 1), 1.0), np.zeros(3)
    new = np.array([0.95]), np.array([1.0]), 3.0
    merged = add_kernel(centres, sigmas, log_heights, new, threshold=1.0)
    assert [len(part) for part in merged] == [2, 2, 2]
    masses = np.exp(merged[2]) @ [1, 1]
    assert masses == pytest.approx(3 + math.exp(3))
    assert (np.exp(merged[2]) @ merged[0])[0] == pytest.approx(41.8 + 0.95 * math.exp(3))
    assert [len(part) for part in add_kernel(centres, sigmas, log_heights, new, threshold=0.5)] == [4, 4, 4]
    assert [len(part) for part in add_kernel(centres, sigmas, log_heights, new, threshold=0)] == [4, 4, 4]
    # a narrow newcomer within the reach of a wide kernel merges; a wide newcomer beside a narrow kernel does not
    wide, narrow = (np.array([[0.0]]), np.array([[1.0]])), (np.array([[0.0]]), np.array([[0.1]]))
    at = np.array([0.5])
    assert len(add_kernel(*wide, np.zeros(1), (at, np.array([0.1]), 0.0), 1.0)[0]) == 1
    assert len(add_kernel(*narrow, np.zeros(1), (at, np.array([1.0]), 0.0), 1.0)[0]) == 2


def test_merging_keeps_the_kernels_few():
    points = np.random.default_rng(2).normal(0, 0.3, (2000, 1))
    state = deposit(OPES(40, 500, sigma=0.1, sigma_min=0.05), points)
    assert len(state.centres) < 60
    assert len(deposit(OPES(40, 500, sigma=0.1, compression_threshold=0), points[:100]).centres) == 100


def test_density_in_blocks_is_the_same():
    rng = np.random.default_rng(3)
    total = KernelSum(rng.normal(size=(700, 2)), np.full((700, 2), 0.3), np.zeros(700), 5.0)
    points = rng.normal(size=(1000, 2))
    whole, gradient = total.log_density(points, -16.0)
    for i in (0, 187, 188, 999):
        value, slope = total.log_density(points[i : i + 1], -16.0)
        assert value[0] == pytest.approx(whole[i], rel=1e-14) and slope[0] == pytest.approx(gradient[i], rel=1e-12)
    assert np.array_equal(total.density(points)[:5], total.density(points[:5]))


def test_wrap():
    lows, lengths = np.array([-math.pi, 0.0]), np.array([2 * math.pi, 0.0])
    assert wrap(np.array([3.5, 7.0]), lows, lengths) == pytest.approx([3.5 - 2 * math.pi, 7.0])


# ---------------------------------------------------------------------------------------------------- energy and force


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("periodic", [False, True])
def test_force_is_the_gradient_of_the_energy(d, explore, periodic):
    rng = np.random.default_rng(10 * d + explore)
    periods = [TORSION] + [None] * (d - 1) if periodic else None
    opes = OPES(40, 500, sigma=0.3, explore=explore, periods=periods)
    state = deposit(opes, rng.uniform(-3.1, 3.1, (40, d)) * ([1.0] + [0.3] * (d - 1)))
    # random points, and points around the boundary of the period; a step across a cutoff would not be a derivative,
    # so only points where no kernel ends are kept
    points = rng.uniform(-3.3, 3.3, (300, d)) * ([1.0] + [0.3] * (d - 1))
    lengths = np.array([2 * math.pi] + [0.0] * (d - 1)) if periodic else None
    delta = minimum_image(points[:, None] - state.centres, lengths)
    r = np.sqrt(((delta / state.sigmas) ** 2).sum(axis=2))
    step = 2e-4
    clear = (np.abs(r - opes.kernel_cutoff) > 4 * step / state.sigmas.min()).all(axis=1)
    if periodic:  # nor is the distance differentiable exactly half a period away from a kernel
        clear &= (np.abs(np.abs(delta[..., 0]) - math.pi) > 4 * step).all(axis=1)
    assert clear.sum() > 50
    assert relative_gradient_error(opes, state, points[clear], step) < 1e-7


def test_periodic_images_feel_the_same_bias():
    opes = OPES(40, 500, sigma=[0.2, 0.3], periods=[TORSION, None])
    state = deposit(opes, np.random.default_rng(4).uniform(-3, 3, (30, 2)))
    for s in ([3.1, 0.4], [-0.2, 1.0]):
        V, gradient = opes.bias(state, s)
        image, image_gradient = opes.bias(state, np.add(s, [2 * math.pi, 0]))
        assert image == pytest.approx(V, rel=1e-11) and image_gradient == pytest.approx(gradient, rel=1e-9)
    shifted = opes.update(state, [3.0 + 2 * math.pi, 0.0])
    assert (np.abs(shifted.centres[:, 0]) <= math.pi).all()


def test_one_point_and_many_agree():
    opes = OPES(40, 500, sigma=0.2)
    state = deposit(opes, np.random.default_rng(5).uniform(-1, 1, (30, 2)))
    points = np.random.default_rng(6).uniform(-2, 2, (7, 2))
    V, gradient = opes.bias(state, points)
    for i, s in enumerate(points):
        one, slope = opes.bias(state, s)
        assert isinstance(one, float) and slope.shape == (2,)
        assert one == pytest.approx(V[i], rel=1e-13) and slope == pytest.approx(gradient[i], rel=1e-12)


@pytest.mark.parametrize("explore", [False, True])
def test_bias_is_minus_barrier_where_nothing_was_visited_and_zero_in_the_well(explore):
    opes = OPES(40, 500, sigma=0.1, explore=explore)
    V, gradient = opes.bias(opes.initial_state(), 0.3)
    assert V == -40 and gradient == [0.0]
    state = deposit(opes, np.random.default_rng(7).normal(0, 0.1, (1000, 1)))
    V, gradient = opes.bias(state, 20.0)
    assert V == pytest.approx(-40, rel=1e-12) and gradient == [0.0]
    inside = opes.bias(state, 0.0)[0]
    # EXPLORE multiplies ln(P/Z) by p = biasfactor - 1
    assert abs(inside) < (3 * KT if not explore else 40)
    assert inside > -40 / 2


def test_first_kernel_fills_its_place():
    opes = OPES(40, 500, sigma=0.1)
    state = opes.update(opes.initial_state(), 0.5)
    assert opes.bias(state, 0.5)[0] == pytest.approx(0, abs=1e-6)
    assert opes.bias(state, 5.0)[0] == pytest.approx(-40)


def test_nothing_overflows():
    """beta*V = 870 has been seen in the wild: exp of it does not fit a double."""
    opes = OPES(40, 500, sigma=0.1)
    state = opes.update(opes.initial_state(), 0.0, other_bias=870 * opes.kT)
    state = opes.update(state, 0.3, other_bias=870 * opes.kT)
    state = opes.update(state, 2.0)
    with np.errstate(all="raise", under="ignore"):
        for s in np.linspace(-3, 3, 41):
            V, gradient = opes.bias(state, s)
            assert math.isfinite(V) and np.isfinite(gradient).all() and V >= -40 - 1e-9
    assert all(math.isfinite(value) for value in opes.diagnostics(state).values())
    assert np.isfinite(state.log_heights).all()
    assert relative_gradient_error(opes, state, np.linspace(-0.4, 0.6, 12)[:, None] + 0.003, 1e-4) < 1e-7


def test_a_barrier_of_870_kT_stays_finite():
    with pytest.warns(UserWarning, match="is your barrier too high"):
        opes = OPES(870 * KT, 500, sigma=0.1, biasfactor=20)
    assert opes.epsilon == 0 and opes.log_epsilon == pytest.approx(-870 / 0.95)
    state = deposit(opes, [0.0, 0.05, 0.5])
    points = np.linspace(-6, 6, 200)[:, None]
    V, gradient = opes.bias(state, points)
    assert np.isfinite(V).all() and np.isfinite(gradient).all()
    assert V[0] == pytest.approx(-870 * KT) and V.max() > -5 * KT
    # where the kernels are far below the smallest double, and still above epsilon
    far = np.array([[-3.8], [-3.7], [-3.3]])
    assert opes.bias(state, far)[0] / KT == pytest.approx([-831, -790, -625], abs=20)
    assert relative_gradient_error(opes, state, far, 1e-3) < 1e-7
    assert math.isfinite(opes.diagnostics(state)["rct"])


def test_log_space_agrees_with_the_plain_sum():
    rng = np.random.default_rng(8)
    total = KernelSum(rng.normal(size=(20, 2)), np.full((20, 2), 0.4), rng.normal(size=20), 5.0)
    points = rng.normal(0, 2, (100, 2))
    plain, gradient = total.log_density(points, -12.5)
    logarithmic, slope = total._log_space(points, -12.5)
    assert logarithmic == pytest.approx(plain, rel=1e-12, abs=1e-12) and slope == pytest.approx(gradient, abs=1e-9)


# --------------------------------------------------------------------------------------------------- state and restart


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


def test_each_walker_has_its_own_sigma():
    opes = OPES(40, 10)
    points = np.random.default_rng(13).normal(0, 1, (100, 2, 1)) * [[0.1], [0.4]] + [[0.0], [9.0]]
    state = adaptive_run(opes, opes.initial_state(n_walkers=2), points)
    assert state.n == 3
    spread = points[:, :, 0].std(axis=0)
    assert state.sigmas[:, 0] / state.sigmas[0, 0] == pytest.approx(spread / spread[0])
    late = opes.initial_state(n_walkers=2)
    for s in points:
        late = opes.observe(late, s[0], 0)
    assert opes.update(late, points[-1]) is late  # the other walker has not been measured


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


# ----------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"barrier": 2}, "barrier/kT = 0.802.*is your barrier too low"),
        ({"barrier": 2, "biasfactor": 0.8}, "biasfactor is 0.8.*is your barrier too low"),
        ({"biasfactor": 1}, "biasfactor is 1 but must be greater than 1"),
        ({"biasfactor": math.inf}, "inf .a flat target. needs a given sigma"),
        ({"biasfactor": math.inf, "sigma": 0.1, "explore": True}, "not possible with explore=True"),
        ({"biasfactor": math.nan}, "biasfactor is nan"),
        ({"barrier": 0}, "barrier is 0 but must be"),
        ({"barrier": -40}, "barrier is -40 but must be"),
        ({"barrier": math.inf}, "barrier is inf but must be"),
        ({"barrier": "high"}, "barrier is 'high', but it must be a number of kJ/mol"),
        ({"barrier": 40 * unit.kelvin}, "barrier is .40 K., but it must be a number of kJ/mol"),
        ({"temperature": 300 * unit.kilojoules_per_mole}, "temperature is .300 kJ/mol., but it must be a number of K"),
        ({"temperature": 0}, "temperature is 0"),
        ({"pace": 0}, "pace is 0 but must be at least 1"),
        ({"pace": 0.5}, "pace is 0.5 but must be a whole number"),
        ({"pace": 1 * unit.picoseconds}, "divide a time by the time step"),
        ({"sigma": 0}, "sigma is 0"),
        ({"sigma": [0.1, -0.1]}, "sigma is -0.1"),
        ({"sigma": []}, "sigma is empty"),
        ({"sigma": "wide"}, "sigma is 'wide'"),
        ({"sigma": 0.1 * unit.nanometers}, "sigma is 0.1 nm: give a bare number"),
        ({"sigma": 0.1, "sigma_min": 0.2}, "sigma_min .0.2. is above sigma"),
        ({"sigma": 0.1, "adaptive_stride": 100}, "adaptive_stride = 100 has no meaning"),
        ({"adaptive_stride": 0}, "adaptive_stride is 0"),
        ({"sigma": [0.1, 0.1], "periods": [TORSION]}, "disagree.*sigma has 2, periods has 1"),
        ({"periods": TORSION}, r"as in \[\(-math.pi, math.pi\)\]"),
        ({"periods": [(1.0, 1.0)]}, "low below high"),
        ({"periods": [(1.0,)]}, "low below high"),
        ({"compression_threshold": 6}, "must be below kernel_cutoff, 5.849 sigma"),
        ({"compression_threshold": -1}, "compression_threshold is -1"),
        ({"kernel_cutoff": 0}, "kernel_cutoff is 0"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(GeomGNNError, match=message):
        OPES(**({"barrier": 40, "pace": 500} | settings))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"biasfactor": 870}, "biasfactor = 870 is far above barrier/kT = 16: the target is flat"),
        ({"biasfactor": 870, "explore": True}, "biasfactor = 870.*overflow"),
        ({"barrier": 10}, "cut off at 3.2. sigma, below 3.5.*too low"),
        ({"kernel_cutoff": 3}, "below 3.5.*kernel_cutoff too short"),
        ({"barrier": 40000}, "is it in J/mol"),
        ({"sigma": 0.6, "periods": [TORSION]}, "half the period"),
    ],
)
def test_doubtful_settings_warn(settings, message):
    with pytest.warns(UserWarning, match=message):
        OPES(**({"barrier": 40, "pace": 500} | settings))


def test_sensible_settings_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OPES(40, 500)
        OPES(40, 500, explore=True, biasfactor=30, sigma=0.2, periods=[TORSION])
        OPES(30, 500, sigma=[0.2, 0.2], sigma_min=[0.1, 0.1], periods=[TORSION, None], biasfactor=math.inf)


def test_values_that_do_not_fit_are_refused():
    opes, adaptive = OPES(40, 500, sigma=0.1), OPES(40, 500)
    with pytest.raises(GeomGNNError, match="of walker 1 is not finite"):
        opes.update(opes.initial_state(1), [[0.0], [np.nan]])
    with pytest.raises(GeomGNNError, match="is not finite"):
        adaptive.observe(adaptive.initial_state(1), np.inf)
    with pytest.raises(GeomGNNError, match="update got CV values of shape"):
        opes.update(opes.initial_state(1), np.zeros((2, 2, 2)))
    with pytest.raises(GeomGNNError, match="2 walkers but the state measures sigma for 1"):
        adaptive.update(adaptive.initial_state(1), [[0.0], [1.0]])
    with pytest.raises(GeomGNNError, match="no walker 1"):
        adaptive.observe(adaptive.initial_state(1), 0.0, walker=1)
    with pytest.raises(GeomGNNError, match="other_bias"):
        opes.update(opes.initial_state(1), 0.0, other_bias=[1.0, 2.0])
    with pytest.raises(GeomGNNError, match="n_walkers is 0"):
        opes.initial_state(1, n_walkers=0)
    assert math.isnan(opes.bias(deposit(opes, [0.0]), np.nan)[0])


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
    assert state.sigma0[:, 0] == pytest.approx(np.full(8, 0.125), rel=0.4)
    s, V = np.array(s)[4000:], np.array(V)[4000:]
    assert (np.diff(np.sign(s[::50]), axis=0) != 0).sum() > 10
    check_free_energy(opes, potential, s, V, np.linspace(-1.4, 1.4, 29), lambda x: x < 0, barrier=8 * KT, tolerance=2.0)


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
