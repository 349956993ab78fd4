"""`GeomGNNCV`: a learned collective variable, and a bias on it, as forces of OpenMM."""

from pathlib import Path

import numpy as np
import openmm

from openmm_geomgnn.cv import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import sha256
from openmm_geomgnn.selection import as_topology
from openmm_geomgnn.units import NM_TO_ANGSTROM


class _Callback:
    """What `openmm.PythonForce` calls: energy and forces of a component of the CV, or of a bias on all components.

    It is pure: it reads the bias state and never changes it. OpenMM pickles it once, when a force is made of it: as a
    reference to the CV's file, not as a network, and with the bias in its initial state.
    """

    def __init__(self, source, component=None, bias=None, periodic=False, bound=None):
        self.source = source
        self.component = component
        self.bias = bias
        self.periodic = periodic
        self.bound = None
        self.state = None
        self.last = None  # (s, V) of the most recent evaluation
        self.error = None  # the exception that stopped the simulation, with its traceback
        if bound is not None:
            self._bind(bound)

    def _bind(self, bound):
        self.bound = bound
        if self.bias is not None:
            self.state = self.bias.initial_state(dimension=bound.dimension)

    def __getstate__(self):
        return {"source": self.source, "component": self.component, "bias": self.bias, "periodic": self.periodic}

    def __setstate__(self, saved):
        # An exception in here would crash OpenMM, and it makes copies that are never evaluated: the file is read, and may
        # turn out to be missing, at the first evaluation.
        self.__init__(**saved)

    def __call__(self, state):
        try:
            return self._evaluate(state)
        except Exception as error:
            # OpenMM passes on nothing but the message: keep the exception itself for whoever wants to see it
            self.error = error
            raise

    def _evaluate(self, state):
        if self.bound is None:
            self._bind(self.source.bind())
        pos = state.getPositions(asNumpy=True)._value
        if not np.isfinite(pos).all():
            raise GeomGNNError(
                f"{_bad_atoms(pos, self.bound.atoms)} have positions that are not finite at step {state.getStepCount()}: "
                "the simulation blew up. Use a smaller timestep, evaluate the bias more often (every), or minimise the "
                "starting structure."
            )
        if self.periodic:
            pos = self.bound.molecule.make_whole(pos, state.getPeriodicBoxVectors(asNumpy=True)._value)
        s, vjp = self.bound.value_and_vjp(pos * NM_TO_ANGSTROM)
        if not np.isfinite(s).all():
            raise GeomGNNError(
                f"The network returned {s} for the collective variable at step {state.getStepCount()}. The CV file's "
                "numbers are damaged, or two atoms are on top of one another: check the last frames and the CV file."
            )
        if self.bias is not None:
            energy, slope = self.bias.bias(self.state, s)
        elif self.component is not None:
            energy, slope = s[self.component], np.eye(len(s))[self.component]
        else:
            energy, slope = 0.0, np.zeros(len(s))
        energy, slope = float(energy), np.asarray(slope, dtype=np.float64)
        forces = vjp(slope) * -NM_TO_ANGSTROM if slope.any() else np.zeros(pos.shape)
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise GeomGNNError(
                f"The bias or its forces are not finite at step {state.getStepCount()} (s = {s}, energy {energy} kJ/mol; "
                f"{_bad_atoms(forces, self.bound.atoms)}). Check the last frames for atoms on top of one another."
            )
        self.last = (s, energy)
        return energy, forces


def _bad_atoms(rows, atoms):
    bad = atoms[~np.isfinite(rows).all(axis=1)]
    return f"atoms {', '.join(map(str, bad[:5]))}{', ...' if len(bad) > 5 else ''}" if len(bad) else "no atom in particular"


class _Source:
    """Where a bound CV comes from, so that a serialised force can be made again."""

    def __init__(self, path, cv, topology, precision, engine):
        self.path = None if path is None else Path(path).resolve()
        self.hash = None if path is None else sha256(path)
        self.cv = cv if path is None else None
        self.topology = topology
        self.precision = precision
        self.engine = engine

    def bind(self):
        cv = self.cv
        if cv is None:
            cv = CollectiveVariable.load(self.path)
            if sha256(self.path) != self.hash:
                raise GeomGNNError(
                    f"{self.path} is not the file this force was made with: it was written anew since. Put the old file "
                    "back, or make the force again with GeomGNNCV."
                )
        return cv.bind(self.topology, self.precision, self.engine)


class BiasHandle:
    """A bias that `GeomGNNCV.addToSystem` has added to a System.

    Attributes
    ----------
    force : openmm.PythonForce
    forceGroup : int
    """

    def __init__(self, force, callback):
        self.force = force
        self.forceGroup = force.getForceGroup()
        self._callback = callback

    def getState(self):
        """The state of the bias that forces are computed with."""
        return self._callback.state

    def setState(self, state):
        """Replace the state of the bias; a Context uses it from its next force evaluation on."""
        self._callback.state = state

    @property
    def last(self):
        """(s (d,), V in kJ/mol) of the most recent force evaluation in this process, None before the first."""
        return self._callback.last

    @property
    def error(self):
        """The exception that an evaluation raised, with its traceback; None if there was none."""
        return self._callback.error

    def value(self, context):
        """(s (d,), V in kJ/mol) at the current positions of a Context."""
        # not the energy: a CustomIntegrator draws random numbers for it, and the run would take another course
        context.getState(getForces=True, groups={self.forceGroup})
        return self._callback.last


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
        source = _Source(path, cv, topology, precision, engine)
        bound = cv.bind(topology, precision, engine)
        component = 0 if component is None else component
        if isinstance(component, bool) or int(component) != component or not 0 <= component < cv.dimension:
            raise GeomGNNError(
                f"This CV has {cv.dimension} component{'s' if cv.dimension > 1 else ''}, numbered from 0; component "
                f"{component} does not exist."
            )
        callback = _Callback(source, int(component), periodic=bool(periodic), bound=bound)
        super().__init__(callback)
        self.setParticles([int(index) for index in bound.atoms])
        self.setName("GeomGNNCV")
        self._callback = callback
        self.setUsesPeriodicBoundaryConditions(callback.periodic)

    @property
    def bound(self):
        """The `BoundCV` behind this force."""
        return self._callback.bound

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
        callback = _Callback(self._callback.source, bias=bias, periodic=periodic, bound=self.bound)
        force = openmm.PythonForce(callback)
        force.setParticles([int(index) for index in self.atoms])
        force.setUsesPeriodicBoundaryConditions(callback.periodic)
        force.setForceGroup(int(forceGroup))
        force.setName("GeomGNNCV bias")
        system.addForce(force)
        return BiasHandle(force, callback)
