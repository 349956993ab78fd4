"""Pictures of a sweep, as matplotlib Figures: losses against size with the laws, and along the axes that have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from openmm_geomgnn.analysis.canvas import finish, new_figure
from openmm_geomgnn.analysis.plots import BLUE, GREY, MARKERS, ORANGE, WALKER_COLOURS
from openmm_geomgnn.studies.scaling.fits import CONSTANT, POWER, SATURATING
from openmm_geomgnn.studies.scaling.table import LOSSES, SIZES, AxisLaw, Row, models_of, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = {CONSTANT.name: (GREY, ":"), POWER.name: (ORANGE, "--"), SATURATING.name: (BLUE, "-")}
_LABELS = {"aspect": "width / depth", "cutoff": "cutoff (Å)", "source": "source"}


def law_figure(rows: Sequence[Row], laws: Sequence[AxisLaw], loss: str) -> Figure:
    """Plot one loss against size, a panel for each axis of `laws`, with all laws; the preferred one is drawn thicker.

    Of several architectures each has a colour, and only the law that its points prefer is drawn, or the one that is nearest.
    """
    chosen = [law for law in laws if law.loss == loss]
    names, models = list(dict.fromkeys(law.axis for law in chosen)), models_of(rows)
    figure, panels = new_figure(1, len(names), (1.2 + 3.6 * len(names), 3.6), sharey=True)
    for axes, name in zip(panels, names, strict=True):
        for law in (one for one in chosen if one.axis == name):
            sizes, values = points(rows, law.model, name, loss)
            if len(models) == 1:
                axes.plot(sizes, values, "o", color="black", ms=5)
                _plot_laws(axes, law, sizes)
                continue
            colour = WALKER_COLOURS[models.index(law.model) % len(WALKER_COLOURS)]
            axes.plot(sizes, values, "o", color=colour, ms=5, label=law.model)
            if law.comparison is not None:
                preferred = law.comparison.preferred
                best = min(law.comparison.fits, key=lambda fit: (fit.law.name != preferred, fit.aicc))
                x = np.geomspace(min(sizes), max(sizes), 100)
                axes.plot(x, best.predict(x), _LINES[best.law.name][1], color=colour, lw=2.4 if preferred else 1.2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(name, fontsize=11)
        axes.set_xlabel(SIZES[name])
        axes.legend(fontsize=9, frameon=False)
        _plain(axes.yaxis)
    panels[0].set_ylabel(f"validation loss, {LOSSES[loss]}")
    return finish(figure)


def _plot_laws(axes: Any, law: AxisLaw, sizes: Sequence[float]) -> None:
    """Draw all laws of an axis."""
    x = np.geomspace(min(sizes), max(sizes), 100)
    for fit in law.comparison.fits if law.comparison else ():
        colour, style = _LINES[fit.law.name]
        preferred = law.comparison is not None and fit.law.name == law.comparison.preferred
        axes.plot(x, fit.predict(x), style, color=colour, lw=2.4 if preferred else 1.2, label=fit.law.name)


def axes_figure(rows: Sequence[Row]) -> Figure | None:
    """Plot both losses along aspect ratio, cutoff and source, as far as the sweep has them; None if it has none."""
    trained = [row for row in rows if row.trained]
    present = [axis for axis in _LABELS if any(axis in row.network.axes for row in trained)]
    if not present:
        return None
    models = models_of(rows)
    figure, panels = new_figure(1, len(present), (1.2 + 3.6 * len(present), 3.6), sharey=True)
    for axes, axis in zip(panels, present, strict=True):
        for model, marker in zip(models, MARKERS * len(models), strict=False):
            chosen = [row for row in trained if axis in row.network.axes and row.network.model == model]
            for loss, colour in zip(LOSSES, (GREY, BLUE), strict=True):
                x: list[Any] = [row.network.axes[axis] for row in chosen]
                label = LOSSES[loss] if len(models) == 1 else f"{model}, {LOSSES[loss]}"
                axes.plot(x, [getattr(row.result, loss) for row in chosen], marker, color=colour, ms=5, label=label)
        if axis == "aspect":
            axes.set_xscale("log")
        axes.set_xlabel(_LABELS[axis])
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("validation loss")
    panels[0].legend(fontsize=9, frameon=False)
    return finish(figure)


def _plain(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, also where it spans less than a power of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
