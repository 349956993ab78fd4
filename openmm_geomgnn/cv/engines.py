"""What evaluates the encoder on one frame at a time during a simulation."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.tokens import Tokenizer
from torchmdnet_ext.compiled import compiled_class, why_not_numba

# x (M, H), v (M, 3, H), and what takes gradients by them to that by the positions
FeaturesAndVJP: TypeAlias = tuple[np.ndarray, np.ndarray, Callable[[np.ndarray, np.ndarray], np.ndarray]]

ENGINES = ("auto", "eager", "numba", "cuda")


class EagerEngine:
    """The network as it is.

    Engines take positions of all selected atoms to features of the window atoms: `engine(pos)`, for pos (n, 3) in angstrom,
    is x (M, H), v (M, 3, H), differentiable with respect to pos.
    """

    name = "eager"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, pos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the window atoms at `pos` (n, 3) in angstrom; differentiable."""
        return self._tokenizer.window_features(pos.to(self._tokenizer.encoder.dtype).unsqueeze(0))

    def features_and_vjp(self, pos: np.ndarray) -> FeaturesAndVJP:
        """Features at `pos` (n, 3), a float64 ndarray, and what takes gradients g_x, g_v by them to that by pos (n, 3).

        Features and their gradients are ndarrays: a torch tensor takes a microsecond to make.
        """
        there = torch.from_numpy(pos).requires_grad_(True)
        x, v = self(there)

        def vjp(g_x: np.ndarray, g_v: np.ndarray) -> np.ndarray:
            return torch.autograd.grad((x, v), there, (torch.from_numpy(g_x), torch.from_numpy(g_v)))[0].numpy()

        return x.detach().numpy(), v.detach().numpy(), vjp


class NumbaEngine:
    """Compiled kernels for what `EagerEngine` does."""

    name = "numba"

    def __init__(self, tokenizer: Tokenizer, precision: str) -> None:
        windows, network = tokenizer.windows, tokenizer.encoder.network
        kind = compiled_class(network)
        self._compiled = kind(network, windows.z[windows.rows], windows.pairs, precision, rows=windows.rows)

    @property
    def needs_compiling(self) -> bool:
        """Whether the first evaluation will take long."""
        return self._compiled.needs_compiling

    def __call__(self, pos: Any) -> Any:
        """As that of `EagerEngine`."""
        return self._compiled(pos)

    def features_and_vjp(self, pos: np.ndarray) -> FeaturesAndVJP:
        """As that of `EagerEngine`, without autograd, which costs about as much as the kernels."""
        x, v, ticket = self._compiled.forward(pos)
        return x, v, lambda g_x, g_v: self._compiled.vjp(pos, g_x, g_v, ticket)


class CudaEngine(EagerEngine):
    """The network as it is, for a CV that is evaluated by CUDA graphs (`cuda_graph.GraphedFunction`)."""

    name = "cuda"


def choose_device(device: str | torch.device | None, engine: str) -> torch.device:
    """Where an engine evaluates a CV, as a torch.device with an index if it is a GPU.

    Parameters
    ----------
    device : str or torch.device, optional
        "cpu", "cuda" or "cuda:0"; by default "cuda" if that is the engine, otherwise "cpu".
    engine : str

    Raises
    ------
    GeomGNNError
        If there is no such device, or the engine does not run on it.
    """
    if device is None:
        device = "cuda" if engine == "cuda" else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise GeomGNNError(f"Unknown device {device!r}; the choices are cpu, cuda, cuda:0, cuda:1, ...") from error
    if found.type not in ("cpu", "cuda"):
        raise GeomGNNError(f"A CV runs on a CPU or on a CUDA device, but the device is '{device}'. Set device: cpu or cuda.")
    if found.type == "cpu":
        if engine == "cuda":
            raise GeomGNNError("The cuda engine does not run on a CPU. Set device: cuda, or engine: auto.")
        return torch.device("cpu")
    if engine == "numba":
        raise GeomGNNError(f"The numba engine does not run on '{device}'. Set engine: auto, or device: cpu.")
    if not torch.cuda.is_available():
        raise GeomGNNError(
            f"There is no CUDA device that PyTorch {torch.__version__} can use. Leave out device and engine: cuda to run on "
            "the CPU; or, if there is an NVIDIA GPU, install its driver and a CUDA build of PyTorch (see pytorch.org)."
        )
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise GeomGNNError(
            f"There is no device '{device}': PyTorch sees {torch.cuda.device_count()} CUDA device(s), numbered from 0."
        )
    return torch.device("cuda", index)


def make_engine(name: str, tokenizer: Tokenizer, precision: str) -> EagerEngine | NumbaEngine:
    """The engine for a tokenizer's windows, where the tokenizer is.

    Parameters
    ----------
    name : {"auto", "eager", "numba", "cuda"}
        On a GPU `auto` is `cuda`. On a CPU it is `numba` in single precision where it can be had, otherwise `eager`: in
        double precision one wants the exact radial filters, and `numba` tabulates them, with slopes that are wrong by 2e-5
        at the worst distance.
    tokenizer : Tokenizer
    precision : {"single", "double"}

    Returns
    -------
    EagerEngine, NumbaEngine or CudaEngine

    Raises
    ------
    GeomGNNError
        If the engine is not known, or `numba` is asked for and cannot be had; the message says why.
    """
    if name not in ENGINES:
        raise GeomGNNError(f"Unknown engine '{name}'; the choices are {', '.join(ENGINES)}.")
    if tokenizer.rows.device.type != "cpu":
        return EagerEngine(tokenizer) if name == "eager" else CudaEngine(tokenizer)
    if name == "numba" or name == "auto" and precision == "single":
        reason = why_not_numba(tokenizer.encoder.network)
        if reason is None:
            return NumbaEngine(tokenizer, precision)
        if name == "numba":
            raise GeomGNNError(f"The numba engine cannot be used: {reason}. Set engine: auto or engine: eager.")
    return EagerEngine(tokenizer)
