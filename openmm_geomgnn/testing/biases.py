"""What every bias must do: an energy with its derivative, states that do not change, restarts to the bit."""

import math
import pickle
from typing import Any

import numpy as np
import pytest

from openmm_geomgnn.sampling.bias import Bias


class BiasSuite:
    """Tests of a bias, see `openmm_geomgnn.sampling.Bias`.

    Attributes
    ----------
    dimension : int
        Components of the collective variable.
    low, high : float
        Between which the values of each component lie.
    static : bool
        Whether an update leaves the bias as it is, as that of an umbrella does.
    kinks : float
        Share of places at which the derivative may be wrong, because kernels end there.

    Examples
    --------
    >>> from openmm_geomgnn.sampling import OPES
    >>> from openmm_geomgnn.testing import BiasSuite
    >>> class TestOPES(BiasSuite):
    ...     def make(self):
    ...         return OPES(barrier=40, pace=5, sigma=0.3)
    """

    dimension = 2
    low, high = -1.5, 1.5
    static = False
    kinks = 0.05

    def make(self) -> Bias:
        """The bias."""
        raise NotImplementedError(f"{type(self).__name__} must define make().")

    # ---------------------------------------------------------------------------------------------------- what tests use

    @pytest.fixture
    def bias(self) -> Bias:
        return self.make()

    def values(self, n: int, seed: int) -> np.ndarray:
        """Values (n, d) of the collective variable."""
        return np.random.default_rng(seed).uniform(self.low, self.high, (n, self.dimension))

    def advance(self, bias: Any, state: Any, walkers: int = 1, blocks: int = 20, first: int = 0) -> Any:
        """The state after blocks of `pace` steps, of which a bias that is adaptive sees all."""
        for block in range(first, first + blocks):
            if getattr(bias, "adaptive", False):
                for step in range(bias.pace):
                    for walker, s in enumerate(self.values(walkers, 1000 * block + step)):
                        state = bias.observe(state, s, walker)
            state = bias.update(state, self.values(walkers, block))
        return state

    def used(self, bias: Any, walkers: int = 1) -> Any:
        """A state with a history."""
        return self.advance(bias, bias.initial_state(dimension=self.dimension, n_walkers=walkers), walkers)

    def bits(self, bias: Any, state: Any) -> dict[str, tuple]:
        """All of a state, to compare it to the bit: arrays as (dtype, shape, bytes)."""
        arrays = {name: np.asarray(array) for name, array in bias.to_arrays(state).items()}
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}

    # ------------------------------------------------------------------------------------------------------------- tests

    def test_has_the_interface(self, bias: Any) -> None:
        assert isinstance(bias, Bias)
        assert type(bias.pace) is int and bias.pace > 0
        assert not getattr(bias, "adaptive", False) or callable(getattr(bias, "observe", None))

    def test_energy_and_slope_are_finite(self, bias: Any) -> None:
        for state in (bias.initial_state(dimension=self.dimension), self.used(bias)):
            for s in self.values(20, seed=1):
                energy, slope = bias.bias(state, s)
                assert math.isfinite(energy) and np.shape(slope) == (self.dimension,) and np.isfinite(slope).all()

    def test_slope_is_the_derivative_of_the_energy(self, bias: Any) -> None:
        state, step = self.used(bias), 1e-4 * (self.high - self.low)
        errors, slopes = [], []
        for s in self.values(100, seed=2):
            numeric = np.empty(self.dimension)
            for k in range(self.dimension):
                shift = step * np.eye(self.dimension)[k]
                near, far = (bias.bias(state, s + n * shift)[0] - bias.bias(state, s - n * shift)[0] for n in (1, 2))
                numeric[k] = (8 * near - far) / (12 * step)
            slopes.append(np.asarray(bias.bias(state, s)[1]))
            errors.append(np.abs(slopes[-1] - numeric).max())
        assert np.quantile(errors, 1 - self.kinks) < 1e-6 * np.abs(slopes).max()

    def test_an_update_counts(self, bias: Any) -> None:
        state = bias.initial_state(dimension=self.dimension)
        before, after = (bias.bias(each, self.values(1, seed=0)[0])[0] for each in (state, self.used(bias)))
        assert (before == after) == self.static

    def test_states_do_not_change(self, bias: Any) -> None:
        """Neither by an evaluation, which the engine makes as often as it likes, nor by what follows them."""
        state, s = self.used(bias), self.values(1, seed=3)
        before, energy = self.bits(bias, state), bias.bias(state, s[0])[0]
        bias.update(state, s)
        bias.diagnostics(state)
        if getattr(bias, "adaptive", False):
            bias.observe(state, s[0], 0)
        assert self.bits(bias, state) == before
        assert bias.bias(state, s[0])[0] == energy

    @pytest.mark.parametrize("walkers", [1, 3])
    def test_a_restart_is_exact(self, bias: Any, walkers: int) -> None:
        """From the arrays of a checkpoint and a bias that was pickled, a run goes on as without a break."""
        unbroken = self.advance(bias, self.used(bias, walkers), walkers, first=20)
        saved = {name: np.array(array) for name, array in bias.to_arrays(self.used(bias, walkers)).items()}
        assert all(array.dtype.kind in "fiub" for array in saved.values())
        again = pickle.loads(pickle.dumps(bias))
        resumed = self.advance(again, again.from_arrays(saved), walkers, first=20)
        assert self.bits(again, resumed) == self.bits(bias, unbroken)
        for s in self.values(5, seed=4):
            (energy, slope), (expected, expected_slope) = again.bias(resumed, s), bias.bias(unbroken, s)
            assert energy == expected and np.array_equal(slope, expected_slope)

    def test_a_state_can_be_sent_to_another_process(self, bias: Any) -> None:
        state = self.used(bias)
        sent = pickle.loads(pickle.dumps(state))
        assert self.bits(bias, sent) == self.bits(bias, state)
        s = self.values(1, seed=5)[0]
        assert bias.bias(sent, s)[0] == bias.bias(state, s)[0]

    def test_diagnostics_are_figures_of_the_same_names(self, bias: Any) -> None:
        first, later = (bias.diagnostics(s) for s in (bias.initial_state(dimension=self.dimension), self.used(bias)))
        assert list(first) == list(later) and all(name.isidentifier() for name in first)
        assert all(math.isfinite(value) for value in [*first.values(), *later.values()])

    @pytest.mark.parametrize("walkers", [1, 3])
    def test_deposits_are_one_for_each_walker(self, bias: Any, walkers: int) -> None:
        if not hasattr(bias, "deposits"):
            pytest.skip("this bias writes no KERNELS")
        s = self.values(walkers, seed=6)
        centres, widths, heights = bias.deposits(self.used(bias, walkers), s)
        assert np.shape(centres) == np.shape(widths) == s.shape and np.shape(heights) == (walkers,)
        assert (np.asarray(widths) > 0).all()
