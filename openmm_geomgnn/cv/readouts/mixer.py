"""Read-outs of CVs whose mixer has weights, by compiled kernels: autograd through a mixer takes as long as an encoder."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch

from openmm_geomgnn.cv.mixers.features import NORM_EPSILON
from openmm_geomgnn.cv.readouts.base import CompiledReadout, ReadoutVJP, own_atoms
from openmm_geomgnn.cv.readouts.mixer_arguments import POOLS, Input, Output, Sizes
from openmm_geomgnn.representation.tokens import Tokenizer
from torchmdnet_ext.compiled.arrays import aligned_zeros, to_float64

PANEL = 16  # columns that the kernels multiply at once, `torchmdnet_ext.kernels.lanes.PANEL`


def padded(size: int) -> int:
    """A number of channels as the kernels want it: whole panels."""
    return -(-size // PANEL) * PANEL


def widened(array: np.ndarray, *sizes: int) -> np.ndarray:
    """An array with zeros behind, to these sizes of its last axes."""
    missing = np.subtract(sizes, array.shape[-len(sizes) :])
    return np.pad(array, [(0, 0)] * (array.ndim - len(sizes)) + [(0, int(count)) for count in missing])


class MixerReadout(CompiledReadout):
    """What the read-outs of all mixers with weights share: their input, tokens; and their end, a `mixers.pooling` layer.

    The class of a mixer has what is between the two: `shapes`, two functions of `mixer_arguments` for what is kept and for
    work, and `_make_weights(mixer, input, output)`, which makes the named tuple that its kernels take.

    Parameters
    ----------
    tokenizer : Tokenizer
    mixer : Mixer
        In the precision of the tokenizer's encoder.
    mean : (n,) tensor, projection : (n, d) tensor
    """

    mixer: ClassVar[str]  # its name
    shapes: ClassVar[tuple[Callable[[Sizes], Any], Callable[[Sizes], Any]]]

    def __init__(self, tokenizer: Tokenizer, mixer: Any, mean: torch.Tensor, projection: torch.Tensor) -> None:
        from torchmdnet_ext.kernels.cache import FixedTypes

        super().__init__(mixer.standardise.mean.dtype)
        self._call = FixedTypes()
        self._sizes = Sizes(
            atoms=len(tokenizer.windows.token),
            tokens=tokenizer.windows.n_tokens,
            hidden=mixer.hidden_channels,
            features=padded(mixer.n_features),
            width=padded(mixer.settings["width"]),
            channels=mixer.settings["width"],
            last=padded(mixer.readout.network[0].out_features),
            pool=POOLS.index(mixer.settings["pool"]),
            **self._layer_sizes(mixer),
        )
        self._present = self._array(widened(np.ones(self._sizes.channels), self._sizes.width))
        self._weights = self._make_weights(
            mixer, self._make_input(tokenizer, mixer), self._make_output(mixer, mean, projection)
        )
        self._kept_size, self._work_size = (sum(map(prod, shapes(self._sizes))) for shapes in self.shapes)
        self._components = projection.shape[1]

    @classmethod
    def covers(cls, mixer: Any) -> bool:
        """Whether a mixer is one that this class is for."""
        return mixer.name == cls.mixer and not mixer.chirality

    def __call__(self, x: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ReadoutVJP]:
        """See `CompiledReadout`."""
        x, v = (np.ascontiguousarray(part, dtype=self._dtype) for part in (x, v))
        forward, backward = self._kernels
        # arrays of each call's own: several threads may be in here, and old evaluations may be asked for gradients
        kept, psi = np.empty(self._kept_size, self._dtype), np.empty(self._components)
        self._call(forward, x, v, self._weights, kept, np.empty(self._work_size, self._dtype), psi)

        def vjp(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            weights = np.ascontiguousarray(weights, dtype=np.float64)
            g_x, g_v, work = np.empty_like(x), np.empty_like(v), np.empty(self._work_size, self._dtype)
            self._call(backward, weights, self._weights, kept, work, g_x, g_v)
            return g_x, g_v

        return psi, vjp

    def _array(self, *blocks: Any) -> np.ndarray:
        """An array of one axis from a cache line on."""
        block = np.concatenate([np.reshape(block, -1) for block in blocks]) if blocks else np.zeros(0)
        out = aligned_zeros(len(block), self._dtype)
        out[:] = block
        return out

    def _matrices(self, matrices: Sequence[np.ndarray]) -> np.ndarray:
        """Matrices (inner, columns), whole panels both, in an array as `matmul` reads it."""
        return self._array(*(matrix.reshape(len(matrix), -1, PANEL).transpose(1, 0, 2) for matrix in matrices))

    def _make_input(self, tokenizer: Tokenizer, mixer: Any) -> Input:
        own, token, share = own_atoms(tokenizer)
        mean, std = to_float64(mixer.standardise.mean), to_float64(mixer.standardise.std)
        shape = len(share), mixer.n_features
        mean, scale = (self._array(np.broadcast_to(part, shape)) for part in (mean, 1.0 / std))
        return Input(own, token, self._array(share), mean, scale, NORM_EPSILON**2)

    @staticmethod
    def _layer_sizes(mixer: Any) -> dict[str, int]:
        """The entries of `Sizes` that depend on the kind of mixer."""
        raise NotImplementedError

    def _make_weights(self, mixer: Any, input: Input, output: Output) -> Any:
        raise NotImplementedError

    def _last_norm(self, mixer: Any) -> tuple[np.ndarray, np.ndarray]:
        """Gain and bias (channels,) that the rows of the kernels still lack."""
        return np.ones(self._sizes.channels), np.zeros(self._sizes.channels)

    def _make_output(self, mixer: Any, mean: torch.Tensor, projection: torch.Tensor) -> Output:
        sizes, kind = self._sizes, mixer.settings["pool"]
        gain, shift = self._last_norm(mixer)
        first, _, last = mixer.readout.network
        weight, bias = to_float64(first.weight), to_float64(first.bias)
        rows = weight.reshape(len(bias), -1, sizes.channels)
        bias = bias + (rows @ shift).sum(1) * (sizes.tokens if kind == "sum" else 1)
        weight = widened(widened(rows * gain, sizes.width).reshape(len(bias), -1).T, sizes.last)
        score = to_float64(mixer.readout.pool.score.weight)[0] * gain if kind == "attention" else np.zeros(sizes.channels)
        mean, projection = to_float64(mean), to_float64(projection)
        linear = widened(projection.T @ to_float64(last.weight), sizes.last).T
        return Output(
            score=self._array(widened(score, sizes.width)),
            weight=self._matrices([weight]),
            bias=self._array(widened(bias, sizes.last)),
            transposed=self._matrices([weight.T]),
            projection=np.concatenate([linear, [(to_float64(last.bias) - mean) @ projection]]),
            zeros=self._array(np.zeros(max(sizes.tokens * sizes.width, sizes.features, sizes.feedforward))),
        )
