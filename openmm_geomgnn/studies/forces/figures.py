"""Pictures of a study: errors of energies and forces by the set of the test frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from openmm_geomgnn.analysis.canvas import finish, new_figure
from openmm_geomgnn.analysis.plots import WALKER_COLOURS
from openmm_geomgnn.studies.forces.table import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = {"relative_energy": "energy without a constant", "forces": "forces"}
_STYLES = ("o-", "s--", "^:", "D-.")  # of pairs of an encoder and a number of training frames
_ASIDE = 0.06  # between points of one set


def error_figure(summaries: Sequence[Summary]) -> Figure:
    """Plot mean absolute errors, a row for each split, energies beside forces; bars are a standard deviation over seeds."""
    splits = list(dict.fromkeys(one.split for one in summaries))
    sets = list(dict.fromkeys(one.tested for one in summaries))
    ways = list(dict.fromkeys(one.way for one in summaries))
    styles = list(dict.fromkeys((one.encoder, one.size) for one in summaries))
    figure, panels = new_figure(len(splits), len(_SHOWN), (8.4, 0.6 + 3.0 * len(splits)))
    for number, axes in enumerate(panels):
        split, kind = splits[number // len(_SHOWN)], list(_SHOWN)[number % len(_SHOWN)]
        here = [one for one in summaries if (one.split, one.kind) == (split, kind)]
        for way in ways:
            for style in styles:
                points = [one for one in here if (one.way, (one.encoder, one.size)) == (way, style)]
                if points:
                    aside = _ASIDE * (ways.index(way) - (len(ways) - 1) / 2)
                    axes.errorbar(
                        [sets.index(one.tested) + aside for one in points],
                        [one.mean for one in points],
                        [one.spread or 0.0 for one in points],
                        fmt=_STYLES[styles.index(style) % len(_STYLES)],
                        color=WALKER_COLOURS[ways.index(way) % len(WALKER_COLOURS)],
                        ms=5,
                        capsize=3,
                        label=_label(way, style, styles),
                    )
        axes.set_xticks(range(len(sets)), sets)
        axes.set_xlim(-0.5, len(sets) - 0.5)
        highest = max(one.mean + (one.spread or 0.0) for one in summaries if one.kind == kind)
        axes.set_ylim(0, 1.1 * highest)
        axes.set_title(f"{_SHOWN[kind]}, {split} split", fontsize=11)
        axes.set_ylabel(f"MAE ({here[0].unit})" if here else "")
    panels[0].legend(fontsize=8, frameon=False)
    return finish(figure)


def _label(way: str, style: tuple[str, int], styles: Sequence[tuple[str, int]]) -> str:
    """Of a way; also its encoder and number of frames where these vary."""
    encoder, size = style
    parts = [way]
    if len({other for other, _ in styles}) > 1:
        parts.append(encoder)
    if len({other for _, other in styles}) > 1:
        parts.append(f"{size} frames")
    return ", ".join(parts)
