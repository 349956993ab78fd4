"""Simulated tempering: one simulation moves between temperatures, by OpenMM's sampler of expanded ensembles."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from openmm import app

from openmm_geomgnn.sampling.explore.base import ExploreSettings, Made, Molecule, Piece
from openmm_geomgnn.sampling.explore.simulate import Dynamics, steps

_MOST_LEVELS = 12
_FACTOR = 2.0  # the highest temperature is at most this many times the lowest
_ATTEMPTS = 0.2  # ps between attempts to change the temperature


def why_not(molecule: Molecule, settings: ExploreSettings) -> str | None:
    """Why this way does not fit a molecule, in a sentence; None if it does."""
    if not hasattr(app, "ExpandedEnsembleSampler"):
        return "Tempering needs OpenMM 8.6 or later: pip install --upgrade 'openmm>=8.6'."
    highest, lowest = settings.highest_temperature, molecule.spec.temperature
    if highest is not None and highest <= lowest:
        return f"highest_temperature is {highest:g} K, but must be above the {lowest:g} K of the run."
    return None


def pieces(molecule: Molecule, settings: ExploreSettings) -> list[Piece]:
    """One piece that visits all temperatures."""
    levels = temperatures(molecule, settings.highest_temperature)
    shared = {"length": settings.length, "frame_interval": settings.frame_interval}
    return [Piece("tempering", "tempering", shared | {"temperatures": levels})]


def make(piece: Piece, molecule: Molecule) -> Made:
    """Run a piece. Its frames are of one temperature each, and no trajectory of any of them."""
    spec, levels = molecule.spec, piece.settings["temperatures"]
    interval, attempts = (steps(time, spec) for time in (piece.settings["frame_interval"], _ATTEMPTS))
    dynamics = Dynamics(molecule, [], interval)
    visited: list[float] = []
    with _seeded(spec.seed):
        sampler = app.ExpandedEnsembleSampler([{"temperature": level} for level in levels], dynamics.simulation, attempts)
        trouble = dynamics.advance(
            steps(piece.settings["length"], spec),
            interval,
            lambda: None,
            lambda: visited.append(levels[sampler.currentStateIndex]),
        )
    notes = [] if trouble is None else [trouble]
    if visited and max(visited) < levels[-1]:
        notes.append(f"It reached {max(visited):.0f} K of {levels[-1]:.0f} K: use a longer length.")
    positions, boxes = dynamics.kept
    # as if all were of the lowest temperature
    mean = levels[0] * float(np.mean(np.divide(dynamics.temperatures, visited))) if visited else float("nan")
    return Made(positions, boxes, None, None, np.array(visited), mean, tuple(notes))


def temperatures(molecule: Molecule, highest: float | None = None) -> list[float]:
    """The temperatures in K, from that of the run on.

    The distance between neighbours is one at which they overlap, T*sqrt(2/degrees of freedom) by the canonical fluctuation
    of the energy; so without `highest`, it is the highest that twelve of them reach, and at most twice the lowest.
    """
    spacing = math.sqrt(2 / molecule.degrees_of_freedom)
    lowest = molecule.spec.temperature
    reach = min(math.log(_FACTOR), (_MOST_LEVELS - 1) * spacing) if highest is None else math.log(highest / lowest)
    count = max(2, math.ceil(reach / spacing - 1e-9) + 1)
    return [round(lowest * math.exp(reach * k / (count - 1)), 3) for k in range(count)]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's random numbers, which OpenMM's samplers use, and put them back."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
