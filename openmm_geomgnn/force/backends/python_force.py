"""The default backend: `openmm.PythonForce`, which calls the network."""

import numpy as np
import openmm

from openmm_geomgnn.force.evaluation import Evaluation
from openmm_geomgnn.pickling import pickled_as


@pickled_as("PythonForce callback")
class Callback:
    """The callable that `openmm.PythonForce` calls and pickles: an `Evaluation` at the positions of a State."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        """Compute the energy in kJ/mol and forces (n, 3) in kJ/mol/nm at a State."""
        pos = _positions(state)
        box = state.getPeriodicBoxVectors(asNumpy=True)._value if self.evaluation.periodic else None
        return self.evaluation(pos, box, state.getStepCount())


def _positions(state: openmm.State) -> np.ndarray:
    """Positions (n, 3) of a State, nm.

    `State.getPositions` looks for an earlier answer by `dir`, and makes a Quantity, which takes as long as a student's CV of
    a small molecule. Where OpenMM lacks what it calls, it is called itself.
    """
    fill = getattr(state, "_getVectorAsNumpy", None)
    if fill is None:
        return state.getPositions(asNumpy=True)._value
    pos = np.empty((state._getNumParticles(), 3))
    fill(openmm.State.Positions, pos)
    return pos


def why_not() -> str | None:
    """Say why `openmm.PythonForce` cannot be used here; None if it can."""
    if hasattr(getattr(openmm, "PythonForce", None), "setParticles"):
        return None
    return 'This OpenMM has no PythonForce that can be given its particles. Update it: pip install "openmm>=8.6"'


def make_force(evaluation: Evaluation) -> openmm.Force:
    """Make an `openmm.PythonForce` on the CV's atoms for an evaluation."""
    force = openmm.PythonForce(Callback(evaluation))
    force.setParticles([int(index) for index in evaluation.bound.atoms])
    force.setUsesPeriodicBoundaryConditions(evaluation.periodic)
    return force
