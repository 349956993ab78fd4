"""Estimates from biased data: against slow twins, and against the exact eigenfunctions of the unbiased dynamics."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import (
    Pairs,
    covariances,
    cross_validate,
    fit_linear,
    koopman_weights,
    normalised_biases,
    rescaled_time_pairs,
    static_weights,
)
from openmm_geomgnn.sampling import OPES

KT = 2.5
RNG = np.random.default_rng(0)


def slow_pairs(bias, kT, dt, lag, offset):
    """Overlaps of all intervals with all others, one by one."""
    edges = np.concatenate([[0.0], np.cumsum(dt * np.exp(bias / kT - offset))])
    found = {}
    for i in range(len(bias)):
        for j in range(len(bias)):
            overlap = min(edges[i + 1] + lag, edges[j + 1]) - max(edges[i] + lag, edges[j])
            if overlap > 1e-9:
                found[i, j] = overlap
    return found


def test_rescaled_time_pairs_are_those_of_a_slow_twin():
    biases = [5 * RNG.normal(size=40), 3 * RNG.normal(size=25)]
    dt, lag = [0.5, 0.8], 3.0
    total = sum(step * np.exp(v / KT).sum() for v, step in zip(biases, dt, strict=True))
    offset = np.log(total / sum(len(v) * step for v, step in zip(biases, dt, strict=True)))
    for pairs, bias, step in zip(rescaled_time_pairs(biases, KT, dt, lag), biases, dt, strict=True):
        twin = slow_pairs(bias, KT, step, lag, offset)
        assert {(int(i), int(j)) for i, j in zip(pairs.first, pairs.second, strict=True)} == set(twin)
        np.testing.assert_allclose(pairs.weights, [twin[int(i), int(j)] for i, j, _ in zip(*pairs, strict=True)], rtol=1e-9)


def test_without_bias_these_are_the_usual_pairs():
    x = RNG.normal(size=(500, 3)).cumsum(0)
    (pairs,) = rescaled_time_pairs([np.zeros(500)], KT, 0.2, 1.0)
    usual, found = covariances(x, 5), covariances(x, 5, pairs=[pairs])
    for name in ("mean_0", "c00", "c0t", "ctt"):
        np.testing.assert_allclose(getattr(found, name), getattr(usual, name), rtol=1e-9, atol=1e-12)
    one, other = fit_linear(x, 5, 2), fit_linear(x, 5, 2, pairs=[pairs])
    np.testing.assert_allclose(one.singular_values, other.singular_values, rtol=1e-9)


def test_rounding_makes_no_pairs():
    """0.2 is no binary fraction: in a long run the edges of intervals meet up to rounding only."""
    (pairs,) = rescaled_time_pairs([np.zeros(300_000)], KT, 0.2, 1.0)
    np.testing.assert_array_equal(pairs.first, np.arange(299_995))
    np.testing.assert_array_equal(pairs.second - pairs.first, 5)
    np.testing.assert_allclose(pairs.weights, 0.2, rtol=1e-8)


def test_a_frame_that_stands_for_more_than_the_lag_is_a_pair_with_itself():
    (pairs,) = rescaled_time_pairs([KT * np.log([2.0, 8.0, 2.0])], KT, 1.0, 1.0)  # scaled to 0.5, 2 and 0.5
    np.testing.assert_allclose(pairs.weights, [0.5, 1.0, 0.5])
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(0, 1), (1, 1), (1, 2)]


def test_pairs_are_as_many_as_repeated_frames():
    """Two frames twice as long are four frames: whole numbers of repetitions, and covariances by hand."""
    x = RNG.normal(size=(30, 2))
    pairs = Pairs(np.arange(25), np.arange(25) + 5, RNG.integers(1, 4, 25).astype(float))
    found = covariances(x, 5, pairs=[pairs], reversible=False)
    first, second = (np.repeat(x[side], pairs.weights.astype(int), axis=0) for side in (pairs.first, pairs.second))
    np.testing.assert_allclose(found.mean_0, first.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.c0t, (first - first.mean(0)).T @ (second - second.mean(0)) / len(first), atol=1e-12)


def test_a_common_shift_of_all_biases_changes_nothing():
    x = [RNG.normal(size=(400, 3)).cumsum(0) for _ in range(2)]
    biases = [4 * RNG.normal(size=400) for _ in range(2)]
    for shift in (0.0, 300.0):
        moved = [v + shift for v in biases]
        fits = (
            fit_linear(x, 5, 2, weights=static_weights(moved, KT)),
            fit_linear(x, 5, 2, pairs=rescaled_time_pairs(moved, KT, 0.2, 1.0)),
        )
        values = [np.concatenate([fit.transform(part) for part in x]) for fit in fits]
        if shift == 0.0:
            before = values
    for one, other in zip(before, values, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10 * np.abs(one).max())


def test_shifts_of_each_group_of_walkers_change_nothing():
    """Walkers of one run share a constant that nobody knows; `normalised_biases` takes it out."""
    biases = [4 * RNG.normal(size=n) for n in (50, 70, 30)]
    groups = [0, 0, 1]
    shifted = [v + shift for v, shift in zip(biases, (7.0, 7.0, -40.0), strict=True)]
    for one, other in zip(normalised_biases(biases, KT, groups), normalised_biases(shifted, KT, groups), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)
    together = np.concatenate(normalised_biases(biases, KT, groups)[:2])
    assert np.exp(together / KT).mean() == pytest.approx(1.0)


def test_pieces_of_the_data_change_nothing_but_pairs_across_the_cut():
    """Covariances of a run, and of pieces with the pairs that lie within them: the missing ones are those across."""
    x, bias = RNG.normal(size=(300, 2)).cumsum(0), 3 * RNG.normal(size=300)
    (whole,) = rescaled_time_pairs([bias], KT, 1.0, 6.0)
    within = (whole.first < 150) == (whole.second < 150)
    kept = Pairs(*(part[within] for part in whole))
    halves = [Pairs(k.first, k.second, k.weights) for k in (_part(kept, 0, 150), _part(kept, 150, 300))]
    one, other = covariances([x], 6, pairs=[kept]), covariances([x[:150], x[150:]], 6, pairs=halves)
    for name in ("mean_0", "c00", "c0t"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cuts", [(150,), (40, 41, 260)])
def test_trajectories_that_were_cut_lose_the_pairs_across_the_cuts_only(cuts):
    biases = [3 * RNG.normal(size=300), 5 * RNG.normal(size=80)]
    whole, other = rescaled_time_pairs(biases, KT, 0.7, 6.0)
    edges = [0, *cuts, 300]
    *pieces, other_again = rescaled_time_pairs([*np.split(biases[0], cuts), biases[1]], KT, 0.7, 6.0)
    for start, stop, piece in zip(edges[:-1], edges[1:], pieces, strict=True):
        kept = (whole.first >= start) & (whole.second < stop)
        np.testing.assert_array_equal(piece.first + start, whole.first[kept])
        np.testing.assert_array_equal(piece.second + start, whole.second[kept])
        np.testing.assert_allclose(piece.weights, whole.weights[kept], atol=1e-10)
    np.testing.assert_allclose(other_again.weights, other.weights, atol=1e-10)  # one offset over all, however cut


def _part(pairs, start, stop):
    inside = (pairs.first >= start) & (pairs.first < stop)
    return Pairs(pairs.first[inside] - start, pairs.second[inside] - start, pairs.weights[inside])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rescaled_time_pairs([np.zeros(4)], KT, 1.0, 9.0), "No two frames"),
        (lambda: rescaled_time_pairs([np.array([0.0, np.nan])], KT, 1.0, 1.0), "frame 1 of trajectory 0"),
        (lambda: rescaled_time_pairs([np.zeros(4)], KT, -1.0, 1.0), "positive times"),
        (lambda: static_weights([np.zeros(4)], 0.0), "positive energy"),
        (lambda: static_weights([np.zeros((4, 2))], KT), "one number a frame"),
        (lambda: normalised_biases([np.zeros(4)], KT, [0, 1]), "2 groups for 1"),
        (lambda: covariances(np.zeros((9, 1)), 1, pairs=[Pairs(np.array([0]), np.array([9]), np.ones(1))]), "does not have"),
        (lambda: covariances(np.zeros((9, 1)), 1, np.ones(9), pairs=[Pairs(*np.zeros((3, 0), int))]), "not both"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(GeomGNNError, match=message):
        call()


# ------------------------------------------------------------------------------------------------ systems with known answers

BARRIER = 8.0  # kT
GRID = np.linspace(-1.9, 1.9, 400)


def well(x):
    """kT of a double well with a lower left side."""
    return BARRIER * (x**2 - 1) ** 2 + 0.6 * x


def well_force(x):
    return -(4 * BARRIER * x * (x**2 - 1) + 0.6)


def slow_eigenfunction(energy):
    """The second eigenfunction of the generator on GRID, from the detailed-balance rates between neighbours."""
    h = GRID[1] - GRID[0]
    middle = 0.5 * (energy[1:] + energy[:-1])
    up, down = np.exp(energy[:-1] - middle) / h**2, np.exp(energy[1:] - middle) / h**2
    generator = np.diag(up, 1) + np.diag(down, -1)
    generator -= np.diag(generator.sum(1))
    values, vectors = np.linalg.eig(generator)
    return np.real(vectors[:, np.argsort(-np.real(values))[1]])


def langevin(x, n_steps, dt, bias_force, observe=None):
    """Overdamped walkers x (W,), diffusion 1, under the well and a bias; (n_steps, W)."""
    path = np.empty((n_steps, len(x)))
    noise = np.random.default_rng(1)
    for step in range(n_steps):
        x = x + dt * (well_force(x) + bias_force(x)) + np.sqrt(2 * dt) * noise.normal(size=len(x))
        path[step] = x
        if observe is not None:
            observe(step, x)
    return path


def features(x):
    """A basis that can represent a step: Gaussians along x."""
    return np.exp(-0.5 * ((x[:, None] - np.linspace(-1.6, 1.6, 17)) / 0.15) ** 2)


def correlation(model, weights):
    """Correlation of the leading function with the exact one, where the unbiased system is."""
    exact = slow_eigenfunction(well(GRID))
    found = model.transform(features(GRID))[:, 0]
    mean = lambda y: np.average(y, weights=weights)  # noqa: E731
    a, b = found - mean(found), exact - mean(exact)
    return abs(mean(a * b) / np.sqrt(mean(a * a) * mean(b * b)))


EVEN = np.ones(len(GRID))
EQUILIBRIUM = np.exp(-well(GRID))


def estimates(path, biases, dt):
    """Models from rescaled time and from static weights; biases in kT."""
    x = [features(column) for column in path.T]
    inside = np.abs(path).max() < 1.9
    assert inside
    lag = 40
    return {
        "rescaled": fit_linear(x, lag, 1, pca=None, pairs=rescaled_time_pairs(list(biases.T), 1.0, dt, lag * dt)),
        "static": fit_linear(x, lag, 1, pca=None, weights=static_weights(list(biases.T), 1.0)),
    }


@pytest.mark.parametrize("method", ["rescaled", "static"])
def test_double_well_under_a_static_bias(method):
    """A bias that fills three quarters of both wells: the leading function is that of the unbiased generator."""
    share, dt = 0.75, 1e-3
    path = langevin(np.tile([-1.0, 1.0], 10), 20_000, dt, lambda x: -share * well_force(x))[::10]
    models = estimates(path, -share * well(path), 10 * dt)
    assert correlation(models[method], EQUILIBRIUM) > 0.99
    plain = fit_linear([features(column) for column in path.T], 40, 1, pca=None)
    assert plain.singular_values[0] < 0.999  # it crosses often under the bias


@pytest.mark.parametrize("method", ["rescaled", "static"])
def test_double_well_under_opes(method):
    opes, dt = OPES(barrier=BARRIER * KT, temperature=KT / 0.00831446, pace=1, sigma=0.1), 1e-3
    kT = opes.kT
    state = [opes.initial_state(dimension=1, n_walkers=20)]
    kept = []

    def observe(step, x):
        if step % 10 == 9:
            kept.append(opes.bias(state[0], x[:, None])[0] / kT)
        if step % 100 == 99:
            state[0] = opes.update(state[0], x[:, None])

    path = langevin(np.tile([-1.0, 1.0], 10), 30_000, dt, lambda x: -opes.bias(state[0], x[:, None])[1][:, 0] / kT, observe)
    path, biases = path[9::10], np.array(kept)
    path, biases = path[600:], biases[600:]  # the start, when the bias changes fast
    models = estimates(path, biases, 10 * dt)
    assert correlation(models[method], EQUILIBRIUM) > 0.99


def test_koopman_weights_make_short_runs_stationary():
    """Runs that all start on one side: the weighted populations are those of equilibrium."""
    shallow = 0.25
    starts = np.random.default_rng(3).uniform(-1.5, 1.5, 400)
    path = langevin(starts, 4000, 1e-3, lambda x: -(1 - shallow) * well_force(x))[::10]
    x = [features(column) for column in path.T]
    model = fit_linear(x, 20, 4, pca=None)
    weights = koopman_weights([model.transform(part) for part in x], 20)
    right = np.average(np.concatenate(list(path.T)) > 0, weights=np.concatenate(weights))
    density = np.exp(-shallow * well(GRID))
    exact = density[GRID > 0].sum() / density.sum()
    plain = (path > 0).mean()
    assert abs(right - exact) < 0.03
    assert abs(right - exact) < abs(plain - exact)


def test_koopman_weights_of_runs_that_do_not_connect_are_refused():
    x = [np.where(RNG.normal(size=(50, 1)) > 9, 0.0, side) for side in (-1.0, 1.0)]
    with pytest.raises(GeomGNNError, match="do not connect"):
        koopman_weights(x, 2)


def test_cross_validation_with_pairs():
    x = [RNG.normal(size=(600, 2)).cumsum(0) * 0.1 for _ in range(2)]
    biases = [RNG.normal(size=600) for _ in range(2)]
    pairs = rescaled_time_pairs(biases, KT, 1.0, 5.0)
    seen = []

    def fit(training, pairs):
        seen.append(all(one.second.max() < len(part) for one, part in zip(pairs, training, strict=True)))
        return fit_linear(training, 5, 1, pairs=pairs)

    scores = cross_validate(fit, x, 5, folds=3, pairs=pairs)
    assert all(seen) and scores.shape == (3,) and (scores > 1).all()


# ------------------------------------------------------------------------------------------------------------ Mueller-Brown

MUELLER = [
    (-200, -1, 0, -10, 1, 0),
    (-100, -1, 0, -10, 0, 0.5),
    (-170, -6.5, 11, -6.5, -0.5, 1.5),
    (15, 0.7, 0.6, 0.7, -1, 1),
]
SCALE = 0.07  # kT: the barrier is 7.5 kT


def surface(x, y):
    """Mueller-Brown's surface in kT and its gradient; Mueller & Brown, Theor. Chim. Acta 53, 75 (1979)."""
    energy, along_x, along_y = 0.0, 0.0, 0.0
    for height, a, b, c, x0, y0 in MUELLER:
        u, v = x - x0, y - y0
        term = SCALE * height * np.exp(a * u * u + b * u * v + c * v * v)
        energy, along_x, along_y = energy + term, along_x + term * (2 * a * u + b * v), along_y + term * (b * u + 2 * c * v)
    return energy, along_x, along_y


def exact_on_grid(x, y):
    """The second eigenfunction of the generator on a grid, and the equilibrium there."""
    energy = surface(*np.meshgrid(x, y, indexing="ij"))[0]
    number = np.arange(energy.size).reshape(energy.shape)
    rows, columns, rates = [], [], []
    for axis, step in ((0, x[1] - x[0]), (1, y[1] - y[0])):
        first, second = np.moveaxis(number, axis, 0)[:-1].ravel(), np.moveaxis(number, axis, 0)[1:].ravel()
        difference = energy.ravel()[second] - energy.ravel()[first]
        rows += [first, second]
        columns += [second, first]
        rates += [np.exp(-difference / 2) / step**2, np.exp(difference / 2) / step**2]
    rows, columns, rates = map(np.concatenate, (rows, columns, rates))
    generator = scipy.sparse.csr_matrix((rates, (rows, columns)), shape=(energy.size,) * 2)
    generator -= scipy.sparse.diags(np.asarray(generator.sum(axis=1)).ravel())
    values, vectors = scipy.sparse.linalg.eigs(generator.tocsc(), k=2, sigma=1e-3)
    slow = np.real(vectors[:, np.argsort(-np.real(values))[1]])
    return slow, np.exp(-(energy - energy.min())).ravel()


def mueller_features(x, y):
    centres = [(a, b) for a in np.linspace(-1.4, 1.0, 11) for b in np.linspace(-0.2, 1.8, 9) if surface(a, b)[0] < 8]
    return np.stack([np.exp(-0.5 * ((x - a) ** 2 + (y - b) ** 2) / 0.2**2) for a, b in centres], axis=-1)


@pytest.mark.parametrize("with_opes", [False, True], ids=["static", "opes"])
def test_mueller_brown(with_opes):
    """A static bias of minus 0.7 of the surface, or OPES along x and y: the leading function is that of the generator.

    Time that is rescaled where the bias is as deep between the wells as in them is as if diffusion were slower there, which
    bends the function between the wells: static weights at a short lag come nearer.
    """
    path, biases, interval = biased_walkers(with_opes)
    x = [mueller_features(*walker.T) for walker in np.moveaxis(path, 1, 0)]
    grid = np.linspace(-1.7, 1.2, 70), np.linspace(-0.5, 2.1, 70)
    exact, equilibrium = exact_on_grid(*grid)
    columns = mueller_features(*(part.ravel() for part in np.meshgrid(*grid, indexing="ij")))
    pairs = rescaled_time_pairs(list(biases.T), 1.0, interval, 20 * interval)
    for model, least in (
        (fit_linear(x, 5, 1, pca=None, weights=static_weights(list(biases.T), 1.0)), 0.99),
        (fit_linear(x, 20, 1, pca=None, pairs=pairs), 0.95 if with_opes else 0.99),
    ):
        found = model.transform(columns)[:, 0]
        a, b = (y - np.average(y, weights=equilibrium) for y in (found, exact))
        assert abs(np.sum(equilibrium * a * b)) > least * np.sqrt(np.sum(equilibrium * a * a) * np.sum(equilibrium * b * b))


def biased_walkers(with_opes):
    """Positions (F, 30, 2), biases (F, 30) in kT, and the time between the frames."""
    noise, dt, frame = np.random.default_rng(5), 2e-4, 20
    at = np.tile([[-0.55, 1.45], [0.6, 0.03]], (15, 1))
    opes = OPES(barrier=8 * KT, temperature=KT / 0.00831446, pace=1, sigma=0.15)
    state = opes.initial_state(dimension=2, n_walkers=len(at))
    path, biases = [], []
    for step in range(20_000 if with_opes else 25_000):
        energy, *slope = surface(*at.T)
        if with_opes:
            bias, gradient = (value / opes.kT for value in opes.bias(state, at))
        else:
            share = 0.7 * (energy < 0)  # the walls stay
            bias, gradient = -share * energy, -share[:, None] * np.stack(slope, axis=1)
        if step % frame == 0 and step >= 3000:
            path.append(at)
            biases.append(bias)
        at = at - dt * (np.stack(slope, axis=1) + gradient) + np.sqrt(2 * dt) * noise.normal(size=at.shape)
        if with_opes and step % 200 == 199:
            state = opes.update(state, at)
    return np.array(path), np.array(biases), frame * dt
