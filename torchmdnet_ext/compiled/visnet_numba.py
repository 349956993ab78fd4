"""ViSNet for one frame at a time on one CPU core, compiled with Numba.

What makes it fast: the radial parts of the embeddings are tabulated; edge features of the first two layers are the same in
both directions of a pair; all else happens in tiles of edges that stay in the cache; the products of matrices are kept for
the gradient where there is room; work arrays are made once.
"""

import copy

import numpy as np
import torch

from torchmdnet_ext.compiled.base import CompiledNetwork, numbers
from torchmdnet_ext.compiled.visnet_kernels import TILE, backward, forward
from torchmdnet_ext.kernels.lanes import PANEL
from torchmdnet_ext.models.visnet import ViSNet

# intervals of the table, and the error of its slopes at the worst distance with which one is content
INTERVALS = {"float32": (1024, 1536, 2048, 3072, 4096, 6144, 8192), "float64": (4096,)}
TOLERANCE = 2e-5
MOST_HELD = 256e6  # bytes of projections that are kept for the gradient, rather than computed again


def radial_filters(network, distance: torch.Tensor) -> torch.Tensor:
    """Filters (1, n, 2, H) at `distance` (n,), float64: of the neighbour embedding and of the edge embedding."""
    basis = copy.deepcopy(network.distance_expansion).double()(distance)
    neighbour = copy.deepcopy(network.neighbor_embedding.distance_proj).double()(basis)
    weight = network.neighbor_embedding.cutoff(distance) * network.envelope(distance)
    edge = copy.deepcopy(network.edge_embedding.edge_proj).double()(basis)
    return torch.stack([neighbour * weight[:, None], edge], 1)[None]


def layer_weights(layer, edge_parts, vector_parts):
    """Weights (parts * H, H) and biases (parts * H,) of a layer, float64, those of linear maps of the same input together.

    Edge features have `edge_parts` of them, vectors `vector_parts`; those that the last layer does not have are zeros.
    """

    hidden = layer.hidden_channels

    def joined(name, parts, *linears):
        rows = np.concatenate([numbers(getattr(linear, name)) for linear in linears])
        return np.concatenate([rows, np.zeros((parts * hidden - len(rows), *rows.shape[1:]))])

    queries = (layer.q_proj, layer.k_proj, layer.v_proj)
    edges, vectors = (layer.dk_proj, layer.dv_proj), (layer.vec_proj,)
    if not layer.last_layer:
        edges, vectors = (*edges, layer.f_proj), (*vectors, layer.w_trg_proj, layer.w_src_proj)
        if edge_parts == 4:
            vectors = (*vectors, layer.t_trg_proj, layer.t_src_proj)
    qkv = joined("weight", 3, *queries)
    return {
        # LayerNorm's own gain and bias go into the projections that follow it
        "qkv": qkv * numbers(layer.layernorm.weight),
        "qkv_bias": joined("bias", 3, *queries) + qkv @ numbers(layer.layernorm.bias),
        "edge": joined("weight", edge_parts, *edges),
        "edge_bias": joined("bias", edge_parts, *edges),
        # what multiplies directions comes first: layer 0 has no vectors to multiply
        "message": np.roll(numbers(layer.s_proj.weight), hidden, 0),
        "message_bias": np.roll(numbers(layer.s_proj.bias), hidden),
        "vectors": joined("weight", vector_parts, *vectors),
        "o": numbers(layer.o_proj.weight),
        "o_bias": numbers(layer.o_proj.bias),
    }


class NumbaViSNet(CompiledNetwork):
    """A `ViSNet`; see `CompiledNetwork`."""

    _forward, _backward = staticmethod(forward), staticmethod(backward)

    @staticmethod
    def supports(network) -> str | None:
        """None if a network can be run, otherwise the reason why not."""
        if not isinstance(network, ViSNet):
            return f"it is a {type(network).__name__}, not a ViSNet"
        if bool(network.distance.box.any()):
            return "periodic boxes are not covered"
        return None

    def _make_weights(self, network, z, intervals):
        hidden, channels, count = network.hidden_channels, self.channels, len(network.vis_mp_layers)
        edge_parts, vector_parts = self._map_parts = (4, 7) if network.vertex else (3, 5)
        layers = [layer_weights(layer, *self._map_parts) for layer in network.vis_mp_layers]
        matrices = {name: [self._matrix(layer[name]) for layer in layers] for name in layers[0] if name[-4:] != "bias"}
        packed = {name: self._packed(of_layers) for name, of_layers in matrices.items()}
        biases = {
            name: np.stack([self._channels(layer[f"{name}_bias"].reshape(-1, hidden)).reshape(-1) for layer in layers])
            for name in ("qkv", "edge", "message", "o")
        }
        biases = {name: self._cast(rows) for name, rows in biases.items()}
        # the embedding of the neighbours is a second one; both are combined
        combine = numbers(network.neighbor_embedding.combine.weight)
        start = self._matrix(combine[:, hidden:])
        x = numbers(network.embedding.weight)[z] @ combine[:, :hidden].T + numbers(network.neighbor_embedding.combine.bias)
        neighbour = self._cast(self._channels(numbers(network.neighbor_embedding.embedding.weight)[z]))
        self._start = self._cast(self._channels(x)), neighbour
        loop = radial_filters(network, torch.zeros(1, dtype=torch.float64))[0, 0, 1].numpy()
        loop, present = self._cast(self._channels(loop)), self._cast(self._channels(np.ones(hidden)))
        norms = [layer.vec_layernorm for layer in network.vis_mp_layers] + [network.vec_out_norm]
        vec_weight = self._cast(self._channels(np.stack([numbers(norm.weight) for norm in norms])))
        max_min, epsilon = network.vecnorm_type == "max_min", float(network.out_norm.eps)
        gain, bias = self._cast(numbers(network.out_norm.weight)), self._cast(numbers(network.out_norm.bias))
        zeros, order = self._zeros(vector_parts * channels), self.order.astype(np.int64)
        table = self._make_table(network, intervals)
        self._sizes = (self.groups, self.depth, (network.lmax + 1) ** 2 - 1, count)
        width = network.envelope_width if network.smooth_cutoff else 0.0
        self._forward_weights = (
            self.grid.cutoff, self.grid.share, float(self.grid.steepness), self.grid.alpha, width, table, *self._sizes,
            present, float(hidden), epsilon, max_min, network.vertex, self._packed([start]), loop,
            packed["qkv"], biases["qkv"], packed["edge"], biases["edge"], packed["message"], biases["message"],
            packed["vectors"], packed["o"], biases["o"], vec_weight, zeros, gain, bias, order,
        )  # fmt: skip
        # parts of every layer's matrices that are used: see the widths in `visnet_kernels`
        parts = {
            "qkv": [3] * count,
            "edge": [2, *[edge_parts] * (count - 2), 2][-count:],
            "message": [1, *[2] * (count - 1)],
            "vectors": [vector_parts] * (count - 1) + [3],
            "o": [3] * count,
        }
        backwards = {name: self._transposed(matrices[name], used) for name, used in parts.items()}
        self._backward_weights = (
            table, *self._sizes, present, float(hidden), max_min, network.vertex, neighbour, self._packed([start.T]), loop,
            backwards["qkv"], packed["edge"], biases["edge"], backwards["edge"], packed["message"], biases["message"],
            backwards["message"], backwards["vectors"], backwards["o"], vec_weight, zeros, gain, order,
        )  # fmt: skip

    def _make_table(self, network, intervals):
        choices = INTERVALS[self.dtype.name] if intervals is None else (int(intervals),)
        coefficients = self._tabulated(network, choices, TOLERANCE, radial_filters)
        table = self._channels(coefficients[0]).reshape(*coefficients.shape[1:4], -1, PANEL)
        return self._cast(table.transpose(0, 3, 2, 1, 4))  # (intervals, panel, filter, power, lane)

    def _transposed(self, matrices, parts):
        """Transposed matrices of all layers, packed; of each only the first so many parts of its columns."""
        lines = self._zeros(len(matrices), matrices[0].size)
        for line, matrix, used in zip(lines, matrices, parts, strict=True):
            packed = self._packed([matrix[:, : used * self.channels].T]).reshape(-1)
            line[: len(packed)] = packed
        return lines

    def _make_work(self, m, p):
        groups, _, components, layers = self._sizes
        c, work, kept = self.channels, self._zeros, layers if self.gradient else 1
        of_edges, of_vectors = (parts * c for parts in self._map_parts)
        edges, rows, integers = 2 * p + m, max(p + m, TILE), np.int64
        features = max(layers - 2, 0) if self.gradient else 1
        hold = int(self.gradient and layers * edges * (of_edges + 2 * c) * self.dtype.itemsize <= MOST_HELD)
        lines = layers * edges if hold else TILE
        d, product, message, norm = work(rows, of_edges), work(TILE, groups, PANEL), work(TILE, c), work(c)
        s = work(TILE, 2 * c)
        self._kept = (
            np.zeros(p, integers), np.zeros(p, integers), np.zeros(p, integers), np.zeros((p, 6)), np.zeros((p + m, 4)),
            np.zeros(m + 1, integers), np.zeros(edges, integers), np.zeros(edges, integers), np.zeros(edges, integers),
            work(edges, 2 + components), work(m, c), work(1, p + m, c), work(features, edges, c),
            work(layers + 1, m, c), work(layers + 1, m), work(kept, m, 3 * c), work(layers + 1, m, components, c),
            work(layers + 1, m, components, c), work(kept, m, components, of_vectors), work(kept, m, 3 * c),
            hold, work(lines, of_edges), work(lines, 2 * c),
        )  # fmt: skip
        self._forward_work = (work(m, c), work(m, c), work(m, components, c), d, product, message, s, norm)
        if self.gradient:
            self._backward_work = (
                d, work(rows, of_edges), work(rows, of_edges), product, message, work(TILE, c), s, work(TILE, 2 * c),
                work(TILE, 2 * c), norm,
                work(m, c), work(m, components, c), work(m, c), work(m, c), work(m, components, c), work(m, 3 * c),
                work(m, 3 * c), work(m, components, of_vectors), work(p + m, c), work(edges, c),
                np.zeros((edges, 2 + components)), np.zeros((p, 4)),
            )  # fmt: skip
