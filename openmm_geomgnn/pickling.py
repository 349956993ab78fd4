"""Stable names for the objects that OpenMM pickles into XML.

OpenMM writes the Python object behind a force into its XML with `pickle`, which refers to classes by module. The classes
below are pickled as a call of `restore` with a fixed name instead, so their modules may move and old XML can still be read.
The location of this module, and the names in `CLASSES`, must therefore never change.
"""

import copyreg
import importlib
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from openmm_geomgnn.errors import GeomGNNError

T = TypeVar("T", bound=type)

# name in the pickle: where the class is now
CLASSES = {
    "PythonForce callback": "openmm_geomgnn.force.backends.python_force:Callback",
    "PythonTorchForce callback": "openmm_geomgnn.force.backends.python_torch_force:Callback",
    "evaluation": "openmm_geomgnn.force.evaluation:Evaluation",
    "source": "openmm_geomgnn.force.evaluation:Source",
    "molecule": "openmm_geomgnn.representation.periodic:SelectedMolecule",
    "molecule unwrapper": "openmm_geomgnn.representation.periodic:MoleculeUnwrapper",
    "atom matcher": "openmm_geomgnn.representation.matching:AtomMatcher",
    "matched residue": "openmm_geomgnn.representation.matching:MatchedResidue",
    "OPES": "openmm_geomgnn.sampling.opes.method:OPES",
}


def pickled_as(name: str) -> Callable[[T], T]:
    """Class decorator: pickle instances under a name in `CLASSES`. Subclasses are pickled by their module, as usual."""

    def register(cls: T) -> T:
        if CLASSES[name] != f"{cls.__module__}:{cls.__qualname__}":
            raise TypeError(f"{cls.__module__}:{cls.__qualname__} is pickled as '{name}', but CLASSES has {CLASSES[name]}.")
        copyreg.pickle(cls, lambda instance: (restore, (name, instance.__getstate__())))
        return cls

    return register


def restore(name: str, state: Any) -> Any:
    """The object of a class in `CLASSES` with this state, as `__getstate__` gave it.

    An exception would crash OpenMM while it reads XML, so an object that cannot be restored is replaced by an
    `Unreadable`, which raises at the first evaluation.
    """
    try:
        module, _, attribute = CLASSES[name].partition(":")
        cls = getattr(importlib.import_module(module), attribute)
        instance = cls.__new__(cls)
        if hasattr(instance, "__setstate__"):
            instance.__setstate__(state)
        else:
            instance.__dict__.update(state)
    except Exception as error:
        return Unreadable(f"its {name} cannot be restored here ({type(error).__name__}: {error})")
    return instance


class Unreadable:
    """Stands for an object that could not be restored from a pickle; using it raises a GeomGNNError that says why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def _refuse(self) -> NoReturn:
        raise GeomGNNError(
            f"This force was written by another version of openmm-geomgnn: {self._reason}. Make the force again with "
            "GeomGNNCV, or read it with the version that wrote it."
        )

    def __call__(self, *arguments: object) -> NoReturn:
        """Raise the GeomGNNError: OpenMM evaluates the force."""
        self._refuse()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):  # what copy and pickle ask for
            raise AttributeError(name)
        self._refuse()
