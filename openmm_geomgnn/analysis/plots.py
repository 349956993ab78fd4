"""Pictures of trajectories, free energies and training, as matplotlib Figures.

Every function returns a `matplotlib.figure.Figure` and touches no global state of matplotlib (no pyplot, no rcParams),
so it can be called from threads and notebooks alike. Angles come in radians and are shown in degrees; energies are
in kJ/mol, times in ps. Colours are readable with every kind of colour blindness (Okabe & Ito; cividis, viridis).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from openmm_geomgnn.analysis.canvas import colour_bar, finish, new_figure
from openmm_geomgnn.analysis.smoothing import smoothed
from openmm_geomgnn.errors import GeomGNNError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from openmm_geomgnn.analysis.free_energy import FreeEnergy
    from openmm_geomgnn.analysis.intervals import Interval

BLUE, ORANGE, GREEN, PINK, AMBER, SKY, GREY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6b7280",
)  # fmt: skip
WALKER_COLOURS = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY)
MARKERS = "osD^vP"
_MOST_PANELS = 6


def free_energy_profile(
    profile: FreeEnergy,
    xlabel: str,
    *,
    degrees: bool = False,
    others: Sequence[tuple[str, FreeEnergy]] = (),
    label: str | None = None,
    ylabel: str = "free energy F (kJ/mol)",
    cores: Sequence[Interval] | None = None,
    dividing: Sequence[float] = (),
) -> Figure:
    """Plot F of one variable with a band of one standard error. profile: FreeEnergy of one dimension.

    others: further (label, FreeEnergy) to compare with. cores: two intervals to shade, A and B. dividing: places of lines
    between the states. Bins without an error bar are joined by a dotted line.
    """
    figure, (axes,) = new_figure(1, 1, (6.4, 4.0))
    for number, (name, curve) in enumerate([(label, profile), *others]):
        colour = WALKER_COLOURS[number % len(WALKER_COLOURS)]
        x = np.degrees(curve.centres[0]) if degrees else curve.centres[0]
        known = np.isfinite(curve.error)
        axes.fill_between(x, curve.values - curve.error, curve.values + curve.error, color=colour, alpha=0.22, lw=0)
        axes.plot(x, curve.values, ":", color=colour, lw=1.4)
        axes.plot(x, np.where(known, curve.values, np.nan), "-", color=colour, lw=2, label=name)
    for point in dividing:
        axes.axvline(np.degrees(point) if degrees else point, color=GREY, ls="--", lw=1.2)
    top = np.nanmax([np.nanmax(curve.values) for _, curve in [(label, profile), *others]])
    axes.set_ylim(-0.04 * max(top, 1), 1.08 * max(top, 1))
    if degrees:
        _degree_axis(axes.xaxis, axes.set_xlim)
    else:
        axes.set_xlim(profile.edges[0][0], profile.edges[0][-1])
    _shade_cores(axes, cores, degrees, "x")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if label or others:
        _legend(axes)
    return finish(figure)


def free_energy_map(
    energies: FreeEnergy, xlabel: str, ylabel: str, *, degrees: bool | Sequence[bool] = False, highest: float | None = None
) -> Figure:
    """Plot F of two variables as a filled contour map. energies: FreeEnergy of two dimensions.

    degrees: whether both variables, or each of the pair, are angles in radians, shown in degrees and joined across the
    period. highest: end of the colour scale, kJ/mol; by default the 98th percentile of the visited bins. For display, bins
    are averaged with their visited neighbours, so that isolated bins vanish and isolated holes close (unless there is
    nothing else); regions that were not visited are white.
    """
    angles = (degrees, degrees) if isinstance(degrees, bool) else tuple(degrees)
    figure, (axes,) = new_figure(1, 1, (6.0, 4.8))
    values = smoothed(energies.values, angles).T
    if not np.isfinite(values).any():
        values = energies.values.T
    centres = list(energies.centres)
    for axis in np.flatnonzero(angles):
        # one bin more on each side lets the contours run on to the edge of the period
        values = np.pad(values, [(1, 1) if a != axis else (0, 0) for a in (0, 1)], mode="wrap")
        c = np.degrees(centres[axis])
        centres[axis] = np.concatenate([[c[-1] - 360], c, [c[0] + 360]])
    x, y = centres
    if highest is None:
        highest = float(np.nanpercentile(values, 98))
    step = _round_step(max(highest, 1.0) / 10)
    levels = np.arange(0, max(highest, 1.0) + step, step)
    filled = axes.contourf(x, y, np.minimum(values, levels[-1]), levels=levels, cmap="viridis")
    axes.contour(x, y, values, levels=levels[1:-1], colors="white", linewidths=0.6, alpha=0.7)
    colour_bar(figure, filled, axes, "free energy F (kJ/mol)")
    for axis, limits, is_angle in zip((axes.xaxis, axes.yaxis), (axes.set_xlim, axes.set_ylim), angles, strict=True):
        if is_angle:
            _degree_axis(axis, limits)
    if all(angles):
        axes.set_aspect("equal")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return finish(figure, grid=False)


def mean_over_angles(
    angles: Any,
    cv: Any,
    label: str = "CV",
    xlabel: str = "φ (degrees)",
    ylabel: str = "ψ (degrees)",
    *,
    bins: int | None = None,
) -> Figure:
    """Plot the mean of the CV in bins of two angles.

    angles: (T, 2) in radians, or a list of them; cv: (T,), or a list. nan values of the CV are left out. bins: number along
    each axis; by default 24 to 60, growing with the number of frames.
    """
    torsions = np.degrees(_joined(angles))
    cv = _joined(cv)
    if len(torsions) != len(cv):
        raise GeomGNNError(f"There are {len(torsions)} frames of torsions but {len(cv)} of the CV. Give as many.")
    torsions, cv = torsions[np.isfinite(cv)], cv[np.isfinite(cv)]
    edges = np.linspace(-180, 180, (bins or int(np.clip(np.sqrt(len(cv) / 2), 24, 60))) + 1)
    wrapped = np.mod(torsions + 180, 360) - 180
    x, y = wrapped.T
    count, _, _ = np.histogram2d(x, y, bins=[edges, edges])
    total, _, _ = np.histogram2d(x, y, bins=[edges, edges], weights=cv)
    with np.errstate(invalid="ignore"):
        mean = total / count
    figure, (axes,) = new_figure(1, 1, (6.0, 4.8))
    mesh = axes.pcolormesh(edges, edges, mean.T, cmap="cividis", rasterized=True)
    colour_bar(figure, mesh, axes, f"mean {label}")
    _degree_axis(axes.xaxis, axes.set_xlim)
    _degree_axis(axes.yaxis, axes.set_ylim)
    axes.set_aspect("equal")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return finish(figure)


def trajectories(columns: Any, ylabel: str, *, degrees: bool = False, cores: Sequence[Interval] | None = None) -> Figure:
    """Plot one variable over time: one column of panels per kind of run, one panel per walker.

    columns: list of (title, times, values) with lists over walkers of (T,) arrays, e.g. a biased and an unbiased set.
    cores: two intervals to shade, A and B. At most six walkers of each set are drawn.
    """
    shown = [(title, list(times)[:_MOST_PANELS], list(values)[:_MOST_PANELS]) for title, times, values in columns]
    rows = max(len(values) for _, _, values in shown)
    height = {1: 3.2, 2: 2.2}.get(rows, 1.6)
    width = 7.6 if len(shown) == 1 else 4.6 * len(shown) + 1.0
    figure, panels = new_figure(rows, len(shown), (width, height * rows + 0.8), sharey=True)
    panels = np.reshape(panels, (rows, len(shown)))
    scale = 180 / np.pi if degrees else 1.0
    span = [np.nanmin([np.nanmin(v) for _, _, vs in shown for v in vs]) * scale]
    span.append(np.nanmax([np.nanmax(v) for _, _, vs in shown for v in vs]) * scale)
    for c, (title, times, values) in enumerate(shown):
        total = len(columns[c][2])
        more = f" (first {_MOST_PANELS} of {total})" if total > _MOST_PANELS else ""
        panels[0, c].set_title(title + more, fontsize=12)
        for r in range(rows):
            axes = panels[r, c]
            if r >= len(values):
                axes.set_visible(False)
                continue
            size = float(np.clip(6000 / max(len(values[r]), 1), 0.8, 6))
            colour = WALKER_COLOURS[r % len(WALKER_COLOURS)]
            axes.scatter(times[r], values[r] * scale, s=size, color=colour, lw=0, rasterized=True)
            axes.set_xlim(0 if np.min(times[r]) >= 0 else np.min(times[r]), np.max(times[r]))
            if degrees:
                _degree_axis(axes.yaxis, axes.set_ylim)
            else:
                margin = 0.05 * max(span[1] - span[0], 1e-6)
                axes.set_ylim(span[0] - margin, span[1] + margin)
            _shade_cores(axes, cores, degrees, "y")
            if c == 0:
                axes.set_ylabel(ylabel)
            axes.tick_params(labelbottom=r == len(values) - 1)
    figure.supxlabel("time (ps)", fontsize=11)
    return finish(figure)


def temperature_trajectory(
    times: Sequence[np.ndarray], temperatures: Sequence[np.ndarray], target: float, hot: float | None = None
) -> Figure:
    """Plot the kinetic temperature over time, with the running mean of each walker, the target and the hot threshold.

    times, temperatures: lists over walkers of (T,) arrays, ps and K.
    """
    figure, (axes,) = new_figure(1, 1, (7.6, 3.6))
    for number, (t, values) in enumerate(zip(times, temperatures, strict=True)):
        colour = WALKER_COLOURS[number % len(WALKER_COLOURS)]
        axes.scatter(t, values, s=2, color=colour, alpha=0.4, lw=0, rasterized=True)
    for number, (t, values) in enumerate(zip(times, temperatures, strict=True)):
        colour = WALKER_COLOURS[number % len(WALKER_COLOURS)]
        label = f"walker {number}" if number < _MOST_PANELS else None
        axes.plot(t, _running_mean(values, max(1, len(values) // 50)), color=colour, lw=2, label=label)
    axes.axhline(target, color="black", ls="--", lw=1.2, label=f"target {target:.0f} K")
    if hot is not None:
        axes.axhline(hot, color=ORANGE, ls=":", lw=1.6, label=f"hot above {hot:.0f} K")
    axes.set_xlabel("time (ps)")
    axes.set_ylabel("temperature (K)")
    axes.set_xlim(0, max(np.max(t) for t in times))
    figure.legend(loc="outside upper center", fontsize=10, frameon=False, ncols=4)
    return finish(figure)


def bias_diagnostics(times: Sequence[np.ndarray], panels: Any) -> Figure:
    """Plot how the bias fills in: one panel per quantity over time.

    times: list over walkers of (T,) in ps. panels: list of (label with unit, list over walkers of (T,)); a quantity
    that all walkers share may be given once.
    """
    figure, axes = new_figure((len(panels) + 1) // 2, min(2, len(panels)), (8.6, 2.7 * ((len(panels) + 1) // 2) + 0.3))
    for axis, (label, values) in zip(axes, panels, strict=False):
        for number, value in enumerate(values):
            colour = WALKER_COLOURS[number % len(WALKER_COLOURS)]
            if len(values) > 1:
                axis.scatter(times[number], value, s=2, color=colour, lw=0, rasterized=True)
            else:
                axis.plot(times[number], value, color=colour, lw=1.8)
        axis.set_ylabel(label)
        axis.set_xlabel("time (ps)")
        axis.set_xlim(left=0)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return finish(figure)


def delta_F_convergence(running: np.ndarray, start: float = 0.0) -> Figure:
    """Plot the free-energy difference of the data up to each time, with one standard error.

    running: (n, 3) rows of time (ps), value and error (kJ/mol), as `Analysis.running_delta_F`. start: ps discarded.
    """
    figure, (axes,) = new_figure(1, 1, (6.4, 3.6))
    time, value, error = np.asarray(running, dtype=np.float64).T
    axes.fill_between(time, value - error, value + error, color=BLUE, alpha=0.22, lw=0)
    axes.plot(time, value, "o-", color=BLUE, lw=1.8, ms=4)
    if start > 0:
        axes.axvspan(0, start, color=GREY, alpha=0.15, lw=0)
        axes.text(start / 2, 0.5, "discarded", rotation=90, transform=axes.get_xaxis_transform(), ha="center",
                  va="center", color=GREY, fontsize=10)  # fmt: skip
    axes.set_xlim(0, np.max(time))
    axes.set_xlabel("time used, up to (ps)")
    axes.set_ylabel("ΔF = F(B) − F(A) (kJ/mol)")
    return finish(figure)


def vamp_spectrum(singular_values: np.ndarray, lagtime: float, *, validation: np.ndarray | None = None) -> Figure:
    """Plot singular values s of a Koopman model and the timescales -lagtime/ln(s). lagtime in ps.

    validation: singular values on held-out data, for comparison.
    """
    singular_values = np.asarray(singular_values, dtype=np.float64)
    figure, (left, right) = new_figure(1, 2, (8.6, 3.4))
    number = np.arange(1, len(singular_values) + 1)
    left.bar(number - (0.2 if validation is not None else 0), singular_values, 0.4, color=BLUE, label="training")
    if validation is not None:
        left.bar(number[: len(validation)] + 0.2, validation, 0.4, color=AMBER, label="held out")
        _legend(left)
    left.set_ylim(0, 1.02)
    left.set_xlabel("component")
    left.set_ylabel("singular value")
    left.set_xticks(number[:: max(1, len(number) // 10)])
    inside = (singular_values > 0) & (singular_values < 1)
    right.semilogy(number[inside], -lagtime / np.log(singular_values[inside]), "o", color=BLUE, ms=7)
    right.axhline(lagtime, color=GREY, ls="--", lw=1.2)
    right.text(0.98, lagtime, "lag time ", transform=right.get_yaxis_transform(), ha="right", va="bottom", color=GREY)
    _plain_log_axis(right.yaxis)
    right.set_xlabel("component")
    right.set_ylabel("timescale (ps)")
    right.set_xlim(left.get_xlim())
    right.set_xticks(number[:: max(1, len(number) // 10)])
    return finish(figure)


def training_history(
    history: dict[str, Any], ylabel: str = "VAMP-2 score", xlabel: str = "epoch", best: int | None = None
) -> Figure:
    """Plot curves over the epochs of a training. history: dict from label to (epochs,) values; best: epoch kept."""
    figure, (axes,) = new_figure(1, 1, (6.4, 3.6))
    for number, (label, values) in enumerate(history.items()):
        colour = WALKER_COLOURS[number % len(WALKER_COLOURS)]
        axes.plot(np.arange(1, len(values) + 1), values, color=colour, lw=2, label=label,
                  marker="o" if len(values) < 30 else None, ms=4)  # fmt: skip
    if best is not None:
        axes.axvline(best, color=GREY, ls="--", lw=1.2, label="kept")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    _legend(axes)
    return finish(figure)


def _shade_cores(axes: Any, cores: Sequence[Interval] | None, degrees: Any, axis: Any) -> None:
    """Shade stripes with the letters A and B across an axis, "x" or "y", whose limits are set.

    A core across 180 degrees is drawn in two parts.
    """
    limits, span = (axes.get_xlim(), axes.axvspan) if axis == "x" else (axes.get_ylim(), axes.axhspan)
    for letter, core, colour in zip("AB", cores or (), (SKY, AMBER), strict=False):
        low, high = np.degrees(core) if degrees else core
        parts = np.clip([(low, high)] if low < high else [(low, 180.0), (-180.0, high)], *limits)
        for part in parts:
            span(*part, color=colour, alpha=0.16, lw=0)
        largest = max(parts, key=np.ptp)
        if np.ptp(largest) == 0:
            continue
        if axis == "x":
            place, transform, align = (largest.mean(), 0.97), axes.get_xaxis_transform(), {"ha": "center", "va": "top"}
        else:
            place, transform, align = (0.99, largest.mean()), axes.get_yaxis_transform(), {"ha": "right", "va": "center"}
        axes.text(*place, letter, transform=transform, color=GREY, fontsize=10, weight="bold", **align)


def _degree_axis(axis: Any, set_limits: Any) -> None:
    set_limits(-180, 180)
    axis.set_ticks([-180, -90, 0, 90, 180])


def _legend(axes: Any, columns: int = 1) -> None:
    axes.legend(fontsize=10, frameon=True, framealpha=0.9, edgecolor="none", ncols=columns)


def _plain_log_axis(axis: Any) -> None:
    """Set ticks 1, 2, 5, 10, ... in plain numbers on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9)))


def _running_mean(values: np.ndarray, half_width: int) -> np.ndarray:
    """Mean over a window of 2*half_width + 1 rows, shorter at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half_width, 0)
    high = np.minimum(np.arange(len(values)) + half_width + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _joined(arrays: Any) -> np.ndarray:
    return np.asarray(arrays) if isinstance(arrays, np.ndarray) else np.concatenate([np.asarray(a) for a in arrays])
