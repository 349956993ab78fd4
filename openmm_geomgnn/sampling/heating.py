"""Stops a run that is too hot: a stiff collective variable heats the system, and heat fakes transitions."""

import math
from collections import deque

import numpy as np

from openmm_geomgnn.errors import GeomGNNError

_SIGNIFICANCE = 4  # standard errors: about 3 false alarms in 100,000 windows
_SHORTEST = 5.0  # ps: fewer say nothing
# a bias begins with a bang: the first kernel acts at nearly the full barrier, and what it pushes off takes that energy to
# the thermostat. This many ps are left out of the window, and until it is full this many times the temperature is allowed
_SETTLING = 10.0
_SETTLING_LIMIT = 2.0


class HeatGuard:
    """Judges the mean temperature of the most recent rows of all walkers.

    temperature: K, of the thermostat. degrees_of_freedom: kinetic, of one walker. friction: 1/ps. row_interval: ps between
    rows. n_walkers: rows per time. limit: highest mean temperature, relative to the thermostat's. window: ps, at least;
    longer for a small system, whose temperature fluctuates: until the excess allowed is four standard errors of the mean.
    Until it is full of rows from after the first 10 ps, twice the temperature is allowed: the beginning of a bias releases
    heat. temperatures: rows of an earlier part of the run.

    The standard error follows from the canonical fluctuation of the kinetic energy, 2*T^2/degrees_of_freedom, which a
    Langevin thermostat forgets in about 1/friction.
    """

    def __init__(
        self, temperature, degrees_of_freedom, friction, row_interval, n_walkers, limit=1.1, window=20.0, temperatures=()
    ):
        self.temperature = temperature
        self.limit = limit
        self._variance = 2 / max(degrees_of_freedom, 1)
        self._memory = 1 / friction if friction > 0 else 1.0
        self._row_interval = row_interval
        self._n_walkers = n_walkers
        needed = self._variance * max(self._memory, row_interval) * (_SIGNIFICANCE / (limit - 1)) ** 2 / n_walkers
        n_times = max(1, math.ceil(max(window, needed) / row_interval))
        self._rows = deque(temperatures, maxlen=n_times * n_walkers)
        self._unsettled = self._rows.maxlen + math.ceil(_SETTLING / row_interval) * n_walkers - len(self._rows)

    @property
    def temperatures(self):
        """(n,) ndarray: the rows that the judgement is based on."""
        return np.array(self._rows, dtype=np.float64)

    @property
    def mean(self):
        """Mean temperature in K of these rows; NaN when there are none."""
        return float(np.mean(self._rows)) if self._rows else math.nan

    def add(self, temperatures):
        """Take in the temperatures (n,) of new rows, in the order of time."""
        self._rows.extend(float(value) for value in temperatures)
        self._unsettled -= len(temperatures)

    def check(self, time):
        """Raise GeomGNNError when the system is too hot. time: ps, for the message."""
        span = len(self._rows) / self._n_walkers * self._row_interval
        if span < _SHORTEST:
            return
        limit = max(_SETTLING_LIMIT, self.limit) if self._unsettled > 0 else self.limit
        if self.mean > limit * self.temperature:
            raise GeomGNNError(
                f"The run was stopped at {time:g} ps: over the last {span:.3g} ps the mean temperature is {self.mean:.0f} "
                f"K, where the thermostat is set to {self.temperature:g} K and "
                f"{limit * self.temperature:.0f} K is the limit. Something in the system is too stiff for the "
                "time step, and such heat would pass for transitions. Use a smaller timestep or `every`, a larger sigma "
                "floor (sigma_min), or a softer collective variable. What was written until now, and a checkpoint, are "
                "kept."
            )
