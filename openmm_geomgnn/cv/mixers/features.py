"""Invariants of residue tokens: scalars, vector norms and, for chirality, pseudoscalars."""

import torch
from torch import Tensor

# |v| is sqrt(v.v + eps^2): smooth at v = 0, where the bare norm has a kink. 1e-3 bounds its curvature by 1000 and is
# below the vector norms that pre-trained networks produce (0.003 to 10).
NORM_EPSILON = 1e-3


def norms(vectors: Tensor) -> Tensor:
    """sqrt(v.v + NORM_EPSILON^2) of vectors (..., 3, C), shape (..., C)."""
    return torch.sqrt(vectors.square().sum(-2) + NORM_EPSILON**2)


def pseudoscalars(vectors: Tensor) -> Tensor:
    """v_a.(v_b x v_c) / (v_a.v_a + v_b.v_b + v_c.v_c + NORM_EPSILON^2) of vectors (..., 3, C), shape (..., C).

    The channels a, b, c of triple a are a, a + 1 and a + 2, the last ones followed by the first. A rotation leaves the
    values as they are, a reflection changes their sign if the vectors turn into their mirror images. This division,
    rather than one by the product of the norms, makes features of the size of the norms whose slope has a bound
    however short the vectors are: a bias on them does not pull harder on the direction of a vector that all but
    vanishes.

    The vectors of ViSNet, of the equivariant transformer and of TensorNet in its O(3) form are polar: a reflection of the
    atoms reflects them. Of axial vectors, as a network that is equivariant to rotations only may mix in, the triple
    products would be the same for both mirror images.
    """
    first = vectors.unbind(-2)
    second, third = ([part.roll(shift, -1) for part in first] for shift in (-1, -2))
    # the determinant in elementary operations: torch.linalg.cross takes three times as long
    volume = sum(first[i] * (second[j] * third[k] - second[k] * third[j]) for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)))
    squares = vectors.square().sum(-2)
    return volume / (squares + squares.roll(-1, -1) + squares.roll(-2, -1) + NORM_EPSILON**2)


def vector_invariants(vectors: Tensor, chirality: bool = False) -> Tensor:
    """Norms of vectors (..., 3, C) and, with `chirality`, their pseudoscalars: (..., C) or (..., 2C)."""
    return torch.cat([norms(vectors), pseudoscalars(vectors)], -1) if chirality else norms(vectors)


def invariants(tokens: Tensor, chirality: bool = False) -> Tensor:
    """Features [x, |v|] of tokens (..., 4, H), shape (..., 2H), or [x, |v|, pseudoscalars], shape (..., 3H).

    Scalars and norms keep their value under rotations and reflections of the vectors, so mirror images look alike;
    `pseudoscalars` tell them apart.
    """
    return torch.cat([tokens[..., 0, :], vector_invariants(tokens[..., 1:, :], chirality)], dim=-1)
