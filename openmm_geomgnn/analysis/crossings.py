"""Counts of transitions between two cores of a one-dimensional variable.

A transition counts when a trajectory that was in one core arrives in the other (milestoning between cores; Schuette et
al., J. Chem. Phys. 134, 204105, 2011). Recrossings of the barrier's top that return to the same core do not count.
"""

import numpy as np

from openmm_geomgnn.analysis.intervals import Interval, overlap, width, within
from openmm_geomgnn.analysis.resampling import Series, as_walkers
from openmm_geomgnn.errors import GeomGNNError

# alanine dipeptide's two basins along phi, in radians: C5/C7eq (left) and C7ax (right)
PHI_CORE_A = (-2.8, -0.5)
PHI_CORE_B = (0.3, 2.0)
# the barriers around C7ax
PHI_DIVIDING = (0.0, 2.2)


def core_states(
    variable: Series, core_a: Interval = PHI_CORE_A, core_b: Interval = PHI_CORE_B, period: float | None = None
) -> np.ndarray:
    """Find the last visited core at every frame of one trajectory: (T,) int8, 0 for A, 1 for B, -1 before either.

    variable: (T,). core_a, core_b: (low, high) intervals in the units of the variable, which may not overlap. period: period
    of a variable on a circle, where a core with low > high extends across the end of the period.
    """
    values = np.asarray(variable, dtype=np.float64)
    if values.ndim != 1:
        raise GeomGNNError(f"A trajectory of one variable has the shape (T,), but this one has {values.shape}.")
    if not np.isfinite(values).all():
        raise GeomGNNError(
            f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} values are not finite, so crossings cannot be "
            "counted. Look at the trajectory: such a simulation has failed."
        )
    core_a, core_b = check_cores(core_a, core_b, period)
    visited = np.full(len(values), -1, dtype=np.int8)
    visited[within(values, core_a, period)] = 0
    visited[within(values, core_b, period)] = 1
    # carry the last core forward: the index of the last frame that was in one
    last = np.maximum.accumulate(np.where(visited >= 0, np.arange(len(values)), -1))
    return np.where(last >= 0, visited[last], -1).astype(np.int8)


def core_crossings(
    variable: Series, core_a: Interval = PHI_CORE_A, core_b: Interval = PHI_CORE_B, period: float | None = None
) -> int:
    """Count core-to-core transitions, in either direction, summed over the walkers.

    variable: (T,) array, or a list of them, one per walker; walkers are never joined.
    core_a, core_b, period: as in `core_states`. The defaults are alanine dipeptide's basins along phi in radians.
    """
    count = 0
    for walker in as_walkers(variable, "variable"):
        states = core_states(walker, core_a, core_b, period)
        states = states[states >= 0]
        count += int(np.count_nonzero(np.diff(states)))
    return count


def crossings_per_ns(
    variable: Series,
    frame_time: float,
    core_a: Interval = PHI_CORE_A,
    core_b: Interval = PHI_CORE_B,
    period: float | None = None,
) -> float:
    """Compute core-to-core transitions per nanosecond of simulated time, summed over all walkers.

    variable: (T,) array or a list of them. frame_time: ps between frames.
    """
    if not (np.isfinite(frame_time) and frame_time > 0):
        raise GeomGNNError(f"The time between frames must be a positive number of ps, but it is {frame_time}.")
    walkers = as_walkers(variable, "variable")
    nanoseconds = sum(len(walker) for walker in walkers) * frame_time / 1000
    return core_crossings(walkers, core_a, core_b, period) / nanoseconds


def check_cores(core_a: Interval, core_b: Interval, period: float | None = None) -> tuple[Interval, Interval]:
    """Return both cores as pairs of floats. Raises GeomGNNError if one is not an interval, or they overlap."""
    cores = []
    for name, core in (("core_a", core_a), ("core_b", core_b)):
        if len(core) != 2 or not np.isfinite(core).all() or not width(core, period) > 0:
            shape = "low < high" if period is None else "two different ends"
            raise GeomGNNError(f"{name} must be an interval (low, high) with {shape}, but it is {tuple(core)}.")
        cores.append((float(core[0]), float(core[1])))
    first, second = cores
    if overlap(first, second, period):
        raise GeomGNNError(f"The cores {first} and {second} overlap. Leave a gap between them, at the barrier.")
    return first, second
