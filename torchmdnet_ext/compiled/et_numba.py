"""The equivariant transformer for one frame at a time on one CPU core, compiled with Numba.

What makes it fast: radial filters depend on one distance only and are tabulated once per network; every pair is visited
once for both directions, and its filters are made once for all windows that hold it; the gradient is a hand-written
vector-Jacobian product; what depends on the elements only is computed at construction; heads are the lanes of SIMD vectors.
The tabulated gradient is the exact derivative of the tabulated value, so a biased simulation conserves energy.
"""

import numpy as np
import torch

from torchmdnet_ext.compiled.arrays import to_float64
from torchmdnet_ext.compiled.base import CompiledNetwork
from torchmdnet_ext.compiled.et_arguments import (
    BackwardWeights,
    Candidates,
    ForwardWeights,
    Shared,
    make_backward_work,
    make_forward_work,
    make_kept,
)
from torchmdnet_ext.compiled.et_kernels import backward, forward
from torchmdnet_ext.compiled.tables import radial_filters
from torchmdnet_ext.kernels.lanes import WIDTH
from torchmdnet_ext.models.equivariant_transformer import SmoothEquivariantTransformer

INTERVALS = (768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
TOLERANCE = 2e-5  # of the slope of the tabulated filters at the worst distance; typical errors are ten times smaller
# In single precision fewer intervals do, and the table, which is read at random, fits better into the cache: gradients are
# then exact to 8e-6, and where only values are wanted these are still as exact as single precision.
TOLERANCE_IN_SINGLE = 5e-5
INTERVALS_OF_VALUES = (384, 512, *INTERVALS)
TOLERANCE_OF_VALUES = 5e-4
SMOOTH_ACTIVATIONS = ("silu", "swish", "ssp", "tanh", "sigmoid", "gelu", "mish")


def layer_weights(layer):
    """Weights (parts * H, H) and biases (parts * H,) of a layer, float64; queries, keys and values together."""
    heads, hidden = layer.num_heads, layer.hidden_channels
    # the layer has the three kinds of values of one head side by side
    value = to_float64(layer.v_proj.weight).reshape(heads, 3, -1, hidden).transpose(1, 0, 2, 3).reshape(3 * hidden, hidden)
    value_bias = to_float64(layer.v_proj.bias).reshape(heads, 3, -1).transpose(1, 0, 2).reshape(-1)
    weight = np.concatenate([to_float64(layer.q_proj.weight), to_float64(layer.k_proj.weight), value])
    bias = np.concatenate([to_float64(layer.q_proj.bias), to_float64(layer.k_proj.bias), value_bias])
    return {
        # LayerNorm's own gain and bias go into the projections that follow it
        "qkv": weight * to_float64(layer.layernorm.weight),
        "qkv_bias": bias + weight @ to_float64(layer.layernorm.bias),
        "vec": to_float64(layer.vec_proj.weight),
        "o": to_float64(layer.o_proj.weight),
        "o_bias": to_float64(layer.o_proj.bias),
    }


class NumbaET(CompiledNetwork):
    """A `SmoothEquivariantTransformer`; see `CompiledNetwork`."""

    shares_pairs = True
    _forward, _backward = staticmethod(forward), staticmethod(backward)
    network_class = SmoothEquivariantTransformer

    @staticmethod
    def _uncovered(network) -> str | None:
        if getattr(network, "neighbor_embedding", None) is not None:
            return "neighbor_embedding is not covered"
        if network.attn_activation not in ("silu", "swish"):
            return f"attn_activation must be silu, but is {network.attn_activation}"
        if network.activation not in SMOOTH_ACTIVATIONS:
            return f"activation must be smooth ({', '.join(SMOOTH_ACTIVATIONS)}), but is {network.activation}"
        if len(network.attention_layers) == 0:
            return "it has no layers"
        return None

    def _interleaved(self, parts):
        """(n, parts, C) -> (n, parts * C) with the parts of each block side by side."""
        n, count, channels = parts.shape
        return parts.reshape(n, count, channels // WIDTH, WIDTH).transpose(0, 2, 1, 3).reshape(n, count * channels)

    def _make_weights(self, network, z, intervals):
        hidden = network.hidden_channels
        filters0 = radial_filters(network, torch.zeros(1, dtype=torch.float64))[:, 0].numpy()  # (L, 4, H)
        first, *later = layers = [layer_weights(layer) for layer in network.attention_layers]
        self._layers = len(layers)
        epsilon = network.attention_layers[0].layernorm.eps
        start = self._make_start(network, z, first, filters0[0], epsilon)
        qkv, vec, o = ([self._matrix(layer[name]) for layer in later] for name in ("qkv", "vec", "o"))
        qkv = [self._interleaved(w.reshape(self.channels, 5, self.channels)) for w in qkv]

        def biases(name, parts):
            rows = [layer[name].reshape(parts, hidden) for layer in later]
            return self._channels(np.stack(rows) if rows else np.zeros((0, parts, hidden)))

        self._shared = Shared(
            radial=self._make_table(network, intervals),
            groups=self.groups,
            depth=self.depth,
            present=self._cast(self._channels(np.ones(hidden))),
            features=float(hidden),
            self_filters=self._cast(self._interleaved(self._channels(filters0))),
            zeros=self._zeros(5 * self.channels),
            gain=self._cast(to_float64(network.out_norm.weight)),
            order=self.order.astype(np.int64),
        )
        self._forward_weights = ForwardWeights(
            epsilon=float(epsilon),
            start=self._packed([start]),
            qkv=self._packed(qkv),
            qkv_bias=self._cast(self._interleaved(biases("qkv_bias", 5))),
            vec=self._packed(vec),
            o=self._packed(o),
            o_bias=self._cast(biases("o_bias", 3)),
            bias=self._cast(to_float64(network.out_norm.bias)),
        )
        self._backward_weights = BackwardWeights(*(self._packed([w.T for w in maps]) for maps in ([start], qkv, vec, o)))

    def _make_start(self, network, z, first, filters0, epsilon):
        """Set `_start`, what depends on the elements only; return the matrix of what layer 0 makes of the messages.

        In layer 0 vec is 0; queries, keys, values and the message of an atom to itself depend on its element.
        """
        heads, hidden = network.num_heads, network.hidden_channels
        x = to_float64(network.embedding.weight)[z]
        normed = x - x.mean(1, keepdims=True)
        normed /= np.sqrt(np.square(normed).mean(1, keepdims=True) + epsilon)
        qkv = (normed @ first["qkv"].T + first["qkv_bias"]).reshape(len(z), 5, hidden)
        product = (qkv[:, 0] * qkv[:, 1] * filters0[0]).reshape(len(z), heads, -1).sum(2)
        attention = np.repeat(product / (1.0 + np.exp(-product)), hidden // heads, axis=1)
        weight = first["o"][2 * hidden :]
        x = x + first["o_bias"][2 * hidden :] + (qkv[:, 2] * filters0[1] * attention) @ weight.T
        self._start = self._cast(self._channels(x)), self._cast(self._interleaved(self._channels(qkv)))
        return self._matrix(weight)

    def _make_table(self, network, intervals):
        choices, tolerance = INTERVALS, TOLERANCE if self.dtype == np.float64 else TOLERANCE_IN_SINGLE
        if not self.gradient and self.dtype == np.float32:
            choices, tolerance = INTERVALS_OF_VALUES, TOLERANCE_OF_VALUES
        choices = choices if intervals is None else (int(intervals),)
        coefficients = self._tabulated(network, choices, tolerance, radial_filters)
        table = self._channels(coefficients).reshape(*coefficients.shape[:4], -1, WIDTH)
        return self._radial_table(table.transpose(0, 1, 4, 3, 2, 5))  # (L, intervals, block, filter, power, lane)

    def _make_work(self, m, p):
        self._candidates = [self._make_candidates(i, j) for _, i, j in self._parts]
        rows, zeros, channels = max(len(part.first) for part in self._candidates), self._zeros, self.channels
        self._kept = make_kept(zeros, self.gradient, self._layers, m, rows, p, channels, self.groups)
        self._forward_work = make_forward_work(zeros, m, channels)
        if self.gradient:
            self._backward_work = make_backward_work(zeros, m, rows, channels)

    def _make_candidates(self, i, j):
        if self._rows is None:
            return Candidates(i, j, np.arange(len(i) + 1), i, j)
        a, b = self._rows[i], self._rows[j]
        i, j = np.where(a < b, i, j), np.where(a < b, j, i)  # the same direction in all windows
        key = np.minimum(a, b) * self._positions[0] + np.maximum(a, b)
        order = np.argsort(key, kind="stable")
        key, counts = np.unique(key, return_counts=True)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return Candidates(*np.divmod(key, self._positions[0]), starts, i[order], j[order])

    def _run(self, pos, x, v):
        self._ticket += 1
        first, second = self._start
        for (atoms, _, _), candidates in zip(self._parts, self._candidates, strict=True):
            at = pos
            if self._rows is None:
                # several frames only where there is one part
                atoms = slice(atoms.start, atoms.stop + len(x) - self._shape[0])
                n = len(candidates.i) // self._stack * (len(x) // self._shape[0])
                of_rows, starts, i, j = candidates[:2], candidates.starts, candidates.i, candidates.j
                candidates = Candidates(*(side[:n] for side in of_rows), starts[: n + 1], i[:n], j[:n])
                at = pos[atoms]
            self._run_part(at, (candidates,), (first[atoms], second[atoms]), x[atoms], v[atoms])
