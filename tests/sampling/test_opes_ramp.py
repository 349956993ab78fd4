"""The bias of OPES sets in slowly: an exact gradient at all times, the same in the end, the same after a restart."""

import math
import pickle

import numpy as np
import pytest

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling import OPES
from openmm_geomgnn.sampling.opes.ramp import depth, is_over

SETTINGS = {"barrier": 40.0, "pace": 10, "sigma": 0.2}


def deposited(opes, number, n_walkers=1, seed=0):
    rng = np.random.default_rng(seed)
    state = opes.initial_state(dimension=1, n_walkers=n_walkers)
    for _ in range(number):
        state = opes.update(state, 0.3 * rng.normal(size=(n_walkers, 1)))
    return state


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("n_walkers", [1, 3])
def test_depth_grows_to_the_barrier(explore, n_walkers):
    opes = OPES(**SETTINGS, ramp=20, explore=explore)
    depths = []
    for number in range(25):
        state = deposited(opes, number, n_walkers)
        far, slope = opes.bias(state, [50.0])
        depths.append(-far)
        assert np.array_equal(slope, [0.0])
        assert is_over(opes, state) is (number >= 20)
        assert depth(opes, state) == pytest.approx(max(2 * opes.kT, min(1, number / 20) * 40))
    np.testing.assert_allclose(depths, [depth(opes, deposited(opes, n, n_walkers)) for n in range(25)], rtol=1e-9)


@pytest.mark.parametrize("number", [1, 7, 19, 20, 30])
def test_gradient_is_exact_at_every_stage(number):
    opes, step = OPES(**SETTINGS, ramp=20), 1e-5
    state = deposited(opes, number)
    for s in np.linspace(-1, 1, 21):
        _, slope = opes.bias(state, [s])
        difference = (opes.bias(state, [s + step])[0] - opes.bias(state, [s - step])[0]) / (2 * step)
        assert slope[0] == pytest.approx(difference, rel=1e-5, abs=1e-5)


def test_without_a_ramp_nothing_changes_and_after_it_neither():
    """The same kernels give the same bias to the bit, whatever ramp there was."""
    plain, ramped = OPES(**SETTINGS), OPES(**SETTINGS, ramp=5)
    state = deposited(plain, 30)
    s = np.linspace(-2, 2, 101)[:, None]
    for one, other in zip(plain.bias(state, s), ramped.bias(state, s), strict=True):
        assert np.array_equal(one, other)


def test_first_kernel_is_shallow():
    """The force at one sigma from the first kernel is less than half of that without a ramp."""
    forces = [abs(opes.bias(deposited(opes, 1), [0.6])[1][0]) for opes in (OPES(**SETTINGS), OPES(**SETTINGS, ramp=20))]
    assert forces[1] < 0.5 * forces[0]


def test_saved_state_goes_on_in_the_middle_of_the_ramp():
    opes = OPES(**SETTINGS, ramp=20)
    state = deposited(opes, 7)
    again = opes.from_arrays(opes.to_arrays(state))
    assert opes.bias(again, [0.2])[0] == opes.bias(state, [0.2])[0]
    assert pickle.loads(pickle.dumps(opes)) == opes
    for other in (OPES(**SETTINGS), OPES(**SETTINGS, ramp=30)):
        with pytest.raises(GeomGNNError, match="ramp = 20"):
            other.from_arrays(opes.to_arrays(state))


def test_ramp_that_is_over_does_not_matter_to_a_saved_state():
    """Runs that were begun before there were ramps go on."""
    before, now = OPES(**SETTINGS), OPES(**SETTINGS, ramp=20)
    state = now.from_arrays(before.to_arrays(deposited(before, 20)))
    assert now.bias(state, [0.1])[0] == before.bias(state, [0.1])[0]
    with pytest.raises(GeomGNNError, match="ramp = 0"):
        now.from_arrays(before.to_arrays(deposited(before, 19)))


@pytest.mark.parametrize("ramp", [-1, 2.5, "soon", math.nan])
def test_ramps_that_are_no_counts_are_refused(ramp):
    with pytest.raises(GeomGNNError, match="ramp"):
        OPES(**SETTINGS, ramp=ramp)
