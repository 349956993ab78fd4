"""OPES: on-the-fly probability enhanced sampling."""

from openmm_geomgnn.sampling.opes.method import OPES
from openmm_geomgnn.sampling.opes.state import OPESState

__all__ = ["OPES", "OPESState"]
