"""Finding other states of a molecule when only one structure is known."""

from openmm_geomgnn.sampling.explore.base import Explored, ExploreSettings
from openmm_geomgnn.sampling.explore.exploring import explore

__all__ = ["ExploreSettings", "Explored", "explore"]
