"""From trajectories to a collective variable, on a slow motion that is known."""

import mdtraj
import numpy as np
import pytest
import torch
from molecules import ALA2, BOXES, ala2, random_encoder, wrapped

from openmm_geomgnn.cv import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.fitting import FitSettings, fit_cv, stiffness
from openmm_geomgnn.whole import SelectedMolecule
from openmm_geomgnn.windows import select_atoms
from torchmdnet_ext.checkpoints import write_encoder

TIMESCALE = 40.0  # ps, of the slow motion
INTERVAL = 2.0  # ps


def slow_motion(n, seed):
    """(n,) samples of an Ornstein-Uhlenbeck process of unit variance, INTERVAL apart."""
    rng, decay = np.random.default_rng(seed), np.exp(-INTERVAL / TIMESCALE)
    values = [rng.normal()]
    while len(values) < n:
        values.append(decay * values[-1] + np.sqrt(1 - decay**2) * rng.normal())
    return np.array(values)


def trajectory(n=500, seed=0):
    """Alanine dipeptide that slowly turns about its phi angle and otherwise only trembles."""
    frame, rng = ala2(), np.random.default_rng(seed + 100)
    xyz, angles = frame.xyz[0].astype(np.float64), 0.5 * slow_motion(n, seed)
    origin = xyz[8]
    axis = (xyz[8] - xyz[6]) / np.linalg.norm(xyz[8] - xyz[6])
    beyond = np.arange(9, 22)  # the atoms on the far side of the bond N-CA
    positions = np.tile(xyz, (n, 1, 1))
    arm = xyz[beyond] - origin
    c, s = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    along = (arm @ axis)[:, None] * axis
    positions[:, beyond] = origin + along + c * (arm - along) + s * np.cross(axis, arm)
    return mdtraj.Trajectory(positions + 0.003 * rng.normal(size=positions.shape), frame.topology), angles


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "random.safetensors"
    random = random_encoder(seed=8)
    write_encoder(path, random.settings, random.network)
    return str(path)


@pytest.fixture(scope="module")
def data():
    return [trajectory(500, seed) for seed in range(3)]


ESTIMATORS = {
    "linear": {"window": "sequence", "components": 2},
    "linear, not reversible": {"reversible": False, "softening": 0.0},
    "vampnet": {
        "estimator": "vampnet",
        "mixer": "mlp",
        "mixer_settings": {"width": 16, "readout": 16},
        "training": {"epochs": 15, "batch_size": 300},
    },
}


@pytest.fixture(scope="module", params=ESTIMATORS)
def fitted(request, encoder, data):
    settings = FitSettings(10.0, INTERVAL, encoder=encoder, **ESTIMATORS[request.param])
    calls = []
    cv = fit_cv([part for part, _ in data], ALA2, settings, lambda *call: calls.append(call))
    return cv, settings, calls


class TestFit:
    def test_finds_the_slow_motion(self, fitted, data):
        cv, settings, _ = fitted
        bound = cv.bind(ALA2, engine="eager")
        unseen, angles = trajectory(400, seed=9)
        psi = bound.compute(unseen)
        assert psi.shape == (400, settings.components)
        assert abs(np.corrcoef(psi[:, 0], angles)[0, 1]) > 0.95
        assert cv.training_information["timescales_ps"][0] == pytest.approx(TIMESCALE, rel=0.4)

    def test_is_frozen_with_unit_variance_and_positive_skewness(self, fitted, data):
        cv, settings, _ = fitted
        psi = np.concatenate([cv.bind(ALA2, engine="eager").compute(part) for part, _ in data])
        np.testing.assert_allclose(psi.mean(axis=0), 0, atol=0.1)
        np.testing.assert_allclose(np.cov(psi.T), np.eye(settings.components), atol=0.15)
        assert ((psi - psi.mean(axis=0)) ** 3).mean(axis=0)[0] > 0

    def test_says_how_it_was_made(self, fitted, data):
        cv, settings, calls = fitted
        information = cv.training_information
        assert cv.lag_time == 10.0 and information["frames"] == [500] * 3 and information["frame_interval_ps"] == INTERVAL
        assert 1.0 < information["vamp2_held_out"] <= information["vamp2_training"] + 0.3
        assert len(information["singular_values"]) == settings.components
        for name in ("rate_300K_per_ps", "in_basin_spread", "range"):
            assert len(information[name]) == settings.components and np.isfinite(information[name]).all()
        stages = {stage for stage, _, _ in calls}
        assert stages == {"embed", "stiffness"} | ({"train"} if settings.estimator == "vampnet" else set())
        assert ("embed", 1500, 1500) in calls and all(done <= total for _, done, total in calls)

    def test_survives_its_file(self, fitted, data, tmp_path):
        cv, _, _ = fitted
        cv.save(tmp_path / "a.cv")
        again = CollectiveVariable.load(tmp_path / "a.cv")
        assert again.training_information == cv.training_information
        part = data[0][0]
        np.testing.assert_array_equal(
            again.bind(ALA2, engine="eager").compute(part), cv.bind(ALA2, engine="eager").compute(part)
        )

    def test_is_the_same_when_made_again(self, fitted, data):
        cv, settings, _ = fitted
        again = fit_cv([part for part, _ in data], ala2().topology, settings)
        np.testing.assert_allclose(again.projection, cv.projection, rtol=1e-6, atol=1e-9)

    def test_trajectories_cut_by_the_box_give_the_same(self, encoder, data):
        settings, box = FitSettings(10.0, INTERVAL, encoder=encoder), BOXES["triclinic"]
        cut = []
        for part, _ in data:
            cut.append(mdtraj.Trajectory(wrapped(part.xyz.astype(np.float64), box), part.topology))
            cut[-1].unitcell_vectors = np.tile(box, (len(part), 1, 1))
        assert np.ptp(cut[0].xyz, axis=1).max() > 2.0
        expected, found = (
            fit_cv(parts, ALA2, settings).training_information for parts in ([part for part, _ in data], cut)
        )
        assert found["singular_values"] == pytest.approx(expected["singular_values"], rel=1e-2)


class TestStiffness:
    def test_rate_is_that_of_thermal_velocities(self, encoder, data):
        """The root mean square of ds/dt over velocities drawn at 300 K, by differences in time."""
        cv = fit_cv([part for part, _ in data], ALA2, FitSettings(10.0, INTERVAL, encoder=encoder))
        topology = ala2().topology
        atoms = select_atoms(topology)
        frame = SelectedMolecule(topology, atoms).positions(data[0][0])[:1]
        (rate,) = stiffness(cv, topology, [frame.repeat(30, 1, 1)], INTERVAL)["rate_300K_per_ps"]
        rng, bound, step = np.random.default_rng(1), cv.bind(topology, "double", "eager"), 1e-4
        masses = np.array([topology.atom(int(atom)).element.mass for atom in atoms])
        velocity = rng.normal(size=(2000, len(atoms), 3)) * np.sqrt(0.0083144626 * 300 / masses)[:, None] * 10
        ends = [bound.compute_whole(frame + sign * step * torch.from_numpy(velocity)) for sign in (1, -1)]
        assert rate == pytest.approx(((ends[0] - ends[1]) / (2 * step)).std(), rel=0.06)

    def test_softening_makes_it_softer(self, encoder, data):
        rates = []
        for softening in (0.0, 0.5):
            settings = FitSettings(10.0, INTERVAL, encoder=encoder, softening=softening)
            cv = fit_cv([part for part, _ in data], ALA2, settings)
            rates.append(cv.training_information["rate_300K_per_ps"][0])
        assert rates[1] < rates[0]


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"estimator": "tica"}, "Unknown estimator 'tica'; the choices are linear, vampnet"),
            ({"estimator": "vampnet"}, "mixer: mlp or mixer: attention"),
            ({"reversible": False}, "set reversible: true, or softening: 0"),
            ({"mixer": "mlp"}, "mixer: none, or estimator: vampnet"),
            ({"encoder": "none-64"}, "There is no encoder 'none-64'"),
            ({"selection": "resname XYZ"}, "matches none of the 22 atoms"),
            ({"window": "sequnce"}, "Did you mean 'sequence'"),
            ({"pooling": "max"}, "Unknown token pooling"),
        ],
    )
    def test_wrong_settings(self, settings, message, encoder, data):
        with pytest.raises(GeomGNNError, match=message):
            fit_cv([data[0][0]], ALA2, FitSettings(10.0, INTERVAL, **{"encoder": encoder, **settings}))

    @pytest.mark.parametrize(
        ("lag_time", "nearest"), [(3.0, "4 ps"), (0.5, "2 ps"), (0.0, "2 ps"), (-2.0, "2 ps"), (10.5, "10 ps")]
    )
    def test_lag_time_that_is_no_number_of_frames(self, lag_time, nearest):
        with pytest.raises(GeomGNNError, match=f"not a whole number of frames.*nearest possible lag time is {nearest}"):
            FitSettings(lag_time, INTERVAL).lag_frames()

    @pytest.mark.parametrize("interval", [2.0, 0.1, 0.3, 1e-3])
    def test_lag_time_that_is(self, interval):
        assert FitSettings(30 * interval, interval).lag_frames() == 30

    def test_trajectories_shorter_than_the_lag_time(self, encoder):
        with pytest.raises(GeomGNNError, match="lag"):
            fit_cv([trajectory(5, 0)[0]], ALA2, FitSettings(20.0, INTERVAL, encoder=encoder))

    def test_frames_that_are_not_finite(self, encoder):
        part, _ = trajectory(50, 0)
        part.xyz[7, 8] = np.nan
        with pytest.raises(GeomGNNError, match="the first is frame 7"):
            fit_cv([part], ALA2, FitSettings(10.0, INTERVAL, encoder=encoder))
