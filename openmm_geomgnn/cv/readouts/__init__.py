"""From the features of window atoms to the CV, and back: what comes after the encoder in a simulation.

A read-out is called with features x (M, H) and v (M, 3, H), ndarrays, and returns psi (d,), a float64 ndarray, and what
takes weights (d,) to the gradients (M, H) and (M, 3, H), ndarrays, of their product with psi. Several threads may call it.
"""

from collections.abc import Callable
from typing import Any

import torch

from openmm_geomgnn.cv.readouts.attention import AttentionReadout
from openmm_geomgnn.cv.readouts.autograd import TorchReadout
from openmm_geomgnn.cv.readouts.base import CompiledReadout
from openmm_geomgnn.cv.readouts.linear import LinearReadout
from openmm_geomgnn.cv.readouts.mlp import MLPReadout
from openmm_geomgnn.representation.tokens import Tokenizer

COMPILED = LinearReadout, MLPReadout, AttentionReadout


def make_readout(
    tokenizer: Tokenizer,
    mixer: Any,
    mean: torch.Tensor,
    projection: torch.Tensor,
    project: Callable[[torch.Tensor], torch.Tensor],
    compiled: bool,
) -> CompiledReadout | TorchReadout:
    """The read-out of a CV: with `compiled`, which needs Numba, by kernels where there are some for its mixer.

    `project` takes tokens (F, R, 4, H) to psi (F, d) with torch.
    """
    for kind in COMPILED if compiled else ():
        if kind.covers(mixer):
            return kind(tokenizer, mixer, mean, projection)
    return TorchReadout(tokenizer, project)
