"""`GeomGNNCV`: a learned collective variable, and a bias on it, as forces of OpenMM."""

import openmm

from openmm_geomgnn.backends.evaluation import Evaluation, Source
from openmm_geomgnn.backends.python_force import Callback, python_force, set_up
from openmm_geomgnn.cv import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.selection import as_topology


class BiasHandle:
    """A bias that `GeomGNNCV.addToSystem` has added to a System.

    Attributes
    ----------
    force : openmm.PythonForce
    forceGroup : int
    """

    def __init__(self, force, evaluation):
        self.force = force
        self.forceGroup = force.getForceGroup()
        self._evaluation = evaluation

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
        """The exception that an evaluation raised, with its traceback; None if there was none."""
        return self._evaluation.error

    def value(self, context):
        """(s (d,), V in kJ/mol) at the current positions of a Context."""
        # not the energy: a CustomIntegrator draws random numbers for it, and the run would take another course
        context.getState(getForces=True, groups={self.forceGroup})
        return self._evaluation.last


class GeomGNNCV(openmm.PythonForce):
    """A learned collective variable as an OpenMM force whose energy is one component of it.

    Add it to a `CustomCVForce`, pass it to `openmm.app.metadynamics.BiasVariable`, or, the fast way, bias all components at
    once with `addToSystem`. `compute` gives the same numbers for trajectories.

    Parameters
    ----------
    cv : path or CollectiveVariable
        A file written by `geomgnn fit` or `geomgnn run`.
    topology : openmm.app.Topology, mdtraj.Topology or path
        Of the whole system; the CV finds its atoms in it.
    component : int, optional
        Which component the energy of this force is; the slowest, 0, by default.
    precision : {"single", "double"}
        Of the network; the projection is always in double precision.
    engine : {"auto", "eager", "numba"}
        What evaluates the network.
    periodic : bool, optional
        Whether the molecule may be cut by a periodic box and has to be made whole. By default so if `topology` is an
        OpenMM topology with a box; `addToSystem` asks the System.

    Raises
    ------
    GeomGNNError
        If the file cannot be read, the topology is of another molecule, or the component does not exist.
    """

    def __init__(self, cv, topology, component=None, *, precision="single", engine="auto", periodic=None):
        if periodic is None:
            periodic = hasattr(topology, "getPeriodicBoxVectors") and topology.getPeriodicBoxVectors() is not None
        path = None if isinstance(cv, CollectiveVariable) else cv
        cv = CollectiveVariable.load(path) if path is not None else cv
        topology = as_topology(topology)
        source = Source(path, cv, topology, precision, engine)
        bound = cv.bind(topology, precision, engine)
        component = 0 if component is None else component
        if isinstance(component, bool) or int(component) != component or not 0 <= component < cv.dimension:
            raise GeomGNNError(
                f"This CV has {cv.dimension} component{'s' if cv.dimension > 1 else ''}, numbered from 0; component "
                f"{component} does not exist."
            )
        self._evaluation = Evaluation(source, int(component), periodic=bool(periodic), bound=bound)
        super().__init__(Callback(self._evaluation))
        set_up(self, self._evaluation)
        self.setName("GeomGNNCV")

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

    def compute(self, trajectory, progress=None):
        """All components (frames, d) of an mdtraj trajectory, or of positions (frames, atoms, 3) in nm."""
        return self.bound.compute(trajectory, progress)

    def addToSystem(self, system, bias=None, forceGroup=None):
        """Add a bias on all components to a System: one forward and one backward pass of the network a step.

        A copy of the System, and one read from XML, has the bias in its initial state, whatever `BiasHandle.setState` did:
        add the bias anew to a System without it, and save the bias state with `bias.to_arrays`.

        Parameters
        ----------
        system : openmm.System
            Periodic boundaries of the System are taken over.
        bias : optional
            A bias of `openmm_geomgnn.sampling`. Without one the CV is only watched: no energy, no forces.
        forceGroup : int, optional
            Group of the new force; the highest free one by default.

        Returns
        -------
        BiasHandle

        Raises
        ------
        GeomGNNError
            If the System has another number of particles than the topology, or no force group is free.
        """
        if system.getNumParticles() != self.bound.molecule.n_atoms_total:
            raise GeomGNNError(
                f"The System has {system.getNumParticles()} particles and the topology "
                f"{self.bound.molecule.n_atoms_total} atoms. Make GeomGNNCV with the topology this System was made from."
            )
        if forceGroup is None:
            used = {force.getForceGroup() for force in system.getForces()}
            free = [group for group in range(31, 0, -1) if group not in used]
            if not free:
                raise GeomGNNError("All force groups of the System are in use. Pass the group to share as forceGroup.")
            forceGroup = free[0]
        periodic = system.usesPeriodicBoundaryConditions()
        evaluation = Evaluation(self._evaluation.source, bias=bias, periodic=periodic, bound=self.bound)
        force = python_force(evaluation)
        force.setForceGroup(int(forceGroup))
        force.setName("GeomGNNCV bias")
        system.addForce(force)
        return BiasHandle(force, evaluation)
