"""Langevin integrators for a bias that acts at every time step, or once in several (multiple time steps)."""

import gc
import math
import weakref
from collections.abc import Iterable
from typing import Any

import openmm

from openmm_geomgnn.aliases import QuantityLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import BOLTZMANN, positive


def whole_every(every: Any) -> int:
    """Return `every`, time steps per evaluation of a bias, as an int; a GeomGNNError unless it is a positive integer."""
    if isinstance(every, bool) or int(every) != every or every < 1:
        raise GeomGNNError(f"every is {every}, but must be a whole number of time steps per bias evaluation, 1 or more.")
    return int(every)


def has_virtual_sites(system: openmm.System) -> bool:
    """Whether an openmm.System has particles whose positions are computed from those of others."""
    return any(map(system.isVirtualSite, range(system.getNumParticles())))


def make_integrator(
    temperature: QuantityLike,
    friction: QuantityLike,
    timestep: QuantityLike,
    every: int = 1,
    bias_group: int | None = None,
    seed: int = 1,
    other_groups: Iterable[int] = (0,),
    virtual_sites: bool = False,
) -> openmm.Integrator:
    """Create a Langevin integrator.

    Without a bias, or with every == 1, this is a LangevinMiddleIntegrator with this timestep. Otherwise it has multiple time
    steps: one step is every*timestep long, and evaluates the force group `bias_group` once and `other_groups` at every
    timestep. Forces in any other group do not act at all.

    Parameters
    ----------
    temperature : float, openmm Quantity or str
        K.
    friction : float, openmm Quantity or str
        1/ps.
    timestep : float, openmm Quantity or str
        ps.
    every : int
        Time steps per evaluation of the bias.
    bias_group : int, optional
        Force group of the bias; None without a bias.
    seed : int
        Seed of the noise. It may be 0, which does not mean a random one as in OpenMM.
    other_groups : iterable of int
        Groups of the other forces.
    virtual_sites : bool
        Whether the System has any, see `has_virtual_sites`.

    Returns
    -------
    openmm.Integrator

    Raises
    ------
    GeomGNNError
        If a value is out of range.

    Examples
    --------
    >>> from openmm_geomgnn.force.integrators import make_integrator
    >>> type(make_integrator(300, 1, 0.002)).__name__
    'LangevinMiddleIntegrator'
    >>> make_integrator(300, 1, "4 fs", every=2, bias_group=31).getStepSize()._value
    0.008
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
        make = OuterStepIntegrator if virtual_sites else _multiple_time_steps
        integrator = make(temperature, friction, timestep, every, bias_group, other_groups)
    # OpenMM takes 32-bit signed integers
    integrator.setRandomNumberSeed(int(seed) % (2**31 - 1) or 1)
    integrator.setConstraintTolerance(1e-6)
    return integrator


def _multiple_time_steps(
    temperature: float, friction: float, timestep: float, every: int, bias_group: int, other_groups: Iterable[int]
) -> openmm.CustomIntegrator:
    """Create an integrator of `every` Langevin middle steps; the first begins with a kick by every times the bias force.

    Langevin middle steps: Zhang et al., J. Phys. Chem. A 123, 6056 (2019); multiple time steps: Tuckerman, Berne & Martyna,
    J. Chem. Phys. 97, 1990 (1992). The positions are those of OpenMM's MTSLangevinIntegrator (BAOAB-RESPA; Lagardere et al.,
    J. Phys. Chem. Lett. 10, 2593 (2019)), which splits each kick into two halves and ends its steps between them. On a CPU
    OpenMM's integrator evaluates group 0 once more per step, and the kinetic energy in the middle of a kick is too low,
    while between kicks it is right (Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34).
    """
    integrator = openmm.CustomIntegrator(every * timestep)
    _add_variables(integrator, temperature, friction, timestep)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", f"v+dt*f{bias_group}/m")
    for _ in range(every):
        _add_middle_step(integrator, other_groups)
    return integrator


class OuterStepIntegrator(openmm.CustomIntegrator):
    """The integrator of `_multiple_time_steps` for a System with virtual sites.

    On the Reference and CPU platforms OpenMM computes virtual sites only at the end of a CustomIntegrator's step. If several
    time steps were one step of it, forces within it would act on sites that were left behind. So a step of the C++ object is
    one time step here, and the first (k = 0) of an outer step begins with the kick. In Python a step is still an outer step,
    in `step`, in `getStepSize` and in the step count of the Context. The integrator's XML does not preserve this class and
    counts time steps.
    """

    def __init__(
        self, temperature: float, friction: float, timestep: float, every: int, bias_group: int, other_groups: Iterable[int]
    ) -> None:
        super().__init__(timestep)
        self._every = every
        self._context: Any = None  # a weak reference to the Context, once it is known
        _add_variables(self, temperature, friction, timestep)
        self.addGlobalVariable("every", every)
        self.addGlobalVariable("k", 0)
        self.beginIfBlock("k=0")
        self.addUpdateContextState()
        self.addComputePerDof("v", f"v+every*h*f{bias_group}/m")
        self.endBlock()
        _add_middle_step(self, other_groups)
        self.addComputeGlobal("k", "select(k+1-every, k+1, 0)")

    def __setstate__(self, xml: str) -> None:
        super().__setstate__(xml)
        self._every, self._context = int(self.getGlobalVariableByName("every")), None

    def getStepSize(self) -> openmm.unit.Quantity:
        """Length of an outer step, a Quantity."""
        return super().getStepSize() * self._every

    def step(self, steps: int) -> None:
        """Advance by a number of outer steps."""
        context = self._find_context()
        for _ in range(int(steps)):
            done = context.getStepCount()
            try:
                super().step(self._every)
                done += 1
            except BaseException:
                self.setGlobalVariableByName("k", 0)  # whoever continues from elsewhere begins with a kick
                raise
            finally:
                context.setStepCount(done)

    def _find_context(self) -> openmm.Context:
        context = None if self._context is None else self._context()
        if context is None or context.getIntegrator() is not self:
            # a Context knows its integrator, but an integrator does not know its Context
            contexts = (thing for thing in gc.get_objects() if issubclass(type(thing), openmm.Context))
            found = [context for context in contexts if vars(context).get("_integrator") is self]
            if not found:
                raise GeomGNNError("This integrator belongs to no Context yet: make one, or a Simulation, with it first.")
            (context,) = found
            self._context = weakref.ref(context)
        return context


def _add_variables(integrator: openmm.CustomIntegrator, temperature: float, friction: float, timestep: float) -> None:
    keep = math.exp(-friction * timestep)
    integrator.addGlobalVariable("h", timestep)
    integrator.addGlobalVariable("keep", keep)
    integrator.addGlobalVariable("noise", math.sqrt(BOLTZMANN * temperature * (1 - keep * keep)))
    integrator.addPerDofVariable("unconstrained", 0)


def _add_middle_step(integrator: openmm.CustomIntegrator, groups: Iterable[int]) -> None:
    """Add one Langevin middle step of length h under the forces of these groups."""
    for group in groups:
        integrator.addComputePerDof("v", f"v+h*f{group}/m")
    integrator.addConstrainVelocities()
    integrator.addComputePerDof("x", "x+0.5*h*v")
    integrator.addComputePerDof("v", "keep*v+noise*gaussian/sqrt(m)")
    integrator.addComputePerDof("x", "x+0.5*h*v")
    integrator.addComputePerDof("unconstrained", "x")
    integrator.addConstrainPositions()
    integrator.addComputePerDof("v", "v+(x-unconstrained)/h")
