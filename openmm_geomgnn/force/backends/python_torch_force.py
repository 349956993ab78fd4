"""openmm-torch's `PythonTorchForce`, which is like `openmm.PythonForce` but passes positions and forces as tensors.

If the CV and OpenMM are on the same GPU, positions and forces stay there; only the value of the CV and the derivatives of
the bias with respect to it are copied at each evaluation. Everywhere else it is `openmm.PythonForce` with other arrays.
"""

import warnings
from typing import Any

import numpy as np
import openmm
import torch
from torch import Tensor

from openmm_geomgnn.force.backends import openmm_torch
from openmm_geomgnn.force.backends.periodic_torch import IMAGES, ancestors, lattice_shifts
from openmm_geomgnn.force.evaluation import Evaluation
from openmm_geomgnn.pickling import pickled_as
from openmm_geomgnn.units import NM_TO_ANGSTROM


def why_not() -> str | None:
    """Say why `PythonTorchForce` cannot be used here, None if it can; called only for compatible versions."""
    return openmm_torch.why_not("PythonTorchForce")


def make_force(evaluation: Evaluation) -> openmm.Force:
    """Make an `openmmtorch.PythonTorchForce` on the CV's atoms for an evaluation."""
    force = openmm_torch.load().PythonTorchForce(Callback(evaluation))
    force.setParticles([int(index) for index in evaluation.bound.atoms])
    force.setUsesPeriodicBoundaryConditions(evaluation.periodic)
    return force


@pickled_as("PythonTorchForce callback")
class Callback:
    """The callable that `PythonTorchForce` calls and pickles: an `Evaluation` at a tensor of positions (n, 3) in nm."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self._whole: tuple[Tensor, Tensor] | None = None  # ancestors and images

    def __getstate__(self) -> dict[str, Any]:
        return {"evaluation": self.evaluation}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.evaluation = saved["evaluation"]
        self._whole = None

    def __call__(self, state: openmm.State, pos: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the energy in kJ/mol and forces (n, 3) in kJ/mol/nm at positions (n, 3) in nm."""
        pos = pos.detach()
        box = state.getPeriodicBoxVectors(asNumpy=True)._value if self.evaluation.periodic else None
        found: Any
        found, reason = self._on_device(pos, box) if self._stays(pos) else (None, None)
        if found is None:
            # an evaluation that failed or was not finite on the device is repeated from the host, which reports the error
            found = self.evaluation(pos.double().cpu().numpy(), box, state.getStepCount())
            if reason is not None:
                warnings.warn(
                    f"The CV was evaluated with positions from the host, which takes longer, since there was {reason}.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        energy, forces = found
        # OpenMM reads the memory of the forces row by row
        return torch.tensor(energy, dtype=torch.float64), torch.as_tensor(forces).contiguous()

    def _stays(self, pos: Tensor) -> bool:
        """Whether positions are evaluated on the device they are on."""
        bound = self.evaluation.bound  # None at first in a force that was read from XML
        return pos.is_cuda and bound is not None and getattr(bound, "takes_tensors", False)

    def _on_device(self, pos: Tensor, box: np.ndarray | None) -> tuple[tuple[float, Tensor] | None, str | None]:
        """Compute ((energy, forces (n, 3) on the device of `pos`), None), or (None, reason) if that is not possible."""
        evaluation = self.evaluation
        try:
            pos = pos.to(torch.float64, copy=True)  # OpenMM overwrites its own memory at the next step
            if box is not None:
                pos = self._made_whole(pos, box)
            angstrom = (pos - pos[:1]) * NM_TO_ANGSTROM
            if evaluation.last is None:
                evaluation.bound.check_handedness(angstrom[None].cpu().numpy())
            s, vjp = evaluation.bound.value_and_vjp(angstrom)
            if not np.isfinite(s).all():
                return None, f"s = {s} on the GPU"
            energy, slope = evaluation.energy_and_slope(s)
            forces = vjp(slope) * -NM_TO_ANGSTROM if slope.any() else torch.zeros_like(pos)
            # positions as well: a network that searches for neighbours finds none near an atom at NaN
            if not (np.isfinite(energy) and bool(torch.isfinite(torch.cat([forces, pos])).all())):
                return None, "a position, an energy or a force on the GPU that was not finite"
        except Exception as error:  # the evaluation from the host raises it again, with a report
            return None, f"an error on the GPU ({type(error).__name__}: {error})"
        evaluation.accept(s, energy, pos)
        return (energy, forces), None

    def _made_whole(self, pos: Tensor, box: np.ndarray | None) -> Tensor:
        if self._whole is None or self._whole[0].device != pos.device:
            rows = ancestors(self.evaluation.bound.molecule.make_whole)
            self._whole = torch.as_tensor(rows, device=pos.device), torch.tensor(IMAGES, dtype=pos.dtype, device=pos.device)
        return pos + lattice_shifts(pos, torch.as_tensor(box, device=pos.device), *self._whole)
