"""The read-out of linear CVs by compiled kernels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from openmm_geomgnn.cv.mixers.features import NORM_EPSILON
from openmm_geomgnn.cv.readouts.base import CompiledReadout, ReadoutVJP, own_atoms
from openmm_geomgnn.representation.tokens import Tokenizer


class LinearReadout(CompiledReadout):
    """The linear CV, psi = ([x, |v|] of the tokens - mean) @ projection, by compiled kernels."""

    def __init__(self, tokenizer: Tokenizer, mixer: Any, mean: torch.Tensor, projection: torch.Tensor) -> None:
        super().__init__(tokenizer.encoder.dtype)
        own, token, share = own_atoms(tokenizer)
        pooled = {"flatten": 0.0, "sum": 1.0, "mean": 1.0 / len(share)}[mixer.settings["pool"]]
        self._places = own, token, share, pooled
        self._mean, self._projection = mean.cpu().numpy(), projection.cpu().numpy()

    @staticmethod
    def covers(mixer: Any) -> bool:
        """Whether a mixer is one that this class is for."""
        return mixer.name == "none" and not mixer.chirality

    @staticmethod
    def kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
        """See `CompiledReadout`."""
        from openmm_geomgnn.cv.readouts.linear_kernels import read_out, read_out_vjp

        return read_out, read_out_vjp

    def __call__(self, x: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ReadoutVJP]:
        """See `CompiledReadout`."""
        read_out, read_out_vjp = self._kernels
        psi, vectors, norms = read_out(x, v, *self._places, NORM_EPSILON**2, self._mean, self._projection)

        def vjp(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            weights = np.ascontiguousarray(weights, dtype=np.float64)
            return read_out_vjp(weights, x, *self._places, self._projection, vectors, norms)

        return psi, vjp
