"""The read-out of CVs with any mixer, by autograd."""

from collections.abc import Callable

import numpy as np
import torch

from openmm_geomgnn.cv.readouts.base import ReadoutVJP
from openmm_geomgnn.representation.tokens import Tokenizer


class TorchReadout:
    """Any mixer, by autograd."""

    needs_compiling = False

    def __init__(self, tokenizer: Tokenizer, project: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._tokenizer, self._project = tokenizer, project

    def __call__(self, x: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ReadoutVJP]:
        """Evaluate psi (d,) from features x (M, H) and v (M, 3, H), with its vector-Jacobian product."""
        scalars, vectors = (torch.from_numpy(part).requires_grad_(True) for part in (x, v))
        psi = self._project(self._tokenizer.pool(scalars, vectors, 1))[0]

        def vjp(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            g_x, g_v = torch.autograd.grad(psi, (scalars, vectors), torch.from_numpy(weights))
            return g_x.numpy(), g_v.numpy()

        return psi.detach().numpy(), vjp
