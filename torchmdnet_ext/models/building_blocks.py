"""What networks are built of: radial bases, the cosine cutoff and activations, under the names that TorchMD-Net gives them.

Values, parameters and their names are those of `torchmdnet.models.utils`. They are here because the import of that, with all
that its extensions need, takes longer than that of torch, in each process that only evaluates a network.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class CosineCutoff(nn.Module):
    """(1 + cos(pi r/cutoff))/2 up to a cutoff in angstrom, 0 beyond (Behler & Parrinello, 10.1103/PhysRevLett.98.146401)."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = float(cutoff)

    def forward(self, distance: Tensor) -> Tensor:
        """The cutoff function of distances in angstrom, of their shape."""
        return 0.5 * (torch.cos(distance * math.pi / self.cutoff) + 1.0) * (distance < self.cutoff)


class NeighbourEmbedding(nn.Module):
    """The parameters of an embedding of the neighbours of atoms (Thölke & De Fabritiis, arXiv 2202.02541, eq. 3).

    `envelopes.enveloped_neighbour_embedding` evaluates it.
    """

    def __init__(self, hidden_channels: int, num_rbf: int, max_z: int, cutoff: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_z, hidden_channels, dtype=dtype)
        self.distance_proj = nn.Linear(num_rbf, hidden_channels, dtype=dtype)
        self.combine = nn.Linear(2 * hidden_channels, hidden_channels, dtype=dtype)
        self.cutoff = CosineCutoff(cutoff)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial parameters."""
        self.embedding.reset_parameters()
        xavier(self.distance_proj, self.combine)


def xavier(*layers: nn.Linear) -> None:
    """Draw new weights by Xavier's uniform distribution, and set biases to 0."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def vectors(v: Tensor) -> Tensor:
    """The vector part (N, 3, H) of features (N, 3 or 8, H)."""
    return v[:, :3]


class _RadialBasis(nn.Module):
    """A basis with two tensors of numbers, which training may change."""

    def __init__(self, cutoff: float, size: int, trainable: bool) -> None:
        super().__init__()
        self.cutoff, self.size = float(cutoff), int(size)
        for name, values in self._initial().items():
            if trainable:
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    def _initial(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Go back to the values before any training."""
        with torch.no_grad():
            for name, values in self._initial().items():
                getattr(self, name).copy_(values)


class ExponentialNormalBasis(_RadialBasis):
    """Gaussians of exp(-5 r/cutoff), times the cosine cutoff (Unke & Meuwly, PhysNet, 10.1021/acs.jctc.9b00181).

    Parameters
    ----------
    cutoff : float
        angstrom
    size : int
        Number of functions.
    trainable : bool
        Whether centres and widths are parameters.
    """

    means: Tensor
    betas: Tensor

    def __init__(self, cutoff: float, size: int, trainable: bool) -> None:
        super().__init__(cutoff, size, trainable)
        self.envelope = CosineCutoff(cutoff)

    def _initial(self) -> dict[str, Tensor]:
        first = torch.exp(torch.tensor(-self.cutoff))
        width = 2 / self.size * (1 - first)
        return {"means": torch.linspace(float(first), 1, self.size), "betas": (width**-2).repeat(self.size)}

    def forward(self, distance: Tensor) -> Tensor:
        """Functions (P, K) of distances (P,) in angstrom."""
        distance = distance.unsqueeze(-1)
        from_centre = torch.exp(distance * (-5.0 / self.cutoff)) - self.means
        return self.envelope(distance) * torch.exp(-self.betas * from_centre**2)


class GaussianBasis(_RadialBasis):
    """Gaussians around even distances from 0 to the cutoff, as wide as these are apart (Schütt et al., SchNet, 1706.08566).

    Parameters are those of `ExponentialNormalBasis`.
    """

    offset: Tensor
    coeff: Tensor

    def _initial(self) -> dict[str, Tensor]:
        offset = torch.linspace(0.0, self.cutoff, self.size)
        return {"coeff": -0.5 / (offset[1] - offset[0]) ** 2, "offset": offset}

    def forward(self, distance: Tensor) -> Tensor:
        """Functions (P, K) of distances (P,) in angstrom."""
        return torch.exp(self.coeff * (distance.unsqueeze(-1) - self.offset) ** 2)


class ShiftedSoftplus(nn.Module):
    """log(1 + exp(x)) - log(2)."""

    def forward(self, x: Tensor) -> Tensor:
        """The function of every element."""
        return functional.softplus(x) - math.log(2.0)


RADIAL_BASES: dict[str, type[nn.Module]] = {"gauss": GaussianBasis, "expnorm": ExponentialNormalBasis}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "ssp": ShiftedSoftplus,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "swish": nn.SiLU,
    "mish": nn.Mish,
}
PRECISIONS: dict[int, torch.dtype] = {16: torch.float16, 32: torch.float32, 64: torch.float64}
