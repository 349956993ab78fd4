"""The internal coordinates that a student sees: torsions, as cosine and sine, and distances between fixed atoms."""

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import one_hot

# A torsion has no value where three of its atoms lie on a line. This, in angstrom^4, lets cosine and sine fade to zero
# there, within about 3 degrees of the line for bonds between heavy atoms, and bounds their gradients; elsewhere it takes
# about 0.3 % off both, and nothing off the angle between them.
COLLINEAR = 1e-2
TOUCHING = 1e-12  # angstrom^2; where two atoms coincide a distance is smooth, too


class InternalCoordinates(nn.Module):
    """Cosines and sines of torsions, and distances, of atoms by number.

    They do not change when the molecule is moved or turned. Sines change their sign in a mirror.

    Parameters
    ----------
    torsions : (T, 4) int array
        Rows of atoms; a torsion is about the axis of the two in the middle.
    distances : (D, 2) int array
    """

    torsions: torch.Tensor
    distances: torch.Tensor

    def __init__(self, torsions: npt.ArrayLike | torch.Tensor, distances: npt.ArrayLike | torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("torsions", torch.tensor(np.array(torsions), dtype=torch.int64).reshape(-1, 4))
        self.register_buffer("distances", torch.tensor(np.array(distances), dtype=torch.int64).reshape(-1, 2))

    def __len__(self) -> int:
        return 2 * len(self.torsions) + len(self.distances)

    def forward(self, pos: torch.Tensor) -> torch.Tensor:
        """All cosines, sines and distances, (F, 2T + D), of positions (F, n, 3) in angstrom; differentiable."""
        return torch.cat([*_cosines_and_sines(self._ends(pos, self.torsions)), _lengths(self._apart(pos))], dim=1)

    def with_gradients(self, pos: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The coordinates of frames (F, n, 3), and their own gradients, which `gradient` takes.

        Returns
        -------
        values : (F, 2T + D) tensor
        cosines, sines : (F, T, 4, 3) tensors
            Their gradients by the positions of their atoms.
        distances : (F, D, 3) tensor
            By the position of the second atom; by that of the first it is the opposite.
        """
        pos = pos.detach()
        # every torsion has atoms of its own in these copies, so the gradient of a sum is that of each of them
        quadruples = self._ends(pos, self.torsions).requires_grad_(True)
        parts = _cosines_and_sines(quadruples)
        slopes = [torch.autograd.grad(part.sum(), quadruples, retain_graph=True)[0] for part in parts]
        apart = self._apart(pos)
        lengths = _lengths(apart)
        return torch.cat([*parts, lengths], dim=1).detach(), *slopes, apart / lengths.unsqueeze(2)

    @staticmethod
    def _ends(pos: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return pos.index_select(1, rows.flatten()).unflatten(1, rows.shape)

    def _apart(self, pos: torch.Tensor) -> torch.Tensor:
        return pos.index_select(1, self.distances[:, 1]) - pos.index_select(1, self.distances[:, 0])

    def gradient(
        self, by_coordinates: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, distances: torch.Tensor, n_atoms: int
    ) -> torch.Tensor:
        """Gradients (F, d, n, 3) by the positions, from those by the coordinates (F, d, 2T + D); linear, differentiable."""
        count = len(self.torsions)
        by_cosine, by_sine, by_distance = by_coordinates.split([count, count, len(self.distances)], dim=2)
        quadruples = by_cosine[..., None, None] * cosines[:, None] + by_sine[..., None, None] * sines[:, None]
        ends = torch.cat([quadruples.flatten(2, 3), by_distance[..., None] * distances[:, None]], dim=2)
        # a product with a matrix of zeros and ones, several times faster than an index_add that is differentiated
        first, second = (one_hot(rows, n_atoms) for rows in self.distances.T)
        return torch.cat([one_hot(self.torsions.flatten(), n_atoms), second - first]).T.to(ends.dtype) @ ends


def _cosines_and_sines(quadruples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(F, T) each, from the positions of the atoms of torsions (F, T, 4, 3)."""
    a, b, c = quadruples.diff(dim=2).unbind(2)
    m, n = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
    scale = ((m.square().sum(2) + COLLINEAR) * (n.square().sum(2) + COLLINEAR)).rsqrt()
    length = (b.square().sum(2) + TOUCHING).sqrt()
    return (m * n).sum(2) * scale, length * (a * n).sum(2) * scale


def _lengths(apart: torch.Tensor) -> torch.Tensor:
    return (apart.square().sum(2) + TOUCHING).sqrt()


# --------------------------------------------------------------------------------------------------- which coordinates


def proper_torsions(bonds: Iterable[tuple[int, int]], n_atoms: int) -> np.ndarray:
    """(T, 4) int64: all chains of three bonds, each once, sorted by the bond in the middle.

    Parameters
    ----------
    bonds : iterable of (a, b)
        Rows of atoms.
    """
    partners = bonded(bonds, n_atoms)
    found = [
        (i, j, k, m)
        for j in range(n_atoms)
        for k in partners[j]
        if j < k
        for i in partners[j]
        for m in partners[k]
        if i != k and m != j and i != m
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 4)


def bonded(bonds: Iterable[tuple[int, int]], n_atoms: int) -> list[list[int]]:
    """For each atom a sorted list of those it has a bond to."""
    partners: list[set[int]] = [set() for _ in range(n_atoms)]
    for a, b in bonds:
        partners[a].add(b)
        partners[b].add(a)
    return [sorted(others) for others in partners]


def nearest_pairs(pos: np.ndarray, bonds: Iterable[tuple[int, int]], candidates: npt.ArrayLike, limit: int) -> np.ndarray:
    """(D, 2) int64: at most `limit` of the pairs: bonds and angles, which hold what is stiff, then the nearest on average.

    Parameters
    ----------
    pos : (F, n, 3) ndarray
        Frames of whole molecules.
    bonds : iterable of (a, b)
    candidates : (P, 2) int array
        Pairs a < b, each once.
    limit : int
    """
    n_atoms, candidates = pos.shape[1], np.asarray(candidates, dtype=np.int64).reshape(-1, 2)
    partners = bonded(bonds, n_atoms)
    stiff = {(a, b) for a in range(n_atoms) for near in partners[a] for b in (near, *partners[near]) if a < b}
    means = np.mean([np.linalg.norm(frame[candidates[:, 1]] - frame[candidates[:, 0]], axis=1) for frame in pos], axis=0)
    rank = np.array([0.0 if (a, b) in stiff else mean for (a, b), mean in zip(candidates.tolist(), means, strict=True)])
    chosen = np.argsort(rank, kind="stable")[:limit]
    return candidates[np.sort(chosen)]


def rotatable_bonds(bonds: Iterable[tuple[int, int]], n_atoms: int) -> list[tuple[int, int, np.ndarray]]:
    """Bonds that part the molecule, with something to turn on either side.

    Returns
    -------
    list of (a, b, rows)
        The bond, and the atoms that a turn about it moves: those on the side of b without b, the smaller of the two sides.
    """
    partners, found = bonded(bonds, n_atoms), []
    for a in range(n_atoms):
        for b in partners[a]:
            if a < b and len(partners[a]) > 1 and len(partners[b]) > 1:
                here, there = _side(partners, a, b), _side(partners, b, a)
                if a not in there:  # otherwise the bond is in a ring
                    first, second, side = (a, b, there) if len(there) <= len(here) else (b, a, here)
                    found.append((first, second, np.array(sorted(side - {second}), dtype=np.int64)))
    return found


def _side(partners: Sequence[Sequence[int]], start: int, other: int) -> set[int]:
    """Atoms that can be reached from `start` without the bond to `other`."""
    seen, waiting = {start}, deque([start])
    while waiting:
        node = waiting.popleft()
        for near in partners[node]:
            if near not in seen and (node, near) != (start, other):
                seen.add(near)
                waiting.append(near)
    return seen
