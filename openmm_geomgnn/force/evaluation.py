"""The CV and a bias on it, evaluated at the positions of a running simulation; every backend calls this or replaces it."""

import math
import traceback
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.spatial import cKDTree

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import sha256
from openmm_geomgnn.force.failures import atom_names, save_frames
from openmm_geomgnn.pickling import pickled_as
from openmm_geomgnn.representation.periodic import SelectedMolecule
from openmm_geomgnn.units import NM_TO_ANGSTROM


@pickled_as("evaluation")
class Evaluation:
    """Computes energy and forces of a component of the CV, or of a bias on all components.

    Evaluations are pure: they read the bias state and never change it. OpenMM pickles this object when a force is made with
    it, as a reference to the CV's file rather than a network, and with the bias in its initial state.

    Attributes
    ----------
    state
        The bias state that forces are computed with.
    last : tuple or None
        (s (d,), V in kJ/mol) of the most recent evaluation; None before the first.
    error : Exception or None
        The exception that stopped the simulation, with its traceback.
    """

    def __init__(
        self,
        source: "Source",
        component: int | None = None,
        bias: Any = None,
        periodic: bool = False,
        bound: Any = None,
        failures: PathLike | None = ".",
    ) -> None:
        self.source = source
        self.component = component
        self.bias = bias
        self.periodic = periodic
        self.failures = None if failures is None else str(failures)
        self.bound: Any = None
        self.state: Any = None
        self.last: tuple[np.ndarray, float] | None = None
        self.error: BaseException | None = None
        self._last_good: np.ndarray | torch.Tensor | None = None  # positions of `last`
        if bound is not None:
            self._bind(bound)

    def _bind(self, bound: Any) -> None:
        self.bound = bound
        if self.bias is not None:
            self.state = self.bias.initial_state(dimension=bound.dimension)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("source", "component", "bias", "periodic", "failures")}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        # An exception here would crash OpenMM, which also makes copies that are never evaluated. So the CV file is read,
        # and may turn out to be missing, at the first evaluation.
        self.__init__(**saved)  # type: ignore[misc]

    def __call__(self, pos: np.ndarray, box: np.ndarray | None, step: int | str) -> tuple[float, np.ndarray]:
        """Compute the energy in kJ/mol and forces (n, 3) in kJ/mol/nm; see `evaluate`."""
        return self.evaluate(pos, box, step)[1:]

    def evaluate(self, pos: np.ndarray, box: np.ndarray | None, step: int | str) -> tuple[np.ndarray, float, np.ndarray]:
        """Compute the CV's values s (d,), the energy in kJ/mol and forces (n, 3) in kJ/mol/nm.

        Parameters
        ----------
        pos : (n, 3) float64 ndarray
            Positions of the CV's atoms, nm; a molecule split by the box is made whole if `periodic` is set.
        box : (3, 3) ndarray or None
            Reduced box vectors as rows, nm.
        step : int
            Step of the simulation, for messages.

        Raises
        ------
        GeomGNNError
            If positions, CV, bias or forces are not finite, or CV or bias raise an exception; the frame is then saved, see
            `failures.save_frames`.
        """
        frame = {"positions": pos}
        try:
            return self._evaluate(frame, box, step)
        except Exception as error:
            # OpenMM passes on only the message, and a copy of the force has no handle: keep the exception for those who can
            # ask for it, and put everything into the message
            self.error = error
            saved = self._save(frame, box, step)
            if isinstance(error, GeomGNNError):
                error.args = (f"{error} {saved}".rstrip(),)
                raise
            trace = "".join(traceback.format_exception(error)).rstrip()
            raise GeomGNNError(
                f"{type(error).__name__}: {str(error).rstrip('.')}. This came from the network or the bias at step {step}. "
                f"{saved}\n{trace}"
            ) from error

    def _evaluate(
        self, frame: dict[str, Any], box: np.ndarray | None, step: int | str
    ) -> tuple[np.ndarray, float, np.ndarray]:
        if self.bound is None:
            self._bind(self.source.bind())
        pos = frame["positions"]
        if not _all_finite(pos):
            raise GeomGNNError(
                f"The positions of {self._names(_bad_rows(pos))} are not finite at step {step}: "
                "the simulation blew up. Use a smaller timestep, evaluate the bias more often (every), or minimise the "
                "starting structure."
            )
        if self.periodic:
            if box is None or not _all_finite(box):
                raise GeomGNNError(
                    f"The box vectors are not finite at step {step}: the simulation blew up. Use a smaller timestep, or "
                    "equilibrate the box before the bias is added."
                )
            frame["positions"] = pos = self.bound.molecule.make_whole(pos, box)
        # from the first atom: a molecule that has diffused far from the origin loses digits in single precision
        angstrom = pos - pos[0]
        angstrom *= NM_TO_ANGSTROM
        if self.last is None:
            self.bound.check_handedness(angstrom[None])
        s, vjp = self.bound.value_and_vjp(angstrom)
        frame["s"] = s
        if not _few_finite(s.tolist()):
            raise GeomGNNError(
                f"The network returned {s} for the collective variable at step {step}. The CV file's "
                f"numbers are damaged, or two atoms are on top of one another: {self._nearest(pos)}."
            )
        energy, slope = self.energy_and_slope(s)
        frame["energy"], frame["slope"] = energy, slope
        slopes = slope.tolist()
        if not _few_finite([energy, *slopes]):
            raise GeomGNNError(
                f"The bias is not finite at step {step}: at s = {s} its energy is {energy} kJ/mol and its derivatives are "
                f"{slope}. Look at its settings, and at the state that it was given."
            )
        forces = vjp(slope) * -NM_TO_ANGSTROM if any(slopes) else np.zeros(pos.shape)
        frame["forces"] = forces
        if not _all_finite(forces):
            raise GeomGNNError(
                f"The forces of the bias on {self._names(_bad_rows(forces))} are not finite at step {step} (s = {s}, energy "
                f"{energy} kJ/mol). If atoms are on top of one another use a smaller timestep: {self._nearest(pos)}."
            )
        self.accept(s, energy, pos.copy())
        return s, energy, forces

    def accept(self, s: np.ndarray, energy: float, pos: np.ndarray | torch.Tensor) -> None:
        """Record a successful evaluation; `pos` (n, 3) in nm, an array or a tensor, must not be modified later."""
        self.last = (s, energy)
        self._last_good = pos

    def energy_and_slope(self, s: np.ndarray) -> tuple[float, np.ndarray]:
        """Compute the energy in kJ/mol at the values s (d,) of the CV, and its derivatives (d,) with respect to them."""
        if self.bias is not None:
            energy, slope = self.bias.bias(self.state, s)
        elif self.component is not None:
            energy, slope = s[self.component], np.zeros(len(s))
            slope[self.component] = 1.0
        else:
            energy, slope = 0.0, np.zeros(len(s))
        return float(energy), np.asarray(slope, dtype=np.float64)

    def _names(self, rows: np.ndarray) -> str:
        part = self.bound.molecule
        return atom_names(part.topology, rows, part.atoms)

    def _nearest(self, pos: np.ndarray) -> str:
        if len(pos) < 2:
            return "there is one atom only"
        distances, partners = cKDTree(pos).query(pos, k=2)
        row = int(distances[:, 1].argmin())
        return f"the nearest two are {self._names(np.sort(partners[row]))}, {distances[row, 1]:.3g} nm apart"

    def _save(self, frame: dict[str, Any], box: np.ndarray | None, step: int | str) -> str:
        """Save the last good frame and the failing one; return a sentence that says where."""
        if self.failures is None or self.bound is None:
            return ""
        numbers = dict(frame)
        frames = {"failing": numbers.pop("positions")}
        if self._last_good is not None:
            frames = {"last_good": _on_cpu(self._last_good), **frames}
        marked = np.union1d(_bad_rows(frames["failing"]), _bad_rows(numbers.get("forces", np.zeros((0, 3)))))
        name, part = f"geomgnn-failure-step-{step}", self.bound.molecule
        return save_frames(self.failures, name, part.topology, frames, marked, box, atoms=part.atoms, step=step, **numbers)


def _on_cpu(pos: np.ndarray | torch.Tensor) -> np.ndarray:
    try:
        return torch.as_tensor(pos).cpu().numpy()
    except RuntimeError:  # a failed GPU gives nothing back; the original error is the one to report
        return np.full(pos.shape, np.nan)


def _few_finite(numbers: list[float]) -> bool:
    return math.isfinite(sum(numbers)) or all(map(math.isfinite, numbers))  # a sum may overflow


def _all_finite(array: np.ndarray) -> bool:
    # the sum of squares is NaN or infinite if a number is; np.isfinite(array).all() takes three times as long
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def _bad_rows(rows: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~np.isfinite(rows).all(axis=1))


@pickled_as("source")
class Source:
    """Where a bound CV comes from, so that a serialised force can be made again.

    It keeps the selected atoms of the system (`periodic.SelectedMolecule`), not the water around them. A CV that was given
    as a file is pickled as its path and hash, any other as the bytes of its file.
    """

    def __init__(
        self,
        path: PathLike | None,
        cv: Any,
        molecule: SelectedMolecule,
        precision: str,
        engine: str,
        device: str | torch.device | None = None,
    ) -> None:
        self.path = None if path is None else Path(path).resolve()
        self.hash = None if path is None else sha256(path)
        self.cv = cv if path is None else None
        self.molecule = molecule
        self.precision = precision
        self.engine = engine
        self.device = device

    def __getstate__(self) -> dict[str, Any]:
        path, cv = self.path, self.cv
        if not isinstance(cv, bytes | None):
            cv = cv.to_bytes()
        return {**self.__dict__, "path": None if path is None else str(path), "cv": cv}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved)
        self.path = None if self.path is None else Path(self.path)

    def bind(self) -> Any:
        """The CV on the atoms of its molecule.

        Raises
        ------
        GeomGNNError
            If the CV's file is missing, has changed since the force was made, or cannot be read.
        """
        cv = self.cv
        if isinstance(cv, bytes):
            cv = CollectiveVariable.from_bytes(cv, "The collective variable in this force")
        elif cv is None:
            path = cast(Path, self.path)
            cv = CollectiveVariable.load(path)
            if sha256(path) != self.hash:
                raise GeomGNNError(
                    f"{self.path} is not the file this force was made with: it has been overwritten since. Put the old file "
                    "back, or make the force again with GeomGNNCV."
                )
        return cv.bind(self.molecule, self.precision, self.engine, self.device)
