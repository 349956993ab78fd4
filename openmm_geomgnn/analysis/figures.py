"""The pictures and tables of a biased run's report, from its Analysis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from openmm_geomgnn.analysis import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from openmm_geomgnn.analysis.found_states import FoundStates
    from openmm_geomgnn.analysis.intervals import Interval
    from openmm_geomgnn.analysis.pipeline import Analysis
    from openmm_geomgnn.analysis.variables import Variable

    # title, caption and picture; title and rows, the first being the head
    TitledFigure: TypeAlias = tuple[str, str, Figure]
    TitledTable: TypeAlias = tuple[str, list[Any]]

_GREEK = {"phi": "φ", "psi": "ψ", "omega": "ω", "chi": "χ"}


def standard_figures(analysis: Analysis) -> list[TitledFigure]:
    """Draw the pictures of a biased run for which it has data: a list of (title, caption, Figure)."""
    figures = []
    walkers, times = analysis.run.walkers, analysis.run.row_times
    if analysis.crossing is not None:
        figures.append(_crossings(analysis))
    if analysis.found is not None and len(analysis.found) > 1:
        figures.append(
            (
                "States over time",
                "The number of the state, as in the table of the states, in which each walker is; frames that are not well "
                "inside one are left out. Every state should be entered and left many times.",
                plots.trajectories([("biased", analysis.run.frame_times, _numbers(analysis.found))], "state"),
            )
        )
    figures += [_profile(analysis, variable) for variable in analysis.variables.values()]
    for pair in analysis.maps:
        figures += _map(analysis, pair)
    if analysis.running_delta_F is not None and np.isfinite(analysis.running_delta_F[:, 1]).any():
        figures.append(
            (
                "Has the free-energy difference settled?",
                f"The difference computed from the data up to each time: {analysis.summary['delta_F_definition']}. It "
                "should level off within its band; a drift to the end means that the run has to be longer.",
                plots.delta_F_convergence(analysis.running_delta_F, analysis.discarded),
            )
        )
    for variable in analysis.variables.values():
        if variable.biased and variable is not analysis.crossing:
            figures.append(
                (
                    f"{variable.name} over time",
                    "A useful bias drives the variable back and forth over its whole range, again and again.",
                    plots.trajectories([("biased", times, variable.values)], variable.name),
                )
            )
    if "temperature" in walkers[0]:
        temperatures = [walker["temperature"] for walker in walkers]
        figures.append(
            (
                "Temperature",
                "Dots are single values, which scatter widely in a small system; lines are running means, which have "
                "to stay at the target. A mean that rises, or many dots above the hot line, tells that the bias pumps "
                "heat into the molecule, and then crossings mean nothing. `geomgnn run` stops when the mean of the last 20 "
                "ps, or of a longer time up to 10 ns, is above the target by more than 2 % and what chance explains.",
                plots.temperature_trajectory(times, temperatures, analysis.run.temperature, analysis.run.hot_threshold),
            )
        )
    panels = _bias_panels(walkers)
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


def standard_tables(analysis: Analysis) -> list[TitledTable]:
    """Make the tables of a biased run: a list of (title, rows), the first row being the head."""
    fields = analysis.run.cv_fields
    rows = [["walker", "simulated (ps)", "mean temperature (K)", *(f"{name}: least … most" for name in fields)]]
    for number, walker in enumerate(analysis.run.walkers):
        temperature = f"{walker['temperature'].mean():.1f}" if "temperature" in walker else "not recorded"
        spans = [f"{walker[name].min():.3f} … {walker[name].max():.3f}" for name in fields]
        rows.append([str(number), f"{walker['time'][-1]:.1f}", temperature, *spans])
    return [("Walkers", rows), *_states_table(analysis)]


def _numbers(found: FoundStates) -> list[np.ndarray]:
    return [np.where(run >= 0, run + 1.0, np.nan) for run in found.cores]


def _found_table(analysis: Analysis) -> list[TitledTable]:
    """The states that were found, and how often each was entered from another."""
    rows = [["state", "torsions", "population", "frames", "arrivals", "group", "example"]]
    arrivals = analysis.found.crossings.sum(0)
    for number, state in enumerate(analysis.summary["states"], start=1):
        error = f" ± {100 * state['error']:.2g}" if np.isfinite(state["error"]) else ""
        population = f"{100 * state['population']:.3g}{error} %"
        example = state.get("example", "")
        counts = [str(state["frames"]), str(arrivals[number - 1])]
        rows.append([str(number), state["name"], population, *counts, state["group"] or "too rare to count", example])
    return [("States that were found: ΔF = F(B) − F(A) between groups of them", rows)]


def _states_table(analysis: Analysis) -> list[TitledTable]:
    """The states between which ΔF = F(B) − F(A) is the difference."""
    if analysis.found is not None:
        return _found_table(analysis)
    states, variable = analysis.states, analysis.crossing
    if variable is None:
        return []
    unit = " (degrees)" if variable.is_angle else ""
    rows = [["state", f"core along {symbol(variable.name)}{unit}", f"the whole state{unit}"]]
    for letter, *intervals in zip("AB", (states.core_a, states.core_b), states.intervals, strict=True):
        rows.append([letter, *(_interval(interval, variable) for interval in intervals)])
    return [("States: ΔF = F(B) − F(A)", rows)]


def _interval(interval: Interval, variable: Variable) -> str:
    low, high = np.degrees(interval) if variable.is_angle else interval
    if np.isinf(low):
        return f"below {high:.4g}"
    if np.isinf(high):
        return f"above {low:.4g}"
    digits = ".1f" if variable.is_angle else ".4g"
    return f"{low:{digits}} to {high:{digits}}" + (", across 180" if low > high else "")


def _crossings(analysis: Analysis) -> TitledFigure:
    variable, states, run = analysis.crossing, analysis.states, analysis.run
    columns = [("biased", run.row_times if variable.biased else run.frame_times, variable.values)]
    if variable.unbiased is not None:
        steps = [np.arange(1, len(values) + 1) * run.unbiased_frame_time for values in variable.unbiased]
        columns.append(("unbiased", steps, variable.unbiased))
    name, cores = symbol(variable.name), (states.core_a, states.core_b)
    return (
        f"{name} over time, with and without bias" if len(columns) > 1 else f"{name} over time",
        "The shaded stripes are the two cores, A and B. A crossing is counted when a walker that was in one arrives in the "
        "other; turning back half-way does not count. Each panel is one walker.",
        plots.trajectories(columns, _axis(variable), degrees=variable.is_angle, cores=cores),
    )


def _profile(analysis: Analysis, variable: Variable) -> TitledFigure:
    name = symbol(variable.name)
    if variable.biased:
        caption = (
            "The lower, the more probable without bias. The band is one standard error from a block bootstrap; "
            "where the line is dotted, a value was visited in one stretch only and its error is not known. A wide "
            "band means that the run was too short to tell."
        )
    else:
        caption = (
            "Reweighted to the unbiased ensemble, with one standard error. A test of the learned variable: "
            f"{name} itself was not biased."
        )
    drawn = {}
    if variable is analysis.crossing:
        states = analysis.states
        drawn = {"cores": (states.core_a, states.core_b), "dividing": states.dividing}
        lines = "The dashed lines part" if len(states.dividing) > 1 else "The dashed line parts"
        caption += f" Shaded: the cores A and B. {lines} the states that ΔF is between."
    profile = analysis.profiles[variable.name]
    figure = plots.free_energy_profile(profile, _axis(variable), degrees=variable.is_angle, **drawn)
    return f"Free energy along {name}", caption, figure


def _map(analysis: Analysis, pair: tuple[str, str]) -> Iterator[TitledFigure]:
    """Draw F over two variables and, if both are angles, the mean of every component of the CV."""
    x, y = (analysis.variables[name] for name in pair)
    ramachandran = pair == ("phi", "psi")
    names = f"{symbol(x.name)} and {symbol(y.name)}"
    which = "Ramachandran map" if ramachandran else "map"
    yield (
        f"Free energy over {names}",
        f"The {which} of the unbiased ensemble, lightly smoothed for the eye. White: never visited.",
        plots.free_energy_map(analysis.maps[pair], _axis(x), _axis(y), degrees=(x.is_angle, y.is_angle)),
    )
    if x.biased or y.biased or not (x.is_angle and y.is_angle):
        return
    plane, where = ("Ramachandran plane", "") if ramachandran else (f"plane of {names}", f", over {names}")
    angles = [np.stack(both, axis=1) for both in zip(x.values, y.values, strict=True)]
    for variable in analysis.variables.values():
        if variable.biased:
            values = analysis.run.at_frames(variable.values)
            yield (
                f"What {variable.name} has learned{where}",
                f"The mean of the variable at every place of the {plane}. A good slow variable has one value "
                "in each basin and changes smoothly between them.",
                plots.mean_over_angles(angles, values, variable.name, _axis(x), _axis(y)),
            )


def symbol(name: str) -> str:
    """A variable as it is written in text: φ for phi, χ1 for chi1."""
    letters = name.rstrip("0123456789")
    return _GREEK.get(letters, letters) + name[len(letters) :]


def _axis(variable: Variable) -> str:
    if variable.is_angle:
        return f"{symbol(variable.name)} (degrees)"
    return f"{symbol(variable.name)} ({variable.unit or 'no unit'})"


def _bias_panels(walkers: Sequence[dict[str, np.ndarray]]) -> list[tuple[str, Any]]:
    """Make (label, values) of the columns; quantities that the walkers share are drawn once."""
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
