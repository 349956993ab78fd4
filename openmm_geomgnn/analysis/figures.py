"""The pictures and tables of a biased run's report, from its Analysis."""

import numpy as np

from openmm_geomgnn.analysis import plots

_GREEK = {"phi": "φ", "psi": "ψ", "omega": "ω", "chi": "χ"}


def standard_figures(analysis):
    """Pictures of a biased run: a list of (title, caption, Figure). What the run has no data for is left out."""
    figures = []
    times = [walker["time"] for walker in analysis.walkers]
    if analysis.crossing_variable != "none":
        figures.append(_crossings(analysis, times))
    for name, profile in analysis.cv_profiles.items():
        figures.append(
            (
                f"Free energy along {name}",
                "The lower, the more probable without bias. The band is one standard error from a block bootstrap; "
                "where the line is dotted, a value was visited in one stretch only and its error is not known. A wide "
                "band means that the run was too short to tell." + _states_caption(analysis, name),
                plots.free_energy_profile(profile, f"{name} (no unit)", **_states(analysis, name)),
            )
        )
    figures += _torsions(analysis)
    if analysis.running_delta_F is not None and np.isfinite(analysis.running_delta_F[:, 1]).any():
        figures.append(
            (
                "Has the free-energy difference settled?",
                f"The difference computed from the data up to each time: {analysis.summary['delta_F_definition']}. It "
                "should level off within its band; a drift to the end means that the run has to be longer.",
                plots.delta_F_convergence(analysis.running_delta_F, analysis.discarded),
            )
        )
    for name in analysis.cv_fields:
        values = [walker[name] for walker in analysis.walkers]
        if analysis.crossing_variable != name:
            figures.append(
                (
                    f"{name} over time",
                    "A useful bias drives the variable back and forth over its whole range, again and again.",
                    plots.trajectories([("biased", times, values)], name),
                )
            )
    if "temperature" in analysis.walkers[0]:
        temperatures = [walker["temperature"] for walker in analysis.walkers]
        figures.append(
            (
                "Temperature",
                "Dots are single values, which scatter widely in a small system; lines are running means, which have "
                "to stay at the target. A mean that rises, or many dots above the hot line, tells that the bias pumps "
                "heat into the molecule, and then crossings mean nothing. `geomgnn run` stops when the mean of the last 20 "
                "ps, or of a longer time up to 10 ns, is above the target by more than 2 % and what chance explains.",
                plots.temperature_trajectory(times, temperatures, analysis.temperature, analysis.hot_threshold),
            )
        )
    panels = _bias_panels(analysis.walkers)
    if panels:
        figures.append(
            (
                "Bias",
                "The bias energy felt by the walkers, the offset c(t), the number of compressed kernels and the "
                "effective number of samples. Once c(t) and the kernels level off, the bias is nearly static and the "
                "weights can be trusted.",
                plots.bias_diagnostics(times, panels),
            )
        )
    return figures


def standard_tables(analysis):
    """Tables of a biased run: a list of (title, rows), the first row being the head."""
    spans = [f"{name}: least … most" for name in analysis.cv_fields]
    rows = [["walker", "simulated (ps)", "mean temperature (K)", *spans]]
    for number, walker in enumerate(analysis.walkers):
        temperature = f"{walker['temperature'].mean():.1f}" if "temperature" in walker else "not recorded"
        spans = [f"{walker[name].min():.3f} … {walker[name].max():.3f}" for name in analysis.cv_fields]
        rows.append([str(number), f"{walker['time'][-1]:.1f}", temperature, *spans])
    return [("Walkers", rows), *_states_table(analysis)]


def _states_table(analysis):
    """What ΔF = F(B) − F(A) is between."""
    states, variable = analysis.states, analysis.crossing_variable
    if states is None:
        return []
    unit = " (degrees)" if variable in analysis.torsions else ""
    rows = [["state", f"core along {symbol(variable)}{unit}", f"the whole state{unit}"]]
    for letter, *intervals in zip("AB", (states.core_a, states.core_b), states.intervals, strict=True):
        rows.append([letter, *(_interval(interval, variable in analysis.torsions) for interval in intervals)])
    return [("States: ΔF = F(B) − F(A)", rows)]


def _interval(interval, is_torsion):
    low, high = np.degrees(interval) if is_torsion else interval
    if np.isinf(low):
        return f"below {high:.4g}"
    if np.isinf(high):
        return f"above {low:.4g}"
    digits = ".1f" if is_torsion else ".4g"
    return f"{low:{digits}} to {high:{digits}}" + (", across 180" if low > high else "")


def _crossings(analysis, times):
    variable = analysis.crossing_variable
    is_torsion = variable in analysis.torsions
    if is_torsion:
        columns = [("biased", analysis.frame_times, analysis.torsions[variable])]
    else:
        columns = [("biased", times, [walker[variable] for walker in analysis.walkers])]
    if analysis.unbiased is not None:
        steps = [np.arange(1, len(run) + 1) * analysis.unbiased_frame_time for run in analysis.unbiased]
        columns.append(("unbiased", steps, analysis.unbiased))
    name, states = symbol(variable), analysis.states
    return (
        f"{name} over time, with and without bias" if len(columns) > 1 else f"{name} over time",
        "The shaded stripes are the two cores, A and B. A crossing is counted when a walker that was in one arrives in the "
        "other; turning back half-way does not count. Each panel is one walker.",
        plots.trajectories(columns, _axis(variable, is_torsion), degrees=is_torsion, cores=(states.core_a, states.core_b)),
    )


def _torsions(analysis):
    figures = []
    for name, profile in analysis.torsion_profiles.items():
        caption = "Reweighted to the unbiased ensemble, with one standard error. A test of the learned variable: {} itself "
        figures.append(
            (
                f"Free energy along {symbol(name)}",
                caption.format(symbol(name)) + "was not biased." + _states_caption(analysis, name),
                plots.free_energy_profile(profile, _axis(name, True), degrees=True, **_states(analysis, name)),
            )
        )
    if analysis.phi_psi_map is None:
        return figures
    figures.append(
        (
            "Free energy over φ and ψ",
            "The Ramachandran map of the unbiased ensemble, lightly smoothed for the eye. White: never visited.",
            plots.free_energy_map(analysis.phi_psi_map, "φ (degrees)", "ψ (degrees)", degrees=True),
        )
    )
    phi_psi = [np.stack(pair, axis=1) for pair in zip(analysis.torsions["phi"], analysis.torsions["psi"], strict=True)]
    for i, name in enumerate(analysis.cv_fields):
        figures.append(
            (
                f"What {name} has learned",
                "The mean of the variable at every place of the Ramachandran plane. A good slow variable has one value "
                "in each basin and changes smoothly between them.",
                plots.ramachandran_cv(phi_psi, [cv[:, i] for cv in analysis.frame_cv], name),
            )
        )
    return figures


def symbol(name):
    """A variable as it is written in text: φ for phi, χ1 for chi1."""
    letters = name.rstrip("0123456789")
    return _GREEK.get(letters, letters) + name[len(letters) :]


def _axis(name, is_torsion):
    return f"{symbol(name)} (degrees)" if is_torsion else f"{name} (no unit)"


def _states(analysis, name):
    """What `plots.free_energy_profile` draws of the states, where they are along this variable."""
    if name != analysis.crossing_variable:
        return {}
    states = analysis.states
    return {"cores": (states.core_a, states.core_b), "dividing": states.dividing}


def _states_caption(analysis, name):
    if name != analysis.crossing_variable:
        return ""
    lines = "The dashed lines part" if len(analysis.states.dividing) > 1 else "The dashed line parts"
    return f" Shaded: the cores A and B. {lines} the states that ΔF is between."


def _bias_panels(walkers):
    """(label, values) of what the columns hold; quantities that the walkers share are drawn once."""
    panels = []
    for suffix, label, shared in (
        (".bias", "bias V (kJ/mol)", False),
        (".rct", "c(t) (kJ/mol)", True),
        (".nker", "kernels", True),
        (".neff", "effective samples", True),
    ):
        for name in walkers[0]:
            if name.endswith(suffix):
                panels.append((label, [walker[name] for walker in (walkers[:1] if shared else walkers)]))
    return panels
