from pathlib import Path

import numpy as np
import pytest
from double_well import KT

from openmm_geomgnn.analysis.crossings import core_crossings, core_states, crossings_per_ns
from openmm_geomgnn.analysis.states import States, find_states
from openmm_geomgnn.errors import GeomGNNError

ALA2 = Path(__file__).resolve().parents[3] / "shared" / "data" / "trajectories" / "ala2_plumed_masterclass"


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


def test_states_in_words():
    """In degrees along an angle, else in the variable's own units."""
    angle = States((-2.8, -0.5), (0.3, 2.0), (0.0, 2.2), 2 * np.pi)
    assert angle.in_words("phi") == "B: phi from 0.0 to 126.1 deg; A: the rest"
    turned = States((0.3, 2.0), (-2.8, -0.5), (2.2, 0.0), 2 * np.pi)
    assert turned.in_words("phi") == "B: phi from 126.1 to 0.0 deg across 180; A: the rest"
    other = States((-2.0, -1.0), (1.0, 2.0), (0.0, 4.5), 10.0)
    assert other.in_words("z") == "B: z from 0 to 4.5; A: the rest"
    assert States((3, 4), (1, 2), (2.5,)).in_words("cv.1") == "A: cv.1 > 2.5; B: cv.1 < 2.5"
