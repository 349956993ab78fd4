"""The settings of a walker."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from openmm import app

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.bias import Bias
from openmm_geomgnn.sampling.systems import SystemSettings
from openmm_geomgnn.units import positive

# fields that are whole numbers, and the lowest
_WHOLE = (("every", 1), ("seed", 0), ("index", 0), ("threads", 1), ("colvar_interval", 0), ("frame_interval", 0))


@dataclass(frozen=True, eq=False)
class WalkerSpec:
    """Everything that makes a walker; picklable, so that it can be made in another process.

    Steps are outer steps: with a bias, which is evaluated once per outer step, one is every*timestep long, and without a
    bias timestep.

    Parameters
    ----------
    structure : path
        PDB or PDBx file with the topology and, if `positions` is absent, the start.
    system : SystemSettings or str
        The settings, or an openmm.System as XML, made from the same structure.
    cv_path : path, optional
        File of the collective variable, for a biased walker.
    make_cv : callable, optional
        Instead of cv_path, a picklable callable that takes the topology and returns an object with GeomGNNCV's
        `addToSystem(system, bias)`.
    bias : optional
        A bias of openmm_geomgnn.sampling.
    temperature, friction, timestep : float, openmm Quantity or str
        K, 1/ps and ps.
    every : int
        Time steps per evaluation of the bias (multiple time steps).
    platform, platform_precision : str
        Name of an OpenMM platform, or "auto" (see `choose_platform`), and the precision of a GPU platform.
    threads : int
        Threads of the platform CPU.
    precision, engine : str
        How the network is evaluated (see `GeomGNNCV`).
    seed, index : int
        Both determine the noise and the first velocities. index counts the walkers of a run from 0.
    positions : (N, 3) array, optional
        nm.
    minimise : bool
        Minimise the energy before the start.
    equilibration : float, openmm Quantity or str
        ps of dynamics before the start. Like the minimisation it is done without CV and bias.
    colvar_interval, frame_interval : int
        Outer steps between rows of COLVAR and between frames; 0 for none.
    failures : path, optional
        The folder in which a walker that fails saves its last frames, in a folder failure.<index>; Runner and run_unbiased
        use the folder of the run. With None nothing is saved.

    Raises
    ------
    GeomGNNError
        If a value is out of range.
    """

    structure: str
    system: SystemSettings | str = field(default_factory=SystemSettings)
    cv_path: str | None = None
    make_cv: Callable[[app.Topology], Any] | None = None
    bias: Bias | None = None
    temperature: float = 300.0
    friction: float = 1.0
    timestep: float = 0.002
    every: int = 1
    platform: str = "auto"
    platform_precision: str = "mixed"
    threads: int = 1
    precision: str = "single"
    engine: str = "auto"
    seed: int = 0
    index: int = 0
    positions: np.ndarray | None = None
    minimise: bool = True
    equilibration: float = 0.0
    colvar_interval: int = 100
    frame_interval: int = 500
    failures: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "structure", str(self.structure))
        for name, of in (("temperature", "K"), ("timestep", "ps")):
            object.__setattr__(self, name, positive(getattr(self, name), name, of))
        for name, of in (("friction", "1/ps"), ("equilibration", "ps")):
            object.__setattr__(self, name, positive(getattr(self, name), name, of, zero=True))
        for name, lowest in _WHOLE:
            value = getattr(self, name)
            if isinstance(value, bool) or int(value) != value or value < lowest:
                raise GeomGNNError(f"{name} is {value!r}, but must be a whole number, {lowest} or more.")
            object.__setattr__(self, name, int(value))
        if self.cv_path is not None and self.make_cv is not None:
            raise GeomGNNError("Both cv_path and make_cv are given: give one of them.")
        if self.bias is not None and not self.has_cv:
            raise GeomGNNError("A bias needs a collective variable to act on: give cv_path, a file of `geomgnn fit`.")

    @property
    def has_cv(self) -> bool:
        """Whether there is a collective variable."""
        return self.cv_path is not None or self.make_cv is not None

    @property
    def outer_step(self) -> float:
        """Length of an outer step in ps."""
        return self.timestep * (self.every if self.bias is not None else 1)

    def seeds(self, step: int) -> list[int]:
        """Seeds of the noise, the velocities and the equilibration of this walker if it is made at an outer step."""
        words = np.random.SeedSequence([self.seed, self.index, step]).generate_state(3)
        return [int(word) % (2**31 - 1) or 1 for word in words]
