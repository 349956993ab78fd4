"""The states A and B of a free-energy difference, on either side of the points that divide two cores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openmm_geomgnn.analysis.crossings import check_cores, core_crossings
from openmm_geomgnn.analysis.free_energy import FreeEnergyDifference, delta_F
from openmm_geomgnn.analysis.intervals import TURN, Interval, gaps_between, width, within
from openmm_geomgnn.analysis.resampling import Series, as_walkers, relative_weights
from openmm_geomgnn.errors import GeomGNNError

# of a gap between cores where the highest free energy is looked for
_FINEST_BINS = 60


@dataclass(frozen=True)
class States:
    """Two states of a variable, each with a core and everything on its side of the dividing points.

    core_a, core_b: (low, high) in the units of the variable. dividing: on a line the point between the cores; on a circle
    (period given) the point where A ends and B begins in upward direction, and the one where B ends and A begins.

    Raises GeomGNNError if the cores overlap, or a dividing point does not lie between them.
    """

    core_a: Interval
    core_b: Interval
    dividing: tuple[float, ...]
    period: float | None = None

    def __post_init__(self) -> None:
        cores = check_cores(self.core_a, self.core_b, self.period)
        gaps = gaps_between(*cores, self.period)
        if len(self.dividing) != len(gaps) or not all(
            within(point, gap, self.period) for point, gap in zip(self.dividing, gaps, strict=True)
        ):
            raise GeomGNNError(
                f"The states are divided at {list(self.dividing)}, but the gaps between the cores {cores[0]} and {cores[1]} "
                f"are {', '.join(map(str, gaps))}: give one point in each."
            )

    @property
    def intervals(self) -> tuple[Interval, Interval]:
        """The states A and B as (low, high); infinite ends on a line."""
        if self.period is not None:
            upwards, downwards = self.dividing
            return (downwards, upwards), (upwards, downwards)
        (point,) = self.dividing
        below, above = (-np.inf, point), (point, np.inf)
        return (below, above) if self.core_a < self.core_b else (above, below)

    def in_words(self, name: str) -> str:
        """Describe the states, in degrees along an angle: "B: phi from 0.0 to 126.1 deg; A: the rest"."""
        if self.period is not None:
            low, high = self.intervals[1]
            end = self.period / 2
            span = f"from {low:.4g} to {high:.4g}"
            if self.period == TURN:
                (low, high), end = np.degrees((low, high)), 180
                span = f"from {low:.1f} to {high:.1f} deg"
            across = f" across {end:.4g}" if low > high else ""
            return f"B: {name} {span}{across}; A: the rest"
        sign_a, sign_b = ("<", ">") if self.core_a < self.core_b else (">", "<")
        return f"A: {name} {sign_a} {self.dividing[0]:.4g}; B: {name} {sign_b} {self.dividing[0]:.4g}"

    def members(self, variable: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Find the frames in A and in B: two lists of boolean (T,). variable: list of (T,)."""
        in_b = [within(values, self.intervals[1], self.period) for values in variable]
        return [~chosen for chosen in in_b], in_b

    def crossings(self, variable: Series) -> int:
        """Count transitions between the cores, see `core_crossings`. variable: list of (T,)."""
        return core_crossings(variable, self.core_a, self.core_b, self.period)


def find_states(variable: Series, logw: Series, core_a: Interval, core_b: Interval, period: float | None = None) -> States:
    """Find the states around two cores, divided where the free energy between them is highest.

    The exact place hardly matters for delta F, since few frames are near the barrier, and the order of the cores does not
    matter. In a gap without frames the dividing point is its middle, or that of its widest stretch without frames.

    variable, logw: (T,) or lists of (T,), frames under a bias and their log-weights. Returns States.
    """
    core_a, core_b = check_cores(core_a, core_b, period)
    values = np.concatenate(as_walkers(variable, "variable"))
    weights = np.concatenate(relative_weights(logw))
    gaps = gaps_between(core_a, core_b, period)
    return States(core_a, core_b, tuple(_highest(values, weights, gap, period) for gap in gaps), period)


def _highest(values: np.ndarray, weights: np.ndarray, gap: Interval, period: float | None) -> float:
    inside = within(values, gap, period)
    offsets = (values[inside] - gap[0]) % period if period else values[inside] - gap[0]
    length = width(gap, period)
    # with more bins than the root of the number of frames the barrier would be at a bin that is empty by chance
    bins = int(np.clip(np.sqrt(len(offsets)), 1, _FINEST_BINS))
    population, edges = np.histogram(offsets, bins, (0.0, length), weights=weights[inside])
    low, high = _longest_run(population == 0) if (population == 0).any() else (np.argmin(population),) * 2
    point = gap[0] + (edges[low] + edges[high + 1]) / 2
    return float(point if period is None else (point + period / 2) % period - period / 2)


def _longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Find the first and last index of the longest stretch that is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    starts, ends = edges[::2], edges[1::2]
    longest = np.argmax(ends - starts)
    return starts[longest], ends[longest] - 1


def differences(
    membership: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    logw: Series,
    times: Sequence[np.ndarray],
    used: Sequence[np.ndarray],
    kT: float,
    bootstrap: dict[str, Any],
) -> tuple[FreeEnergyDifference, tuple[float, float], np.ndarray]:
    """Compute delta F of all used frames, in the two halves of the time, and up to 20 times: rows of time, value, error.

    membership: which frames are in A, and in B. These, logw, times, used: lists of (T,); `used` says which frames count.
    bootstrap: settings of `delta_F`.
    """
    start = min(float(t[u][0]) for t, u in zip(times, used, strict=True) if u.any())
    end = max(float(t[u][-1]) for t, u in zip(times, used, strict=True) if u.any())

    def between(low: float, high: float, **settings: Any) -> FreeEnergyDifference:
        chosen = [u & (t >= low) & (t <= high) for t, u in zip(times, used, strict=True)]
        if not any(c.any() for c in chosen):
            return FreeEnergyDifference(np.nan, np.nan, "")
        in_a, in_b, weights = ([array[c] for array, c in zip(arrays, chosen, strict=True)] for arrays in (*membership, logw))
        return delta_F(in_a, in_b, weights, kT, **settings)

    middle = (start + end) / 2
    halves = between(start, middle, n_bootstrap=2).value, between(middle, end, n_bootstrap=2).value
    running = []
    for time in np.linspace(start, end, 21)[1:]:
        part = between(start, time, **bootstrap)
        running.append((time, part.value, part.error))
    return between(start, end, **bootstrap), halves, np.array(running)
