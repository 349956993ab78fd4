"""Frames of a molecule with energies and forces that take no time."""

import numpy as np
from ase import Atoms
from ase.calculators.morse import MorsePotential
from ase.calculators.singlepoint import SinglePointCalculator

OFFSET = -7267.123456789  # eV, of a molecule's total energy


def frames(number, seed=1, scale=0.1):
    """Distorted formaldehyde with a Morse potential between all atoms; scale: of the distortion, angstrom."""
    rng = np.random.default_rng(seed)
    start = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.2], [0.94, 0.0, -0.55], [-0.94, 0.0, -0.55]])
    made = []
    for _ in range(number):
        atoms = Atoms("COH2", start + scale * rng.normal(size=(4, 3)))
        atoms.calc = MorsePotential(epsilon=0.5, r0=1.2, rho0=3.0)
        labels = {"energy": atoms.get_potential_energy() + OFFSET, "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        made.append(atoms)
    return made
