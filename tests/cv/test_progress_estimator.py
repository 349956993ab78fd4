"""A CV that follows targets: on frames it has not seen, evenly along the way, and only where it can."""

import json

import numpy as np
import pytest
from molecules import ALA2, ala2

from openmm_geomgnn.analysis.progress import SlowTorsion, progress_targets
from openmm_geomgnn.cli.fitting import describe
from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.progress import even_weights
from openmm_geomgnn.cv.verdict import judge
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.rotatable import rotatable_torsions
from openmm_geomgnn.sampling.explore import ExploreSettings, explore
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

SETTINGS = FitSettings(lagtime=2.0, frame_interval=0.2, estimator="progress", softening=0.01)


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """Two explorations of alanine dipeptide, and the progress of phi in each: the second stays unseen."""
    topology, spec = ala2().topology, WalkerSpec(str(ALA2), platform="Reference")
    trajectories = []
    for seed in (1, 2):
        settings = ExploreSettings(ways=("torsions",), length=80, frame_interval=0.2, in_turn=False, seed=seed)
        (found,) = explore([spec], settings, tmp_path_factory.mktemp("explored"))
        trajectories.append(found.trajectory(topology))
    torsions = rotatable_torsions(topology)
    phi = SlowTorsion("phi ALA2", torsions.names.index("phi ALA2"), np.radians([-80.0, 57.0]), 0)
    names, targets = progress_targets([phi], [torsions.compute(one) for one in trajectories])
    assert all(np.ptp(one) > 1.9 for one in targets)  # both went all the way
    return trajectories, targets, names


@pytest.fixture(scope="module")
def cv(explored):
    trajectories, targets, names = explored
    biases = [np.zeros(len(trajectories[0]))]
    return fit_cv(trajectories[:1], ALA2, SETTINGS, biases=biases, targets=targets[:1], target_names=names)


def test_it_follows_frames_that_it_has_not_seen(cv, explored):
    trajectories, targets, names = explored
    errors = cv.bind(ALA2, engine="eager").compute(trajectories[1]) - targets[1]
    facts = cv.training_information
    assert 1 - np.mean(errors**2) / np.var(targets[1]) > 0.9  # also that it is in the units of the target
    assert facts["r2_held_out"][0] > 0.9 and facts["targets"] == names
    # what it says of its error holds where it has not been
    assert facts["noise"][0] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.6)
    assert facts["estimator"] == "progress" and facts["verdict"]["grade"] != "not usable"
    assert any(line.startswith(f"It follows the {names[0]}: R2 0.9") for line in describe(cv))


def test_its_file_is_the_same_cv(cv, explored, tmp_path):
    cv.save(tmp_path / "cv.safetensors")
    again = CollectiveVariable.load(tmp_path / "cv.safetensors")
    few = explored[0][1][:20]
    values = [one.bind(ALA2, engine="eager").compute(few) for one in (cv, again)]
    np.testing.assert_array_equal(*values)
    assert json.loads(json.dumps(again.training_information)) == json.loads(json.dumps(cv.training_information))


def test_runs_of_any_interval_count_and_names_can_be_left_out(explored):
    """A run whose frames are further apart than the lag time has no pairs, but says where the CV is to go."""
    (one, other), targets, _ = explored
    sparse, sparse_targets = other[::25], targets[1][::25]  # 5 ps
    with_it = fit_cv(
        *([one, sparse], ALA2, SETTINGS),
        biases=[np.zeros(len(one)), np.zeros(len(sparse))],
        frame_intervals=[0.2, 5.0],
        targets=[targets[0], sparse_targets],
    )
    facts = with_it.training_information
    assert facts["targets"] == ["target 1"] and facts["r2_held_out"][0] > 0.9
    assert any("follows the target 1" in line for line in describe(with_it))


def test_softening_makes_it_softer(cv, explored):
    trajectories, targets, names = explored
    harder = FitSettings(2.0, 0.2, estimator="progress", softening=0.0)
    rough = fit_cv(trajectories[:1], ALA2, harder, targets=targets[:1], target_names=names)
    assert rough.training_information["rate_300K_per_ps"][0] > 1.1 * cv.training_information["rate_300K_per_ps"][0]


def test_a_long_run_in_a_basin_does_not_drown_the_way():
    rng = np.random.default_rng(0)
    basin, way = -1 + 0.01 * rng.uniform(size=(5000, 1)), np.linspace(-0.9, 1, 100)[:, None]
    weights = even_weights([basin, way])
    assert [part.shape for part in weights] == [(5000,), (100,)]
    assert sum(part.sum() for part in weights) == pytest.approx(1)
    assert weights[1].sum() > 0.9


def test_what_does_not_fit_is_refused(explored):
    trajectories, targets, names = explored
    one, mine = trajectories[:1], targets[:1]

    def refused(message, settings=SETTINGS, **given):
        with pytest.raises(GeomGNNError, match=message):
            fit_cv(one, ALA2, settings, **given)

    refused("needs targets for every frame")
    refused("targets are for estimator: progress", FitSettings(2.0, 0.2), targets=mine)
    refused(r"have the shapes .*\(399, 1\)", targets=[mine[0][1:]])
    refused("the components of the CV", FitSettings(2.0, 0.2, estimator="progress", n_components=2), targets=mine)
    refused("2 names for 1 targets", targets=mine, target_names=[*names, "psi"])
    refused("has weights", FitSettings(2.0, 0.2, estimator="progress", mixer="mlp"), targets=mine)
    static = FitSettings(2.0, 0.2, estimator="progress", reweighting="static")
    refused("reweighting is static", static, targets=mine, biases=[np.zeros(400)])


@pytest.mark.parametrize(
    ("r2", "grade", "reason"), [(0.95, "usable", ""), (0.8, "weak", "0.80"), (0.3, "not usable", "0.30")]
)
def test_the_verdict_is_by_how_well_it_follows(r2, grade, reason):
    """Not by the VAMP score, nor by timescales of runs that never left their basins."""
    facts = {
        "vamp2_training": 1.01,
        "r2_held_out": [r2],
        "timescale_notes": [""],
        "transitions": [12],
        "rate_300K_per_ps": [8.0],
        "in_basin_spread": [0.2],
    }
    found = judge(facts)
    assert found["grade"] == grade and reason in "".join(found["reasons"])
    resting = judge(facts | {"timescale_notes": ["unresolved, below the lag of 5 ps"]})
    assert resting["grade"] == max(grade, "weak", key=["usable", "weak", "not usable"].index)
