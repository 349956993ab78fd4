"""A learned collective variable as an OpenMM force, the backends that evaluate it, and integrators for it."""

from openmm_geomgnn._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "BiasHandle": "openmm_geomgnn.force.bias_handle",
        "GeomGNNCV": "openmm_geomgnn.force.geomgnncv",
    },
)
