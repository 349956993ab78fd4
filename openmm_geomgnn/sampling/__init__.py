"""Biases on collective variables, and the runs that sample under them. The biases are pure: numpy, no engine, no files."""

from openmm_geomgnn.sampling.bias import Bias, get_bias
from openmm_geomgnn.sampling.opes import OPES

__all__ = ["OPES", "Bias", "get_bias"]
