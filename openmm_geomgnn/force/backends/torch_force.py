"""openmm-torch's `TorchForce`: the network as TorchScript, for OpenMM 8.4, which has no `openmm.PythonForce`.

TorchForce keeps a frozen copy of the module that it is given, so its buffers cannot be changed afterwards. The bias, which
changes during a run, therefore stays in Python, and the script calls it through an operator of PyTorch, as it calls
compiled kernels that evaluate the network. The force of a single component needs no Python at all, even when it is read
from XML.
"""

import io
import secrets
import warnings
from typing import Any

import numpy as np
import openmm
import torch
from torch import Tensor, nn

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.backends import openmm_torch
from openmm_geomgnn.force.backends.periodic_torch import IMAGES, ancestors, lattice_shifts
from openmm_geomgnn.force.evaluation import Evaluation
from openmm_geomgnn.units import NM_TO_ANGSTROM

TOLERANCE = 1e-5  # largest error of the script, relative to the largest value of the network
_FAR = 1000.0  # angstrom

# evaluations by the number under which their scripts know them; never removed, since OpenMM does not tell when a force dies
_EVALUATIONS: dict[int, Evaluation] = {}


def _known(evaluation: int) -> Evaluation:
    found = _EVALUATIONS.get(evaluation)
    if found is None:
        raise GeomGNNError(
            "The bias of this force lives in the process in which it was added; this process only has a copy of the force. "
            "Add the bias again with GeomGNNCV(...).addToSystem, to a System without it."
        )
    return found


def _bias(s: Tensor, evaluation: int) -> Tensor:
    """Compute the tangent plane to the energy of a bias at s (d,): its value at s = 0 and its slope, (1 + d,) float64.

    An expansion in s - s.detach() would have no forces, since the TorchScript executor ignores `detach`.
    """
    found = _known(evaluation)
    values = s.detach().cpu().double().numpy()
    try:
        energy, slope = found.energy_and_slope(values)
        if not np.isfinite([energy, *slope]).all():
            raise GeomGNNError(f"The bias is not finite at s = {values}: its energy is {energy} kJ/mol, its slope {slope}.")
    except Exception as error:
        # OpenMM passes on only the message: keep the exception for those who want to see it
        found.error = error
        raise
    found.last = (values, energy)
    return torch.from_numpy(np.concatenate([[energy - slope @ values], slope])).to(s.device)


def _evaluate(positions: Tensor, box: Tensor | None, evaluation: int) -> tuple[Tensor, Tensor]:
    """Compute energy in kJ/mol and forces (N, 3) at positions (N, 3) of all particles with an `Evaluation`."""
    found = _known(evaluation)
    atoms = found.bound.atoms
    rows = positions.detach()[torch.as_tensor(atoms, device=positions.device)].double().cpu().numpy()
    energy, forces = found(rows, None if box is None else box.double().cpu().numpy(), "unknown")
    total = np.zeros(positions.shape)
    total[atoms] = forces
    return torch.tensor(energy, dtype=torch.float64), torch.from_numpy(total).to(positions.device)


_LIBRARY = torch.library.Library("openmm_geomgnn", "DEF")
for _name, _types, _function in (
    ("bias", "(Tensor s, int evaluation) -> Tensor", _bias),
    ("evaluate", "(Tensor positions, Tensor? box, int evaluation) -> (Tensor, Tensor)", _evaluate),
):
    _LIBRARY.define(_name + _types)
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, torch.library.fallthrough_kernel, "Autograd")  # nothing to differentiate


def why_not() -> str | None:
    """Say why openmm-torch's TorchForce cannot be used here, None if it can; called only for compatible versions."""
    return openmm_torch.why_not("TorchForce")


def make_force(evaluation: Evaluation) -> openmm.Force:
    """Make an `openmmtorch.TorchForce` for an evaluation.

    On a machine with a GPU that PyTorch can use, TorchScript runs there whatever the platform, and XML of a component's
    force can only be read on such machines.

    Raises
    ------
    GeomGNNError
        If the network cannot be written as TorchScript.
    """
    module = script(evaluation)
    force = openmm_torch.load().TorchForce(module)
    force.setOutputsForces(module.original_name == Evaluated.__name__)
    force.setUsesPeriodicBoundaryConditions(evaluation.periodic)
    return force


def script(evaluation: Evaluation) -> torch.jit.ScriptModule:
    """Compile the TorchScript module of an evaluation.

    It takes positions of all particles (N, 3) in nm, and box vectors if the evaluation is periodic, and returns the energy
    in kJ/mol, or energy and forces if it is an `Evaluated`.
    """
    bound = evaluation.bound
    biased = evaluation.bias is not None or evaluation.component is None
    key = secrets.randbits(62)  # unique among processes
    if biased:
        _EVALUATIONS[key] = evaluation
        if bound.engine_name != "eager":
            return torch.jit.script(Evaluated(key))
    if torch.cuda.is_available() and not bound.takes_tensors:
        # on its CUDA platform TorchForce moves the tensors of a module to the GPU, but not what the trace says of devices
        bound = evaluation.source.bind().to("cuda")
    values = traced(bound)
    module: nn.Module
    if evaluation.bias is not None or evaluation.component is None:
        module = BiasEnergy(values, bound, key)
    else:
        module = ComponentEnergy(values, bound, evaluation.component)
    return torch.jit.script(module.to(next(bound.buffers()).device).eval())


def traced(bound: Any) -> nn.Module:
    """Trace `forward` of a bound CV as TorchScript, for one frame (1, n, 3).

    Raises
    ------
    GeomGNNError
        If it cannot be traced, or its values differ from the network's.
    """
    device = next(bound.buffers()).device
    near, far, mixed = (pos.to(device) for pos in _examples(len(bound.atoms)))
    try:
        with warnings.catch_warnings():
            # about numbers of atoms, which do not change, and about TorchScript being deprecated
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            found = torch.jit.trace(bound, (mixed,), check_trace=False)
            torch.jit.save(found, io.BytesIO())  # TorchForce only takes a module that can be saved
    except RuntimeError as error:
        raise GeomGNNError(
            "This network cannot be written as TorchScript, which the backend TorchForce needs "
            f"({str(error).strip().splitlines()[0]}). Use the backend PythonForce with OpenMM >= 8.6."
        ) from error
    for pos in (near, far, mixed):
        with torch.no_grad():
            expected, values = bound(pos.detach()), found(pos.detach())
        largest = float((values - expected).abs().max() / expected.abs().max().clamp(min=1.0))
        if not largest < TOLERANCE:
            raise GeomGNNError(
                f"The network as TorchScript is wrong by {largest:.2g} of its values, so the backend TorchForce cannot be "
                "used. Use the backend PythonForce with OpenMM >= 8.6."
            )
    return found


def _examples(n_atoms: int) -> tuple[Tensor, ...]:
    """Example positions (1, n, 3) in angstrom: all pairs near, many beyond the cutoff, and atoms in two distant places.

    The last are those to trace at: if no pair is beyond the cutoff, the network omits the step that skips such pairs.
    """
    generator = torch.Generator().manual_seed(1)
    pos = torch.randn(1, n_atoms, 3, dtype=torch.float64, generator=generator)
    apart = _FAR * (torch.arange(n_atoms) % 2).to(torch.float64)[:, None]
    return tuple(example.requires_grad_(True) for example in (pos, 4 * pos, 2 * pos + apart))


class _Energy(nn.Module):
    """Base of both kinds of energies: the values of the CV at positions of all particles."""

    atoms: Tensor
    ancestors: Tensor
    images: Tensor

    def __init__(self, values: nn.Module, bound: Any) -> None:
        super().__init__()
        self.values = values
        self.scale = NM_TO_ANGSTROM
        self.register_buffer("atoms", torch.as_tensor(np.asarray(bound.atoms)))
        self.register_buffer("ancestors", torch.as_tensor(ancestors(bound.molecule.make_whole)))
        self.register_buffer("images", torch.tensor(IMAGES, dtype=torch.float64))

    def cv_values(self, positions: Tensor, box: Tensor | None) -> Tensor:
        """Compute s (d,), float64."""
        pos = positions.to(self.images).index_select(0, self.atoms)
        if not bool(torch.isfinite(pos).all()):
            raise RuntimeError(
                "Positions of the CV's atoms are not finite: the simulation blew up. Use a smaller timestep, or minimise "
                "the starting structure."
            )
        if box is not None:
            pos = pos + lattice_shifts(pos.detach(), box.to(self.images), self.ancestors, self.images)
        # from the first atom: a molecule that has diffused far from the origin loses digits in single precision
        s = self.values(((pos - pos[0].detach()) * self.scale).unsqueeze(0)).squeeze(0)
        if not bool(torch.isfinite(s).all()):
            raise RuntimeError(
                "The network's values are not finite. The CV file's numbers are damaged, or two atoms are on top of one "
                "another: check the last frames and the CV file."
            )
        return s


class ComponentEnergy(_Energy):
    """One component of the CV as an energy."""

    def __init__(self, values: nn.Module, bound: Any, component: int) -> None:
        super().__init__(values, bound)
        self.component = int(component)

    def forward(self, positions: Tensor, box: Tensor | None = None) -> Tensor:
        """Compute the energy in kJ/mol at positions (N, 3) of all particles and box vectors (3, 3), nm."""
        return self.cv_values(positions, box)[self.component]


class BiasEnergy(_Energy):
    """The energy of a bias on all components."""

    def __init__(self, values: nn.Module, bound: Any, key: int) -> None:
        super().__init__(values, bound)
        self.key = int(key)

    def forward(self, positions: Tensor, box: Tensor | None = None) -> Tensor:
        """Compute the energy in kJ/mol at positions (N, 3) of all particles and box vectors (3, 3), nm."""
        s = self.cv_values(positions, box)
        # autograd cannot differentiate the bias: the tangent plane has its energy and its slope
        plane = torch.ops.openmm_geomgnn.bias(s, self.key)
        return plane[0] + (plane[1:] * s).sum()


class Evaluated(nn.Module):
    """Energy and forces of a bias on all components from an evaluation in Python, for compiled kernels."""

    def __init__(self, key: int) -> None:
        super().__init__()
        self.key = int(key)

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute energy in kJ/mol and forces (N, 3) at positions (N, 3) of all particles and box vectors (3, 3), nm."""
        return torch.ops.openmm_geomgnn.evaluate(positions, box, self.key)
