"""The ways of exploration, and which of them fit a molecule.

A way is a module with `why_not(molecule, settings) -> str | None`, the reason why it does not fit, `pieces(molecule,
settings) -> list[Piece]` and `make(piece, molecule) -> Made`.
"""

import importlib
from typing import Any

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.explore.base import ExploreSettings, Molecule
from openmm_geomgnn.units import did_you_mean

# name: module
WAYS = {"torsions": "torsions", "conformers": "conformers", "opes": "opes_explore", "tempering": "tempering"}
# what `auto` takes: all of the first that fit, else the others
FIRST: tuple[str, ...] = ("torsions", "conformers", "opes")
ELSE: tuple[str, ...] = ("tempering",)


def get_way(name: str) -> Any:
    """Import the module of a way. Raises GeomGNNError if there is none of this name."""
    if name not in WAYS:
        raise GeomGNNError(f"Unknown way '{name}' to explore; the choices are {', '.join(WAYS)}.{did_you_mean(name, WAYS)}")
    return importlib.import_module(f"openmm_geomgnn.sampling.explore.{WAYS[name]}")


def choose_ways(molecule: Molecule, settings: ExploreSettings) -> tuple[str, ...]:
    """The names of the ways to take.

    Raises
    ------
    GeomGNNError
        If one that is asked for, or every one, does not fit the molecule; the message says why.
    """
    if settings.ways != "auto":
        for name in settings.ways:
            reason = get_way(name).why_not(molecule, settings)
            if reason is not None:
                raise GeomGNNError(f"The way '{name}' does not explore this molecule: {reason}")
        return settings.ways
    reasons: dict[str, str | None] = {}
    for group in (FIRST, ELSE):
        reasons |= {name: get_way(name).why_not(molecule, settings) for name in group}
        fitting = tuple(name for name in group if reasons[name] is None)
        if fitting:
            return fitting
    listed = " ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise GeomGNNError(f"No way to explore this molecule fits. {listed} Give a structure of each state instead.")
