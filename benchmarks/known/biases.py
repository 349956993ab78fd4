"""Biases on known torsions: OpenMM's metadynamics, openmm-opes, and metadynamics on each torsion alone.

All are made of (system, atoms (N, 4), barrier in kJ/mol, pace in time steps, arrays of an earlier `arrays()` or None) and
add their forces to the system. `step` advances an app.Simulation and deposits; `energy`, V - c(t), weights a frame.
"""

import tempfile
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit
from scipy.special import logsumexp

from openmm_geomgnn.sampling.explore.fourier import TorsionHills, dihedrals
from openmm_geomgnn.sampling.explore.torsions import bias_force, set_biases
from openmm_geomgnn.units import BOLTZMANN

TEMPERATURE = 300.0  # K
KT = BOLTZMANN * TEMPERATURE
HEIGHT = 0.5  # kJ/mol, of the first hills
HILL = 0.35  # rad, the width of hills of metadynamics
NEVER = 10**15  # time steps
# for each number of torsions: points of the grids, and the width of the first kernels of OPES in rad, about the spread in a
# basin; on the grid of three torsions narrower ones would be lost
_POINTS = {1: 361, 2: 121, 3: 46}
_SIGMAS = {1: 0.15, 2: 0.15, 3: 0.25}


def _variables(atoms, sigma):
    variables = []
    for four in atoms:
        force = openmm.CustomTorsionForce("theta")
        force.addTorsion(*map(int, four), [])
        variables.append(app.BiasVariable(force, -np.pi, np.pi, sigma, True, _POINTS[len(atoms)]))
    return variables


class Metadynamics:
    """Well-tempered metadynamics of OpenMM, jointly on one to three torsions."""

    def __init__(self, system, atoms, barrier, pace, saved=None):
        self._gamma = max(barrier / KT, 2.0)
        with tempfile.TemporaryDirectory() as folder:
            if saved:
                # what OpenMM reads on the first occasion as the bias so far
                np.save(Path(folder) / "bias_0_0.npy", saved["bias"])
            folder = {"saveFrequency": NEVER * pace, "biasDir": folder}
            settings = (_variables(atoms, HILL), TEMPERATURE, self._gamma, HEIGHT, pace)
            self._metadynamics = app.Metadynamics(system, *settings, **folder)
        self._group = system.getForces()[-1].getForceGroup()

    def step(self, simulation, steps):
        self._metadynamics.step(simulation, steps)

    def energy(self, simulation):
        state = simulation.context.getState(getEnergy=True, groups={self._group})
        bias = self._bias() / KT
        # c(t) of Tiwary & Parrinello, JPCB 119, 736 (2015); the last point of each axis is the first
        bias = bias[(slice(-1),) * bias.ndim]
        offset = logsumexp(bias * self._gamma / (self._gamma - 1)) - logsumexp(bias / (self._gamma - 1))
        return state.getPotentialEnergy()._value - KT * offset

    def _bias(self):
        free_energy = self._metadynamics.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole)
        return -free_energy * (self._gamma - 1) / self._gamma

    def arrays(self):
        return {"bias": self._bias()}

    def restore(self, context):
        """Nothing to do: the force was made with the bias so far."""


class OPES:
    """openmm_opes.OPES, jointly on one to three torsions, with kernels no narrower than its grid."""

    def __init__(self, system, atoms, barrier, pace, saved=None):
        try:
            import openmm_opes
        except ImportError as error:
            raise SystemExit(f"OPES on known torsions is that of openmm-opes ({error}): pip install openmm-opes") from error
        variables, narrowest = _variables(atoms, _SIGMAS[len(atoms)]), [2 * np.pi / _POINTS[len(atoms)]] * len(atoms)
        self._opes = openmm_opes.OPES(system, variables, TEMPERATURE, barrier, pace, None, minBandwidth=narrowest)
        if saved:
            self._opes.setState(saved)

    def step(self, simulation, steps):
        self._opes.step(simulation, steps)

    def energy(self, simulation):
        return self._opes.getBiasEnergy(simulation.context).value_in_unit(unit.kilojoules_per_mole)

    def arrays(self):
        return self._opes.getState()

    def restore(self, context):
        """Nothing to do: openmm-opes hands the bias over at the next step."""


class Concurrent:
    """Well-tempered metadynamics on any number of torsions, each with a bias of its own: what explorations do."""

    def __init__(self, system, atoms, barrier, pace, saved=None):
        self._hills, self._atoms, self._pace = TorsionHills(HEIGHT, barrier, TEMPERATURE), atoms, pace
        self._coefficients = saved["coefficients"] if saved else self._hills.start(len(atoms))
        for number, four in enumerate(atoms):
            system.addForce(bias_force(number, four))

    def step(self, simulation, steps):
        while steps:
            before = min(steps, self._pace - simulation.currentStep % self._pace)
            simulation.step(before)
            steps -= before
            if simulation.currentStep % self._pace == 0:
                self._coefficients = self._hills.deposit(self._coefficients, self._angles(simulation))
                set_biases(simulation.context, self._coefficients)

    def energy(self, simulation):
        values = self._hills.values(self._coefficients, self._angles(simulation))
        return float(values.sum()) - self._hills.offset(self._coefficients)

    def arrays(self):
        return {"coefficients": self._coefficients}

    def restore(self, context):
        set_biases(context, self._coefficients)

    def _angles(self, simulation):
        positions = simulation.context.getState(getPositions=True).getPositions(asNumpy=True)._value
        return dihedrals(positions, self._atoms)


METHODS = {"metadynamics": Metadynamics, "opes": OPES, "concurrent": Concurrent}
