"""What evaluates the encoder on one frame at a time during a simulation."""

import importlib.util

import numpy as np
import torch

from openmm_geomgnn.errors import GeomGNNError

ENGINES = ("auto", "eager", "numba")


class EagerEngine:
    """The network as it is.

    Engines take positions of all selected atoms to features of the window atoms: `engine(pos)`, for pos (n, 3) in angstrom,
    is x (M, H), v (M, 3, H), differentiable with respect to pos.
    """

    name = "eager"

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, pos):
        return self._tokenizer.window_features(pos.to(self._tokenizer.encoder.dtype).unsqueeze(0))

    def features_and_vjp(self, pos):
        """Features at `pos` (n, 3), a float64 ndarray, and what takes gradients g_x, g_v by them to that by pos (n, 3).

        The features are tensors without a history of how they were made.
        """
        pos = torch.from_numpy(pos).requires_grad_(True)
        x, v = self(pos)

        def vjp(g_x, g_v):
            return torch.autograd.grad((x, v), pos, (g_x, g_v))[0].numpy()

        return x.detach(), v.detach(), vjp


class NumbaEngine:
    """Compiled kernels for what `EagerEngine` does."""

    name = "numba"

    def __init__(self, tokenizer, precision):
        from openmm_geomgnn.engines.et_numba import NumbaET

        windows = tokenizer.windows
        self._compiled = NumbaET(tokenizer.encoder.network, windows.z[windows.rows], windows.pairs, precision)
        self._rows = windows.rows

    def __call__(self, pos):
        return self._compiled(pos.index_select(0, torch.from_numpy(self._rows)))

    def features_and_vjp(self, pos):
        """As that of `EagerEngine`, without autograd, which costs about as much as the kernels."""
        at = pos[self._rows]
        x, v, ticket = self._compiled.forward(at)

        def vjp(g_x, g_v):
            gradient = np.zeros(pos.shape)
            np.add.at(gradient, self._rows, self._compiled.vjp(at, g_x.numpy(), g_v.numpy(), ticket))
            return gradient

        return torch.from_numpy(x), torch.from_numpy(v), vjp


def make_engine(name, tokenizer, precision):
    """The engine for a tokenizer's windows.

    Parameters
    ----------
    name : {"auto", "eager", "numba"}
        `auto` is `numba` in single precision where it can be had, otherwise `eager`: in double precision one wants the exact
        radial filters, and `numba` tabulates them, with slopes that are wrong by 2e-5 at the worst distance.
    tokenizer : Tokenizer
    precision : {"single", "double"}

    Returns
    -------
    EagerEngine or NumbaEngine

    Raises
    ------
    GeomGNNError
        If the engine is not known, or `numba` is asked for and cannot be had; the message says why.
    """
    if name not in ENGINES:
        raise GeomGNNError(f"Unknown engine '{name}'; the choices are {', '.join(ENGINES)}.")
    if name == "numba" or name == "auto" and precision == "single":
        reason = _why_not_numba(tokenizer)
        if reason is None:
            return NumbaEngine(tokenizer, precision)
        if name == "numba":
            raise GeomGNNError(f"The numba engine cannot be used: {reason}. Set engine: auto or engine: eager.")
    return EagerEngine(tokenizer)


def _why_not_numba(tokenizer):
    if importlib.util.find_spec("numba") is None:
        return 'numba is not installed (pip install "openmm-geomgnn[fast]")'
    from torchmdnet_ext.models.equivariant_transformer import SmoothEquivariantTransformer

    if not isinstance(tokenizer.encoder.network, SmoothEquivariantTransformer):
        return "it is written for the smooth equivariant transformer and this encoder is another network"
    if importlib.util.find_spec("openmm_geomgnn.engines.et_numba") is None:
        return "it is not part of this installation"
    from openmm_geomgnn.engines.et_numba import NumbaET

    return NumbaET.supports(tokenizer.encoder.network)
