"""Pictures of scores, as matplotlib Figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from openmm_geomgnn.analysis.canvas import colour_bar, finish, new_figure, value_map
from openmm_geomgnn.analysis.plots import ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def score_map(
    panels: Sequence[tuple[str, np.ndarray]],
    pca: Sequence[str],
    softening: Sequence[str],
    chosen: Sequence[tuple[int, int, int]] = (),
) -> Figure:
    """Plot held-out scores as maps of principal components against softening.

    panels: (title, (softening, pca) scores), nan where there is none. pca, softening: labels. chosen: numbers of the panel,
    row and column of cells to frame.
    """
    size = 1.6 + (0.9 * len(pca) + 0.8) * len(panels), 1.6 + 0.6 * len(softening)
    figure, axes = new_figure(1, len(panels), size, sharey=True)
    every = np.concatenate([scores.ravel() for _, scores in panels])
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    for number, (axis, (title, scores)) in enumerate(zip(axes, panels, strict=True)):
        ends = low, max(high, low + 1e-6)
        mesh = value_map(axis, scores, softening, pca, ends, ".3f", origin="lower", aspect="auto")
        for row, column in np.ndindex(scores.shape):
            if (number, row, column) in chosen:
                axis.plot(column, row, "s", ms=30, mfc="none", mec=ORANGE, mew=2.5)
        axis.set_xlabel("principal components")
        axis.set_title(title, fontsize=11)
    axes[0].set_ylabel("softening (ps)")
    colour_bar(figure, mesh, list(axes), "held-out VAMP-2")
    return finish(figure, grid=False)
