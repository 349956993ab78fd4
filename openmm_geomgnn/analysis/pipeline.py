"""From the data of a biased run to the numbers and curves of its report, without files and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from openmm_geomgnn.analysis.cv_motion import cv_crossings
from openmm_geomgnn.analysis.division import Division, describe_found, divide_by_cores, divide_found
from openmm_geomgnn.analysis.frames import last_value, row_interval, spread, transient
from openmm_geomgnn.analysis.free_energy import (
    FreeEnergy,
    FreeEnergyDifference,
    free_energy_1d,
    free_energy_2d,
    kish_size,
    log_weights,
    slowest_inefficiency,
)
from openmm_geomgnn.analysis.metastable import find_metastable_states
from openmm_geomgnn.analysis.notes import reading_notes
from openmm_geomgnn.analysis.states import States, differences, find_states
from openmm_geomgnn.analysis.variables import BiasedRun, Variable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import BOLTZMANN


@dataclass
class Analysis:
    """The content of a report. Times are in ps, angles in radians, energies in kJ/mol.

    Attributes
    ----------
    run : BiasedRun
    variables : dict of str to Variable
        The components of the CV first.
    discarded : float
        Time left out of the free energies at the start of every walker.
    summary : dict
        The headline numbers, nan where unknown.
    notes : list of str
        Sentences; those that start with "Warning" need attention.
    profiles : dict of str to FreeEnergy
        F along every variable, by its name.
    maps : dict of (str, str) to FreeEnergy
        F over the pairs of variables that were asked for.
    crossing : Variable or None
        The variable along which crossings were counted.
    states : States or None
        The states A and B along it.
    found : FoundStates or None
        The states that were found, where no variable has cores.
    frames : Sample or None
        The frames of all walkers with their weights; None if no variable, nor states, needed them.
    running_delta_F : (20, 3) array or None
        Rows of time, F(B) - F(A) of the data up to then, and its error.
    """

    run: BiasedRun
    variables: dict[str, Variable]
    discarded: float
    summary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    profiles: dict[str, FreeEnergy] = field(default_factory=dict)
    maps: dict[Any, FreeEnergy] = field(default_factory=dict)
    crossing: Any = None
    states: Any = None
    found: Any = None
    frames: Any = None
    running_delta_F: np.ndarray | None = None


def analyse_biased_run(
    run: BiasedRun,
    variables: Sequence[Variable] = (),
    maps: Sequence[tuple[str, str]] = (),
    *,
    torsions: tuple[Sequence[str], Sequence[np.ndarray]] | None = None,
    cv_range: tuple[float, float] | None = None,
    discard: float = 0.2,
    discard_ps: float | None = None,
    settling: float = 0.0,
    bins: int = 60,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> Analysis:
    """Compute crossings, temperature, and free energies with error bars of a biased run.

    Parameters
    ----------
    run : BiasedRun
    variables : sequence of Variable, optional
        Variables to analyse in addition to the components of the CV. A component may be among them, to give it cores.
        Crossings, and the difference F(B) - F(A) between the two sides of the dividing points, refer to the variable that
        has cores.
    maps : sequence of (str, str), optional
        Pairs of variables, by name, for a free energy over both.
    torsions : (names, list of (F, T) array), optional
        All torsions of the molecule in every frame, radians, in which states are found where no variable has cores. Then
        crossings and the difference refer to the two groups of these between which there were the fewest.
    cv_range : (float, float), optional
        Least and greatest value of the CV's first component in its training data.
    discard : float, optional
        Fraction of the run's time, from its start, that free energies leave out as transient. Crossings and temperatures
        use all data.
    discard_ps : float, optional
        That time itself.
    settling : float, optional
        Time in ps from the start, while the bias sets in, that mean temperatures leave out, and free energies at least.
    bins : int, optional
        Largest number of bins of a free energy along a variable; there are fewer if frames are too few for a curve or map.
    n_bootstrap, seed : int, optional
        Number of bootstrap replicas, and their seed.

    Raises
    ------
    GeomGNNError
        If data do not belong together, a frame has no row, or more than one variable has cores.
    """
    named = {one.name: one for one in [*run.components(), *variables]}
    result = Analysis(run, named, max(settling, transient(run.lengths, discard, discard_ps)))
    kT, bootstrap = BOLTZMANN * run.temperature, dict(n_bootstrap=n_bootstrap, rng=seed)
    result.crossing = _crossing(named)
    rows = _rows(result, kT)
    inefficiency = in_frames = _add_profiles(result, rows, 0.0, kT, bins, bootstrap)
    frames = result.frames = _frames(result, kT, torsions is not None)
    if frames is not None:
        in_frames = _add_profiles(result, frames, run.in_frames(inefficiency), kT, bins, bootstrap)
    for pair in maps:
        biased = all(variable.biased for variable in _pair(named, pair))
        sample, slowest = (rows, inefficiency) if biased else (frames, in_frames)
        result.maps[tuple(pair)] = _map(result, pair, sample, slowest, kT, bins, bootstrap)
    division, divided = _divide(result, rows, frames, torsions, seed)
    result.summary = _counts(result, division, divided, cv_range)
    difference = _add_difference(result, division, divided, kT, bootstrap)
    kept = rows.select(rows.logw)
    result.summary |= dict(
        **(division.definition if division else {}),
        **({"states": describe_found(result.found)} if result.found else {}),
        **_temperatures(run, settling),
        effective_sample_size=kish_size(kept),
        frames_used=sum(map(len, kept)),
        correlation_time_ps=inefficiency * row_interval(run.row_times),
        n_kernels=last_value(run.walkers, ".nker"),
        n_walkers=len(run.walkers),
        discarded_ps=result.discarded,
        wall_seconds=float(run.wall_seconds),
    )
    result.notes += reading_notes(result.summary, difference.reason)
    return result


class Sample(NamedTuple):
    """The rows, or the frames, at which variables are known.

    Lists over walkers of (T,): times in ps, whether free energies use them, and log-weights, -inf for those they do not use.
    biased: whether these are the rows, at which the CV's components are known.
    """

    times: Sequence[np.ndarray]
    used: Sequence[np.ndarray]
    logw: Sequence[np.ndarray]
    biased: bool

    def select(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Select the values that free energies use from values at all times, a list of (T,)."""
        return [value[used] for value, used in zip(values, self.used, strict=True)]


def _sample(
    times: Sequence[np.ndarray], bias: Sequence[np.ndarray], used: Sequence[np.ndarray], kT: float, biased: bool
) -> Sample:
    logw = log_weights([v[u] for v, u in zip(bias, used, strict=True)], kT)
    return Sample(times, used, spread(logw, used), biased)


def _rows(result: Analysis, kT: float) -> Sample:
    run = result.run
    for variable in result.variables.values():
        run.check_belongs(variable)
    return _sample(run.row_times, run.bias, run.after(result.discarded, run.row_times), kT, True)


def _frames(result: Analysis, kT: float, for_states: bool) -> Sample | None:
    """Make a `Sample` of the frames; None if no variable needs them, nor states that are to be found.

    Raises GeomGNNError if a frame has no row, or none is left for a variable after the transient.
    """
    run = result.run
    for_variables = not all(variable.biased for variable in result.variables.values())
    if not (for_variables or (for_states and result.crossing is None)):
        return None
    bias, used = run.at_frames(run.bias), run.after(result.discarded, run.frame_times)
    if not any(u.any() for u in used):
        if not for_variables:
            return None
        raise GeomGNNError(
            f"No frame of the trajectory is later than the first {result.discarded:g} ps, which are left out as transient. "
            "Discard less, or run longer."
        )
    return _sample(run.frame_times, bias, used, kT, False)


def _add_profiles(result: Analysis, sample: Sample, least: float, kT: float, bins: int, bootstrap: dict[str, Any]) -> float:
    """Add F along the variables of a sample.

    Returns the statistical inefficiency behind their error bars: the largest of the variables', at least `least`.
    """
    variables = [variable for variable in result.variables.values() if variable.biased == sample.biased]
    logw = sample.select(sample.logw)
    turned = [variable.turned(sample.select(variable.values)) for variable in variables]
    slowest = slowest_inefficiency(turned, logw, [variable.is_periodic for variable in variables])
    inefficiency = max(least, slowest)
    # enough frames per bin that the profile is not all noise
    fewer = max(20, min(bins, int(np.sqrt(kish_size(logw)))))
    for variable in variables:
        periodic = variable.is_periodic
        result.profiles[variable.name] = free_energy_1d(
            sample.select(variable.values),
            logw,
            kT,
            variable.edges(bins if periodic else fewer),
            periodic,
            inefficiency=inefficiency,
            **bootstrap,
        )
    return inefficiency


def _map(
    result: Analysis,
    pair: tuple[str, str],
    sample: Any,
    inefficiency: float,
    kT: float,
    bins: int,
    bootstrap: dict[str, Any],
) -> FreeEnergy:
    """Compute F over two variables."""
    variables = _pair(result.variables, pair)
    first, second = (sample.select(_values(result, variable, sample)) for variable in variables)
    logw = sample.select(sample.logw)
    # a map needs a few frames per bin to be readable
    bins = max(24, min(bins, int(np.sqrt(sum(len(w) for w in logw) / 2))))
    edges, periodic = zip(*((variable.edges(bins), variable.is_periodic) for variable in variables), strict=True)
    return free_energy_2d(first, second, logw, kT, edges, periodic, inefficiency=inefficiency, **bootstrap)


def _values(result: Analysis, variable: Variable, sample: Sample) -> Sequence[np.ndarray]:
    """A variable at the rows or frames of a sample."""
    return variable.values if variable.biased == sample.biased else result.run.at_frames(variable.values)


def _pair(variables: dict[str, Variable], names: tuple[str, str]) -> list[Variable]:
    """The two variables of a map."""
    for name in names:
        if name not in variables:
            raise GeomGNNError(f"A map is asked for over {name}, but the variables are {', '.join(variables)}.")
    return [variables[name] for name in names]


def _crossing(variables: dict[str, Variable]) -> Variable | None:
    """The variable along which crossings are counted; None without one."""
    along = [variable for variable in variables.values() if variable.cores is not None]
    if len(along) > 1:
        raise GeomGNNError(
            f"{' and '.join(variable.name for variable in along)} have cores, but crossings are counted along one variable."
        )
    return along[0] if along else None


def _divide(result: Analysis, rows: Sample, frames: Any, torsions: Any, seed: int) -> tuple[Division | None, Any]:
    """The states A and B, around the cores of a variable or found in torsions, and the sample that they divide."""
    variable: Any = result.crossing
    if variable is not None:
        sample = rows if variable.biased else frames
        core_a, core_b = variable.cores
        if variable.dividing is not None:
            result.states = States(core_a, core_b, tuple(variable.dividing), variable.period)
        else:
            used = sample.select(variable.values)
            result.states = find_states(used, sample.select(sample.logw), core_a, core_b, variable.period)
        return divide_by_cores(variable, result.states, sample.used), sample
    if torsions is None or frames is None:
        return None, None
    names, angles = torsions
    if [len(run) for run in angles] != [len(times) for times in frames.times]:
        raise GeomGNNError(
            f"There are torsions of {[len(run) for run in angles]} frames and times of {[len(t) for t in frames.times]}. "
            "Give the time in ps of every frame as frame_times, and its torsions."
        )
    interval = row_interval(result.run.frame_times)
    result.found = find_metastable_states(angles, interval, names, weights=frames.logw, seed=seed)
    return divide_found(result.found, frames.used), frames


def _add_difference(
    result: Analysis, division: Division | None, sample: Any, kT: float, bootstrap: dict[str, Any]
) -> FreeEnergyDifference:
    """Add delta F, in all and in both halves of the time, to the summary."""
    difference, halves = FreeEnergyDifference(np.nan, np.nan, ""), (np.nan, np.nan)
    if division is not None and division.definition:
        difference, halves, result.running_delta_F = differences(
            division.members, sample.logw, sample.times, sample.used, kT, bootstrap
        )
    result.summary |= dict(
        delta_F_kJ_per_mol=difference.value,
        delta_F_error=difference.error,
        delta_F_first_half=halves[0],
        delta_F_second_half=halves[1],
    )
    return difference


def _counts(result: Analysis, division: Division | None, sample: Any, cv_range: Any) -> dict[str, Any]:
    run, variable = result.run, result.crossing
    biased_ns = sum(run.lengths) / 1000
    unbiased_ns = np.nan
    if variable is not None and variable.unbiased is not None:
        unbiased_ns = sum(map(len, variable.unbiased)) * run.unbiased_frame_time / 1000
    crossings, unbiased_crossings = (np.nan, np.nan) if division is None else (division.crossings, division.unbiased)
    moved = np.nan
    if division is not None and run.cv_fields:
        component = result.variables[run.cv_fields[0]]
        moved = cv_crossings(_values(result, component, sample), division.states, cv_range)
    return dict(
        crossings=crossings,
        crossings_used=0 if division is None else division.used,
        unbiased_crossings=unbiased_crossings,
        crossings_per_ns=crossings / biased_ns,
        unbiased_crossings_per_ns=unbiased_crossings / unbiased_ns,
        biased_ns=float(biased_ns),
        unbiased_ns=float(unbiased_ns),
        state_changes=np.nan if division is None else division.changes,
        cv_crossings=moved,
        crossing_variable="none" if division is None else division.along,
    )


def _temperatures(run: BiasedRun, settling: float) -> dict[str, Any]:
    temperatures: Any = run.colvar.get("temperature")
    known = temperatures is not None
    if known and settling:
        start = min(times[0] for times in run.row_times)
        temperatures = temperatures[run.colvar["time"] >= start + settling]
    return dict(
        mean_temperature_K=float(temperatures.mean()) if known else np.nan,
        hot_frame_share=float(np.mean(temperatures > run.hot_threshold)) if known else np.nan,
        hot_threshold_K=run.hot_threshold,
        target_temperature_K=float(run.temperature),
    )
