"""The student: internal coordinates, standardised and bounded, to a small network with smooth activations."""

import torch
from torch import nn

# Standardised coordinates are bounded smoothly at this many standard deviations, so that the student and its gradient are
# bounded, and its gradient by what is far from anything it was taught fades away.
BOUND = 8.0


class StudentNetwork(nn.Module):
    """x = bounded((coordinates - mean) / scale); s = W3 tanh(W2 tanh(W1 x + b1) + b2) + b3 + W0 x.

    With bounded(z) = z / sqrt(1 + (z / BOUND)^2): every derivative exists everywhere, and |s| is at most `largest`.

    Parameters
    ----------
    inputs, hidden, dimension : int
        Numbers of coordinates, of units in each of the two hidden layers, of components.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, inputs: int, hidden: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, dimension)
        self.skip = nn.Linear(inputs, dimension, bias=False)

    @property
    def largest(self) -> torch.Tensor:
        """(d,) bounds of |s|: with every unit and every input at its limit."""
        with torch.no_grad():
            return self.last.bias.abs() + self.last.weight.abs().sum(1) + BOUND * self.skip.weight.abs().sum(1)

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        """(F, d) of coordinates (F, m)."""
        x = self._bounded(coordinates)
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x))))) + self.skip(x)

    def with_slopes(self, coordinates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values (F, d) of coordinates (F, m), and their derivatives by these (F, d, m); both differentiable."""
        x = self._bounded(coordinates)
        first = torch.tanh(self.first(x))
        second = torch.tanh(self.second(first))
        by_second = self.last.weight * (1.0 - second.square()).unsqueeze(1)
        by_first = (by_second @ self.second.weight) * (1.0 - first.square()).unsqueeze(1)
        # 1 - (x / BOUND)^2 is 1 / (1 + (z / BOUND)^2)
        inside = (1.0 - (x / BOUND).square()).clamp(min=0.0)
        slopes = (by_first @ self.first.weight + self.skip.weight) * (inside * inside.sqrt() / self.scale).unsqueeze(1)
        return self.last(second) + self.skip(x), slopes

    def _bounded(self, coordinates: torch.Tensor) -> torch.Tensor:
        z = (coordinates - self.mean) / self.scale
        return z * (1.0 + (z / BOUND).square()).rsqrt()
