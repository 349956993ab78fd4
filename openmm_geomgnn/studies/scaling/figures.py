"""Pictures of a sweep, as matplotlib Figures: losses against size with the laws, and along the axes that have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from openmm_geomgnn.analysis.canvas import finish, new_figure
from openmm_geomgnn.analysis.plots import BLUE, GREY, ORANGE
from openmm_geomgnn.studies.scaling.fits import CONSTANT, POWER, SATURATING
from openmm_geomgnn.studies.scaling.table import LOSSES, SIZES, AxisLaw, Row, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = {CONSTANT.name: (GREY, ":"), POWER.name: (ORANGE, "--"), SATURATING.name: (BLUE, "-")}
_LABELS = {"aspect": "width / depth", "cutoff": "cutoff (Å)", "source": "source"}


def law_figure(rows: Sequence[Row], laws: Sequence[AxisLaw], loss: str) -> Figure:
    """Plot one loss against size, a panel for each axis of `laws`, with all laws; the preferred one is drawn thicker."""
    chosen = [law for law in laws if law.loss == loss]
    figure, panels = new_figure(1, len(chosen), (1.2 + 3.6 * len(chosen), 3.6), sharey=True)
    for axes, law in zip(panels, chosen, strict=True):
        sizes, values = points(rows, law.axis, loss)
        axes.plot(sizes, values, "o", color="black", ms=5)
        if law.comparison is not None:
            x = np.geomspace(min(sizes), max(sizes), 100)
            for fit in law.comparison.fits:
                colour, style = _LINES[fit.law.name]
                preferred = fit.law.name == law.comparison.preferred
                axes.plot(x, fit.predict(x), style, color=colour, lw=2.4 if preferred else 1.2, label=fit.law.name)
            axes.legend(fontsize=9, frameon=False)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"{law.axis}", fontsize=11)
        axes.set_xlabel(f"{SIZES[law.axis]}")
        _plain(axes.yaxis)
    panels[0].set_ylabel(f"validation loss, {LOSSES[loss]}")
    return finish(figure)


def axes_figure(rows: Sequence[Row]) -> Figure | None:
    """Plot both losses along aspect ratio, cutoff and source, as far as the sweep has them; None if it has none."""
    trained = [row for row in rows if row.trained]
    present = [axis for axis in _LABELS if any(axis in row.network.axes for row in trained)]
    if not present:
        return None
    figure, panels = new_figure(1, len(present), (1.2 + 3.6 * len(present), 3.6), sharey=True)
    for axes, axis in zip(panels, present, strict=True):
        chosen = [row for row in trained if axis in row.network.axes]
        for loss, colour in zip(LOSSES, (GREY, BLUE), strict=True):
            x: list[Any] = [row.network.axes[axis] for row in chosen]
            axes.plot(x, [getattr(row.result, loss) for row in chosen], "o", color=colour, ms=5, label=LOSSES[loss])
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
