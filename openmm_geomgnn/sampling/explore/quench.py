"""Minimisation of many frames in the force field of a walker."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import openmm

from openmm_geomgnn.sampling.explore.chirality import Guard
from openmm_geomgnn.sampling.plan import prepare
from openmm_geomgnn.sampling.walker import load_start, make_system, platform_of
from openmm_geomgnn.sampling.walker_spec import WalkerSpec


class Quenched(NamedTuple):
    """Minima.

    Attributes
    ----------
    positions : (F, N, 3) ndarray
        nm.
    energies : (F,) ndarray
        kJ/mol.
    faults : list of str or None
        What is wrong with each, in a phrase: an inverted stereocentre, a broken bond, an energy that is not finite.
    """

    positions: np.ndarray
    energies: np.ndarray
    faults: list[str | None]


def quench(spec: WalkerSpec, frames: np.ndarray, boxes: Sequence[np.ndarray] | np.ndarray | None = None) -> Quenched:
    """Minimise frames in the force field of a walker.

    Parameters
    ----------
    spec : WalkerSpec
        Its positions, else its structure, say which way round stereocentres are.
    frames : (F, N, 3) ndarray
        nm.
    boxes : (F, 3, 3) ndarray, optional
        nm, of a periodic system.

    Raises
    ------
    GeomGNNError
        If the system cannot be made.
    """
    prepared = prepare([replace(spec, bias=None)])
    spec, topology = prepared.specs[0], prepared.topology
    system = make_system(spec, topology)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), *platform_of(spec, system.getNumParticles()))
    minima = np.array(frames, dtype=np.float64).reshape(len(frames), system.getNumParticles(), 3)
    energies = np.full(len(minima), math.nan)
    for number, frame in enumerate(minima):
        if boxes is not None:
            context.setPeriodicBoxVectors(*np.asarray(boxes[number], dtype=float).tolist())
        context.setPositions(frame)
        try:
            openmm.LocalEnergyMinimizer.minimize(context)
        except openmm.OpenMMException:  # atoms in one place
            continue
        state = context.getState(getPositions=True, getEnergy=True)
        minima[number] = state.getPositions(asNumpy=True)._value
        energies[number] = state.getPotentialEnergy()._value
    guard = Guard(topology, load_start(spec)[1])
    return Quenched(minima, energies, [_fault(guard, *one) for one in zip(minima, energies, strict=True)])


def _fault(guard: Guard, positions: np.ndarray, energy: float) -> str | None:
    if not math.isfinite(energy) or not np.isfinite(positions).all():
        return "its energy is not finite"
    return guard.fault(positions)
