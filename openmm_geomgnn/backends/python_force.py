"""The backend that is always there: `openmm.PythonForce` calls the network."""

import openmm


class Callback:
    """What `openmm.PythonForce` calls and pickles: an `Evaluation`, at the positions of a State."""

    def __init__(self, evaluation):
        self.evaluation = evaluation

    def __call__(self, state):
        # bare numbers: going through units takes twice as long
        pos = state.getPositions(asNumpy=True)._value
        box = state.getPeriodicBoxVectors(asNumpy=True)._value if self.evaluation.periodic else None
        return self.evaluation(pos, box, state.getStepCount())


def python_force(evaluation):
    """The force of an evaluation: an `openmm.PythonForce` on the CV's atoms."""
    force = openmm.PythonForce(Callback(evaluation))
    set_up(force, evaluation)
    return force


def set_up(force, evaluation):
    force.setParticles([int(index) for index in evaluation.bound.atoms])
    force.setUsesPeriodicBoundaryConditions(evaluation.periodic)
