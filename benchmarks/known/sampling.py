"""Biased simulations on known torsions that go on where they stopped or were killed."""

import time
from dataclasses import dataclass

import numpy as np
from known.biases import METHODS, TEMPERATURE
from known.molecules import find_atoms
from openmm import app
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.force.integrators import make_integrator
from openmm_geomgnn.sampling.explore.fourier import dihedrals
from openmm_geomgnn.sampling.relaxation import kinetic_temperature, relax
from openmm_geomgnn.sampling.systems import degrees_of_freedom, load_structure
from openmm_geomgnn.sampling.walker import make_system, platform_of
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

PACE = 1.0  # ps between depositions, and between rows
BLOCK = 500  # rows between files


@dataclass
class Sampled:
    """What was sampled, one entry of each list for a walker.

    angles: (T, N) of the known torsions, radians. energies: (T,) what weights a row, kJ/mol. temperatures: (T,) kinetic, K.
    interval: ps between rows. seconds: of wall time, all pieces together.
    """

    angles: list[np.ndarray]
    energies: list[np.ndarray]
    temperatures: list[np.ndarray]
    interval: float
    seconds: float

    @property
    def nanoseconds(self):
        """Of all walkers."""
        return sum(map(len, self.energies)) * self.interval / 1000


def together(parts):
    """Several of the same molecule as the walkers of one."""
    walkers = {
        name: [walker for part in parts for walker in getattr(part, name)] for name in ("angles", "energies", "temperatures")
    }
    return Sampled(**walkers, interval=parts[0].interval, seconds=sum(part.seconds for part in parts))


def sample(known, method, length, seed, folder):
    """Simulate up to `length` ps, force field, masses and integrator being those of `geomgnn run` by default.

    What is in `folder` from an earlier call, perhaps a shorter one, is taken up.
    """
    path = folder / f"{known.structure.stem}.{method}.{seed}.npz"
    rows, seconds, saved = np.zeros((0, len(known.torsions) + 2)), 0.0, None
    if path.exists():
        with np.load(path) as file:
            saved = dict(file)
        if saved["torsions"].tolist() != list(known.torsions) or saved["barrier"] != known.barrier:
            raise SystemExit(f"{path} is of other torsions or another barrier: give another --output.")
        rows, seconds = saved["rows"], float(saved["seconds"])
    total = round(length / PACE)
    if len(rows) < total:
        simulation = _Simulation(known, method, seed, saved)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} ps")
        with Progress(*columns, TimeRemainingColumn()) as progress:
            name = f"{known.structure.stem}, {method}, seed {seed}"
            task = progress.add_task(name, total=length, completed=len(rows) * PACE)
            while len(rows) < total:
                started = time.perf_counter()
                new = [simulation.row() for _ in range(min(BLOCK, total - len(rows)))]
                rows, seconds = np.concatenate([rows, new]), seconds + time.perf_counter() - started
                facts = {"rows": rows, "seconds": seconds, "torsions": np.array(known.torsions), "barrier": known.barrier}
                with atomic_write(path) as temporary:
                    np.savez(temporary, **facts, **simulation.arrays())
                progress.update(task, completed=len(rows) * PACE)
    rows = rows[:total]
    return Sampled([rows[:, :-2]], [rows[:, -2]], [rows[:, -1]], PACE, seconds)


class _Simulation:
    """A simulation from its start, or from the arrays that it gave."""

    def __init__(self, known, method, seed, saved):
        self._spec = WalkerSpec(str(known.structure), temperature=TEMPERATURE, equilibration=5.0, seed=seed)
        topology, positions = load_structure(known.structure)
        system = make_system(self._spec, topology)
        self._atoms, self._steps = find_atoms(topology, known.torsions), round(PACE / self._spec.timestep)
        self._masses = np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])
        self._freedom = degrees_of_freedom(system)
        bias = {name[5:]: value for name, value in (saved or {}).items() if name.startswith("bias.")}
        self._bias = METHODS[method](system, self._atoms, known.barrier, self._steps, bias)
        noise, velocities, relaxing = self._spec.seeds(0)
        integrator = make_integrator(TEMPERATURE, self._spec.friction, self._spec.timestep, seed=noise)
        self._simulation = app.Simulation(topology, system, integrator, *platform_of(self._spec, len(self._masses)))
        self._context = self._simulation.context
        if saved is not None:
            self._context.loadCheckpoint(saved["checkpoint"].tobytes())
            self._bias.restore(self._context)
            return
        self._context.setPositions(positions)
        relax(self._context, self._spec, relaxing, self._masses, self._freedom)
        self._context.setVelocitiesToTemperature(TEMPERATURE, velocities)
        self._simulation.currentStep = 0

    def row(self):
        """Go on by PACE; what is measured halfway, where the bias has not just been deposited at this very point."""
        half = self._steps // 2
        self._bias.step(self._simulation, half)
        positions = self._context.getState(getPositions=True).getPositions(asNumpy=True)._value
        temperature = kinetic_temperature(self._context, self._masses, self._freedom)
        row = [*dihedrals(positions, self._atoms), self._bias.energy(self._simulation), temperature]
        self._bias.step(self._simulation, self._steps - half)
        return row

    def arrays(self):
        """What `saved` of another one may be."""
        bias = {f"bias.{name}": value for name, value in self._bias.arrays().items()}
        return {"checkpoint": np.frombuffer(self._context.createCheckpoint(), dtype=np.uint8), **bias}
