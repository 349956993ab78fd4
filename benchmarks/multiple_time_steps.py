"""Is a bias that acts at every k-th time step only (multiple time steps) as good as one that acts at every step?

    python benchmarks/multiple_time_steps.py                    # makes what is missing, then the figures and the tables
    python benchmarks/multiple_time_steps.py --chunks 4         # shorter runs; a larger number later prolongs them
    python benchmarks/multiple_time_steps.py --only drift

Three systems, each with a static bias, at every = 1, 2, 4 and 8 steps of 2 fs: a double well whose free energy is known,
alanine dipeptide biased along phi, and alanine dipeptide biased along a learned CV. Free energies, the temperature of the
velocities at the end and in the middle of a kick, and the drift of the energy without a thermostat. Runs are cut into
chunks, each a file in --folder: stopped or killed, the same command goes on. docs/multiple-time-steps.md discusses it.
"""

import argparse
import time
import zlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import torch

from openmm_geomgnn.backends.evaluation import Evaluation
from openmm_geomgnn.backends.python_force import make_force
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.fitting import FitSettings, fit_cv
from openmm_geomgnn.force import BiasHandle, GeomGNNCV
from openmm_geomgnn.integrators import make_integrator
from openmm_geomgnn.sampling.opes import OPES
from openmm_geomgnn.sampling.systems import build_system, degrees_of_freedom, load_structure
from openmm_geomgnn.sampling.unbiased import run_unbiased
from openmm_geomgnn.sampling.walker import WalkerSpec
from openmm_geomgnn.units import BOLTZMANN

EVERY = (1, 2, 4, 8)
TIMESTEP, TEMPERATURE, FRICTION = 0.002, 300.0, 5.0  # ps, K, 1/ps
KT = BOLTZMANN * TEMPERATURE
INTERVAL = 0.096  # ps between samples: a whole number of outer steps for every `every`
COLUMNS = ("s", "V", "end", "half", "inner")
ALA2 = [files("openmm_geomgnn.data") / name for name in ("ala2-c7eq.pdb", "ala2-c7ax.pdb")]
PHI = [4, 6, 8, 10]
# the double well: nm, nm, kJ/mol, amu, rad/ps
CENTRE, WELL, BARRIER, MASS, FAST = 0.3, 0.1, 20.0, 12.0, 300.0
PLATFORM = openmm.Platform.getPlatformByName("Reference")


class Coordinate:
    """A function of a few positions (n, 3) in angstrom, with its gradient, in place of a BoundCV."""

    dimension, engine_name = 1, "python"

    def __init__(self, atoms, function):
        self.atoms, self.function = np.array(atoms), function

    def bind(self):
        return self

    def value_and_vjp(self, pos):
        value, gradient = self.function(pos)
        return np.array([value]), lambda weights: weights[0] * gradient

    def addToSystem(self, system, bias):
        evaluation = Evaluation(self, bias=bias, bound=self)
        force = make_force(evaluation)
        force.setForceGroup(31)
        system.addForce(force)
        return BiasHandle(force, evaluation, system)


def distance(positions):
    """Distance of the first two atoms in nm, and its gradient."""
    apart = positions[1] - positions[0]
    length = np.linalg.norm(apart)
    return 0.1 * length, 0.1 / length * np.stack([-apart, apart])


def torsion(positions):
    """The torsion of four points and its gradient (Blondel & Karplus, J. Comput. Chem. 17, 1132 (1996))."""
    b1, b2, b3 = np.diff(positions, axis=0)
    m, n, length = np.cross(b1, b2), np.cross(b2, b3), np.linalg.norm(b2)
    first, last = -length / (m @ m) * m, length / (n @ n) * n
    p, q = (b1 @ b2) / length**2, (b3 @ b2) / length**2
    gradient = np.stack([first, -(1 + p) * first + q * last, p * first - (1 + q) * last, last])
    return np.arctan2(length * (b1 @ n), m @ n), gradient


@dataclass(frozen=True)
class Static:
    """A bias that never changes, from a function s (d,) -> (V in kJ/mol, dV/ds (d,))."""

    function: object

    def initial_state(self, dimension=None, n_walkers=1):
        return ()

    def bias(self, state, s):
        return self.function(s)


@dataclass(frozen=True)
class Spring:
    """0.5*stiffness*(s - centre)^2."""

    stiffness: float
    centre: float

    def __call__(self, s):
        return 0.5 * self.stiffness * float(np.sum((s - self.centre) ** 2)), self.stiffness * (s - self.centre)


def lowered_barrier(s):
    """Takes nine tenths of the double well's energy away: what is left is a barrier of 0.8 kT."""
    u = (s - CENTRE) / WELL
    return -0.9 * BARRIER * float((u @ u - 1) ** 2), -3.6 * BARRIER / WELL * u * (u @ u - 1)


# ----------------------------------------------------------------------------------------------------------- the systems


class DoubleWell:
    """Three atoms. The energy of the distance r of the first two is BARRIER*(((r - CENTRE)/WELL)^2 - 1)^2; the third hangs
    on the second by a bond as fast as that of a carbonyl group. The free energy of r is that energy less 2*kT*ln(r)."""

    length, edges, middle = 480.0, np.linspace(0.15, 0.45, 31), CENTRE

    def __init__(self, folder):
        self.bias = Static(lowered_barrier)

    def system(self):
        system = openmm.System()
        for _ in range(3):
            system.addParticle(MASS)
        well = openmm.CustomBondForce(f"{BARRIER}*(((r-{CENTRE})/{WELL})^2-1)^2")
        well.addBond(0, 1)
        bond = openmm.HarmonicBondForce()
        bond.addBond(1, 2, 0.12, MASS / 2 * FAST**2)
        system.addForce(well)
        system.addForce(bond)
        return system, np.array([[0.0, 0, 0], [CENTRE + WELL, 0, 0], [CENTRE + WELL, 0.12, 0]])

    def add_bias(self, system, bias=None):
        return Coordinate([0, 1], distance).addToSystem(system, bias or self.bias)

    def inner_energy(self, positions):
        return MASS / 4 * FAST**2 * float((np.linalg.norm(positions[2] - positions[1]) - 0.12) ** 2)


class Ala2:
    """Alanine dipeptide, amber14 and OBC2. The bias is that of an OPES run, frozen: how it came about does not matter."""

    middle = 0.0

    def __init__(self, folder):
        self.topology, self.positions = load_structure(ALA2[0])
        self._angles = self._angle_context()
        self._cv = self.cv(folder)
        opes = self.opes
        path = folder / f"{type(self).__name__}.bias.npz"
        if not path.exists():
            state = self._grow(opes)
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **opes.to_arrays(state))
        with np.load(path) as arrays:
            state = opes.from_arrays(dict(arrays))
        self.bias = Static(lambda s: opes.bias(state, s))

    def system(self):
        return build_system(self.topology), self.positions

    def add_bias(self, system, bias=None):
        return self._cv.addToSystem(system, bias or self.bias)

    def _grow(self, opes, every=4):
        """The state of an adaptive run of `growth` ps."""
        system, positions = self.system()
        handle = self._cv.addToSystem(system, opes)
        integrator = make_integrator(TEMPERATURE, FRICTION, TIMESTEP, every, handle.forceGroup)
        context = make_context(system, integrator, positions)
        for k in range(self.growth):
            integrator.step(round(1 / (TIMESTEP * every)))
            handle.setState(opes.update(handle.getState(), handle.value(context)[0]))
            if k % 50 == 0:
                print(f"{type(self).__name__}: growing the bias, {context.getTime()}", flush=True)
        return handle.getState()

    def _angle_context(self):
        system = build_system(self.topology)
        for index in reversed(range(system.getNumForces())):
            if not isinstance(system.getForce(index), openmm.HarmonicAngleForce):
                system.removeForce(index)
        return openmm.Context(system, openmm.VerletIntegrator(0.001), PLATFORM)

    def inner_energy(self, positions):
        self._angles.setPositions(positions)
        return self._angles.getState(getEnergy=True).getPotentialEnergy()._value


class Phi(Ala2):
    length, growth, edges = 480.0, 1000, np.linspace(-np.pi, np.pi, 37)
    opes = OPES(barrier=30, pace=500, sigma=0.3, periods=[(-np.pi, np.pi)])

    def cv(self, folder):
        return Coordinate(PHI, torsion)


class Learned(Ala2):
    length, growth, edges = 240.0, 400, np.linspace(-1.3, 1.3, 27)
    opes = OPES(barrier=40, pace=500, sigma=0.12)

    def cv(self, folder):
        path = folder / "cv.safetensors"
        if not path.exists():
            specs = [
                WalkerSpec(structure, index=i, equilibration=5.0, platform="Reference", frame_interval=100)
                for i, structure in enumerate(ALA2)
            ]
            runs = run_unbiased(specs, 150.0, folder / "unbiased")
            topology = mdtraj.Topology.from_openmm(self.topology)
            cv = fit_cv(
                [mdtraj.Trajectory(run.frames, topology) for run in runs],
                topology,
                FitSettings(lag_time=5.0, frame_interval=0.2, window="all"),
            )
            cv.save(path)
        return GeomGNNCV(path, self.topology)


SYSTEMS = {"double-well": DoubleWell, "phi": Phi, "learned": Learned}


def make_context(system, integrator, positions, seed=1):
    context = openmm.Context(system, integrator, PLATFORM)
    context.setPositions(positions)
    context.applyConstraints(1e-8)
    context.setVelocitiesToTemperature(TEMPERATURE, seed)
    return context


def biased_system(case, bias=None):
    """(system, positions, handle): the bias in a force group of its own, the rest in group 0."""
    system, positions = case.system()
    return system, positions, case.add_bias(system, bias)


def seed_of(*words):
    return zlib.crc32(" ".join(map(str, words)).encode()) % 2**31


# --------------------------------------------------------------------------------------------------------------- sampling


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
    outer, rows, at_the_end = round(INTERVAL / (TIMESTEP * every)), [], Constrained(case)
    for _ in range(round(case.length / INTERVAL)):
        integrator.step(outer)
        state = context.getState(getPositions=True, getVelocities=True, getForces=True, groups={0})
        positions, velocities, forces = state_arrays(state)
        biased = context.getState(getForces=True, groups={handle.forceGroup}).getForces(asNumpy=True)._value
        s, V = handle.last
        # the second half of the kicks, which an MTSLangevinIntegrator has in its velocities at the end of a step
        end = at_the_end(positions, velocities + 0.5 * TIMESTEP * (forces + every * biased) / mass)
        temperatures = [(mass * v * v).sum() / per_kelvin for v in (end, velocities)]
        rows.append([s[0], V, *temperatures, case.inner_energy(positions)])
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


def free_energy(rows, edges):
    """Reweighted free energy (bins,) in kJ/mol and its standard error from the scatter of chunks (chunks, n, columns)."""

    def profile(parts):
        s, V = parts[..., 0].ravel(), parts[..., 1].ravel()
        density = np.histogram(s, edges, weights=np.exp((V - V.max()) / KT))[0]
        with np.errstate(divide="ignore"):
            F = -KT * np.log(density)
        return F - _mean(F)

    def _mean(F):
        # the zero of a profile is arbitrary: the mean over what the reference run visits well, see `compared`
        return -KT * np.log(np.exp(-F[np.isfinite(F)] / KT).sum())

    rng = np.random.default_rng(0)
    draws = [profile(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(200)]
    with np.errstate(invalid="ignore"):
        return profile(rows), np.std(draws, axis=0)


# ---------------------------------------------------------------------------------------------------------------- energy


def drift_run(name, case, every, seed, folder, bias=None, length=48.0):
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


def drift(energies, dof, length=48.0):
    """kJ/mol/ns per degree of freedom from a straight line; infinite if the run blew up."""
    if len(energies) < round(length / INTERVAL):
        return np.inf
    times = 1e-3 * INTERVAL * np.arange(len(energies))
    return np.polyfit(times, energies, 1)[0] / dof


# --------------------------------------------------------------------------------------------------------------- results


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


STIFFNESSES = (100.0, 400.0, 1600.0, 6400.0, 25600.0)  # kJ/mol
SPRING_CENTRE = -1.0  # of the spring, in the CV's units: the basin that runs begin in


def print_tables(folder, seeds):
    for name, kind in SYSTEMS.items():
        runs = {every: load_chunks(name, every, folder) for every in EVERY}
        runs = {every: rows for every, rows in runs.items() if len(rows)}
        if not runs:
            continue
        print(f"\n{name}: {len(next(iter(runs.values())))} chunks of {kind.length:g} ps; means and standard errors")
        columns = ("T, end of kick", "T, middle of kick", "inner energy", "free energy difference")
        print("every" + "".join(f"{column:>24s}" for column in columns))
        for every, rows in runs.items():
            means = rows.mean(axis=1)
            errors = means.std(axis=0, ddof=1) / np.sqrt(len(means))
            values = means.mean(axis=0)
            shown = [*((values[k], errors[k]) for k in (2, 3, 4)), difference(rows, kind.middle)]
            print(f"{every:5d}" + "".join(f"{value:15.2f} +- {error:5.2f}" for value, error in shown))
    if not (folder / f"drift.frozen.8.{seeds - 1}.npz").exists():
        return
    found = {every: [drift(*drift_run("frozen", None, every, k, folder)[:2]) for k in range(seeds)] for every in EVERY}
    print("\nlearned CV, frozen bias, no thermostat: drift in kJ/mol/ns/dof, one number per run; mean +- standard error")
    for every, drifts in found.items():
        error = np.std(drifts, ddof=1) / np.sqrt(len(drifts))
        print(f"{every:5d}{np.mean(drifts):10.4f} +- {error:.4f}   " + " ".join(f"{d:8.4f}" for d in drifts))


def difference(rows, middle):
    """Free energy of s > middle relative to s < middle in kJ/mol, and its standard error from the scatter of chunks."""

    def delta(parts):
        s, weights = parts[..., 0].ravel(), np.exp((parts[..., 1].ravel() - parts[..., 1].max()) / KT)
        return -KT * np.log(weights[s > middle].sum() / weights[s < middle].sum())

    rng = np.random.default_rng(0)
    draws = [delta(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(300)]
    return delta(rows), np.std(draws)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/multiple-time-steps"))
    parser.add_argument("--chunks", type=int, default=8, help="of each run; chunks that are there are not made again")
    parser.add_argument("--seeds", type=int, default=4, help="runs without a thermostat")
    parser.add_argument("--only", choices=(*SYSTEMS, "drift", "figures"), help="one of the parts")
    parser.add_argument("--figures", type=Path, default=Path("docs"), help="folder to write the figures to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in SYSTEMS if arguments.only is None else {arguments.only} & SYSTEMS.keys():
        case = SYSTEMS[name](folder)
        for chunk in range(arguments.chunks):
            for every in EVERY:
                sample_chunk(name, case, every, chunk, folder)
    if arguments.only in (None, "drift"):
        make_drifts(folder, arguments.seeds)
    print_tables(folder, arguments.seeds)


if __name__ == "__main__":
    main()
