"""The read-out of CVs of an `mixers.AttentionMixer` by compiled kernels."""

from collections.abc import Callable
from typing import Any

import numpy as np

from openmm_geomgnn.cv.readouts.mixer import MixerReadout, padded, widened
from openmm_geomgnn.cv.readouts.mixer_arguments import (
    AttentionWeights,
    Input,
    Output,
    attention_kept_shapes,
    attention_work_shapes,
)
from torchmdnet_ext.compiled.arrays import to_float64


class AttentionReadout(MixerReadout):
    """The CV of an `mixers.AttentionMixer`."""

    mixer = "attention"
    shapes = attention_kept_shapes, attention_work_shapes

    @staticmethod
    def kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
        """See `CompiledReadout`."""
        from openmm_geomgnn.cv.readouts.attention_kernels import attention, attention_vjp

        return attention, attention_vjp

    @staticmethod
    def _layer_sizes(mixer: Any) -> dict[str, int]:
        feedforward = padded(mixer.settings["feedforward"])
        return {"layers": len(mixer.encoder), "heads": mixer.settings["heads"], "feedforward": feedforward}

    def _last_norm(self, mixer: Any) -> tuple[np.ndarray, np.ndarray]:
        return to_float64(mixer.norm.weight), to_float64(mixer.norm.bias)

    def _make_weights(self, mixer: Any, input: Input, output: Output) -> AttentionWeights:
        sizes = self._sizes
        embed = widened(to_float64(mixer.embed.weight).T, sizes.features, sizes.width)
        bias = np.broadcast_to(to_float64(mixer.embed.bias), (sizes.tokens, sizes.channels))
        if mixer.position is not None:
            bias = bias + to_float64(mixer.position)
        arrays = {}
        layers = [self._linear_maps(layer) for layer in mixer.encoder]
        for name in layers[0]:
            weights, biases = zip(*(maps[name] for maps in layers), strict=True)
            weights = [widened(weight, *map(padded, weight.shape)) for weight in weights]
            arrays[name] = self._matrices(weights)
            arrays[f"{name}_bias"] = self._array(*(widened(row, padded(row.shape[-1])) for row in biases))
            arrays[f"{name}_transposed"] = self._matrices([weight.T for weight in weights])
        return AttentionWeights(
            sizes=sizes,
            input=input,
            output=output,
            present=self._present,
            epsilon=mixer.norm.eps,
            embed=self._matrices([embed]),
            embed_bias=self._array(widened(bias, sizes.width)),
            embed_transposed=self._matrices([embed.T]),
            **arrays,
        )

    def _linear_maps(self, layer: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Name -> weight (inner, columns) and bias of a layer; LayerNorm's own gain and bias go into what follows it."""
        channels, width = self._sizes.channels, self._sizes.width
        weight, bias = after_norm(layer.attention_norm, layer.attention.query_key_value)
        weight = widened(weight.reshape(channels, 3, channels), width).reshape(channels, -1)
        return {
            "qkv": (weight, widened(bias.reshape(3, channels), width)),
            "out": (to_float64(layer.attention.out.weight).T, to_float64(layer.attention.out.bias)),
            "up": after_norm(layer.feedforward_norm, layer.feedforward[0]),
            "down": (to_float64(layer.feedforward[2].weight).T, to_float64(layer.feedforward[2].bias)),
        }


def after_norm(norm: Any, linear: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weight (inner, columns) and bias of a linear layer on what LayerNorm gives before its own gain and bias."""
    weight = to_float64(linear.weight)
    return (weight * to_float64(norm.weight)).T, to_float64(linear.bias) + weight @ to_float64(norm.bias)
