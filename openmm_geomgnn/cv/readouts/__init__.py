"""From the features of window atoms to the CV, and back: what comes after the encoder in a simulation.

A read-out is called with features x (M, H) and v (M, 3, H), ndarrays, and returns psi (d,), a float64 ndarray, and what
takes weights (d,) to the gradients (M, H) and (M, 3, H), ndarrays, of their product with psi. Several threads may call it.
"""

import numpy as np
import torch

from openmm_geomgnn.cv.mixers.features import NORM_EPSILON
from openmm_geomgnn.cv.readouts.compiled import AttentionReadout, CompiledReadout, MLPReadout, own_atoms


class TorchReadout:
    """Any mixer, by autograd."""

    needs_compiling = False

    def __init__(self, tokenizer, project):
        self._tokenizer, self._project = tokenizer, project

    def __call__(self, x, v):
        x, v = (torch.from_numpy(part).requires_grad_(True) for part in (x, v))
        psi = self._project(self._tokenizer.pool(x, v, 1))[0]

        def vjp(weights):
            return tuple(part.numpy() for part in torch.autograd.grad(psi, (x, v), torch.from_numpy(weights)))

        return psi.detach().numpy(), vjp


class LinearReadout(CompiledReadout):
    """The linear CV, psi = ([x, |v|] of the tokens - mean) @ projection, by compiled kernels."""

    def __init__(self, tokenizer, mixer, mean, projection):
        super().__init__(tokenizer.encoder.dtype)
        own, token, share = own_atoms(tokenizer)
        pooled = {"flatten": 0.0, "sum": 1.0, "mean": 1.0 / len(share)}[mixer.settings["pool"]]
        self._places = own, token, share, pooled
        self._mean, self._projection = mean.cpu().numpy(), projection.cpu().numpy()

    @staticmethod
    def covers(mixer):
        """Whether a mixer is one that this class is for."""
        return mixer.name == "none" and not mixer.chirality

    @staticmethod
    def kernels():
        from openmm_geomgnn.cv.readouts.linear_kernels import read_out, read_out_vjp

        return read_out, read_out_vjp

    def __call__(self, x, v):
        read_out, read_out_vjp = self._kernels
        psi, vectors, norms = read_out(x, v, *self._places, NORM_EPSILON**2, self._mean, self._projection)

        def vjp(weights):
            weights = np.ascontiguousarray(weights, dtype=np.float64)
            return read_out_vjp(weights, x, *self._places, self._projection, vectors, norms)

        return psi, vjp


COMPILED = LinearReadout, MLPReadout, AttentionReadout


def make_readout(tokenizer, mixer, mean, projection, project, compiled):
    """The read-out of a CV: with `compiled`, which needs Numba, by kernels where there are some for its mixer.

    `project` takes tokens (F, R, 4, H) to psi (F, d) with torch.
    """
    for kind in COMPILED if compiled else ():
        if kind.covers(mixer):
            return kind(tokenizer, mixer, mean, projection)
    return TorchReadout(tokenizer, project)
