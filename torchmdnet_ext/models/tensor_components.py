"""The components of 3 x 3 matrices in which TensorNet is written.

A matrix X = I + A + S, a multiple of the unit matrix, an antisymmetric and a symmetric traceless part, is kept as its 9
components in an orthonormal basis of these parts, 1 + 3 + 5 of them.
"""

import functools
import math
from typing import cast

import torch
from torch import Tensor

PARTS = (slice(0, 1), slice(1, 4), slice(4, 9))  # the components of I, A and S


def _orthonormal_basis() -> Tensor:
    """(9, 3, 3), float64: the unit matrix, three antisymmetric and five symmetric traceless matrices, each of norm 1."""
    basis = torch.zeros(9, 3, 3, dtype=torch.float64)
    basis[0] = torch.eye(3, dtype=torch.float64) / math.sqrt(3)
    for k, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        basis[1 + k, i, j], basis[1 + k, j, i] = math.sqrt(0.5), -math.sqrt(0.5)
        basis[4 + k, i, j] = basis[4 + k, j, i] = math.sqrt(0.5)
    basis[7] = torch.diag(torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)) / math.sqrt(2)
    basis[8] = torch.diag(torch.tensor([-1.0, -1.0, 2.0], dtype=torch.float64)) / math.sqrt(6)
    return basis


BASIS = _orthonormal_basis()
FLIP = torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0])[:, None]  # (9, 1): the other direction of an edge


def like(constant: Tensor, x: Tensor) -> Tensor:
    """BASIS or FLIP with the precision and on the device of `x`."""
    return constant.to(x) if x.device == constant.device else _copied(constant, x.dtype, x.device)


@functools.cache
def _copied(constant: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copied to a GPU once: a copy in each evaluation would wait for the GPU, and cannot be part of a CUDA graph."""
    return constant.to(device, dtype)


def matrices(x: Tensor) -> Tensor:
    """Components (N, 9, H) -> matrices (N, 3, 3, H)."""
    return (like(BASIS, x).flatten(1).T @ x).unflatten(1, (3, 3))


def components(matrix: Tensor) -> Tensor:
    """Matrices (N, 3, 3, H) -> components (N, 9, H)."""
    return like(BASIS, matrix).flatten(1) @ matrix.flatten(1, 2)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices (N, 3, 3, H) and (N, 3, 3, H) channel by channel."""
    return cast(Tensor, sum(a[:, :, k, None] * b[:, None, k] for k in range(3)))


def squared_norm(x: Tensor) -> Tensor:
    """Compute squared Frobenius norms (N, 1, H) of matrices with components (N, 9, H)."""
    return x.square().sum(1, keepdim=True)


def spread(factors: Tensor) -> Tensor:
    """A factor for each part (M, 3, H) -> one for each component (M, 9, H)."""
    return torch.cat([factors[:, :1], factors[:, 1:2].expand(-1, 3, -1), factors[:, 2:].expand(-1, 5, -1)], 1)


def edge_components(direction: Tensor) -> Tensor:
    """(P, 9) components of 1 - [u]x + (u u^T - 1/3) for unit vectors u (P, 3), from the centre to its neighbour."""
    symmetric = (direction[:, :, None] * direction[:, None]).flatten(1) @ like(BASIS, direction)[4:].flatten(1).T
    unit = direction.new_full((direction.shape[0], 1), math.sqrt(3))
    return torch.cat([unit, math.sqrt(2) * direction, symmetric], 1)
