"""Langevin integrators for a bias that acts at every time step, or at every few (multiple time steps)."""

import math

import openmm

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import BOLTZMANN, positive


def whole_every(every):
    """`every`, time steps per evaluation of a bias, as an int. Raises GeomGNNError for what is no count of steps."""
    if isinstance(every, bool) or int(every) != every or every < 1:
        raise GeomGNNError(f"every is {every}, but must be a whole number of time steps per bias evaluation, 1 or more.")
    return int(every)


def make_integrator(temperature, friction, timestep, every=1, bias_group=None, seed=1, other_groups=(0,)):
    """A Langevin integrator for temperature (K), friction (1/ps) and timestep (ps), numbers or Quantities.

    Without a bias (bias_group None), or with every == 1, a LangevinMiddleIntegrator of this timestep. Else the same with
    multiple time steps: one step of it is every*timestep, and evaluates the force group bias_group once and other_groups
    at every timestep. A force in any other group does not act at all. seed: of the noise; 0 does not mean a random one,
    as it does in OpenMM.

    Raises GeomGNNError for values that make no sense.
    """
    temperature = positive(temperature, "temperature", "K")
    friction = positive(friction, "friction", "1/ps", zero=True)
    timestep = positive(timestep, "timestep", "ps")
    if timestep > 0.02:
        raise GeomGNNError(
            f"timestep is {timestep:g} ps = {1000 * timestep:g} fs, which no molecule survives: is it in fs? Use 0.002 "
            "to 0.004 ps."
        )
    every = whole_every(every)
    if bias_group is None or every == 1:
        integrator = openmm.LangevinMiddleIntegrator(temperature, friction, timestep)
    else:
        integrator = _multiple_time_steps(temperature, friction, timestep, every, bias_group, other_groups)
    # OpenMM takes 32-bit signed integers
    integrator.setRandomNumberSeed(int(seed) % (2**31 - 1) or 1)
    integrator.setConstraintTolerance(1e-6)
    return integrator


def _multiple_time_steps(temperature, friction, timestep, every, bias_group, other_groups):
    """Langevin middle steps (Zhang et al., J. Phys. Chem. A 123, 6056 (2019)), each every-th of which begins with a kick by
    every times the bias force (Tuckerman, Berne & Martyna, J. Chem. Phys. 97, 1990 (1992)).

    It passes through the positions of OpenMM's MTSLangevinIntegrator (BAOAB-RESPA; Lagardere et al., J. Phys. Chem. Lett.
    10, 2593 (2019)), which splits each kick into two halves and ends its steps between them. On a CPU that one evaluates
    group 0 once more in each of its steps; and the kinetic energy in the middle of a kick is too low, that between kicks is
    right (Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34).
    """
    integrator = openmm.CustomIntegrator(every * timestep)
    keep = math.exp(-friction * timestep)
    integrator.addGlobalVariable("h", timestep)
    integrator.addGlobalVariable("keep", keep)
    integrator.addGlobalVariable("noise", math.sqrt(BOLTZMANN * temperature * (1 - keep * keep)))
    integrator.addPerDofVariable("unconstrained", 0)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", f"v+dt*f{bias_group}/m")
    for _ in range(every):
        for group in other_groups:
            integrator.addComputePerDof("v", f"v+h*f{group}/m")
        integrator.addConstrainVelocities()
        integrator.addComputePerDof("x", "x+0.5*h*v")
        integrator.addComputePerDof("v", "keep*v+noise*gaussian/sqrt(m)")
        integrator.addComputePerDof("x", "x+0.5*h*v")
        integrator.addComputePerDof("unconstrained", "x")
        integrator.addConstrainPositions()
        integrator.addComputePerDof("v", "v+(x-unconstrained)/h")
    return integrator
