"""A bias in a System: its state, its value, and the force groups that multiple time steps need."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import openmm

from openmm_geomgnn.aliases import QuantityLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.evaluation import Evaluation
from openmm_geomgnn.force.integrators import has_virtual_sites, make_integrator


def _former_name(old: str, new: str) -> Callable[..., Any]:
    """A method that warns that it is now called `new`, and calls that."""

    def method(self: Any, *arguments: Any, **settings: Any) -> Any:
        warnings.warn(f"BiasHandle.{old} is now called {new}.", DeprecationWarning, stacklevel=2)
        return getattr(self, new)(*arguments, **settings)

    method.__name__, method.__doc__ = old, f"Former name of `{new}`; deprecated."
    return method


class BiasHandle:
    """A bias that `GeomGNNCV.addToSystem` has added to a System.

    Attributes
    ----------
    force : openmm.Force
    forceGroup : int
    every : int
        Time steps per evaluation of the bias with an integrator of `createIntegrator`.
    """

    def __init__(self, force: openmm.Force, evaluation: Evaluation, system: openmm.System, every: int = 1) -> None:
        self.force = force
        self.forceGroup = force.getForceGroup()
        self.every = every
        self._evaluation = evaluation
        self._system = system

    def createIntegrator(
        self, temperature: QuantityLike, friction: QuantityLike, timestep: QuantityLike, seed: int = 1
    ) -> openmm.Integrator:
        """Create a Langevin integrator that evaluates the bias once in `every` time steps and all other forces at each.

        It samples the same ensemble as OpenMM's MTSLangevinIntegrator in less time, reports a kinetic energy that agrees
        with the thermostat, and treats virtual sites correctly, which OpenMM's does not: see
        docs/concepts/multiple-time-steps.md.

        Parameters
        ----------
        temperature : float or Quantity
            K.
        friction : float or Quantity
            1/ps.
        timestep : float or Quantity
            ps.
        seed : int

        Returns
        -------
        openmm.Integrator
            With `every` == 1 a LangevinMiddleIntegrator of this timestep, else an integrator whose steps are every*timestep
            long.

        Raises
        ------
        GeomGNNError
            If a value is out of range, or another force of the System is in the bias's force group.
        """
        others = other_groups(self._system, self.forceGroup) if self.every > 1 else (0,)
        sites = has_virtual_sites(self._system)
        return make_integrator(temperature, friction, timestep, self.every, self.forceGroup, seed, others, sites)

    def getBiasState(self) -> Any:
        """Get the bias state that forces are computed with."""
        return self._evaluation.state

    def setBiasState(self, state: Any) -> None:
        """Set the bias state; Contexts use it from their next force evaluation on."""
        self._evaluation.state = state

    @property
    def last(self) -> tuple[np.ndarray, float] | None:
        """The pair (s (d,), V in kJ/mol) of the most recent force evaluation in this process; None before the first."""
        return self._evaluation.last

    @property
    def error(self) -> BaseException | None:
        """The exception that an evaluation raised, with its traceback; None if there was none.

        OpenMM's own exception carries only the message. Copies of a force (from XML, in a CustomCVForce) have no handle, so
        the message of an unexpected exception includes its traceback.
        """
        return self._evaluation.error

    def getValue(self, context: openmm.Context) -> tuple[np.ndarray, float]:
        """Get the values of the CV and the energy of the bias at the current positions of a Context.

        Parameters
        ----------
        context : openmm.Context
            Of the System, or of a copy of it.

        Returns
        -------
        s : (d,) ndarray
            All components of the CV, which have no unit.
        V : float
            The energy of the bias, kJ/mol, as a bare number: it goes into `update` and `to_arrays` of a bias.

        Raises
        ------
        openmm.OpenMMException
            If the bias cannot be evaluated; `error` then has the cause.

        Examples
        --------
        >>> from importlib.resources import files
        >>> import mdtraj
        >>> structure = mdtraj.load(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
        >>> import numpy as np
        >>> noise = 0.01 * np.random.default_rng(0).normal(size=(100, structure.n_atoms, 3))
        >>> trajectory = mdtraj.Trajectory(structure.xyz + noise, structure.topology)  # in place of a simulation
        >>> from openmm_geomgnn.cv import FitSettings, fit_cv
        >>> settings = FitSettings(lagtime=0.2, frame_interval=0.1, softening=0.0)
        >>> cv = fit_cv([trajectory], structure.topology, settings)
        >>> topology = structure.topology.to_openmm()
        >>> from openmm_geomgnn import GeomGNNCV
        >>> from openmm_geomgnn.sampling import OPES
        >>> from openmm_geomgnn.sampling.systems import build_system
        >>> system = build_system(topology)
        >>> handle = GeomGNNCV(cv, topology).addToSystem(system, bias=OPES(barrier=40, pace=500))
        >>> import openmm
        >>> integrator = handle.createIntegrator(300, 1, 0.002)
        >>> context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
        >>> context.setPositions(structure.openmm_positions(0))
        >>> s, V = handle.getValue(context)
        >>> s.shape, V  # nothing was deposited yet
        ((1,), -40.0)
        """
        # not by way of the force: several Contexts of one System, maybe in several threads, share one evaluation's `last`
        state = context.getState(getPositions=True)
        pos = state.getPositions(asNumpy=True)._value[self._evaluation.bound.atoms]
        box = state.getPeriodicBoxVectors(asNumpy=True)._value
        try:
            s, V, _ = self._evaluation.evaluate(pos, box, state.getStepCount())
        except GeomGNNError as error:
            raise openmm.OpenMMException(str(error)) from error
        return s, V

    value = _former_name("value", "getValue")
    getState = _former_name("getState", "getBiasState")
    setState = _former_name("setState", "setBiasState")
    integrator = _former_name("integrator", "createIntegrator")


def other_groups(system: openmm.System, group: int, allowed: int = 1) -> list[int]:
    """The force groups of a System other than `group`, the group of the bias.

    Raises
    ------
    GeomGNNError
        If there are more than `allowed` forces in `group`: all of them would act as rarely as the bias.
    """
    groups = [(force.getName(), groups_of(force)) for force in system.getForces()]
    inside = [name for name, of_force in groups if group in of_force]
    if len(inside) > allowed:
        raise GeomGNNError(
            f"{' and '.join(inside)} {'are' if len(inside) > 1 else 'is'} in force group {group}, but with every > 1 the "
            "bias needs a group of its own, since everything in it acts at every k-th time step only. Leave out forceGroup, "
            "or put other forces, and the reciprocal space of a NonbondedForce, into another with setForceGroup."
        )
    return sorted(set().union(*(of_force for _, of_force in groups)) - {group})


def groups_of(force: openmm.Force) -> set[int]:
    """The force groups that a force belongs to."""
    reciprocal = force.getReciprocalSpaceForceGroup() if isinstance(force, openmm.NonbondedForce) else -1
    return {force.getForceGroup()} if reciprocal < 0 else {force.getForceGroup(), reciprocal}
