"""Pictures of over-smoothing and under-reaching, as matplotlib Figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from openmm_geomgnn.analysis.canvas import finish, new_figure
from openmm_geomgnn.analysis.plots import WALKER_COLOURS
from openmm_geomgnn.studies.depth import Depth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (11, 4.2)


def smoothing_figure(found: Sequence[Depth]) -> Figure:
    """Plot energy and effective rank by layer, a line for each encoder and conformation; dashed: random weights, mean.

    Raises GeomGNNError if matplotlib is not installed.
    """
    figure, (left, right) = new_figure(1, 2, SIZE)
    for number, one in enumerate(found):
        for axis, name in ((left, "energy"), (right, "rank")):
            own = getattr(one.smoothing, name)
            random = np.array([getattr(other, name) for other in one.random_smoothing])
            layers = np.arange(len(own))
            axis.plot(layers, own, "o-", ms=4, color=_colour(number), label=_label(one) if axis is right else None)
            if len(random):
                axis.plot(layers, random.mean(0), "--", lw=1, color=_colour(number))
    left.set_ylabel("Dirichlet energy (1: as any two atoms)")
    right.set_ylabel("effective rank")
    for axis in (left, right):
        axis.set_xlabel("layers passed")
        axis.set_ylim(bottom=0)
    return _with_legend(figure)


def reach_figure(found: Sequence[Depth]) -> Figure:
    """Plot Jacobians against messages and against distance, as `smoothing_figure` does."""
    figure, (left, right) = new_figure(1, 2, SIZE)
    for number, one in enumerate(found):
        hops, distances = one.hops(), one.distances()
        middles = [(low + high) / 2 for low, high in distances]
        for axis, places, values in ((left, list(hops), hops), (right, middles, distances)):
            pairs: Any = list(values.values())
            own = _positive([value for value, _ in pairs])
            axis.semilogy(places, own, "o-", ms=4, color=_colour(number), label=_label(one) if axis is right else None)
            if len(one.random_reach):
                random = _positive([others.mean() for _, others in pairs])
                axis.semilogy(places, random, "--", lw=1, color=_colour(number))
    left.set_xlabel("messages between two atoms")
    left.set_xticks(sorted({hop for one in found for hop in one.hops()}))
    right.set_xlabel("distance of two atoms (Å)")
    left.set_ylabel("Jacobian, of an atom's own")
    return _with_legend(figure)


def _positive(values: Sequence[float]) -> np.ndarray:
    """Without what is zero, which has no logarithm."""
    return np.array([value if value > 0 else np.nan for value in values])


def _with_legend(figure: Figure) -> Figure:
    figure = finish(figure)
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    return figure


def _colour(number: int) -> str:
    return WALKER_COLOURS[number % len(WALKER_COLOURS)]


def _label(one: Depth) -> str:
    return f"{one.encoder}\n{one.conformation}"
