"""What benchmarks/multiple_time_steps.py simulates: small systems, each with a static bias on one coordinate."""

import zlib
from dataclasses import dataclass, replace
from importlib.resources import files

import mdtraj
import numpy as np
import openmm

from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.force.backends.python_force import make_force
from openmm_geomgnn.force.evaluation import Evaluation
from openmm_geomgnn.force.geomgnncv import BiasHandle, GeomGNNCV
from openmm_geomgnn.force.integrators import make_integrator
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.sampling.opes.method import OPES
from openmm_geomgnn.sampling.systems import build_system, load_structure
from openmm_geomgnn.sampling.unbiased import run_unbiased
from openmm_geomgnn.sampling.walker_spec import WalkerSpec
from openmm_geomgnn.units import BOLTZMANN

EVERY = (1, 2, 4, 8)
TIMESTEP, TEMPERATURE, FRICTION = 0.002, 300.0, 5.0  # ps, K, 1/ps
KT = BOLTZMANN * TEMPERATURE
ALA2 = [files("openmm_geomgnn.data") / name for name in ("ala2-c7eq.pdb", "ala2-c7ax.pdb")]
PHI = [4, 6, 8, 10]
# the double well: nm, nm, kJ/mol, amu, rad/ps
CENTRE, WELL, BARRIER, MASS, FAST = 0.3, 0.1, 20.0, 12.0, 300.0
# free energy of phi, kJ/mol
COSINES, SINES = np.array([-2.16, 6.27, 6.98, 3.15, -1.3, -0.17]), np.array([11.84, -8.17, 1.62, -1.15, 2.45, -1.77])
PLATFORM = openmm.Platform.getPlatformByName("Reference")


class Coordinate:
    """In place of a BoundCV, a function of positions (n, 3) in angstrom that gives values (d,) and a vector-Jacobian
    product."""

    engine_name = "python"

    def __init__(self, atoms, function, dimension=1):
        self.atoms, self.value_and_vjp, self.dimension = np.array(atoms), function, dimension

    def bind(self):
        return self

    def addToSystem(self, system, bias):
        evaluation = Evaluation(self, bias=bias, bound=self)
        force = make_force(evaluation)
        force.setForceGroup(31)
        system.addForce(force)
        return BiasHandle(force, evaluation, system)


def distances(positions):
    """Distances in nm of the first and the second atom, of the third and the fourth, ..."""
    apart = positions[1::2] - positions[::2]
    lengths = np.linalg.norm(apart, axis=1)

    def vjp(weights):
        gradient = np.repeat((0.1 * weights / lengths)[:, None] * apart, 2, axis=0)
        gradient[::2] *= -1
        return gradient

    return 0.1 * lengths, vjp


def torsion(positions):
    """The torsion of four points (Blondel & Karplus, J. Comput. Chem. 17, 1132 (1996))."""
    b1, b2, b3 = np.diff(positions, axis=0)
    m, n, length = np.cross(b1, b2), np.cross(b2, b3), np.linalg.norm(b2)
    first, last = -length / (m @ m) * m, length / (n @ n) * n
    p, q = (b1 @ b2) / length**2, (b3 @ b2) / length**2
    gradient = np.stack([first, -(1 + p) * first + q * last, p * first - (1 + q) * last, last])
    return np.array([np.arctan2(length * (b1 @ n), m @ n)]), lambda weights: weights[0] * gradient


@dataclass(frozen=True)
class Static:
    """A bias that never changes, from a function s (d,) -> (V in kJ/mol, dV/ds (d,))."""

    function: object

    def initial_state(self, dimension=None, n_walkers=1):
        return ()

    def bias(self, state, s):
        return self.function(s)


def lowered_barrier(s):
    """Takes nine tenths of the energy of double wells away: what is left are barriers of 0.8 kT."""
    u = (s - CENTRE) / WELL
    return -0.9 * BARRIER * float(np.sum((u * u - 1) ** 2)), -3.6 * BARRIER / WELL * u * (u * u - 1)


def level_phi(s):
    n = np.arange(1, 7)
    cosines, sines = np.cos(n * s[0]), np.sin(n * s[0])
    return -float(COSINES @ cosines + SINES @ sines), np.array([(n * COSINES) @ sines - (n * SINES) @ cosines])


class DoubleWell:
    """Molecules of three atoms that do not see each other. The energy of the distance r of the first two atoms is
    BARRIER*(((r - CENTRE)/WELL)^2 - 1)^2; the third hangs on the second by a bond as fast as that of a carbonyl group. The
    free energy of r is that energy less 2*kT*ln(r). The CV has a component for each molecule."""

    length, edges, middle, molecules = 24.0, np.linspace(0.15, 0.45, 31), CENTRE, 40

    def __init__(self, folder):
        self.bias = Static(lowered_barrier)

    def system(self):
        system, well = openmm.System(), openmm.CustomBondForce(f"{BARRIER}*(((r-{CENTRE})/{WELL})^2-1)^2")
        bond = openmm.HarmonicBondForce()
        for k in range(self.molecules):
            for _ in range(3):
                system.addParticle(MASS)
            well.addBond(3 * k, 3 * k + 1)
            bond.addBond(3 * k + 1, 3 * k + 2, 0.12, MASS / 2 * FAST**2)
        system.addForce(well)
        system.addForce(bond)
        sides = CENTRE + WELL * (-1) ** np.arange(self.molecules)
        return system, np.array([[[0.0, 0, 0], [x, 0, 0], [x, 0.12, 0]] for x in sides]).reshape(-1, 3)

    def add_bias(self, system):
        atoms = np.arange(3 * self.molecules).reshape(-1, 3)[:, :2].ravel()
        return Coordinate(atoms, distances, self.molecules).addToSystem(system, self.bias)

    def each(self, s, V):
        """(s, V) of each molecule."""
        return [(r, lowered_barrier(np.array([r]))[0]) for r in s]

    def inner_energy(self, positions):
        apart = np.linalg.norm(positions[2::3] - positions[1::3], axis=1) - 0.12
        return MASS / 4 * FAST**2 * float((apart**2).mean())


class Ala2:
    """Alanine dipeptide, amber14 and OBC2."""

    middle = 0.0

    def __init__(self):
        self.topology, self.positions = load_structure(ALA2[0])
        self._angles = self._angle_context()

    def system(self):
        return build_system(self.topology), self.positions

    def add_bias(self, system):
        return self._cv.addToSystem(system, self.bias)

    def _angle_context(self):
        system = build_system(self.topology)
        for index in reversed(range(system.getNumForces())):
            if not isinstance(system.getForce(index), openmm.HarmonicAngleForce):
                system.removeForce(index)
        return openmm.Context(system, openmm.VerletIntegrator(0.001), PLATFORM)

    def each(self, s, V):
        return [(s[0], V)]

    def inner_energy(self, positions):
        self._angles.setPositions(positions)
        return self._angles.getState(getEnergy=True).getPotentialEnergy()._value


class Phi(Ala2):
    """The bias levels phi: minus a Fourier series of the free energy that `geomgnn demo` found, up to 35 kJ/mol."""

    length, edges = 120.0, np.linspace(-np.pi, np.pi, 37)

    def __init__(self, folder):
        super().__init__()
        self._cv, self.bias = Coordinate(PHI, torsion), Static(level_phi)


class Learned(Ala2):
    """The bias is that of an OPES run, frozen: how it came about does not matter. Its kernels are made `widen` times as
    wide, so that they are less stiff."""

    growth = 400  # ps
    opes = OPES(barrier=40, pace=500, sigma=0.12)

    def __init__(self, folder, widen=2):
        super().__init__()
        self._cv = self.cv(folder)
        path = folder / "learned.bias.npz"
        if not path.exists():
            state = self._grow(self.opes)
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **self.opes.to_arrays(state))
        with np.load(path) as arrays:
            state = self.opes.from_arrays(dict(arrays))
        state = replace(state, sigmas=widen * state.sigmas)
        self.bias = Static(lambda s: self.opes.bias(state, s))
        (rate,) = CollectiveVariable.load(folder / "cv.safetensors").training_information["rate_300K_per_ps"]
        # how far a motion that a kernel drives advances in a time step, radians, as `geomgnn run` judges it
        self.phase = rate * TIMESTEP / (widen * self.opes.sigma)

    def _grow(self, opes, every=4):
        """The state of an adaptive run of `growth` ps."""
        system, positions = self.system()
        handle = self._cv.addToSystem(system, opes)
        integrator = make_integrator(TEMPERATURE, FRICTION, TIMESTEP, every, handle.forceGroup)
        context = make_context(system, integrator, positions)
        for k in range(self.growth):
            integrator.step(round(1 / (TIMESTEP * every)))
            handle.setBiasState(opes.update(handle.getBiasState(), handle.getValue(context)[0]))
            if k % 50 == 0:
                print(f"{type(self).__name__}: growing the bias, {context.getTime()}", flush=True)
        return handle.getBiasState()

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
                [run.trajectory(topology) for run in runs],
                topology,
                FitSettings(lagtime=5.0, frame_interval=0.2, tokens=TokenSpec(window="all")),
            )
            cv.save(path)
        return GeomGNNCV(path, self.topology)


SYSTEMS = {"double-well": DoubleWell, "phi": Phi}  # of which free energies are taken


def make_context(system, integrator, positions, seed=1):
    context = openmm.Context(system, integrator, PLATFORM)
    context.setPositions(positions)
    context.applyConstraints(1e-8)
    context.setVelocitiesToTemperature(TEMPERATURE, seed)
    return context


def biased_system(case):
    """(system, positions, handle): the bias in a force group of its own, the rest in group 0."""
    system, positions = case.system()
    return system, positions, case.add_bias(system)


def seed_of(*words):
    return zlib.crc32(" ".join(map(str, words)).encode()) % 2**31
