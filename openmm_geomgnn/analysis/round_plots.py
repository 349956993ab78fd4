"""Pictures of rounds of learning, as matplotlib Figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from openmm_geomgnn.analysis.canvas import finish, new_figure
from openmm_geomgnn.analysis.plots import BLUE, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def round_history(
    rounds: Sequence[int], crossings: Sequence[float], delta_f: Sequence[float], errors: Sequence[float]
) -> Figure:
    """Plot crossings per ns, and free-energy differences in kJ/mol with their errors, over the rounds."""
    figure, (left, right) = new_figure(1, 2, (8.4, 3.2))
    left.bar(rounds, crossings, color=BLUE, width=0.6)
    left.set_ylabel("crossings per ns")
    right.errorbar(rounds, delta_f, yerr=errors, fmt="o", color=ORANGE, capsize=4)
    right.set_ylabel("delta F (kJ/mol)")
    for axis in (left, right):
        axis.set_xlabel("round")
        axis.set_xticks(list(rounds))
    return finish(figure)
