"""Read-outs by compiled kernels of CVs whose mixer has weights: an autograd pass of a mixer takes as long as an encoder."""

import numpy as np

from openmm_geomgnn.cv.mixers.features import NORM_EPSILON

POOLS = ("flatten", "sum", "mean", "attention")  # in the order of `mlp_kernels`
PANEL = 16  # columns that the kernels multiply at once, `torchmdnet_ext.kernels.lanes.PANEL`


def padded(size):
    """A number of channels as the kernels want it: whole panels."""
    return -(-size // PANEL) * PANEL


def widened(array, *sizes):
    """An array with zeros behind, to these sizes of its last axes."""
    missing = np.subtract(sizes, array.shape[-len(sizes) :])
    return np.pad(array, [(0, 0)] * (array.ndim - len(sizes)) + [(0, int(count)) for count in missing])


def numbers(tensor):
    """A tensor as a float64 array."""
    return tensor.detach().cpu().double().numpy()


def own_atoms(tokenizer):
    """The window atoms that count (n,), the token of each (n,), and the factor of each token's sum (R,)."""
    windows = tokenizer.windows
    own = np.flatnonzero(windows.token >= 0)
    token = windows.token[own]
    size = np.bincount(token, minlength=windows.n_tokens)
    return own, token, 1.0 / size if tokenizer.pooling == "mean" else np.ones(windows.n_tokens)


class Weights:
    """Blocks of numbers that are to go into one array, each from a cache line on."""

    def __init__(self):
        self._blocks, self._size = [], 0

    def add(self, block):
        """The place of a block in the array."""
        place = self._size
        self._blocks.append((place, np.asarray(block, dtype=np.float64).reshape(-1)))
        self._size += padded(self._blocks[-1][1].size)
        return place

    def add_matrix(self, matrix):
        """The place of a matrix (inner, columns), whole panels both, as `matmul` reads it."""
        return self.add(matrix.reshape(len(matrix), -1, PANEL).transpose(1, 0, 2))

    def array(self, dtype):
        from torchmdnet_ext.compiled.base import aligned_zeros

        out = aligned_zeros(self._size, dtype)
        for place, block in self._blocks:
            out[place : place + block.size] = block
        return out


class CompiledReadout:
    """Base of read-outs by kernels; `kernels()` returns the jitted functions."""

    def __init__(self, dtype):
        self._kernels, self._dtype = self.kernels(), np.dtype(str(dtype).removeprefix("torch."))

    @property
    def needs_compiling(self) -> bool:
        """Whether the first evaluation will take long, since the kernels are neither in this process nor in their folder."""
        from torchmdnet_ext.compiled.base import have_kernels

        return not all(have_kernels(self._kernels, self._dtype))


class MixerReadout(CompiledReadout):
    """What the read-outs of all mixers with weights share: their input, tokens; and their end, `mixers.readout.Readout`.

    The class of a mixer has what is between the two: its constructor adds weights and calls `_finish`.

    Parameters
    ----------
    tokenizer : Tokenizer
    mixer : Mixer
        In the precision of the tokenizer's encoder.
    mean : (n,) tensor, projection : (n, d) tensor
    """

    _deep = 0  # padded width of a feed-forward network, where there is one

    def __init__(self, tokenizer, mixer, mean, projection):
        super().__init__(mixer.standardise.mean.dtype)
        weights = self._weights = Weights()
        own, token, share = own_atoms(tokenizer)
        self._tokens, self._hidden, self._width = len(share), mixer.hidden_channels, padded(mixer.settings["width"])
        self._features = padded(mixer.n_features)
        shape = len(share), mixer.n_features
        mean, std = numbers(mixer.standardise.mean), numbers(mixer.standardise.std)
        self._own, self._atoms = (own, token), len(tokenizer.windows.token)
        self._start = [
            weights.add(share), weights.add(np.broadcast_to(mean, shape)), weights.add(np.broadcast_to(1.0 / std, shape)),
            weights.add(widened(np.ones(mixer.settings["width"]), self._width)),
        ]  # fmt: skip

    def _finish(self, mixer, mean, projection, depth, layers, gain=None, shift=None):
        """Add the weights of the end, whose rows are `gain` times those of the kernels plus `shift`; then make the plan."""
        tokens, width = self._tokens, mixer.settings["width"]
        gain, shift = np.ones(width) if gain is None else gain, np.zeros(width) if shift is None else shift
        readout, kind = mixer.readout, mixer.settings["pool"]
        first, _, last = readout.network
        weight, bias = numbers(first.weight), numbers(first.bias)
        deep = padded(len(bias))
        bias = bias + (weight.reshape(len(bias), -1, width) @ shift).sum(1) * (tokens if kind == "sum" else 1)
        weight = widened(weight.reshape(len(bias), -1, width) * gain, self._width).reshape(len(bias), -1)
        weight = widened(weight.T, deep)
        score = numbers(readout.pool.score.weight)[0] * gain if kind == "attention" else np.zeros(width)
        place = self._weights.add
        end = [
            self._weights.add_matrix(weight), place(widened(bias, deep)), place(widened(score, self._width)),
            self._weights.add_matrix(weight.T), place(np.zeros(max(tokens * self._width, self._features, self._deep))),
        ]  # fmt: skip
        mean, projection = numbers(mean), numbers(projection)
        linear = widened(projection.T @ numbers(last.weight), deep).T
        self._head = np.concatenate([linear, [(numbers(last.bias) - mean) @ projection]])
        sizes = (
            len(self._own[0]), tokens, self._atoms, self._features, self._width, width, deep, POOLS.index(kind), depth,
            self._hidden,
        )  # fmt: skip
        self._plan = np.concatenate([sizes, self._start, end, *self._own, np.reshape(layers, -1)]).astype(np.int64)
        self._w = self._weights.array(self._dtype)
        # what `input_room` and `end_room` take
        self._size = tokens * (4 * self._hidden + self._width + 1) + self._width + deep

    @classmethod
    def covers(cls, mixer):
        """Whether a mixer is one that this class is for."""
        return mixer.name == cls.mixer and not mixer.chirality


class MLPReadout(MixerReadout):
    """The CV of an `mixers.MLPMixer`."""

    mixer = "mlp"

    def __init__(self, tokenizer, mixer, mean, projection):
        super().__init__(tokenizer, mixer, mean, projection)
        layers, place = [], self._weights.add
        linears = list(mixer.token_network)[::3]
        norms = list(mixer.token_network)[1::3]
        for linear, norm in zip(linears, norms, strict=True):
            weight = numbers(linear.weight).T
            weight = widened(weight, padded(len(weight)), self._width)
            rest = (linear.bias, norm.weight, norm.bias)
            layers.append([
                self._weights.add_matrix(weight), *(place(widened(numbers(part), self._width)) for part in rest),
                self._weights.add_matrix(np.ascontiguousarray(weight.T)),
            ])  # fmt: skip
        self._epsilons = NORM_EPSILON**2, norms[0].eps
        self._finish(mixer, mean, projection, len(layers), layers)
        self._size += len(layers) * self._tokens * (self._width + 1)

    @staticmethod
    def kernels():
        from openmm_geomgnn.cv.readouts.mlp_kernels import mlp, mlp_vjp

        return mlp, mlp_vjp

    def __call__(self, x, v):
        mlp, mlp_vjp = self._kernels
        psi, kept = mlp(x, v, self._plan, self._w, self._head, self._size, *self._epsilons)
        return psi, lambda weights: mlp_vjp(weights, self._plan, self._w, self._head, kept)


class AttentionReadout(MixerReadout):
    """The CV of an `mixers.AttentionMixer`."""

    mixer = "attention"

    def __init__(self, tokenizer, mixer, mean, projection):
        super().__init__(tokenizer, mixer, mean, projection)
        tokens, width, wide = self._tokens, mixer.settings["width"], self._width
        self._heads, self._deep = mixer.settings["heads"], padded(mixer.settings["feedforward"])
        place, matrix = self._weights.add, self._weights.add_matrix
        weight = widened(numbers(mixer.embed.weight).T, self._features, wide)
        bias = np.broadcast_to(numbers(mixer.embed.bias), (tokens, width))
        if mixer.position is not None:
            bias = bias + numbers(mixer.position)
        layers = [matrix(weight), matrix(weight.T), place(widened(bias, wide))]
        for layer in mixer.encoder:
            # LayerNorm's own gain and bias go into the layers that follow it
            weight, bias = after_norm(layer.attention_norm, layer.attention.query_key_value)
            first, first_bias = after_norm(layer.feedforward_norm, layer.feedforward[0])
            pairs = (
                (widened(weight.reshape(width, 3, width), wide).reshape(width, -1), widened(bias.reshape(3, width), wide)),
                (numbers(layer.attention.out.weight).T, numbers(layer.attention.out.bias)),
                (first, first_bias),
                (numbers(layer.feedforward[2].weight).T, numbers(layer.feedforward[2].bias)),
            )
            weights = [widened(weight, *map(padded, weight.shape)) for weight, _ in pairs]
            for weight, (_, bias) in zip(weights, pairs, strict=True):
                layers += [matrix(weight), place(widened(bias, padded(bias.shape[-1])))]
            layers += [matrix(weight.T) for weight in weights]
        self._epsilons = NORM_EPSILON**2, mixer.norm.eps
        depth = len(mixer.encoder)
        self._finish(mixer, mean, projection, depth, layers, numbers(mixer.norm.weight), numbers(mixer.norm.bias))
        # what `layers_room` takes
        self._size += tokens * ((2 * depth + 1) * (wide + 1) + depth * (3 * wide + self._heads * tokens + self._deep))

    @staticmethod
    def kernels():
        from openmm_geomgnn.cv.readouts.attention_kernels import attention, attention_vjp

        return attention, attention_vjp

    def __call__(self, x, v):
        (attention, attention_vjp), widths = self._kernels, (self._heads, self._deep)
        psi, kept = attention(x, v, self._plan, self._w, self._head, self._size, *widths, *self._epsilons)
        return psi, lambda weights: attention_vjp(weights, self._plan, self._w, self._head, *widths, kept)


def after_norm(norm, linear):
    """Weight (inner, columns) and bias of a linear layer on what LayerNorm gives before its own gain and bias."""
    weight = numbers(linear.weight)
    return (weight * numbers(norm.weight)).T, numbers(linear.bias) + weight @ numbers(norm.bias)
