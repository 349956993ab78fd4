"""Pictures of a study of transfer, as matplotlib Figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from openmm_geomgnn.analysis.canvas import finish, new_figure
from openmm_geomgnn.analysis.plots import BLUE, GREEN, GREY, ORANGE, PINK
from openmm_geomgnn.cv.score_rows import RANDOM, TORSIONS
from openmm_geomgnn.formatting import count_of
from openmm_geomgnn.studies.transfer.scoring import FITTED, LINEAR, NOTHING, TRANSFERRED, UNTRAINED, ZERO_SHOT, TransferRow
from openmm_geomgnn.studies.transfer.tables import Condition, Scores, by_molecule, conditions, data_text, mean_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {LINEAR: BLUE, FITTED: GREEN, TRANSFERRED: ORANGE, ZERO_SHOT: PINK, UNTRAINED: GREY}
SCORES, PRETRAINING = "scores.png", "pretraining.png"


def transfer_figures(rows: Sequence[TransferRow]) -> Iterator[tuple[str, str, str, Figure]]:
    """Yield (name of file, title, caption, figure)."""
    rows = [row for row in rows if row.problem is None]
    names = list(dict.fromkeys(row.key.features for row in rows))
    trained = [name for name in names if name != TORSIONS and not name.startswith(RANDOM)]
    random = [name for name in names if name.startswith(RANDOM)]
    numbers = sorted({row.key.components for row in rows})
    for k, name in enumerate(trained):
        ending = "" if k == 0 else f"-{k + 1}"
        caption = (
            "Held-out VAMP-2 less that of torsions fitted to all of the molecule, means over molecules with their standard "
            "errors. Full lines: the encoder; broken ones: random weights; dotted: torsions."
        )
        figure = _figure(rows, numbers, name, random, _above_torsions)
        yield _name(SCORES, ending), f"CVs on a molecule that was left out, {name}", caption, figure
        if random:
            caption = (
                "Held-out VAMP-2 with the encoder less the mean of networks with random weights in the same condition, "
                "means over molecules with their standard errors. Above zero, pre-training helps."
            )
            figure = _figure(rows, numbers, name, random, _above_random)
            yield _name(PRETRAINING, ending), f"What pre-training is worth, {name}", caption, figure


def _name(file: str, ending: str) -> str:
    return file.replace(".png", f"{ending}.png")


def _figure(rows: Sequence[TransferRow], numbers: Sequence[int], name: str, random: Sequence[str], lines: Any) -> Figure:
    figure, panels = new_figure(1, len(numbers), (2.4 + 3.4 * len(numbers), 3.8))
    for axes, components in zip(panels, numbers, strict=True):
        found = [one for one in conditions(rows) if one.components == components]
        amounts = sorted({one.data for one in found if one.data != NOTHING}, key=lambda data: (data is None, data or 0.0))
        for kind in dict.fromkeys((one.method, one.mixer) for one in found):
            mine = [one for one in found if (one.method, one.mixer) == kind]
            for values, label, style in lines(rows, mine, name, random):
                _line(axes, mine, amounts, values, {"color": COLOURS[kind[0]], **style}, label)
        axes.axhline(0, color="black", lw=0.8)
        axes.set_xticks(range(len(amounts)), [data_text(amount) for amount in amounts])
        axes.set_xlabel("fitted to")
        axes.set_title(count_of(components, "component"), fontsize=11)
    panels[0].set_ylabel("VAMP-2, difference")
    figure = finish(figure)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False)
    return figure


def _above_torsions(
    rows: Sequence[TransferRow], mine: Sequence[Condition], name: str, random: Sequence[str]
) -> Iterator[tuple[list[np.ndarray], str | None, dict[str, Any]]]:
    reference = by_molecule(rows, TORSIONS, Condition(LINEAR, "none", None, mine[0].components))
    yield [_less(by_molecule(rows, name, one), reference) for one in mine], mine[0].label, {"ls": "-", "marker": "o"}
    if random:
        values = [_less(mean_of([by_molecule(rows, other, one) for other in random]), reference) for one in mine]
        yield values, None, {"ls": "--", "marker": "o", "mfc": "white"}
    if mine[0].method == LINEAR:
        values = [_less(by_molecule(rows, TORSIONS, one), reference) for one in mine]
        yield values, TORSIONS, {"ls": ":", "color": "black", "marker": "."}


def _above_random(
    rows: Sequence[TransferRow], mine: Sequence[Condition], name: str, random: Sequence[str]
) -> Iterator[tuple[list[np.ndarray], str | None, dict[str, Any]]]:
    values = [
        _less(by_molecule(rows, name, one), mean_of([by_molecule(rows, other, one) for other in random])) for one in mine
    ]
    yield values, mine[0].label, {"ls": "-", "marker": "o"}


def _line(
    axes: Any,
    mine: Sequence[Condition],
    amounts: Sequence[float | None],
    values: Sequence[np.ndarray],
    style: dict[str, Any],
    label: str | None,
) -> None:
    """A line along the amounts of data; what is fitted to nothing is as good for all of them."""
    means = [part.mean() if len(part) else np.nan for part in values]
    errors = [part.std(ddof=1) / np.sqrt(len(part)) if len(part) > 1 else 0.0 for part in values]
    if mine[0].data == NOTHING:
        style = {**style, "marker": None}
        axes.plot([0, max(len(amounts) - 1, 0.5)], [means[0]] * 2, lw=1.5, label=label, **style)
        return
    places = [amounts.index(one.data) for one in mine]
    axes.errorbar(places, means, errors, lw=1.5, ms=5, capsize=2, label=label, **style)


def _less(one: Scores, other: Scores) -> np.ndarray:
    return np.array([one[name] - other[name] for name in sorted(one) if name in other])
