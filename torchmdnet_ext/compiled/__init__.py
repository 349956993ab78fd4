"""TorchMD-Net's networks, and ours, evaluated fast on a CPU: compiled kernels for one frame at a time or for many."""

import importlib
import importlib.util

import numpy as np

# classes of networks that there are compiled kernels for, and where; imported where they are wanted
COMPILED = {
    "SmoothEquivariantTransformer": ("et_numba", "NumbaET"),
    "ViSNet": ("visnet_numba", "NumbaViSNet"),
    "SmoothTensorNet": ("tensornet_numba", "NumbaTensorNet"),
}
MOST_PAIRS = 1_000_000  # of one graph: kernels have memory for all of them, 250 bytes each, near or not


def compiled_class(network):
    """The class of the compiled engine for a network, None if there is none; what it covers is for its `supports` to say."""
    for kind in type(network).__mro__:
        if kind.__name__ in COMPILED:
            module, name = COMPILED[kind.__name__]
            return getattr(importlib.import_module(f"torchmdnet_ext.compiled.{module}"), name)
    return None


def why_not_numba(network):
    """Why there are no compiled kernels for a network, None if there are."""
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
    if largest > MOST_PAIRS or why_not_numba(network) is not None:
        return None
    return compiled_class(network)(network, z, pairs, gradient=False, parts=parts)
