"""Mixers, biases and encoders of other packages, known by name.

A package announces what it brings as entry points, here in its ``pyproject.toml``:

.. code-block:: toml

    [project.entry-points."openmm_geomgnn.mixers"]
    gated = "my_package:GatedMixer"

Then ``mixer: gated`` works wherever the name of a mixer is asked for. Names of openmm-geomgnn come first: no package can
replace one of them. A package is imported when something of it is used, never to list names.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

T = TypeVar("T")

# kind -> group of entry points
GROUPS = {
    "mixer": "openmm_geomgnn.mixers",
    "bias": "openmm_geomgnn.biases",
    "encoder": "openmm_geomgnn.encoders",
}


class PluginError(GeomGNNError):
    """A name that neither openmm-geomgnn nor an installed package knows, or a package that cannot be used."""


def plugin_names(kind: str) -> list[str]:
    """Names of a kind, one of `GROUPS`, that installed packages announce, sorted; nothing is imported."""
    return sorted({entry.name for entry in entry_points(group=GROUPS[kind])})


def known_names(kind: str, ours: Mapping[str, object]) -> list[str]:
    """`ours` in their order, then the others that installed packages announce."""
    return [*ours, *(name for name in plugin_names(kind) if name not in ours)]


def find(kind: str, name: object, ours: Mapping[str, T], problem: Callable[[object], str | None]) -> T:
    """What is called `name`: one of `ours`, or what an installed package announces under this name.

    Parameters
    ----------
    kind : {"mixer", "bias", "encoder"}
        As in `GROUPS`.
    name : str
        Anything else is an error as well.
    ours : mapping
        What openmm-geomgnn itself has, by name.
    problem : callable
        Takes what a package announces, and says what is wrong with it: a clause such as "it is not a class", or None.

    Raises
    ------
    PluginError
        If the name is unknown (with the nearest known one), or its package cannot be imported, or what it announces cannot
        be used. The message names the package.
    """
    if isinstance(name, str) and name in ours:
        return ours[name]
    found = list(entry_points(group=GROUPS[kind], name=name)) if isinstance(name, str) else []
    if not found:
        known = sorted(known_names(kind, ours))
        raise PluginError(f"{kind} {name!r} is unknown.{did_you_mean(str(name), known)} Known: {', '.join(known)}.")
    packages = sorted({_package(entry) for entry in found})
    if len(packages) > 1:
        raise PluginError(f"The packages {' and '.join(packages)} both have a {kind} {name!r}: uninstall one of them.")
    try:
        announced = found[0].load()
    except Exception as error:  # whatever somebody else's module raises
        raise PluginError(
            f"The {kind} {name!r} is of the package {packages[0]}, which cannot be imported ({type(error).__name__}: "
            f"{error}). Mend that package's installation, or update it."
        ) from error
    wrong = problem(announced)
    if wrong:
        raise PluginError(
            f"The {kind} {name!r} of the package {packages[0]} cannot be used: {wrong}. Update that package, or tell its "
            "authors."
        )
    return announced


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
