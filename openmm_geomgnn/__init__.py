"""Pre-trained geometric GNNs as live, biasable collective variables.

`Encoder` embeds conformations; `GeomGNNCV` is a learned collective variable as an OpenMM force. Both are imported when they
are first used.
"""

from openmm_geomgnn._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {"Encoder": "openmm_geomgnn.representation.encoder", "GeomGNNCV": "openmm_geomgnn.force.geomgnncv"},
)
