"""A bias as another package would bring it: it uses nothing of openmm_geomgnn."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ToyBias:
    """Metadynamics: Gaussians of one height and width wherever the walkers were.

    height : kJ/mol. width : in units of the CV. pace : outer steps between two depositions.
    """

    height: float = 1.0
    width: float = 0.3
    pace: int = 10

    def initial_state(self, dimension=None, n_walkers=1):
        return np.zeros((0, dimension or 1))

    def update(self, state, s):
        return np.concatenate([state, s])

    def bias(self, state, s):
        delta = (s - state) / self.width
        energies = self.height * np.exp(-0.5 * (delta**2).sum(axis=1))
        return float(energies.sum()), -(energies @ delta) / self.width

    def diagnostics(self, state):
        return {"nker": float(len(state))}

    def to_arrays(self, state):
        return {"centres": state}

    def from_arrays(self, arrays):
        return np.array(arrays["centres"])
