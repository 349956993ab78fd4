"""What evaluates the encoder on one frame at a time during a simulation."""

import importlib.util

from openmm_geomgnn.errors import GeomGNNError

ENGINES = ("auto", "eager", "numba")


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
    name : str
        The engine taken.
    function : callable
        pos (n, 3) in angstrom -> x (M, H), v (M, 3, H) of the window atoms, differentiable with respect to pos.

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
            from openmm_geomgnn.engines.et_numba import NumbaET

            windows = tokenizer.windows
            compiled = NumbaET(tokenizer.encoder.network, windows.z[windows.rows], windows.pairs, precision)
            return "numba", lambda pos: compiled(pos.index_select(0, tokenizer.rows))
        if name == "numba":
            raise GeomGNNError(f"The numba engine cannot be used: {reason}. Set engine: auto or engine: eager.")
    return "eager", lambda pos: tokenizer.window_features(pos.unsqueeze(0))


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
