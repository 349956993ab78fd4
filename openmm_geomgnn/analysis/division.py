"""Which states a run is judged by: two that are given by cores, or, where none are, those that are found in torsions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openmm_geomgnn.analysis.found_states import Cut, FoundStates, core_arrivals
from openmm_geomgnn.analysis.states import States
from openmm_geomgnn.analysis.variables import Variable

FOUND = "found states"  # in the place of the variable that cores are along
# of a found state, below which it decides nothing: what a run says about so rare a state is not what it is made for
LEAST_POPULATION = 1e-3


@dataclass(frozen=True, eq=False)
class Division:
    """Two states, A and B, of the frames or rows of a run.

    Attributes
    ----------
    along : str
        The variable with cores, or FOUND.
    definition : dict
        Of the states, for a summary.
    members : (list, list) of (T,) ndarray of bool
        Whether frames are in A, and in B.
    states : list of (T,) ndarray of int
        The state of every frame, of all that are known.
    crossings, used : int
        Crossings between the cores of A and B, in all frames and after the start that is left out.
    changes : int
        Crossings between the cores of any two states.
    unbiased : float
        Crossings without a bias; nan where these are not known.
    """

    along: str
    definition: dict[str, Any]
    members: tuple[list[np.ndarray], list[np.ndarray]]
    states: list[np.ndarray]
    crossings: int
    used: int
    changes: int
    unbiased: float = float("nan")


def divide_by_cores(variable: Variable, states: States, used: Sequence[np.ndarray]) -> Division:
    """The division at the barriers between two cores along a variable. used: list of (T,) of bool, which frames count."""
    (core_a, core_b), (state_a, state_b) = (states.core_a, states.core_b), states.intervals
    crossings = states.crossings(variable.values)
    members = states.members(variable.values)
    return Division(
        along=variable.name,
        definition=dict(
            delta_F_definition=f"F(B) - F(A), {states.in_words(variable.name)}",
            core_A=core_a,
            core_B=core_b,
            state_A=state_a,
            state_B=state_b,
        ),
        members=members,
        states=[there.astype(int) for there in members[1]],
        crossings=crossings,
        used=states.crossings(_select(variable.values, used)),
        changes=crossings,
        unbiased=float("nan") if variable.unbiased is None else states.crossings(variable.unbiased),
    )


def divide_found(found: FoundStates, used: Sequence[np.ndarray]) -> Division:
    """The division of states that were found at the rarest crossing between them; of one state B is empty."""
    cut, definition = _cut(found), {}
    if cut.b:
        definition = dict(delta_F_definition=f"F(B) - F(A), A: {found.in_words(cut.a)}; B: {found.in_words(cut.b)}")
    later = core_arrivals(_select(found.cores, used), len(found))
    return Division(
        along=FOUND,
        definition=definition,
        members=(
            [np.isin(states, cut.a) for states in found.membership],
            [np.isin(states, cut.b) for states in found.membership],
        ),
        states=found.membership,
        crossings=cut.crossings,
        used=int(later[np.ix_(cut.a, cut.b)].sum() + later[np.ix_(cut.b, cut.a)].sum()),
        changes=int(found.crossings.sum()),
    )


def describe_found(found: FoundStates) -> list[dict[str, Any]]:
    """The states that were found, for a summary: name, population, error, frames and the group, A, B or "", of each."""
    cut = _cut(found)
    return [
        dict(
            name=state.name,
            population=state.population,
            error=state.error,
            frames=state.frames,
            group="A" if k in cut.a else "B" if k in cut.b else "",
        )
        for k, state in enumerate(found.states)
    ]


def _cut(found: FoundStates) -> Cut:
    """The rarest cut between states that count; of one state B is empty."""
    return found.rarest_cut(LEAST_POPULATION) or Cut((0,), (), 0)


def _select(values: Sequence[np.ndarray], used: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [run[there] for run, there in zip(values, used, strict=True)]
