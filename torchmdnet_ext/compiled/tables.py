"""The radial filters of a network as piecewise cubics of the distance; those of the equivariant transformer."""

import copy
from dataclasses import dataclass

import numpy as np
import torch

# share of the nodes even in exp(-alpha r), as the exponential radial basis is; the others are even in r
EXPONENTIAL_SHARE = 0.6


@dataclass(frozen=True)
class Grid:
    """Nodes k = 0 ... intervals at which u(r) * intervals = k, for r from 0 to `cutoff` angstrom.

    u(r) = share * (1 - exp(-alpha r)) / (1 - exp(-alpha cutoff)) + (1 - share) * r / cutoff
    """

    cutoff: float
    intervals: int
    share: float = EXPONENTIAL_SHARE

    @property
    def alpha(self) -> float:
        """Rate of the exponential in u, 1/angstrom."""
        return 5.0 / self.cutoff

    @property
    def steepness(self) -> float:
        """Factor of 1 - exp(-alpha r) in u."""
        return self.share / -np.expm1(-self.alpha * self.cutoff)

    def u(self, r):
        """Place in the table, from 0 to 1, of a distance in angstrom."""
        return self.steepness * -np.expm1(-self.alpha * r) + (1 - self.share) * r / self.cutoff

    def slope(self, r):
        """du/dr in 1/angstrom."""
        return self.steepness * self.alpha * np.exp(-self.alpha * r) + (1 - self.share) / self.cutoff

    def distance(self, u):
        """The inverse of `u`, for an array of values in [0, 1]."""
        r = np.array(u) * self.cutoff
        for _ in range(60):  # Newton's method from the right of the root of a concave function cannot overshoot twice
            r = np.clip(r - (self.u(r) - u) / self.slope(r), 0.0, self.cutoff)
        return r

    def nodes(self):
        """Distances (intervals + 1,) in angstrom at which filters are tabulated."""
        r = self.distance(np.arange(self.intervals + 1) / self.intervals)
        r[0], r[-1] = 0.0, np.nextafter(self.cutoff, 0.0)  # filters without an envelope jump to 0 at the cutoff itself
        return r


def radial_filters(network, distance: torch.Tensor) -> torch.Tensor:
    """Filters (L, n, 4, H) of all layers at `distance` (n,), float64: keys, scalars, gates and radial vectors.

    In the order of the layer's own channels. The factors of the attention and of the message are included, that of the
    attention in the scalar part, which is the only one it multiplies.
    """
    weight = network.message_weights(distance)
    basis = copy.deepcopy(network.distance_expansion).double()(distance)
    ones = torch.ones(distance.shape[0], network.hidden_channels, dtype=torch.float64)
    layers = []
    for layer in network.attention_layers:
        key, value = ones, torch.cat([ones, ones, ones], 1)
        if layer.dk_proj is not None:
            key = layer.act(copy.deepcopy(layer.dk_proj).double()(basis))
        if layer.dv_proj is not None:
            value = layer.act(copy.deepcopy(layer.dv_proj).double()(basis))
        value = value.view(-1, layer.num_heads, 3, layer.head_dim).transpose(1, 2).reshape(-1, 3, network.hidden_channels)
        scalar = value[:, 0] * weight[:, :1] * weight[:, 1:]
        layers.append(torch.stack([key, scalar, value[:, 1] * weight[:, 1:], value[:, 2] * weight[:, 1:]], 1))
    return torch.stack(layers)


def radial_filters_and_slopes(network, distance: np.ndarray, filters=radial_filters):
    """`filters` (L, n, F, H) of a network and their derivatives in 1/angstrom, as float64 arrays."""
    r = torch.as_tensor(distance, dtype=torch.float64).requires_grad_()
    with torch.enable_grad():
        value = filters(network, r)
        if not value.requires_grad:
            return value.numpy().copy(), np.zeros(value.shape)
        # each filter depends on its own distance only, so the gradient of a weighted sum by the weights is every slope;
        # forward differentiation would import a compiler that takes seconds, and so, at first use, does a gradient of what
        # is not a scalar
        weight = torch.zeros_like(value, requires_grad=True)
        (gradient,) = torch.autograd.grad((value * weight).sum(), r, create_graph=True)
        (slope,) = torch.autograd.grad(gradient.sum(), weight)
    return value.detach().numpy().copy(), slope.numpy().copy()


def hermite_coefficients(grid: Grid, value: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Coefficients (L, intervals, 4 powers, ...) of t in [0, 1] from values and slopes at the nodes (L, intervals + 1, ...).

    The piecewise cubic has the exact value and the exact first derivative at every node.
    """
    shape = (1, -1) + (1,) * (value.ndim - 2)
    step = slope / (grid.slope(grid.nodes()) * grid.intervals).reshape(shape)
    rise = value[:, 1:] - value[:, :-1]
    left, right = step[:, :-1], step[:, 1:]
    return np.stack([value[:, :-1], left, 3 * rise - 2 * left - right, left + right - 2 * rise], 2)


def tabulate(network, intervals: int, filters=radial_filters):
    """Grid and coefficients (L, intervals, 4 powers, F filters, H) in float64 of a network's radial filters."""
    grid = Grid(float(network.cutoff_upper), intervals)
    return grid, hermite_coefficients(grid, *radial_filters_and_slopes(network, grid.nodes(), filters))


def table_error(network, grid: Grid, coefficients: np.ndarray, filters=radial_filters) -> float:
    """Largest root-mean-square error of the slope over channels, relative to the largest slope, between the nodes."""
    r = grid.distance((np.arange(grid.intervals) + 0.21) / grid.intervals)
    t = (grid.u(r) * grid.intervals - np.arange(grid.intervals)).reshape(1, -1, 1, 1)
    _, exact = radial_filters_and_slopes(network, r, filters)
    slope = coefficients[:, :, 1] + t * (2 * coefficients[:, :, 2] + t * 3 * coefficients[:, :, 3])
    slope *= (grid.slope(r) * grid.intervals).reshape(1, -1, 1, 1)
    error = np.sqrt(np.square(slope - exact).mean(-1)).max((1, 2))
    scale = np.sqrt(np.square(exact).mean(-1)).max((1, 2))
    return float((error / np.where(scale > 0, scale, 1.0)).max())
