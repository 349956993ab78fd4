"""From what a biased run left behind to the numbers and curves of its report: pure, no files, no pictures."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from openmm_geomgnn.analysis.frames import (
    checked_walkers,
    find_cv_fields,
    frame_rows,
    last_value,
    row_interval,
    spread,
    start_time,
    torsion_runs,
    total_bias,
    transient,
)
from openmm_geomgnn.analysis.free_energy import (
    FreeEnergy,
    FreeEnergyDifference,
    free_energy_1d,
    free_energy_2d,
    kish_size,
    log_weights,
    slowest_inefficiency,
)
from openmm_geomgnn.analysis.intervals import TURN
from openmm_geomgnn.analysis.notes import reading_notes
from openmm_geomgnn.analysis.resampling import as_walkers
from openmm_geomgnn.analysis.states import States, default_phi_states, differences, find_states
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.colvar import column, split_walkers
from openmm_geomgnn.units import BOLTZMANN


@dataclass
class Analysis:
    """What a report shows. Lists have one entry per walker; times in ps, angles in radians, energies in kJ/mol.

    summary: the headline numbers (nan where unknown). notes: sentences; those starting with "Warning" need attention.
    walkers: the COLVAR columns of each walker. discarded: ps left out at the start. cv_profiles: F(s) of every CV
    component, by field name. torsions: lists of (T,) by name, at frame_times, list of (T,) (None without torsions).
    frame_cv: (T, d), the CV at these frames. torsion_profiles: F of each torsion by name; phi_psi_map: F(phi, psi).
    crossing_variable: a torsion or a CV component, "none" where nothing was counted, and then states is None.
    unbiased: this variable in reference runs, list of (T,). running_delta_F: rows of (time of a walker, value, error).
    """

    temperature: float
    hot_threshold: float
    walkers: list
    cv_fields: list
    discarded: float
    crossing_variable: str = "none"
    states: States | None = None
    summary: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    cv_profiles: dict = field(default_factory=dict)
    torsions: dict = field(default_factory=dict)
    frame_times: list | None = None
    frame_cv: list | None = None
    torsion_profiles: dict = field(default_factory=dict)
    phi_psi_map: FreeEnergy | None = None
    unbiased: list | None = None
    unbiased_frame_time: float = float("nan")
    running_delta_F: np.ndarray | None = None


def analyse_biased_run(
    colvar,
    torsions=None,
    unbiased=None,
    *,
    temperature,
    frame_times=None,
    unbiased_frame_time=1.0,
    along=None,
    cores=None,
    dividing=None,
    bias_fields=None,
    discard=0.2,
    discard_ps=None,
    degrees_of_freedom=None,
    wall_seconds=float("nan"),
    bins=60,
    n_bootstrap=200,
    seed=0,
):
    """Crossings, temperature, and free energies with error bars of a biased run.

    colvar: columns as `read_colvar` gives them: time (ps), walker (optional), cv.1 ..., NAME.bias (kJ/mol), and, where
    present, NAME.rct, NAME.nker, NAME.neff and temperature (K).
    torsions: {name: list over walkers of (T,) in radians}; with phi and psi there is a Ramachandran map. frame_times:
    times of these frames in ps, list of (T,); by default frame i belongs to COLVAR row i. Each must have a row.
    temperature: the target, K.
    along, cores: the variable, a torsion or a CV component, and its two intervals A and B between which crossings are
    counted; of a torsion also across 180 degrees, as (2.6, -2.6). Without cores those of alanine dipeptide along phi,
    where phi and psi are given and `along` is not something else; otherwise nothing is counted.
    delta F = F(B) - F(A) is between what is on A's and on B's side of the dividing points (see `states.find_states`);
    dividing: these points, one along a CV, two along a torsion, by default where F is highest between the cores, and 0
    and 2.2 along phi without cores.
    unbiased: list of (T,), the variable `along` in runs without bias to compare with, `unbiased_frame_time` ps apart.
    bias_fields: the columns summed in the weights, default all *.bias.
    discard: the share of the run's time, from its start, that free energies leave out as transient, or discard_ps:
    that time itself. Crossings and temperatures use everything.
    degrees_of_freedom: a frame is hot above T*(1 + 3*sqrt(2/n)), three standard deviations of the kinetic temperature,
    and above 1.5*T where n is not given. wall_seconds: passed on. seed: of the bootstrap.

    Returns an Analysis. Raises GeomGNNError where columns are missing or arrays do not belong together.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise GeomGNNError(f"The target temperature must be a positive number of K, but it is {temperature}.")
    kT, bootstrap = BOLTZMANN * temperature, dict(n_bootstrap=n_bootstrap, rng=seed)
    walkers = checked_walkers(split_walkers(colvar))
    row_times = [walker["time"] for walker in walkers]
    lengths = [times[-1] - start_time(times) for times in row_times]
    hot = 1.5 if degrees_of_freedom is None else 1 + 3 * np.sqrt(2 / degrees_of_freedom)
    result = Analysis(
        temperature=float(temperature),
        hot_threshold=float(hot * temperature),
        walkers=walkers,
        cv_fields=find_cv_fields(colvar),
        discarded=transient(lengths, discard, discard_ps),
        unbiased_frame_time=float(unbiased_frame_time),
    )
    bias = total_bias(walkers, bias_fields)
    kept = [times - start_time(times) > result.discarded for times in row_times]
    logw = log_weights(_choose(bias, kept), kT)
    inefficiency = _add_cv_profiles(result, kept, logw, kT, bins, bootstrap)

    frames = _add_torsions(result, torsions, frame_times, bias, kT) if torsions else None
    if torsions:
        interval = inefficiency * row_interval(row_times) / row_interval(result.frame_times)
        _add_torsion_profiles(result, frames, kT, bins, bootstrap, interval)
    along = along or ("phi" if {"phi", "psi"} <= set(result.torsions) else "cv.1")
    series = None
    if cores is not None or along == "phi" and {"phi", "psi"} <= set(result.torsions):
        series = _series(result, along, frames, spread(logw, kept), kept)
        _add_states(result, along, series, cores, dividing, unbiased)
    difference, halves, crossings_used = _add_difference(result, series, kT, bootstrap)
    result.summary = dict(
        **_counts(result, series, sum(lengths) / 1000),
        delta_F_kJ_per_mol=difference.value,
        delta_F_error=difference.error,
        delta_F_first_half=halves[0],
        delta_F_second_half=halves[1],
        **_definition(result),
        **_temperatures(colvar, result),
        effective_sample_size=kish_size(logw),
        frames_used=sum(int(keep.sum()) for keep in kept),
        correlation_time_ps=inefficiency * row_interval(row_times),
        n_kernels=last_value(walkers, ".nker"),
        n_walkers=len(walkers),
        discarded_ps=result.discarded,
        crossing_variable=result.crossing_variable,
        wall_seconds=float(wall_seconds),
    )
    result.notes += reading_notes(result.summary, difference.reason, crossings_used)
    return result


class _Series(NamedTuple):
    """A variable that crossings may be counted along: lists over walkers of (T,) values, log-weights, times in ps, and
    which of them free energies use."""

    values: list | None
    logw: list
    times: list
    used: list


def _series(result, along, frames, logw, kept):
    """The variable `along` as a _Series: of the frames for a torsion, of the rows of COLVAR for a CV component."""
    if along in result.torsions:
        return frames._replace(values=result.torsions[along])
    return _Series([column(walker, along) for walker in result.walkers], logw, [w["time"] for w in result.walkers], kept)


def _add_states(result, along, series, cores, dividing, unbiased):
    """The variable of the crossings, its two states, and the reference runs along it."""
    period = TURN if along in result.torsions else None
    if cores is None:
        result.states = default_phi_states(period)
    elif dividing is not None:
        result.states = States(*cores, tuple(dividing), period)
    else:
        values, logw = (_choose(arrays, series.used) for arrays in (series.values, series.logw))
        result.states = find_states(values, logw, *cores, period)
    result.crossing_variable = along
    result.unbiased = None if unbiased is None else as_walkers(unbiased, "unbiased")


def _add_difference(result, series, kT, bootstrap):
    """delta F; its values in both halves of the time; the number of crossings after the transient."""
    if series is None:
        return FreeEnergyDifference(np.nan, np.nan, ""), (np.nan, np.nan), 0
    difference, halves, result.running_delta_F = differences(result.states, *series, kT, bootstrap)
    return difference, halves, result.states.crossings(_choose(series.values, series.used))


def _counts(result, series, biased_ns):
    crossings = unbiased_crossings = unbiased_ns = np.nan
    if series is not None:
        crossings = result.states.crossings(series.values)
    if result.unbiased is not None:
        unbiased_crossings = result.states.crossings(result.unbiased)
        unbiased_ns = sum(len(run) for run in result.unbiased) * result.unbiased_frame_time / 1000
    return dict(
        crossings=crossings,
        unbiased_crossings=unbiased_crossings,
        crossings_per_ns=crossings / biased_ns,
        unbiased_crossings_per_ns=unbiased_crossings / unbiased_ns,
        biased_ns=float(biased_ns),
        unbiased_ns=float(unbiased_ns),
    )


def _definition(result):
    """What delta F is between, in words and as intervals: radians along a torsion, infinite ends along a CV."""
    if result.states is None:
        return {}
    states = result.states
    (core_a, core_b), (state_a, state_b) = (states.core_a, states.core_b), states.intervals
    return dict(
        delta_F_definition=f"F(B) - F(A), {states.in_words(result.crossing_variable)}",
        core_A=core_a,
        core_B=core_b,
        state_A=state_a,
        state_B=state_b,
    )


def _temperatures(colvar, result):
    temperatures = colvar.get("temperature")
    known = temperatures is not None
    return dict(
        mean_temperature_K=float(temperatures.mean()) if known else np.nan,
        hot_frame_share=float(np.mean(temperatures > result.hot_threshold)) if known else np.nan,
        hot_threshold_K=result.hot_threshold,
        target_temperature_K=result.temperature,
    )


def _add_cv_profiles(result, kept, logw, kT, bins, bootstrap):
    """F of every CV component; returns the slowest statistical inefficiency among them, in rows."""
    values = {name: _choose([walker[name] for walker in result.walkers], kept) for name in result.cv_fields}
    inefficiency = slowest_inefficiency(list(values.values()), logw)
    # enough frames per bin that the profile is not all noise
    bins = max(20, min(bins, int(np.sqrt(kish_size(logw)))))
    for name, s in values.items():
        result.cv_profiles[name] = free_energy_1d(s, logw, kT, bins, inefficiency=inefficiency, **bootstrap)
    return inefficiency


def _add_torsions(result, torsions, frame_times, bias, kT):
    """Check that frames, times and walkers belong together, and put them into `result` with the CV at each frame.

    Returns the frames as a _Series without values. Raises GeomGNNError where the transient leaves none."""
    walkers = result.walkers
    result.torsions = {name: torsion_runs(runs, name) for name, runs in torsions.items()}
    times = [walker["time"] for walker in walkers] if frame_times is None else frame_times
    result.frame_times = times = [np.asarray(t, dtype=np.float64) for t in times]
    for name, runs in result.torsions.items():
        if len(runs) != len(walkers):
            raise GeomGNNError(
                f"There are values of {name} for {len(runs)} walkers and COLVAR rows of {len(walkers)}. Give one per walker."
            )
        if [len(t) for t in times] != [len(run) for run in runs] or min(len(t) for t in times) < 2:
            raise GeomGNNError(
                f"The walkers have {[len(run) for run in runs]} values of {name} and {[len(t) for t in times]} times. "
                "Give the time in ps of every frame as frame_times, and at least two frames per walker."
            )
    rows = [frame_rows(walker["time"], t, number) for number, (walker, t) in enumerate(zip(walkers, times, strict=True))]
    fields = result.cv_fields
    result.frame_cv = [
        np.array([walker[name][row] for name in fields]).reshape(len(fields), -1).T
        for walker, row in zip(walkers, rows, strict=True)
    ]
    used = [t - start_time(walker["time"]) > result.discarded for walker, t in zip(walkers, times, strict=True)]
    if not any(u.any() for u in used):
        raise GeomGNNError(
            f"No frame of the trajectory is later than the first {result.discarded:g} ps, which are left out as transient. "
            "Discard less, or run longer."
        )
    frame_bias = [v[row] for v, row in zip(bias, rows, strict=True)]
    return _Series(None, spread(log_weights(_choose(frame_bias, used), kT), used), times, used)


def _add_torsion_profiles(result, frames, kT, bins, bootstrap, inefficiency):
    logw = _choose(frames.logw, frames.used)
    torsions = {name: _choose(runs, frames.used) for name, runs in result.torsions.items()}
    slowest = slowest_inefficiency(list(torsions.values()), logw, [True] * len(torsions))
    shared = dict(inefficiency=max(inefficiency, slowest), **bootstrap)
    for name, runs in torsions.items():
        result.torsion_profiles[name] = free_energy_1d(runs, logw, kT, bins, periodic=True, **shared)
    if {"phi", "psi"} <= set(torsions):
        # a map needs a few frames per bin to be readable
        bins = max(24, min(bins, int(np.sqrt(sum(len(w) for w in logw) / 2))))
        result.phi_psi_map = free_energy_2d(torsions["phi"], torsions["psi"], logw, kT, bins, (True, True), **shared)


def _choose(values, masks):
    return [value[mask] for value, mask in zip(values, masks, strict=True)]
