"""How every picture looks: a Figure of matplotlib without pyplot, its frame and its colour bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(rows: int, columns: int, size: Any, **settings: Any) -> tuple[Figure, Any]:
    """A figure with white ground and its axes, row by row; size: width and height in inches.

    Raises GeomGNNError if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GeomGNNError(
            'Pictures need matplotlib, which is not installed. Run: pip install "openmm-geomgnn[report]"'
        ) from error
    figure = Figure(figsize=size, dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **settings).ravel()


def finish(figure: Figure, grid: bool = True) -> Figure:
    """Give all axes of a figure the same quiet frame, size of text and grid."""
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            continue
        axes.tick_params(labelsize=10, color="#9ca3af", labelcolor="#374151")
        axes.xaxis.label.set_fontsize(11)
        axes.yaxis.label.set_fontsize(11)
        for side, spine in axes.spines.items():
            spine.set_color("#9ca3af")
            spine.set_visible(side in ("left", "bottom"))
        if grid:
            axes.grid(color="#e5e7eb", lw=0.8)
            axes.set_axisbelow(True)
    return figure


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, under its name once it is whole; the same data give the same file."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def colour_bar(figure: Figure, mesh: Any, axes: Any, label: str) -> None:
    """Add a colour bar for a mesh beside its axes."""
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, shrink=0.9)
    bar.set_label(label, fontsize=11)
    bar.ax.tick_params(labelsize=10)
    bar.outline.set_visible(False)


def value_map(
    axes: Any,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    ends: tuple[float, float],
    written: str = "",
    **settings: Any,
) -> Any:
    """Draw values (rows, columns) as colours between two ends, each written into its cell in a format such as ".2f".

    Values that are nan are left white; settings are those of `imshow`. Returns the mesh.
    """
    low, high = ends
    mesh = axes.imshow(values, vmin=low, vmax=high, cmap="viridis", **settings)
    for (row, column), value in np.ndenumerate(values if written else np.zeros((0, 0))):
        if np.isfinite(value):
            colour = "black" if value > 0.5 * (low + high) else "white"
            axes.text(column, row, format(value, written), ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    return mesh
