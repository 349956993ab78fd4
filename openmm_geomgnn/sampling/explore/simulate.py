"""The dynamics that the ways of exploration share."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import openmm
from openmm import app

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.integrators import make_integrator
from openmm_geomgnn.sampling.explore.base import Molecule
from openmm_geomgnn.sampling.plan import whole_steps
from openmm_geomgnn.sampling.relaxation import kinetic_temperature, relax
from openmm_geomgnn.sampling.walker import make_system, platform_of
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

_HOTTEST = 5.0  # relative to the thermostat's: no fluctuation gets there
LOWEST_FRICTION = 2.0  # 1/ps: what exploring releases must go somewhere


class _BlownUp(Exception):
    """The last step is that of no molecule any more."""


class Dynamics:
    """A molecule in an app.Simulation of its own, relaxed, that advances and keeps frames until it ends or blows up.

    Parameters
    ----------
    molecule : Molecule
    forces : list of openmm.Force
        To be added to its system.
    frame_interval : int
        Time steps between frames.

    Raises
    ------
    GeomGNNError
        If it cannot be relaxed.
    """

    def __init__(self, molecule: Molecule, forces: list[openmm.Force], frame_interval: int) -> None:
        self.spec = replace(molecule.spec, friction=max(molecule.spec.friction, LOWEST_FRICTION))
        system = make_system(self.spec, molecule.topology)
        for force in forces:
            system.addForce(force)
        self._masses = np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])
        self._freedom = molecule.degrees_of_freedom
        noise, velocities, relaxing = self.spec.seeds(0)
        spec = self.spec
        integrator = make_integrator(spec.temperature, spec.friction, spec.timestep, seed=noise)
        platform = platform_of(spec, len(self._masses))
        self.simulation = app.Simulation(molecule.topology, system, integrator, *platform)
        self.context = self.simulation.context
        self._interval = frame_interval
        self._periodic = system.usesPeriodicBoundaryConditions()
        self._start(velocities, relaxing)
        self.frames: list[np.ndarray] = []
        self.boxes: list[np.ndarray] = []
        self.temperatures: list[float] = []

    def _start(self, velocities: int, relaxing: int) -> None:
        try:
            self.context.setPositions(self.spec.positions)
            relax(self.context, self.spec, relaxing, self._masses, self._freedom)
            self.context.applyConstraints(1e-6)
            self.context.setVelocitiesToTemperature(self.spec.temperature, velocities)
        except openmm.OpenMMException as error:
            raise GeomGNNError(f"The exploration cannot begin from {self.spec.structure}: {error}.") from error

    @property
    def positions(self) -> np.ndarray:
        """(N, 3) in nm."""
        return self.context.getState(getPositions=True).getPositions(asNumpy=True)._value

    def advance(self, total: int, pace: int, every: Callable[[], None], frame: Callable[[], None]) -> str | None:
        """Advance by time steps, and keep a frame every frame_interval of them.

        Parameters
        ----------
        total, pace : int
            Time steps, of which `pace` lie between two calls of `every`.
        every, frame : callable
            Called after `pace` steps, and when a frame was kept.

        Returns
        -------
        str or None
            What went wrong, in a sentence: it ends where the simulation blows up, and the last frame is not kept.
        """
        step = 0
        while step < total:
            stop = min((step // interval + 1) * interval for interval in (pace, self._interval))
            try:
                self.simulation.step(min(stop, total) - step)
                step = min(stop, total)
                if step % self._interval == 0:
                    self._keep()
                    frame()
                if step % pace == 0:
                    every()
            except (openmm.OpenMMException, _BlownUp) as error:
                if isinstance(error, openmm.OpenMMException) and "NaN" not in str(error):
                    raise
                return (
                    f"It blew up before {(len(self.frames) + 1) * self._interval * self.spec.timestep:g} ps, where it ends: "
                    f"use a timestep shorter than {self.spec.timestep:g} ps, or a lower barrier."
                )
        return None

    def _keep(self) -> None:
        state = self.context.getState(getPositions=True, enforcePeriodicBox=self._periodic)
        positions = state.getPositions(asNumpy=True)._value
        temperature = kinetic_temperature(self.context, self._masses, self._freedom)
        if not (np.isfinite(positions).all() and temperature < _HOTTEST * self.spec.temperature):
            raise _BlownUp
        self.frames.append(positions.astype(np.float32))
        self.temperatures.append(temperature)
        if self._periodic:
            self.boxes.append(state.getPeriodicBoxVectors(asNumpy=True)._value)

    @property
    def kept(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The frames (F, N, 3) and boxes (F, 3, 3) or None, nm."""
        frames = np.array(self.frames, dtype=np.float32).reshape(-1, len(self._masses), 3)
        return frames, np.array(self.boxes) if self._periodic else None


def steps(time: float, spec: WalkerSpec) -> int:
    """The time steps of a time in ps."""
    return whole_steps(time, spec.timestep)
