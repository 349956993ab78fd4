"""One simulated system: an OpenMM Context that advances in blocks of steps under a bias that is given from outside."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import openmm
from openmm import app

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.integrators import has_virtual_sites, make_integrator
from openmm_geomgnn.sampling.failures import LastFrames
from openmm_geomgnn.sampling.relaxation import kinetic_temperature, relax
from openmm_geomgnn.sampling.systems import (
    SystemSettings,
    build_system,
    choose_platform,
    degrees_of_freedom,
    load_structure,
    system_topology,
)
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class WalkerReport:
    """What happened in a block of outer steps.

    step: outer steps done since the start.
    s, V: CV (d,) and bias in kJ/mol at the end; None without a bias.
    observations: the CV (n, d) at every outer step, for a bias that measures its own widths; else None.
    rows: (n_rows, d + 3), time in ps, CV, V and temperature in K, under the bias state of this block; without a bias
        (n_rows, 2), time and temperature.
    frames: (n_frames, N, 3) float32 in nm. boxes: (n_frames, 3, 3) in nm for a periodic system, else None.
    """

    step: int
    s: np.ndarray | None
    V: float | None
    observations: np.ndarray | None
    rows: np.ndarray
    frames: np.ndarray
    boxes: np.ndarray | None


@dataclass(frozen=True)
class WalkerFacts:
    """What a run needs to know about a walker: its CV components (0 without a bias) and kinetic degrees of freedom."""

    dimension: int
    degrees_of_freedom: int


class Walker:
    """A simulation made from a WalkerSpec. Call `start` or `restore` once, then `advance`.

    Parameters
    ----------
    spec : WalkerSpec
    step : int
        The outer step at which it will begin.

    Raises
    ------
    GeomGNNError
        If structure, system, CV or platform cannot be made.

    Examples
    --------
    >>> from importlib.resources import files
    >>> from openmm_geomgnn.sampling.walker import Walker
    >>> from openmm_geomgnn.sampling.walker_spec import WalkerSpec
    >>> structure = str(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
    >>> walker = Walker(WalkerSpec(structure, platform="Reference", colvar_interval=5, frame_interval=10))
    >>> walker.start()
    >>> report = walker.advance(None, 20)
    >>> report.rows.shape, report.frames.shape  # time and temperature; positions
    ((4, 2), (2, 22, 3))
    """

    def __init__(self, spec: WalkerSpec, step: int = 0) -> None:
        self.spec = spec
        self.step = step
        topology, positions = load_start(spec)
        self._positions = positions
        self._system = make_system(spec, topology)
        self._topology = system_topology(topology, self._system)
        if positions.shape != (self._system.getNumParticles(), 3) or not np.isfinite(positions).all():
            raise GeomGNNError(
                f"The start positions of walker {spec.index} have the shape {positions.shape} for "
                f"{self._system.getNumParticles()} atoms, or are not finite. Give (atoms, 3) in nm."
            )
        self._masses = np.array([self._system.getParticleMass(i)._value for i in range(len(positions))])
        self._degrees_of_freedom = degrees_of_freedom(self._system)
        self._periodic = self._system.usesPeriodicBoundaryConditions()
        self._platform = platform_of(spec, len(positions))
        self._last_frames = LastFrames(spec.failures, spec.index, self._topology)
        self._handle: Any = None
        self._dimension = 0
        self._plain_system = openmm.XmlSerializer.serialize(self._system)
        if spec.bias is not None:
            for force in self._system.getForces():
                # the integrator of multiple time steps evaluates only group 0 and the bias
                force.setForceGroup(0)
                if isinstance(force, openmm.NonbondedForce):
                    force.setReciprocalSpaceForceGroup(-1)
            cv = self._make_cv()
            self._dimension = cv.dimension
            self._handle = cv.addToSystem(self._system, bias=spec.bias)
        noise, self._velocity_seed, self._equilibration_seed = spec.seeds(step)
        group = None if self._handle is None else self._handle.forceGroup
        sites = has_virtual_sites(self._system)
        settings = spec.temperature, spec.friction, spec.timestep, spec.every
        self._integrator = make_integrator(*settings, group, noise, virtual_sites=sites)
        self._context = self._guarded(openmm.Context, self._system, self._integrator, *self._platform)
        self._bias_state = None
        self._value: tuple[int, np.ndarray, float] | None = None  # (step, s, V)

    def _make_cv(self) -> Any:
        if self.spec.make_cv is not None:
            return self.spec.make_cv(self._topology)
        # here, because without a CV no network library is needed
        from openmm_geomgnn.force.geomgnncv import GeomGNNCV

        return GeomGNNCV(
            self.spec.cv_path,
            self._topology,
            precision=self.spec.precision,
            engine=self.spec.engine,
            failures=self._last_frames.folder,
        )

    @property
    def facts(self) -> WalkerFacts:
        """What a run needs to know about this walker."""
        return WalkerFacts(self._dimension, self._degrees_of_freedom)

    @property
    def time(self) -> float:
        """Time since the start, ps."""
        return self.step * self.spec.outer_step

    def start(self) -> None:
        """Begin from the start positions, minimised and equilibrated as specified, with new random velocities."""
        positions, box = self._guarded(self._relaxed)
        self._context.setPeriodicBoxVectors(*box)
        self._context.setPositions(positions)
        self._last_frames.follow(self._context, positions._value)
        self._guarded(self._context.applyConstraints, 1e-6)
        # it evaluates the forces
        self._guarded(self._context.setVelocitiesToTemperature, self.spec.temperature, self._velocity_seed)

    def _relaxed(self) -> tuple[Any, Any]:
        """Minimise and equilibrate without the bias, which is still flat and costs time; return positions and box."""
        spec, system = self.spec, openmm.XmlSerializer.deserialize(self._plain_system)
        integrator = make_integrator(spec.temperature, spec.friction, spec.timestep, seed=self._equilibration_seed)
        context = openmm.Context(system, integrator, *self._platform)
        context.setPositions(self._positions)
        self._last_frames.follow(context, self._positions)
        relax(context, spec, self._equilibration_seed, self._masses, self._degrees_of_freedom)
        state = context.getState(getPositions=True)
        positions = state.getPositions(asNumpy=True)
        if not np.isfinite(positions._value).all():
            raise self._blown_up("positions", "in its equilibration")
        return positions, state.getPeriodicBoxVectors()

    def restore(self, checkpoint: bytes) -> None:
        """Continue from the bytes of `checkpoint`, bit for bit on the Reference platform.

        Raises GeomGNNError if OpenMM cannot read them because they come from another platform, machine or version.
        """
        try:
            self._context.loadCheckpoint(checkpoint)
        except openmm.OpenMMException as error:
            raise GeomGNNError(
                f"OpenMM cannot continue walker {self.spec.index} from its checkpoint on the platform "
                f"{self._platform[0].getName()}: {error}. Continue with the platform, machine and version of OpenMM "
                "that wrote it, or start again in another folder."
            ) from error
        self._last_frames.follow(self._context)

    def checkpoint(self) -> bytes:
        """The state of the Context as bytes, for `restore`."""
        return self._context.createCheckpoint()

    def advance(self, state: Any, n_outer_steps: int) -> WalkerReport:
        """Advance by n_outer_steps under the bias state `state` (None: as before). Returns a WalkerReport.

        Raises a GeomGNNError that names walker and time if positions or velocities stop being finite, or if the CV or
        OpenMM fail; its cause is the original exception.
        """
        self._set_bias_state(state)
        spec, end = self.spec, self.step + n_outer_steps
        adaptive = self._handle is not None and getattr(spec.bias, "adaptive", False)
        observations, rows, frames, boxes = [], [], [], []
        while self.step < end:
            stops = [end] + [
                (self.step // interval + 1) * interval
                for interval in (spec.colvar_interval, spec.frame_interval)
                if interval
            ]
            stop = self.step + 1 if adaptive else min(stops)
            self._guarded(self._integrator.step, stop - self.step)
            self.step = stop
            if adaptive:
                # a Langevin middle step evaluates the forces where it begins, so this may be the CV one step earlier:
                # that measures the same width, and saves an evaluation of the network
                observations.append(self._handle.last[0])
            if spec.colvar_interval and stop % spec.colvar_interval == 0:
                rows.append(self._row())
            if spec.frame_interval and stop % spec.frame_interval == 0:
                positions, box = self._frame()
                frames.append(positions)
                boxes.append(box)
        self._check_finite()
        s, V = (None, None) if self._handle is None else self._cv()
        n_atoms = len(self._masses)
        return WalkerReport(
            step=self.step,
            s=s,
            V=V,
            observations=np.array(observations) if adaptive else None,
            rows=np.array(rows, dtype=np.float64).reshape(len(rows), 2 if s is None else len(s) + 3),
            frames=np.array(frames, dtype=np.float32).reshape(len(frames), n_atoms, 3),
            boxes=np.array(boxes) if self._periodic else None,
        )

    def _set_bias_state(self, state: Any) -> None:
        if state is None or state is self._bias_state or self._handle is None:
            return
        self._bias_state = state
        self._handle.setBiasState(state)

    def _cv(self) -> tuple[np.ndarray, float]:
        """(s (d,), V) at the current positions."""
        if self._value is None or self._value[0] != self.step:
            s, V = self._guarded(self._handle.getValue, self._context)
            self._value = self.step, np.array(s, dtype=np.float64), float(V)
        return self._value[1:]

    def _row(self) -> list[float]:
        temperature = kinetic_temperature(self._context, self._masses, self._degrees_of_freedom)
        if not np.isfinite(temperature):
            raise self._blown_up("velocities")
        if self._handle is None:
            return [self.time, temperature]
        s, V = self._cv()
        return [self.time, *s, V, temperature]

    def _frame(self) -> tuple[np.ndarray, np.ndarray | None]:
        # a periodic trajectory is written with its molecules in the box, as OpenMM's own reporters do
        state = self._context.getState(getPositions=True, enforcePeriodicBox=self._periodic)
        positions = state.getPositions(asNumpy=True)._value
        if not np.isfinite(positions).all():
            raise self._blown_up("positions")
        return positions, state.getPeriodicBoxVectors(asNumpy=True)._value if self._periodic else None

    def _check_finite(self) -> None:
        positions = self._context.getState(getPositions=True).getPositions(asNumpy=True)._value
        if not np.isfinite(positions).all():
            raise self._blown_up("positions")
        self._last_frames.follow(self._context, positions)

    def _blown_up(self, what: str, when: str | None = None) -> GeomGNNError:
        advice = "a larger sigma_min, a smaller `every` or a softer CV" if self._handle else "a minimised start"
        when = when or f"at {self.time:g} ps"
        return GeomGNNError(
            f"Walker {self.spec.index} {when} has {what} that are not finite: the simulation blew up. Use a smaller "
            f"timestep (now {self.spec.timestep:g} ps), {advice}.{self._last_frames.save()}"
        )

    def _guarded(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call OpenMM; its exceptions become a GeomGNNError that names walker and time, with the original as its cause."""
        try:
            return call(*arguments)
        except openmm.OpenMMException as error:
            # OpenMM passes on only the message of an exception in the CV, but the handle has kept it
            cause = getattr(self._handle, "error", None) or error
            kind = "" if isinstance(cause, GeomGNNError | openmm.OpenMMException) else f"{type(cause).__name__}: "
            raise GeomGNNError(
                f"Walker {self.spec.index} stopped after {self.time:g} ps: {kind}{str(cause).rstrip('.')}."
                + (
                    f" Use a smaller timestep (now {self.spec.timestep:g} ps), or a minimised start."
                    if "NaN" in str(error) and cause is error
                    else ""
                )
                + self._last_frames.save()
            ) from cause


def load_start(spec: WalkerSpec) -> tuple[app.Topology, np.ndarray]:
    """The topology of a walker's structure, and the positions (N, 3) in nm from which it starts."""
    topology, positions = load_structure(spec.structure)
    return topology, positions if spec.positions is None else np.array(spec.positions, dtype=np.float64)


def platform_of(spec: WalkerSpec, n_particles: int) -> tuple[openmm.Platform, dict[str, str]]:
    """Get the openmm.Platform of a WalkerSpec and its properties."""
    return choose_platform(spec.platform, n_particles, spec.platform_precision, spec.threads)


def make_system(spec: WalkerSpec, topology: app.Topology) -> openmm.System:
    """Make the openmm.System of a WalkerSpec, without its bias."""
    if isinstance(spec.system, SystemSettings):
        return build_system(topology, spec.system)
    try:
        system = openmm.XmlSerializer.deserialize(spec.system)
    except openmm.OpenMMException as error:
        raise GeomGNNError(f"The system is not the XML of an openmm.System ({error}): use XmlSerializer.") from error
    if not isinstance(system, openmm.System):
        raise GeomGNNError(f"The system is the XML of a {type(system).__name__}, not of an openmm.System.")
    return system
