"""Well-tempered metadynamics on any number of torsions, each with a bias of its own, as Fourier series: numbers only."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from openmm_geomgnn.units import BOLTZMANN

SIGMA = 0.35  # rad, the width of a hill: a third of a basin
HARMONICS = 12  # which resolve it: the last one has exp(-(12*0.35)^2/2) = 1e-4 of the first
_GRID = 72  # points of a circle, for integrals
_ORDERS = np.arange(1, HARMONICS + 1)


@dataclass(frozen=True)
class TorsionHills:
    """How hills are deposited on N torsions: concurrent well-tempered metadynamics.

    Every torsion has a one-dimensional bias, and a hill on each is deposited at the same time, lower where that torsion's
    bias is already high (Barducci, Bussi & Parrinello, PRL 100, 020603 (2008); several at once: Gil-Ley & Bussi, JCTC 11,
    1077 (2015)). openmm.app.Metadynamics biases up to three variables, and jointly, which takes too long to fill.

    Attributes
    ----------
    height : float
        Of the first hill on each torsion, kJ/mol.
    barrier : float
        The highest barrier that is to be crossed, kJ/mol; the biasfactor is barrier/kT.
    temperature : float
        K.
    """

    height: float
    barrier: float
    temperature: float

    @cached_property
    def biasfactor(self) -> float:
        """How much flatter the torsions become."""
        return max(self.barrier / (BOLTZMANN * self.temperature), 2.0)

    @cached_property
    def _tempering(self) -> float:
        return BOLTZMANN * self.temperature * (self.biasfactor - 1)

    def start(self, torsions: int) -> np.ndarray:
        """The coefficients of no bias, zeros (torsions, 2*HARMONICS + 1): constant, cosines, sines."""
        return np.zeros((torsions, 2 * HARMONICS + 1))

    def values(self, coefficients: np.ndarray, angles: np.ndarray) -> np.ndarray:
        """The bias of each torsion, kJ/mol (N,), at the angles (N,) in radians."""
        return (_waves(angles) * coefficients).sum(axis=1)

    def deposit(self, coefficients: np.ndarray, angles: np.ndarray) -> np.ndarray:
        """The coefficients (N, 2*HARMONICS + 1) after a hill at the angles (N,) in radians."""
        heights = self.height * np.exp(-self.values(coefficients, angles) / self._tempering)
        # a Gaussian on a circle: the sum of its images
        series = np.concatenate([[1.0], *[2 * np.exp(-0.5 * (_ORDERS * SIGMA) ** 2)] * 2])
        return coefficients + (heights * SIGMA / math.sqrt(2 * math.pi))[:, None] * series * _waves(angles)

    def offset(self, coefficients: np.ndarray) -> float:
        """The part of the bias, kJ/mol, that all frames have: c(t) of Tiwary & Parrinello, JPCB 119, 736 (2015), summed."""
        kT = BOLTZMANN * self.temperature
        grid = np.linspace(-math.pi, math.pi, _GRID, endpoint=False)
        bias = coefficients @ _waves(grid).T / kT
        upper, lower = bias * self.biasfactor / (self.biasfactor - 1), bias / (self.biasfactor - 1)
        return kT * float((np.logaddexp.reduce(upper, axis=1) - np.logaddexp.reduce(lower, axis=1)).sum())


def _waves(angles: np.ndarray) -> np.ndarray:
    """1, the cosines and the sines of the multiples of angles (M,): (M, 2*HARMONICS + 1)."""
    phases = angles[:, None] * _ORDERS
    return np.concatenate([np.ones((len(angles), 1)), np.cos(phases), np.sin(phases)], axis=1)


def dihedrals(positions: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Torsions in radians, (..., N), of positions (..., n, 3) and atoms (N, 4), with OpenMM's sign."""
    a, b, c, d = (positions[..., atoms[:, k], :] for k in range(4))
    first, axis, last = b - a, c - b, d - c
    axis = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
    left = first - (first * axis).sum(axis=-1, keepdims=True) * axis
    right = last - (last * axis).sum(axis=-1, keepdims=True) * axis
    x = -(left * right).sum(axis=-1)
    y = -(np.cross(axis, left) * right).sum(axis=-1)
    return np.arctan2(y, x)
