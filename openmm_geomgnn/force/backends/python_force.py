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
        # bare numbers: going through units takes twice as long
        pos = state.getPositions(asNumpy=True)._value
        box = state.getPeriodicBoxVectors(asNumpy=True)._value if self.evaluation.periodic else None
        return self.evaluation(pos, box, state.getStepCount())


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
