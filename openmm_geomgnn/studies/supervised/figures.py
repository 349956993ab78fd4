"""Pictures of a study: the error of each way, over training-set sizes or, of one size, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from openmm_geomgnn.analysis.canvas import finish, new_figure
from openmm_geomgnn.analysis.plots import WALKER_COLOURS
from openmm_geomgnn.studies.supervised.table import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("o-", "s--", "^:", "D-.")  # of encoders


def error_figure(summaries: Sequence[Summary]) -> Figure:
    """Plot mean absolute errors, a row of panels for each target; bars are one standard deviation over seeds."""
    targets = list(dict.fromkeys(one.target for one in summaries))
    splits = list(dict.fromkeys(one.split for one in summaries))
    ways = list(dict.fromkeys(one.way for one in summaries))
    encoders = list(dict.fromkeys(one.encoder for one in summaries))
    size = (1.0 + 3.4 * len(splits), 0.6 + 2.7 * len(targets))
    figure, panels = new_figure(len(targets), len(splits), size, sharey="row")
    for number, axes in enumerate(panels):
        target, split = targets[number // len(splits)], splits[number % len(splits)]
        here = [one for one in summaries if (one.target, one.split) == (target, split)]
        one_size = len({one.size for one in here}) <= 1
        for way in ways:
            for encoder in encoders:
                points = sorted((one for one in here if (one.way, one.encoder) == (way, encoder)), key=lambda one: one.size)
                if points:
                    axes.errorbar(
                        [ways.index(way) + 0.15 * encoders.index(encoder) if one_size else one.size for one in points],
                        [one.mean for one in points],
                        [one.spread or 0.0 for one in points],
                        fmt=_STYLES[encoders.index(encoder) % len(_STYLES)],
                        color=WALKER_COLOURS[ways.index(way) % len(WALKER_COLOURS)],
                        ms=5,
                        capsize=3,
                        label=f"{encoder}, {way}" if len(encoders) > 1 else way,
                    )
        if one_size:
            axes.set_xticks(range(len(ways)), [way.replace("-", "-\n") for way in ways])
            axes.set_xlim(-0.5, len(ways) - 0.5)
            axes.set_ylim(0, 1.15 * max(one.mean + (one.spread or 0.0) for one in summaries if one.target == target))
        else:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel("training molecules")
        axes.set_title(f"{target}, {split} split", fontsize=11)
        if number % len(splits) == 0 and here:
            axes.set_ylabel(f"MAE ({here[0].unit})")
    if not all(len({one.size for one in summaries if one.target == target}) <= 1 for target in targets) or len(encoders) > 1:
        panels[0].legend(fontsize=8, frameon=False)
    return finish(figure)
