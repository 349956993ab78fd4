"""openmm-torch's `PythonTorchForce`: as `openmm.PythonForce`, with positions and forces as tensors.

Where the CV and OpenMM are on the same GPU, positions and forces stay there: what crosses over at each evaluation is the
value of the CV, and the derivatives of the bias by it. Everywhere else it is `openmm.PythonForce` with other arrays.
"""

import numpy as np
import torch

from openmm_geomgnn.backends.whole_tensors import IMAGES, ancestors, lattice_shifts
from openmm_geomgnn.units import NM_TO_ANGSTROM


def why_not():
    """Why `PythonTorchForce` cannot be used here, None if it can; asked only where versions fit together."""
    try:
        import openmmtorch
    except ImportError as error:
        return (
            f"openmm-torch is installed but cannot be imported ({error}). Build it again, against the PyTorch and the "
            "OpenMM that are installed now."
        )
    if hasattr(openmmtorch, "PythonTorchForce"):
        return None
    return "This openmm-torch has no PythonTorchForce. Build its main branch (github.com/openmm/openmm-torch)."


def make_force(evaluation):
    """The force of an evaluation: an `openmmtorch.PythonTorchForce` on the CV's atoms."""
    import openmmtorch

    force = openmmtorch.PythonTorchForce(Callback(evaluation))
    force.setParticles([int(index) for index in evaluation.bound.atoms])
    force.setUsesPeriodicBoundaryConditions(evaluation.periodic)
    return force


class Callback:
    """What `PythonTorchForce` calls and pickles: an `Evaluation`, at positions (n, 3) in nm that come as a tensor."""

    def __init__(self, evaluation):
        self.evaluation = evaluation
        self._whole = None

    def __getstate__(self):
        return {"evaluation": self.evaluation}

    def __setstate__(self, saved):
        self.__init__(**saved)

    def __call__(self, state, pos):
        pos = pos.detach()
        box = state.getPeriodicBoxVectors(asNumpy=True)._value if self.evaluation.periodic else None
        found = self._on_device(pos, box) if self._stays(pos) else None
        # what is not finite, or fails, on the device is evaluated again from here: it fails again, and is reported
        energy, forces = found or self.evaluation(pos.double().cpu().numpy(), box, state.getStepCount())
        # OpenMM reads the memory of the forces row by row
        return torch.tensor(energy, dtype=torch.float64), torch.as_tensor(forces).contiguous()

    def _stays(self, pos):
        """Whether positions are evaluated where they are."""
        bound = self.evaluation.bound  # None in a force that was read from XML, at first
        return pos.is_cuda and bound is not None and getattr(bound, "takes_tensors", False)

    def _on_device(self, pos, box):
        """Energy and forces (n, 3), a tensor where `pos` is; None if something is not finite, or fails."""
        evaluation = self.evaluation
        try:
            pos = pos.to(torch.float64, copy=True)  # OpenMM's own memory is written to at the next step
            if box is not None:
                pos = self._made_whole(pos, box)
            s, vjp = evaluation.bound.value_and_vjp((pos - pos[:1]) * NM_TO_ANGSTROM)
            if not np.isfinite(s).all():
                return None
            energy, slope = evaluation.energy_and_slope(s)
            forces = vjp(slope) * -NM_TO_ANGSTROM if slope.any() else torch.zeros_like(pos)
            if not (np.isfinite(energy) and bool(torch.isfinite(forces).all())):
                return None
        except Exception:
            return None  # whatever it is, the evaluation that comes next raises it, with its report
        evaluation.accept(s, energy, pos)
        return energy, forces

    def _made_whole(self, pos, box):
        if self._whole is None or self._whole[0].device != pos.device:
            rows = ancestors(self.evaluation.bound.molecule.make_whole)
            self._whole = torch.as_tensor(rows, device=pos.device), torch.tensor(IMAGES, dtype=pos.dtype, device=pos.device)
        return pos + lattice_shifts(pos, torch.as_tensor(box, device=pos.device), *self._whole)
