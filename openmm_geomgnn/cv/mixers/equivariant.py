"""Layers on rows of scalars (..., S) and vectors (..., 3, C): the vectors turn with the molecule, the scalars do not."""

import torch
from torch import Tensor, nn

from openmm_geomgnn.errors import GeomGNNError

from .features import vector_invariants

# Rows of vectors whose root mean square is below the root of this are not brought to unit size: noise would be.
_ROW_EPSILON = 1e-2


def check_chirality(vector_channels: int, chirality: bool) -> None:
    """Raise a GeomGNNError if a mixer has too few vectors for a triple product."""
    if chirality and vector_channels < 3:
        raise GeomGNNError(f"chirality needs vector_channels of 3 or more but it is {vector_channels}.")


class RowNorm(nn.Module):
    """LayerNorm of the scalars; the vectors divided by the root mean square length in their row.

    Jing et al. 2021, arXiv 2009.01411. The sum under the root has a constant, so it is smooth where all vectors vanish.
    """

    def __init__(self, scalars: int):
        super().__init__()
        self.scalars = nn.LayerNorm(scalars)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise scalars (..., S) and vectors (..., 3, C)."""
        square = vectors.square().sum(-2, keepdim=True).mean(-1, keepdim=True)
        return self.scalars(scalars), vectors * torch.rsqrt(square + _ROW_EPSILON)


class GVP(nn.Module):
    """Geometric vector perceptron: linear maps of vectors, whose invariants join the scalars, which gate the vectors.

    Jing et al. 2021, arXiv 2009.01411, with the vector gates of arXiv 2106.03843 and SiLU for ReLU, which has a kink.

    Parameters
    ----------
    scalars_in, vectors_in, scalars_out, vectors_out
        Channels.
    chirality
        Whether pseudoscalars of the vectors join the scalars.
    """

    def __init__(self, scalars_in: int, vectors_in: int, scalars_out: int, vectors_out: int, chirality: bool):
        super().__init__()
        hidden = max(vectors_in, vectors_out)
        self.chirality = chirality
        self.down = nn.Linear(vectors_in, hidden, bias=False)
        self.up = nn.Linear(hidden, vectors_out, bias=False)
        self.scalars = nn.Linear(scalars_in + (2 if chirality else 1) * hidden, scalars_out)
        self.gate = nn.Linear(scalars_out, vectors_out)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (..., scalars_out) and vectors (..., 3, vectors_out)."""
        hidden = self.down(vectors)
        scalars = self.scalars(torch.cat([scalars, vector_invariants(hidden, self.chirality)], -1))
        scalars = nn.functional.silu(scalars)
        return scalars, self.up(hidden) * torch.sigmoid(self.gate(scalars)).unsqueeze(-2)


class FeedForward(nn.Module):
    """Rows plus a GVP and a linear map of their normalised selves."""

    def __init__(self, scalars: int, vectors: int, hidden: int, chirality: bool):
        super().__init__()
        self.norm = RowNorm(scalars)
        self.gvp = GVP(scalars, vectors, hidden, vectors, chirality)
        self.scalars = nn.Linear(hidden, scalars)
        self.vectors = nn.Linear(vectors, vectors, bias=False)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (..., S) and vectors (..., 3, C), with what the perceptron adds."""
        hidden, turned = self.gvp(*self.norm(scalars, vectors))
        return scalars + self.scalars(hidden), vectors + self.vectors(turned)


class InvariantRows(nn.Module):
    """Normalised rows (..., S) and (..., 3, C) as invariants [scalars, |v|] or, with chirality, pseudoscalars too."""

    def __init__(self, scalars: int, vectors: int, chirality: bool):
        super().__init__()
        self.norm = RowNorm(scalars)
        self.chirality = chirality
        self.width = scalars + (2 if chirality else 1) * vectors

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """Invariants (..., width) of scalars (..., S) and vectors (..., 3, C)."""
        scalars, vectors = self.norm(scalars, vectors)
        return torch.cat([scalars, vector_invariants(vectors, self.chirality)], -1)
