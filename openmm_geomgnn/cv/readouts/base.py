"""What read-outs by compiled kernels have in common."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from openmm_geomgnn.representation.tokens import Tokenizer

# takes weights (d,) to the gradients (M, H) and (M, 3, H) of their product with psi
ReadoutVJP: TypeAlias = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def own_atoms(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The window atoms that count (n,), the token of each (n,), and the factor of each token's sum (R,)."""
    windows = tokenizer.windows
    own = np.flatnonzero(windows.token >= 0)
    token = windows.token[own]
    size = np.bincount(token, minlength=windows.n_tokens)
    return own, token, 1.0 / size if tokenizer.pooling == "mean" else np.ones(windows.n_tokens)


class CompiledReadout:
    """Base of read-outs by kernels."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._kernels, self._dtype = self.kernels(), np.dtype(str(dtype).removeprefix("torch."))

    @staticmethod
    def kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The jitted functions: of the read-out, and of its vector-Jacobian product."""
        raise NotImplementedError

    def __call__(self, x: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ReadoutVJP]:
        """Evaluate psi (d,) from features x (M, H) and v (M, 3, H), with its vector-Jacobian product."""
        raise NotImplementedError

    @property
    def needs_compiling(self) -> bool:
        """Whether the first evaluation will take long, since the kernels are neither in this process nor in their folder."""
        from torchmdnet_ext.compiled.base import have_kernels

        return not all(have_kernels(self._kernels, self._dtype))
