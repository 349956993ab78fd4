"""What is explored how, and what comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.outputs import Frames
from openmm_geomgnn.sampling.walker_spec import WalkerSpec
from openmm_geomgnn.units import positive

if TYPE_CHECKING:
    import mdtraj
    from openmm import app


@dataclass(frozen=True, eq=False)
class Explored:
    """Frames of one exploration, whole molecules all of them (see `chirality.Guard`).

    Attributes
    ----------
    name : str
        As in "omega ACE1-PRO2 from pro-trans".
    positions : (F, N, 3) ndarray
        nm, of all atoms of the system.
    boxes : (F, 3, 3) ndarray or None
        nm; None where the system is not periodic.
    frame_interval : float or None
        ps; None where the frames are no trajectory, as conformers.
    bias : (F,) ndarray or None
        kJ/mol, that acted on each frame, less what all frames of that time had; None where there was none.
    temperature : float
        Of the thermostat, K.
    notes : tuple of str
        Sentences: what was left out and why.
    """

    name: str
    positions: np.ndarray
    boxes: np.ndarray | None = None
    frame_interval: float | None = None
    bias: np.ndarray | None = None
    temperature: float = 300.0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    def trajectory(self, topology: "mdtraj.Topology") -> "mdtraj.Trajectory":
        """Make an mdtraj.Trajectory with times, 0, 1, 2, ... ps for conformers. topology: mdtraj.Topology."""
        times = np.arange(len(self)) * (self.frame_interval or 1.0)
        return Frames(self.positions, self.boxes).trajectory(topology, times)


@dataclass(frozen=True)
class ExploreSettings:
    """How other states are looked for.

    Parameters
    ----------
    ways : "auto" or tuple of str
        Names in `WAYS`; "auto" is what fits the molecule.
    length : float, openmm Quantity or str
        ps of each piece.
    frame_interval : float, openmm Quantity or str
        ps.
    barrier : float, openmm Quantity or str
        kJ/mol, the highest that is to be crossed.
    omega : bool or "auto"
        Whether to turn about peptide bonds; "auto": only about those before proline.
    in_turn : bool or "auto"
        Whether torsions are biased each in turn as well as all at once; "auto": up to four of them.
    highest_temperature : float, openmm Quantity or str, optional
        K, of tempering; None chooses it by the size of the system.
    conformers : int
        Number of conformers from each structure.
    seed : int
    cv : str, optional
        File of the CV for the way "opes".
    sigma : tuple of float, optional
        Widths of its kernels in units of the CV; None measures them, in the first 5 ps.

    Raises
    ------
    GeomGNNError
        If a value is invalid.
    """

    ways: Literal["auto"] | tuple[str, ...] = "auto"
    length: float = 200.0
    frame_interval: float = 1.0
    barrier: float = 80.0
    omega: bool | Literal["auto"] = "auto"
    in_turn: bool | Literal["auto"] = "auto"
    highest_temperature: float | None = None
    conformers: int = 50
    seed: int = 0
    cv: str | None = None
    sigma: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.ways != "auto":
            object.__setattr__(self, "ways", (self.ways,) if isinstance(self.ways, str) else tuple(self.ways))
        for name, of in (("length", "ps"), ("frame_interval", "ps"), ("barrier", "kJ/mol"), ("highest_temperature", "K")):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, positive(getattr(self, name), name, of))
        if self.frame_interval > self.length:
            raise GeomGNNError(
                f"frame_interval is {self.frame_interval:g} ps, longer than the {self.length:g} ps of a piece: there would "
                "be no frame. Use a shorter one."
            )
        for name in ("omega", "in_turn"):
            if getattr(self, name) not in (True, False, "auto"):
                raise GeomGNNError(f"{name} is {getattr(self, name)!r}, but must be true, false or 'auto'.")
        for number, lowest in (("conformers", 1), ("seed", 0)):
            value = getattr(self, number)
            if isinstance(value, bool) or int(value) != value or value < lowest:
                raise GeomGNNError(f"{number} is {value!r}, but must be a whole number, {lowest} or more.")


@dataclass(frozen=True, eq=False)
class Molecule:
    """What is explored: one known structure of it.

    Attributes
    ----------
    name : str
        Of the structure.
    spec : WalkerSpec
        With the system as XML, the platform by name and the positions (N, 3) in nm.
    topology : openmm.app.Topology
    degrees_of_freedom : int
    """

    name: str
    spec: WalkerSpec
    topology: "app.Topology"
    degrees_of_freedom: int


@dataclass(frozen=True, eq=False)
class Piece:
    """One simulation, or one set of conformers, that is made as a whole.

    Attributes
    ----------
    way : str
        In `WAYS`.
    name : str
        For people.
    settings : mapping
        All that it depends on beside the molecule, which JSON can hold.
    file : str, optional
        A file that it reads, whose content the settings tell.
    """

    way: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None


class Made(NamedTuple):
    """What a way makes of a piece.

    Attributes
    ----------
    positions, boxes, frame_interval, bias
        As in `Explored`.
    temperature : float or (F,) ndarray
        Of the thermostat, K; of each frame, if they differ.
    mean_temperature : float
        Kinetic, K; NaN where there is none.
    notes : tuple of str
    """

    positions: np.ndarray
    boxes: np.ndarray | None
    frame_interval: float | None
    bias: np.ndarray | None
    temperature: float | np.ndarray
    mean_temperature: float
    notes: tuple[str, ...] = ()
