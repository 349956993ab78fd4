"""Short chains of residues in molecular dynamics, from random torsions."""

import functools
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from openmm_geomgnn.conformers.sources.base import Conformer, Source, check_count, skip
from openmm_geomgnn.conformers.sources.chain_geometry import bond_distances, random_torsions, rotatable_bonds
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import NM_TO_ANGSTROM

if TYPE_CHECKING:
    from openmm import app

FRAMES_PER_START = 20
STEPS_PER_FRAME = 200  # of 4 fs: 0.8 ps
TIME_STEP = 0.004  # ps
CONFORMERS_PER_TASK = 100
CLASH = 0.16  # nm; a bond through a ring is closer than this to one of the ring's atoms
BOND_STRETCH = 0.04  # nm; a heavy-atom bond stretched by more is strained by a knot, not by heat
ATTEMPTS = 20
Structure: TypeAlias = tuple["app.Topology", Any]  # and positions, an openmm Quantity


@dataclass(frozen=True)
class SimulatedChains(Source):
    """Chains of one, two, three, ... residues, simulated with OpenMM; a subclass says which, and builds them.

    The force field is amber14 with OBC2 implicit solvent. Runs start from random torsions, so that they cover regions which
    a simulation that starts in a minimum does not reach; frames are 0.8 ps apart.
    """

    stream: ClassVar[int]  # of random numbers, its own for each kind of chain; the next one is that of the simulations

    number: int = 5000
    shares: list[float] = (1.0,)  # type: ignore[assignment]  # a default must not be mutable
    per_sequence: int = 40
    temperatures: list[float] = (300.0, 400.0, 500.0)  # type: ignore[assignment]

    @abstractmethod
    def singles(self) -> list[str]:
        """All sequences of a single residue."""

    @abstractmethod
    def random_sequences(self, rng: np.random.Generator, number: int, length: int) -> list[str]:
        """Draw sequences of `length` residues."""

    @abstractmethod
    def build(self, sequence: str) -> Structure:
        """A structure with hydrogens, not minimised."""

    def check(self) -> None:
        """Raise GeomGNNError for wrong settings, missing files and missing packages."""
        check_count(self, "number", "per_sequence")
        for key, least in (("shares", 0.0), ("temperatures", 1.0)):
            values = getattr(self, key)
            if not isinstance(values, (list, tuple)) or not all(is_number(value) and value >= least for value in values):
                raise GeomGNNError(
                    f"{key} of the conformer source `{self.name}` is {values!r}, but it must be a list of numbers of at "
                    f"least {least:g}."
                )
            if not sum(values):
                raise GeomGNNError(f"{key} of the conformer source `{self.name}` is {values!r}: give at least one above 0.")

    def tasks(self, seed: int) -> list[list[Any]]:
        """Cut the work into tasks."""
        return [
            [sequence, k, start, min(CONFORMERS_PER_TASK, number - start)]
            for k, (sequence, number) in enumerate(self.plan(seed))
            for start in range(0, number, CONFORMERS_PER_TASK)
        ]

    def plan(self, seed: int) -> list[tuple[str, int]]:
        """[(sequence, conformers of it)] that add up to `number`: all single residues, then random longer ones."""
        rng = np.random.default_rng([seed, self.stream])
        ends = np.rint(np.cumsum([0, *self.shares]) / sum(self.shares) * self.number).astype(int)
        planned = []
        for length, amount in enumerate(np.diff(ends).tolist(), start=1):
            if length == 1:
                sequences = self.singles()
            else:
                sequences = self.random_sequences(rng, max(1, round(amount / self.per_sequence)), length)
            share, rest = divmod(amount, len(sequences))
            planned += [(sequence, share + (i < rest)) for i, sequence in enumerate(sequences)]
        return [(sequence, number) for sequence, number in planned if number]

    def conformers(self, task: list[Any], seed: int, skipped: Counter[str] | None = None) -> Iterator[Conformer]:
        """Yield (z, pos in angstrom) of the conformers of one task."""
        sequence, k, start, wanted = task
        chain = Chain(*self.build(sequence))
        rng = np.random.default_rng([seed, self.stream + 1, k, start])
        failures = 0
        while wanted:
            made = 0
            for pos in chain.frames(rng, float(rng.choice(self.temperatures)), min(wanted, FRAMES_PER_START)):
                yield chain.z, pos
                made += 1
            wanted -= made
            if not made:
                failures += 1
                skip(skipped, "a run from random torsions came apart; another was made")
            if failures == ATTEMPTS:
                raise GeomGNNError(
                    f"{sequence} of the conformer source `{self.name}` could not be run: {ATTEMPTS} starts from random "
                    "torsions came apart. Try another seed or lower temperatures, and report it with the version of openmm."
                )


def with_hydrogens(topology: "app.Topology", positions: Any, name: str) -> Structure:
    """Add the hydrogens that the force field asks for; `name` gives the same first guess of their positions each time."""
    from openmm import app

    modeller = app.Modeller(topology, positions)
    # Modeller draws the first guess of the hydrogens from the process-wide generator
    state = random.getstate()
    try:
        random.seed(name)
        modeller.addHydrogens(_forcefield(), platform=_platform())
    finally:
        random.setstate(state)
    return modeller.topology, modeller.positions


@functools.cache
def _forcefield() -> "app.ForceField":
    from openmm import app

    from openmm_geomgnn.sampling.systems import SystemSettings

    return app.ForceField(*SystemSettings().forcefield)


def _platform() -> Any:
    """For such a small molecule the Reference platform is fastest, and its results do not depend on threads."""
    import openmm

    return openmm.Platform.getPlatform("Reference")


class Chain:
    """A molecule in implicit solvent, ready to run from random torsions.

    Attributes
    ----------
    z : (N,) int
    """

    def __init__(self, topology: "app.Topology", positions: Any) -> None:
        import openmm

        from openmm_geomgnn.sampling.systems import SystemSettings, build_system

        system = build_system(topology, SystemSettings(hydrogen_mass=2.0))
        self.z = np.array([a.element.atomic_number for a in topology.atoms()])
        bonds = np.array([(b[0].index, b[1].index) for b in topology.bonds()])
        self._heavy_bonds = bonds[(self.z[bonds] > 1).all(axis=1)]
        self._apart = bond_distances(len(self.z), bonds) > 3
        self._torsions = rotatable_bonds(topology, bonds)
        self._integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, TIME_STEP)
        self._context = openmm.Context(system, self._integrator, _platform())
        self._context.setPositions(positions)
        openmm.LocalEnergyMinimizer.minimize(self._context, 10.0, 500)
        self._reference = self._positions()
        self._reference_lengths = self._lengths(self._reference)

    def frames(self, rng: np.random.Generator, temperature: float, number: int) -> Iterator[np.ndarray]:
        """Yield up to `number` conformers (N, 3) in angstrom of one run, fewer if the molecule comes apart."""
        import openmm

        self._integrator.setTemperature(temperature)
        self._integrator.setRandomNumberSeed(int(rng.integers(1, 2**31)))
        # the integrator takes its seed when its context is made
        self._context.reinitialize()
        self._context.setPositions(random_torsions(self._reference, self._torsions, self._apart, rng, CLASH))
        openmm.LocalEnergyMinimizer.minimize(self._context, 50.0, 100)
        self._context.setVelocitiesToTemperature(temperature, int(rng.integers(1, 2**31)))
        for _ in range(number):
            try:
                self._integrator.step(STEPS_PER_FRAME)
            except openmm.OpenMMException:
                # OpenMM's report of a particle at NaN; any other failure recurs at every start and ends in an error
                return
            pos = self._positions()
            if not np.isfinite(pos).all() or (self._lengths(pos) - self._reference_lengths).max() > BOND_STRETCH:
                return
            yield pos * NM_TO_ANGSTROM

    def _positions(self) -> np.ndarray:
        return self._context.getState(positions=True).getPositions(asNumpy=True)._value

    def _lengths(self, pos: np.ndarray) -> np.ndarray:
        return np.linalg.norm(pos[self._heavy_bonds[:, 0]] - pos[self._heavy_bonds[:, 1]], axis=1)


def is_number(value: object) -> bool:
    """Whether a value is a number, which True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
