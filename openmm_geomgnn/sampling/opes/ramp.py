"""How the bias of OPES sets in: its depth follows from the number of depositions. `opes` is an `OPES` in all functions.

The first kernel is a hole as deep as the barrier, which throws the system out of its basin and heats it. With a ramp the
depth to which the bias acts grows from SHALLOWEST to the barrier while kernels are deposited. The bias of a state is a
function of that state all the same, and its force the exact gradient.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.opes.state import OPESState

SHALLOWEST = 2.0  # kT


def is_over(opes: Any, state: OPESState) -> bool:
    """Whether the bias acts to its full depth."""
    return _deposited(state) >= opes.ramp


def depth(opes: Any, state: OPESState) -> float:
    """How deep the bias of a state is where nothing was deposited, kJ/mol: at most `opes.barrier`."""
    if is_over(opes, state):
        return float(opes.barrier)
    return float(min(opes.barrier, max(SHALLOWEST * opes.kT, opes.barrier * _deposited(state) / opes.ramp)))


def log_epsilon(opes: Any, state: OPESState) -> float:
    """Logarithm of the regularisation that makes the bias of a state as deep as `depth`."""
    return float(opes.log_epsilon) if is_over(opes, state) else -depth(opes, state) / (opes.p * opes.kT)


def ramp_arrays(opes: Any) -> dict[str, np.ndarray]:
    """What a saved state says of the ramp."""
    return {"ramp": np.array(opes.ramp, dtype=np.int64)} if opes.ramp else {}


def check_ramp(opes: Any, arrays: Mapping[str, np.ndarray], state: OPESState) -> None:
    """Raise a GeomGNNError if a state was saved in the course of another ramp; one that is over makes no difference."""
    saved = int(arrays["ramp"]) if "ramp" in arrays else 0
    if saved != opes.ramp and _deposited(state) < max(saved, opes.ramp):
        raise GeomGNNError(
            f"The saved OPES state was written with ramp = {saved}, but this OPES has {opes.ramp}: continue with the same, "
            "or start afresh."
        )


def _deposited(state: OPESState) -> float:
    """Kernels of each walker; a state begins with n = 1."""
    return (state.n - 1) / state.n_walkers
