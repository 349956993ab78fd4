"""ViSNet for one frame at a time on one CPU core, compiled with Numba.

What makes it fast: the radial parts of the embeddings are tabulated; edge features of the first two layers are the same in
both directions of a pair; all else happens in tiles of edges that stay in the cache; the products of matrices are kept for
the gradient where there is room; work arrays are made once.
"""

import copy

import numpy as np
import torch

from torchmdnet_ext.compiled.arrays import to_float64
from torchmdnet_ext.compiled.base import CompiledNetwork
from torchmdnet_ext.compiled.visnet_arguments import (
    BackwardWeights,
    ForwardWeights,
    Shared,
    make_backward_work,
    make_forward_work,
    make_kept,
    make_layer,
    make_sizes,
)
from torchmdnet_ext.compiled.visnet_kernels import backward, forward
from torchmdnet_ext.kernels.lanes import PANEL
from torchmdnet_ext.models.visnet import ViSNet

# intervals of the table, and the error of its slopes at the worst distance with which one is content
INTERVALS = {"float32": (1024, 1536, 2048, 3072, 4096, 6144, 8192), "float64": (4096,)}
TOLERANCE = 2e-5


def radial_filters(network, distance: torch.Tensor) -> torch.Tensor:
    """Filters (1, n, 2, H) at `distance` (n,), float64: of the neighbour embedding and of the edge embedding."""
    basis = copy.deepcopy(network.distance_expansion).double()(distance)
    neighbour = copy.deepcopy(network.neighbor_embedding.distance_proj).double()(basis)
    weight = network.neighbor_embedding.cutoff(distance) * network.envelope(distance)
    edge = copy.deepcopy(network.edge_embedding.edge_proj).double()(basis)
    return torch.stack([neighbour * weight[:, None], edge], 1)[None]


def layer_weights(layer, edge_maps, vector_maps):
    """Weights (maps * H, H) and biases (maps * H,) of a layer, float64, those of linear maps of the same input together.

    Edge features have `edge_maps` of them, vectors `vector_maps`; those that the last layer does not have are zeros.
    """
    hidden = layer.hidden_channels

    def joined(name, maps, *linears):
        rows = np.concatenate([to_float64(getattr(linear, name)) for linear in linears])
        return np.concatenate([rows, np.zeros((maps * hidden - len(rows), *rows.shape[1:]))])

    queries = (layer.q_proj, layer.k_proj, layer.v_proj)
    edges, vectors = (layer.dk_proj, layer.dv_proj), (layer.vec_proj,)
    if not layer.last_layer:
        edges, vectors = (*edges, layer.f_proj), (*vectors, layer.w_trg_proj, layer.w_src_proj)
        if edge_maps == 4:
            vectors = (*vectors, layer.t_trg_proj, layer.t_src_proj)
    qkv = joined("weight", 3, *queries)
    return {
        # LayerNorm's own gain and bias go into the projections that follow it
        "qkv": qkv * to_float64(layer.layernorm.weight),
        "qkv_bias": joined("bias", 3, *queries) + qkv @ to_float64(layer.layernorm.bias),
        "edge": joined("weight", edge_maps, *edges),
        "edge_bias": joined("bias", edge_maps, *edges),
        # what multiplies directions comes first: layer 0 has no vectors to multiply
        "message": np.roll(to_float64(layer.s_proj.weight), hidden, 0),
        "message_bias": np.roll(to_float64(layer.s_proj.bias), hidden),
        "vectors": joined("weight", vector_maps, *vectors),
        "o": to_float64(layer.o_proj.weight),
        "o_bias": to_float64(layer.o_proj.bias),
    }


class NumbaViSNet(CompiledNetwork):
    """A `ViSNet`; see `CompiledNetwork`."""

    _forward, _backward = staticmethod(forward), staticmethod(backward)
    network_class = ViSNet

    def _make_weights(self, network, z, intervals):
        hidden, channels, count = network.hidden_channels, self.channels, len(network.vis_mp_layers)
        self._sizes = sizes = make_sizes(
            self.groups, self.depth, channels, network.lmax, count, network.vertex, network.vecnorm_type == "max_min",
            float(hidden),
        )  # fmt: skip
        layers = [layer_weights(layer, sizes.edge_maps, sizes.vector_maps) for layer in network.vis_mp_layers]
        matrices = {name: [self._matrix(layer[name]) for layer in layers] for name in layers[0] if name[-4:] != "bias"}
        biases = {
            name: np.stack([self._channels(layer[f"{name}_bias"].reshape(-1, hidden)).reshape(-1) for layer in layers])
            for name in ("qkv", "edge", "message", "o")
        }
        # the embedding of the neighbours is a second one; both are combined
        combine = to_float64(network.neighbor_embedding.combine.weight)
        start = self._matrix(combine[:, hidden:])
        x = to_float64(network.embedding.weight)[z] @ combine[:, :hidden].T
        x = x + to_float64(network.neighbor_embedding.combine.bias)
        neighbour = self._cast(self._channels(to_float64(network.neighbor_embedding.embedding.weight)[z]))
        self._start = self._cast(self._channels(x)), neighbour
        self._shared = self._make_shared(network, matrices, biases, intervals)
        self._forward_weights = ForwardWeights(
            epsilon=float(network.out_norm.eps),
            envelope_width=float(network.envelope_width) if network.smooth_cutoff else 0.0,
            start=self._packed([start]),
            qkv=self._packed(matrices["qkv"]),
            qkv_bias=self._cast(biases["qkv"]),
            vectors=self._packed(matrices["vectors"]),
            o=self._packed(matrices["o"]),
            o_bias=self._cast(biases["o"]),
            bias=self._cast(to_float64(network.out_norm.bias)),
        )
        if self.gradient:
            self._backward_weights = self._make_backward_weights(neighbour, start, matrices)

    def _make_shared(self, network, matrices, biases, intervals):
        loop = radial_filters(network, torch.zeros(1, dtype=torch.float64))[0, 0, 1].numpy()
        norms = [layer.vec_layernorm for layer in network.vis_mp_layers] + [network.vec_out_norm]
        return Shared(
            sizes=self._sizes,
            radial=self._make_table(network, intervals),
            present=self._cast(self._channels(np.ones(network.hidden_channels))),
            loop=self._cast(self._channels(loop)),
            edge=self._packed(matrices["edge"]),
            edge_bias=self._cast(biases["edge"]),
            message=self._packed(matrices["message"]),
            message_bias=self._cast(biases["message"]),
            norm=self._cast(self._channels(np.stack([to_float64(norm.weight) for norm in norms]))),
            zeros=self._zeros(self._sizes.vector_maps * self.channels),
            gain=self._cast(to_float64(network.out_norm.weight)),
            order=self.order.astype(np.int64),
        )

    def _make_backward_weights(self, neighbour, start, matrices):
        layers = [make_layer.py_func(self._sizes, number) for number in range(self._sizes.layers)]
        three = [3 * self.channels] * len(layers)
        return BackwardWeights(
            neighbour=neighbour,
            start=self._packed([start.T]),
            qkv=self._transposed(matrices["qkv"], three),
            edge=self._transposed(matrices["edge"], [layer.edge_width for layer in layers]),
            message=self._transposed(matrices["message"], [layer.message_width for layer in layers]),
            vectors=self._transposed(matrices["vectors"], [layer.vector_width for layer in layers]),
            o=self._transposed(matrices["o"], three),
        )

    def _make_table(self, network, intervals):
        choices = INTERVALS[self.dtype.name] if intervals is None else (int(intervals),)
        coefficients = self._tabulated(network, choices, TOLERANCE, radial_filters)
        table = self._channels(coefficients[0]).reshape(*coefficients.shape[1:4], -1, PANEL)
        return self._radial_table(table.transpose(0, 3, 2, 1, 4))  # (intervals, panel, filter, power, lane)

    def _transposed(self, matrices, widths):
        """Transposed matrices of all layers, packed; of each only so many of its columns."""
        lines = self._zeros(len(matrices), matrices[0].size)
        for line, matrix, width in zip(lines, matrices, widths, strict=True):
            packed = self._packed([matrix[:, :width].T]).reshape(-1)
            line[: len(packed)] = packed
        return lines

    def _make_work(self, m, p):
        self._kept = make_kept(self._zeros, self.gradient, self._sizes, m, p, self.dtype.itemsize)
        self._forward_work = make_forward_work(self._zeros, self._sizes, m, p)
        if self.gradient:
            self._backward_work = make_backward_work(self._zeros, self._sizes, self._forward_work, m, p)
