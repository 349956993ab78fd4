"""The CV, and a bias on it, at positions of a running simulation: what every backend calls, or stands in for."""

from pathlib import Path

import numpy as np

from openmm_geomgnn.cv import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import sha256
from openmm_geomgnn.units import NM_TO_ANGSTROM


class Evaluation:
    """Energy and forces of a component of the CV, or of a bias on all components.

    It is pure: it reads the bias state and never changes it. It is pickled when a force is made of it: as a reference to
    the CV's file, not as a network, and with the bias in its initial state.

    Attributes
    ----------
    state : the bias state that forces are computed with
    last : (s (d,), V in kJ/mol) of the most recent evaluation, None before the first
    error : the exception that stopped the simulation, with its traceback, or None
    """

    def __init__(self, source, component=None, bias=None, periodic=False, bound=None):
        self.source = source
        self.component = component
        self.bias = bias
        self.periodic = periodic
        self.bound = None
        self.state = None
        self.last = None
        self.error = None
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

    def __call__(self, pos, box, step):
        """Energy in kJ/mol and forces (n, 3) in kJ/mol/nm.

        Parameters
        ----------
        pos : (n, 3) float64 ndarray
            Of the CV's atoms, nm; a molecule cut by the box is made whole if `periodic` is set.
        box : (3, 3) ndarray or None
            Reduced box vectors as rows, nm.
        step : int
            Of the simulation, for messages.

        Raises
        ------
        GeomGNNError
            If positions, CV, bias or forces are not finite.
        """
        try:
            return self._evaluate(pos, box, step)
        except Exception as error:
            # OpenMM passes on nothing but the message: keep the exception itself for whoever wants to see it
            self.error = error
            raise

    def _evaluate(self, pos, box, step):
        if self.bound is None:
            self._bind(self.source.bind())
        if not np.isfinite(pos).all():
            raise GeomGNNError(
                f"{bad_atoms(pos, self.bound.atoms)} have positions that are not finite at step {step}: "
                "the simulation blew up. Use a smaller timestep, evaluate the bias more often (every), or minimise the "
                "starting structure."
            )
        if self.periodic:
            pos = self.bound.molecule.make_whole(pos, box)
        s, vjp = self.bound.value_and_vjp(pos * NM_TO_ANGSTROM)
        if not np.isfinite(s).all():
            raise GeomGNNError(
                f"The network returned {s} for the collective variable at step {step}. The CV file's "
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
                f"The bias or its forces are not finite at step {step} (s = {s}, energy {energy} kJ/mol; "
                f"{bad_atoms(forces, self.bound.atoms)}). Check the last frames for atoms on top of one another."
            )
        self.last = (s, energy)
        return energy, forces


def bad_atoms(rows, atoms):
    bad = atoms[~np.isfinite(rows).all(axis=1)]
    return f"atoms {', '.join(map(str, bad[:5]))}{', ...' if len(bad) > 5 else ''}" if len(bad) else "no atom in particular"


class Source:
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
