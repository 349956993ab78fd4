"""What evaluates the encoder on one frame at a time during a simulation."""

import importlib
import importlib.util

import numpy as np
import torch

from openmm_geomgnn.errors import GeomGNNError

ENGINES = ("auto", "eager", "numba")
# classes of networks that there are compiled kernels for, and where; imported where they are wanted
COMPILED = {
    "SmoothEquivariantTransformer": ("et_numba", "NumbaET"),
    "ViSNet": ("visnet_numba", "NumbaViSNet"),
}
MOST_PAIRS = 1_000_000  # of one graph: kernels have memory for all of them, 250 bytes each, near or not


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
        windows, network = tokenizer.windows, tokenizer.encoder.network
        self._compiled = compiled_class(network)(network, windows.z[windows.rows], windows.pairs, precision)
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
        reason = _why_not_numba(tokenizer.encoder.network)
        if reason is None:
            return NumbaEngine(tokenizer, precision)
        if name == "numba":
            raise GeomGNNError(f"The numba engine cannot be used: {reason}. Set engine: auto or engine: eager.")
    return EagerEngine(tokenizer)


def compiled_class(network):
    """The class of the compiled engine for a network, None if there is none; what it covers is for its `supports` to say."""
    for kind in type(network).__mro__:
        if kind.__name__ in COMPILED:
            module, name = COMPILED[kind.__name__]
            return getattr(importlib.import_module(f"openmm_geomgnn.engines.{module}"), name)
    return None


def _why_not_numba(network):
    if importlib.util.find_spec("numba") is None:
        return 'numba is not installed (pip install "openmm-geomgnn[fast]")'
    engine = compiled_class(network)
    if engine is None:
        return f"it is written for {' and '.join(COMPILED)}, but the encoder is a {type(network).__name__}"
    return engine.supports(network)


def compiled_forward(network, z, pairs, parts):
    """A network as compiled kernels in single precision that keep nothing for gradients, or None where there are none.

    Parameters
    ----------
    network : nn.Module
    z : (M,) int array
    pairs : (i, j), int arrays (P,)
    parts : (K,) int array
        Ends of groups of consecutive atoms with no pair between them: bounds the memory.

    Returns
    -------
    object or None
        Its `embed(frames)` takes frames (F, M, 3) in angstrom, an ndarray, to x (F, M, H) and v (F, M, 3, H).
    """
    largest = np.diff(np.searchsorted(np.sort(np.minimum(*pairs)), parts), prepend=0).max()
    if largest > MOST_PAIRS or _why_not_numba(network) is not None:
        return None
    return compiled_class(network)(network, z, pairs, gradient=False, parts=parts)
