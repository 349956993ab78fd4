"""Pre-trained geometric GNNs as live, biasable collective variables.

`Encoder` embeds conformations; `GeomGNNCV` is a learned collective variable as an OpenMM force. Both are imported when they
are first used.
"""

_HOME = {"Encoder": "openmm_geomgnn.encoder", "GeomGNNCV": "openmm_geomgnn.force"}
__all__ = ["Encoder", "GeomGNNCV"]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'openmm_geomgnn' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
