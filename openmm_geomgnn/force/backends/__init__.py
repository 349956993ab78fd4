"""The backends, by which OpenMM evaluates a CV, and which of them can be used here.

A backend is a module with `why_not() -> str | None`, the reason why it cannot be used, and
`make_force(evaluation) -> openmm.Force`.
"""

import importlib
from typing import Any

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.backends.versions import installed_versions, refusal
from openmm_geomgnn.units import did_you_mean

# name of the class of the force: module
BACKENDS = {"PythonForce": "python_force", "PythonTorchForce": "python_torch_force", "TorchForce": "torch_force"}
# what `auto` tries, in this order. On a GPU PythonTorchForce would keep positions there, but according to the sources of
# OpenMM 8.6 and openmm-torch (commit b653290) PyTorch does not wait until OpenMM, in a CUDA context of its own, has written
# them; this has not been tried on a GPU, so it has to be requested.
PREFERENCE = ("PythonForce", "TorchForce", "PythonTorchForce")


def get_backend(name: str) -> Any:
    """Import the module of a backend.

    Raises
    ------
    GeomGNNError
        If there is no backend of this name.
    """
    check_backend_name(name)
    return importlib.import_module(f"openmm_geomgnn.force.backends.{BACKENDS[name]}")


def check_backend_name(name: str) -> None:
    """Raise a GeomGNNError unless there is a backend of this name."""
    if name not in BACKENDS:
        raise GeomGNNError(
            f"Unknown backend '{name}'; the choices are auto, {', '.join(BACKENDS)}.{did_you_mean(name, BACKENDS)}"
        )


def why_not(name: str) -> str | None:
    """Say why a backend cannot be used here and what to do; None if it can. A package that would crash is never imported."""
    check_backend_name(name)
    return refusal(name, installed_versions()) or get_backend(name).why_not()


def choose(name: str = "auto") -> str:
    """The name of the backend to use.

    Parameters
    ----------
    name : str
        One of `BACKENDS`, or "auto": the first of `PREFERENCE` that can be used.

    Raises
    ------
    GeomGNNError
        If there is no such backend, or it cannot be used here; the message says why and what to do.
    """
    if name != "auto":
        reason = why_not(name)
        if reason is not None:
            raise GeomGNNError(f"The backend {name} cannot be used: {reason}")
        return name
    reasons = {}
    for candidate in PREFERENCE:
        reasons[candidate] = why_not(candidate)
        if reasons[candidate] is None:
            return candidate
    raise GeomGNNError(
        "No backend can be used here. " + " ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items())
    )
