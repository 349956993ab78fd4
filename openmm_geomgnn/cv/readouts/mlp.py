"""The read-out of CVs of an `mixers.MLPMixer` by compiled kernels."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from openmm_geomgnn.cv.readouts.mixer import MixerReadout, padded, widened
from openmm_geomgnn.cv.readouts.mixer_arguments import Input, MLPWeights, Output, mlp_kept_shapes, mlp_work_shapes
from torchmdnet_ext.compiled.arrays import to_float64


class MLPReadout(MixerReadout):
    """The CV of an `mixers.MLPMixer`."""

    mixer = "mlp"
    shapes = mlp_kept_shapes, mlp_work_shapes

    @staticmethod
    def kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
        """See `CompiledReadout`."""
        from openmm_geomgnn.cv.readouts.mlp_kernels import mlp, mlp_vjp

        return mlp, mlp_vjp

    @staticmethod
    def _layer_sizes(mixer: Any) -> dict[str, int]:
        return {"layers": len(mixer.token_network) // 3}

    def _make_weights(self, mixer: Any, input: Input, output: Output) -> MLPWeights:
        width = self._sizes.width
        linears, norms = list(mixer.token_network)[::3], list(mixer.token_network)[1::3]
        weights = [to_float64(linear.weight).T for linear in linears]
        weights = [widened(weight, padded(len(weight)), width) for weight in weights]
        transposed = [np.ascontiguousarray(weight.T) for weight in weights]

        def rows(parameters: Iterable[Any]) -> np.ndarray:
            return self._array(*(widened(to_float64(parameter), width) for parameter in parameters))

        return MLPWeights(
            sizes=self._sizes,
            input=input,
            output=output,
            present=self._present,
            epsilon=norms[0].eps,
            first=self._matrices(weights[:1]),
            later=self._matrices(weights[1:]),
            bias=rows(linear.bias for linear in linears),
            gain=rows(norm.weight for norm in norms),
            shift=rows(norm.bias for norm in norms),
            first_transposed=self._matrices(transposed[:1]),
            later_transposed=self._matrices(transposed[1:]),
        )
