"""Why more layers may not help an encoder: features become alike (over-smoothing), atoms are not seen (under-reaching).

Dirichlet energies of features follow Cai & Wang 2020 (arXiv 2006.13318), effective ranks Roy & Vetterli 2007, Jacobians
Topping et al. 2022 (arXiv 2111.14522).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import cdist
from torch import Tensor

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.encoder import Encoder
from torchmdnet_ext.layers import recorded_features


@dataclass(frozen=True)
class Smoothing:
    """How alike the features of the atoms are, by layer: one value before the first layer and one after each.

    Attributes
    ----------
    energy : (layers + 1,) ndarray
        Mean squared difference of the features of neighbours, over that of all pairs of atoms: 0 where neighbours are alike,
        1 where they differ as any two atoms do; nan where all atoms are alike.
    rank : (layers + 1,) ndarray
        Effective rank of the features, centred: the exponential of the entropy of the singular values. At most the number
        of atoms less one.
    """

    energy: np.ndarray
    rank: np.ndarray


@dataclass(frozen=True)
class Reach:
    """How much the features of an atom depend on where another one is; a row for each ordered pair of different atoms.

    Attributes
    ----------
    distance : (N (N - 1),) ndarray
        Angstrom.
    hops : (N (N - 1),) ndarray
        Fewest messages from one to the other; inf where there is no way.
    jacobian : (N (N - 1),) ndarray
        Frobenius norm of d x_i / d r_j, over the mean norm of d x_i / d r_i of all atoms; estimated from random projections.
    """

    distance: np.ndarray
    hops: np.ndarray
    jacobian: np.ndarray

    def by_hops(self) -> dict[int, float]:
        """Root mean square of the Jacobian at each number of hops."""
        finite = np.unique(self.hops[np.isfinite(self.hops)])
        return {int(hop): float(np.sqrt((self.jacobian[self.hops == hop] ** 2).mean())) for hop in finite}


def over_smoothing(encoder: Encoder, z: npt.ArrayLike, pos: npt.ArrayLike) -> Smoothing:
    """Measure how alike the features of the atoms of one conformation are, by layer.

    Parameters
    ----------
    encoder : Encoder
        Any, of this package or of another, whose network has its layers in one list and hands them the features first.
    z : (N,)
        Atomic numbers.
    pos : (N, 3)
        Positions in angstrom.

    Raises
    ------
    GeomGNNError
        If the layers cannot be told, the shapes do not fit, or no two atoms are neighbours.
    """
    elements, positions = _checked(encoder, z, pos)
    neighbours = _adjacency(encoder, positions.numpy())
    if not neighbours.any():
        raise GeomGNNError(f"No two atoms are nearer than the cutoff of {encoder.cutoff:g} angstrom. Give a whole molecule.")
    features = [layer.flatten(1).double().numpy() for layer in layer_features(encoder, elements, positions)]
    return Smoothing(
        np.array([_energy(rows, neighbours) for rows in features]), np.array([_rank(rows) for rows in features])
    )


def layer_features(encoder: Encoder, z: Tensor, pos: Tensor) -> list[Tensor]:
    """What each layer gets, (N, ...), and what the last one leaves: for TensorNet its tensors, else scalars (N, H)."""
    with torch.no_grad(), recorded_features(encoder.network) as seen:
        x, _ = encoder(z, pos, torch.zeros_like(z))
    if seen and all(isinstance(one, Tensor) and len(one) == len(z) for one in seen):
        return [*seen, x]
    raise GeomGNNError(
        f"The layers of {type(encoder.network).__name__} cannot be told: it has no list of layers, or more than one, "
        "whose first argument are the features of all atoms."
    )


def under_reaching(encoder: Encoder, z: npt.ArrayLike, pos: npt.ArrayLike, draws: int = 8, seed: int = 1) -> Reach:
    """Measure how much the scalars of each atom depend on the position of every other.

    Parameters
    ----------
    encoder, z, pos
        As of `over_smoothing`; any encoder.
    draws : int
        Random projections of the scalars of each atom. Relative errors of squared norms are at most sqrt(2 / draws).
    seed : int

    Raises
    ------
    GeomGNNError
        If the shapes do not fit.
    """
    elements, positions = _checked(encoder, z, pos)
    generator, n = torch.Generator().manual_seed(seed), len(elements)
    moved = positions.clone().requires_grad_(True)
    x, _ = encoder(elements, moved, torch.zeros_like(elements))
    squares = torch.zeros(n, n, dtype=torch.float64)
    for atom in range(n):
        for _ in range(draws):
            signs = (torch.randint(0, 2, x.shape[1:], generator=generator) * 2 - 1).to(x.dtype)
            (gradient,) = torch.autograd.grad((x[atom] * signs).sum(), moved, retain_graph=True)
            squares[atom] += gradient.double().square().sum(1) / draws
    norms = squares.sqrt().numpy()
    hops = shortest_path(_adjacency(encoder, positions.numpy()), unweighted=True)
    others = ~np.eye(n, dtype=bool)
    own = norms.diagonal().mean()
    return Reach(cdist(positions, positions)[others], hops[others], norms[others] / (own if own else 1.0))


def _checked(encoder: Encoder, z: npt.ArrayLike, pos: npt.ArrayLike) -> tuple[Tensor, Tensor]:
    elements = torch.as_tensor(np.asarray(z), dtype=torch.long)
    positions = torch.as_tensor(np.asarray(pos)).to(encoder.dtype)
    if elements.dim() != 1 or positions.shape != (len(elements), 3) or len(elements) < 2:
        raise GeomGNNError(
            f"z has shape {tuple(elements.shape)} and pos {tuple(positions.shape)}; they must be (N,) and (N, 3) of two "
            "atoms or more, with pos in angstrom."
        )
    return elements, positions


def _adjacency(encoder: Encoder, positions: np.ndarray) -> np.ndarray:
    """(N, N) whether two atoms exchange messages."""
    near = cdist(positions, positions) < encoder.cutoff
    np.fill_diagonal(near, False)
    return near


def _energy(rows: np.ndarray, neighbours: np.ndarray) -> float:
    squares = cdist(rows, rows, "sqeuclidean")
    everywhere = squares.sum() / (len(rows) * (len(rows) - 1))
    return float(squares[neighbours].mean() / everywhere) if everywhere > 0 else float("nan")


def _rank(rows: np.ndarray) -> float:
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    if values.sum() <= 0:
        return 0.0
    shares = values[values > 1e-12 * values[0]] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
