"""What a bias has to move: torsions that are slow, and the progress between their wells."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.analysis.found_states import core_arrivals
from openmm_geomgnn.analysis.free_energy import FreeEnergyDifference, delta_F
from openmm_geomgnn.analysis.verdict import FEWEST_CROSSINGS
from openmm_geomgnn.analysis.wells import check_runs, lag_steps, wells_of
from openmm_geomgnn.errors import GeomGNNError

MOST_SLOW = 3  # a bias along more components than this fills them too slowly
CORE_REACH = 0.25  # of the way from a well to the next, that belongs to it


class SlowTorsion(NamedTuple):
    """A torsion whose wells are left rarely.

    Attributes
    ----------
    name : str
    column : int
        Its number among the torsions.
    centres : (n,) ndarray
        Of its wells, in radians.
    crossings : int
        Between its wells in the unbiased runs; of three wells or more, between the two groups of them with the fewest.
    """

    name: str
    column: int
    centres: np.ndarray
    crossings: int

    def as_json(self) -> dict[str, Any]:
        """In types of JSON."""
        return self._asdict() | {"centres": self.centres.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SlowTorsion":
        """From `as_json`."""
        return cls(**{**data, "centres": np.asarray(data["centres"], dtype=float)})


def slow_torsions(
    torsions: Sequence[npt.ArrayLike],
    frame_interval: float | Sequence[float],
    names: Sequence[str],
    *,
    unbiased: Sequence[bool],
    time_to_come: float,
    fewest: int = FEWEST_CROSSINGS,
    most: int = MOST_SLOW,
) -> list[SlowTorsion]:
    """Find the torsions that a simulation of some length would not sample without a bias.

    Parameters
    ----------
    torsions : list of (F, T) array
        Radians, of every run.
    frame_interval : float or list of float
        ps between frames, of all runs or of each.
    names : sequence of str
        Of the T torsions.
    unbiased : list of bool
        Which runs had no bias. Wells and crossings are those of these runs, where there are any: a bias fills barriers.
    time_to_come : float
        ps of the simulation to come.
    fewest : int, optional
        Crossings that are to be expected in it, from as many as there were, for a torsion not to be slow.
    most : int, optional
        How many are returned at most: the rarest, and of equals those with the highest barriers.

    Returns
    -------
    list of SlowTorsion
        In the order of the torsions.

    Raises
    ------
    GeomGNNError
        If arrays do not fit each other.
    """
    runs, names = check_runs(torsions, names)
    intervals = np.broadcast_to(np.asarray(frame_interval, float), (len(runs),))
    if len(unbiased) != len(runs):
        raise GeomGNNError(f"There are {len(runs)} runs, but unbiased has {len(unbiased)} entries. Give one for each.")
    free = [k for k, one in enumerate(unbiased) if one] or list(range(len(runs)))
    runs, intervals = [runs[k] for k in free], intervals[free]
    steps, equal = lag_steps(runs, intervals.tolist(), None), [np.zeros(len(run)) for run in runs]
    time = float(sum(len(run) * interval for run, interval in zip(runs, intervals, strict=True)))
    ends = np.cumsum([len(run) for run in runs])[:-1]
    found = []
    for column, name in enumerate(names):
        wells = wells_of([run[:, column] for run in runs], equal, steps, column)
        if wells is None:
            continue
        cores = np.split(np.where(wells.inside, wells.well, -1), ends)
        crossings = _fewest_between(core_arrivals(cores, len(wells.centres)))
        if any(unbiased) and crossings / time * time_to_come >= fewest:
            continue
        found.append((crossings, wells.saddle, SlowTorsion(name, column, np.angle(wells.centres), crossings)))
    found.sort(key=lambda one: one[:2])
    return sorted((one for *_, one in found[:most]), key=lambda one: one.column)


def _fewest_between(arrivals: np.ndarray) -> int:
    """Crossings between the two groups of wells with the fewest: two that exchange often do not hide a third.

    arrivals: (n, n), those in the second from the first.
    """
    n, between = len(arrivals), arrivals + arrivals.T
    groups = [group for size in range(1, n) for group in combinations(range(1, n), size)]
    return min(int(between[np.ix_([k for k in range(n) if k not in group], group)].sum()) for group in groups)


def well_crossings(slow: Sequence[SlowTorsion], torsions: Sequence[np.ndarray]) -> list[int]:
    """Count how often each slow torsion went from one of its wells to another, between the groups with the fewest crossings.

    A frame is in a well if the torsion is nearer to its centre than CORE_REACH of the way to the next. torsions: list of
    (F, T) array in radians, runs that are never joined.
    """
    counts = []
    for one in slow:
        apart = np.abs(np.exp(1j * one.centres)[:, None] - np.exp(1j * one.centres))
        reach = CORE_REACH * 2 * np.arcsin(np.where(apart > 0, apart, 2.0).min() / 2)
        cores = []
        for run in torsions:
            away = _away(one, run)
            cores.append(np.where(away.min(axis=1) < reach, away.argmin(axis=1), -1))
        counts.append(_fewest_between(core_arrivals(cores, len(one.centres))))
    return counts


def well_differences(
    slow: SlowTorsion, torsions: Sequence[np.ndarray], logw: Sequence[np.ndarray], kT: float
) -> list[tuple[float, float, FreeEnergyDifference]]:
    """Compare the wells of a slow torsion with the one that has the most weight; a frame is in the nearest.

    Parameters
    ----------
    slow : SlowTorsion
    torsions : list of (F, T) array
        Radians, of every run.
    logw : list of (F,) array
        Log-weights of the frames.
    kT : float
        kJ/mol.

    Returns
    -------
    list of (float, float, FreeEnergyDifference)
        For each other well: the centres of the first and of the other one in radians, and F(other) - F(first).
    """
    nearest = [_away(slow, run).argmin(axis=1) for run in torsions]
    wells, weight = np.arange(len(slow.centres)), np.exp(np.concatenate(list(logw)) - max(map(np.max, logw)))
    first = int(np.bincount(np.concatenate(nearest), weight, len(wells)).argmax())

    def inside(well: int) -> list[np.ndarray]:
        return [run == well for run in nearest]

    return [
        (float(slow.centres[first]), float(slow.centres[other]), delta_F(inside(first), inside(other), logw, kT))
        for other in wells[wells != first].tolist()
    ]


def _away(slow: SlowTorsion, run: np.ndarray) -> np.ndarray:
    """Distances (F, n) of a torsion from its n wells in every frame of a run (F, T), radians."""
    return np.abs(np.angle(np.exp(1j * (run[:, slow.column, None] - slow.centres))))


def progress_targets(slow: Sequence[SlowTorsion], torsions: Sequence[np.ndarray]) -> tuple[list[str], list[np.ndarray]]:
    """What a CV is to follow: the progress of slow torsions between their wells, in every frame.

    Of a torsion with two wells, with u = (cos, sin) of the angle and u_A and u_B those of the wells, it is
    y = 2 (u - (u_A + u_B)/2) . (u_B - u_A) / |u_B - u_A|^2: -1 in the one and +1 in the other. Of a torsion with more wells
    it is both cosine and sine.

    Parameters
    ----------
    slow : list of SlowTorsion
    torsions : list of (F, T) array
        Radians.

    Returns
    -------
    names : list of str
        Of m targets.
    targets : list of (F, m) ndarray
    """
    names: list[str] = []
    columns: list[list[np.ndarray]] = [[] for _ in torsions]
    for one in slow:
        angles = [np.asarray(run, dtype=np.float64)[:, one.column] for run in torsions]
        if len(one.centres) == 2:
            a, b = np.exp(1j * one.centres)
            names.append("progress of {} from {:.0f} to {:.0f} deg".format(one.name, *np.degrees(one.centres)))
            for column, angle in zip(columns, angles, strict=True):
                column.append(2 * ((np.exp(1j * angle) - (a + b) / 2) * np.conj(b - a)).real / abs(b - a) ** 2)
        else:
            names += [f"cosine of {one.name}", f"sine of {one.name}"]
            for column, angle in zip(columns, angles, strict=True):
                column += [np.cos(angle), np.sin(angle)]
    return names, [
        np.stack(column, axis=1) if column else np.zeros((len(run), 0))
        for column, run in zip(columns, torsions, strict=True)
    ]


def side_targets(slow: Sequence[SlowTorsion], torsions: Sequence[np.ndarray]) -> tuple[list[str], list[np.ndarray]]:
    """What a CV is to follow beside the progress: on which of the two ways between its wells a torsion is.

    The progress of a torsion is the same on both ways around its circle. Where these rise at different angles, a bias on it
    alone fills the one way from the one well and the other from the other, and they do not meet. The side is
    z = 2 u . n / |u_B - u_A|, n being the unit vector at a right angle to u_B - u_A, and as in `progress_targets`.

    It is a target where one torsion with two wells is all that is slow: with it the CV is the whole circle, of which a bias
    fills no more than a line. Of several torsions there would be too many components.

    Parameters
    ----------
    slow, torsions
        As of `progress_targets`.

    Returns
    -------
    names : list of str
        One, or none.
    targets : list of (F, 1) or (F, 0) ndarray
    """
    if len(slow) != 1 or len(slow[0].centres) != 2:
        return [], [np.zeros((len(run), 0)) for run in torsions]
    (one,) = slow
    a, b = np.exp(1j * one.centres)
    angles = [np.asarray(run, dtype=np.float64)[:, one.column] for run in torsions]
    sides = [2 * (np.exp(1j * angle) * np.conj(b - a)).imag[:, None] / abs(b - a) ** 2 for angle in angles]
    return [f"side of {one.name}"], sides
