"""Pictures of a study of structures: accuracies with and without tokens, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from openmm_geomgnn.analysis.canvas import colour_bar, finish, new_figure, value_map
from openmm_geomgnn.analysis.plots import BLUE, GREY, ORANGE
from openmm_geomgnn.cv.score_rows import RANDOM
from openmm_geomgnn.studies.structures.study import NO_TOKENS
from openmm_geomgnn.studies.structures.tables import Accuracy, AccuracyRow, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {NO_TOKENS: BLUE, RANDOM: GREY}  # what is not here are tokens of the encoder
_ASIDE = 0.2  # between kinds of tokens
_MOST_NUMBERS = 12  # classes up to which a map has its values written into it


def standard_figures(
    rows: Sequence[AccuracyRow], chances: Mapping[str, float], classes: Sequence[str], encoder: str
) -> Iterator[tuple[str, str, str, Figure]]:
    """All pictures for which there are data: (name of its file, title, caption, Figure)."""
    found = summarise(rows)
    if not found:
        return
    yield (
        "accuracy.png",
        "Accuracy, with and without tokens",
        "Share of the test structures whose class is found: means over seeds with standard errors; small dots are single "
        "seeds. The dashed line is what naming the commonest class gives. The seeds share the test structures, whose number "
        "is the larger part of the error of a single accuracy.",
        accuracy_figure(found, chances),
    )
    for part in chances:
        pair = baseline_and_best(found, part, encoder)
        maps = [(_title(one), values) for one in pair if (values := _shares(rows, one)) is not None]
        if maps:
            yield (
                "confusion.png" if len(chances) == 1 else f"confusion-{part}.png",
                "Which classes are taken for which" + ("" if len(chances) == 1 else f", {part}"),
                "Percent of the test structures of each class (a row) that are given which (columns), over all seeds: the "
                f"best network without tokens of the encoder, and the best with those of {encoder}.",
                confusion_figure(maps, classes),
            )


def accuracy_figure(found: Sequence[Accuracy], chances: Mapping[str, float]) -> Figure:
    """Plot accuracies in percent by network, a panel for each part, a colour for each kind of tokens."""
    networks = list(dict.fromkeys(one.network for one in found))
    kinds = list(dict.fromkeys(one.tokens for one in found))
    size = (2.6 + (0.8 + 0.9 * len(networks)) * len(chances), 3.8)
    figure, panels = new_figure(1, len(chances), size, sharey=True)
    for axes, (part, chance) in zip(panels, chances.items(), strict=True):
        for kind in kinds:
            here = [one for one in found if (one.tokens, one.part) == (kind, part)]
            aside, colour = _ASIDE * (kinds.index(kind) - (len(kinds) - 1) / 2), _COLOURS.get(kind, ORANGE)
            places = np.array([networks.index(one.network) + aside for one in here])
            means, errors = [100 * one.mean for one in here], [100 * (one.error or 0.0) for one in here]
            label = "no tokens" if kind == NO_TOKENS else kind
            axes.errorbar(places, means, errors, fmt="o", color=colour, ms=7, capsize=4, label=label)
            for place, one in zip(places + 0.3 * _ASIDE, here, strict=True):
                axes.plot([place] * len(one.values), 100 * np.array(one.values), ".", ms=4, color=colour, alpha=0.6)
        axes.axhline(100 * chance, color="black", lw=1, ls="--", zorder=1)
        axes.set_xticks(range(len(networks)), networks)
        axes.set_xlim(-0.5, len(networks) - 0.5)
        axes.set_ylim(0, 104)
        axes.set_title(part, fontsize=11)
    panels[0].set_ylabel("accuracy (percent)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure = finish(figure)
    figure.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False)
    return figure


def baseline_and_best(found: Sequence[Accuracy], part: str, encoder: str) -> list[Accuracy]:
    """The best network without the encoder's tokens (without any or, where all have some, with random weights), and with.

    Either is left out where there is none.
    """
    pair = []
    for kinds in ((NO_TOKENS, RANDOM), (encoder,)):
        for kind in kinds:
            here = [one for one in found if (one.tokens, one.part) == (kind, part)]
            if here:
                pair.append(max(here, key=lambda one: one.mean))
                break
    return pair


def confusion_figure(maps: Sequence[tuple[str, np.ndarray]], classes: Sequence[str]) -> Figure:
    """Plot maps (title, (classes, classes) percent) side by side."""
    side = 1.6 + 0.45 * max(len(classes), 4)
    figure, panels = new_figure(1, len(maps), (1.0 + side * len(maps), side), sharey=True)
    written = ".0f" if len(classes) <= _MOST_NUMBERS else ""
    for axes, (title, values) in zip(panels, maps, strict=True):
        mesh = value_map(axes, values, classes, classes, (0, 100), written)
        axes.tick_params(axis="x", labelrotation=90)
        axes.set_xlabel("given")
        axes.set_title(title, fontsize=11)
    panels[0].set_ylabel("true class")
    colour_bar(figure, mesh, list(panels), "percent")
    return finish(figure, grid=False)


def _title(one: Accuracy) -> str:
    tokens = "no tokens" if one.tokens == NO_TOKENS else one.tokens
    return f"{one.network}, {tokens}: {100 * one.mean:.1f} %"


def _shares(rows: Sequence[AccuracyRow], one: Accuracy) -> np.ndarray | None:
    """Percent (classes, classes) of each class, over all seeds; nan for a class without structures, None if unknown."""
    mine = [row.confusion for row in rows if (row.network, row.tokens) == (one.network, one.tokens) and row.accuracy]
    if not all(one.part in confusion for confusion in mine):
        return None
    counts = np.sum([confusion[one.part] for confusion in mine], axis=0).astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    return 100 * np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
