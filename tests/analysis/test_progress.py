"""Torsions that are slow without a bias, targets along them, and whether a CV pays for the way."""

import json

import numpy as np
import pytest

from openmm_geomgnn.analysis.progress import (
    SlowTorsion,
    progress_targets,
    side_targets,
    slow_torsions,
    well_crossings,
    well_differences,
)
from openmm_geomgnn.errors import GeomGNNError


def wrapped(angles):
    return (angles + np.pi) % (2 * np.pi) - np.pi


def run_of(rng, basins, centres, width=0.2):
    return wrapped(np.asarray(centres)[basins] + width * rng.normal(size=len(basins)))


@pytest.fixture
def data():
    """Two unbiased runs (1 ps) and a biased one (0.5 ps): omega crosses under the bias only, chi often, psi has one well."""
    rng = np.random.default_rng(0)
    free = [
        np.column_stack(
            [
                run_of(rng, np.full(500, k), [np.pi, 0.0]),
                run_of(rng, np.repeat(np.arange(25) % 2, 20), [-1.0, 1.2]),
                0.4 * rng.normal(size=500),
            ]
        )
        for k in (0, 1)
    ]
    biased = np.column_stack(
        [
            run_of(rng, np.repeat(np.arange(10) % 2, 60), [np.pi, 0.0]),
            run_of(rng, np.repeat(np.arange(30) % 2, 20), [-1.0, 1.2]),
            0.4 * rng.normal(size=600),
        ]
    )
    return [*free, biased]


NAMES = ["omega", "chi", "psi"]


def test_a_torsion_is_slow_for_the_time_that_is_planned(data):
    def found(time_to_come, **options):
        slow = slow_torsions(data, [1, 1, 0.5], NAMES, unbiased=[True, True, False], time_to_come=time_to_come, **options)
        return [(one.name, one.column, one.crossings) for one in slow]

    omega, chi = ("omega", 0, 0), ("chi", 1, 48)  # 24 times in each 500 ps; the runs are not joined
    assert found(1000) == [omega] and found(150) == [omega, chi]
    assert found(1000, fewest=60) == [omega, chi] and found(150, most=1) == [omega]


def test_wells_are_centred_where_their_frames_are(data):
    omega, chi = slow_torsions(data, [1, 1, 0.5], NAMES, unbiased=[False] * 3, time_to_come=1e6)  # all that have wells
    assert sorted(np.cos(omega.centres)) == pytest.approx([-1, 1], abs=0.02)
    assert sorted(chi.centres) == pytest.approx([-1.0, 1.2], abs=0.05)


def test_a_bias_that_flattens_hides_no_wells():
    """Wells are those of the unbiased runs, one in each: pooled with a run that fills the barrier there would be none."""
    rng = np.random.default_rng(1)
    free = [run_of(rng, np.full(300, k), [-1.4, 1.0], 0.3)[:, None] for k in (0, 1)]
    flat = wrapped(np.cumsum(0.25 * rng.normal(size=8000)))[:, None]
    options = {"time_to_come": 1000}
    (phi,) = slow_torsions([*free, flat], 1.0, ["phi"], unbiased=[True, True, False], **options)
    assert phi.centres == pytest.approx([-1.4, 1.0], abs=0.1) and phi.crossings == 0
    assert slow_torsions([*free, flat], 1.0, ["phi"], unbiased=[False] * 3, **options) == []


def test_free_energies_of_wells_follow_the_weights():
    rng = np.random.default_rng(2)
    kT, centres = 2.5, [np.pi, 0.0, 1.5]
    runs = [run_of(rng, rng.choice(3, 3000, p=p), centres, 0.1)[:, None] for p in ([0.5, 0.3, 0.2], [0.2, 0.4, 0.4])]
    slow = SlowTorsion("omega", 0, np.array(centres), 0)
    # weights undo the shares, so that the true ones are 60, 10 and 30 %
    share = {0: (0.5, 0.2), 1: (0.3, 0.4), 2: (0.2, 0.4)}
    true = np.array([0.6, 0.1, 0.3])
    nearest = [np.abs(np.angle(np.exp(1j * (run - centres)))).argmin(axis=1) for run in runs]
    logw = [np.log([true[k] / share[k][number] for k in run]) for number, run in enumerate(nearest)]
    found = well_differences(slow, runs, logw, kT)
    assert [(first, other) for first, other, _ in found] == [(np.pi, 0.0), (np.pi, 1.5)]
    for (_, _, difference), expected in zip(found, -kT * np.log(true[1:] / true[0]), strict=True):
        assert difference.error < 0.2 and abs(difference.value - expected) < 3 * difference.error
    never = well_differences(SlowTorsion("omega", 0, np.array([np.pi, 0.0]), 0), [np.full((50, 1), 3.1)], [np.zeros(50)], kT)
    assert np.isnan(never[0][2].value) and "never visited" in never[0][2].reason


def test_of_three_wells_the_rarest_division_counts():
    """Two wells exchange all the time, the third has a run of its own and is never left."""
    rng = np.random.default_rng(2)
    centres = [-1.0, 1.0, 3.0]
    runs = [run_of(rng, basins, centres)[:, None] for basins in (np.repeat(np.arange(100) % 2, 20), np.full(500, 2))]
    (chi,) = slow_torsions(runs, 1.0, ["chi1 VAL3"], unbiased=[True, True], time_to_come=1000)
    assert chi.crossings == 0 and len(chi.centres) == 3
    names, targets = progress_targets([chi], runs)
    assert names == ["cosine of chi1 VAL3", "sine of chi1 VAL3"]
    np.testing.assert_allclose(targets[0], np.column_stack([np.cos(runs[0]), np.sin(runs[0])]))


def test_targets_are_one_at_the_wells_and_nought_half_way():
    phi = SlowTorsion("phi ALA2", 1, np.radians([-80.0, 60.0]), 0)
    names, (y, empty) = progress_targets([phi], [np.radians([[0, -80], [0, 60], [0, -10], [0, 170]]), np.zeros((0, 2))])
    assert names == ["progress of phi ALA2 from -80 to 60 deg"]
    assert y[:, 0] == pytest.approx([-1, 1, 0, 0], abs=1e-9) and empty.shape == (0, 1)


def test_the_side_tells_both_ways_apart():
    """With the progress it is the whole circle, of which the wells and what lies between them are four places."""
    phi = SlowTorsion("phi ALA2", 1, np.radians([-80.0, 60.0]), 0)
    names, (z, empty) = side_targets([phi], [np.radians([[0, -80], [0, 60], [0, -10], [0, 170]]), np.zeros((0, 2))])
    assert names == ["side of phi ALA2"] and empty.shape == (0, 1)
    assert z[0, 0] == pytest.approx(z[1, 0]) and (z[2, 0] - z[0, 0]) * (z[3, 0] - z[0, 0]) < 0
    omega = SlowTorsion("omega", 0, np.radians([180.0, 0.0]), 0)
    angles = np.linspace(-np.pi, np.pi, 200)[:, None]
    (y,), (side,) = progress_targets([omega], [angles])[1], side_targets([omega], [angles])[1]
    np.testing.assert_allclose(np.hypot(y, side), 1.0)
    assert len(np.unique(np.round(np.hstack([y, side])[:-1], 9), axis=0)) == 199


@pytest.mark.parametrize("slow", [[], [("a", 2), ("b", 2)], [("a", 3)]])
def test_no_side_where_there_is_no_room_for_it(slow):
    """Of several torsions, or of one with more wells, whose targets tell the ways apart."""
    slow = [SlowTorsion(name, 0, np.arange(float(wells)), 0) for name, wells in slow]
    names, (targets,) = side_targets(slow, [np.zeros((5, 2))])
    assert names == [] and targets.shape == (5, 0)


def test_what_does_not_fit_is_refused(data):
    with pytest.raises(GeomGNNError, match="There are 3 runs, but unbiased has 1"):
        slow_torsions(data, 1.0, NAMES, unbiased=[True], time_to_come=10)


def test_crossings_between_wells():
    omega = SlowTorsion("omega", 1, np.radians([180.0, 0.0]), 0)
    angles = np.radians([180, -170, 90, 100, 175, 90, 10, 60, 5, -90, -179.0])  # back at 175; to 0, and back over -90
    runs = [np.stack([np.zeros(len(angles)), angles], axis=1), np.zeros((4, 2))]
    assert well_crossings([omega], runs) == [2]
    assert well_crossings([omega], [runs[0][:6]]) == [0]
    kept = SlowTorsion.from_json(json.loads(json.dumps(omega.as_json())))
    assert kept._replace(centres=None) == omega._replace(centres=None) and np.array_equal(kept.centres, omega.centres)
