"""The plan of a run, with a bias or without, before its first step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import openmm

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.bias import Bias
from openmm_geomgnn.sampling.checkpoint import Checkpoint, fingerprint, topology_hash
from openmm_geomgnn.sampling.geometry import check_geometry
from openmm_geomgnn.sampling.heating import HeatGuard
from openmm_geomgnn.sampling.systems import load_structure, system_topology
from openmm_geomgnn.sampling.walker import make_system, platform_of
from openmm_geomgnn.sampling.walker_spec import WalkerSpec
from openmm_geomgnn.units import positive

_UNBIASED_BLOCK = 1000  # outer steps


@dataclass(frozen=True, eq=False)
class Plan:
    """How long walkers run, how often they report and are saved, and how hot they may become.

    Attributes
    ----------
    specs : list of WalkerSpec
        All with the same bias, or all without.
    length : float
        ps per walker.
    checkpoint_interval : float
        ps.
    max_heating : float
        Tolerated mean temperature, relative to the thermostat's; see `HeatGuard`.

    Raises
    ------
    GeomGNNError
        If a number is out of range.
    """

    specs: Sequence[WalkerSpec]
    length: float
    checkpoint_interval: float = 10.0
    max_heating: float = 1.02

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", positive(self.length, "length", "ps"))
        if not self.max_heating > 1:
            raise GeomGNNError(f"max_heating is {self.max_heating}, but must be above 1, as in 1.1 for 10 % too hot.")
        object.__setattr__(self, "checkpoint_interval", positive(self.checkpoint_interval, "checkpoint_interval", "ps"))

    @property
    def bias(self) -> Bias | None:
        """The bias that all walkers share; None without one."""
        return self.specs[0].bias

    @property
    def n_walkers(self) -> int:
        """Number of walkers."""
        return len(self.specs)

    @property
    def outer_step(self) -> float:
        """Length of an outer step, ps."""
        return self.specs[0].outer_step

    @property
    def total(self) -> int:
        """Outer steps of the whole run."""
        return whole_steps(self.length, self.outer_step)

    @property
    def checkpoint_steps(self) -> int:
        """Smallest number of outer steps between checkpoints."""
        return whole_steps(self.checkpoint_interval, self.outer_step)

    @property
    def block(self) -> int:
        """Outer steps between reports of the walkers; with a bias, between depositions."""
        return _UNBIASED_BLOCK if self.bias is None else self.bias.pace

    def steps_from(self, step: int) -> int:
        """Outer steps of the block that begins at a step; the last block ends with the run."""
        return min(self.block - step % self.block, self.total - step)

    def heat_guard(self, degrees_of_freedom: int, checkpoint: Checkpoint | None = None) -> HeatGuard:
        """Make a `HeatGuard` for walkers with so many kinetic degrees of freedom, continued from a `Checkpoint`."""
        spec = self.specs[0]
        return HeatGuard(
            spec.temperature,
            degrees_of_freedom,
            spec.friction,
            spec.colvar_interval * spec.outer_step,
            self.n_walkers,
            self.max_heating,
            None if checkpoint is None else checkpoint.heat,
        )


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    time, length: ps per walker. started: time in ps at which this session began. temperature: mean of the recent rows, K.
    diagnostics: diagnostics of the bias. seconds: wall-clock time since this session began.
    """

    time: float
    length: float
    started: float
    temperature: float
    diagnostics: Mapping[str, float]
    seconds: float


class Prepared(NamedTuple):
    """Walkers that are ready to start: their specs with the system as XML, its topology, and the fingerprint of the run."""

    specs: list[WalkerSpec]
    topology: openmm.app.Topology
    fingerprint: dict[str, Any]


def prepare(specs: Sequence[WalkerSpec]) -> Prepared:
    """Make the system of a run once, as `Prepared`.

    Raises GeomGNNError if the walkers are different molecules, or their starts are unusable (see `check_geometry`).
    """
    first = specs[0]
    structures = {spec.structure: load_structure(spec.structure) for spec in specs}
    topology = structures[first.structure][0]
    system = make_system(first, topology)
    topology = system_topology(topology, system)
    expected = topology_hash(topology)
    for path, (other, _) in structures.items():
        if topology_hash(other) != expected:
            raise GeomGNNError(
                f"{path} and {first.structure} are not the same molecule with its atoms in the same order: "
                "walkers of one run may only differ in where they start."
            )
    for spec in specs:
        if spec.positions is None:
            check_geometry(topology, structures[spec.structure][1], spec.structure)
        else:
            check_geometry(topology, spec.positions, f"The start of walker {spec.index}")
    xml = openmm.XmlSerializer.serialize(system)
    platform = platform_of(first, system.getNumParticles())[0].getName()
    ready = [replace(spec, system=xml, platform=platform) for spec in specs]
    return Prepared(ready, topology, fingerprint(specs, topology, xml, platform))


def whole_steps(time: float, step: float) -> int:
    """Number of steps of `step` ps that reach `time` ps."""
    return max(1, math.ceil(time / step - 1e-6))
