"""Random molecules, rotations and numbers that depend on a seed only, and how two results are compared."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.float64)


class Tolerance(NamedTuple):
    """Largest difference allowed between two results, relative to the largest number in them.

    same : of the same arithmetic in another order.
    moved : of other coordinates, where the rounding of positions enters.
    """

    same: float
    moved: float


TOLERANCES = {torch.float32: Tolerance(1e-5, 5e-5), torch.float64: Tolerance(1e-13, 1e-12)}
STEP = 1e-6  # angstrom, across the cutoff
JUMP = 1e-9  # largest jump over that step, relative; a kink of the forces, proportional to the step, is larger as well
ELEMENTS = (1, 6, 7, 8, 9, 16, 17, 35)


def generator(seed: int) -> torch.Generator:
    """A generator of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int) -> Tensor:
    """Normally distributed numbers in float64."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def molecule(
    n: int = 14, seed: int = 0, density: float = 0.045, elements: Sequence[int] = ELEMENTS
) -> tuple[Tensor, Tensor]:
    """Mixed elements z (n,) and positions (n, 3) in float64 angstrom, no two atoms closer than 0.9 angstrom.

    `density` is in atoms per cubic angstrom.
    """
    z = torch.tensor(elements)[torch.randint(0, len(elements), (n,), generator=generator(seed))]
    width, draw = (n / density) ** (1 / 3), generator(seed + 1)
    pos: list[Tensor] = []
    while len(pos) < n:
        candidate = torch.rand(3, generator=draw, dtype=torch.float64) * width
        if all((candidate - other).norm() > 0.9 for other in pos):
            pos.append(candidate)
    return z, torch.stack(pos)


def orthogonal(seed: int, proper: bool) -> Tensor:
    """A random rotation (3, 3), or a rotation times the inversion."""
    q, r = torch.linalg.qr(randn(3, 3, seed=seed))
    q = q * torch.sign(torch.diagonal(r))
    return q if (torch.det(q) > 0) == proper else -q


def as_if_trained(network: nn.Module, seed: int = 11) -> nn.Module:
    """Move every parameter off its initial value: biases that start at zero would hide discontinuities."""
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            parameter.add_(0.3 * randn(*parameter.shape, seed=seed + k).to(parameter.dtype))
    return network


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors over the largest number in the second."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
