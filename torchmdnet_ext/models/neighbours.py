"""The neighbour search of all networks: plain PyTorch, exact, without a cap on the number of neighbours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

# candidate pairs examined at once; bounds the memory of the search for large graphs
CHUNK = 4_000_000


class Graph(NamedTuple):
    """Each pair of neighbours once.

    Attributes
    ----------
    i, j : (P,) int64
        The two atoms of each pair; every pair stands for an edge in both directions.
    distance : (P,)
        Distances in angstrom.
    direction : (P, 3)
        Unit vectors (pos[j] - pos[i]) / distance; 0 for atoms at the same place.
    n_atoms : int
    """

    i: Tensor
    j: Tensor
    distance: Tensor
    direction: Tensor
    n_atoms: int

    def directed(self) -> tuple[Tensor, Tensor, Tensor]:
        """List both directions of every pair, then the self loops.

        Returns
        -------
        source, target : (E,) int64
        direction : (E, 3)
            From target to source; 0 on self loops.
        """
        atoms = torch.arange(self.n_atoms, device=self.i.device)
        source, target = torch.cat([self.j, self.i, atoms]), torch.cat([self.i, self.j, atoms])
        still = self.direction.new_zeros(self.n_atoms, 3)
        return source, target, torch.cat([self.direction, -self.direction, still])

    def pair_rows(self, rows: Tensor) -> Tensor:
        """Rows for (each pair, then one for self loops) -> rows for `directed()` edges."""
        pairs = rows[:-1]
        return torch.cat([pairs, pairs, rows[-1:].expand(self.n_atoms, *rows.shape[1:])])

    def filter_distances(self) -> Tensor:
        """(P + 1,) distances at which radial filters are needed: all pairs, then 0 for the self loops."""
        return torch.cat([self.distance, self.distance.new_zeros(1)])


def all_pairs(batch: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs i < j of atoms within the same graph, for a sorted `batch` (N,). Returns i, j of shape (P,)."""
    n = batch.numel()
    atoms = torch.arange(n, device=batch.device)
    ends = torch.searchsorted(batch.contiguous(), batch.contiguous(), right=True)
    counts = ends - atoms - 1  # partners after each atom
    i = torch.repeat_interleave(atoms, counts)
    first = torch.cumsum(counts, 0) - counts
    j = torch.arange(i.numel(), device=batch.device) - first[i] + i + 1
    return i, j


def minimum_image(vectors: Tensor, box: Tensor) -> Tensor:
    """Shortest periodic images of displacement vectors (P, 3) in reduced triclinic boxes (3, 3) or (P, 3, 3)."""
    for k in (2, 1, 0):
        rows = box[..., k, :]
        vectors = vectors - torch.round(vectors[:, k : k + 1] / rows[..., k : k + 1]) * rows
    return vectors


def _displacements(pos: Tensor, i: Tensor, j: Tensor, batch: Tensor | None, box: Tensor | None) -> Tensor:
    vectors = pos.index_select(0, j) - pos.index_select(0, i)
    if box is None:
        return vectors
    return minimum_image(vectors, box[batch[i]] if batch is not None and box.dim() == 3 else box)


def connect(
    pos: Tensor, i: Tensor, j: Tensor, cutoff: float | None, batch: Tensor | None = None, box: Tensor | None = None
) -> Graph:
    """The `Graph` of those of the candidate pairs (i, j) that are closer than `cutoff`, or of all of them if it is None.

    Differentiable with respect to `pos` (N, 3) in angstrom, also for atoms at the same place (where the gradient is 0).
    """
    vectors = _displacements(pos, i, j, batch, box)
    squared = vectors.square().sum(1)
    if cutoff is not None:
        near = squared.detach() < cutoff * cutoff
        if not bool(near.all()):
            keep = near.nonzero().squeeze(1)
            i, j, vectors, squared = i[keep], j[keep], vectors[keep], squared[keep]
    apart = squared > 0
    root = torch.where(apart, squared, 1.0).sqrt()
    distance = torch.where(apart, root, 0.0)
    direction = vectors * torch.where(apart, 1.0 / root, 0.0).unsqueeze(1)
    return Graph(i, j, distance, direction, pos.shape[0])


class Neighbours(nn.Module):
    """Neighbours within a cutoff, in each graph of a batch, with or without periodic boundaries.

    No neighbour is ever dropped: there is no maximal number. The buffer `box` has the name that TorchMD-Net's
    checkpoints use; zeros stand for no periodic box.

    Parameters
    ----------
    cutoff : float
        In angstrom.
    box : (3, 3) tensor, optional
        Reduced box vectors in angstrom; a box passed to `forward` takes precedence.
    """

    box: Tensor

    def __init__(self, cutoff: float, box: Tensor | None = None) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.register_buffer("box", torch.zeros(3, 3) if box is None else torch.as_tensor(box))
        self._every_pair = False

    @contextmanager
    def every_pair(self) -> Iterator[None]:
        """Keep candidate pairs beyond the cutoff while this context is active, so that no shape depends on the positions.

        The networks multiply the messages of such pairs by an exact 0, which costs time but changes no number. Nothing is
        read back from the device either, as the capture of a CUDA graph requires.

        Raises
        ------
        ValueError
            If there is a periodic box. In this context `forward` raises one without `pairs` or with a box.
        """
        if bool(self.box.any()):
            raise ValueError("Pairs of fixed shapes are for molecules without a periodic box. Use a network without one.")
        before, self._every_pair = self._every_pair, True
        try:
            yield
        finally:
            self._every_pair = before

    def forward(
        self, pos: Tensor, batch: Tensor, box: Tensor | None = None, pairs: tuple[Tensor, Tensor] | None = None
    ) -> Graph:
        """Make the graph of the atoms at `pos` (N, 3) in angstrom.

        Parameters
        ----------
        batch : (N,) int64
            The graph of each atom, in ascending order.
        box : (3, 3) or (B, 3, 3), optional
        pairs : (i, j), optional
            Candidate pairs made once for a fixed topology; without them all pairs of a graph are examined.

        Raises
        ------
        ValueError
            If `batch` is not sorted, or the cutoff exceeds half the width of the box.
        """
        if self._every_pair:
            if box is not None or pairs is None:
                raise ValueError("Pairs of fixed shapes need candidate pairs and no periodic box. Pass pairs, not box.")
            return connect(pos, *pairs, None)
        if box is None and bool(self.box.any()):
            box = self.box
        if box is not None:
            box = box.to(pos.dtype)
            self._check_box(box)
        if pairs is None:
            pairs = self._search(pos.detach(), batch, box)
        return connect(pos, *pairs, self.cutoff, batch, box)

    def _check_box(self, box: Tensor) -> None:
        widths = torch.diagonal(box, dim1=-2, dim2=-1)
        if bool((widths < 2 * self.cutoff).any()):
            raise ValueError(
                f"The periodic box is {widths.min().item():.3f} angstrom wide, but must be at least twice the cutoff "
                f"of {self.cutoff} angstrom. Use a larger box or a network with a smaller cutoff."
            )

    def _search(self, pos: Tensor, batch: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor]:
        if bool((batch[1:] < batch[:-1]).any()):
            raise ValueError("The atoms of each graph must follow one another: sort the atoms by `batch`.")
        n = batch.numel()
        largest = int(torch.bincount(batch).max()) if n else 0
        if n * largest <= CHUNK:
            return all_pairs(batch)
        # large graphs: examine blocks of atoms and keep only the pairs within reach
        found = []
        ends = torch.searchsorted(batch.contiguous(), batch.contiguous(), right=True)
        step = max(1, CHUNK // largest)
        for start in range(0, n, step):
            rows = torch.arange(start, min(start + step, n), device=pos.device)
            counts = ends[rows] - rows - 1
            i = torch.repeat_interleave(rows, counts)
            first = torch.cumsum(counts, 0) - counts
            j = torch.arange(i.numel(), device=pos.device) - first[i - start] + i + 1
            near = _displacements(pos, i, j, batch, box).square().sum(1) < self.cutoff**2
            found.append((i[near], j[near]))
        return torch.cat([i for i, _ in found]), torch.cat([j for _, j in found])
