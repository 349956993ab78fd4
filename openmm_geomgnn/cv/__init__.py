"""Collective variables: how they are fitted, what their files hold, and their evaluation on a topology."""

from openmm_geomgnn._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CollectiveVariable": "openmm_geomgnn.cv.network",
        "FitSettings": "openmm_geomgnn.cv.fit_settings",
        "StudentCV": "openmm_geomgnn.cv.students.cv",
        "distill": "openmm_geomgnn.cv.distillation",
        "fit_cv": "openmm_geomgnn.cv.fit",
    },
)
