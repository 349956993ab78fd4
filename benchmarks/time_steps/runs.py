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
    Spring,
    Static,
    biased_system,
    make_context,
    seed_of,
)

from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.integrators import make_integrator
from openmm_geomgnn.sampling.systems import degrees_of_freedom
from openmm_geomgnn.units import BOLTZMANN

INTERVAL = 0.096  # ps between samples: a whole number of outer steps for every `every`
DRIFT_LENGTH = 24.0  # ps
STIFFNESSES = (400.0, 1600.0, 6400.0)  # kJ/mol
SPRING_CENTRE = -1.0  # of the spring, in the CV's units: the basin that runs begin in


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


def drift_run(name, case, every, seed, folder, bias=None, length=DRIFT_LENGTH):
    """Total energies (n,) in kJ/mol of a run without thermostat, one every INTERVAL; the degrees of freedom; omega in
    rad/ps, the angular frequency of a Spring's motion (None for another bias)."""
    path = folder / f"drift.{name}.{every}.{seed}.npz"
    if not path.exists():
        system, positions, handle = biased_system(case, bias)
        group = handle.forceGroup
        state = _start(name, case, bias, seed, folder)
        integrator = openmm.MTSIntegrator(TIMESTEP * every, [(group, 1), (0, every)])
        integrator.setConstraintTolerance(1e-10)
        context = make_context(system, integrator, positions)
        context.setPositions(state["positions"])
        context.setVelocities(state["velocities"])
        context.applyVelocityConstraints(1e-10)
        omega, energies = np.nan, []
        if isinstance(getattr(bias, "function", None), Spring):
            omega = frequency(system, context, handle, bias.function)
        for _ in range(round(length / INTERVAL)):
            integrator.step(round(INTERVAL / (TIMESTEP * every)))
            now = context.getState(getEnergy=True)
            energies.append((now.getKineticEnergy() + now.getPotentialEnergy())._value)
            if not abs(energies[-1] - energies[0]) < 1e4:
                break
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, energies=energies, dof=degrees_of_freedom(system), omega=omega)
        print(f"drift {name}, every {every}, seed {seed}", flush=True)
    with np.load(path) as saved:
        return saved["energies"], int(saved["dof"]), float(saved["omega"])


def _start(name, case, bias, seed, folder):
    """Where the runs of all `every` begin: positions and velocities after 4 ps with a thermostat."""
    path = folder / f"drift.{name}.start.{seed}.npz"
    if not path.exists():
        system, positions, handle = biased_system(case, bias)
        integrator = make_integrator(TEMPERATURE, FRICTION, TIMESTEP, seed=seed_of(name, seed))
        context = make_context(system, integrator, positions, seed_of(seed))
        integrator.step(2000)
        state = context.getState(getPositions=True, getVelocities=True)
        positions, velocities = (f(asNumpy=True)._value for f in (state.getPositions, state.getVelocities))
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, positions=positions, velocities=velocities)
    with np.load(path) as saved:
        return dict(saved)


def frequency(system, context, handle, spring):
    """sqrt(stiffness*sum_i |ds/dx_i|^2/m_i): of the motion along the CV that the spring alone would cause."""
    state = context.getState(getForces=True, groups={handle.forceGroup})
    slope = spring.stiffness * (handle.last[0][0] - spring.centre)
    gradient = state.getForces(asNumpy=True)._value / slope
    mass = np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])[:, None]
    return float(np.sqrt(spring.stiffness * (gradient**2 / mass).sum()))


def make_drifts(folder, seeds):
    case = Learned(folder)
    for seed in range(seeds):
        for every in EVERY:
            drift_run("frozen", case, every, seed, folder)
    # the same spring on the CV, ever stiffer: it is the phase per outer step that counts
    for stiffness in STIFFNESSES:
        for every in EVERY:
            spring = Static(Spring(stiffness, SPRING_CENTRE))
            drift_run(f"spring-{stiffness:g}", case, every, 0, folder, spring)
