"""The equivariant transformer for one frame at a time on one CPU core, compiled with Numba.

What makes it fast: radial filters depend on one distance only and are tabulated once per network; every pair is visited
once for both directions, and its filters are made once for all windows that hold it; the gradient is a hand-written
vector-Jacobian product; what depends on the elements only is computed at construction; heads are the lanes of SIMD vectors.
The tabulated gradient is the exact derivative of the tabulated value, so a biased simulation conserves energy.
"""

import numpy as np
import torch

from torchmdnet_ext.compiled.base import CompiledNetwork, numbers
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
BATCH = 16  # rows whose filters are made at once: few enough for the fastest cache
SMOOTH_ACTIVATIONS = ("silu", "swish", "ssp", "tanh", "sigmoid", "gelu", "mish")


def layer_weights(layer):
    """Weights (parts * H, H) and biases (parts * H,) of a layer, float64; queries, keys and values together."""
    heads, hidden = layer.num_heads, layer.hidden_channels
    # the layer has the three kinds of values of one head side by side
    value = numbers(layer.v_proj.weight).reshape(heads, 3, -1, hidden).transpose(1, 0, 2, 3).reshape(3 * hidden, hidden)
    value_bias = numbers(layer.v_proj.bias).reshape(heads, 3, -1).transpose(1, 0, 2).reshape(-1)
    weight = np.concatenate([numbers(layer.q_proj.weight), numbers(layer.k_proj.weight), value])
    bias = np.concatenate([numbers(layer.q_proj.bias), numbers(layer.k_proj.bias), value_bias])
    return {
        # LayerNorm's own gain and bias go into the projections that follow it
        "qkv": weight * numbers(layer.layernorm.weight),
        "qkv_bias": bias + weight @ numbers(layer.layernorm.bias),
        "vec": numbers(layer.vec_proj.weight),
        "o": numbers(layer.o_proj.weight),
        "o_bias": numbers(layer.o_proj.bias),
    }


class NumbaET(CompiledNetwork):
    """A `SmoothEquivariantTransformer`; see `CompiledNetwork`."""

    shares_pairs = True
    _forward, _backward = staticmethod(forward), staticmethod(backward)

    @staticmethod
    def supports(network) -> str | None:
        """None if a network can be run, otherwise the reason why not."""
        if not isinstance(network, SmoothEquivariantTransformer):
            return f"it is a {type(network).__name__}, not a SmoothEquivariantTransformer"
        if getattr(network, "neighbor_embedding", None) is not None:
            return "neighbor_embedding is not covered"
        if network.attn_activation not in ("silu", "swish"):
            return f"attn_activation must be silu, but is {network.attn_activation}"
        if network.activation not in SMOOTH_ACTIVATIONS:
            return f"activation must be smooth ({', '.join(SMOOTH_ACTIVATIONS)}), but is {network.activation}"
        if network.cutoff_lower != 0:
            return f"cutoff_lower must be 0, but is {network.cutoff_lower}"
        if len(network.attention_layers) == 0:
            return "it has no layers"
        if bool(network.distance.box.any()):
            return "periodic boxes are not covered"
        return None

    def _interleaved(self, parts):
        """(n, parts, C) -> (n, parts * C) with the parts of each block side by side."""
        n, count, channels = parts.shape
        return parts.reshape(n, count, channels // WIDTH, WIDTH).transpose(0, 2, 1, 3).reshape(n, count * channels)

    def _make_weights(self, network, z, intervals):
        heads, hidden = network.num_heads, network.hidden_channels
        filters0 = radial_filters(network, torch.zeros(1, dtype=torch.float64))[:, 0].numpy()  # (L, 4, H)
        layers = [layer_weights(layer) for layer in network.attention_layers]
        self._layers = len(layers)
        # layer 0: vec is 0; queries, keys, values and the message of an atom to itself depend on its element
        first = layers[0]
        x = numbers(network.embedding.weight)[z]
        epsilon = network.attention_layers[0].layernorm.eps
        normed = x - x.mean(1, keepdims=True)
        normed /= np.sqrt(np.square(normed).mean(1, keepdims=True) + epsilon)
        qkv = (normed @ first["qkv"].T + first["qkv_bias"]).reshape(len(z), 5, hidden)
        product = (qkv[:, 0] * qkv[:, 1] * filters0[0, 0]).reshape(len(z), heads, -1).sum(2)
        attention = np.repeat(product / (1.0 + np.exp(-product)), hidden // heads, axis=1)
        start_w = first["o"][2 * hidden :]
        x = x + first["o_bias"][2 * hidden :] + (qkv[:, 2] * filters0[0, 1] * attention) @ start_w.T
        self._start = self._cast(self._channels(x)), self._cast(self._interleaved(self._channels(qkv)))

        table = self._make_table(network, intervals)
        later = layers[1:]
        qkv_w, vec_w, o_w = ([self._matrix(layer[name]) for layer in later] for name in ("qkv", "vec", "o"))
        qkv_w = [self._interleaved(w.reshape(self.channels, 5, self.channels)) for w in qkv_w]
        start = self._matrix(start_w)
        present = self._cast(self._channels(np.ones(hidden)))
        zeros = self._zeros(5 * self.channels)
        self_filters = self._cast(self._interleaved(self._channels(filters0)))
        gain, order = self._cast(numbers(network.out_norm.weight)), self.order.astype(np.int64)

        def biases(name, parts):
            rows = [layer[name].reshape(parts, hidden) for layer in later]
            return self._channels(np.stack(rows) if rows else np.zeros((0, parts, hidden)))

        shape = (table, self.groups, self.depth, present, float(hidden))
        self._forward_weights = (
            self.grid.cutoff, self.grid.share, float(self.grid.steepness), self.grid.alpha, *shape, float(epsilon),
            self._packed([start]), self._packed(qkv_w), self._cast(self._interleaved(biases("qkv_bias", 5))),
            self._packed(vec_w), self._packed(o_w), self._cast(biases("o_bias", 3)), self_filters, zeros,
            gain, self._cast(numbers(network.out_norm.bias)), order,
        )  # fmt: skip
        self._backward_weights = (
            *shape, self._packed([start.T]), self._packed([w.T for w in qkv_w]), self._packed([w.T for w in vec_w]),
            self._packed([w.T for w in o_w]), self_filters, zeros, gain, order,
        )  # fmt: skip

    def _make_table(self, network, intervals):
        choices, tolerance = INTERVALS, TOLERANCE if self.dtype == np.float64 else TOLERANCE_IN_SINGLE
        if not self.gradient and self.dtype == np.float32:
            choices, tolerance = INTERVALS_OF_VALUES, TOLERANCE_OF_VALUES
        choices = choices if intervals is None else (int(intervals),)
        coefficients = self._tabulated(network, choices, tolerance, radial_filters)
        table = self._channels(coefficients).reshape(*coefficients.shape[:4], -1, WIDTH)
        return self._cast(table.transpose(0, 1, 4, 3, 2, 5))  # (L, intervals, block, filter, power, lane)

    def _make_work(self, m, p):
        self._pairs = [self._pair_rows(i, j) for _, i, j in self._parts]
        layers, c, g, work = self._layers, self.channels, self.groups, self._zeros
        rows = max(len(first) for first, *_ in self._pairs)
        kept = layers if self.gradient else 1  # a layer's values are overwritten by those of the next
        both = max(2, kept)
        self._kept = (
            *(np.zeros(rows, np.int64) for _ in range(3)), np.zeros((rows, 6)), np.zeros(rows + 1, np.int64),
            np.zeros(p, np.int64), np.zeros(p, np.int64), work(BATCH, 4 * c), work(BATCH, 4 * c),
            work(both, m, 5 * c), work(both, m, c), work(layers, m), work(kept + 1, m, 3, c), work(kept, m, 3, 3 * c),
            work(kept, m, 3 * c), work(kept, p, g, 4, WIDTH), work(kept, m, g, 2, WIDTH),
        )  # fmt: skip
        self._forward_work = (work(m, c), work(m, c), work(m, 3, c))
        if self.gradient:
            self._backward_work = (
                work(m, c), work(m, 3, c), work(m, 3, c), work(m, c), work(m, c), work(m, 5 * c), work(m, 3 * c),
                work(m, 3, 3 * c), np.zeros((rows, 4)),
            )  # fmt: skip

    def _pair_rows(self, i, j):
        """Of the rows, pairs of atoms of `pos`: both atoms, and where their pairs of window atoms start; those pairs."""
        if self._rows is None:
            return i, j, np.arange(len(i) + 1), i, j
        a, b = self._rows[i], self._rows[j]
        i, j = np.where(a < b, i, j), np.where(a < b, j, i)  # the same direction in all windows
        key = np.minimum(a, b) * self._positions[0] + np.maximum(a, b)
        order = np.argsort(key, kind="stable")
        key, counts = np.unique(key, return_counts=True)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return *np.divmod(key, self._positions[0]), starts, i[order], j[order]

    def _run(self, pos, x, v):
        self._ticket += 1
        rest = *self._forward_weights, *self._kept, *self._forward_work
        for (atoms, _, _), (*rows, i, j) in zip(self._parts, self._pairs, strict=True):
            at = pos
            if self._rows is None:
                # several frames only where there is one part
                atoms = slice(atoms.start, atoms.stop + len(x) - self._shape[0])
                n = len(i) // self._stack * (len(x) // self._shape[0])
                first, second, starts = rows
                rows, i, j = (first[:n], second[:n], starts[: n + 1]), i[:n], j[:n]
                at = pos[atoms]
            start = (array[atoms] for array in self._start)
            self._near = self._forward(int(self.gradient), at, *rows, i, j, *start, x[atoms], v[atoms], *rest)
