"""The map from slow functions to the CV: smooth, monotone, bounded, invertible, and in the file."""

from importlib.resources import files

import mdtraj
import numpy as np
import pytest
import torch

from openmm_geomgnn.cv import CollectiveVariable, FitSettings, distill, fit_cv
from openmm_geomgnn.cv.distillation import DistillSettings
from openmm_geomgnn.cv.output_map import OutputMap, range_of
from openmm_geomgnn.cv.stiffness import even_slopes, frames_along
from openmm_geomgnn.errors import GeomGNNError

ALA2_PAIR = [files("openmm_geomgnn.data") / f"ala2-{state}.pdb" for state in ("c7eq", "c7ax")]
RNG = np.random.default_rng(0)
MAPS = {
    "bounded": OutputMap.bounded([-1.0, -2.0], [1.0, 3.0], 0.15),
    "even": OutputMap([-np.inf] * 2, [np.inf] * 2, [1.0] * 2, [-1.2, -2.0], [1.1, 3.0], np.exp(RNG.normal(size=(2, 16)))),
    "both": OutputMap([-1.0, -2.0], [1.0, 3.0], [0.3, 0.5], [-1.2, -2.0], [1.1, 3.0], np.exp(RNG.normal(size=(2, 16)))),
}
PSI = np.stack([np.linspace(-4, 4, 8001)] * 2, axis=1)


@pytest.mark.parametrize("name", MAPS)
def test_slope_is_the_derivative_of_the_value_and_continuous(name):
    given = MAPS[name]
    psi = torch.tensor(PSI, requires_grad=True)
    values = given(psi)
    (gradient,) = torch.autograd.grad(values.sum(), psi)
    slope = given.slope(PSI)
    np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-12, atol=1e-14)
    step = 1e-6
    differences = (given.compute(PSI + step) - given.compute(PSI - step)) / (2 * step)
    np.testing.assert_allclose(differences, slope, rtol=1e-4, atol=1e-7)
    assert np.abs(np.diff(slope, axis=0)).max() < 0.02 * slope.max()
    assert (slope >= 0).all() and (slope[np.abs(PSI[:, 0]) < 1.5] > 0).all()


@pytest.mark.parametrize("name", MAPS)
def test_one_frame_is_as_many(name):
    given = MAPS[name]
    single = [given.value_and_slope(row) for row in PSI[::50]]
    np.testing.assert_allclose([value for value, _ in single], given.compute(PSI[::50]), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose([slope for _, slope in single], given.slope(PSI[::50]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", MAPS)
def test_inverse(name):
    given = MAPS[name]
    near = PSI[np.abs(PSI[:, 0]) < 1.5]
    for k in range(2):
        np.testing.assert_allclose(given.inverse(given.compute(near)[:, k], k), near[:, k], rtol=0, atol=1e-12)
    if given.is_bounded:
        with pytest.raises(GeomGNNError, match="lies between"):
            given.inverse([99.0])


def test_bounded_is_the_identity_within_its_range_and_saturates_beyond():
    given = MAPS["bounded"]
    inside = np.abs(PSI[:, 0]) <= 1
    assert np.array_equal(given.compute(PSI)[inside, 0], PSI[inside, 0])
    values = given.compute(100 * PSI)
    np.testing.assert_allclose([values[:, 0].min(), values[:, 0].max()], given.limits[0])
    np.testing.assert_allclose(given.limits[0], [-1.3, 1.3])


def test_identity_has_no_tensors_and_changes_nothing():
    given = OutputMap.identity(3)
    assert given.is_identity and given.tensors() == {}
    psi = torch.randn(5, 3, dtype=torch.float64)
    assert given(psi) is psi


def test_map_of_its_own_tensors_is_the_same():
    again = OutputMap.from_tensors(MAPS["both"].tensors(), 2)
    np.testing.assert_allclose(again.compute(PSI), MAPS["both"].compute(PSI), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="2 components for 3"):
        OutputMap.from_tensors(MAPS["both"].tensors(), 3)


def test_free_energy_is_transformed_with_the_jacobian():
    """Populations are the same along psi and along the CV."""
    given, kT = OutputMap([-np.inf], [np.inf], [1.0], [-3.0], [3.0], np.exp(RNG.normal(size=(1, 12)))), 2.5
    psi = np.linspace(-2.9, 2.9, 20001)
    s = given.compute(psi[:, None])[:, 0]
    density_of_s = np.exp(-0.5 * psi**2) / given.slope(psi[:, None])[:, 0]
    back, free_energy = given.transform_free_energy(s, -kT * np.log(density_of_s), kT)
    np.testing.assert_allclose(back, psi, atol=1e-12)
    np.testing.assert_allclose(free_energy, 0.5 * kT * psi**2, atol=1e-9)


@pytest.mark.parametrize("change", [{"high": [-2.0]}, {"width": [0.0]}, {"slopes": [[1.0]]}, {"slopes": [[1.0, -1.0]]}])
def test_maps_that_are_none_are_refused(change):
    with pytest.raises(ValueError):
        OutputMap(**{"low": [-1.0], "high": [1.0], "width": [0.3]} | change)


def test_range_leaves_out_a_few_stray_frames_only():
    values = np.linspace(0, 1, 2001)[:, None]
    values[7] = 50.0
    low, high = range_of([values[:1000], values[1000:]])
    assert high[0] < 1.0 and low[0] < 0.01
    assert range_of([np.array([[0.0], [1.0]])])[1] == 1.0


def test_even_slopes_even_the_rate_of_a_step():
    psi = np.linspace(-1, 1, 4000)
    rates = 0.2 + 5 * np.exp(-0.5 * (psi / 0.15) ** 2)
    slopes = even_slopes(psi, rates, -1.0, 1.0)
    mapped = OutputMap([-np.inf], [np.inf], [1.0], [-1.0], [1.0], slopes[None])
    after = rates * mapped.slope(psi[:, None])[:, 0]

    def unevenness(values):
        means = [part.mean() for part in np.array_split(values, 16)]
        return max(means) / min(means)

    assert unevenness(after) < 0.2 * unevenness(rates)


def test_frames_along_a_cv_include_the_rare_ones():
    values = np.concatenate([np.full(5000, -1.0), np.linspace(-0.5, 0.5, 10), np.full(5000, 1.0)])[:, None]
    values += 1e-3 * RNG.normal(size=values.shape)
    first, second = frames_along([values[:6000], values[6000:]], 200)
    assert set(range(5000, 5010)) <= set(first.tolist())
    assert len(second) and len(first) + len(second) < 400


@pytest.fixture(scope="module")
def two_runs():
    """Noise around both structures of alanine dipeptide, in place of simulations."""
    runs = []
    for k, path in enumerate(ALA2_PAIR):
        structure = mdtraj.load(str(path))
        noise = 0.004 * np.random.default_rng(k).normal(size=(300, structure.n_atoms, 3))
        runs.append(mdtraj.Trajectory(structure.xyz + noise, structure.topology))
    return runs


@pytest.mark.parametrize("even", [False, True])
def test_new_cvs_are_bounded_and_files_keep_the_map(two_runs, tmp_path, even):
    settings = FitSettings(lagtime=0.2, frame_interval=0.1, pca=20, even=even)
    cv = fit_cv(two_runs, two_runs[0].topology, settings)
    assert cv.output.is_bounded and cv.output.is_even is even
    cv.save(tmp_path / "cv.safetensors")
    again = CollectiveVariable.load(tmp_path / "cv.safetensors")
    assert again.content_hash() == cv.content_hash()
    frames = mdtraj.join([run[:20] for run in two_runs])
    bound = again.bind(frames.topology)
    values = bound.compute(frames)
    np.testing.assert_array_equal(values, cv.bind(frames.topology).compute(frames))
    np.testing.assert_allclose(values, cv.output.compute(_without_map(cv).bind(frames.topology).compute(frames)), atol=1e-12)

    student = distill(cv, frames.topology, two_runs, DistillSettings(hidden=16, labels=400, epochs=5))
    np.testing.assert_array_equal(student.output.limits, cv.output.limits)
    far = mdtraj.Trajectory(1.3 * frames.xyz, frames.topology)  # where nothing like the data is
    for one in (cv, student):
        assert (np.abs(one.bind(frames.topology).compute(far)) <= np.abs(cv.output.limits).max() + 1e-9).all()


def test_without_bounds(two_runs):
    cv = fit_cv(two_runs, two_runs[0].topology, FitSettings(lagtime=0.2, frame_interval=0.1, pca=20, bounded=False))
    assert cv.output.is_identity
    with pytest.raises(GeomGNNError, match="margin"):
        fit_cv(two_runs, two_runs[0].topology, FitSettings(lagtime=0.2, frame_interval=0.1, pca=20, margin=0.0))


@pytest.mark.parametrize("engine", ["eager", "numba"])
def test_gradients_beyond_the_bound(two_runs, engine):
    """Finite differences where the map saturates, for a network and its student."""
    cv = fit_cv(two_runs, two_runs[0].topology, FitSettings(lagtime=0.2, frame_interval=0.1, pca=20, even=True))
    student = distill(cv, two_runs[0].topology, two_runs, DistillSettings(hidden=16, labels=400, epochs=5))
    direction = np.random.default_rng(3).normal(size=(10, 3))
    for one in (cv, student):
        bound = one.bind(two_runs[0].topology, precision="double", engine=engine)
        pos = bound.molecule.positions(two_runs[0][:1])[0].numpy()
        for scale in (1.0, 1.05):
            there, step = scale * pos, 1e-5
            differences = (
                bound.value_and_vjp(there + step * direction)[0] - bound.value_and_vjp(there - step * direction)[0]
            ) / (2 * step)
            product = (bound.value_and_vjp(there)[1](np.ones(1)) * direction).sum()
            np.testing.assert_allclose(product, differences[0], rtol=2e-4, atol=2e-5)


def _without_map(cv):
    plain = CollectiveVariable.from_bytes(cv.to_bytes())
    plain.output = OutputMap.identity(cv.dimension)
    return plain
