"""Runs of alanine dipeptide in vacuum, biased along phi: a step takes 20 us. The processes of walkers import this file."""

import os
from dataclasses import dataclass, replace
from importlib.resources import files

import numpy as np
import openmm

from openmm_geomgnn.sampling.opes.method import OPES
from openmm_geomgnn.sampling.outputs import read_dcd
from openmm_geomgnn.sampling.runner import Runner
from openmm_geomgnn.sampling.systems import SystemSettings
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

ALA2 = str(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
PHI = (4, 6, 8, 10)
FIRST_BLOCK = 40  # outer steps between depositions


def torsion(positions):
    """The torsion of four points (4, 3) and its gradient (4, 3) (Blondel & Karplus 1996)."""
    b1, b2, b3 = np.diff(positions, axis=0)
    m, n, length = np.cross(b1, b2), np.cross(b2, b3), np.linalg.norm(b2)
    angle = np.arctan2(length * (b1 @ n), m @ n)
    first, last = -length / (m @ m) * m, length / (n @ n) * n
    p, q = (b1 @ b2) / length**2, (b3 @ b2) / length**2
    return angle, np.stack([first, -(1 + p) * first + q * last, p * first - (1 + q) * last, last])


class PhiCV:
    """Phi as a collective variable, in place of a network that takes a hundred times as long."""

    dimension = 1

    def __init__(self, topology, fault=None):
        self.fault = fault

    def addToSystem(self, system, bias=None, forceGroup=None):
        return PhiHandle(system, bias, self.fault)


class PhiHandle:
    forceGroup = 5

    def __init__(self, system, bias, fault):
        self.bias, self.fault, self.state, self.last, self.error, self.calls = bias, fault, None, None, None, 0
        self.state = bias.initial_state(dimension=1)
        force = openmm.PythonForce(self)
        force.setParticles(list(PHI))
        force.setForceGroup(self.forceGroup)
        system.addForce(force)

    def setBiasState(self, state):
        self.state = state

    def getValue(self, context):
        context.getState(getForces=True, groups={self.forceGroup})
        return self.last

    def __call__(self, state):
        try:
            return self._evaluate(state)
        except ZeroDivisionError as error:
            self.error = error
            raise

    def _evaluate(self, state):
        self.calls += 1
        if self.calls == 30 and self.fault == "raise":
            raise ZeroDivisionError("the network divided by zero")
        if self.calls == 30 and self.fault == "die":
            os._exit(3)
        angle, gradient = torsion(state.getPositions(asNumpy=True)._value)
        V, slope = self.bias.bias(self.state, np.array([angle]))
        self.last = np.array([angle]), V
        return V, -slope[0] * gradient


@dataclass(frozen=True)
class Fault:
    """Makes a PhiCV that fails at its 30th evaluation."""

    kind: str

    def __call__(self, topology):
        return PhiCV(topology, self.kind)


@dataclass(frozen=True)
class Spring:
    """A harmonic bias, as stiff as one likes."""

    stiffness: float
    centre: float = -1.4
    pace: int = FIRST_BLOCK

    def initial_state(self, dimension=None, n_walkers=1):
        return ()

    def update(self, state, s):
        return state

    def bias(self, state, s):
        delta = s - self.centre
        return 0.5 * self.stiffness * float(delta @ delta), self.stiffness * delta

    def diagnostics(self, state):
        return {}

    def to_arrays(self, state):
        return {}

    def from_arrays(self, arrays):
        return ()


@dataclass(frozen=True)
class Motor(Spring):
    """A constant torque: no potential, so it heats for ever."""

    def bias(self, state, s):
        return 0.0, np.full(1, -self.stiffness)


def opes(**changes):
    settings = {"barrier": 30.0, "pace": FIRST_BLOCK, "sigma": 0.3, "periods": [(-np.pi, np.pi)]}
    return OPES(**settings | changes)


def biased(**changes):
    """A walker in vacuum, where a step takes 20 us."""
    settings = {
        "system": SystemSettings(forcefield=("amber14-all.xml",)),
        "make_cv": PhiCV,
        "platform": "Reference",
        "every": 3,
        "seed": 7,
        "colvar_interval": 10,
        "frame_interval": 25,
    }
    return WalkerSpec(ALA2, **settings | changes)


def run(folder, length, spec=None, bias=None, walkers=1, **options):
    spec = spec or biased()
    specs = [replace(spec, index=i) for i in range(walkers)]
    return Runner(specs, bias or opes(), folder, length, **{"checkpoint_interval": 0.5} | options).run()


def assert_same_run(a, b):
    for name in ("COLVAR", "KERNELS"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    trajectories = sorted(path.name for path in a.glob("*.dcd"))
    assert trajectories and trajectories == sorted(path.name for path in b.glob("*.dcd"))
    for name in trajectories:
        np.testing.assert_array_equal(read_dcd(a / name).xyz, read_dcd(b / name).xyz)
        assert (a / name).stat().st_size == (b / name).stat().st_size
