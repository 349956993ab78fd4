"""Pictures of labels from many levels of theory, as matplotlib Figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from openmm_geomgnn.analysis.canvas import finish, new_figure
from openmm_geomgnn.analysis.plots import GREY, MARKERS, WALKER_COLOURS
from openmm_geomgnn.studies.label_molecules import PROPERTIES
from openmm_geomgnn.studies.label_noise import LabelGrid, LabelRow
from openmm_geomgnn.studies.label_spread import values_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def label_figure(
    rows: Sequence[LabelRow], grid: LabelGrid, name: str, model_mae: Mapping[str, float] | None = None
) -> Figure:
    """Plot one property against the basis, a line for each functional and a panel for each molecule.

    A black line is the published label; the grey band around it is the largest of the errors `model_mae`, in eV.

    Raises GeomGNNError if matplotlib is not installed.
    """
    panels = len(grid.molecules)
    figure, axes = new_figure(1, panels, (2.2 + 3.6 * panels, 4.6))
    places = np.arange(len(grid.bases))
    for axis, molecule in zip(axes, grid.molecules, strict=True):
        values = values_of(rows, molecule.name, name)
        for number, functional in enumerate(grid.functionals):
            heights = [values.get((functional, basis), np.nan) for basis in grid.bases]
            axis.plot(places, heights, **_style(number), label=functional if axis is axes[0] else None)
        published = molecule.published.get(name)
        if published is not None:
            label = "published" if axis is axes[0] else None
            axis.axhline(published, color="black", lw=1, ls="--", zorder=1, label=label)
            if model_mae:
                error = max(model_mae.values())
                band = f"error of {max(model_mae, key=lambda model: model_mae[model])}" if axis is axes[0] else None
                axis.axhspan(published - error, published + error, color=GREY, alpha=0.45, lw=0, zorder=0, label=band)
        axis.set_xticks(places, grid.bases, rotation=60, ha="right", rotation_mode="anchor")
        axis.set_title(molecule.title, fontsize=11)
    axes[0].set_ylabel(f"{name if name in ('gap', 'dipole') else name.upper()} ({PROPERTIES[name]})")
    figure = finish(figure)
    for axis in axes:
        axis.tick_params(axis="x", labelsize=8)
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    return figure


def _style(number: int) -> dict[str, Any]:
    colour = WALKER_COLOURS[number % len(WALKER_COLOURS)]
    marker = MARKERS[number // len(WALKER_COLOURS) % len(MARKERS)]
    return {"color": colour, "marker": marker, "ms": 4, "lw": 1.3}
