"""The runs of benchmarks/multiple_time_steps.py, in pieces that are kept in files."""

import time

import numpy as np
import openmm
from time_steps.systems import (
    EVERY,
    FRICTION,
    PLATFORM,
    TEMPERATURE,
    TIMESTEP,
    Learned,
    biased_system,
    make_context,
    seed_of,
)

from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.force.integrators import make_integrator
from openmm_geomgnn.sampling.systems import degrees_of_freedom
from openmm_geomgnn.units import BOLTZMANN

INTERVAL = 0.096  # ps between samples: a whole number of outer steps for every `every`
DRIFT_LENGTH = 24.0  # ps
WIDTHS = (1, 2, 4)  # of the kernels of the static bias, relative to those that were deposited
HOT = 1000.0  # kJ/mol: a run that has gained more is not continued


def sample_chunk(name, case, every, chunk, folder):
    """One chunk of a run at constant temperature: it goes on from where the chunk before ended."""
    path = folder / f"{name}.{every}.{chunk}.npz"
    if path.exists():
        return
    started = time.process_time()
    system, positions, handle = biased_system(case)
    seed = seed_of(name, every, chunk)
    integrator = make_integrator(TEMPERATURE, FRICTION, TIMESTEP, every, handle.forceGroup, seed)
    context = make_context(system, integrator, positions, seed)
    if chunk:
        with np.load(folder / f"{name}.{every}.{chunk - 1}.npz") as before:
            context.setPositions(before["positions"])
            context.setVelocities(before["velocities"])
    else:
        integrator.step(round(20.0 / (TIMESTEP * every)))
    mass = np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])[:, None]
    per_kelvin = degrees_of_freedom(system) * BOLTZMANN
    outer, rows, constrained = round(INTERVAL / (TIMESTEP * every)), [], Constrained(case)
    for _ in range(round(case.length / INTERVAL)):
        integrator.step(outer)
        state = context.getState(getPositions=True, getVelocities=True, getForces=True, groups={0})
        positions, velocities, forces = state_arrays(state)
        biased = context.getState(getForces=True, groups={handle.forceGroup}).getForces(asNumpy=True)._value
        s, V = handle.last
        # OpenMM's MTSLangevinIntegrator ends its steps in the middle of a kick
        middle = constrained(positions, velocities + 0.5 * TIMESTEP * (forces + every * biased) / mass)
        temperatures = [(mass * v * v).sum() / per_kelvin for v in (middle, velocities)]
        rows += [[*one, *temperatures, case.inner_energy(positions)] for one in case.each(s, V)]
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, rows=np.array(rows), positions=positions, velocities=velocities)
    print(f"{name}, every {every}, chunk {chunk}: {time.process_time() - started:.0f} s", flush=True)


def state_arrays(state):
    return [f(asNumpy=True)._value for f in (state.getPositions, state.getVelocities, state.getForces)]


class Constrained:
    """Takes the part along constraints from velocities."""

    def __init__(self, case):
        self._context = openmm.Context(case.system()[0], openmm.VerletIntegrator(0.001), PLATFORM)

    def __call__(self, positions, velocities):
        self._context.setPositions(positions)
        self._context.setVelocities(velocities)
        self._context.applyVelocityConstraints(1e-6)
        return self._context.getState(getVelocities=True).getVelocities(asNumpy=True)._value


def load_chunks(name, every, folder):
    """(chunks, samples, columns) of all chunks that are there."""
    paths = sorted(folder.glob(f"{name}.{every}.*.npz"), key=lambda path: int(path.suffixes[-2][1:]))
    return np.array([np.load(path)["rows"] for path in paths])


def drift_run(widen, every, seed, folder):
    """A run without thermostat under the learned CV's static bias: total energies (n,) in kJ/mol, one every INTERVAL, the
    degrees of freedom, and the phase of the bias in an outer step (see Learned.phase)."""
    path = folder / f"drift.{widen}.{every}.{seed}.npz"
    if not path.exists():
        case = Learned(folder, widen)
        system, positions, handle = biased_system(case)
        start = _start(case, widen, seed, folder)
        integrator = openmm.MTSIntegrator(TIMESTEP * every, [(handle.forceGroup, 1), (0, every)])
        integrator.setConstraintTolerance(1e-10)
        context = make_context(system, integrator, positions)
        context.setPositions(start["positions"])
        context.setVelocities(start["velocities"])
        context.applyVelocityConstraints(1e-10)
        energies = []
        for _ in range(round(DRIFT_LENGTH / INTERVAL)):
            state = context.getState(getEnergy=True)
            energies.append((state.getKineticEnergy() + state.getPotentialEnergy())._value)
            if abs(energies[-1] - energies[0]) > HOT:
                break
            integrator.step(round(INTERVAL / (TIMESTEP * every)))
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, energies=energies, dof=degrees_of_freedom(system), phase=case.phase * every)
        print(f"drift, kernels {widen} times as wide, every {every}, seed {seed}", flush=True)
    with np.load(path) as saved:
        return saved["energies"], int(saved["dof"]), float(saved["phase"])


def _start(case, widen, seed, folder):
    """Where the runs of all `every` begin: positions and velocities after 4 ps with a thermostat."""
    path = folder / f"drift.{widen}.start.{seed}.npz"
    if not path.exists():
        system, positions, _ = biased_system(case)
        integrator = make_integrator(TEMPERATURE, FRICTION, TIMESTEP, seed=seed_of(widen, seed))
        context = make_context(system, integrator, positions, seed_of(seed))
        integrator.step(2000)
        state = context.getState(getPositions=True, getVelocities=True)
        positions, velocities = (f(asNumpy=True)._value for f in (state.getPositions, state.getVelocities))
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, positions=positions, velocities=velocities)
    with np.load(path) as saved:
        return dict(saved)


def make_drifts(folder, seeds):
    for seed in range(seeds):
        for widen in WIDTHS:
            for every in EVERY:
                drift_run(widen, every, seed, folder)
