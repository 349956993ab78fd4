"""The equivariant transformer for one frame at a time on one CPU core, compiled with Numba.

What makes it fast: radial filters depend on one distance only and are tabulated once per network; every pair is visited
once for both directions; the gradient is a hand-written vector-Jacobian product; what depends on the elements only is
computed at construction; heads are the lanes of SIMD vectors. The tabulated gradient is the exact derivative of the
tabulated value, so a biased simulation conserves energy.
"""

import threading

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from openmm_geomgnn.engines.et_kernels import backward, forward
from openmm_geomgnn.engines.tables import radial_filters, table_error, tabulate
from openmm_geomgnn.errors import GeomGNNError
from torchmdnet_ext.kernels.lanes import PANEL, WIDTH
from torchmdnet_ext.models.equivariant_transformer import SmoothEquivariantTransformer

INTERVALS = (1024, 1536, 2048, 3072, 4096, 6144, 8192)
TOLERANCE = 2e-5  # of the slope of the tabulated filters at the worst distance; typical errors are ten times smaller
# where only values are wanted: then they are still as exact as single precision, and the table fits better into the cache
INTERVALS_OF_VALUES = (384, 512, 768, *INTERVALS)
TOLERANCE_OF_VALUES = 5e-4
SMOOTH_ACTIVATIONS = ("silu", "swish", "ssp", "tanh", "sigmoid", "gelu", "mish")


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pos, engine):
        x, v, ctx.ticket = engine.forward(pos.detach().numpy())
        ctx.engine, ctx.dtype = engine, pos.dtype
        ctx.save_for_backward(pos)
        return torch.from_numpy(x), torch.from_numpy(v)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_x, g_v):
        (pos,) = ctx.saved_tensors
        gradient = ctx.engine.vjp(pos.detach().numpy(), g_x.detach().numpy(), g_v.detach().numpy(), ctx.ticket)
        return torch.from_numpy(gradient).to(ctx.dtype), None


class NumbaET:
    """A `SmoothEquivariantTransformer` for fixed atoms and fixed candidate pairs.

    Parameters
    ----------
    network : SmoothEquivariantTransformer
        Its parameters are copied; later changes to it have no effect.
    z : (M,) int array
        Atomic numbers.
    pairs : (i, j), int arrays (P,)
        Candidate pairs, i != j, each once. At run time those beyond the cutoff are skipped.
    precision : {"single", "double"}
        Of the arithmetic inside and of the outputs; distances are always computed in double precision. Double is meant for
        checks: it is slower by a factor of two to three.
    intervals : int, optional
        Intervals of the table of radial filters; without it as many as their slopes need for a relative error of 2e-5 at
        the worst distance, of 5e-4 without `gradient`.
    gradient : bool
        Whether `vjp` is wanted; without it an evaluation needs the memory of one layer only.
    parts : (K,) int array, optional
        Ends of groups of consecutive atoms with no pair between them, the last is M. Without `gradient` they are evaluated
        one after the other, in the memory of the largest.

    Raises
    ------
    GeomGNNError
        If the network has settings that the kernels do not cover (see `supports`), or z or the pairs do not make sense.
    """

    def __init__(self, network, z, pairs, precision="single", intervals=None, gradient=True, parts=None):
        reason = self.supports(network)
        if reason is not None:
            raise GeomGNNError(f"The compiled engine cannot run this network: {reason}. Use the plain PyTorch network.")
        if precision not in ("single", "double"):
            raise GeomGNNError(f"precision must be 'single' or 'double', but was {precision!r}.")
        self.dtype = np.dtype(np.float32 if precision == "single" else np.float64)
        z = np.asarray(z, dtype=np.int64).reshape(-1)
        largest = network.embedding.num_embeddings - 1
        if len(z) == 0 or z.min() < 0 or z.max() > largest:
            raise GeomGNNError(f"Atomic numbers must be a non-empty array of values from 0 to {largest}, but were {z}.")
        i, j = self._checked_pairs(pairs, len(z))
        self.gradient = bool(gradient)
        self._lock = threading.Lock()
        self._ticket = 0  # number of the evaluation whose intermediate values are in the work arrays
        self._make_order(network)
        with torch.no_grad():
            self._make_weights(network, z, intervals)
        self._shape = (len(z), len(self.order))
        self._make_parts(i, j, [len(z)] if parts is None or gradient else parts)
        self._make_work(network)
        self._near = -1

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

    @staticmethod
    def _checked_pairs(pairs, n_atoms):
        i, j = (np.asarray(side, dtype=np.int64).reshape(-1) for side in pairs)
        if len(i) != len(j):
            raise GeomGNNError(f"Both sides of the pairs must be equally long, but have {len(i)} and {len(j)} entries.")
        both = np.stack([np.minimum(i, j), np.maximum(i, j)])
        if both.size and (both.min() < 0 or both.max() >= n_atoms or (both[0] == both[1]).any()):
            raise GeomGNNError(f"Pairs must join two different atoms numbered from 0 to {n_atoms - 1}.")
        both = both[:, np.lexsort((both[1], both[0]))]
        if both.shape[1] > 1 and (np.diff(both, axis=1) == 0).all(0).any():
            raise GeomGNNError("A pair of atoms is listed twice. List every pair once; both directions are implied.")
        return np.ascontiguousarray(both[0]), np.ascontiguousarray(both[1])

    def _make_order(self, network):
        heads, width = network.num_heads, network.hidden_channels // network.num_heads
        self.groups = -(-heads // WIDTH)
        self.depth = width + width % 2  # an even number of blocks makes whole panels
        self.channels = self.groups * self.depth * WIDTH
        head, d = np.divmod(np.arange(network.hidden_channels), width)
        # position of every channel of the network among the kernels' channels
        self.order = ((head // WIDTH) * self.depth + d) * WIDTH + head % WIDTH

    def _channels(self, rows):
        """(..., H) in the network's order -> (..., C) in the kernels' order, 0 on padding."""
        out = np.zeros((*rows.shape[:-1], self.channels))
        out[..., self.order] = rows
        return out

    def _matrix(self, weight):
        """(parts * H, H) weight of a linear layer -> (C, parts * C)."""
        parts = weight.reshape(-1, len(self.order), weight.shape[1])
        rows = self._channels(parts.transpose(2, 0, 1))  # (H, parts, C)
        return self._channels(rows.transpose(1, 2, 0)).transpose(2, 0, 1).reshape(self.channels, -1)

    def _interleaved(self, parts):
        """(n, parts, C) -> (n, parts * C) with the parts of each block side by side."""
        n, count, channels = parts.shape
        return parts.reshape(n, count, channels // WIDTH, WIDTH).transpose(0, 2, 1, 3).reshape(n, count * channels)

    def _packed(self, matrices):
        """Matrices (inner, columns) -> (n, columns / PANEL, inner, PANEL)."""
        shape = (0, 1, 1, PANEL)
        packed = [m.reshape(m.shape[0], -1, PANEL).transpose(1, 0, 2) for m in matrices]
        return np.ascontiguousarray(np.stack(packed) if packed else np.zeros(shape), dtype=self.dtype)

    def _cast(self, array):
        return np.ascontiguousarray(array, dtype=self.dtype)

    def _make_weights(self, network, z, intervals):
        def numbers(tensor):
            return tensor.detach().double().numpy()

        heads, hidden = network.num_heads, network.hidden_channels
        filters0 = radial_filters(network, torch.zeros(1, dtype=torch.float64))[:, 0].numpy()  # (L, 4, H)
        layers = []
        for layer in network.attention_layers:
            # LayerNorm's own gain and bias go into the projections that follow it
            gain, shift = numbers(layer.layernorm.weight), numbers(layer.layernorm.bias)
            parts = (hidden // heads, 3)
            value = numbers(layer.v_proj.weight).reshape(heads, 3, parts[0], hidden).transpose(1, 0, 2, 3)
            value_bias = numbers(layer.v_proj.bias).reshape(heads, 3, parts[0]).transpose(1, 0, 2)
            weight = np.concatenate(
                [numbers(layer.q_proj.weight), numbers(layer.k_proj.weight), value.reshape(3 * hidden, hidden)]
            )
            bias = np.concatenate([numbers(layer.q_proj.bias), numbers(layer.k_proj.bias), value_bias.reshape(-1)])
            layers.append(
                {
                    "qkv": weight * gain,
                    "qkv_bias": bias + weight @ shift,
                    "vec": numbers(layer.vec_proj.weight),
                    "o": numbers(layer.o_proj.weight),
                    "o_bias": numbers(layer.o_proj.bias),
                }
            )
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

        choices, tolerance = INTERVALS, TOLERANCE
        if not self.gradient and self.dtype == np.float32:
            choices, tolerance = INTERVALS_OF_VALUES, TOLERANCE_OF_VALUES
        choices = choices if intervals is None else (int(intervals),)
        for choice in choices:
            grid, coefficients = tabulate(network, choice)
            if choice == choices[-1] or table_error(network, grid, coefficients) < tolerance:
                break
        self.grid = grid
        table = self._channels(coefficients).reshape(*coefficients.shape[:4], -1, WIDTH)
        table = self._cast(table.transpose(0, 1, 4, 3, 2, 5))  # (L, intervals, block, filter, power, lane)

        later = layers[1:]
        qkv_w, vec_w, o_w = ([self._matrix(layer[name]) for layer in later] for name in ("qkv", "vec", "o"))
        qkv_w = [self._interleaved(w.reshape(self.channels, 5, self.channels)) for w in qkv_w]
        start = self._matrix(start_w)
        present = self._cast(self._channels(np.ones(hidden)))
        zeros = np.zeros(5 * self.channels, self.dtype)
        self_filters = self._cast(self._interleaved(self._channels(filters0)))
        gain, order = self._cast(numbers(network.out_norm.weight)), self.order.astype(np.int64)

        def biases(name, parts):
            rows = [layer[name].reshape(parts, hidden) for layer in later]
            return self._channels(np.stack(rows) if rows else np.zeros((0, parts, hidden)))

        shape = (table, self.groups, self.depth, present, float(hidden))
        self._forward_weights = (
            grid.cutoff, grid.share, float(grid.steepness), grid.alpha, *shape, float(epsilon),
            self._packed([start]), self._packed(qkv_w), self._cast(self._interleaved(biases("qkv_bias", 5))),
            self._packed(vec_w), self._packed(o_w), self._cast(biases("o_bias", 3)), self_filters, zeros,
            gain, self._cast(numbers(network.out_norm.bias)), order,
        )  # fmt: skip
        self._backward_weights = (
            *shape, self._packed([start.T]), self._packed([w.T for w in qkv_w]), self._packed([w.T for w in vec_w]),
            self._packed([w.T for w in o_w]), self_filters, zeros, gain, order,
        )  # fmt: skip

    def _make_parts(self, i, j, ends):
        ends = np.asarray(ends, dtype=np.int64)
        if len(ends) == 0 or ends[-1] != self._shape[0] or (np.diff(ends, prepend=0) <= 0).any():
            raise GeomGNNError(f"The ends of parts must rise to the number of atoms, {self._shape[0]}, but are {ends}.")
        if (np.searchsorted(ends, i, "right") != np.searchsorted(ends, j, "right")).any():
            raise GeomGNNError("A pair joins atoms of two parts. Give parts that hold whole graphs.")
        pair_ends = np.searchsorted(i, ends)
        self._parts = [
            (slice(start, end), i[first:last] - start, j[first:last] - start)
            for start, end, first, last in zip(np.r_[0, ends[:-1]], ends, np.r_[0, pair_ends[:-1]], pair_ends, strict=True)
        ]

    def _make_work(self, network):
        m = max(atoms.stop - atoms.start for atoms, _, _ in self._parts)
        p = max(len(i) for _, i, _ in self._parts)
        layers, c, g = len(network.attention_layers), self.channels, self.groups
        kept = layers if self.gradient else 1  # a layer's values are overwritten by those of the next
        both = max(2, kept)

        def work(*shape):
            return np.zeros(shape, self.dtype)

        self._kept = (
            np.zeros(p, np.int64), np.zeros(p, np.int64), np.zeros(p, np.int64), np.zeros((p, 6)),
            work(both, m, 5 * c), work(both, m, c), work(layers, m), work(kept + 1, m, 3, c), work(kept, m, 3, 3 * c),
            work(kept, m, 3 * c), work(kept, p, g, 4, WIDTH), work(kept, m, g, 2, WIDTH),
        )  # fmt: skip
        self._forward_work = (work(m, c), work(m, c), work(m, 3, c))
        if self.gradient:
            self._backward_work = (
                work(m, c), work(m, 3, c), work(m, 3, c), work(m, c), work(m, c), work(m, 5 * c), work(m, 3 * c),
                work(m, 3, 3 * c), np.zeros((p, 4)),
            )  # fmt: skip

    def __call__(self, pos):
        """Scalars x (M, H) and vectors v (M, 3, H) at `pos` (M, 3) in angstrom, as torch tensors.

        Differentiable once with respect to `pos`. Outputs have the engine's precision; the gradient has the type of `pos`.
        If any position is not finite, all outputs and gradients are NaN.
        """
        if pos.device.type != "cpu":
            raise GeomGNNError(
                f"The compiled engine runs on the CPU, but the positions are on {pos.device}. Move them to it."
            )
        return _Evaluate.apply(pos, self)

    def forward(self, pos):
        """x (M, H), v (M, 3, H) as numpy arrays, and the ticket that `vjp` takes to reuse this evaluation."""
        pos = np.ascontiguousarray(pos, dtype=np.float64)
        m, hidden = self._shape
        if pos.shape != (m, 3):
            raise GeomGNNError(f"Positions must have the shape ({m}, 3), but have {pos.shape}.")
        x, v = np.empty((m, hidden), self.dtype), np.empty((m, 3, hidden), self.dtype)
        with self._lock:
            self._run_forward(pos, x, v)
            return x, v, self._ticket

    def _run_forward(self, pos, x, v):
        self._ticket += 1
        weights, work = self._forward_weights, (*self._kept, *self._forward_work)
        start_x, start_qkv = self._start
        for a, i, j in self._parts:
            self._near = forward(int(self.gradient), pos[a], i, j, start_x[a], start_qkv[a], x[a], v[a], *weights, *work)

    def vjp(self, pos, g_x, g_v, ticket=None):
        """Gradient (M, 3), float64, of sum(g_x * x) + sum(g_v * v) with respect to `pos`.

        If `ticket` is not that of the latest evaluation, the forward pass is repeated at `pos`.

        Raises
        ------
        GeomGNNError
            If the engine was made without `gradient`.
        """
        if not self.gradient:
            raise GeomGNNError("This engine keeps nothing for gradients. Make it with gradient=True.")
        m, hidden = self._shape
        gradient = np.empty((m, 3))
        g_x, g_v = self._cast(g_x), self._cast(g_v)
        with self._lock:
            if ticket != self._ticket:
                x, v = np.empty((m, hidden), self.dtype), np.empty((m, 3, hidden), self.dtype)
                self._run_forward(np.ascontiguousarray(pos, dtype=np.float64), x, v)
            backward(self._near, g_x, g_v, *self._backward_weights, *self._kept, *self._backward_work, gradient)
        return gradient
