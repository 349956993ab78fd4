"""Detection of runs that are too hot: a stiff collective variable heats the system, and heat causes false transitions."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.errors import GeomGNNError

# standard deviations: a run of 1 us is judged some 100,000 times, without a single false alarm
_SIGNIFICANCE = 6.0
_SHORTEST = 5.0  # ps: shorter times mean nothing
_WINDOW = 20.0  # ps: the shortest of the windows judged
_LONGER = math.sqrt(2)  # each other one, than the one before
_LONGEST = 10_000.0  # ps
_RESOLUTION = 0.02  # windows become longer until fluctuations of their mean stay within this
# a bias releases heat when it begins: the first kernel acts with nearly the full barrier, and the thermostat has to remove
# that energy. This many ps are left out of the windows, and until the shortest one is full, this many times the temperature
# is allowed
_SETTLING = 10.0
_SETTLING_LIMIT = 2.0


class HeatGuard:
    """Judges the mean temperature of the most recent rows of all walkers, over several windows of time.

    temperature: temperature of the thermostat, K. degrees_of_freedom: kinetic degrees of freedom of one walker. friction:
    1/ps. row_interval: ps between rows. n_walkers: rows per time. limit: a mean temperature that is always tolerated,
    relative to the thermostat's. state: the arrays that `to_arrays` gave in an earlier part of the run.

    In equilibrium the mean of a window follows a gamma distribution: the kinetic temperature of one walker has the
    canonical variance 2*T^2/degrees_of_freedom, and a Langevin thermostat forgets it in about 1/friction. A run is too hot
    when the mean of any window is six standard deviations above what that distribution has at `limit`. The windows are
    the last 20, 28, 40, 57, ... ps, up to the one whose mean fluctuates by no more than 2 %, or 10 ns. So a strong excess is
    detected soon and a weak one later (`visible_excess`); with 51 degrees of freedom (alanine dipeptide), two walkers and a
    friction of 1/ps: 32 % over 20 ps, 12 % over 160 ps, 5 % over 1.3 ns. An excess below `limit` is never detected, nor is
    heat that stays within a few of many atoms, since the temperature is that of the whole system.

    The first 10 ps are part of no window, and until the first window after them is full, the mean of the last 20 ps may be
    twice the temperature, because a bias releases heat when it begins.
    """

    def __init__(
        self,
        temperature: float,
        degrees_of_freedom: int,
        friction: float,
        row_interval: float,
        n_walkers: int,
        limit: float = 1.02,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.temperature = temperature
        self.limit = limit
        self._degrees_of_freedom = max(degrees_of_freedom, 1)
        self._memory = max(1 / friction if friction > 0 else 1.0, row_interval)
        self._row_interval = row_interval
        self._n_walkers = n_walkers
        self._windows = [_WINDOW]
        while self._quantile(self._windows[-1], _SIGNIFICANCE) > 1 + _RESOLUTION and self._windows[-1] < _LONGEST:
            self._windows.append(_LONGER * self._windows[-1])
        state = state or {"rows": np.zeros(0), "count": 0, "sum": 0.0}
        self._rows = np.array(state["rows"], dtype=np.float64)
        self._count, self._sum = int(state["count"]), float(state["sum"])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The state of the guard as a dict of arrays, for a checkpoint."""
        return {"rows": self._rows, "count": np.array(self._count), "sum": np.array(self._sum)}

    @property
    def mean(self) -> float:
        """Mean temperature in K of the last 20 ps; NaN when there are no rows."""
        return float(self._last(_WINDOW).mean()) if self._count else math.nan

    @property
    def overall_mean(self) -> float:
        """Mean temperature in K of all rows since the start of the run; NaN when there are none."""
        return self._sum / self._count if self._count else math.nan

    def add(self, temperatures: npt.ArrayLike) -> None:
        """Add the temperatures (n,) of new rows, in order of time."""
        temperatures = np.asarray(temperatures, dtype=np.float64)
        self._rows = np.concatenate([self._rows, temperatures])[-self._n_rows(self._windows[-1]) :]
        self._count += len(temperatures)
        self._sum += float(temperatures.sum())

    def visible_excess(self, window: float) -> float:
        """The relative excess of temperature, if it lasts, that 99 of 100 windows of this length (ps) detect."""
        return self.limit * self._quantile(window, _SIGNIFICANCE) / self._quantile(window, -2.33) - 1

    def check(self, time: float) -> None:
        """Raise a GeomGNNError if the system is too hot; time (ps) is for the message."""
        settled = min(self._count - self._n_rows(_SETTLING), len(self._rows))
        if settled < self._n_rows(_WINDOW):
            rows = self._last(_WINDOW)
            if self._count >= self._n_rows(_SHORTEST):
                self._judge(time, len(rows), rows.mean(), max(_SETTLING_LIMIT, self.limit), "allowed while a bias sets in")
            return
        sums = self._rows[::-1].cumsum()
        for window in self._windows:
            n = self._n_rows(window)
            if settled >= n:
                limit = self.limit * self._quantile(window, _SIGNIFICANCE)
                self._judge(time, n, sums[n - 1] / n, limit, "that chance explains")

    def _judge(self, time: float, n_rows: int, mean: float, limit: float, which: str) -> None:
        if mean > limit * self.temperature:
            span = n_rows / self._n_walkers * self._row_interval
            raise GeomGNNError(
                f"The run was stopped at {time:g} ps: over the last {span:.3g} ps the mean temperature is {mean:.0f} K, "
                f"where the thermostat is set to {self.temperature:g} K and {limit * self.temperature:.0f} K is the most "
                f"{which}. Something in the system is too stiff for the time step, and such heat would pass for "
                "transitions. Use a smaller timestep or `every`, a larger sigma floor (sigma_min), or a softer collective "
                "variable, in another folder. What was written until now, and a checkpoint, are kept."
            )

    def _n_rows(self, time: float) -> int:
        return max(1, math.ceil(time / self._row_interval - 1e-9)) * self._n_walkers

    def _last(self, window: float) -> np.ndarray:
        return self._rows[-self._n_rows(window) :]

    def _quantile(self, window: float, deviations: float) -> float:
        """Quantile of the mean of a window in equilibrium, relative to its expectation.

        Wilson & Hilferty's approximation (PNAS 17, 684 (1931)) to the quantile of a gamma distribution.
        """
        independent = self._n_walkers * max(window / self._memory, 1.0)
        third = 2 / (9 * self._degrees_of_freedom * independent)
        return max(1 - third + deviations * math.sqrt(third), 0.0) ** 3
