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
        z = (coordinates - self.mean) / self.scale
        x = z * (1.0 + (z / BOUND).square()).rsqrt()
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x))))) + self.skip(x)
