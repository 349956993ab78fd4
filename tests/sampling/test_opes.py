"""OPES: its constants and formulas, energy and force, and what it says of settings that make no sense."""

import math
import warnings

import numpy as np
import pytest
from biases import KT, TORSION, deposit
from openmm import unit

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.opes.kernel_sum import minimum_image
from openmm_geomgnn.sampling.opes.method import OPES

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


# ---------------------------------------------------------------------------------------------------- energy and force


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
    with pytest.warns(UserWarning, match=message) as given:
        OPES(**({"barrier": 40, "pace": 500} | settings))
    # where the user made it
    assert given[0].filename == __file__


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
