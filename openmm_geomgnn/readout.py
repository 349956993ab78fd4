"""From the features of window atoms to the CV, and back: what comes after the encoder in a simulation.

A read-out is called with features x (M, H) and v (M, 3, H), tensors on the CPU, and returns psi (d,), a float64 ndarray, and
what takes weights (d,) to the gradients (M, H) and (M, 3, H), tensors, of their product with psi.
"""

import importlib.util

import numpy as np
import torch

from openmm_geomgnn.mixers.features import NORM_EPSILON


class TorchReadout:
    """Any mixer, by autograd."""

    def __init__(self, tokenizer, project):
        self._tokenizer, self._project = tokenizer, project

    def __call__(self, x, v):
        x, v = x.requires_grad_(True), v.requires_grad_(True)
        psi = self._project(self._tokenizer.pool(x, v, 1))[0]

        def vjp(weights):
            return torch.autograd.grad(psi, (x, v), torch.from_numpy(weights))

        return psi.detach().numpy(), vjp


class LinearReadout:
    """The linear CV, psi = ([x, |v|] of the tokens - mean) @ projection, by kernels: autograd takes as long as an encoder.

    Not for several threads at once.
    """

    def __init__(self, tokenizer, mixer, mean, projection):
        windows, hidden = tokenizer.windows, mixer.hidden_channels
        self._own = np.flatnonzero(windows.token >= 0)
        token = windows.token[self._own]
        size = np.bincount(token, minlength=windows.n_tokens)
        share = 1.0 / size if tokenizer.pooling == "mean" else np.ones(windows.n_tokens)
        pooled = {"flatten": 0.0, "sum": 1.0, "mean": 1.0 / windows.n_tokens}[mixer.settings["pool"]]
        self._places = self._own, token, share, pooled
        self._mean, self._projection = mean.cpu().numpy(), projection.cpu().numpy()
        self._tokens = np.empty((windows.n_tokens, 3, hidden)), np.empty((windows.n_tokens, hidden))
        self._chi = np.empty(len(self._mean))

    @staticmethod
    def covers(tokenizer, mixer):
        """Whether a CV is one that this class is for, and the kernels can be had."""
        linear = mixer.name == "none" and not mixer.chirality and mixer.settings["pool"] in ("flatten", "sum", "mean")
        return linear and importlib.util.find_spec("numba") is not None

    def __call__(self, x, v):
        from openmm_geomgnn.engines.readout_kernels import read_out, read_out_vjp

        psi, epsilon2 = np.empty(self._projection.shape[1]), NORM_EPSILON**2
        x, v = x.numpy(), v.numpy()
        read_out(x, v, *self._places, epsilon2, self._mean, self._projection, *self._tokens, self._chi, psi)
        vectors, norms = (part.copy() for part in self._tokens)

        def vjp(weights):
            g_x, g_v = np.empty_like(x), np.empty_like(v)
            weights = np.ascontiguousarray(weights, dtype=np.float64)
            read_out_vjp(weights, *self._places, self._projection, vectors, norms, self._chi, g_x, g_v)
            return torch.from_numpy(g_x), torch.from_numpy(g_v)

        return psi, vjp


def make_readout(tokenizer, mixer, mean, projection, project):
    """The fastest read-out that there is for a CV; `project` takes tokens (F, R, 4, H) to psi (F, d) with torch."""
    if LinearReadout.covers(tokenizer, mixer):
        return LinearReadout(tokenizer, mixer, mean, projection)
    return TorchReadout(tokenizer, project)
