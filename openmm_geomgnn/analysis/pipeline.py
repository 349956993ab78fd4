"""From what a biased run left behind to the numbers and curves of its report: pure, no files, no pictures."""

from dataclasses import dataclass, field

import numpy as np

from openmm_geomgnn.analysis.crossings import PHI_CORE_A, PHI_CORE_B, core_crossings
from openmm_geomgnn.analysis.frames import (
    checked_walkers,
    find_cv_fields,
    last_value,
    row_interval,
    rows_at,
    spread,
    start_time,
    torsion_list,
    total_bias,
    transient,
)
from openmm_geomgnn.analysis.free_energy import (
    FreeEnergy,
    FreeEnergyDifference,
    delta_F,
    free_energy_1d,
    free_energy_2d,
    kish_size,
    log_weights,
    slowest_inefficiency,
)
from openmm_geomgnn.analysis.verdict import reading_notes
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.colvar import column, split_walkers
from openmm_geomgnn.units import BOLTZMANN

# alanine dipeptide's C7ax basin along phi (radians); everything else, across the period, is the other state
PHI_STATE_B = (0.0, 2.2)


@dataclass
class Analysis:
    """What a report shows. Lists have one entry per walker; times in ps, angles in radians, energies in kJ/mol.

    summary: the headline numbers (nan where unknown). notes: sentences; those starting with "Warning" need attention.
    walkers: the COLVAR columns of each walker. discarded: ps left out at the start. cv_profiles: F(s) of every CV
    component, by field name. phi_psi, frame_times: (T, 2) and (T,), None without reference torsions. frame_cv: (T, d),
    the CV at these frames, nan where no COLVAR row has a frame's time. phi_profile, phi_psi_map: F(phi), F(phi, psi).
    cores: the intervals of `crossing_variable`, None where nothing was counted. unbiased: reference runs, (T, 2)
    torsions or (T,) CV values. running_delta_F: rows of (time of a walker, value, error).
    """

    temperature: float
    hot_threshold: float
    walkers: list
    cv_fields: list
    discarded: float
    crossing_variable: str = "none"
    cores: tuple | None = None
    summary: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    cv_profiles: dict = field(default_factory=dict)
    phi_psi: list | None = None
    frame_times: list | None = None
    frame_cv: list | None = None
    phi_profile: FreeEnergy | None = None
    phi_psi_map: FreeEnergy | None = None
    unbiased: list | None = None
    unbiased_frame_time: float = float("nan")
    running_delta_F: np.ndarray | None = None


def analyse_biased_run(
    colvar,
    phi_psi=None,
    unbiased_phi_psi=None,
    *,
    temperature,
    frame_times=None,
    unbiased_frame_time=1.0,
    cores=None,
    states=None,
    cv_field="cv.1",
    unbiased_cv=None,
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
    phi_psi: list over walkers of (T, 2) torsions in radians, or None for a system without them. frame_times: their
    times in ps, list of (T,); by default frame i belongs to COLVAR row i. Frames without a row at their time count for
    crossings but have no weight.
    unbiased_phi_psi: list of (T, 2) of runs without bias to compare with, `unbiased_frame_time` ps between frames.
    temperature: the target, K. cores: two intervals between which crossings are counted, of phi (default: alanine
    dipeptide's basins) or, without phi_psi, of the CV component `cv_field` (no default: nothing is counted without
    them; unbiased_cv: list of (T,), the same component in runs without bias).
    states: two intervals A, B of the same variable for delta F = F(B) - F(A); by default B is 0 < phi < 2.2 and A the
    rest, and the cores where the variable is a CV. bias_fields: the columns summed in the weights, default all *.bias.
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

    variable = unbiased_variable = None
    if phi_psi is not None:
        _add_torsions(result, torsion_list(phi_psi, "phi_psi"), frame_times)
        times, variable = result.frame_times, [run[:, 0] for run in result.phi_psi]
        variable_logw, used = _frame_weights(result, bias, kT)
        interval = inefficiency * row_interval(row_times) / row_interval(times)
        _add_torsion_profiles(result, variable_logw, used, kT, bins, bootstrap, interval)
        result.crossing_variable, result.cores = "phi", cores or (PHI_CORE_A, PHI_CORE_B)
        result.unbiased = torsion_list(unbiased_phi_psi, "unbiased_phi_psi")
        if result.unbiased is not None:
            unbiased_variable = [run[:, 0] for run in result.unbiased]
    elif cores is not None:
        times, variable = row_times, [column(walker, cv_field) for walker in walkers]
        variable_logw, used = spread(logw, kept), kept
        result.crossing_variable, result.cores = cv_field, cores
        if unbiased_cv is not None:
            result.unbiased = unbiased_variable = [np.asarray(run, dtype=np.float64) for run in unbiased_cv]

    unbiased_ns = np.nan
    if unbiased_variable is not None:
        unbiased_ns = sum(len(run) for run in unbiased_variable) * unbiased_frame_time / 1000
    summary = _counts(result.cores, variable, unbiased_variable, sum(lengths) / 1000, unbiased_ns)
    crossings_used, difference, halves = 0, FreeEnergyDifference(np.nan, np.nan, ""), (np.nan, np.nan)
    if variable is not None:
        crossings_used = core_crossings(_choose(variable, used), *result.cores)
        membership = _membership(variable, states, phi_psi is not None, result.cores)
        difference, halves, result.running_delta_F = _differences(membership, variable_logw, times, used, kT, bootstrap)
    summary.update(
        delta_F_kJ_per_mol=difference.value,
        delta_F_error=difference.error,
        delta_F_first_half=halves[0],
        delta_F_second_half=halves[1],
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
    result.summary = summary
    result.notes += reading_notes(summary, difference.reason, crossings_used)
    return result


def _counts(cores, variable, unbiased, biased_ns, unbiased_ns):
    crossings = np.nan if variable is None else core_crossings(variable, *cores)
    unbiased_crossings = np.nan if unbiased is None else core_crossings(unbiased, *cores)
    return dict(
        crossings=crossings,
        unbiased_crossings=unbiased_crossings,
        crossings_per_ns=crossings / biased_ns,
        unbiased_crossings_per_ns=unbiased_crossings / unbiased_ns,
        biased_ns=float(biased_ns),
        unbiased_ns=float(unbiased_ns),
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


def _add_torsions(result, phi_psi, frame_times):
    """Check that frames, times and walkers belong together, and put them into `result` with the CV at each frame."""
    walkers = result.walkers
    if len(phi_psi) != len(walkers):
        raise GeomGNNError(
            f"There are torsions of {len(phi_psi)} walkers and COLVAR rows of {len(walkers)}. Give one per walker."
        )
    times = [walker["time"] for walker in walkers] if frame_times is None else frame_times
    times = [np.asarray(t, dtype=np.float64) for t in times]
    if [len(t) for t in times] != [len(run) for run in phi_psi] or min(len(t) for t in times) < 2:
        raise GeomGNNError(
            f"The walkers have {[len(run) for run in phi_psi]} frames of torsions and {[len(t) for t in times]} times. "
            "Give the time in ps of every frame as frame_times, and at least two frames per walker."
        )
    result.phi_psi, result.frame_times, result.frame_cv = phi_psi, times, []
    for walker, t in zip(walkers, times, strict=True):
        row = rows_at(walker["time"], t)
        cv = np.array([walker[name] for name in result.cv_fields]).reshape(len(result.cv_fields), -1).T
        result.frame_cv.append(np.where(row[:, None] >= 0, cv[row], np.nan))


def _frame_weights(result, bias, kT):
    """Log-weights of the trajectory's frames (-inf where not used), and which of them are used: lists of (T,)."""
    frame_bias, unmatched = [], 0
    for walker, v, t in zip(result.walkers, bias, result.frame_times, strict=True):
        row = rows_at(walker["time"], t)
        unmatched += int(np.count_nonzero(row < 0))
        late = t - start_time(walker["time"]) > result.discarded
        frame_bias.append(np.where((row >= 0) & late, v[row], -np.inf))
    used = [v > -np.inf for v in frame_bias]
    if not any(u.any() for u in used):
        raise GeomGNNError(
            "No frame of the trajectory has a COLVAR row at its time after the transient, so none has a weight. Check "
            "that the trajectory and the COLVAR file belong to the same run and that their times are in ps."
        )
    if unmatched:
        frames = sum(len(v) for v in frame_bias)
        result.notes.append(f"{unmatched} of {frames} frames have no COLVAR row at their time and carry no weight.")
    return spread(log_weights(_choose(frame_bias, used), kT), used), used


def _add_torsion_profiles(result, logw, used, kT, bins, bootstrap, inefficiency):
    logw = _choose(logw, used)
    phi, psi = (_choose([run[:, i] for run in result.phi_psi], used) for i in (0, 1))
    inefficiency = max(inefficiency, slowest_inefficiency([phi, psi], logw, (True, True)))
    # a map needs a few frames per bin to be readable
    map_bins = max(24, min(bins, int(np.sqrt(sum(len(w) for w in logw) / 2))))
    shared = dict(inefficiency=inefficiency, **bootstrap)
    result.phi_profile = free_energy_1d(phi, logw, kT, bins, periodic=True, **shared)
    result.phi_psi_map = free_energy_2d(phi, psi, logw, kT, map_bins, (True, True), **shared)


def _membership(variable, states, is_phi, cores):
    """Which frames are in state A and in state B: two lists of boolean (T,)."""
    if states is None and is_phi:
        in_b = [(v > PHI_STATE_B[0]) & (v < PHI_STATE_B[1]) for v in variable]
        return [~b for b in in_b], in_b
    (low_a, high_a), (low_b, high_b) = cores if states is None else states
    return [(v >= low_a) & (v <= high_a) for v in variable], [(v >= low_b) & (v <= high_b) for v in variable]


def _differences(membership, logw, times, used, kT, bootstrap):
    """delta F of all used frames; its values in the two halves of the time; and running over time, (20, 3)."""
    start = min(float(t[u][0]) for t, u in zip(times, used, strict=True) if u.any())
    end = max(float(t[u][-1]) for t, u in zip(times, used, strict=True) if u.any())

    def between(low, high, **settings):
        chosen = [u & (t >= low) & (t <= high) for t, u in zip(times, used, strict=True)]
        if not any(c.any() for c in chosen):
            return FreeEnergyDifference(np.nan, np.nan, "")
        return delta_F(*(_choose(values, chosen) for values in (*membership, logw)), kT, **settings)

    middle = (start + end) / 2
    halves = tuple(between(*span, n_bootstrap=2).value for span in ((start, middle), (middle, end)))
    running = []
    for time in np.linspace(start, end, 21)[1:]:
        part = between(start, time, **bootstrap)
        running.append((time, part.value, part.error))
    return between(start, end, **bootstrap), halves, np.array(running)


def _choose(values, masks):
    return [value[mask] for value, mask in zip(values, masks, strict=True)]
