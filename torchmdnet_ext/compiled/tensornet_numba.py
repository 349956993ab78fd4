"""TensorNet for one frame at a time on one CPU core, compiled with Numba.

What makes it fast: the radial parts of embedding and layers are tabulated; 3 x 3 matrices are nine components in registers,
multiplied there; messages are gathered for each atom in turn, sixteen channels at a time; the gradient is a hand-written
vector-Jacobian product; work arrays are made once.
"""

import copy
import math

import numpy as np
import torch

from torchmdnet_ext.compiled.base import CompiledNetwork, numbers
from torchmdnet_ext.compiled.tensornet_kernels import backward, forward
from torchmdnet_ext.kernels.lanes import PANEL
from torchmdnet_ext.models.tensornet import SmoothTensorNet

# intervals of the table, and the error of its slopes at the worst distance with which one is content
INTERVALS = (1024, 1536, 2048, 3072, 4096, 6144, 8192)
TOLERANCE = 2e-5
# where only values are wanted: then they are still as exact as single precision
INTERVALS_OF_VALUES = (384, 512, 768, *INTERVALS)
TOLERANCE_OF_VALUES = 5e-4


def radial_filters(network, distance: torch.Tensor) -> torch.Tensor:
    """Filters (1 + L, n, 3, H) at `distance` (n,), float64, of the three parts: of the embedding, then of all layers.

    Those of the embedding include the norms of the unit matrix and of the antisymmetric part of an edge.
    """
    basis = copy.deepcopy(network.distance_expansion).double()(distance)
    weight = (network.cutoff(distance) * network.envelope(distance))[:, None, None]
    embedding = copy.deepcopy(network.tensor_embedding).double()
    filters = torch.stack([
        math.sqrt(3) * embedding.distance_proj1(basis),
        math.sqrt(2) * embedding.distance_proj2(basis),
        embedding.distance_proj3(basis),
    ], 1)  # fmt: skip
    parts = [filters * weight]
    for layer in network.layers:
        filters = basis
        for linear in copy.deepcopy(layer.linears_scalar).double():
            filters = layer.act(linear(filters))
        parts.append(filters.unflatten(1, (3, -1)) * weight)
    return torch.stack(parts)


class NumbaTensorNet(CompiledNetwork):
    """A `SmoothTensorNet` of neutral molecules; see `CompiledNetwork`."""

    _forward, _backward = staticmethod(forward), staticmethod(backward)

    @staticmethod
    def supports(network) -> str | None:
        """None if a network can be run, otherwise the reason why not."""
        if not isinstance(network, SmoothTensorNet):
            return f"it is a {type(network).__name__}, not a SmoothTensorNet"
        if not isinstance(network.act, torch.nn.SiLU):
            return f"activation must be silu, but is {type(network.act).__name__}"
        if len(network.layers) == 0:
            return "it has no layers"
        if bool(network.distance.box.any()):
            return "periodic boxes are not covered"
        return None

    def _make_order(self, network):
        self.channels = -(-network.hidden_channels // PANEL) * PANEL
        self.order = np.arange(network.hidden_channels)

    def _joined(self, weight):
        """(n * H, m * H) weight of a linear map of m parts to n, as a matrix (m * C, n * C)."""
        hidden = len(self.order)
        rows = self._channels(weight.reshape(len(weight), -1, hidden)).reshape(len(weight), -1).T
        return self._channels(rows.reshape(len(rows), -1, hidden)).reshape(len(rows), -1)

    def _bias(self, bias):
        """(n * H,) -> (n * C,)"""
        return self._cast(self._channels(bias.reshape(-1, len(self.order))).reshape(-1))

    def _make_weights(self, network, z, intervals):
        hidden, channels, embedding = network.hidden_channels, self.channels, network.tensor_embedding
        elements, both = numbers(embedding.emb.weight)[z], numbers(embedding.emb2.weight)
        centre = elements @ both[:, :hidden].T + numbers(embedding.emb2.bias)
        self._start = tuple(self._cast(self._channels(x)) for x in (centre, elements @ both[:, hidden:].T))

        linears = list(embedding.linears_tensor)
        for layer in network.layers:
            linears.extend(layer.linears_tensor)
        tensor = [self._joined(numbers(linear.weight)) for linear in linears]
        # the gain and bias of a LayerNorm go into the linear map that follows it
        scalar1, scalar1_bias = self._behind(embedding.init_norm, embedding.linears_scalar[0])
        second = embedding.linears_scalar[1]
        scalar2, scalar2_bias = self._joined(numbers(second.weight)), self._bias(numbers(second.bias))
        out, out_bias = self._behind(network.out_norm, network.linear)

        own = radial_filters(network, torch.zeros(1, dtype=torch.float64))[:, 0].numpy()
        own, present = self._cast(self._channels(own)), self._bias(np.ones(3 * hidden))
        table, zeros, order = self._make_table(network, intervals), self._zeros(3 * channels), self.order.astype(np.int64)
        self._layers = len(network.layers)
        shape = (own, self._layers, present, float(hidden))
        self._forward_weights = (
            self.grid.cutoff, self.grid.share, float(self.grid.steepness), self.grid.alpha, table, *shape,
            float(embedding.init_norm.eps), float(network.out_norm.eps), self._packed(tensor),
            self._packed([scalar1]), scalar1_bias, self._packed([scalar2]), scalar2_bias, self._packed([out]), out_bias,
            zeros, order,
        )  # fmt: skip
        if self.gradient:
            self._backward_weights = (
                *self._start, *shape, self._packed([w.T for w in tensor]), self._packed([scalar1.T]),
                self._packed([scalar2.T]), self._packed([out.T]), zeros, order,
            )  # fmt: skip

    def _behind(self, norm, linear):
        """Matrix and bias of a linear map behind a LayerNorm."""
        weight = numbers(linear.weight)
        bias = numbers(linear.bias) + weight @ numbers(norm.bias)
        return self._joined(weight * numbers(norm.weight)), self._bias(bias)

    def _make_table(self, network, intervals):
        choices, tolerance = INTERVALS, TOLERANCE
        if not self.gradient and self.dtype == np.float32:
            choices, tolerance = INTERVALS_OF_VALUES, TOLERANCE_OF_VALUES
        choices = choices if intervals is None else (int(intervals),)
        coefficients = self._tabulated(network, choices, tolerance, radial_filters)
        table = self._channels(coefficients).reshape(*coefficients.shape[:4], -1, PANEL)
        return self._cast(table.transpose(0, 1, 4, 3, 2, 5))  # (1 + L, intervals, panel, part, power, lane)

    def _make_work(self, m, p):
        c, work, integers = self.channels, self._zeros, np.int64
        kept, filters = (self._layers, self._layers + 1) if self.gradient else (1, 1)
        slopes = work(filters, p, 3 * c) if self.gradient else work(0, 0, 0)
        self._kept = (
            np.zeros(p, integers), np.zeros(p, integers), np.zeros(p, integers), np.zeros((p, 6)),
            np.zeros(m + 1, integers), np.zeros(2 * p, integers), np.zeros(2 * p, integers), work(2 * p, 8),
            work(filters, p, 3 * c), slopes,
            work(9, m, c), work(9, m, c), work(m, c), work(2, m), work(m, 2 * c), work(m, 2 * c), work(m, 3 * c),
            work(m, 3 * c), work(filters, 9, m, c), work(kept, m, c), work(kept, 9, m, c), work(kept, 9, m, c),
            work(kept, 9, m, c), work(kept, m, c), work(kept, 9, m, c), work(m, 3 * c), work(m, c), work(m, c),
        )  # fmt: skip
        self._forward_work = (work(m, c), work(m, 3 * c))
        if self.gradient:
            self._backward_work = (
                work(9, m, c), work(9, m, c), work(9, m, c), work(9, m, c), work(m, 3 * c), work(m, 3 * c),
                work(m, 2 * c), work(m, c), work(p, PANEL), np.zeros((p, 4)),
            )  # fmt: skip
