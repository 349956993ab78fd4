"""From start positions to a state in which dynamics can begin: minimisation, equilibration and checks of both."""

import math

import numpy as np
import openmm

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.walker_spec import WalkerSpec
from openmm_geomgnn.units import BOLTZMANN

_SAMPLES = 50  # of the temperature, in the second half of an equilibration
_SIGNIFICANCE = 4.5  # standard deviations: 3 false alarms in a million starts
TOLERATED = 1.05  # relative to the thermostat


def relax(context: openmm.Context, spec: WalkerSpec, seed: int, masses: np.ndarray, degrees_of_freedom: int) -> None:
    """Minimise and equilibrate the positions of a Context as a WalkerSpec says.

    seed : seed of the velocities. masses : (N,) in amu. degrees_of_freedom : the number of kinetic ones.

    Raises GeomGNNError if the energy is not finite, or if the second half of the equilibration is hotter than the
    thermostat by more than fluctuations explain (`hottest_start`): the start was strained, or the time step is too long. A
    start that is too cold is not an error, since the thermostat warms it.
    """
    check_energy(context, spec, "at its start")
    if spec.minimise:
        openmm.LocalEnergyMinimizer.minimize(context)
        check_energy(context, spec, "after its minimisation")
    steps = round(spec.equilibration / spec.timestep)
    if not steps:
        return
    context.applyConstraints(1e-6)
    context.setVelocitiesToTemperature(spec.temperature, seed)
    integrator, pieces = context.getIntegrator(), min(_SAMPLES, steps)
    stops = np.linspace(steps - steps // 2, steps, pieces + 1).round().astype(int)
    integrator.step(int(stops[0]))
    temperatures = []
    for before, stop in zip(stops[:-1], stops[1:], strict=True):
        integrator.step(int(stop - before))
        temperatures.append(kinetic_temperature(context, masses, degrees_of_freedom))
    check_energy(context, spec, "after its equilibration")
    _check_temperature(spec, float(np.mean(temperatures)), (stops[-1] - stops[0]) * spec.timestep, degrees_of_freedom)


def check_energy(context: openmm.Context, spec: WalkerSpec, when: str) -> None:
    """Raise a GeomGNNError if the potential energy of a Context is not finite; `when` ends the phrase "is not finite"."""
    energy = context.getState(getEnergy=True).getPotentialEnergy()._value
    if not math.isfinite(energy):
        raise GeomGNNError(
            f"The potential energy of walker {spec.index} is not finite {when}. Look for atoms in one place in "
            f"{spec.structure}, and at the force field's parameters; or use a smaller timestep (now {spec.timestep:g} ps)."
        )


def kinetic_temperature(context: openmm.Context, masses: np.ndarray, degrees_of_freedom: int) -> float:
    """Compute the kinetic temperature of a Context in K. masses : (N,) in amu."""
    velocities = context.getState(getVelocities=True).getVelocities(asNumpy=True)._value
    return float(masses @ (velocities * velocities).sum(axis=1)) / (degrees_of_freedom * BOLTZMANN)


def hottest_start(spec: WalkerSpec, span: float, degrees_of_freedom: int) -> float:
    """The highest mean temperature over `span` ps that a start may have, relative to the thermostat's.

    The kinetic temperature has the canonical variance 2*T^2/degrees_of_freedom, and a Langevin thermostat forgets it in
    about 1/friction. With 51 degrees of freedom, 2.5 ps and a friction of 1/ps the limit is 1.7, with 2,500 it is 1.14. A
    smaller excess is detected by the guard of the run, which looks at longer times. (The quantile of a gamma distribution
    in the approximation of Wilson & Hilferty, PNAS 17, 684 (1931).)
    """
    memory = 1 / spec.friction if spec.friction > 0 else math.inf
    third = 2 / (9 * max(degrees_of_freedom, 1) * max(span / memory, 1.0))
    return TOLERATED * (1 - third + _SIGNIFICANCE * math.sqrt(third)) ** 3


def _check_temperature(spec: WalkerSpec, mean: float, span: float, degrees_of_freedom: int) -> None:
    limit = hottest_start(spec, span, degrees_of_freedom) * spec.temperature
    if mean > limit:
        raise GeomGNNError(
            f"The start of walker {spec.index} is not at its temperature: over the last {span:.3g} ps of its equilibration "
            f"the mean is {mean:.0f} K, where the thermostat is set to {spec.temperature:g} K and {limit:.0f} K is the "
            f"limit for {degrees_of_freedom} degrees of freedom over such a time. The structure {spec.structure} is "
            f"strained, or the timestep of {1000 * spec.timestep:g} fs too long. Look at the structure, equilibrate for "
            f"longer than {spec.equilibration:g} ps, or use a smaller timestep."
        )
