"""`GeomGNNCV`: a learned collective variable, and a bias on it, as forces of OpenMM."""

import functools
from collections.abc import Callable
from typing import Any

import mdtraj
import numpy as np
import openmm
import torch

from openmm_geomgnn.aliases import PathLike, TopologyLike
from openmm_geomgnn.cv.file import SavedCV
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force import backends
from openmm_geomgnn.force.bias_handle import BiasHandle, groups_of, other_groups
from openmm_geomgnn.force.evaluation import Evaluation, Source
from openmm_geomgnn.force.integrators import whole_every


class GeomGNNCV:
    """A learned collective variable as an OpenMM force whose energy is one component of it.

    Add it to a `CustomCVForce`, pass it to `openmm.app.metadynamics.BiasVariable`, or, the fast way, bias all components at
    once with `addToSystem`. `compute` gives the same numbers for trajectories.

    Parameters
    ----------
    cv : path or CollectiveVariable
        A file written by `geomgnn fit` or `geomgnn run`, or a CV in memory. Copies of the force, in XML too, hold the path
        and hash of a file, and the whole of a CV in memory.
    topology : openmm.app.Topology, mdtraj.Topology or path
        Topology of the whole system; the CV finds its atoms in it.
    component : int, optional
        The component that is the energy of this force; by default 0, the slowest.
    precision : {"single", "double"}
        Precision of the network; the projection is always in double precision.
    engine : {"auto", "eager", "numba", "cuda"}
        How the network is evaluated.
    periodic : bool, optional
        Whether the molecule may be split by a periodic box and has to be made whole. By default this is the case if
        `topology` is an OpenMM topology with a box; `addToSystem` asks the System.
    backend : {"auto", "PythonForce", "PythonTorchForce", "TorchForce"}
        Class of the OpenMM force that this force is also an instance of. `auto` is `PythonForce` where OpenMM has it
        (>= 8.6), else openmm-torch's `TorchForce`, which runs the network as TorchScript: always for the energy of a
        component, for a bias with the engine `eager`. openmm-torch's `PythonTorchForce` hands over tensors.
        `geomgnn doctor` reports which of them can be used.
    device : str or torch.device, optional
        Where the network is evaluated, "cpu", "cuda" or "cuda:0", whatever the platform of OpenMM; by default the CPU unless
        the engine is `cuda`.
    failures : path, optional
        Folder for the last good frame of the CV's atoms and the failing one, geomgnn-failure-step-N.pdb and .npz, which are
        written when positions, CV or bias stop being finite or the network fails. With None nothing is written.

    Raises
    ------
    GeomGNNError
        If the file cannot be read, the topology is that of another molecule, the component does not exist, or the backend
        cannot be used.

    Examples
    --------
    A CV, which is mostly the path of a file written by `geomgnn fit`:

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

    In a CustomCVForce, here an umbrella potential on its first component:

    >>> import openmm
    >>> from openmm_geomgnn import GeomGNNCV
    >>> umbrella = openmm.CustomCVForce("0.5*10.0*(q-0.2)^2")
    >>> umbrella.addCollectiveVariable("q", GeomGNNCV(cv, topology))
    0

    With OPES on all components:

    >>> from openmm_geomgnn.sampling import OPES
    >>> from openmm_geomgnn.sampling.systems import build_system
    >>> system = build_system(topology)
    >>> handle = GeomGNNCV(cv, topology).addToSystem(system, bias=OPES(barrier=40, pace=500))
    >>> handle.forceGroup
    31

    The values of all frames of a trajectory:

    >>> GeomGNNCV(cv, topology).compute(trajectory).shape
    (100, 1)
    """

    _backend: str
    _evaluation: Evaluation

    def __new__(
        cls,
        cv: PathLike | SavedCV,
        topology: TopologyLike,
        component: int | None = None,
        *,
        precision: str = "single",
        engine: str = "auto",
        periodic: bool | None = None,
        backend: str = "auto",
        failures: PathLike | None = ".",
        device: str | torch.device | None = None,
    ) -> Any:
        """Make the force of a backend an instance of this class as well."""
        if periodic is None:
            periodic = hasattr(topology, "getPeriodicBoxVectors") and topology.getPeriodicBoxVectors() is not None
        path = None if isinstance(cv, SavedCV) else cv
        loaded: Any = cv if path is None else CollectiveVariable.load(path)
        bound = loaded.bind(topology, precision, engine, device)
        source = Source(path, loaded, bound.molecule, precision, engine, device)
        component = 0 if component is None else component
        if isinstance(component, bool) or int(component) != component or not 0 <= component < loaded.dimension:
            raise GeomGNNError(
                f"This CV has {loaded.dimension} component{'s' if loaded.dimension > 1 else ''}, numbered from 0; component "
                f"{component} does not exist."
            )
        evaluation = Evaluation(source, int(component), periodic=bool(periodic), bound=bound, failures=failures)
        backend = backends.choose(backend)
        force = backends.get_backend(backend).make_force(evaluation)
        # OpenMM makes forces of its own classes: this one becomes an instance of both
        force.__class__ = _both(cls, type(force))  # type: ignore[arg-type]  # classes can be hashed
        force._evaluation, force._backend = evaluation, backend
        force.setName("GeomGNNCV")
        return force

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """Do nothing: `__new__` has made the force, and OpenMM's own `__init__` would make another."""

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self._backend

    @property
    def bound(self) -> Any:
        """The `BoundCV` behind this force."""
        return self._evaluation.bound

    @property
    def atoms(self) -> np.ndarray:
        """Indices of the atoms the CV depends on."""
        return self.bound.atoms

    @property
    def dimension(self) -> int:
        """Number of components."""
        return self.bound.dimension

    def compute(
        self,
        trajectory: mdtraj.Trajectory | np.ndarray,
        progress: Callable[[int], None] | None = None,
        *,
        boxes: np.ndarray | None = None,
    ) -> np.ndarray:
        """Compute all components of the CV for the frames of a trajectory.

        Parameters
        ----------
        trajectory : mdtraj.Trajectory or (frames, atoms, 3) array
            An array is in nm.
        progress : callable, optional
            Called with the number of frames that are done.
        boxes : (frames, 3, 3) array, optional
            Periodic box vectors of the frames of an array, nm.

        Returns
        -------
        (frames, d) float64 ndarray
        """
        return self.bound.compute(trajectory, progress, boxes=boxes)

    def addToSystem(
        self, system: openmm.System, bias: Any = None, forceGroup: int | None = None, every: int = 1
    ) -> BiasHandle:
        """Add a bias on all components to a System: one forward and one backward pass of the network per step.

        A copy of the System, or one read from XML, has the bias in its initial state, whatever `BiasHandle.setBiasState`
        did: to continue, add the bias to a System without it, and restore the state that was saved with `bias.to_arrays`.
        With the backend TorchForce a copy in this process shares the bias and its state, and a copy in another process
        cannot be evaluated.

        Parameters
        ----------
        system : openmm.System
            The bias is periodic if the System is.
        bias : optional
            A bias of `openmm_geomgnn.sampling`. Without one the CV is only monitored: no energy, no forces.
        forceGroup : int, optional
            Group of the new force; by default the highest free one.
        every : int
            Time steps per evaluation of the bias (multiple time steps). The integrator implements this, so use the one from
            `BiasHandle.createIntegrator`. With most others the bias acts at every step, which is correct but slow. In a
            System without virtual sites OpenMM's MTSLangevinIntegrator or MTSIntegrator with the groups
            `[(handle.forceGroup, 1), (0, every)]` also evaluate it every few steps.

        Returns
        -------
        BiasHandle

        Raises
        ------
        GeomGNNError
            If the number of particles of the System differs from the number of atoms in the topology, no force group is
            free, `every` is not a positive integer, or with `every` > 1 the group holds other forces, too.
        """
        if system.getNumParticles() != self.bound.molecule.n_atoms_total:
            raise GeomGNNError(
                f"The System has {system.getNumParticles()} particles and the topology "
                f"{self.bound.molecule.n_atoms_total} atoms. Make GeomGNNCV with the topology this System was made from."
            )
        every = whole_every(every)
        if forceGroup is None:
            used = set().union(*map(groups_of, system.getForces()))
            free = [group for group in range(31, 0, -1) if group not in used]
            if not free:
                raise GeomGNNError("All force groups of the System are in use. Pass the group to share as forceGroup.")
            forceGroup = free[0]
        elif every > 1:
            other_groups(system, forceGroup, allowed=0)
        periodic = system.usesPeriodicBoundaryConditions()
        source, failures = self._evaluation.source, self._evaluation.failures
        evaluation = Evaluation(source, bias=bias, periodic=periodic, bound=self.bound, failures=failures)
        force = backends.get_backend(self._backend).make_force(evaluation)
        force.setForceGroup(int(forceGroup))
        force.setName("GeomGNNCV bias")
        system.addForce(force)
        return BiasHandle(force, evaluation, system, every)


@functools.cache
def _both(cls: type, kind: type) -> type:
    """A class that derives from `cls` and from OpenMM's class `kind`."""
    return type(cls.__name__, (cls, kind), {"__doc__": cls.__doc__, "__module__": cls.__module__})
