"""TensorNet for one frame at a time on one CPU core, compiled with Numba.

What makes it fast: the radial parts of embedding and layers are tabulated; 3 x 3 matrices are nine components in registers,
multiplied there; messages are gathered for each atom in turn, sixteen channels at a time; the gradient is a hand-written
vector-Jacobian product; work arrays are made once.
"""

import copy
import math

import numpy as np
import torch

from torchmdnet_ext.compiled.arrays import to_float64
from torchmdnet_ext.compiled.base import CompiledNetwork
from torchmdnet_ext.compiled.tensornet_arguments import (
    BackwardWeights,
    ForwardWeights,
    Shared,
    make_backward_work,
    make_forward_work,
    make_kept,
)
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
    network_class = SmoothTensorNet

    @staticmethod
    def _uncovered(network) -> str | None:
        if not isinstance(network.act, torch.nn.SiLU):
            return f"activation must be silu, but is {type(network.act).__name__}"
        if len(network.layers) == 0:
            return "it has no layers"
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
        """(n * H,) -> (n * C,)."""
        return self._cast(self._channels(bias.reshape(-1, len(self.order))).reshape(-1))

    def _make_weights(self, network, z, intervals):
        hidden, channels, embedding = network.hidden_channels, self.channels, network.tensor_embedding
        elements, both = to_float64(embedding.emb.weight)[z], to_float64(embedding.emb2.weight)
        centre = elements @ both[:, :hidden].T + to_float64(embedding.emb2.bias)
        self._start = tuple(self._cast(self._channels(x)) for x in (centre, elements @ both[:, hidden:].T))

        linears = list(embedding.linears_tensor)
        for layer in network.layers:
            linears.extend(layer.linears_tensor)
        tensor = [self._joined(to_float64(linear.weight)) for linear in linears]
        # the gain and bias of a LayerNorm go into the linear map that follows it
        scalar1, scalar1_bias = self._behind(embedding.init_norm, embedding.linears_scalar[0])
        second = embedding.linears_scalar[1]
        scalar2, scalar2_bias = self._joined(to_float64(second.weight)), self._bias(to_float64(second.bias))
        out, out_bias = self._behind(network.out_norm, network.linear)

        own = radial_filters(network, torch.zeros(1, dtype=torch.float64))[:, 0].numpy()
        self._shared = Shared(
            radial=self._make_table(network, intervals),
            own=self._cast(self._channels(own)),
            layers=len(network.layers),
            present=self._bias(np.ones(3 * hidden)),
            features=float(hidden),
            zeros=self._zeros(3 * channels),
            order=self.order.astype(np.int64),
        )
        self._forward_weights = ForwardWeights(
            epsilon=float(embedding.init_norm.eps),
            out_epsilon=float(network.out_norm.eps),
            tensor=self._packed(tensor),
            scalar1=self._packed([scalar1]),
            scalar1_bias=scalar1_bias,
            scalar2=self._packed([scalar2]),
            scalar2_bias=scalar2_bias,
            out=self._packed([out]),
            out_bias=out_bias,
        )
        if self.gradient:
            maps = tensor, [scalar1], [scalar2], [out]
            self._backward_weights = BackwardWeights(*self._start, *(self._packed([w.T for w in part]) for part in maps))

    def _behind(self, norm, linear):
        """Matrix and bias of a linear map behind a LayerNorm."""
        weight = to_float64(linear.weight)
        bias = to_float64(linear.bias) + weight @ to_float64(norm.bias)
        return self._joined(weight * to_float64(norm.weight)), self._bias(bias)

    def _make_table(self, network, intervals):
        choices, tolerance = INTERVALS, TOLERANCE
        if not self.gradient and self.dtype == np.float32:
            choices, tolerance = INTERVALS_OF_VALUES, TOLERANCE_OF_VALUES
        choices = choices if intervals is None else (int(intervals),)
        coefficients = self._tabulated(network, choices, tolerance, radial_filters)
        table = self._channels(coefficients).reshape(*coefficients.shape[:4], -1, PANEL)
        return self._radial_table(table.transpose(0, 1, 4, 3, 2, 5))  # (1 + L, intervals, panel, part, power, lane)

    def _make_work(self, m, p):
        self._kept = make_kept(self._zeros, self.gradient, self._shared.layers, m, p, self.channels)
        self._forward_work = make_forward_work(self._zeros, m, self.channels)
        if self.gradient:
            self._backward_work = make_backward_work(self._zeros, m, p, self.channels)
