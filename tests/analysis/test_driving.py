"""Whether a bias would drive torsions: Gaussian CVs, of which the costs are known."""

import numpy as np
import pytest

from openmm_geomgnn.analysis.driving import drive_margin
from openmm_geomgnn.analysis.progress import SlowTorsion, progress_targets
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import BOLTZMANN

OMEGA = SlowTorsion("omega", 0, np.radians([180.0, 0.0]), 0)
CHI = SlowTorsion("chi1", 0, np.radians([180.0, -60.0, 60.0]), 0)
PHI = SlowTorsion("phi", 1, np.radians([-80.0, 60.0]), 0)
WIDTH = 0.2


def angles_at(*degrees, frames=2000):
    return np.radians(np.repeat(degrees, frames))[:, None]


def cost(away, width=WIDTH):
    """Over a barrier of 30 kJ/mol at 300 K."""
    return 0.5 * BOLTZMANN * 300 * (away / width) ** 2 / 30


def margins(s, slow, angles):
    return drive_margin([s[:5000], s[5000:]], slow, [angles[:5000], angles[5000:]], barrier=30.0, temperature=300.0)


def test_the_margin_of_the_cheaper_side_counts():
    """A CV that knows the side is near an end on the one way, and far on the other."""
    rng = np.random.default_rng(4)
    angles = angles_at(180, 90, -90, 0)
    s = np.hstack([-np.cos(angles), np.where(np.sin(angles) > 0, 1.0, 0.1) * np.sin(angles)])
    s += WIDTH * rng.normal(size=s.shape)
    (margin,) = margins(s, [OMEGA], angles)
    assert margin == pytest.approx(cost(np.hypot(1.0, 0.1)), rel=0.1)
    # among several slow torsions the side is not followed, and its middle is that of both ways together
    both, _ = margins(s, [OMEGA, PHI], np.hstack([angles, angles]))
    assert both > 1.1 * margin


@pytest.mark.parametrize(("gap", "spread"), [(1.0, 0.2), (1.0, 0.6)])
def test_the_margin_is_the_cost_of_a_gaussian(gap, spread):
    rng = np.random.default_rng(3)
    angles = angles_at(-80, -10, 60, frames=4000)
    progress = progress_targets([PHI], [np.hstack([angles, angles])])[1][0]
    # one end is wider than the other, and the second component knows nothing; the third hardly moves
    widths = np.where(progress > 0.5, 2 * spread, spread)
    s = np.column_stack([gap * progress + widths * rng.normal(size=progress.shape), rng.normal(size=(12000, 2))])
    s = s @ np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1e-9]])  # any linear map: the same cost
    (margin,) = margins(s, [PHI], np.hstack([angles, angles]))
    assert margin == pytest.approx(cost(gap, 2 * spread), rel=0.1)


def test_of_three_wells_the_way_that_is_not_needed_does_not_count():
    """A CV that follows cosine and sine, but for the way from -60 to 60 deg, half of which looks like its ends."""
    rng = np.random.default_rng(5)
    angles = angles_at(180, -120, -60, 0, 60, 120)
    followed = np.hstack([np.cos(angles), np.sin(angles)])
    one_way = followed.copy()
    one_way[np.abs(angles[:, 0]) < 0.1] = followed[8000]  # what 60 deg looks like
    noise = WIDTH * rng.normal(size=followed.shape)
    # half way the CV is 1 from the centre of each well, whichever way
    assert margins(followed + noise, [CHI], angles) == pytest.approx([cost(1.0)], rel=0.1)
    assert margins(one_way + noise, [CHI], angles) == pytest.approx([cost(1.0)], rel=0.1)
    one_way[angles[:, 0] > 2.0] = followed[8000]  # all that leads to 60 deg
    assert margins(one_way + noise, [CHI], angles)[0] < 0.1


def test_a_way_without_frames_is_left_out_if_the_others_reach_all_wells():
    rng = np.random.default_rng(6)
    angles = angles_at(180, -120, -60, 0, 60)
    s = np.hstack([np.cos(angles), np.sin(angles)]) + WIDTH * rng.normal(size=(len(angles), 2))
    assert margins(s, [CHI], angles) == pytest.approx([cost(1.0)], rel=0.1)
    fewer = angles[:, 0] != np.radians(-120)
    assert np.isnan(margins(s[fewer], [CHI], angles[fewer])).all()


def test_there_is_no_margin_without_frames_on_the_way():
    angles = angles_at(180, 0, frames=100)
    assert np.isnan(drive_margin([np.cos(angles)], [OMEGA], [angles], 30.0, 300.0)).all()


def test_what_is_not_of_the_same_frames_is_refused():
    # the sums of the frames agree, the frames of each run do not
    with pytest.raises(GeomGNNError, match="for the same frames"):
        drive_margin([np.zeros((5, 1)), np.zeros((4, 1))], [OMEGA], [np.zeros((4, 1)), np.zeros((5, 1))], 30.0, 300.0)
