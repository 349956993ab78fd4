"""`GeomGNNCV`: a learned collective variable, and a bias on it, as forces of OpenMM."""

import functools

import openmm

from openmm_geomgnn.cv.file import SavedCV
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force import backends
from openmm_geomgnn.force.evaluation import Evaluation, Source
from openmm_geomgnn.force.integrators import has_virtual_sites, make_integrator, whole_every


class BiasHandle:
    """A bias that `GeomGNNCV.addToSystem` has added to a System.

    Attributes
    ----------
    force : openmm.Force
    forceGroup : int
    every : int
        Time steps per evaluation of the bias that `integrator` makes.
    """

    def __init__(self, force, evaluation, system, every=1):
        self.force = force
        self.forceGroup = force.getForceGroup()
        self.every = every
        self._evaluation = evaluation
        self._system = system

    def integrator(self, temperature, friction, timestep, seed=1):
        """A Langevin integrator that evaluates the bias once in `every` time steps, and all other forces at each of them.

        Numbers in K, 1/ps and ps, or Quantities. With `every` == 1 a LangevinMiddleIntegrator of this timestep, else one
        whose steps are every*timestep long. It samples what OpenMM's MTSLangevinIntegrator does, in less time, and reports a
        kinetic energy that is in line with the thermostat; and it is right for virtual sites, which OpenMM's leaves behind:
        see docs/concepts/multiple-time-steps.md.

        Raises GeomGNNError if a value makes no sense, or another force of the System is in the bias's force group.
        """
        others = _other_groups(self._system, self.forceGroup) if self.every > 1 else (0,)
        sites = has_virtual_sites(self._system)
        return make_integrator(temperature, friction, timestep, self.every, self.forceGroup, seed, others, sites)

    def getState(self):
        """The state of the bias that forces are computed with."""
        return self._evaluation.state

    def setState(self, state):
        """Replace the state of the bias; a Context uses it from its next force evaluation on."""
        self._evaluation.state = state

    @property
    def last(self):
        """(s (d,), V in kJ/mol) of the most recent force evaluation in this process, None before the first."""
        return self._evaluation.last

    @property
    def error(self):
        """The exception that an evaluation raised, with its traceback; None if there was none.

        OpenMM's own exception has no more than its message. Copies of a force (in XML, in a CustomCVForce) keep their
        exceptions to themselves, so the message has the traceback in it, where it is not one of our own errors.
        """
        return self._evaluation.error

    def value(self, context):
        """(s (d,), V in kJ/mol) at the current positions of a Context of the System, or of a copy of it.

        Raises OpenMMException, as a step does, where the bias cannot be evaluated; `error` then has the cause.
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


class GeomGNNCV:
    """A learned collective variable as an OpenMM force whose energy is one component of it.

    Add it to a `CustomCVForce`, pass it to `openmm.app.metadynamics.BiasVariable`, or, the fast way, bias all components at
    once with `addToSystem`. `compute` gives the same numbers for trajectories.

    Parameters
    ----------
    cv : path or CollectiveVariable
        A file written by `geomgnn fit` or `geomgnn run`. Copies of the force, in XML too, hold its path and hash;
        of a CollectiveVariable they hold all.
    topology : openmm.app.Topology, mdtraj.Topology or path
        Of the whole system; the CV finds its atoms in it.
    component : int, optional
        Which component the energy of this force is; the slowest, 0, by default.
    precision : {"single", "double"}
        Of the network; the projection is always in double precision.
    engine : {"auto", "eager", "numba", "cuda"}
        What evaluates the network.
    periodic : bool, optional
        Whether the molecule may be cut by a periodic box and has to be made whole. By default so if `topology` is an
        OpenMM topology with a box; `addToSystem` asks the System.
    backend : {"auto", "PythonForce", "PythonTorchForce", "TorchForce"}
        The class of the OpenMM force that this one also is an instance of. `auto` is `PythonForce`, of OpenMM >= 8.6, where
        it is, else openmm-torch's `TorchForce`, which runs the network as TorchScript: always for the energy of a component,
        for a bias with the engine `eager`. openmm-torch's `PythonTorchForce` hands over tensors. `geomgnn doctor` says which
        can be used.
    device : str or torch.device, optional
        Where the network is evaluated, "cpu", "cuda" or "cuda:0", whatever the platform of OpenMM; by default the CPU unless
        the engine is `cuda`.
    failures : path, optional
        A folder. When positions, CV or bias stop being finite, or the network fails, the last good frame of the CV's atoms
        and the failing one are written there, as geomgnn-failure-step-N.pdb and .npz. None: they are not.

    Raises
    ------
    GeomGNNError
        If the file cannot be read, the topology is of another molecule, the component does not exist, or the backend cannot
        be used.
    """

    def __new__(
        cls,
        cv,
        topology,
        component=None,
        *,
        precision="single",
        engine="auto",
        periodic=None,
        backend="auto",
        failures=".",
        device=None,
    ):
        if periodic is None:
            periodic = hasattr(topology, "getPeriodicBoxVectors") and topology.getPeriodicBoxVectors() is not None
        path = None if isinstance(cv, SavedCV) else cv
        cv = CollectiveVariable.load(path) if path is not None else cv
        bound = cv.bind(topology, precision, engine, device)
        source = Source(path, cv, bound.molecule, precision, engine, device)
        component = 0 if component is None else component
        if isinstance(component, bool) or int(component) != component or not 0 <= component < cv.dimension:
            raise GeomGNNError(
                f"This CV has {cv.dimension} component{'s' if cv.dimension > 1 else ''}, numbered from 0; component "
                f"{component} does not exist."
            )
        evaluation = Evaluation(source, int(component), periodic=bool(periodic), bound=bound, failures=failures)
        backend = backends.choose(backend)
        force = backends.backend(backend).make_force(evaluation)
        # OpenMM makes forces of its own classes: this one is to be of both
        force.__class__ = _both(cls, type(force))
        force._evaluation, force._backend = evaluation, backend
        force.setName("GeomGNNCV")
        return force

    def __init__(self, *arguments, **settings):
        """`__new__` has made the force; that of OpenMM's class must not be made again."""

    @property
    def backend(self):
        """Name of the backend."""
        return self._backend

    @property
    def bound(self):
        """The `BoundCV` behind this force."""
        return self._evaluation.bound

    @property
    def atoms(self):
        """Indices of the atoms the CV depends on."""
        return self.bound.atoms

    @property
    def dimension(self):
        """Number of components."""
        return self.bound.dimension

    def compute(self, trajectory, progress=None, *, boxes=None):
        """All components (frames, d) of an mdtraj trajectory, or of positions (frames, atoms, 3) in nm and their periodic
        `boxes` (frames, 3, 3), where there are some; see `base.Bound.compute`."""
        return self.bound.compute(trajectory, progress, boxes=boxes)

    def addToSystem(self, system, bias=None, forceGroup=None, every=1):
        """Add a bias on all components to a System: one forward and one backward pass of the network a step.

        A copy of the System, and one read from XML, has the bias in its initial state, whatever `BiasHandle.setState` did:
        add the bias anew to a System without it, and save the bias state with `bias.to_arrays`. With the backend TorchForce
        a copy in this process has the same bias, state and all, and one in another process refuses to be evaluated.

        Parameters
        ----------
        system : openmm.System
            Periodic boundaries of the System are taken over.
        bias : optional
            A bias of `openmm_geomgnn.sampling`. Without one the CV is only watched: no energy, no forces.
        forceGroup : int, optional
            Group of the new force; the highest free one by default.
        every : int
            Time steps per evaluation of the bias (multiple time steps): it is the integrator that does this, so use that of
            `BiasHandle.integrator`. With any other the bias acts at every step, which nobody notices but the clock; except,
            in a System without virtual sites, with an MTSLangevinIntegrator or MTSIntegrator of
            `[(handle.forceGroup, 1), (0, every)]`.

        Returns
        -------
        BiasHandle

        Raises
        ------
        GeomGNNError
            If the System has another number of particles than the topology, no force group is free, `every` is no count of
            steps, or with `every` > 1 the group is not the bias's alone.
        """
        if system.getNumParticles() != self.bound.molecule.n_atoms_total:
            raise GeomGNNError(
                f"The System has {system.getNumParticles()} particles and the topology "
                f"{self.bound.molecule.n_atoms_total} atoms. Make GeomGNNCV with the topology this System was made from."
            )
        every = whole_every(every)
        if forceGroup is None:
            used = set().union(*map(_groups, system.getForces()))
            free = [group for group in range(31, 0, -1) if group not in used]
            if not free:
                raise GeomGNNError("All force groups of the System are in use. Pass the group to share as forceGroup.")
            forceGroup = free[0]
        elif every > 1:
            _other_groups(system, forceGroup, allowed=0)
        periodic = system.usesPeriodicBoundaryConditions()
        source, failures = self._evaluation.source, self._evaluation.failures
        evaluation = Evaluation(source, bias=bias, periodic=periodic, bound=self.bound, failures=failures)
        force = backends.backend(self._backend).make_force(evaluation)
        force.setForceGroup(int(forceGroup))
        force.setName("GeomGNNCV bias")
        system.addForce(force)
        return BiasHandle(force, evaluation, system, every)


def _other_groups(system, group, allowed=1):
    """The force groups of a System besides `group`, in which there may be `allowed` forces: the bias.

    Raises GeomGNNError if there are more: they would act as rarely as the bias.
    """
    groups = [(force.getName(), _groups(force)) for force in system.getForces()]
    inside = [name for name, of_force in groups if group in of_force]
    if len(inside) > allowed:
        raise GeomGNNError(
            f"{' and '.join(inside)} {'are' if len(inside) > 1 else 'is'} in force group {group}, but with every > 1 the "
            "bias needs a group of its own: what is in it acts at every k-th time step only. Leave out forceGroup, or put "
            "other forces, and the reciprocal space of a NonbondedForce, into another with setForceGroup."
        )
    return sorted(set().union(*(of_force for _, of_force in groups)) - {group})


def _groups(force):
    reciprocal = force.getReciprocalSpaceForceGroup() if isinstance(force, openmm.NonbondedForce) else -1
    return {force.getForceGroup()} if reciprocal < 0 else {force.getForceGroup(), reciprocal}


@functools.cache
def _both(cls, kind):
    return type(cls.__name__, (cls, kind), {"__doc__": cls.__doc__, "__module__": cls.__module__})
